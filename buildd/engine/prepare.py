"""From targets to a plan: repositories are located (and cloned), packages discovered, dependencies resolved.

Nothing here knows of runs; the engine calls `plan` for a run and for `buildctl plan` alike.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from buildd.config import Config
from buildd.engine.targets import Target, is_url, parse_target
from buildd.errors import InvalidInput, NotFound, encodable
from buildd.execute.sandbox import SYSTEM_PATH
from buildd.model import Package
from buildd.planner.graph import topological_order
from buildd.recipes.native import Origin, discover
from buildd.repos.clones import Clones
from buildd.repos.trees import GitStore, snapshot

MAX_PACKAGES = 100_000


class Located(Struct, frozen=True, kw_only=True):
    """A revision of a repository, ready to be read."""

    repository: str
    """Its identity: normalised URL, or absolute path."""
    store: str
    commit: str | None
    tree: str
    path: str = "."
    """The part of the tree that the target means."""


class Plan(Struct, frozen=True, kw_only=True):
    packages: tuple[Package, ...]
    """In topological order; `depends` are names of packages in the plan."""

    @property
    def graph(self) -> dict[str, tuple[str, ...]]:
        return {p.name: p.depends for p in self.packages}


class Planner:
    def __init__(self, config: Callable[[], Config], clones: Clones, cache_dir: Path) -> None:
        self._config = config
        self._clones = clones
        self._snapshots = cache_dir / "snapshots"
        self._locks: dict[str, trio.Lock] = {}
        """By local path."""

    async def locate(self, targets: Sequence[Target], *, refresh: bool, held: AsyncExitStack) -> list[Located]:
        """Find each target's revision; clones stay in use until `held` is closed. Raises BuilddError."""
        return [await self._locate(t.repo, t.revision, t.local, refresh, held) for t in targets]

    async def plan(
        self, targets: Sequence[Target], located: Sequence[Located], *, refresh: bool, held: AsyncExitStack
    ) -> Plan:
        """What the targets ask for and everything that needs, in order. Raises InvalidInput or NotFound."""
        known = _Known()
        wanted: list[Package] = []
        for target, place in zip(targets, located, strict=True):
            wanted += _named_by(target, place, await self._discover(known, place))
        selected, depends = await self._resolve(known, wanted, refresh, held)
        if len(selected) > MAX_PACKAGES:
            raise InvalidInput(f"the plan has {len(selected)} packages, over {MAX_PACKAGES}")
        order = topological_order(depends)
        path = ":".join((*self._config().sandbox.path, SYSTEM_PATH))
        tools = {t: shutil.which(t, path=path) is not None for p in selected.values() for t in p.tools}
        return Plan(packages=tuple(_final(selected[name], depends[name], tools) for name in order))

    async def hold(self, packages: Sequence[Package], held: AsyncExitStack) -> bool:
        """Keep the sources of a plan of an earlier life in use; False when they are gone and it must be made anew.

        Raises BuilddError when a clone was deleted and cannot be cloned again.
        """
        for repository, store in {(p.repository, p.store) for p in packages}:
            if is_url(repository):
                await self._clones.ensure(repository, refresh=False)
                held.enter_context(self._clones.use(repository))

            def present(store: str = store, repository: str = repository) -> bool:
                try:
                    git = GitStore(Path(store))
                    for package in packages:
                        if package.repository == repository:
                            git.subtree(package.tree)
                except NotFound:
                    return False
                return True

            if not await trio.to_thread.run_sync(present):
                return False
        return True

    # --- where things are ---------------------------------------------------------------------------------

    async def _locate(
        self, repo: str, revision: str | None, local: bool, refresh: bool, held: AsyncExitStack
    ) -> Located:
        if local:
            async with self._locks.setdefault(repo, trio.Lock()):  # two snapshots would share an index
                return await trio.to_thread.run_sync(self._locate_directory, Path(repo), revision)
        url = repo if is_url(repo) else self._clones.find(repo).url
        record = await self._clones.ensure(url, refresh=refresh)
        held.enter_context(self._clones.use(record.url))
        return await trio.to_thread.run_sync(
            partial(_at_revision, record.path, revision, repository=record.url, path=".")
        )

    def _locate_directory(self, directory: Path, revision: str | None) -> Located:
        try:
            directory = directory.resolve(strict=True)
            os.listdir(directory)
            top = _git_top(directory)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise NotFound(
                f"{directory} is not a directory that the daemon can read: {why}",
                hint="give a git repository, a directory or a URL",
            ) from None
        if encodable(str(directory)) != str(directory):
            raise InvalidInput(f"the name of {directory} is not UTF-8", hint="rename it: records are UTF-8")
        if top is not None:
            inside = os.path.relpath(directory, top)
            try:
                return _at_revision(str(top), revision, repository=str(top), path=inside)
            except NotFound:
                # not in the revision: a directory that git does not know is a plain one, if no revision was named
                if revision is not None or inside == ".":
                    raise
        if revision is not None:
            raise InvalidInput(f"{directory} is a plain directory and has no revision {revision!r}")
        store = self._snapshots / f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:24]}.git"
        store.parent.mkdir(parents=True, exist_ok=True)
        tree = snapshot(directory, store)
        return Located(repository=str(directory), store=str(store), commit=None, tree=tree)

    # --- what is there ------------------------------------------------------------------------------------

    async def _discover(self, known: _Known, place: Located) -> dict[str, Package]:
        def work() -> list[Package]:
            tree = _RevisionTree(GitStore(Path(place.store)), place.tree)
            return discover(tree, Origin(repository=place.repository, store=place.store, commit=place.commit))

        home = (place.repository, place.tree)
        if home not in known.packages:
            known.packages[home] = {p.name: p for p in await trio.to_thread.run_sync(work)}
        return known.packages[home]

    async def _resolve(
        self, known: _Known, wanted: Iterable[Package], refresh: bool, held: AsyncExitStack
    ) -> tuple[dict[str, Package], dict[str, tuple[str, ...]]]:
        """`wanted` and all they need by name, and the names that each of them needs."""
        selected: dict[str, Package] = {}
        depends: dict[str, tuple[str, ...]] = {}
        stack = list(wanted)
        while stack:
            package = stack.pop()
            other = selected.setdefault(package.name, package)
            if other != package:
                raise InvalidInput(
                    f"package {package.name} is defined twice: in {_where(other)} and in {_where(package)}",
                    hint="start them in separate runs, or rename one",
                )
            if package.name not in depends:
                needed = [await self._dependency(known, package, d, refresh, held) for d in package.depends]
                depends[package.name] = tuple(p.name for p in needed)
                stack.extend(needed)
        return selected, depends

    async def _dependency(
        self, known: _Known, package: Package, text: str, refresh: bool, held: AsyncExitStack
    ) -> Package:
        """The package that `NAME` or `REPOSITORY//NAME` means in a recipe of `package`'s repository."""
        repo, separator, name = text.rpartition("//")
        if separator:
            target = parse_target(repo)
            place = await self._locate(target.repo, target.revision, target.local, refresh, held)
            candidates: Mapping[str, Package] = await self._discover(known, place)
        else:
            candidates = known.seen_from(package)
        if name not in candidates:
            near = difflib.get_close_matches(name, candidates, n=1)
            raise InvalidInput(
                f"package {package.name} depends on {text}, which does not exist",
                hint=f"did you mean {near[0]}?" if near else "for another repository's: REPOSITORY//NAME",
            )
        return candidates[name]


