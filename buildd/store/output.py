"""The output of a build: how it comes into the store, and how the builds that depend on it see it.

Invariant: what lies at a published path is complete and durable and is never changed afterwards. It appears
there by one rename after everything below it has been written to the disk, its files are read-only, and no
file of it shares its inode with anything that a build could still reach.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from buildd.errors import BuildFailure
from buildd.store import remains
from buildd.store.tree import (
    DIRECTORY,
    chmod_at,
    copy_bytes,
    open_directory,
    remove_tree,
    sync_directory,
    uncancelled,
)

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP}  # a hard link will not do: copy


def publish(root: Path, dest: Path, *, mtime: int, check: Callable[[], None] = uncancelled) -> bool:
    """Move the tree at `root`, which `scan` has accepted, to `dest`; its parent directory must exist.

    All times become `mtime` (seconds since the epoch), files become 0o444 or 0o555 and directories 0o755.
    Returns False, and leaves `root` alone, if there is something at `dest` already. Whatever it raises
    (OSError, or what `check` raises), nothing is left at or beside `dest`.
    """
    if os.path.lexists(dest):
        return False
    temporary = dest.parent / f".{dest.name}.{secrets.token_hex(8)}.tmp"
    try:
        _settle(root, mtime, check)
        try:
            placed = _rename(root, dest)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_tree(root, temporary, check)
            _settle(temporary, mtime, check)
            placed = _rename(temporary, dest)
    finally:
        remains.discard(temporary)
    if placed:
        sync_directory(dest.parent)
        remove_tree(root)
    return placed


def _rename(source: Path, dest: Path) -> bool:
    try:
        os.rename(source, dest)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            return False  # another build of the same output was faster
        raise
    return True


# --- making a tree durable and read-only -------------------------------------------------------------------


def _settle(root: Path, mtime: int, check: Callable[[], None]) -> None:
    """Normalise and fsync everything below `root`, and `root` itself last."""
    shared: dict[tuple[int, int], int] = {}
    handle = open_directory(str(root))
    try:
        _count_links(handle, shared)
        foreign = {inode for inode, missing in shared.items() if missing > 0}
        _settle_directory(handle, (mtime, mtime), foreign, check)
    finally:
        os.close(handle)


def _count_links(handle: int, shared: dict[tuple[int, int], int]) -> None:
    """For each file with several names, how many of them are not in the tree."""
    with os.scandir(handle) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                child = open_directory(entry.name, dir_fd=handle)
                try:
                    _count_links(child, shared)
                finally:
                    os.close(child)
            else:
                found = entry.stat(follow_symlinks=False)
                if found.st_nlink > 1:
                    inode = (found.st_dev, found.st_ino)
                    shared[inode] = shared.get(inode, found.st_nlink) - 1


def _settle_directory(
    handle: int, times: tuple[int, int], foreign: set[tuple[int, int]], check: Callable[[], None]
) -> None:
    check()
    with os.scandir(handle) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, status in found:
        if stat.S_ISDIR(status.st_mode):
            child = open_directory(name, dir_fd=handle)
            try:
                _settle_directory(child, times, foreign, check)
            finally:
                os.close(child)
        elif stat.S_ISREG(status.st_mode):
            check()
            if (status.st_dev, status.st_ino) in foreign:
                _make_own(handle, name, status.st_mode, check)
            _settle_file(handle, name, status.st_mode, times)
        else:
            os.utime(name, times, dir_fd=handle, follow_symlinks=False)
    os.fchmod(handle, 0o755)
    os.utime(handle, times)
    if found:  # an empty directory is durable together with its name, and many outputs are just that
        os.fsync(handle)


def _settle_file(parent: int, name: str, mode: int, times: tuple[int, int]) -> None:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except PermissionError:
        chmod_at(name, 0o600, dir_fd=parent)
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with contextlib.suppress(OSError):  # nearly always ENODATA: a capability is a set-user-id bit in disguise
            os.removexattr(handle, "security.capability")
        os.fchmod(handle, 0o555 if mode & 0o100 else 0o444)
        os.utime(handle, times)
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_own(parent: int, name: str, mode: int, check: Callable[[], None]) -> None:
    """Replace a file that has a name outside the tree by a copy of its own."""
    own = f".own-{secrets.token_hex(8)}"
    _copy_file(parent, name, parent, own, mode, check)
    os.rename(own, name, src_dir_fd=parent, dst_dir_fd=parent)


def _copy_file(source_dir: int, name: str, target_dir: int, new: str, mode: int, check: Callable[[], None]) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_dir)
    try:
        target = os.open(new, _NEW_FILE, 0o600, dir_fd=target_dir)
        try:
            copy_bytes(source, target, check)
            os.fchmod(target, mode & 0o777)
            status = os.fstat(source)
            os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
        except BaseException:
            os.unlink(new, dir_fd=target_dir)
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_tree(root: Path, dest: Path, check: Callable[[], None]) -> None:
    os.mkdir(dest, 0o700)
    source = open_directory(str(root))
    try:
        target = os.open(dest, DIRECTORY)
        try:
            _copy_directory(source, target, check)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_directory(source: int, target: int, check: Callable[[], None]) -> None:
    check()
    with os.scandir(source) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    for name, mode in found:
        if stat.S_ISDIR(mode):
            os.mkdir(name, 0o700, dir_fd=target)
            inner = open_directory(name, dir_fd=source)
            try:
                outer = os.open(name, DIRECTORY, dir_fd=target)
                try:
                    _copy_directory(inner, outer, check)
                finally:
                    os.close(outer)
            finally:
                os.close(inner)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            _copy_file(source, name, target, name, mode, check)


# --- the prefix that a build sees ---------------------------------------------------------------------------


def compose_prefix(
    outputs: Sequence[tuple[str, Path]],
    dest: Path,
    *,
    mtime: int = 0,
    check: Callable[[], None] = uncancelled,
) -> None:
    """Make `dest` the union of published outputs, given as (package name, path), by hard links.

    Directories merge; any other path may come from one package only, else BuildFailure (`phase_failed`) names
    the path and both packages. Directories and links get the time `mtime`; files keep theirs. `dest` must not
    exist; on an error the caller removes it together with the scope it lies in.
    """
    os.mkdir(dest, 0o755)
    for index, (package, root) in enumerate(outputs):
        source = os.open(root, DIRECTORY)
        try:
            target = os.open(dest, DIRECTORY)
            try:
                _Merge(outputs[:index], package, mtime, check).directory(source, target, "")
            finally:
                os.close(target)
        finally:
            os.close(source)
    os.utime(dest, (mtime, mtime))


class _Merge:
    """One output on its way into a prefix that holds the `earlier` ones."""

    def __init__(
        self, earlier: Sequence[tuple[str, Path]], package: str, mtime: int, check: Callable[[], None]
    ) -> None:
        self.earlier = earlier
        self.package = package
        self.times = (mtime, mtime)
        self.check = check

    def directory(self, source: int, target: int, prefix: str) -> None:
        self.check()
        with os.scandir(source) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        self._subdirectory(source, target, entry.name, prefix)
                    elif entry.is_symlink():
                        os.symlink(os.readlink(entry.name, dir_fd=source), entry.name, dir_fd=target)
                        os.utime(entry.name, self.times, dir_fd=target, follow_symlinks=False)
                    else:
                        self._file(source, target, entry.name)
                except (FileExistsError, NotADirectoryError):
                    raise self._conflict(prefix + entry.name) from None

    def _subdirectory(self, source: int, target: int, name: str, prefix: str) -> None:
        with contextlib.suppress(FileExistsError):  # an earlier package has it too; if as a file, opening fails
            os.mkdir(name, 0o755, dir_fd=target)
        inner = os.open(name, DIRECTORY, dir_fd=source)
        try:
            outer = os.open(name, DIRECTORY, dir_fd=target)
            try:
                self.directory(inner, outer, f"{prefix}{name}/")
                os.utime(outer, self.times)
            finally:
                os.close(outer)
        finally:
            os.close(inner)

    def _file(self, source: int, target: int, name: str) -> None:
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
            _copy_file(source, name, target, name, mode, self.check)

    def _conflict(self, path: str) -> BuildFailure:
        other = next(name for name, root in self.earlier if os.path.lexists(root / path))
        return BuildFailure(
            "phase_failed",
            f"the packages {other} and {self.package} both install {path}",
            hint="let one of them install it elsewhere, or drop the dependency on one of them",
        )
