"""Plain directories and dirty work trees as git trees, so that a tree id is their content hash too.

The content goes as loose objects into a private bare repository, with a stat cache beside it: a file whose
size, times and inode are as before is not read again. `.gitignore` files below the directory count (those of
the daemon's user do not); what a work tree tracks is taken in spite of them. `.git` is left out at every
level, the files of nested repositories are taken: a workspace of many checkouts is one source. Sockets, pipes
and devices are left out, and so are empty directories, which git cannot keep.

Invariant: the objects of a returned tree are on disk. One syncfs(2) sees to that; a marker tells a start
after a power loss that objects may be half written, and the store, a cache, is then made anew.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pygit2
from pygit2.enums import ConfigLevel, ObjectType

from buildd.errors import InvalidInput, Refused
from buildd.repos import limits, local
from buildd.repos.ignore import IgnoreFile

for _level in (ConfigLevel.SYSTEM, ConfigLevel.XDG, ConfigLevel.GLOBAL):
    pygit2.settings.search_path[_level] = ""  # results must not depend on the daemon user's git configuration

_ATTEMPTS = 3
_IN_MEMORY = 32 * 1024 * 1024
_SETTLE_NS = 50_000_000
"""A file changed less than this before the snapshot may change again within the same tick of its clock."""
_MAX_IGNORE_FILE = 1024 * 1024
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


_Rules = tuple[tuple[int, IgnoreFile], ...]
"""From the top down: how long the path of its directory is (with the slash), and the file."""


class _Cached(msgspec.Struct, frozen=True, array_like=True):
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    blob: bytes


class _StatCache(msgspec.Struct, frozen=True):
    version: int
    directory: bytes
    files: dict[bytes, _Cached]


class _Changed(Exception):
    """Something was not the same after reading as before."""


def snapshot(directory: Path, store_dir: Path, check: Callable[[], None] = lambda: None) -> str:
    """Put the content of `directory` into the git repository `store_dir` (made when missing); its tree id.

    Blocks; `check` is called for each entry, and may raise to end it. One snapshot at a time per store. Raises Refused
    when the directory does not hold still, NotFound, InvalidInput, OSError (unreadable file).
    """
    local.check_directory(directory)
    if store_dir.resolve().is_relative_to(directory.resolve()):
        raise InvalidInput(f"the store {store_dir} lies inside {directory}, which it is to hold")
    store = _Store(store_dir)
    known = store.load(directory)
    changed = ""
    for attempt in range(_ATTEMPTS):
        scan = _Scan(directory, store, known, check)
        try:
            tree = scan.tree()
        except (_Changed, FileNotFoundError, NotADirectoryError) as error:
            changed = str(error)
            known = {**known, **scan.seen}
            time.sleep(0.05 * (attempt + 1))
            continue
        store.save(directory, scan.seen, known)
        return str(tree)
    raise Refused(
        f"{directory} changes while it is read ({changed})",
        hint="Stop what writes there, or have it ignored by a .gitignore.",
    )


class _Store:
    """The private repository with its marker and stat cache."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marker = path / "buildd-writing"
        self._boot = Path(_BOOT_ID).read_text().strip()
        if self._marker.exists() and self._marker.read_text().strip() != self._boot:
            shutil.rmtree(path)
        if not (path / "HEAD").exists():
            pygit2.init_repository(os.fspath(path), bare=True)
        self.repository = pygit2.Repository(os.fspath(path))
        self._odb = self.repository.odb
        self._writing = self._marker.exists()

    def write(self, kind: ObjectType, data: bytes) -> bytes:
        """Add an object unless it is there; its raw id."""
        self._begin()
        return bytes(self._odb.write(kind, data).raw)

    def write_file(self, fd: int) -> bytes:
        """Add the content of a large file without holding it in memory; its raw id."""
        self._begin()
        with open(fd, "rb", closefd=False) as file:
            return bytes(self.repository.create_blob_fromiobase(file).raw)

    def load(self, directory: Path) -> dict[bytes, _Cached]:
        try:
            cache = msgspec.msgpack.decode((self._path / "buildd-stat").read_bytes(), type=_StatCache)
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
            return {}
        return cache.files if cache.version == 1 and cache.directory == os.fsencode(directory) else {}

    def save(self, directory: Path, files: dict[bytes, _Cached], before: dict[bytes, _Cached]) -> None:
        """Make the objects durable, then the cache that relies on them."""
        if self._writing:
            _syncfs(self._path)
            self._marker.unlink(missing_ok=True)
        if files != before:
            data = msgspec.msgpack.encode(_StatCache(version=1, directory=os.fsencode(directory), files=files))
            temporary = self._path / "buildd-stat.tmp"
            temporary.write_bytes(data)
            temporary.replace(self._path / "buildd-stat")

    def _begin(self) -> None:
        if not self._writing:
            with open(self._marker, "w", encoding="utf-8") as file:
                file.write(self._boot)
                file.flush()
                os.fsync(file.fileno())
            self._writing = True


