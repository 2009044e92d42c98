"""From targets to a plan: repositories are located (and cloned), packages discovered, dependencies resolved.

Nothing here knows of runs; the engine calls `plan` for a run and for `buildctl plan` alike. Plans are remembered:
the same targets on the same trees give the very same `Plan`, and trees that differ in packages' sources only give
a variation of it that shares its graph and all unchanged packages.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import weakref
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from buildd.config import Config
from buildd.engine.discovery import Discoveries, Revision, differing
from buildd.engine.keepsake import Keepsakes
from buildd.engine.targets import Target, is_url, parse_target
from buildd.errors import BuilddError, InvalidInput, NotFound, Refused, encodable
from buildd.execute.sandbox import SYSTEM_PATH
from buildd.model import Package
from buildd.planner.graph import dependents, topological_order
from buildd.repos.cachedir import sweep
from buildd.repos.clones import Clones
from buildd.repos.trees import GitStore, snapshot
from buildd.threads import in_thread

MAX_PACKAGES = 100_000
KEPT_PLANS = 8


class Located(Struct, frozen=True, kw_only=True):
    """A revision of a repository, ready to be read."""

    repository: str
    """Its identity: normalised URL, or absolute path."""
    store: str
    commit: str | None
    tree: str
    path: str = "."
    """The part of the tree that the target means."""
    directory: str | None = None
    """The directory that the tree is a snapshot of; None for a commit, which cannot change."""


class Places(Struct, frozen=True, kw_only=True):
    """Where everything of a plan was found: with this the same plan can be made again."""

    targets: tuple[Located, ...]
    foreign: dict[str, Located]
    """Repositories that recipes name in dependencies, by the name they use."""


class Plan:
    """What targets ask for and everything that needs. Immutable; equal work is the same object."""

    def __init__(
        self,
        packages: Mapping[str, Package],
        places: Places,
        revisions: Sequence[Revision],
        tools: Mapping[str, bool],
        *,
        home: object,
        wanted: Sequence[str],
        like: Plan | None = None,
        changed: Set[str] = frozenset(),
    ) -> None:
        """`packages` in topological order, with `depends` as names in the plan.

        `like` has the same graph, and the same packages but for those that `changed`.
        """
        self._like = weakref.ref(like) if like is not None else None
        self._changed = changed
        self.home = home
        """What was asked for and where, whatever is found there: equal for the plans of one target. Hashable."""
        self.packages = packages
        self.places = places
        self.wanted = wanted
        """Packages that the targets ask for by themselves."""
        self.revisions = revisions
        self.tools = tools
        """Whether each executable that packages need is on the builds' PATH."""
        self.packs: bool
        """Whether any package is to be packed."""
        self.repositories: Set[str]
        self.graph: Mapping[str, tuple[str, ...]]
        self.index: Mapping[str, int]
        """Position of each package in the order."""
        self.dependents: Mapping[str, Sequence[str]]
        self.names: Sequence[str]
        if like is not None:
            self.graph, self.index, self.dependents, self.names = like.graph, like.index, like.dependents, like.names
            self.packs, self.repositories = like.packs, like.repositories
        else:
            self.graph = {name: p.depends for name, p in packages.items()}
            self.index = {name: i for i, name in enumerate(packages)}
            self.dependents = dependents(self.graph)
            self.names = tuple(packages)
            self.packs = any(p.formats for p in packages.values())
            self.repositories = frozenset(p.repository for p in packages.values())

    def has_graph_of(self, other: Plan | None) -> bool:
        """Whether another plan is known to have the same packages by name, and the same dependencies."""
        return other is not None and self.graph is other.graph

    def changed_since(self, other: Plan | None) -> Collection[str]:
        """Names of packages that are not the same objects in another plan, or not in it."""
        if self._like is not None and other is not None and self._like() is other:
            return self._changed
        return differing(other.packages if other is not None else {}, self.packages)

    def origin(self, package: Package) -> Located:
        """The revision that a package of the plan was found in."""
        places = [*self.places.targets, *self.places.foreign.values()]
        mine = [p for p in places if (p.repository, p.store) == (package.repository, package.store)]
        for place in mine:
            revision = next((r for r in self.revisions if r.tree == place.tree), None)
            found = revision.packages.get(package.name) if revision is not None else None
            if found is not None and (found.tree, found.path) == (package.tree, package.path):
                return place
        return mine[0]


