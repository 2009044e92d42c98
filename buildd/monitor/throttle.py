"""Fewer workers on a machine that is short of processors or memory, as dsynth does it.

Three things count, and the one that leaves the fewest workers decides: the load per processor, the swap space in
use, and the memory that is available. Up to a first threshold each leaves all workers, from a second one on a
quarter of them, and in between it is a line. Fewer are taken at once; more come back one at a time, each with a new
look, since the load follows what it measures by a minute.

On the thresholds. Load: builds themselves make it, up to workers times jobs, so that one per processor is what one
wants and only half as much again is too much. Memory: what is available is mostly the cache of files that builds
read again and again; below a tenth of the memory they begin to compete for it, and at three hundredths the kernel is
busy with finding pages. Swap: Linux moves there what nobody uses, for good, and that is no reason to wait; only
what would not fit into the memory that is available counts.

Invariants: at least one worker is left; running builds are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import structlog

from buildd.config import Config, ThrottleConfig
from buildd.monitor.gate import Gate
from buildd.monitor.readings import Machine
from buildd.monitor.sampler import Emit, Reading
from buildd.protocol import Throttle

log = structlog.get_logger()

LEAST_SHARE = 0.25
"""Of the workers, left at the worst."""
TELL_EVERY = 12
"""Looks from one report to the next, at least: a minute at the default interval."""


class Strain(NamedTuple):
    share: float
    """Of the workers that it leaves."""
    reason: str


def share_left(value: float, begin: float, end: float) -> float:
    """1 up to `begin`, LEAST_SHARE from `end` on, a line between; a step at `begin` when `end` is not beyond it."""
    if value <= begin:
        return 1.0
    if value >= end:
        return LEAST_SHARE
    return 1.0 - (1.0 - LEAST_SHARE) * (value - begin) / (end - begin)


def strains(machine: Machine, config: ThrottleConfig) -> Iterator[Strain]:
    """What each thing that counts leaves of the workers, and how to say so."""
    yield Strain(
        share_left(machine.load_1m / machine.processors, config.load_from, config.load_to),
        f"the load is {machine.load_1m:.1f} on {machine.processors} processors",
    )
    if machine.swap_total_bytes:
        needed = max(0, machine.swap_used_bytes - machine.memory_available_bytes)
        per_cent = 100 * needed / machine.swap_total_bytes
        yield Strain(
            share_left(per_cent, config.swap_from, config.swap_to),
            f"{per_cent:.0f} % of the swap space is in use for want of memory",
        )
    if machine.memory_total_bytes:
        per_cent = 100 * machine.memory_available_bytes / machine.memory_total_bytes
        yield Strain(
            share_left(-per_cent, -config.memory_from, -config.memory_to),
            f"only {per_cent:.0f} % of the memory is available",
        )


def next_throttle(before: Throttle, machine: Machine, total: int, config: ThrottleConfig) -> Throttle:
    """How many of `total` workers may have a build now, when so many might `before`."""
    if not config.enabled:
        return Throttle(workers=total, total=total)
    worst = min(strains(machine, config))
    goal = max(1, int(total * worst.share + 0.5))
    now = min(before.workers, total) if before.reason else total
    if goal <= now:
        return Throttle(workers=goal, total=total, reason=worst.reason if goal < total else "")
    if now + 1 >= total:
        return Throttle(workers=total, total=total)
    reason = worst.reason if goal < total else "the machine has recovered, and workers come back one by one"
    return Throttle(workers=now + 1, total=total, reason=reason)


class Throttler:
    def __init__(self, *, config: Callable[[], Config], gate: Gate, emit: Emit, changed: Callable[[], None]) -> None:
        """`changed` is called when more builds may start."""
        self._config = config
        self._gate = gate
        self._emit = emit
        self._changed = changed
        self._told = gate.throttle
        self._quiet = 0
        """Looks for which nothing more is reported."""

    async def look(self, reading: Reading) -> None:
        config = self._config()
        before = self._gate.throttle
        throttle = next_throttle(before, reading.machine, config.workers.max_concurrent_builds, config.throttle)
        self._gate.throttle = throttle
        self._tell(throttle)
        if throttle.workers > before.workers:
            self._changed()

    def _tell(self, throttle: Throttle) -> None:
        """Report a change, unless another one was reported shortly before: then later, if it still is one."""
        self._quiet = max(0, self._quiet - 1)
        if self._quiet or (throttle.workers, bool(throttle.reason)) == (self._told.workers, bool(self._told.reason)):
            return
        data = {"workers": throttle.workers, "total": throttle.total, "reason": throttle.reason}
        if throttle.reason or self._told.reason:
            log.info("workers are throttled" if throttle.reason else "workers are not throttled any more", **data)
            self._emit("throttled" if throttle.reason else "unthrottled", data=data)
            self._quiet = TELL_EVERY
        self._told = throttle
