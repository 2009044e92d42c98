"""One unfinished run in memory: its record, its plan and progress, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from contextlib import AsyncExitStack

import msgspec
import trio

from buildd.engine.active import ActiveBuild
from buildd.engine.prepare import Places, Plan
from buildd.engine.progress import PackageRun, Progress
from buildd.engine.uptodate import Lineage, Rules, Settlement, Standing
from buildd.model import BuildRecord
from buildd.planner.states import Building, RunState, advance
from buildd.store.runs import KnownResult, RunRecord


class Run:
    """Changed by the engine only, in trio's thread."""

    def __init__(
        self, record: RunRecord, *, places: Places | None = None, targets: Sequence[str] | None = None
    ) -> None:
        """`targets` are those of the request with the credentials that the record leaves out."""
        self.record = record
        self.targets = record.request.targets if targets is None else targets
        self.places = places
        """Where an earlier life of the daemon found the sources; None looks for them."""
        self.resumed = False
        """Whether an earlier life of the daemon began it."""
        self.interrupted: dict[str, BuildRecord] = {}
        """Builds by id that the end of an earlier life cut short; the database may not know yet."""
        self.made: Set[str] = frozenset()
        """Output ids of its successes in earlier lives of the daemon, which it will take over."""
        self.plan: Plan | None = None
        self.rules: Rules | None = None
        self.lineage: Lineage | None = None
        self.standing = Standing(Settlement(), ())
        self.progress: Progress | None = None
        self.results: dict[str, KnownResult] = {}
        """Earlier successes by key, of packages that are not settled."""
        self.verified: dict[str, str] = {}
        """Output ids of packages that are built again to be compared with what they left behind, by name."""
        self.crcs: dict[str, int] = {}
        """CRC-32 over the listing, by tree id, of packages that are not settled."""
        self.earlier: dict[str, BuildRecord] = {}
        """Successes of earlier lives of the daemon in this run, by package: taken over if the key is still equal."""
        self.attempts: Counter[str] = Counter()
        """Attempts at each package so far, in earlier lives of the daemon too, and those that the run shared."""
        self.retries: Counter[str] = Counter()
        """Those of them that failed and were to be tried again."""
        self.builds: dict[str, ActiveBuild] = {}
        """Running builds by package."""
        self.held = AsyncExitStack()
        """Clones in use."""
        self.preparing = trio.CancelScope()
        self.settled = trio.Event()
        """Set when nothing is queued or running any more."""
        self.finished = trio.Event()
        """Set when the run has a final state, on disk."""
        self._outputs: tuple[int, int, Set[str]] | None = None
        """The outputs of a standing and a state of the progress, once they were asked for."""
        self._news: list[tuple[str, str, KnownResult]] = []
        """Package, repository and result of what was built since the run began, until it has a plan."""

    @property
    def id(self) -> str:
        return self.record.id

    def forces(self, package: str) -> bool:
        """Whether a package is built even when it has a result."""
        request = self.record.request
        return request.force or package in request.force_packages or package in self.verified

    def will_hold(self, named: Callable[[Sequence[str]], Set[str]]) -> Set[str]:
        """Repositories whose clones it needs until it has a plan, held or not; `named` are those that targets name."""
        if self.plan is not None:
            return frozenset()
        if self.places is None:
            return named(self.targets)
        return {place.repository for place in (*self.places.targets, *self.places.foreign.values())}

    def learn(self, package: str, repository: str, known: KnownResult) -> None:
        """A package of a repository was built while this run goes on: its result may answer this run too."""
        if self.plan is None or self.rules is None:
            self._news.append((package, repository, known))
            return
        mine = self.plan.packages.get(package)
        if mine is None:
            return
        strategy = self.rules.strategy(mine)
        if strategy == "aggressive" or (strategy == "conservative" and mine.repository == repository):
            self.results.setdefault(known.key, known)

    def learn_news(self) -> None:
        """Take in what was built before there was a plan: it may be missing in the records when they are read."""
        news, self._news = self._news, []
        for package, repository, known in news:
            self.learn(package, repository, known)

    def uses(self, output: str) -> bool:
        """Whether an artifact answers a package of this run, or will, so that another may still need it."""
        changes = self.progress.changes if self.progress is not None else 0
        if self._outputs is None or self._outputs[:2] != (id(self.standing), changes):
            packages = self.progress.packages.values() if self.progress is not None else ()
            outputs = {entry.output_id for entry in self.standing.settled.values()} | set(self.verified.values())
            outputs |= self.made
            self._outputs = id(self.standing), changes, outputs | {p.output_id for p in packages if p.output_id}
        return output in self._outputs[2]

    def advance(self, state: RunState) -> RunRecord:
        """Change the run's state. Raises IllegalTransition."""
        self.record = msgspec.structs.replace(self.record, state=advance(self.record.state, state))
        return self.record

    def enter_wave(self) -> Building | None:
        """The new state when the wave has changed, else None."""
        assert self.progress is not None
        state = self.record.state
        wave = self.progress.wave
        if not isinstance(state, Building) or state.wave == wave:
            return None
        return Building(wave=wave, waves=self.progress.waves)


def note_build(package: PackageRun, build: BuildRecord) -> None:
    """Take over what a build's record says into the package's view."""
    package.build_id = build.id
    package.output_id = build.output_id
    package.artifact = build.artifact
    package.log_bytes = build.log_bytes
    package.started_at = build.started_at
    package.duration_s = build.completed_at - build.started_at if build.completed_at is not None else None
    package.phase = build.phases[-1].name if build.phases else None
