"""What builds find in /etc: a few files of the machine's, copied into one directory that each session binds.

A bind mount for each of these files would take half of the time in which a sandbox is set up. Trees too large to
copy stay bind mounts of their own, on empty mount points in the directory.

Invariants: only what is listed is there, and of that only what every user of the machine may read; links inside a
listed directory are copied as links, and never followed; a file changes by a rename, so that a build sees all of
it, before or after.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from buildd.store.tree import remove_tree

LOOK_EVERY_S = 1.0
"""Between two looks at what was copied, a hundred stats or so."""
_MOST_ENTRIES = 64
_MOST_BYTES = 1 << 20
"""A file or tree beyond either is bound, not copied."""

Content = bytes | str | None
"""Of a file; the target of a link; None for a directory."""
Signature = tuple[int, ...]


class Etc:
    """The directory, and what has to be bound on top of it. The methods block."""

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        *,
        own: Mapping[str, str],
        bound: Sequence[str] = (),
        source: Path = Path("/etc"),
        look_every: float = LOOK_EVERY_S,
    ) -> None:
        """`names` are shown as they are below `source`; `own` files have a text of ours; for the `bound` ones there
        are mount points only, for whoever binds them. Raises OSError."""
        self.directory = directory
        self.binds: Mapping[str, str] = {}
        """What is too large to copy: its path on the machine by its name."""
        self._names, self._bound, self._source = names, bound, source
        self._own = {name: text.encode() for name, text in own.items()}
        self._look_every = look_every
        self._copied: set[str] = set()
        """What was copied once is copied for good: running builds would lose it to a mount point."""
        self._seen: dict[str, Signature | None] = {}
        self._next_look = 0.0
        self._turn = threading.Lock()
        self._take_over()

    def refresh(self) -> None:
        """Take over what has changed on the machine, if it is time to look. From any thread. Raises OSError."""
        with self._turn:
            now = time.monotonic()
            if now >= self._next_look:
                if any(_signature(path) != signature for path, signature in self._seen.items()):
                    self._take_over()
                self._next_look = now + self._look_every

    def _take_over(self) -> None:
        wanted: dict[str, Content] = {}
        binds: dict[str, str] = {}
        reader = _Reader()
        for name in self._names:
            reader.look_at(self._source / name)  # the link, if it is one, which may be led elsewhere
            path = os.path.realpath(self._source / name)
            found = reader.read(path, name, limited=name not in self._copied)
            if found is None:
                binds[name] = path
                wanted[name] = _mount_point(path)
            elif found:
                self._copied.add(name)
                wanted |= found
        for name in self._bound:
            reader.look_at(self._source / name)
            is_there = os.path.exists(self._source / name)
            if is_there and all(wanted.get(str(parent)) is None for parent in Path(name).parents):
                wanted.setdefault(name, _mount_point(self._source / name))
        wanted |= self._own
        _mirror(_with_parents(wanted), self.directory)
        reader.look_at(self.directory)  # in case that somebody removes it
        self.binds, self._seen = binds, reader.seen


class _TooLarge(Exception):
    pass


class _Reader:
    """Reads files and trees, and notes what they looked like before that."""

    def __init__(self) -> None:
        self.seen: dict[str, Signature | None] = {}
        self._found: dict[str, Content] = {}
        self._bytes = 0
        self._limited = True

    def look_at(self, path: str | Path) -> None:
        self.seen[str(path)] = _signature(path)

    def read(self, path: str, name: str, *, limited: bool) -> dict[str, Content] | None:
        """The content of each entry by its name; nothing when there is nothing, None when it is too large."""
        self._found, self._bytes, self._limited = {}, 0, limited
        try:
            self._read(path, name)
        except _TooLarge:
            return None
        return self._found

    def _read(self, path: str, name: str) -> None:
        try:
            self.look_at(path)
            mode = os.stat(path).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                self._count(os.path.getsize(path))
                self._found[name] = Path(path).read_bytes()
            elif stat.S_ISDIR(mode) and mode & stat.S_IROTH and mode & stat.S_IXOTH:
                self._count(0)
                self._found[name] = None
                self._read_directory(path, name)
        except OSError:
            pass  # it went in this moment, or is not for us

    def _read_directory(self, path: str, name: str) -> None:
        with os.scandir(path) as entries:
            found = [(entry.path, f"{name}/{entry.name}", entry.is_symlink()) for entry in entries]
        for below, below_name, is_link in found:
            if is_link:
                self._count(0)
                self._found[below_name] = os.readlink(below)
            else:
                self._read(below, below_name)

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._limited and (self._bytes > _MOST_BYTES or len(self._found) >= _MOST_ENTRIES):
            raise _TooLarge


def _signature(path: str | Path) -> Signature | None:
    """What changes when a file, or the names in a directory, do; None when there is nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


def _mount_point(path: str | Path) -> Content:
    """What a file or directory can be bound on."""
    return None if os.path.isdir(path) else b""


def _with_parents(wanted: Mapping[str, Content]) -> dict[str, Content]:
    parents = {str(parent): None for name in wanted for parent in Path(name).parents if parent.name}
    return {**parents, **wanted}


def _mirror(wanted: Mapping[str, Content], directory: Path) -> None:
    """Make `directory` hold exactly what is wanted; what is there already stays untouched."""
    directory.mkdir(parents=True, exist_ok=True)
    for top, directories, files in os.walk(directory):
        for path in (Path(top, name) for name in (*directories, *files)):
            name = str(path.relative_to(directory))
            if name not in wanted or _is_directory(path) != (wanted[name] is None):
                remove_tree(path)
    fresh = directory.with_name(f".{directory.name}.new")
    fresh.unlink(missing_ok=True)  # of a daemon that was killed here
    for name in sorted(wanted):  # directories before what is in them
        path, content = directory / name, wanted[name]
        if content is None:
            path.mkdir(exist_ok=True)
        elif _content(path) != content:
            fresh.unlink(missing_ok=True)
            if isinstance(content, str):
                fresh.symlink_to(content)
            else:
                fresh.write_bytes(content)
            fresh.replace(path)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _content(path: Path) -> Content:
    """Of a file, or the target of a link; None when there is neither."""
    try:
        return os.readlink(path) if path.is_symlink() else path.read_bytes()
    except FileNotFoundError:
        return None
