"""Which packages of a plan are up to date, remembered from run to run.

A package is up to date when its key is that of an earlier success whose artifact is there. Looking at ten thousand
packages takes ten thousand hashes; so what was found is kept, and the next run looks only at packages that are
not the same object any more, at those whose answer has become doubtful, and at what depends on a change.

Invariant: an entry says what a full look would say. Whoever makes one doubtful (an artifact goes, another success
is recorded) says so by `doubt` or `forget`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from msgspec import Struct

from buildd.engine.discovery import differing
from buildd.engine.prepare import Plan
from buildd.execute.environment import Environment
from buildd.model import Package, Strategy
from buildd.planner.keys import KeyParts, closure_id, key_of, key_parts
from buildd.store.runs import KnownResult

KEPT = 8
"""Lineages of plans that are remembered."""
_FEW = 50
"""Packages of which any number may differ, however few there are in all."""


class Rule(Struct, frozen=True, kw_only=True):
    """How earlier results count for the packages of a repository."""

    strategy: Strategy
    environment: Environment


class Rules(Struct, frozen=True, kw_only=True):
    repositories: dict[str, Rule]
    architecture: str

    def of(self, package: Package) -> Rule:
        return self.repositories[package.repository]

    def strategy(self, package: Package) -> Strategy:
        return self.of(package).strategy

    def comparing(self) -> Rules:
        """The same environments, with every earlier success to compare with."""
        return msgspec.structs.replace(
            self,
            repositories={
                name: Rule(
                    strategy="aggressive" if rule.strategy == "none" else rule.strategy, environment=rule.environment
                )
                for name, rule in self.repositories.items()
            },
        )

    def parts(self, package: Package, dependencies: Mapping[str, str]) -> KeyParts:
        """The parts of a package's key, given the closure ids of its direct dependencies."""
        return key_parts(
            package,
            environment=self.of(package).environment.id,
            architecture=self.architecture,
            dependencies=dependencies,
        )

    @property
    def basis(self) -> object:
        """Hashable; equal for rules under which keys and answers are the same."""
        pairs = sorted((name, r.strategy, r.environment.id) for name, r in self.repositories.items())
        return self.architecture, tuple(pairs)


class Settled(NamedTuple):
    """A package that is up to date, and by what."""

    package: Package
    key: str
    closure: str
    """Its closure id, as dependents have it in their keys."""
    output_id: str
    build: str
    """The build that made the output."""


