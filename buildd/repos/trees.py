"""Reading git trees and writing them out, without git and without trusting what is in them.

A `GitStore` reads one repository, bare or of a work tree, in place. It never writes there, runs nothing that
its configuration names (no hooks, no filters, no fsmonitor) and reads objects and references only. That is why
libgit2's check that the repository belongs to the calling user is switched off here: the check protects users
from executing what another user configured, nothing of that kind happens, and a daemon under its own user
could otherwise read nobody's local repository. What the file system does not let the daemon read stays unread.

Paths are `str` decoded by `os.fsdecode`: a name that is not UTF-8 keeps its bytes as surrogates, and
`os.fsencode` gives them back.

All functions block and may be called from any thread: each call borrows a libgit2 handle of its own (opening
one takes about 50 µs, so idle ones are kept).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pygit2
from msgspec import Struct

from buildd.errors import InvalidInput, NotFound
from buildd.repos import limits, local
from buildd.repos.checkout import Writer
from buildd.repos.snapshot import snapshot

__all__ = ["Branch", "Child", "Entry", "GitStore", "RawEntry", "crc32", "list_branches", "map_little", "snapshot"]

pygit2.settings.owner_validation = False

DIRECTORY, FILE, EXECUTABLE, LINK, SUBMODULE = 0o040000, 0o100644, 0o100755, 0o120000, 0o160000
_RAW_ENTRY = re.compile(rb"([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)
_MAX_IDLE_HANDLES = 8
_WINDOW_BYTES, _MAPPED_BYTES = 1 << 20, 16 << 20


class Entry(NamedTuple):
    """A file, link or submodule of a tree. `mode` is git's, as in 0o100644; `id` is hexadecimal."""

    path: str
    mode: int
    id: str


class RawEntry(NamedTuple):
    """As `Entry`, with the bytes of path and id."""

    path: bytes
    mode: int
    id: bytes


class Child(NamedTuple):
    """What a directory holds. `mode` is git's, `id` hexadecimal."""

    name: bytes
    mode: int
    id: str


class Branch(Struct, frozen=True, kw_only=True):
    name: str
    commit: str
    is_head: bool
    """The branch that HEAD names: the default of the remote repository."""


