"""Free space of file systems, asked without trust that they answer.

A network file system whose server is gone holds whoever asks, for ever. So they are asked in a thread that is left
to itself after a while, and a directory is not asked again as long as the last question has no answer.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

import trio
from msgspec import Struct

from buildd.threads import in_thread

WITHIN_S = 2.0
"""A file system that has not answered by then is taken as one that does not."""


class Space(Struct, frozen=True, kw_only=True):
    """Of the file system that a directory is on."""

    free_bytes: int
    """That a process without privileges can have."""
    total_bytes: int
    free_inodes: int = 0
    total_inodes: int = 0
    """0 where the file system does not count them."""
    device: int = 0
    """Tells file systems apart."""


def space_of(directory: Path) -> Space:
    """Blocks as long as the file system does. Raises OSError."""
    found = os.statvfs(directory)
    return Space(
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        free_inodes=found.f_favail,
        total_inodes=found.f_files,
        device=directory.stat().st_dev,
    )


class Spaces:
    """Asks after the same directories again and again; one asker at a time."""

    def __init__(self, directories: Collection[Path]) -> None:
        self._directories = directories
        self._asked: set[Path] = set()
        """Those that have not answered yet."""
        self._threads = trio.CapacityLimiter(len(directories))
        """As many as can hang."""

    async def look(self) -> dict[Path, Space | None]:
        """The space of each directory, None of those that do not answer or cannot be read. Takes WITHIN_S at most."""
        found: dict[Path, Space | None] = dict.fromkeys(self._directories)
        open_ = [directory for directory in self._directories if directory not in self._asked]
        if open_:
            with trio.move_on_after(WITHIN_S):
                await in_thread(self._ask, open_, found, limiter=self._threads, abandon_on_cancel=True)
        return dict(found)  # a thread that was left to itself may still write there

    def _ask(self, directories: Iterable[Path], found: dict[Path, Space | None]) -> None:
        for directory in directories:
            self._asked.add(directory)
            try:
                found[directory] = space_of(directory)
            except OSError:
                pass  # it is left at None
            finally:
                self._asked.discard(directory)


def in_units(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
