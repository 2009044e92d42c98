"""What of a plan is up to date, and whether the artifacts that say so can be relied upon.

Invariant: what `standing` calls settled has an artifact that was there when it returned, and every artifact that
the other packages may use was verified in this life of the daemon. A damaged one is set aside and never used.
"""

from __future__ import annotations

import fnmatch
import platform
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from functools import partial

import structlog
import trio
from msgspec import Struct

from buildd.config import Config
from buildd.engine.prepare import Plan
from buildd.engine.uptodate import Lineage, Lineages, Rule, Rules, Settled, Standing, above, settle
from buildd.errors import is_shortage
from buildd.execute.environment import Environment
from buildd.model import Package, Strategy
from buildd.planner.graph import closure
from buildd.planner.keys import Inputs, key_of
from buildd.protocol import VerdictState
from buildd.store.artifacts import ArtifactStore
from buildd.store.journal import Journal
from buildd.store.runs import KnownResult, RunStore
from buildd.threads import in_thread

log = structlog.get_logger()

NAMED_OUTPUTS = 1000
"""Outputs of dependencies that are kept with a build; of a larger closure only the direct ones are."""
_AT_ONCE = 200
"""So many packages are looked at on trio's thread; more would hold it up, and go to another."""


class Verdict(Struct, frozen=True, kw_only=True):
    """Whether a package would be built now, and what decides it."""

    package: Package
    state: VerdictState
    key: str | None
    """None while it depends on a package that would be built."""
    known: KnownResult | None
    """The earlier result that answers it."""
    inputs: Inputs | None
    """None while it depends on a package that would be built, and for what is up to date or ignored."""
    partial: Inputs | None
    """The same without the dependencies that would be built."""
    pending: tuple[str, ...]
    """Direct dependencies that would be built."""


class Assessment(Struct, frozen=True, kw_only=True):
    plan: Plan
    verdicts: dict[str, Verdict]
    """In topological order."""


class Assessor:
    def __init__(
        self,
        config: Callable[[], Config],
        store: RunStore,
        artifacts: ArtifactStore,
        journal: Journal,
        environment: Callable[[Strategy], Environment],
    ) -> None:
        """`environment` tells what builds find around them, as far as a strategy takes it into account."""
        self._config = config
        self._store = store
        self._artifacts = artifacts
        self._journal = journal
        self._environment = environment
        self._lineages = Lineages()
        self._stuck: set[str] = set()
        """Damaged artifacts that cannot be set aside: they are there, and none the less gone."""

    # --- what becomes doubtful ----------------------------------------------------------------------------

    def forget(self, outputs: Collection[str]) -> None:
        """These artifacts are gone."""
        for lineage in self._lineages.all():
            lineage.forget(outputs)

    def forget_all(self) -> None:
        """The records that everything was known from are gone."""
        self._lineages.clear()

    def succeeded(self, package: str, key: str, output: str) -> None:
        """A package has a newer success."""
        self._stuck.discard(output)
        for lineage in self._lineages.all():
            lineage.doubt(package, key, output)

    async def usable(self, output: str) -> bool:
        """Verify an artifact before it is used; a damaged one is set aside."""
        why = "its files are not what its manifest says"
        try:
            verify = self._artifacts.verify_on_use
            if await in_thread(verify, output, trio.from_thread.check_cancelled):
                return self._artifacts.exists(output)  # it may have gone meanwhile
        except OSError as error:
            if is_shortage(error):
                log.warning("an artifact is used without being verified", output_id=output, error=str(error))
                return True
            why = f"it cannot be read: {error}"
        try:
            place = await in_thread(self._artifacts.set_aside, output)
        except OSError as error:
            self._stuck.add(output)
            log.error("a damaged artifact cannot be set aside", output_id=output, error=str(error))
        else:
            if place is not None:
                log.error("a damaged artifact is set aside; it will be built again", output_id=output, why=why)
                self._journal.emit(
                    "artifact_damaged", data={"output_id": output, "problems": [why], "kept": str(place)}
                )
        self.forget([output])
        return False

    # --- what stands --------------------------------------------------------------------------------------

    def rules(self, plan: Plan, strategy: Strategy | None) -> Rules:
        """How earlier results count for each repository of a plan; `strategy` is a run's own for all of them."""
        found: dict[str, Rule] = {}
        for repository in plan.repositories:
            own = strategy or self._strategy_of(repository)
            found[repository] = Rule(strategy=own, environment=self._environment(own))
        return Rules(repositories=found, architecture=platform.machine())

    def _strategy_of(self, repository: str) -> Strategy:
        cache = self._config().cache
        if repository in cache.strategies:
            return cache.strategies[repository]
        for pattern, strategy in cache.strategies.items():
            if fnmatch.fnmatchcase(repository, pattern):
                return strategy
        return cache.strategy

    def lineage(self, plan: Plan, rules: Rules) -> Lineage:
        return self._lineages.of(plan, rules)

    async def standing(
        self, plan: Plan, rules: Rules, *, forced: Set[str] = frozenset()
    ) -> tuple[Standing, dict[str, KnownResult]]:
        """What is up to date, and the earlier results that may yet answer the other packages.

        Raises DatabaseError.
        """
        vanished = await in_thread(self._artifacts.vanished)
        if vanished:
            self.forget(vanished)
        verified: set[str] = set()
        with self._lineages.looking(plan, rules) as lineage:
            while True:
                version = lineage.version
                standing, results = await self._look(plan, rules, lineage, forced)
                if lineage.version != version:
                    continue
                lineage.remember(plan, standing.settled, set(standing.open))
                version = lineage.version
                used = _used(plan, standing) - verified
                if used:
                    verified |= await in_thread(self._sound, used)
                for output in used - verified:
                    if await self.usable(output):
                        verified.add(output)
                if lineage.version == version:
                    return standing, results

    def _sound(self, outputs: Collection[str]) -> set[str]:
        """Artifacts that can be used, all in one go: what is wrong with the others is for `usable` to find out."""
        found = set()
        for output in outputs:
            with suppress(OSError):
                if self._artifacts.verify_on_use(output, trio.from_thread.check_cancelled):
                    found.add(output)
        return found

    async def _look(
        self, plan: Plan, rules: Rules, lineage: Lineage, forced: Set[str]
    ) -> tuple[Standing, dict[str, KnownResult]]:
        candidates, before = lineage.candidates(plan) | forced, lineage.settled_in(plan)
        if not candidates:
            return Standing(before, ()), {}
        wanted: dict[str, str | None] = {}
        for name in above(plan, candidates):
            package = plan.packages[name]
            strategy = rules.of(package).strategy
            if strategy != "none":
                wanted[name] = None if strategy == "aggressive" else package.repository
        results = await self._store.known_results(wanted) if wanted else {}
        work = partial(
            settle,
            plan,
            before,
            candidates,
            rules,
            results=results,
            usable=self._is_there,
            forced=forced,
        )
        settled, open_ = work() if len(wanted) <= _AT_ONCE else await in_thread(work)
        return Standing(settled, open_), results

    def _is_there(self, output: str) -> bool:
        return output not in self._stuck and self._artifacts.exists(output)

    async def assess(self, plan: Plan, rules: Rules) -> Assessment:
        """What a run of the plan would find now."""
        standing, _ = await self.standing(plan, rules)
        return await in_thread(_assessment, plan, rules, standing)


