"""What a run starts from: its sources, its plan, what of it is up to date, and what is known about the rest.

Nothing is changed here but the `Run` that is being prepared; the engine makes the transitions.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Set
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import structlog
import trio
from msgspec import Struct

from buildd.engine.assess import Assessor
from buildd.engine.prepare import Places, Plan, Planner
from buildd.engine.run import Run
from buildd.engine.targets import parse_target
from buildd.engine.uptodate import Rules, Settlement, Standing
from buildd.errors import NotFound, Refused
from buildd.model import BuildRecord
from buildd.repos.trees import GitStore, crc32
from buildd.store.database import DatabaseError, Statement
from buildd.store.runs import KnownResult, RunStore, save_places, save_source
from buildd.threads import in_thread

log = structlog.get_logger()
T = TypeVar("T")

_PATIENCE_S = 10.0
"""A damaged database is renewed within seconds; after this a run does without what cannot be read."""
_LOOK_AGAIN_S = 0.5


class Outset(Struct, frozen=True, kw_only=True):
    plan: Plan
    durations: dict[str, float]
    """Expected seconds of packages that may be built, where there is a record."""
    earlier: tuple[BuildRecord, ...]
    """Builds of this run in earlier lives of the daemon that still count, oldest first."""
    statements: tuple[Statement, ...]
    """What must be on disk before the first build starts."""


class Preparer:
    def __init__(self, planner: Planner, assessor: Assessor, store: RunStore) -> None:
        self._planner = planner
        self._assessor = assessor
        self._store = store

    async def find_sources(self, run: Run) -> bool:
        """Find the revisions that a run builds; True when they are those of an earlier life. Raises BuilddError."""
        request = run.record.request
        if run.places is not None and await self._planner.hold(run.places, run.held):
            return True
        located = await self._planner.locate(
            [parse_target(text) for text in run.targets],
            refresh=request.refresh,
            held=run.held,
            worktree=request.worktree,
        )
        run.places = Places(targets=tuple(located), foreign={})
        return False

    async def prepare(self, run: Run, *, same_sources: bool) -> Outset:
        """Plan, and find out what is up to date. Raises BuilddError."""
        assert run.places is not None
        request = run.record.request
        plan = await self._planner.plan(
            [parse_target(text) for text in run.targets],
            run.places.targets,
            refresh=request.refresh,
            held=run.held,
            foreign=run.places.foreign,
        )
        run.plan, run.places = plan, plan.places
        rules = self._assessor.rules(plan, request.strategy)
        run.rules = rules = rules.comparing() if request.verify else rules
        run.learn_news()
        earlier = await self._earlier(run, same_sources=same_sources)
        built = {build.package for build in earlier} & plan.packages.keys()
        forced = await self._forced(run, plan, rules) | built  # what this run has built is no news from elsewhere
        run.standing, results = await self._standing(plan, rules, forced)
        run.lineage = self._assessor.lineage(plan, rules)
        run.results = {**results, **run.results}  # with what was built meanwhile
        durations: dict[str, float] = {}
        statements: list[Statement] = []
        if run.standing.open:
            durations = await _patiently(lambda: self._store.history(run.standing.open), {})
            statements = [save_places(run.id, plan.places), *await self._fingerprint(run, plan)]
        return Outset(plan=plan, durations=durations, earlier=tuple(earlier), statements=tuple(statements))

    async def _earlier(self, run: Run, *, same_sources: bool) -> list[BuildRecord]:
        """The builds of a run in earlier lives of the daemon, as far as they count."""
        if not run.resumed:
            return []
        found: list[BuildRecord] = []
        found = await _patiently(lambda: self._store.builds_of_run(run.id), found)
        found = [run.interrupted.get(build.id, build) for build in found]
        if same_sources:
            return found
        # what failed may have been mended: it is built again
        return [build for build in found if build.state == "success" or build.reason == "interrupted"]

    async def _standing(self, plan: Plan, rules: Rules, forced: Set[str]) -> tuple[Standing, dict[str, KnownResult]]:
        nothing: tuple[Standing, dict[str, KnownResult]] = (Standing(Settlement(), tuple(plan.packages)), {})
        return await _patiently(lambda: self._assessor.standing(plan, rules, forced=forced), nothing)

    async def _forced(self, run: Run, plan: Plan, rules: Rules) -> Set[str]:
        """The packages that are built whatever is known. Raises NotFound, Refused."""
        request = run.record.request
        if request.verify:
            run.verified = await self._to_verify(plan, rules)
            return run.verified.keys()
        if request.force or request.fetch_only:
            return plan.packages.keys()
        unknown = [name for name in request.force_packages if name not in plan.packages]
        if unknown:
            raise NotFound(
                f"the package {unknown[0]}, which is to be forced, is not in the plan", hint="`buildctl plan` shows it"
            )
        return frozenset(request.force_packages)

    async def _to_verify(self, plan: Plan, rules: Rules) -> dict[str, str]:
        """The packages that the targets name, with their present outputs. Raises Refused when one has none."""
        standing, _ = await self._standing(plan, rules, frozenset())
        ignored = [name for name in plan.wanted if plan.packages[name].ignore]
        if ignored:
            raise Refused(f"{ignored[0]} is not built here: {plan.packages[ignored[0]].ignore}")
        missing = [name for name in plan.wanted if name not in standing.settled]
        if missing:
            raise Refused(
                f"{missing[0]} is not built from its present sources: there is nothing to compare with",
                hint="`buildctl start` builds it first",
            )
        return {name: standing.settled[name].output_id for name in plan.wanted}

    async def _fingerprint(self, run: Run, plan: Plan) -> list[Statement]:
        """Find the CRC of every source that may be built; the statements that keep the listings of new ones."""
        stores = {plan.packages[name].tree: plan.packages[name].store for name in run.standing.open}
        run.crcs = await _patiently(lambda: self._store.crcs(stores), {})
        fresh = {tree: store for tree, store in stores.items() if tree not in run.crcs}

        def read() -> list[Statement]:
            statements = []
            with ExitStack() as opened:
                git = {store: opened.enter_context(GitStore(Path(store))) for store in set(fresh.values())}
                for tree, store in fresh.items():
                    trio.from_thread.check_cancelled()
                    listing = git[store].listing(tree)
                    run.crcs[tree] = crc32(listing)
                    files = [(os.fsencode(e.path), e.mode, bytes.fromhex(e.id)) for e in listing]
                    statements.append(save_source(tree, run.crcs[tree], files))
            return statements

        return await in_thread(read) if fresh else []


async def _patiently(query: Callable[[], Awaitable[T]], without: T) -> T:
    """The answer of the records, or `without` when they cannot be read for long: builds go on all the same."""
    deadline = trio.current_time() + _PATIENCE_S
    while True:
        try:
            return await query()
        except DatabaseError as error:
            if trio.current_time() >= deadline:
                log.error("the records cannot be read; the run goes on without them", error=error.message)
                return without
        await trio.sleep(_LOOK_AGAIN_S)
