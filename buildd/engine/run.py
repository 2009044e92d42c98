"""One unfinished run in memory: its record, its progress, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec
import trio

from buildd.engine.progress import PackageRun, Progress
from buildd.execute.build import BuildControl
from buildd.model import BuildRecord, Package
from buildd.planner.states import Building, RunState, advance
from buildd.store.runs import KnownResult, RunRecord


class Run:
    """Changed by the engine only, in trio's thread."""

    def __init__(
        self, record: RunRecord, *, plan: Sequence[Package] | None = None, targets: Sequence[str] | None = None
    ) -> None:
        """`targets` are those of the request with the credentials that the record leaves out."""
        self.record = record
        self.targets = record.request.targets if targets is None else targets
        self.plan = plan
        """The plan of an earlier life of the daemon; None discovers and plans."""
        self.progress: Progress | None = None
        self.results: dict[str, KnownResult] = {}
        """Earlier successes by key."""
        self.earlier: dict[str, BuildRecord] = {}
        """Successes of earlier lives of the daemon in this run, by package: taken over if the key is still equal."""
        self.attempts: Counter[str] = Counter()
        """Builds of each package in this run so far, in earlier lives of the daemon too."""
        self.builds: dict[str, BuildControl] = {}
        """Running builds by package."""
        self.held = AsyncExitStack()
        """Clones in use."""
        self.preparing = trio.CancelScope()
        self.settled = trio.Event()
        """Set when nothing is queued or running any more."""
        self.finished = trio.Event()
        """Set when the run has a final state, on disk."""

    @property
    def id(self) -> str:
        return self.record.id

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
