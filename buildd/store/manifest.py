"""What is written beside the tree of an artifact: its manifest, and a receipt of each build that made it.

Invariant: what early versions wrote is read, and what cannot be read is an error in words or is passed over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from buildd.errors import NotFound, Refused
from buildd.model import BuildRecord
from buildd.planner.keys import Inputs
from buildd.store.listing import OutputEntry

FORMAT = 1
NAME = "manifest.json"

_MOST = 16
"""Receipts that are read at once: one output may have been made a thousand times."""


class Manifest(Struct, frozen=True, kw_only=True, weakref=True):
    format: int = FORMAT
    output_id: str
    created_at: float
    bytes: int
    files: int | None = None
    """Entries that are no directories; None in manifests of early versions."""
    entries: tuple[OutputEntry, ...]


class ManifestHead(Struct, frozen=True, kw_only=True):
    """A manifest without its entries: what a list needs, read in a fraction of the time."""

    output_id: str
    created_at: float
    bytes: int
    files: int | None = None


class Receipt(Struct, frozen=True, kw_only=True):
    """One build that made the output, with all that its database record says."""

    format: int = FORMAT
    repository: str
    build: BuildRecord
    inputs: Inputs | None = None
    """What decided the build; None in receipts of early versions."""


_M = TypeVar("_M", Manifest, ManifestHead)


def count_files(entries: Iterable[OutputEntry]) -> int:
    return sum(entry.kind != "dir" for entry in entries)


def missing(output: str) -> NotFound:
    return NotFound(f"there is no artifact {output}", hint="`buildctl artifacts list` shows them")


def read_manifest(directory: Path, kind: type[_M]) -> _M:
    """The manifest of the artifact in `directory`. Raises NotFound, or Refused when it is damaged."""
    try:
        return msgspec.json.decode((directory / NAME).read_bytes(), type=kind)
    except FileNotFoundError:
        raise missing(directory.name) from None
    except msgspec.DecodeError as error:
        raise Refused(
            f"the manifest of artifact {directory.name} is damaged: {error}",
            hint=f"`buildctl artifacts verify {directory.name}`",
        ) from None


def read_receipts(builds: Path) -> list[Receipt]:
    """The newest receipts in a directory, newest first; those that cannot be read are passed over."""
    try:
        with os.scandir(builds) as entries:
            newest = sorted(entries, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)[:_MOST]
    except OSError:
        return []
    found = []
    for entry in newest:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found.append(msgspec.json.decode(Path(entry.path).read_bytes(), type=Receipt))
    return found
