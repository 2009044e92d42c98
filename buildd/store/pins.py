"""Pins: `pin.json` in an artifact's directory says that somebody wants it kept, whatever the limits say.

Invariant: a pin lives beside what it protects, so that it is there as long as that is, with a database or without.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from buildd.store.tree import sync_directory, write_file

NAME = "pin.json"


class Pin(Struct, frozen=True, kw_only=True):
    by: str
    """Name of the user."""
    at: float
    note: str = ""
    """Why, in the user's words."""


def write_pin(directory: Path, pin: Pin, *, temporary: Path) -> None:
    """Pin the artifact in `directory`, or change its pin, by a file that is written at `temporary`. Raises OSError."""
    write_file(temporary, msgspec.json.encode(pin))
    temporary.rename(directory / NAME)
    sync_directory(directory)


def read_pin(directory: Path) -> Pin | None:
    """The pin of the artifact in `directory`, if it has one. One that cannot be read protects all the same."""
    try:
        return msgspec.json.decode((directory / NAME).read_bytes(), type=Pin)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        return Pin(by="", at=0.0, note=f"the pin cannot be read: {error}")


def remove_pin(directory: Path) -> bool:
    """False when there was none. Raises OSError."""
    try:
        (directory / NAME).unlink()
    except FileNotFoundError:
        return False
    sync_directory(directory)
    return True


def move_pin(source: Path, target: Path) -> None:
    """Let the artifact in `target` have the pin of the one in `source`, if that has one. Raises OSError."""
    try:
        (source / NAME).rename(target / NAME)
    except FileNotFoundError:
        return
    sync_directory(target)
