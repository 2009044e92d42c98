"""Work directories: made for a build, and used again for another one when nothing of the first is left in them.

To make directories and remove them is most of what a small build asks of the disk; and on ext4, which does not use
an inode again for minutes, each one that was removed makes the next ones dearer.

Invariant: a build finds its directories as if they had been made for it: empty, and with the mode, the owner, the
attributes and the flags that new ones have. Where any of that differs, or cannot be told, they are removed; so are
those that somebody else may have open.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import deque
from contextlib import suppress
from itertools import count
from pathlib import Path

from msgspec import Struct

from buildd.execute.sandbox import WORK_DIRECTORIES
from buildd.store import remains
from buildd.store.flags import inode_flags, ioctl_number
from buildd.store.tree import DIRECTORY, remove_tree

_SPARE = ".spare-"
_MOST_SPARES = 16


_FSXATTR = struct.Struct("=IIIII8x")  # flags, extsize, extents, project, cowextsize
_FS_IOC_FSGETXATTR = ioctl_number("X", 31, _FSXATTR.size)


class _Look(Struct, frozen=True):
    """What tells a directory from a new one. A build may set all of it, and its times."""

    status: tuple[int, ...]
    flags: tuple[int, ...]
    attributes: tuple[tuple[str, bytes], ...]
    """Access control lists among them."""


class WorkDirectories:
    """Those below `directory`. The methods block, and may be called from any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._spares: deque[Path] = deque()
        self._numbers = count()
        self._new: _Look | None = None
        """What a new directory looks like here."""
        self._closed = False
        for left in directory.glob(f"{_SPARE}*"):
            remove_tree(left)

    def path(self, build: str) -> Path:
        return self._directory / build

    def make(self, build: str) -> None:
        """Make the directory of a build, with all that belongs into it. Raises OSError."""
        path = self.path(build)
        with suppress(IndexError, OSError):  # there is none, or it was removed by somebody
            self._spares.pop().rename(path)
            return
        path.mkdir(mode=0o700)  # what a build makes setuid is out of reach for other users
        for name in WORK_DIRECTORIES:
            os.mkdir(path / name)
        if self._new is None:
            self._new = _look_at(path / WORK_DIRECTORIES[0])

    def remove(self, build: str, *, reuse: bool) -> None:
        """Remove the directory of a build; `reuse` says that nobody can have it open any more. Raises OSError."""
        path = self.path(build)
        if reuse and not self._closed and len(self._spares) < _MOST_SPARES:
            with suppress(OSError):
                if self._renew(path):
                    spare = self._directory / f"{_SPARE}{next(self._numbers)}"
                    path.rename(spare)
                    self._spares.append(spare)
                    return
        remains.remove(path)

    def close(self) -> None:
        """Remove what was kept, and keep nothing any more. Raises OSError."""
        self._closed = True
        while self._spares:
            remove_tree(self._spares.pop())

    def _renew(self, path: Path) -> bool:
        """Empty the directories of a build; whether they are as good as new. Raises OSError."""
        for name in WORK_DIRECTORIES:
            place = path / name
            if not os.path.lexists(place):
                os.mkdir(place)  # it went into the artifact store
            elif not self._empty(place):
                return False
        return len(os.listdir(path)) == len(WORK_DIRECTORIES)

    def _empty(self, place: Path) -> bool:
        handle = os.open(place, DIRECTORY)
        try:
            for name in os.listdir(handle):
                remove_tree(place / name)
            os.utime(handle)
            return self._new is not None and _look(handle) == self._new
        finally:
            os.close(handle)


def _look_at(path: Path) -> _Look | None:
    handle = os.open(path, DIRECTORY)
    try:
        return _look(handle)
    finally:
        os.close(handle)


def _look(handle: int) -> _Look | None:
    """None when it cannot be told."""
    found = os.fstat(handle)
    try:
        plain = inode_flags(handle)
        flags, extsize, _, project, cowextsize = _FSXATTR.unpack(
            fcntl.ioctl(handle, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        )
        attributes = tuple(sorted((name, os.getxattr(handle, name)) for name in os.listxattr(handle)))
    except OSError:
        return None
    return _Look(
        (found.st_dev, found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size),
        (plain, flags, extsize, project, cowextsize),
        attributes,
    )
