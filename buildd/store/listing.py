"""What a build put into its staging directory, as data, and the id that follows from it.

The tree is untrusted: links are read and never followed, and only files, directories and links may be in it.
Invariant: the output id depends on the paths, the normalised modes, the contents and the link targets, and on
nothing else: not on times, owners, inode numbers or the order in which anything was made.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from buildd.errors import BuildFailure
from buildd.store.tree import CHUNK, chmod_at, open_directory, uncancelled

MAX_DEPTH = 200
"""Directories below one another; each one is an open descriptor while it is read."""

MAX_PATH = 4000
"""Bytes of a path: with a directory in front of it, it must stay below the 4096 of the kernel."""

_SMALL = 1 << 16  # files up to this size are read by a single call
_VERSION = b"buildd output 1\0"
_TOLD = 20
"""Differences that are named one by one."""

EntryKind = Literal["file", "dir", "link"]


class OutputEntry(Struct, frozen=True, kw_only=True):
    """One path of an output."""

    path: str
    """Relative to the root, with `/` between components."""
    kind: EntryKind
    mode: int
    """0o755 or 0o644 for a file, by whether its owner may execute it; 0o755 for a directory; 0o777 for a link."""
    size: int = 0
    """Bytes of a file."""
    sha256: str = ""
    """Of a file's content."""
    target: str = ""
    """Of a link."""


