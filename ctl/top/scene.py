"""What is known of the daemon while somebody watches it. A look brings news; pictures read the rest.

Everything that has an age is measured against the moment of the last look, not against the clock, so that a scene
that is kept stands still.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from buildd.protocol import BuildUse, DaemonStatus, ResourcesResult, RunView, Sample

HISTORY = 120
"""Samples that are kept for the curves."""
WINDOW_S = 3.0
"""Processor use is the mean over this long, or over one interval when that is longer: the daemon measures at its own
moments, so the difference between two looks close to each other is anything."""


class Row(NamedTuple):
    """A running build as it is shown."""

    use: BuildUse
    elapsed_s: float
    cpu: float
    """Processors in use; 1.0 is one of them."""
    run: int | None
    """The run's number; None until it is known."""
    line: str
    """The last line of output as the daemon gave it; empty without one."""


class Scene:
    def __init__(self, status: DaemonStatus, resources: ResourcesResult, at: float) -> None:
        self.history: deque[Sample] = deque(maxlen=HISTORY)
        self.rows: tuple[Row, ...] = ()
        self._marks: dict[str, deque[tuple[float, float]]] = {}
        """Processor time of each build at earlier moments."""
        self._numbers: dict[str, int | None] = {}
        """Number of each run that was asked for; None for one that the daemon does not know."""
        self._lines: dict[str, str] = {}
        self.take(status, resources, at)

    def take(self, status: DaemonStatus, resources: ResourcesResult, at: float) -> None:
        """Take in the answers of a look at time `at`."""
        self.status, self.resources, self.at = status, resources, at
        newest = self.history[-1].at if self.history else -math.inf
        if resources.samples and resources.samples[-1].at < newest:  # somebody has set the clock back
            self.history.clear()
            newest = -math.inf
        self.history.extend(sample for sample in resources.samples if sample.at > newest)
        builds = {use.build for use in resources.builds}
        runs = {use.run for use in resources.builds}
        self._marks = {use.build: self._measured(use) for use in resources.builds}
        self._lines = {build: line for build, line in self._lines.items() if build in builds}
        self._numbers = {run: number for run, number in self._numbers.items() if run in runs}
        self._arrange()

    def _measured(self, use: BuildUse) -> deque[tuple[float, float]]:
        marks = self._marks.get(use.build) or deque([(use.started_at, 0.0)])
        marks.append((self.at, use.cpu_s))
        while len(marks) > 2 and marks[0][0] < self.at - WINDOW_S:
            marks.popleft()
        return marks

    def take_run(self, run: RunView) -> None:
        """Take in an answer of run.status, with the last lines of its builds where it has them."""
        self._numbers[run.id] = run.number
        self._lines |= {p.build_id: p.last_line for p in run.packages if p.build_id and p.last_line}
        self._arrange()

    def forget_run(self, run: str) -> None:
        """The daemon does not know this run: there is no point in asking again."""
        self._numbers[run] = None

    def _arrange(self) -> None:
        self.rows = tuple(
            Row(
                use=use,
                elapsed_s=max(0.0, self.at - use.started_at),
                cpu=_rate(self._marks[use.build]),
                run=self._numbers.get(use.run),
                line=self._lines.get(use.build, ""),
            )
            for use in self.resources.builds
        )

    @property
    def now(self) -> Sample | None:
        """The newest sample; None from a daemon that has not taken one yet."""
        return self.history[-1] if self.history else None

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of the runs whose builds are running."""
        return tuple(dict.fromkeys(use.run for use in self.resources.builds))

    @property
    def unknown_runs(self) -> tuple[str, ...]:
        """Those of them that were not asked for yet."""
        return tuple(run for run in self.runs if run not in self._numbers)

    def samples_wanted(self, at: float) -> int:
        """How many samples a look at time `at` has to ask for, so that none is missing."""
        if not self.history or self.resources.interval_s <= 0:
            return HISTORY
        missing = math.ceil((at - self.history[-1].at) / self.resources.interval_s)
        return max(1, min(HISTORY, 1 + missing))


def _rate(marks: Iterable[tuple[float, float]]) -> float:
    (first, before), *_, (last, after) = marks
    return max(0.0, after - before) / (last - first) if last > first else 0.0
