"""Whether an artifact still is what its id says.

`problems` reads every byte. `snapshot` is what is seen without reading: sizes, times and inode numbers; published
files are never changed in place and all carry one old time, so whatever writes to one shows there.

Invariant: nothing here changes a byte of an artifact, follows a link of it, or takes a short supply of the daemon
(memory, descriptors) for damage.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from buildd.errors import BuildFailure, Refused
from buildd.store.listing import OutputEntry, OutputListing, output_id, scan

MAX_PROBLEMS = 20
"""Problems that are told one by one; of further ones the number."""

_TURNS = 64
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
_NAMES = {"file": "a file", "dir": "a directory", "link": "a link"}


class Soundness:
    """What is known about artifacts in this life of the daemon. For all threads."""

    def __init__(self) -> None:
        self._seen: dict[str, bytes] = {}
        """The snapshot of each artifact from when its content was last known to be right."""
        self._turns = tuple(threading.Lock() for _ in range(_TURNS))
        """One thread at a time reads an artifact; ids that begin alike share a turn."""

    def note(self, output: str, seen: bytes) -> None:
        """The content is right, and the tree looks like this."""
        self._seen[output] = seen

    def forget(self, output: str) -> None:
        self._seen.pop(output, None)

    def unchanged(self, output: str, tree: Path) -> bool:
        """Whether the content is known to be right and nothing has changed since. Raises as `unreadable` does."""
        known = self._seen.get(output)
        try:
            return known is not None and snapshot(tree) == known
        except OSError as error:
            unreadable(error, tree)
            return False

    def verify(
        self, output: str, tree: Path, listing: Callable[[], OutputListing], check: Callable[[], None]
    ) -> list[str]:
        """`problems` of an artifact, and remember it when there is none."""
        with self._turn(output):
            return self._verify(output, tree, listing, check)

    def is_sound(
        self, output: str, tree: Path, listing: Callable[[], OutputListing], check: Callable[[], None]
    ) -> bool:
        """Whether there is no problem; read in full unless it was and nothing has changed since."""
        with self._turn(output):
            return self.unchanged(output, tree) or not self._verify(output, tree, listing, check)

    def _turn(self, output: str) -> threading.Lock:
        return self._turns[int(output[:2], 16) % _TURNS]

    def _verify(
        self, output: str, tree: Path, listing: Callable[[], OutputListing], check: Callable[[], None]
    ) -> list[str]:
        self.forget(output)
        try:
            wanted = listing()
            before = snapshot(tree)
        except Refused as error:
            return [error.message]
        except OSError as error:
            return [unreadable(error, tree)]
        found = problems(output, tree, wanted, check)
        if not found:
            self.note(output, before)
        return found


def problems(output: str, tree: Path, listing: OutputListing, check: Callable[[], None]) -> list[str]:
    """What is wrong with the tree of an artifact, in words; nothing when it is sound.

    Blocks for as long as it takes to read all files; `check` may raise to end it. Raises OSError for trouble that
    says nothing about the artifact.
    """
    if output_id(listing) != output:
        return ["the listing in the manifest is not that of this output"]
    try:
        found = scan(tree, check)
    except BuildFailure as failure:
        return [failure.message]
    except OSError as error:
        return [unreadable(error, tree)]
    told = _differences(listing, found)
    if len(told) > MAX_PROBLEMS:
        told[MAX_PROBLEMS:] = [f"and {len(told) - MAX_PROBLEMS} more"]
    return told


def unreadable(error: OSError, where: Path) -> str:
    """The problem that an error is. Raises it again when it is the daemon's trouble and not the artifact's."""
    if error.errno in _OURS:
        raise error
    return f"cannot read {error.filename or where}: {error.strerror or error}"


def _differences(wanted: OutputListing, found: OutputListing) -> list[str]:
    there = {entry.path: entry for entry in found.entries}
    told = []
    for entry in wanted.entries:
        other = there.pop(entry.path, None)
        if other != entry:
            told.append(f"{entry.path}: {_difference(entry, other)}")
    return told + [f"{path}: it is not in the manifest" for path in there]


def _difference(wanted: OutputEntry, found: OutputEntry | None) -> str:
    if found is None:
        return "it is missing"
    if found.kind != wanted.kind:
        return f"it is {_NAMES[found.kind]}, not {_NAMES[wanted.kind]}"
    if found.target != wanted.target:
        return f"it leads to {found.target}, not to {wanted.target}"
    if found.size != wanted.size:
        return f"it has {found.size} bytes, not {wanted.size}"
    if found.sha256 != wanted.sha256:
        return f"its SHA-256 is {found.sha256}, not {wanted.sha256}"
    return f"its mode is {found.mode:o}, not {wanted.mode:o}"


def snapshot(tree: Path) -> bytes:
    """A digest of what the names below `tree` look like from outside. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    _walk(str(tree), digest.update)
    return digest.digest()


def _walk(directory: str, update: Callable[[bytes], object]) -> None:
    with os.scandir(directory) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            update(os.fsencode(entry.name) + b"\0/")
            _walk(entry.path, update)
        else:
            status = entry.stat(follow_symlinks=False)
            seen = f"\0{status.st_mode} {status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_dev}\n"
            update(os.fsencode(entry.name) + seen.encode())
    update(b"\0..\n")