class GitStore:
    """Read access to the repository at `path` (a bare repository or the top of a work tree).

    Use it as a context manager: packs stay open and mapped until `close`, or until Python collects cycles.
    """

    def __init__(self, path: Path) -> None:
        """Raises NotFound when there is no repository at `path`."""
        self.path = path
        git_dir = local.git_dir(path)
        if git_dir is None:
            raise NotFound(f"{path} is not a git repository", hint="Check the path, or clone it again.")
        self._git_dir = str(git_dir)
        self._idle: list[pygit2.Repository] = []
        with self._borrow():
            pass

    def close(self) -> None:
        """Let go of files and memory; the store may be used again."""
        while self._idle:
            self._idle.pop().free()

    def __enter__(self) -> GitStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- revisions ----------------------------------------------------------------------------------------

    def resolve(self, rev: str | None = None) -> str:
        """The commit that a branch, tag, full or unambiguous short id means; None is HEAD.

        Raises NotFound with near matches, or InvalidInput for an ambiguous or impossible name.
        """
        with self._borrow() as repository:
            if rev is None:
                return self._head(repository)
            if not rev or rev.startswith("-") or len(rev) > 1024 or not rev.isprintable():
                raise InvalidInput(f"{rev[:100]!r} cannot be a revision", hint="Give a branch, tag or commit id.")
            found = self._reference(repository, rev) or self._by_id(repository, rev)
            if found is None:
                raise NotFound(f"no branch, tag or commit {rev!r} in {self.path}", hint=_near(repository, rev))
            return found

    def commit_time(self, commit: str) -> int:
        """Committer time of a commit in seconds since the epoch, never before it."""
        with self._borrow() as repository:
            return max(0, self._commit(repository, commit).commit_time)

    def branches(self) -> list[Branch]:
        """All branches by name."""
        with self._borrow() as repository:
            head = _head_name(repository)
            found = []
            for name in sorted(repository.references):
                if name.startswith("refs/heads/"):
                    with contextlib.suppress(pygit2.GitError, KeyError, ValueError):
                        commit = str(repository.references[name].peel(pygit2.Commit).id)
                        found.append(Branch(name=name.removeprefix("refs/heads/"), commit=commit, is_head=name == head))
            return found

    # --- trees --------------------------------------------------------------------------------------------

    def subtree(self, commit: str, path: str = "") -> str:
        """The tree id of the directory `path` ('' and '.' are the top) in a commit or tree.

        Raises NotFound, InvalidInput.
        """
        with self._borrow() as repository:
            tree = self._root(repository, commit)
            for part in _parts(path):
                entry = _child(tree, part)
                if entry is None:
                    names = ", ".join(sorted(e.name or "" for e in tree if e.filemode == DIRECTORY)[:10])
                    raise NotFound(f"no directory {path!r} in commit {commit[:12]}", hint=f"There are: {names}")
                if entry.filemode == SUBMODULE:
                    raise NotFound(
                        f"{path!r} in commit {commit[:12]} lies in a submodule",
                        hint="Submodules are not followed; name their own repository.",
                    )
                if not isinstance(entry, pygit2.Tree):
                    raise NotFound(f"{path!r} in commit {commit[:12]} is not a directory")
                tree = entry
            return str(tree.id)

    def find_blob(self, commit: str, path: str) -> Entry:
        """The file or link at `path` in `commit`. Raises NotFound, InvalidInput."""
        parts = _parts(path)
        if not parts:
            raise InvalidInput("the path of a file is empty")
        tree_id = self.subtree(commit, "/".join(parts[:-1]))
        with self._borrow() as repository:
            entry = _child(self._tree(repository, tree_id), parts[-1])
            if entry is None or entry.filemode in (DIRECTORY, SUBMODULE):
                raise NotFound(f"no file {path!r} in commit {commit[:12]}")
            return Entry("/".join(parts), entry.filemode, str(entry.id))

    def find_files(self, tree: str, name: str) -> Iterator[tuple[str, str]]:
        """Path and blob id of every regular file called `name` below a tree. Submodules are not followed."""
        with self._borrow() as repository:
            for entry in _walk(repository, self._tree(repository, tree)):
                if entry.mode in (FILE, EXECUTABLE) and entry.path.rpartition("/")[2] == name:
                    yield entry.path, entry.id

    def changed_files(self, old: str, new: str) -> dict[str, Entry | None]:
        """Every file that differs between two trees: its path to its new entry, None for one that is gone.

        Costs what differs: equal directories are not entered. Raises NotFound, InvalidInput (limits).
        """
        with self._borrow() as repository:
            changed: dict[str, Entry | None] = {}
            stack: list[tuple[str, str | None, str | None]] = [("", old, new)]
            count = 0
            while stack:
                prefix, before, after = stack.pop()
                if prefix.count("/") >= limits.MAX_DEPTH:
                    raise InvalidInput(f"directory {prefix[:200]!r} is nested more than {limits.MAX_DEPTH} deep")
                was, now = _raw_entries(repository, before), _raw_entries(repository, after)
                gone = {name: (_plain_mode(mode), id) for mode, name, id in was - now}
                come = {name: (_plain_mode(mode), id) for mode, name, id in now - was}
                count += len(gone) + len(come)
                if count > limits.MAX_ENTRIES:
                    raise InvalidInput(f"trees {old} and {new} differ in more than {limits.MAX_ENTRIES} entries")
                for name in gone.keys() | come.keys():
                    _compare(prefix + os.fsdecode(name), gone.get(name), come.get(name), changed, stack)
            return changed

    def children(self, tree: str) -> list[Child]:
        """What is in a directory itself, in git's order. Raises NotFound."""
        with self._borrow() as repository:
            return [Child(name, _plain_mode(mode), id.hex()) for mode, name, id in _raw_list(repository, tree)]

    def sizes(self, blobs: Iterable[str]) -> list[int]:
        """Bytes of each of these blobs, without reading them. Raises NotFound."""
        with self._borrow() as repository:
            read_header = repository.odb.read_header
            try:
                return [read_header(pygit2.Oid(hex=id))[1] for id in blobs]
            except (KeyError, ValueError) as error:
                raise NotFound(f"{self.path} lacks an object: {error}", hint="`git fsck` there says more") from None

    def listing(self, tree: str) -> list[Entry]:
        """Everything in a tree but the directories themselves, in git's order. Raises InvalidInput (limits)."""
        with self._borrow() as repository:
            return list(_walk(repository, self._tree(repository, tree)))

    def raw_listing(self, commit: str) -> list[RawEntry]:
        """As `listing`, of a commit or tree and sorted by path: ten times as fast, for what reads whole repositories.

        Raises NotFound, InvalidInput (limits).
        """
        found: list[RawEntry] = []
        with self._borrow() as repository:
            stack = [(b"", str(self._root(repository, commit).id))]
            count = 0
            while stack:
                prefix, tree = stack.pop()
                if prefix.count(b"/") >= limits.MAX_DEPTH:
                    raise InvalidInput(f"directory {prefix[:200]!r} is nested more than {limits.MAX_DEPTH} deep")
                entries = _raw_entries(repository, tree)
                count += len(entries)
                if count > limits.MAX_ENTRIES:
                    raise InvalidInput(f"tree {commit} has more than {limits.MAX_ENTRIES} entries")
                for raw_mode, name, id in entries:
                    mode = _plain_mode(raw_mode)
                    if mode == DIRECTORY:
                        stack.append((prefix + name + b"/", id.hex()))
                    else:
                        found.append(RawEntry(prefix + name, mode, id))
        return sorted(found)

    @contextlib.contextmanager
    def blobs(self) -> Iterator[Callable[[bytes, int], tuple[int, bytes | None]]]:
        """A function for many blobs one after the other: of an id and a limit it makes the blob's size and content.

        The content is None when it has more bytes than the limit. The function raises NotFound.
        """
        with self._borrow() as repository:
            objects = repository.odb

            def read(id: bytes, limit: int) -> tuple[int, bytes | None]:
                oid = pygit2.Oid(raw=id)
                try:
                    kind, size = objects.read_header(oid)
                    if kind != pygit2.enums.ObjectType.BLOB:
                        raise NotFound(f"object {id.hex()} is not a file")
                    return size, bytes(objects.read(oid)[1]) if size <= limit else None
                except (pygit2.GitError, KeyError, ValueError) as error:
                    raise NotFound(f"no blob {id.hex()} in {self.path}: {error}") from None

            yield read

    def read_blob(self, id: str, limit: int) -> bytes:
        """Content of a blob. Raises InvalidInput when it has more than `limit` bytes, NotFound."""
        with self._borrow() as repository:
            oid = _oid(id)
            try:
                kind, size = repository.odb.read_header(oid)
                if kind != pygit2.enums.ObjectType.BLOB:
                    raise NotFound(f"object {id} is not a file")
                if size > limit:
                    raise InvalidInput(f"file {id} has {size} bytes, more than {limit}")
                return bytes(repository.odb.read(oid)[1])
            except (pygit2.GitError, KeyError, ValueError) as error:
                raise NotFound(f"no blob {id} in {self.path}: {error}") from None

    def checkout(self, tree: str, dest: Path, mtime: int, check: Callable[[], None] = lambda: None) -> int:
        """Write a tree into the directory `dest` (made when missing); the number of bytes written.

        Every file, link and directory gets the time `mtime`, `dest` included. Submodules become empty
        directories. Raises InvalidInput for names or links that would leave the tree, OSError; then `dest` may
        be half filled, and is the caller's to remove. `check` is called for each entry, and may raise.
        """
        with self._borrow() as repository:
            return Writer(repository, mtime, check).write(self._tree(repository, tree), dest)

    # --- inside -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[pygit2.Repository]:
        try:
            repository = self._idle.pop()  # atomic: two threads never get the same one
        except IndexError:
            repository = self._open()
        try:
            yield repository
        except pygit2.GitError as error:
            raise NotFound(f"{self.path} cannot be read: {error}", hint="`git fsck` there says more") from None
        finally:
            if len(self._idle) < _MAX_IDLE_HANDLES:
                self._idle.append(repository)
            else:
                repository.free()

    def _open(self) -> pygit2.Repository:
        try:
            return pygit2.Repository(self._git_dir, pygit2.enums.RepositoryOpenFlag.BARE)
        except (pygit2.GitError, KeyError, ValueError) as error:
            raise NotFound(f"cannot open the repository {self.path}: {error}") from None

    def _head(self, repository: pygit2.Repository) -> str:
        try:
            return str(repository.head.peel(pygit2.Commit).id)
        except (pygit2.GitError, KeyError, ValueError):
            pass
        branches = _names(repository, "refs/heads/")
        if not branches:
            raise NotFound(f"{self.path} has no commits", hint="Push something to it first.")
        raise NotFound(
            f"HEAD of {self.path} names no commit ({_head_name(repository) or 'detached'})",
            hint=f"Name a revision; branches: {', '.join(branches[:10])}",
        )

    def _reference(self, repository: pygit2.Repository, rev: str) -> str | None:
        for name in (rev, f"refs/tags/{rev}", f"refs/heads/{rev}", f"refs/remotes/{rev}"):
            if name != "HEAD" and not name.startswith("refs/"):
                continue
            try:
                reference = repository.references[name]
            except (KeyError, ValueError):
                continue
            try:
                return str(reference.peel(pygit2.Commit).id)
            except (pygit2.GitError, KeyError, ValueError) as error:
                raise InvalidInput(f"{rev!r} in {self.path} does not lead to a commit: {error}") from None
        return None

    def _by_id(self, repository: pygit2.Repository, rev: str) -> str | None:
        if not 4 <= len(rev) <= 40 or rev.strip("0123456789abcdefABCDEF"):
            return None
        try:
            found = repository.get(rev.lower())
            return str(found.peel(pygit2.Commit).id) if found is not None else None
        except ValueError as error:
            if "ambiguous" in str(error).lower():
                raise InvalidInput(f"the id {rev!r} is ambiguous in {self.path}", hint="Give more of it.") from None
            return None
        except (pygit2.GitError, KeyError):
            return None

    def _commit(self, repository: pygit2.Repository, id: str) -> pygit2.Commit:
        found = self._object(repository, id)
        if not isinstance(found, pygit2.Commit):
            raise NotFound(f"no commit {id} in {self.path}")
        return found

    def _tree(self, repository: pygit2.Repository, id: str) -> pygit2.Tree:
        found = self._object(repository, id)
        if not isinstance(found, pygit2.Tree):
            raise NotFound(f"no tree {id} in {self.path}")
        return found

    def _root(self, repository: pygit2.Repository, id: str) -> pygit2.Tree:
        """The tree of a commit, or the tree itself."""
        found = self._object(repository, id)
        return found.tree if isinstance(found, pygit2.Commit) else self._tree(repository, id)

    def _object(self, repository: pygit2.Repository, id: str) -> object:
        """The object with this id; None when there is none."""
        try:
            return repository.get(_oid(id))
        except (pygit2.GitError, ValueError) as error:
            raise NotFound(f"cannot read object {id} in {self.path}: {error}") from None


