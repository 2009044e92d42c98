"""The directory of clones on disk: what is in it, what is left over, how things appear and disappear.

Layout: `<name>-<12 hex>.git` are complete clones; `.incoming/` holds what is being cloned or removed. A clone
appears by one rename of a synced tree and disappears by one rename, so whatever is in `.incoming/` at start is
rubbish and whatever has a clone's name is whole. Other files in the directory are not ours and are left alone.

All functions block and are called in worker threads, except `incoming` and `set_aside`, which are one rename
or mkdir.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from buildd.repos.worker import ORIGIN_FILE
from buildd.store.tree import sync_directory

_CLONE_NAME = re.compile(r".+-[0-9a-f]{12}\.git")
_LEFTOVER = re.compile(
    r"tmp_.*|.*\.lock|\.tmp-.*"
    r"|packed-refs\.new"  # git refuses to write another one
    r"|pack-.*\.keep"
    r"|.*_git2_[A-Za-z0-9]{6}"  # of libgit2
    r"|buildd-stat\.tmp"
)
"""Names of what git, libgit2 and `buildd.repos.snapshot` write and rename when it is complete."""


class CacheDir:
    """The clones below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / ".incoming"

    def prepare(self) -> int:
        """Create what is missing and remove what a crash left in `.incoming/`; how many trees that were."""
        self._incoming.mkdir(mode=0o750, parents=True, exist_ok=True)
        leftovers = list(self._incoming.iterdir())
        for path in leftovers:
            remove(path)
        return len(leftovers)

    def clones(self) -> Iterator[tuple[Path, str]]:
        """The clones on disk with the normalised URL each was made from ('' when it does not say)."""
        for path in sorted(self.root.iterdir()):
            if _CLONE_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path, _origin(path)

    def incoming(self) -> Path:
        """A new, empty directory for a clone to be made in."""
        path = self._incoming / uuid.uuid4().hex
        path.mkdir(mode=0o750)
        return path

    def set_aside(self, path: Path) -> Path:
        """Make a clone disappear at once; the caller removes the returned path."""
        target = self._incoming / uuid.uuid4().hex
        path.rename(target)
        return target

    def put_in_place(self, incoming: Path, directory: str) -> None:
        """Rename a synced tree to its final name, durably."""
        final = self.root / directory
        if final.exists():  # without a record, or its removal was cut off
            remove(self.set_aside(final))
        incoming.rename(final)
        sync_directory(self.root)


def remove(path: Path) -> None:
    """Remove a tree (or file) if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=False, onerror=_ignore_missing)
    else:
        path.unlink(missing_ok=True)


def sweep(repository: Path) -> int:
    """Remove what a killed fetch left in a clone: half packs, and locks that would stop every later fetch.

    Only while nothing writes to the clone, which its one owner knows; the same for the store of a snapshot. Returns
    how many files went.
    """
    count = 0
    folders = [repository, repository / "objects", repository / "objects/pack"]
    folders += [Path(folder) for folder, _, _ in os.walk(repository / "refs")]
    for folder in folders:
        if not folder.is_dir():
            continue
        for entry in list(os.scandir(folder)):
            if not _LEFTOVER.fullmatch(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                remove(Path(entry.path))
                count += 1
            elif entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)
                count += 1
    return count


def tree_bytes(path: Path) -> int:
    """Bytes of all files below `path`; what vanishes meanwhile counts as nothing."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _origin(path: Path) -> str:
    try:
        with open(path / ORIGIN_FILE, encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _ignore_missing(_function: object, _path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
