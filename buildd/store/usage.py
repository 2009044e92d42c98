"""What artifacts and releases take of the disk, as entries to choose from.

A release holds hard links of the packed forms of artifacts, so that bytes are free only when both are gone: they are
counted with the artifact, and the entry says which releases must go with it. Packed forms whose artifact is gone
are counted with the newest release that has them.

Invariant: each file is counted once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from buildd.monitor.space import Space, space_of
from buildd.store.artifacts import ArtifactStore
from buildd.store.collect import Entry
from buildd.store.manifest import NAME as MANIFEST
from buildd.store.pins import NAME as PIN
from buildd.store.tree import remove_tree, uncancelled

BLOCK = 512
"""Bytes of the blocks that `stat` counts in, on every file system."""


class _Usage(NamedTuple):
    bytes: int
    inodes: int


class _Seen(NamedTuple):
    """An artifact as it was at the last survey; still so while `times` are the same."""

    times: tuple[int, int, float]
    usage: _Usage
    pinned: bool
    packed: tuple[int, ...]
    """Inodes of the packed forms."""


class Surveyor:
    """Remembers what cannot have changed: of an artifact that is as before, three stats are all that is read."""

    def __init__(self, artifacts: ArtifactStore, releases: Path) -> None:
        """`releases` holds one directory per run, on the file system of the artifacts."""
        self._artifacts = artifacts
        self._releases = releases
        self._seen: dict[str, _Seen] = {}

    def space(self) -> Space:
        return space_of(self._artifacts.root)

    def survey(self, check: Callable[[], None] = uncancelled) -> list[Entry]:
        """Everything that may go; what vanishes meanwhile, or cannot be read, is left out.

        Blocks; `check` is called for each artifact, and may raise to end it.
        """
        owners: dict[int, str] = {}
        artifacts: list[Entry] = []
        seen: dict[str, _Seen] = {}
        for output in self._artifacts.outputs():
            check()
            directory = self._artifacts.directory(output)
            try:
                found = self._look(directory)
                last_used = _last_used(directory)
            except OSError:
                continue
            seen[output] = found
            owners.update(dict.fromkeys(found.packed, output))
            artifacts.append(
                Entry(
                    id=output,
                    bytes=found.usage.bytes,
                    inodes=found.usage.inodes,
                    last_used=last_used,
                    pinned=found.pinned,
                )
            )
        self._seen = seen
        holders: dict[str, list[str]] = {}
        releases = list(self._survey_releases(owners, holders))
        artifacts = [
            msgspec.structs.replace(entry, releases=tuple(holders[entry.id])) if entry.id in holders else entry
            for entry in artifacts
        ]
        return [*artifacts, *releases, *self._survey_damaged()]

    def _look(self, directory: Path) -> _Seen:
        own = directory.stat()
        times = (own.st_ino, own.st_mtime_ns, _time(directory / "builds"))
        known = self._seen.get(directory.name)
        if known is not None and known.times == times:
            return known
        with os.scandir(directory) as entries:
            files = {entry.name: entry.inode() for entry in entries if entry.is_file(follow_symlinks=False)}
        pinned = files.pop(PIN, None) is not None
        files.pop(MANIFEST, None)
        return _Seen(times, _measure(directory), pinned, tuple(files.values()))

    def _survey_releases(self, owners: dict[int, str], holders: dict[str, list[str]]) -> Iterator[Entry]:
        """Entries of the releases; `holders` gets those of each artifact that shares files with them."""
        orphans: set[int] = set()
        for directory in sorted(_visible(self._releases), key=_time, reverse=True):
            try:
                own = directory.stat()
                with os.scandir(directory) as entries:
                    files = [entry.stat(follow_symlinks=False) for entry in entries]
            except OSError:
                continue
            fresh = {f.st_ino: f.st_blocks * BLOCK for f in files if f.st_ino not in owners and f.st_ino not in orphans}
            orphans.update(fresh)
            for output in {owners[f.st_ino] for f in files if f.st_ino in owners}:
                holders.setdefault(output, []).append(directory.name)
            yield Entry(
                id=directory.name,
                kind="release",
                bytes=own.st_blocks * BLOCK + sum(fresh.values()),
                inodes=1 + len(fresh),
                last_used=own.st_mtime,
            )

    def _survey_damaged(self) -> Iterator[Entry]:
        for path in self._artifacts.damaged.kept():
            try:
                usage = _measure(path)
            except OSError:  # a newer one has just taken its place
                continue
            yield Entry(id=path.name, kind="damaged", bytes=usage.bytes, inodes=usage.inodes, last_used=_time(path))

    # --- going --------------------------------------------------------------------------------------------

    def remove(self, entry: Entry) -> bool:
        """Remove what an entry stands for, an artifact only if it was withdrawn; False when it is gone or stays.

        Raises OSError.
        """
        if entry.kind == "artifact":
            return self._artifacts.remove_withdrawn(entry.id)
        if entry.kind == "release":
            return self._remove_release(entry.id)
        return remove_tree(self._artifacts.damaged.directory / entry.id) > 0

    def _remove_release(self, number: str) -> bool:
        hidden = self._releases / f".{number}.gone.tmp"
        try:
            (self._releases / number).rename(hidden)
        except FileNotFoundError:
            return False
        remove_tree(hidden)
        return True

    def remove_temporaries(self) -> None:
        """Remove what an interrupted collection or run left of releases."""
        for path in self._releases.glob(".*.tmp"):
            remove_tree(path)


def _visible(parent: Path) -> list[Path]:
    """What is in a directory that may not exist, without hidden names."""
    try:
        return [parent / name for name in os.listdir(parent) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _measure(directory: Path) -> _Usage:
    """Blocks and inodes of a directory and everything below it; a file with several names there counts once."""
    size, inodes = directory.stat(follow_symlinks=False).st_blocks * BLOCK, 1
    several: set[int] = set()
    stack = [str(directory)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    stack.append(entry.path)
                elif status.st_nlink > 1:
                    if status.st_ino in several:
                        continue
                    several.add(status.st_ino)
                size += status.st_blocks * BLOCK
                inodes += 1
    return _Usage(size, inodes)


def _last_used(directory: Path) -> float:
    """The time of the manifest; what has none is no artifact, and as old as it looks."""
    return _time(directory / MANIFEST) or _time(directory)


def _time(path: Path) -> float:
    """Time of the last change; 0 for what is not there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