def _used(plan: Plan, standing: Standing) -> set[str]:
    """Outputs that the builds of the open packages would use."""
    ignored = above(plan, [name for name in standing.open if plan.packages[name].ignore])
    built = [name for name in standing.open if name not in ignored]
    return {standing.settled[name].output_id for name in closure(plan.graph, built) if name in standing.settled}


def _assessment(plan: Plan, rules: Rules, standing: Standing) -> Assessment:
    open_ = set(standing.open)
    verdicts: dict[str, Verdict] = {}
    for name, package in plan.packages.items():
        if name not in open_:
            verdicts[name] = _up_to_date(standing.settled[name])
            continue
        pending = tuple(d for d in package.depends if d in open_)
        known = {d: standing.settled[d].closure for d in package.depends if d not in open_}
        rule, origin = rules.of(package), plan.origin(package)
        inputs = Inputs(
            parts=rules.parts(package, known),
            outputs=_outputs(plan, name, standing.settled),
            environment=rule.environment.parts,
            strategy=rule.strategy,
            repository=package.repository,
            commit=origin.commit,
            root=origin.tree,
            path=package.path,
        )
        ignored = bool(package.ignore) or any(verdicts[d].state == "ignored" for d in pending)
        verdicts[name] = Verdict(
            package=package,
            state="ignored" if ignored else "build",
            key=None if pending else key_of(inputs.parts),
            known=None,
            inputs=None if pending else inputs,
            partial=inputs,
            pending=pending,
        )
    return Assessment(plan=plan, verdicts=verdicts)


def _up_to_date(entry: Settled) -> Verdict:
    return Verdict(
        package=entry.package,
        state="up_to_date",
        key=entry.key,
        known=KnownResult(key=entry.key, output_id=entry.output_id, build=entry.build),
        inputs=None,
        partial=None,
        pending=(),
    )


def _outputs(plan: Plan, name: str, settled: Mapping[str, Settled]) -> dict[str, str]:
    """Output ids of everything that a package needs and that is up to date, or of its direct dependencies."""
    direct = plan.graph[name]
    found: dict[str, str] = {}
    stack = list(direct)
    while stack and len(found) <= NAMED_OUTPUTS:
        other = stack.pop()
        if other not in found:
            if other in settled:
                found[other] = settled[other].output_id
            stack.extend(d for d in plan.graph[other] if d not in found)
    return found if len(found) <= NAMED_OUTPUTS else {d: found[d] for d in direct if d in found}
