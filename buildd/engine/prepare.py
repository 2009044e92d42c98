"""From targets to a plan: repositories are located (and cloned), packages discovered, dependencies resolved.

Nothing here knows of runs; the engine calls `plan` for a run and for `buildctl plan` alike.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from buildd.config import Config
from buildd.engine.targets import Target, is_url, parse_target
from buildd.errors import InvalidInput, NotFound
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

    async def locate(self, targets: Sequence[Target], *, refresh: bool, held: AsyncExitStack) -> list[Located]:
        """Find each target's revision; clones stay in use until `held` is closed. Raises BuilddError."""
        return [await self._locate(t.repo, t.revision, t.local, refresh, held) for t in targets]

    async def plan(
        self, targets: Sequence[Target], located: Sequence[Located], *, refresh: bool, held: AsyncExitStack
    ) -> Plan:
        """What the targets ask for and everything that needs, in order. Raises InvalidInput or NotFound."""
        known = _Known()
        wanted: list[str] = []
        for target, place in zip(targets, located, strict=True):
            packages = known.add(place, await self._discover(place))
            wanted += _named_by(target, place, packages)
        depends = await self._resolve(known, wanted, refresh, held)
        if len(depends) > MAX_PACKAGES:
            raise InvalidInput(f"the plan has {len(depends)} packages, over {MAX_PACKAGES}")
        order = topological_order(depends)
        path = ":".join((*self._config().sandbox.path, SYSTEM_PATH))
        tools = {t: shutil.which(t, path=path) is not None for n in order for t in known.packages[n].tools}
        return Plan(packages=tuple(_final(known.packages[name], depends[name], tools) for name in order))

    # --- where things are ---------------------------------------------------------------------------------

    async def _locate(
        self, repo: str, revision: str | None, local: bool, refresh: bool, held: AsyncExitStack
    ) -> Located:
        if local:
            return await trio.to_thread.run_sync(self._locate_directory, Path(repo), revision)
        url = repo if is_url(repo) else self._clones.find(repo).url
        record = await self._clones.ensure(url, refresh=refresh)
        held.enter_context(self._clones.use(record.url))
        return await trio.to_thread.run_sync(
            partial(_at_revision, record.path, revision, repository=record.url, path=".")
        )

    def _locate_directory(self, directory: Path, revision: str | None) -> Located:
        if not directory.is_dir():
            raise NotFound(f"{directory} is not a directory", hint="give a git repository, a directory or a URL")
        directory = directory.resolve()
        top = _git_top(directory)
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

    async def _discover(self, place: Located) -> list[Package]:
        def work() -> list[Package]:
            tree = _RevisionTree(GitStore(Path(place.store)), place.tree)
            return discover(tree, Origin(repository=place.repository, store=place.store, commit=place.commit))

        return await trio.to_thread.run_sync(work)

    async def _resolve(
        self, known: _Known, wanted: Iterable[str], refresh: bool, held: AsyncExitStack
    ) -> dict[str, tuple[str, ...]]:
        """Dependencies by name of everything that `wanted` needs."""
        depends: dict[str, tuple[str, ...]] = {}
        stack = list(wanted)
        while stack:
            name = stack.pop()
            if name in depends:
                continue
            package = known.packages[name]
            names = []
            for dependency in package.depends:
                repo, separator, short = dependency.rpartition("//")
                if separator and short not in known.packages:
                    target = parse_target(repo)
                    place = await self._locate(target.repo, target.revision, target.local, refresh, held)
                    known.add(place, await self._discover(place))
                if short not in known.packages:
                    near = difflib.get_close_matches(short, known.packages, n=1)
                    raise InvalidInput(
                        f"package {name} depends on {dependency}, which does not exist",
                        hint=f"did you mean {near[0]}?" if near else "for another repository's: REPOSITORY//NAME",
                    )
                names.append(short)
            depends[name] = tuple(names)
            stack.extend(names)
        return depends


class _Known:
    """All packages that were discovered, by name."""

    def __init__(self) -> None:
        self.packages: dict[str, Package] = {}

    def add(self, place: Located, found: Iterable[Package]) -> list[Package]:
        result = []
        for package in found:
            other = self.packages.setdefault(package.name, package)
            if other != package:
                raise InvalidInput(
                    f"package {package.name} is defined twice: in {_where(other)} and in {_where(package)}",
                    hint="start them in separate runs, or rename one",
                )
            result.append(other)
        return result


def _where(package: Package) -> str:
    revision = f"@{package.commit[:12]}" if package.commit else ""
    return f"{package.repository}{revision} ({package.path})"


def _named_by(target: Target, place: Located, packages: Sequence[Package]) -> list[str]:
    """The packages that a target asks for by itself."""
    inside = [p for p in packages if place.path == "." or p.path == place.path or p.path.startswith(place.path + "/")]
    if target.package is not None:
        if not any(p.name == target.package for p in packages):
            near = difflib.get_close_matches(target.package, [p.name for p in packages], n=1)
            raise NotFound(
                f"{place.repository} has no package {target.package}",
                hint=f"did you mean {near[0]}?" if near else f"`buildctl list {target.repo}` shows what it has",
            )
        return [target.package]
    if not inside:
        raise NotFound(
            f"no package found in {place.repository}" + ("" if place.path == "." else f" below {place.path}"),
            hint="packages are described by buildd.toml files; see buildd-recipe(5)",
        )
    return [p.name for p in inside if p.default]


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
