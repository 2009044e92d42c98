"""Where the members of an untrusted archive land: a staging directory that nothing can be written out of.

Names are taken apart here and every directory on the way is opened without following links, so no name, link
or order of members leads elsewhere. Links are checked for where they point once all members are known.

Invariant: nothing is written outside the staging directory, no file in it is opened twice for writing, and the
bytes, members, depths and path lengths stay below the limits, counted as they are written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from msgspec import Struct

from buildd.errors import BuildFailure
from buildd.store.tree import DIRECTORY, open_directory, write_all

Parts = tuple[str, ...]
"""A path as its components, none of which is empty, `.` or `..`."""


class ExtractLimits(Struct, frozen=True, kw_only=True):
    """What one source may become."""

    max_bytes: int = 32 << 30
    """Of the decompressed archive, and of the files written."""
    max_members: int = 1_000_000
    max_depth: int = 100
    """Components of a path."""
    max_path: int = 2048
    """Bytes of a path inside the archive."""


class ArchiveError(Exception):
    """Something is wrong with an archive; `extract` adds which one, and which member."""


def printable(name: str) -> str:
    """A foreign name as it may be shown in a message: quoted, on one line, and not too long."""
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    text = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
    return f"'{text[:200]}…'" if len(text) > 200 else f"'{text}'"


class Landing:
    """A fresh directory, open as `root`, being filled with the members of one archive."""

    def __init__(self, root: int, limits: ExtractLimits, strip: int, mtime: int, check: Callable[[], None]) -> None:
        self.limits = limits
        self.members = 0
        self.bytes = 0
        self._root = root
        self._strip = strip
        self._times = (mtime, mtime)
        self._check = check
        self._links: dict[Parts, str] = {}
        self._parent: tuple[Parts, int] | None = None

    def close(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    # --- members ---

    def place(self, name: str) -> Parts | None:
        """Where a member goes; None for one that is above what is kept. Counts it."""
        self._check()
        self.members += 1
        if self.members > self.limits.max_members:
            raise ArchiveError(f"there are more than {self.limits.max_members} members")
        return self._split(name)

    def _split(self, name: str) -> Parts | None:
        if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
            raise ArchiveError("the name holds a control character")
        if name.startswith("/"):
            raise ArchiveError("the path is absolute")
        parts = tuple(part for part in name.split("/") if part not in {"", "."})
        if ".." in parts:
            raise ArchiveError("the path holds '..'")
        if len(parts) > self.limits.max_depth:
            raise ArchiveError(f"the path is more than {self.limits.max_depth} levels deep")
        if len(os.fsencode(name)) > self.limits.max_path:
            raise ArchiveError(f"the path is longer than {self.limits.max_path} bytes")
        return parts[self._strip :] or None

    def directory(self, parts: Parts) -> None:
        self._open_parent((*parts, "."))

    def file(self, parts: Parts, executable: bool, chunks: Iterator[bytes]) -> None:
        """Write a file; the mode is 0o755 or 0o644, whatever else the archive asks for."""
        parent = self._open_parent(parts)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _twice():
            handle = os.open(parts[-1], flags, 0o600, dir_fd=parent)
        try:
            for chunk in chunks:
                self._check()
                self.bytes += len(chunk)
                if self.bytes > self.limits.max_bytes:
                    raise ArchiveError(f"the files are larger than {self.limits.max_bytes} bytes together")
                write_all(handle, chunk)
            os.fchmod(handle, 0o755 if executable else 0o644)
            os.utime(handle, self._times)
        finally:
            os.close(handle)

    def symlink(self, parts: Parts, target: str) -> None:
        """Make a link; `check_links` decides whether it may stay."""
        if not target or any(ord(letter) < 32 or ord(letter) == 127 for letter in target):
            raise ArchiveError("the target of the link is empty or holds a control character")
        if target.startswith("/"):
            raise ArchiveError(f"the link leads to the absolute path {printable(target)}")
        parent = self._open_parent(parts)
        with _twice():
            os.symlink(target, parts[-1], dir_fd=parent)
        os.utime(parts[-1], self._times, dir_fd=parent, follow_symlinks=False)
        self._links[parts] = target

    def hardlink(self, parts: Parts, name: str) -> None:
        """Give the file that member `name` was a second name."""
        target = self._split(name)
        shown = printable(name)
        if target is None:
            raise ArchiveError(f"the hard link leads to {shown}, which is not extracted")
        source = os.dup(self._open_parent(target, create=False))
        try:
            try:
                mode = os.stat(target[-1], dir_fd=source, follow_symlinks=False).st_mode
            except FileNotFoundError:
                mode = 0
            if not stat.S_ISREG(mode):
                raise ArchiveError(f"the hard link leads to {shown}, which is no file that came before it")
            parent = self._open_parent(parts)
            with _twice():
                os.link(target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    # --- after the last member ---

    def check_links(self, top: int) -> None:
        """Refuse a link out of the tree whose root will be `top` components below the staging directory.

        Directories on the way to a link are real, so `..` can be counted off its own path; behind a name that
        is a link itself it cannot, and is refused.
        """
        for parts, target in self._links.items():
            current = list(parts[top:-1])
            through_link = False
            for part in target.split("/"):
                if part in {"", "."}:
                    continue
                if part != "..":
                    current.append(part)
                    through_link = through_link or (*parts[:top], *current) in self._links
                elif through_link or not current:
                    shown = printable("/".join(parts))
                    raise ArchiveError(f"the link {shown} leads out of the archive, to {printable(target)}")
                else:
                    current.pop()

    def settle(self) -> None:
        """Give every directory its time, now that nothing is written to it any more."""
        for _, directories, _, handle in os.fwalk(".", topdown=False, dir_fd=self._root):
            self._check()
            for name in directories:
                os.utime(name, self._times, dir_fd=handle, follow_symlinks=False)

    def _open_parent(self, parts: Parts, *, create: bool = True) -> int:
        """The directory that holds `parts`, made if need be; it stays open until the next call."""
        above = parts[:-1]
        if self._parent is not None:
            if self._parent[0] == above:
                return self._parent[1]
            self.close()
        handle = os.dup(self._root)
        try:
            for depth, part in enumerate(above):
                handle = _descend(handle, part, above[: depth + 1], create)
        except BaseException:
            os.close(handle)
            raise
        self._parent = (above, handle)
        return handle


def _descend(handle: int, part: str, so_far: Parts, create: bool) -> int:
    """Swap the open directory `handle` for the one called `part` in it."""
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=handle)
    try:
        inner = os.open(part, DIRECTORY, dir_fd=handle)
    except FileNotFoundError:
        raise ArchiveError(f"there is no {printable('/'.join(so_far))} in the archive before it") from None
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            shown = printable("/".join(so_far))
            raise ArchiveError(f"{shown} is a file or a link, so nothing can be below it") from None
        raise
    os.close(handle)
    return inner


@contextlib.contextmanager
def _twice() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise ArchiveError("there are two members of that name") from None


def merge(staging: int, dest: int, mtime: int) -> None:
    """Move everything in one open directory to another. Directories merge; no other name may be in both.

    Raises BuildFailure (`phase_failed`) naming the path that is, before anything was moved.
    """
    _find_collision(staging, dest, "")
    _move(staging, dest, (mtime, mtime))


def _both(staging: int, dest: int) -> Iterator[tuple[str, bool, bool]]:
    """(name, is there, both are directories) of what is in `staging`."""
    with os.scandir(staging) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in sorted(found):
        try:
            mode = os.stat(name, dir_fd=dest, follow_symlinks=False).st_mode
        except FileNotFoundError:
            yield name, False, False
        else:
            yield name, True, is_directory and stat.S_ISDIR(mode)


@contextlib.contextmanager
def _opened_in(staging: int, dest: int, name: str) -> Iterator[tuple[int, int]]:
    inner = open_directory(name, dir_fd=staging)
    try:
        outer = open_directory(name, dir_fd=dest)
        try:
            yield inner, outer
        finally:
            os.close(outer)
    finally:
        os.close(inner)


def _find_collision(staging: int, dest: int, prefix: str) -> None:
    for name, exists, directories in _both(staging, dest):
        if directories:
            with _opened_in(staging, dest, name) as (inner, outer):
                _find_collision(inner, outer, f"{prefix}{name}/")
        elif exists:
            raise BuildFailure(
                "phase_failed",
                f"{printable(prefix + name)} is in the source and in the package's directory already",
                hint="remove one of them, or put the source into a directory of its own with `into`",
            )


def _move(staging: int, dest: int, times: tuple[int, int]) -> None:
    for name, _, directories in _both(staging, dest):
        if directories:
            with _opened_in(staging, dest, name) as (inner, outer):
                _move(inner, outer, times)
            os.rmdir(name, dir_fd=staging)
        else:
            os.rename(name, name, src_dir_fd=staging, dst_dir_fd=dest)
    os.utime(dest, times)