class _Known:
    """The packages of every revision that was looked into: by repository and tree, then by name."""

    def __init__(self) -> None:
        self.packages: dict[tuple[str, str], dict[str, Package]] = {}

    def seen_from(self, package: Package) -> Mapping[str, Package]:
        """What a plain name may mean for `package`: its own revision's packages first, then the others'."""
        homes = [p for p in self.packages.values() if p.get(package.name) == package]
        return ChainMap(*homes, *self.packages.values())


def _where(package: Package) -> str:
    revision = f"@{package.commit[:12]}" if package.commit else ""
    return f"{package.repository}{revision} ({package.path})"


def _named_by(target: Target, place: Located, packages: Mapping[str, Package]) -> list[Package]:
    """The packages that a target asks for by itself."""
    inside = [
        p for p in packages.values() if place.path == "." or p.path == place.path or p.path.startswith(place.path + "/")
    ]
    if target.package is not None:
        if target.package not in packages:
            near = difflib.get_close_matches(target.package, packages, n=1)
            raise NotFound(
                f"{place.repository} has no package {target.package}",
                hint=f"did you mean {near[0]}?" if near else f"`buildctl list {target.repo}` shows what it has",
            )
        return [packages[target.package]]
    if not inside:
        raise NotFound(
            f"no package found in {place.repository}" + ("" if place.path == "." else f" below {place.path}"),
            hint="packages are described by buildd.toml files; see buildd-recipe(5)",
        )
    chosen = [p for p in inside if p.default]
    if not chosen:
        names = ", ".join(p.name for p in inside[:5])
        raise NotFound(
            f"every package of {place.repository} below {place.path} is kept out of runs that do not name it",
            hint=f"name one: {target.repo}//NAME with {names}",
        )
    return chosen


def _final(package: Package, depends: tuple[str, ...], tools: Mapping[str, bool]) -> Package:
    missing = [tool for tool in package.tools if not tools[tool]]
    ignore = package.ignore
    if missing and not ignore:
        ignore = f"it needs {', '.join(missing)}, not found on the PATH of builds"
    return msgspec.structs.replace(package, depends=tuple(dict.fromkeys(depends)), ignore=ignore)


def _git_top(directory: Path) -> Path | None:
    """The git repository a directory belongs to: its work tree's top, or itself when it is a bare one."""
    for candidate in (directory, *directory.parents):
        if (candidate / ".git").exists():
            return candidate
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir() and (candidate / "refs").is_dir():
            return candidate
    return None


def _at_revision(store: str, revision: str | None, *, repository: str, path: str) -> Located:
    git = GitStore(Path(store))
    commit = git.resolve(revision)
    git.subtree(commit, path)
    return Located(repository=repository, store=store, commit=commit, tree=git.subtree(commit, "."), path=path)


class _RevisionTree:
    """`buildd.recipes.native.Tree` on a git tree."""

    def __init__(self, git: GitStore, tree: str) -> None:
        self._git, self._tree = git, tree

    def files_named(self, name: str) -> Iterable[tuple[str, str]]:
        return self._git.find_files(self._tree, name)

    def read(self, blob: str, limit: int) -> bytes:
        return self._git.read_blob(blob, limit)

    def subtree(self, path: str) -> str:
        return self._git.subtree(self._tree, path)