def map_little() -> None:
    """From now on this process maps little of packs at a time: for those that read whole repositories and end.

    libgit2 would keep in memory whatever it has read of a pack. Reading takes some hundredths longer.
    """
    pygit2.settings.mwindow_size = _WINDOW_BYTES
    pygit2.settings.mwindow_mapped_limit = _MAPPED_BYTES


def list_branches(path: Path) -> list[Branch]:
    """The branches of the repository at `path`; none for a plain directory."""
    if local.git_dir(path) is None:
        local.check_directory(path)
        return []
    with GitStore(path) as store:
        return store.branches()


def crc32(listing: Iterable[Entry]) -> int:
    """CRC-32 over a listing: `MODE ID PATH NUL` of each entry, mode in octal, sorted by the bytes of the path."""
    crc = 0
    for path, mode, id in sorted(listing, key=lambda entry: os.fsencode(entry.path)):
        crc = zlib.crc32(b"%06o %s %s\0" % (mode, id.encode(), os.fsencode(path)), crc)
    return crc


def _walk(repository: pygit2.Repository, top: pygit2.Tree) -> Iterator[Entry]:
    count = 0
    stack: list[tuple[str, Iterator[pygit2.Object]]] = [("", iter(top))]
    while stack:
        prefix, entries = stack[-1]
        for entry in entries:
            count += 1
            if count > limits.MAX_ENTRIES:
                raise InvalidInput(f"tree {top.id} has more than {limits.MAX_ENTRIES} entries")
            path = prefix + os.fsdecode(entry.raw_name or b"")
            if entry.filemode == DIRECTORY:
                if len(stack) >= limits.MAX_DEPTH:
                    raise InvalidInput(f"directory {path[:200]!r} is nested more than {limits.MAX_DEPTH} deep")
                stack.append((path + "/", iter(repository[entry.id])))  # type: ignore[call-overload]
                break
            yield Entry(path, entry.filemode, str(entry.id))
        else:
            stack.pop()