class OutputListing(Struct, frozen=True, kw_only=True):
    """All of an output, sorted by path; the root itself is not an entry."""

    entries: tuple[OutputEntry, ...] = ()
    notes: tuple[str, ...] = ()
    """For the build's log: bits that were dropped, links that lead out of the tree."""

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the files."""
        return sum(entry.size for entry in self.entries)


def scan(root: Path, check: Callable[[], None] = uncancelled) -> OutputListing:
    """List the tree at `root`. Blocks for as long as it takes to read every file; `check` may raise to end it.

    Files and directories that their owner cannot read are made readable. Raises BuildFailure (`phase_failed`)
    for what an output cannot hold: devices, sockets and fifos, names that are not UTF-8, too deep or long paths.
    """
    scanner = _Scanner(check)
    handle = open_directory(str(root))
    try:
        scanner.directory(handle, "", 1)
    finally:
        os.close(handle)
    entries = sorted(scanner.entries, key=lambda entry: entry.path)
    return OutputListing(entries=tuple(entries), notes=tuple(sorted(scanner.notes) + _leading_out(entries)))


def output_id(listing: OutputListing) -> str:
    """SHA-256 (64 hexadecimal digits) of the canonical form of a listing; an empty output has an id as well."""
    digest = hashlib.sha256(_VERSION)
    for entry in sorted(listing.entries, key=lambda entry: entry.path):
        fields = (entry.kind, f"{entry.mode:o}", entry.path, entry.sha256, entry.target)
        digest.update("\0".join(fields).encode() + b"\0\n")
    return digest.hexdigest()


class _Scanner:
    """The walk of one `scan`."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self.entries: list[OutputEntry] = []
        self.notes: list[str] = []

    def directory(self, handle: int, prefix: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _refused(f"directories lie more than {MAX_DEPTH} deep: {prefix[:80]}…")
        self.check()
        with os.scandir(handle) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            self._entry(handle, name, prefix + name, depth)

    def _entry(self, parent: int, name: str, path: str, depth: int) -> None:
        try:
            encoded = path.encode()
        except UnicodeEncodeError:
            shown = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise _refused(f"a name is not UTF-8: {shown}") from None
        if len(encoded) > MAX_PATH:
            raise _refused(f"a path is longer than {MAX_PATH} bytes: {path[:80]}…")
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        mode = found.st_mode
        if stat.S_ISREG(mode):
            if mode & (stat.S_ISUID | stat.S_ISGID):
                self.notes.append(f"{path}: the set-user-id and set-group-id bits are dropped")
            size, digest = self._content(parent, name, path, found)
            self.entries.append(OutputEntry(path=path, kind="file", mode=normal_mode(mode), size=size, sha256=digest))
        elif stat.S_ISDIR(mode):
            self.entries.append(OutputEntry(path=path, kind="dir", mode=0o755))
            handle = open_directory(name, dir_fd=parent)
            try:
                self.directory(handle, path + "/", depth + 1)
            finally:
                os.close(handle)
        elif stat.S_ISLNK(mode):
            target = os.readlink(name, dir_fd=parent)
            try:
                target.encode()
            except UnicodeEncodeError:
                raise _refused(f"the target of the link {path} is not UTF-8") from None
            self.entries.append(OutputEntry(path=path, kind="link", mode=0o777, target=target))
        else:
            raise _refused(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'of an unknown kind')}")

    def _content(self, parent: int, name: str, path: str, found: os.stat_result) -> tuple[int, str]:
        """Size and SHA-256 of a file, by one read if it is small."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            handle = os.open(name, flags, dir_fd=parent)
        except PermissionError:
            chmod_at(name, normal_mode(found.st_mode), dir_fd=parent)
            handle = os.open(name, flags, dir_fd=parent)
        try:
            opened = os.fstat(handle)
            if (opened.st_ino, opened.st_dev) != (found.st_ino, found.st_dev):
                raise _refused(f"{path} was replaced while it was read")
            if opened.st_size < _SMALL:
                data = os.read(handle, _SMALL)
                if len(data) == opened.st_size:
                    return len(data), hashlib.sha256(data).hexdigest()
                os.lseek(handle, 0, os.SEEK_SET)
            digest, size = hashlib.sha256(), 0
            buffer = bytearray(CHUNK)
            view = memoryview(buffer)
            while count := os.readv(handle, [buffer]):
                digest.update(view[:count])
                size += count
                self.check()
            return size, digest.hexdigest()
        finally:
            os.close(handle)


_KINDS = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
}


def normal_mode(mode: int) -> int:
    """The mode that a file has in an output."""
    return 0o755 if mode & 0o100 else 0o644


def _leading_out(entries: list[OutputEntry]) -> list[str]:
    """A note for each link whose target is not in the tree. They are kept: many lead into a dependency."""
    notes = []
    paths: set[str] | None = None
    for entry in entries:
        if entry.kind != "link":
            continue
        if entry.target.startswith("/"):
            if paths is None:
                paths = {other.path for other in entries}
            inside = posixpath.normpath(entry.target).lstrip("/") in paths
        else:
            joined = posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), entry.target))
            inside = joined != ".." and not joined.startswith("../")
        if not inside:
            notes.append(f"{entry.path}: the link leads out of the output, to {entry.target}")
    return notes


def _refused(what: str) -> BuildFailure:
    return BuildFailure(
        "phase_failed",
        f"the output cannot be taken: {what}",
        hint="let the stage phase install files, directories and links with ordinary names only",
    )


def differing_files(before: Sequence[OutputEntry], after: Sequence[OutputEntry]) -> str:
    """In words, what of two outputs differs: path and how, the first few of them."""
    was, now = {e.path: e for e in before}, {e.path: e for e in after}
    told = []
    for path in sorted(was.keys() | now.keys()):
        if path not in now:
            told.append(f"{path} (missing this time)")
        elif path not in was:
            told.append(f"{path} (not there before)")
        elif was[path] != now[path]:
            told.append(f"{path} ({_difference(was[path], now[path])})")
    more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    return f"{len(told)} differ: {', '.join(told[:_TOLD])}{more}"


def _difference(was: OutputEntry, now: OutputEntry) -> str:
    if was.kind != now.kind:
        return f"{was.kind} before, {now.kind} now"
    if was.kind == "link":
        return f"led to {was.target}, leads to {now.target}"
    if was.sha256 == now.sha256:
        return f"mode {was.mode:o} before, {now.mode:o} now"
    return f"content: {was.sha256[:12]} with {was.size} bytes before, {now.sha256[:12]} with {now.size} now"
