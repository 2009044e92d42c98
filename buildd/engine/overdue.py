"""Builds that should have ended long ago: over their time limit, and still not taken down.

The limit itself is kept by the session of a build, so this tells of the daemon's own work: a thread that hangs on a
disk, a process that cannot be killed, a scope that does not close. Nothing is done about it but to say so, since
what could be done has been tried.

Invariant: each such build is reported once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from buildd.config import Config
from buildd.engine.active import ActiveBuild
from buildd.execute.limits import session_limits
from buildd.monitor.sampler import Emit, Reading

log = structlog.get_logger()


class Overdue:
    def __init__(
        self, *, config: Callable[[], Config], active: Callable[[], Sequence[ActiveBuild]], emit: Emit
    ) -> None:
        self._config = config
        self._active = active
        self._emit = emit
        self._stuck: dict[str, str] = {}
        """What is said of each, by the build's id."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Of each build that is overdue now, in words."""
        return tuple(self._stuck.values())

    async def look(self, reading: Reading) -> None:
        self.check(time.monotonic())

    def check(self, now: float) -> None:
        """Report those that have become overdue; forget those that have ended. `now` is time.monotonic()'s."""
        stuck: dict[str, str] = {}
        for active in self._active():
            limit = self._limit(active)
            over = now - active.began - limit
            if not limit or over <= self._config().monitor.stuck_after:
                continue
            build, phase = active.build, active.phase or "before the first phase"
            told = self._stuck.get(build.id)
            if told is None:
                told = f"build {build.id} of {build.package} does not end: its time limit was {limit:g} s ({phase})"
                log.warning("a build does not end", build=build.id, package=build.package, phase=phase, limit_s=limit)
                self._emit(
                    "build_stuck",
                    run=build.run,
                    build=build.id,
                    package=build.package,
                    data={"phase": active.phase, "limit_s": limit, "over_s": round(over, 3)},
                )
            stuck[build.id] = told
        self._stuck = stuck

    def _limit(self, active: ActiveBuild) -> float:
        """Seconds that a build may take; 0 for no limit."""
        _, package = active.members[0]
        own, most = package.package.limits, self._config().limits
        return float(session_limits(own, most, started=0.0, spent=lambda phase: 0.0).timeout)
