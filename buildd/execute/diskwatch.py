"""What the directories of a build take on the disk, looked at again and again while it runs.

There is no quota that works without rights on every file system, so the directories are read, in a worker thread:
when the file system has lost as much as might matter, and at times anyway, more seldom the longer it takes. Files
that are deleted and still open count too: they take as much as others.

Invariant: for all builds together this takes a small part of one processor; no link is followed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio
from msgspec import Struct

from buildd.execute.meter import Verdict
from buildd.threads import in_thread

_TICK_S = 1.0
_REST_S, _REST_COST = 5.0, 50
"""At the latest after so many seconds, or so many times what a look took, there is another one."""
_TURN_COST = 4
"""For so many times what a look took, no other build is looked at."""
_BLOCK = 512
"""Bytes of the blocks that stat(2) counts in."""


class DiskUse(Struct, frozen=True, kw_only=True):
    bytes: int = 0
    files: int = 0
    """Directories too."""


class _Free(NamedTuple):
    """What a file system has left."""

    bytes: int
    files: int


def _free(work: Path) -> _Free:
    try:
        found = os.statvfs(work)
    except OSError:
        return _Free(0, 0)  # the directory is gone
    return _Free(found.f_bfree * found.f_frsize, found.f_ffree)


class DiskBounds(Struct, frozen=True, kw_only=True):
    """0 is no limit."""

    bytes: int = 0
    files: int = 0


class DiskWatch:
    def __init__(self, work: Path, bounds: DiskBounds, pids: Callable[[], list[int]], turn: trio.CapacityLimiter):
        """`pids` gives the processes of the build; `turn` is taken by one build after the other."""
        self._work = work
        self._bounds = bounds
        self._pids = pids
        self._turn = turn
        self.use = DiskUse()
        """As it was at the last look."""
        self.broken: Verdict | None = None

    async def run(self) -> None:
        """Look until cancelled or a limit is broken."""
        if not (self._bounds.bytes or self._bounds.files):
            return
        await trio.sleep(_TICK_S)
        while True:
            free = _free(self._work)
            async with self._turn:
                took = await self._look()
                self.broken = self._judge()
                if self.broken is not None:
                    return
                await trio.sleep(_TURN_COST * took)
            await self._wait(free, trio.current_time() + max(_REST_S, _REST_COST * took))

    async def _look(self) -> float:
        """Read the directories; the seconds that it took."""
        look = partial(measure, self._work, self._bounds, self._pids(), trio.from_thread.check_cancelled)
        began = time.monotonic()
        self.use = await in_thread(look)
        return time.monotonic() - began

    async def _wait(self, before: _Free, until: float) -> None:
        """Wait until that time, or until the file system has lost half of what is left of a limit."""
        most, use = self._bounds, self.use
        while trio.current_time() < until:
            await trio.sleep(_TICK_S)
            now = _free(self._work)
            if most.bytes and before.bytes - now.bytes > (most.bytes - use.bytes) / 2:
                return
            if most.files and before.files - now.files > (most.files - use.files) / 2:
                return

    def _judge(self) -> Verdict | None:
        use, most = self.use, self._bounds
        if most.bytes and use.bytes > most.bytes:
            return "disk_full", f"its directories take over {most.bytes} bytes on the disk (limits.disk)"
        if most.files and use.files > most.files:
            return "disk_full", f"its directories hold over {most.files} files (limits.files)"
        return None


def measure(
    work: Path, bounds: DiskBounds, pids: Iterable[int] = (), check: Callable[[], None] = lambda: None
) -> DiskUse:
    """What is below `work`, and what processes have open of it without a name; no further than over the bounds.

    What vanishes or cannot be read meanwhile counts as nothing. Blocks.
    """
    count = _Count(bounds)
    pending = [str(work)]
    while pending and not count.is_over():
        check()
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    count.add(found)
                    if stat.S_ISDIR(found.st_mode):
                        pending.append(entry.path)
                    if count.is_over():
                        break
        except OSError:
            continue
    if not count.is_over():
        _add_nameless(work, pids, count)
    return DiskUse(bytes=count.bytes, files=count.files)


class _Count:
    def __init__(self, bounds: DiskBounds) -> None:
        self.bytes = self.files = 0
        self._bounds = bounds
        self._linked: set[int] = set()
        """Inodes with several names that were counted."""

    def add(self, found: os.stat_result) -> None:
        if found.st_nlink != 1 and not stat.S_ISDIR(found.st_mode):
            if found.st_ino in self._linked:
                return
            self._linked.add(found.st_ino)
        self.bytes += found.st_blocks * _BLOCK
        self.files += 1

    def is_over(self) -> bool:
        most = self._bounds
        return bool((most.bytes and self.bytes > most.bytes) or (most.files and self.files > most.files))


def _add_nameless(work: Path, pids: Iterable[int], count: _Count) -> None:
    """Add the files on the same file system that are open and have no name any more."""
    try:
        device = work.stat().st_dev
    except OSError:
        return
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            try:
                found = os.stat(f"{folder}/{name}")
            except OSError:
                continue
            if found.st_nlink == 0 and found.st_dev == device and stat.S_ISREG(found.st_mode):
                count.add(found)