def _compare(
    path: str,
    was: tuple[int, bytes] | None,
    now: tuple[int, bytes] | None,
    changed: dict[str, Entry | None],
    stack: list[tuple[str, str | None, str | None]],
) -> None:
    """Note what differs at `path`, whose mode and raw id were and are these; directories go on the stack."""
    if was == now:
        return
    old, new = (entry[1].hex() if entry is not None and entry[0] == DIRECTORY else None for entry in (was, now))
    if old is not None or new is not None:
        stack.append((path + "/", old, new))
    if now is not None and new is None:
        changed[path] = Entry(path, now[0], now[1].hex())
    elif was is not None and old is None:
        changed[path] = None


@lru_cache(64)
def _plain_mode(raw: bytes) -> int:
    """The mode that is meant, as libgit2 reads it: old tools wrote leading zeros and other permissions."""
    mode = int(raw, 8)
    kind = mode & 0o170000
    if kind in (DIRECTORY, SUBMODULE):
        return kind
    if mode & 0o111:
        return EXECUTABLE
    return LINK if kind == LINK else FILE


def _raw_entries(repository: pygit2.Repository, tree: str | None) -> set[tuple[bytes, bytes, bytes]]:
    """Mode, name and raw id of each entry: an object for each, as pygit2 has it, takes ten times as long.

    None is a tree that is not there, and so has none.
    """
    return set(_raw_list(repository, tree)) if tree is not None else set()