class Settlement(dict[str, Settled]):
    """Packages that are up to date, by name.

    One is made as a variation of another, and says in which names all of one family may differ: of ten thousand, those
    few need not be looked for.
    """

    def __init__(self, like: Mapping[str, Settled] | None = None) -> None:
        """A copy of `like`, of its family if it has one; who changes an entry adds its name to `varied`."""
        super().__init__(like or {})
        self._family: object = object()
        self.varied: set[str] = set()
        """Names whose entries are not those of the first of the family."""
        if isinstance(like, Settlement):
            self._family, self.varied = like._family, set(like.varied)

    def differing(self, other: Settlement) -> Collection[str]:
        """Names that may have other entries in `other`, or be in one of the two only; no others do."""
        if other is self:
            return ()
        if other._family is self._family:
            return self.varied | other.varied
        return [*differing(other, self), *(other.keys() - self.keys())]

    def branch_off(self) -> None:
        """Found a family of its own when too much differs from the first of the old one."""
        if len(self.varied) > max(_FEW, len(self) // 20):
            self._family, self.varied = object(), set()


class Standing(NamedTuple):
    """What a run starts from. Immutable."""

    settled: Settlement
    open: Collection[str]
    """The other packages, in topological order: they are to be built, or depend on one that is."""


class Lineage:
    """The memory of one set of targets under one set of rules."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.settled = Settlement()
        self.version = 0
        """Rises whenever what it says may have changed: who looked and waited meanwhile looks again."""
        self.users = 0
        """How many are looking; while there are any, it is not forgotten."""
        self.touched_at = 0.0
        """When the artifacts were last noted as used, in seconds since the epoch."""
        self._doubtful: set[str] = set()
        """All names of the plan that are not settled are among them."""
        self._last: dict[str, tuple[str, str]] = {}
        """Key and output of each package's last success: of runs that overlap, any may end last."""

    def candidates(self, plan: Plan) -> set[str]:
        """Names that must be looked at; all others stand as they are."""
        if plan is self.plan:
            return set(self._doubtful)
        changed = plan.changed_since(self.plan)
        if plan.has_graph_of(self.plan):
            return self._doubtful.union(changed)
        unknown = plan.packages.keys() - self.settled.keys()
        return (self._doubtful & plan.packages.keys()).union(unknown, changed)

    def settled_in(self, plan: Plan) -> Settlement:
        """What is known of a plan's packages."""
        if plan.has_graph_of(self.plan) or self.settled.keys() <= plan.packages.keys():
            return self.settled
        return Settlement({name: entry for name, entry in self.settled.items() if name in plan.packages})

    def remember(self, plan: Plan, settled: Settlement, doubtful: Set[str]) -> None:
        self.version += 1
        self.plan, self.settled, self._doubtful = plan, settled, set(doubtful)

    def remember_nothing(self) -> None:
        self.version += 1
        self.plan, self.settled, self._doubtful = None, Settlement(), set()
        self._last.clear()

    def add(self, plan: Plan, fresh: Mapping[str, Settled], dependencies: Mapping[str, Mapping[str, str]]) -> None:
        """Take in what a run of `plan` has built or found, unless something else was learned meanwhile.

        `dependencies` has, by name, the closure ids that the key of each of them was made with.
        """
        if plan is not self.plan:
            return
        before, merged = self.settled, Settlement(self.settled)
        merged.update(fresh)
        merged.varied.update(fresh)
        sound = {
            name
            for name, entry in fresh.items()
            if self._last.get(name, (entry.key, entry.output_id)) == (entry.key, entry.output_id)
            and all(d in merged and merged[d].closure == closure for d, closure in dependencies[name].items())
        }
        moved = [name for name in fresh if name in before and before[name].closure != fresh[name].closure]
        for name in fresh.keys() - sound:
            del merged[name]
        merged.branch_off()
        self.version += 1
        self.settled = merged
        self._doubtful = self._doubtful.union(fresh, *(plan.dependents[name] for name in moved)) - sound

    def doubt(self, name: str, key: str, output: str) -> None:
        """There is a newer success of a package."""
        if self.plan is None or name not in self.plan.packages:
            return
        self._last[name] = key, output
        entry = self.settled.get(name)
        if entry is not None and (entry.key, entry.output_id) != (key, output):
            self.version += 1
            self._doubtful.add(name)

    def forget(self, outputs: Collection[str]) -> None:
        """These artifacts are gone."""
        self.version += 1
        self._doubtful.update(name for name, entry in self.settled.items() if entry.output_id in outputs)


class Lineages:
    def __init__(self) -> None:
        self._known: OrderedDict[object, Lineage] = OrderedDict()

    @contextmanager
    def looking(self, plan: Plan, rules: Rules) -> Iterator[Lineage]:
        """The lineage of a plan, which hears of all that becomes doubtful for as long as the block lasts."""
        lineage = self.of(plan, rules)
        lineage.users += 1
        try:
            yield lineage
        finally:
            lineage.users -= 1

    def of(self, plan: Plan, rules: Rules) -> Lineage:
        home = (plan.home, rules.basis)
        lineage = self._known.setdefault(home, Lineage())
        self._known.move_to_end(home)
        unused = [key for key, other in self._known.items() if not other.users and other is not lineage]
        for key in unused[: max(0, len(self._known) - KEPT)]:
            del self._known[key]
        return lineage

    def all(self) -> Collection[Lineage]:
        return self._known.values()

    def clear(self) -> None:
        """Forget everything; those who are looking look again."""
        for lineage in self._known.values():
            lineage.remember_nothing()


def above(plan: Plan, names: Collection[str]) -> set[str]:
    """`names` and everything that depends on them, directly or not."""
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(plan.dependents[name])
    return found


def settle(
    plan: Plan,
    settled: Mapping[str, Settled],
    candidates: Collection[str],
    rules: Rules,
    *,
    results: Mapping[str, KnownResult],
    usable: Callable[[str], bool],
    forced: Set[str] = frozenset(),
) -> tuple[Settlement, list[str]]:
    """Look at `candidates` and, as far as a change reaches, at what depends on them.

    `settled` are packages of the plan, and those of the plan that are not there are candidates. `results` are earlier
    successes by key, of all that are `above` the candidates; `usable` says whether an artifact is there. Returns all
    packages that are up to date, and the others in topological order. Pure but for `usable`.
    """
    current = Settlement(settled)
    open_: list[str] = []
    is_open: set[str] = set()
    queue = sorted(plan.index[name] for name in candidates)
    waiting = set(queue)
    while queue:
        position = heapq.heappop(queue)
        name = plan.names[position]
        package = plan.packages[name]
        before = current.get(name)
        entry = None
        if not (package.ignore or name in forced or any(d in is_open for d in package.depends)):
            entry = _look(package, current, rules, results, usable)
        if entry is None:
            current.pop(name, None)
            open_.append(name)
            is_open.add(name)
        elif before is None or before[1:] != entry[1:] or before.package is not package:
            current[name] = entry
        if current.get(name) is not before:
            current.varied.add(name)
        if entry is None or before is None or before.closure != entry.closure:
            for dependent in plan.dependents[name]:
                place = plan.index[dependent]
                if place not in waiting:
                    waiting.add(place)
                    heapq.heappush(queue, place)
    current.branch_off()
    return current, open_


def _look(
    package: Package,
    current: Mapping[str, Settled],
    rules: Rules,
    results: Mapping[str, KnownResult],
    usable: Callable[[str], bool],
) -> Settled | None:
    dependencies = {name: current[name].closure for name in package.depends}
    key = key_of(rules.parts(package, dependencies))
    known = results.get(key)
    if known is None or not usable(known.output_id):
        return None
    return Settled(package, key, closure_id(known.output_id, dependencies), known.output_id, known.build)
