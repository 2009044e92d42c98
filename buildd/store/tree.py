"""Trees of files that someone else made: opening, copying and removing them without trusting a name in them.

Whatever a build leaves behind may have any mode, any depth and links to anywhere. Everything here therefore
works relative to open directories, and never through a path that the tree could have bent.

Invariant: no function follows a symbolic link, and none touches a file outside the tree it was given.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from buildd.store.flags import unseal

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags that open a real directory, never the target of a link."""

CHUNK = 1 << 20
"""Bytes handled between two calls of `check`."""

_LEVELS = 64  # directories open at once while removing; deeper ones are lifted to the top first


def uncancelled() -> None:
    """The `check` of callers that cannot be cancelled."""


def chmod_at(name: str, mode: int, *, dir_fd: int) -> None:
    """Set the mode of `name`, whatever its mode is now; a symbolic link is an OSError, not its target's change."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{handle}", mode)
    finally:
        os.close(handle)


def open_directory(name: str, *, dir_fd: int | None = None) -> int:
    """Open a directory of a foreign tree for reading and changing, giving its owner the right to if need be."""
    try:
        handle = os.open(name, DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        where = os.open(".", DIRECTORY) if dir_fd is None else os.dup(dir_fd)
        try:
            chmod_at(name, 0o700, dir_fd=where)
        finally:
            os.close(where)
        handle = os.open(name, DIRECTORY, dir_fd=dir_fd)
    try:
        mode = os.fstat(handle).st_mode
        if mode & 0o700 != 0o700:
            try:
                os.fchmod(handle, 0o700)
            except PermissionError:
                if not unseal(handle):
                    raise
                os.fchmod(handle, 0o700)
    except OSError:
        os.close(handle)
        raise
    return handle


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of `data`; a short write is not the end."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def copy_bytes(source: int, target: int, check: Callable[[], None] = uncancelled) -> int:
    """Copy from one open file to another up to the end, sharing blocks where the file system can; the bytes."""
    total = 0
    in_kernel = True
    while True:
        check()
        if in_kernel:
            try:
                count = os.copy_file_range(source, target, 16 * CHUNK)
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}:
                    raise
                in_kernel = False
                continue
        else:
            data = os.read(source, CHUNK)
            write_all(target, data)
            count = len(data)
        if count == 0:
            return total
        total += count


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """Write a new file of the daemon's own and have it on disk; its name is durable after `sync_directory`."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(path: Path) -> int:
    """Remove a file or a tree of any modes and any depth; the number of entries removed, 0 if there was none.

    Entries that vanish meanwhile are no error. What cannot be removed is left while the rest goes on; then
    OSError is raised with the cause and the path of the first such entry. Other file systems mounted in the
    tree are never entered.
    """
    return _Removal(path).run()


class _Level:
    """One open directory on the way down."""

    __slots__ = ("fd", "name", "passes", "pending")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.pending: list[str] = []
        self.passes = 0


class _Removal:
    """The state of one `remove_tree`: a stack of open directories, and what would not go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.removed = 0
        self.failure: OSError | None = None
        self.failures = 0
        self.stack: list[_Level] = []
        self.device = 0

    def run(self) -> int:
        try:
            found = os.lstat(self.path)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(self.path)
                return 1
            self.device = found.st_dev
            self._enter(str(self.path), None)
        except FileNotFoundError:
            return 0
        try:
            while self.stack:
                self._step()
        finally:
            for level in self.stack:
                os.close(level.fd)
        if self.failure is not None:
            raise self.failure
        return self.removed

    def _step(self) -> None:
        level = self.stack[-1]
        if not level.pending:
            self._leave(level)
            return
        name = level.pending.pop()
        try:
            if len(self.stack) < _LEVELS:
                self._enter(name, level.fd)
            else:
                self._lift(level, name)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._failed(error, name)

    def _enter(self, name: str, dir_fd: int | None) -> None:
        fd = open_directory(name, dir_fd=dir_fd)
        if os.fstat(fd).st_dev != self.device:
            os.close(fd)
            raise OSError(errno.EBUSY, "another file system is mounted there")
        self.stack.append(_Level(fd, name))
        self._unlink_files(self.stack[-1])

    def _unlink_files(self, level: _Level) -> None:
        level.passes += 1
        with os.scandir(level.fd) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in found:
            if is_directory:
                level.pending.append(name)
                continue
            try:
                _unlink(name, level.fd)
                self.removed += 1
            except FileNotFoundError:
                pass
            except OSError as error:
                self._failed(error, name)

    def _lift(self, level: _Level, name: str) -> None:
        """Move a directory that lies too deep up to the top, where it waits for its turn."""
        handle = open_directory(name, dir_fd=level.fd)  # moving a directory takes the right to write in it
        os.close(handle)
        lifted = f".removing-{secrets.token_hex(8)}"
        os.rename(name, lifted, src_dir_fd=level.fd, dst_dir_fd=self.stack[0].fd)
        self.stack[0].pending.append(lifted)

    def _leave(self, level: _Level) -> None:
        parent = self.stack[-2].fd if len(self.stack) > 1 else None
        try:
            _rmdir(level, parent)
            self.removed += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.ENOTEMPTY and self.failure is None and level.passes < 3:
                self._unlink_files(level)  # someone added to it after it was read
                return
            if error.errno != errno.ENOTEMPTY or self.failure is None:
                self._failed(error, "")
        self.stack.pop()
        os.close(level.fd)

    def _failed(self, error: OSError, name: str) -> None:
        self.failures += 1
        if self.failure is None:
            where = os.path.join(*(level.name for level in self.stack), name).rstrip("/")
            self.failure = OSError(error.errno, f"cannot remove: {error.strerror}", where)


def _unlink(name: str, directory: int) -> None:
    """Remove a name, also where flags of the file or its directory forbid that, if the flags can be taken off."""
    try:
        os.unlink(name, dir_fd=directory)
    except PermissionError:
        if not (_unseal_file(name, directory) | unseal(directory)):
            raise
        os.unlink(name, dir_fd=directory)


def _unseal_file(name: str, directory: int) -> bool:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False  # no regular file: it has no flags
    try:
        return unseal(handle)
    finally:
        os.close(handle)


def _rmdir(level: _Level, parent: int | None) -> None:
    try:
        os.rmdir(level.name, dir_fd=parent)
    except PermissionError:
        if not (unseal(level.fd) | (parent is not None and unseal(parent))):
            raise
        os.rmdir(level.name, dir_fd=parent)