def _raw_list(repository: pygit2.Repository, tree: str) -> list[tuple[bytes, bytes, bytes]]:
    try:
        kind, data = repository.odb.read(_oid(tree))
    except KeyError:
        raise NotFound(f"no tree {tree}") from None
    if kind != pygit2.enums.ObjectType.TREE:
        raise NotFound(f"object {tree} is not a tree")
    return _RAW_ENTRY.findall(data)


def _child(tree: pygit2.Tree, name: str) -> pygit2.Object | None:
    wanted = os.fsencode(name)
    # By bytes: pygit2 looks up str only, and not every name is UTF-8.
    return next((entry for entry in tree if entry.raw_name == wanted), None)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or path.startswith("/"):
        raise InvalidInput(f"the path {path[:200]!r} is not below the repository's top")
    return parts


def _oid(id: str) -> pygit2.Oid:
    try:
        return pygit2.Oid(hex=id)
    except ValueError:
        raise InvalidInput(f"{id[:100]!r} is not an object id") from None


def _names(repository: pygit2.Repository, prefix: str) -> list[str]:
    return sorted(name.removeprefix(prefix) for name in repository.references if name.startswith(prefix))


def _head_name(repository: pygit2.Repository) -> str | None:
    try:
        target = repository.lookup_reference("HEAD").target
    except (pygit2.GitError, KeyError, ValueError):
        return None
    return target if isinstance(target, str) else None


def _near(repository: pygit2.Repository, rev: str) -> str:
    branches, tags = _names(repository, "refs/heads/"), _names(repository, "refs/tags/")
    near = difflib.get_close_matches(rev, [*branches, *tags], n=5, cutoff=0.5)
    if near:
        return f"Did you mean {', '.join(near)}?"
    shown = ", ".join(branches[:10])
    return f"Branches: {shown}. A refresh may bring new ones." if shown else "It has no branches."