class _Scan:
    """One reading of the directory. `seen` is the stat cache that results."""

    def __init__(self, directory: Path, store: _Store, known: dict[bytes, _Cached], check: Callable[[], None]) -> None:
        self._top = os.fsencode(directory)
        self._store = store
        self._known = known
        self._check = check
        self._ignored = _Ignored(directory)
        self._settled_before = time.time_ns() - _SETTLE_NS
        self._count = 0
        self.seen: dict[bytes, _Cached] = {}

    def tree(self) -> pygit2.Oid:
        top = self._directory(b"", 0, ())
        return pygit2.Oid(raw=top if top is not None else self._store.write(ObjectType.TREE, b""))

    def _directory(self, rel: bytes, depth: int, rules: _Rules) -> bytes | None:
        """The raw id of a directory's tree, None when there is nothing to keep in it."""
        if depth > limits.MAX_DEPTH:
            raise InvalidInput(f"directory {_show(rel)} is nested more than {limits.MAX_DEPTH} deep")
        path = os.path.join(self._top, rel) if rel else self._top
        before = os.stat(path).st_mtime_ns
        with os.scandir(path) as entries:
            found = list(entries)
        if any(entry.name == b".gitignore" and entry.is_file(follow_symlinks=False) for entry in found):
            with open(os.path.join(path, b".gitignore"), "rb") as file:
                rules = (*rules, (len(rel) + 1 if rel else 0, IgnoreFile(file.read(_MAX_IGNORE_FILE))))
        items: list[tuple[bytes, bytes]] = []
        for entry in found:
            self._check()
            self._count += 1
            if self._count > limits.MAX_ENTRIES:
                raise InvalidInput(f"{os.fsdecode(self._top)} has more than {limits.MAX_ENTRIES} entries")
            name = entry.name
            child = rel + b"/" + name if rel else name
            is_directory = entry.is_dir(follow_symlinks=False)
            if name.lower() == b".git" or (rules and self._ignored(child, is_directory, rules)):
                continue
            if is_directory:
                id = self._directory(child, depth + 1, rules)
                if id is not None:
                    items.append((name + b"/", b"40000 " + name + b"\0" + id))
            elif entry.is_symlink():
                id = self._store.write(ObjectType.BLOB, os.readlink(entry.path))
                items.append((name, b"120000 " + name + b"\0" + id))
            elif entry.is_file(follow_symlinks=False):
                mode, id = self._file(entry, child)
                items.append((name, mode + b" " + name + b"\0" + id))
        if os.stat(path).st_mtime_ns != before:
            raise _Changed(f"directory {_show(rel)}")
        if not items:
            return None
        items.sort()  # git's order: a directory sorts as if its name ended in a slash
        return self._store.write(ObjectType.TREE, b"".join(data for _, data in items))

    def _file(self, entry: os.DirEntry[bytes], rel: bytes) -> tuple[bytes, bytes]:
        info = entry.stat(follow_symlinks=False)
        known = self._known.get(rel)
        if known is None or known != _cached(info, known.blob):
            info, blob = self._read(entry.path, rel)
            known = _cached(info, blob)
        if max(info.st_mtime_ns, info.st_ctime_ns) < self._settled_before:
            self.seen[rel] = known
        return (b"100755" if info.st_mode & 0o100 else b"100644"), known.blob

    def _read(self, path: bytes, rel: bytes) -> tuple[os.stat_result, bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise _Changed(f"file {_show(rel)}")
            if before.st_size > _IN_MEMORY:
                blob = self._store.write_file(fd)
            else:
                with open(fd, "rb", closefd=False) as file:
                    blob = self._store.write(ObjectType.BLOB, file.read(_IN_MEMORY + 1))
            if _cached(before, blob) != _cached(os.fstat(fd), blob):
                raise _Changed(f"file {_show(rel)}")
            return before, blob
        finally:
            os.close(fd)


class _Ignored:
    """Tells what the `.gitignore` files on the way to an entry leave out, the deepest having the last word."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tracked: set[bytes] | None = None

    def __call__(self, rel: bytes, is_directory: bool, rules: _Rules) -> bool:
        for prefix, file in reversed(rules):
            answer = file.match(rel[prefix:], is_directory)
            if answer is not None:
                return answer and not self._is_tracked(rel)
        return False

    def _is_tracked(self, rel: bytes) -> bool:
        if self._tracked is None:
            self._tracked = _tracked(self._directory)
        return rel in self._tracked


def _tracked(directory: Path) -> set[bytes]:
    """What the index of the work tree `directory` holds, with all parent directories."""
    git_dir = local.git_dir(directory)
    if git_dir is None or git_dir == directory:
        return set()
    found: set[bytes] = set()
    try:
        index = list(pygit2.Repository(os.fspath(git_dir)).index)
    except (pygit2.GitError, KeyError, ValueError, OSError) as error:
        raise Refused(
            f"the index of {directory} cannot be read: {error}", hint="`git status` there says more"
        ) from None
    for entry in index:
        path = os.fsencode(entry.path)
        while path and path not in found:
            found.add(path)
            path = path.rpartition(b"/")[0]
    return found


def _cached(info: os.stat_result, blob: bytes) -> _Cached:
    return _Cached(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev, blob)


def _syncfs(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), f"cannot write {path} to disk")
    finally:
        os.close(fd)


def _show(rel: bytes) -> str:
    return ascii(os.fsdecode(rel)) if rel else "'.'"
