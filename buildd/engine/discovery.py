"""What packages a revision has, remembered: a tree that was looked into is not looked into again, and of a new
one only what differs from the last.

A recipe is read again when its file changed; a package is made anew when something below its directory did. What
is equal to before is the very same object, so that whoever compares two revisions compares identities.

Invariant: the answer is what `discover` would give for the tree. Whatever is not plain sailing on the way (a
name that appears twice, a directory that is gone) is left to a full look, whose errors are the ones people see.
"""

from __future__ import annotations

import posixpath
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import compress
from operator import is_not
from pathlib import Path
from typing import TypeVar

import msgspec

from buildd.engine.keepsake import KEPT, Keepsakes
from buildd.errors import BuilddError
from buildd.model import Package
from buildd.recipes.native import RECIPE_FILE, Origin, discover, read_recipes
from buildd.repos.trees import LINK, GitStore
from buildd.store.tree import uncancelled

T = TypeVar("T")

SAVE_EVERY = 50
"""Variations of a revision, before one is kept on the disk again."""
KEPT_PER_STORE = 3
"""Revisions of one repository that are remembered: the last, and branches that take turns with it."""
KEPT_PACKAGES = 100_000
"""Packages in all remembered revisions together, counted once for each revision."""


def differing(before: Mapping[str, T], now: Mapping[str, T]) -> list[str]:
    """Names whose value now is another object than before, or that are new.

    The loop is in C: of ten thousand names this is asked several times for each start.
    """
    return list(compress(now, map(is_not, map(before.get, now), now.values())))


class Revision:
    """The packages of one tree. Immutable."""

    __slots__ = ("__weakref__", "_changed", "_like", "by_path", "files", "packages", "tree")

    def __init__(self, tree: str, files: Mapping[str, tuple[Package, ...]]) -> None:
        """`files` are the recipe files: path to the packages that each describes."""
        self._like: weakref.ref[Revision] | None = None
        self._changed: Collection[str] = ()
        """What is another package than in the revision that this one is like."""
        self.tree = tree
        self.files = files
        self.packages: dict[str, Package] = {p.name: p for found in files.values() for p in found}
        self.by_path: dict[str, list[str]] = {}
        """Directory to the recipe files that have a package there."""
        for file, found in files.items():
            for package in found:
                self.by_path.setdefault(package.path, []).append(file)

    def varied(self, tree: str, changed: Mapping[str, tuple[Package, ...] | None]) -> Revision | None:
        """Another tree, in which these recipe files have other packages or are gone; None when names clash."""
        if all(found is not None and _same_places(found, self.files[file]) for file, found in changed.items()):
            new = Revision(tree, {})
            packages = {p.name: p for found in changed.values() for p in found or ()}
            new.files = {**self.files, **{file: found for file, found in changed.items() if found is not None}}
            new.packages = {**self.packages, **packages}
            new.by_path = self.by_path
            new._like, new._changed = weakref.ref(self), differing(self.packages, packages)
            return new
        files = {**self.files, **changed}
        new = Revision(tree, {file: found for file, found in files.items() if found is not None})
        return new if len(new.packages) == sum(map(len, new.files.values())) else None

    def changed_since(self, other: Revision) -> Collection[str] | None:
        """Names of packages that are not the same objects in another revision; None when that has other names."""
        if self._like is not None and self._like() is other:
            return self._changed
        if other.packages.keys() != self.packages.keys():
            return None
        return differing(other.packages, self.packages)


def _same_places(new: Iterable[Package], old: Iterable[Package]) -> bool:
    return [(p.name, p.path) for p in new] == [(p.name, p.path) for p in old]