class _Look:
    """One look at a directory, for all who asked before it began."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.tree: str | None = None
        self.error: Exception | None = None


class Planner:
    def __init__(self, config: Callable[[], Config], clones: Clones, cache_dir: Path) -> None:
        self._config = config
        self._clones = clones
        self._snapshots = cache_dir / "snapshots"
        self._looks: dict[str, _Look] = {}
        """By local path: the next look at a directory, which has not begun."""
        self._locks: weakref.WeakValueDictionary[str, trio.Lock] = weakref.WeakValueDictionary()
        """By the directory that a snapshot is taken of."""
        self._discoveries = Discoveries(Keepsakes(cache_dir / "discoveries"))
        self._plans: OrderedDict[object, Plan] = OrderedDict()
        """The last plan for each set of targets, whatever their trees; the last used comes last."""

    def remove_leftovers(self) -> None:
        """Remove what a daemon that was killed was writing. Blocks; before anything is planned. Raises OSError."""
        self._discoveries.remove_leftovers()
        for store in self._snapshots.glob("*.git"):
            sweep(store)

    async def locate(
        self, targets: Sequence[Target], *, refresh: bool, held: AsyncExitStack, worktree: bool = False
    ) -> list[Located]:
        """Find each target's revision; clones stay in use until `held` is closed. Raises BuilddError.

        With `worktree` local repositories are taken as their files are now.
        """
        return [await self._locate(t, refresh, held, worktree) for t in targets]

    async def plan(
        self,
        targets: Sequence[Target],
        located: Sequence[Located],
        *,
        refresh: bool,
        held: AsyncExitStack,
        foreign: Mapping[str, Located] | None = None,
    ) -> Plan:
        """What the targets ask for and everything that needs. Raises InvalidInput or NotFound.

        `foreign` are the places of an earlier plan's foreign repositories, which are then not looked up again.
        """
        known = _Known(dict(foreign or {}))
        home = tuple((p.repository, p.store, p.path, t.package) for t, p in zip(targets, located, strict=True))
        earlier = self._plans.get(home)
        plan: Plan | None = None
        if earlier is not None:
            for place in located:
                await self._discover(known, place)
            try:
                for text in earlier.places.foreign:
                    await self._discover(known, await self._foreign(known, text, refresh, held))
            except (BuilddError, OSError):
                pass  # perhaps no dependency names it any more: the resolution will say
            else:
                plan = self._vary(earlier, tuple(located), known)
        if plan is None:
            plan = await self._plan_anew(home, known, targets, located, refresh, held)
        self._plans[home] = plan
        self._plans.move_to_end(home)
        while len(self._plans) > KEPT_PLANS or sum(len(p.packages) for p in self._plans.values()) > MAX_PACKAGES:
            if len(self._plans) == 1:
                break
            self._plans.popitem(last=False)
        return plan

    async def _plan_anew(
        self,
        home: object,
        known: _Known,
        targets: Sequence[Target],
        located: Sequence[Located],
        refresh: bool,
        held: AsyncExitStack,
    ) -> Plan:
        known = _Known(known.foreign)
        wanted: list[Package] = []
        for target, place in zip(targets, located, strict=True):
            wanted += _named_by(target, place, (await self._discover(known, place)).packages)
        selected, depends = await self._resolve(known, wanted, refresh, held)
        if len(selected) > MAX_PACKAGES:
            raise InvalidInput(f"the plan has {len(selected)} packages, over {MAX_PACKAGES}")
        order = await in_thread(topological_order, depends)
        tools = self._look_for({t for p in selected.values() for t in p.tools})
        return Plan(
            {name: _final(selected[name], depends[name], tools) for name in order},
            Places(targets=tuple(located), foreign={text: known.foreign[text] for text in known.named}),
            tuple(known.revisions.values()),
            tools,
            home=home,
            wanted=tuple(dict.fromkeys(p.name for p in wanted)),
        )

    def _vary(self, earlier: Plan, targets: tuple[Located, ...], known: _Known) -> Plan | None:
        """The earlier plan on other trees; None when they differ in more than sources and how they are built."""
        places = Places(targets=targets, foreign={text: known.foreign[text] for text in earlier.places.foreign})
        revisions = tuple(known.revisions.values())
        tools = self._look_for(earlier.tools)
        if _shared(places) != _shared(earlier.places) or tools != earlier.tools:
            return None
        changed: dict[str, Package] = {}
        for before, now in zip(earlier.revisions, revisions, strict=True):
            if before is now:
                continue
            names = now.changed_since(before)
            if names is None:
                return None
            for name in names:
                if _role(before.packages[name]) != _role(now.packages[name]):
                    return None
                changed[name] = now.packages[name]
        if not changed and places == earlier.places:
            return earlier
        if len(revisions) > 1 and changed and _overlap(revisions):
            return None  # which of two packages of one name is meant is for the resolution to say
        packages = {
            **earlier.packages,
            **{n: _final(p, earlier.graph[n], tools) for n, p in changed.items() if n in earlier.graph},
        }
        return Plan(
            packages,
            places,
            revisions,
            tools,
            home=earlier.home,
            wanted=earlier.wanted,
            like=earlier,
            changed=changed.keys() & earlier.graph.keys(),
        )

    def _look_for(self, tools: Iterable[str]) -> dict[str, bool]:
        """Whether each of these executables is on the PATH of builds."""
        path = ":".join((*self._config().sandbox.path, SYSTEM_PATH))
        return {tool: shutil.which(tool, path=path) is not None for tool in tools}

    def repositories(self, targets: Iterable[str]) -> Set[str]:
        """Normalised URLs of the repositories that targets name, as far as they are known."""
        found = set()
        for text in targets:
            with suppress(BuilddError):
                target = parse_target(text)
                if not target.local:
                    found.add(self._clones.find(target.repo).url)
        return found

    async def hold(self, places: Places, held: AsyncExitStack) -> bool:
        """Keep the sources of a plan of an earlier life in use; False when they are gone and it must be made anew.

        Raises BuilddError when a clone was deleted and cannot be cloned again.
        """
        for place in {*places.targets, *places.foreign.values()}:
            if is_url(place.repository):
                await self._clones.ensure(place.repository, refresh=False)
                held.enter_context(self._clones.use(place.repository))

            def present(place: Located = place) -> bool:
                try:
                    with GitStore(Path(place.store)) as git:
                        git.subtree(place.tree, place.path)
                except NotFound:
                    return False
                return True

            if not await in_thread(present):
                return False
        return True

    async def look_again(self, place: Located) -> Located:
        """The present state of the directory that `place` is a snapshot of. Raises BuilddError, OSError.

        Those who ask while a look is under way share the next one.
        """
        assert place.directory is not None
        look = self._looks.get(place.directory)
        if look is None:
            look = self._looks[place.directory] = _Look()
            try:
                async with self._locks.setdefault(place.directory, trio.Lock()):
                    del self._looks[place.directory]
                    look.tree = await in_thread(_snapshot, Path(place.directory), Path(place.store))
            except (BuilddError, OSError) as error:
                look.error = error
            finally:
                if self._looks.get(place.directory) is look:
                    del self._looks[place.directory]
                look.done.set()
        await look.done.wait()
        if look.error is not None:
            raise look.error
        if look.tree is None:
            raise Refused(f"nobody looked at {place.directory} to the end", hint="look again")
        return msgspec.structs.replace(place, tree=look.tree)

    # --- where things are ---------------------------------------------------------------------------------

    async def _locate(self, target: Target, refresh: bool, held: AsyncExitStack, worktree: bool) -> Located:
        if target.local:
            found = await in_thread(partial(self._locate_directory, Path(target.repo), target.revision, worktree))
            return found if isinstance(found, Located) else await self._snapshot(*found)
        if worktree:
            raise InvalidInput(
                f"{target.repo} is no local directory and has no work tree",
                hint="--worktree builds directories of the daemon's machine as they are",
            )
        url = target.repo if is_url(target.repo) else self._clones.find(target.repo).url
        record = await self._clones.ensure(url, refresh=refresh)
        held.enter_context(self._clones.use(record.url))
        return await in_thread(partial(_at_revision, record.path, target.revision, repository=record.url, path="."))

    def _locate_directory(self, directory: Path, revision: str | None, worktree: bool) -> Located | tuple[Path, str]:
        """A commit, or the directory to take a snapshot of and the part of it that is meant."""
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
        if worktree:
            if revision is not None:
                raise InvalidInput(f"a work tree has no revision {revision!r}", hint="leave out one of the two")
            if top is not None and not (top / ".git").exists():
                raise InvalidInput(f"{top} is a bare repository and has no work tree", hint="leave out --worktree")
            return top or directory, os.path.relpath(directory, top or directory)
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
        return directory, "."

    async def _snapshot(self, directory: Path, inside: str) -> Located:
        store = self._snapshots / f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:24]}.git"

        def work() -> str:
            store.parent.mkdir(parents=True, exist_ok=True)
            tree = _snapshot(directory, store)
            with GitStore(store) as git:
                git.subtree(tree, inside)
            return tree

        async with self._locks.setdefault(str(directory), trio.Lock()):  # two snapshots would share an index
            tree = await in_thread(work)
        return Located(
            repository=str(directory), store=str(store), commit=None, tree=tree, path=inside, directory=str(directory)
        )

    # --- what is there ------------------------------------------------------------------------------------

    async def _discover(self, known: _Known, place: Located) -> Revision:
        home = (place.repository, place.store, place.tree)
        if home not in known.revisions:
            look = partial(self._discoveries.look, check=trio.from_thread.check_cancelled)
            known.revisions[home] = await in_thread(  # one large recipe file takes seconds
                look, place.repository, place.store, place.tree, abandon_on_cancel=True
            )
        return known.revisions[home]

    async def _foreign(self, known: _Known, text: str, refresh: bool, held: AsyncExitStack) -> Located:
        """The revision of another repository that a dependency names."""
        known.named[text] = None
        if text not in known.foreign:
            known.foreign[text] = await self._locate(parse_target(text), refresh, held, worktree=False)
        return known.foreign[text]

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
            place = await self._foreign(known, repo, refresh, held)
            candidates: Mapping[str, Package] = (await self._discover(known, place)).packages
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
    """What was looked into for one plan."""

    def __init__(self, foreign: dict[str, Located]) -> None:
        self.foreign = foreign
        """Revisions that dependencies may name, by the name they use."""
        self.named: dict[str, None] = {}
        """Those that were named, in order."""
        self.revisions: dict[tuple[str, str, str], Revision] = {}
        """By repository, store and tree."""

    def seen_from(self, package: Package) -> Mapping[str, Package]:
        """What a plain name may mean for `package`: its own revision's packages first, then the others'."""
        all_ = [r.packages for r in self.revisions.values()]
        if len(all_) == 1:
            return all_[0]
        homes = [packages for packages in all_ if packages.get(package.name) == package]
        return ChainMap(*homes, *all_)


def _shared(places: Places) -> list[int]:
    """Which places are one revision: for each, the number of the first one that is the same."""
    first: dict[tuple[str, str, str], int] = {}
    every = (*places.targets, *places.foreign.values())
    return [first.setdefault((p.repository, p.store, p.tree), number) for number, p in enumerate(every)]


def _role(package: Package) -> tuple[object, ...]:
    """What of a package decides the shape of a plan."""
    home = package.repository, package.store, package.path
    return *home, package.depends, package.tools, package.formats, package.default, package.ignore


def _overlap(revisions: Iterable[Revision]) -> bool:
    names: set[str] = set()
    for revision in revisions:
        if not names.isdisjoint(revision.packages):
            return True
        names |= revision.packages.keys()
    return False


def _where(package: Package) -> str:
    return f"{package.repository} ({package.path}, source {package.tree[:12]})"


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
    depends = tuple(dict.fromkeys(depends))
    if (depends, ignore) == (package.depends, package.ignore):
        return package
    return msgspec.structs.replace(package, depends=depends, ignore=ignore)


def _snapshot(directory: Path, store: Path) -> str:
    """In a worker thread; ends when that is cancelled."""
    return snapshot(directory, store, trio.from_thread.check_cancelled)


def _git_top(directory: Path) -> Path | None:
    """The git repository a directory belongs to: its work tree's top, or itself when it is a bare one."""
    for candidate in (directory, *directory.parents):
        if (candidate / ".git").exists():
            return candidate
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir() and (candidate / "refs").is_dir():
            return candidate
    return None


def _at_revision(store: str, revision: str | None, *, repository: str, path: str) -> Located:
    with GitStore(Path(store)) as git:
        commit = git.resolve(revision)
        git.subtree(commit, path)
        tree = git.subtree(commit, ".")
    return Located(repository=repository, store=store, commit=commit, tree=tree, path=path)