class Discoveries:
    """Thread-safe; `look` blocks on the disk."""

    def __init__(self, keepsakes: Keepsakes) -> None:
        self._keepsakes = keepsakes
        self._unsaved: dict[tuple[str, str], int] = {}
        """How many variations were derived of each repository and store since the disk has a revision of it."""
        self._known: OrderedDict[tuple[str, str, str], Revision] = OrderedDict()
        """By repository, store and tree; the last used comes last."""
        self._lock = threading.Lock()

    def remove_leftovers(self) -> None:
        """Remove what a daemon that was killed was keeping. Before the first look. Raises OSError."""
        self._keepsakes.remove_leftovers()

    def look(self, repository: str, store: str, tree: str, check: Callable[[], None] = uncancelled) -> Revision:
        """The packages of a tree. Raises InvalidInput, NotFound; `check` may raise to end it."""
        with self._lock:
            found = self._known.get((repository, store, tree))
            like = next((r for (o, s, _), r in reversed(self._known.items()) if (o, s) == (repository, store)), None)
            if found is not None:
                self._known.move_to_end((repository, store, tree))
        if found is None and like is None:
            like = self._loaded(repository, store)
            found = like if like is not None and like.tree == tree else None
        if found is None:
            with GitStore(Path(store)) as git:
                reader, origin = RevisionTree(git, tree), Origin(repository=repository, store=store)
                found = _derived(like, reader, origin) if like is not None else None
                derived = found is not None
                if found is None:
                    files = discover(reader, origin, check)
                    found = Revision(tree, {file: _reused(files[file], like) for file in files} if like else files)
            check()
            self._remember((repository, store, tree), found)
            self._save(repository, store, found, derived=derived)
        return found

    def _loaded(self, repository: str, store: str) -> Revision | None:
        """The revision that an earlier life of the daemon looked into last."""
        kept = self._keepsakes.load(repository, store)
        if kept is None:
            return None
        revision = Revision(*kept)
        self._unsaved[repository, store] = 0
        self._remember((repository, store, revision.tree), revision)
        return revision

    def _save(self, repository: str, store: str, revision: Revision, *, derived: bool) -> None:
        """Keep a revision for the next life; of variations only some, for they are soon derived again."""
        home = (repository, store)
        self._unsaved[home] = self._unsaved.get(home, SAVE_EVERY) + 1 if derived else SAVE_EVERY
        if self._unsaved[home] < SAVE_EVERY:
            return
        self._keepsakes.save(repository, store, revision.tree, revision.files)
        self._unsaved[home] = 0
        while len(self._unsaved) > KEPT:
            self._unsaved.pop(next(iter(self._unsaved)))

    def _remember(self, home: tuple[str, str, str], revision: Revision) -> None:
        with self._lock:
            self._known[home] = revision
            self._known.move_to_end(home)
            same = [key for key in self._known if key[:2] == home[:2]]
            for key in same[:-KEPT_PER_STORE]:
                del self._known[key]
            total = sum(len(r.packages) for r in self._known.values())
            while total > KEPT_PACKAGES and len(self._known) > 1:
                total -= len(self._known.popitem(last=False)[1].packages)


class RevisionTree:
    """`buildd.recipes.native.Tree` on a git tree."""

    def __init__(self, git: GitStore, tree: str) -> None:
        self.git, self.id = git, tree

    def files_named(self, name: str) -> Iterable[tuple[str, str]]:
        return self.git.find_files(self.id, name)

    def read(self, blob: str, limit: int) -> bytes:
        return self.git.read_blob(blob, limit)

    def subtree(self, path: str) -> str:
        return self.git.subtree(self.id, path)


def _derived(like: Revision, tree: RevisionTree, origin: Origin) -> Revision | None:
    """The revision as a variation of another one; None when a full look is needed."""
    try:
        files_changed = tree.git.changed_files(like.tree, tree.id)
        for path, entry in files_changed.items():
            if posixpath.basename(path) == RECIPE_FILE and (path not in like.files or (entry and entry.mode == LINK)):
                return None  # a new recipe has its place among the others; a link is none
        places = _directories(files_changed)
        touched = {file for place in places for file in like.by_path.get(place, ())}
        changed: dict[str, tuple[Package, ...] | None] = {}
        for path in sorted(touched | (like.files.keys() & files_changed.keys())):
            if path not in files_changed:
                changed[path] = tuple(
                    msgspec.structs.replace(package, tree=tree.subtree(package.path))
                    if package.path in places
                    else package
                    for package in like.files[path]
                )
            elif (entry := files_changed[path]) is not None:
                changed[path] = _reused(read_recipes(path, entry.id, tree, origin), like)
            else:
                changed[path] = None
    except BuilddError:
        return None
    return like.varied(tree.id, changed)


def _reused(found: Iterable[Package], like: Revision) -> tuple[Package, ...]:
    """`found` with the objects of another revision in the place of their equals."""
    return tuple(old if (old := like.packages.get(package.name)) == package else package for package in found)


def _directories(paths: Iterable[str]) -> set[str]:
    """Every directory on the way to one of `paths`, `.` included."""
    found = {"."}
    for path in paths:
        while path := posixpath.dirname(path):
            if path in found:
                break
            found.add(path)
    return found
