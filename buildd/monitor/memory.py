"""The watch over the daemon's own memory: what is too much, whether it stays, and what it consists of.

The baseline is what the daemon uses when it has settled after its start. When it uses `monitor.memory_growth` more,
that is said, cyclic garbage is collected and the C library gives back what is free. If it is still too much a while
later, the daemon leaks, or so it seems: it is said again, `status` is degraded, and a profile is written. What
allocated the memory is in it when allocations were traced; if they were not, they are from then on, for a while.

Invariant: tracing, which slows everything down, ends with the profile unless the configuration asks for it.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from buildd import heap
from buildd.config import Config
from buildd.monitor import profile
from buildd.monitor.sampler import Emit, Reading
from buildd.monitor.space import in_units
from buildd.protocol import MemoryWatch
from buildd.threads import in_thread

log = structlog.get_logger()

STEADY = 12
"""Looks over which memory must be steady to be the baseline, and must stay too large to be a leak: a minute."""
_STEADY_BYTES = 8 << 20
_SETTLED_AT_LAST = 60
"""Looks after which the least that was seen lately is the baseline, steady or not."""
_TRACE = 60
"""Looks for which allocations are traced before the profile: five minutes."""
_BACK = 0.9
"""Of the growth: below this it is over."""

Finding = Literal["settled", "grown", "leak", "recovered"]


class Course:
    """What a row of measurements means. Pure."""

    def __init__(self) -> None:
        self.baseline = 0
        self.peak = 0
        self.warnings = 0
        self.leaking = False
        self._recent: deque[int] = deque(maxlen=STEADY)
        self._looks = 0
        self._grown_for: int | None = None
        """Looks since memory was found to have grown; None while it has not."""
        self._next = 0
        """While it leaks: so much is worth another report."""

    def add(self, resident: int, growth: int) -> Finding | None:
        """The next measurement; `growth` is what is too much above the baseline, 0 for nothing."""
        growth = growth or sys.maxsize
        self._looks += 1
        self.peak = max(self.peak, resident)
        if not self.baseline:
            return self._settle(resident)
        if self._grown_for is None:
            return self._grow() if resident > self.baseline + growth else None
        if resident <= self.baseline + _BACK * growth:
            self._grown_for, self.leaking = None, False
            return "recovered"
        self._grown_for += 1
        if self._grown_for == STEADY or (self.leaking and resident > self._next):
            if self.leaking:
                self.warnings += 1
            self.leaking, self._next = True, resident + growth
            return "leak"
        return None

    def _settle(self, resident: int) -> Finding | None:
        self._recent.append(resident)
        steady = len(self._recent) == STEADY and max(self._recent) - min(self._recent) <= _STEADY_BYTES
        if not steady and self._looks < _SETTLED_AT_LAST:
            return None
        self.baseline = min(self._recent)
        return "settled"

    def _grow(self) -> Finding:
        self._grown_for = 0
        self.warnings += 1
        return "grown"


class MemoryGuard:
    def __init__(self, *, config: Callable[[], Config], emit: Emit, profiles: Path) -> None:
        """`profiles` is the directory for profiles; it need not exist."""
        self._config = config
        self._emit = emit
        self._profiles = profiles
        self._course = Course()
        self._profile = ""
        self._profile_in: int | None = None
        """Looks until the profile is written; None when none is to be."""

    @property
    def seen(self) -> MemoryWatch:
        course = self._course
        return MemoryWatch(
            baseline_bytes=course.baseline, peak_bytes=course.peak, warnings=course.warnings, profile=self._profile
        )

    @property
    def trouble(self) -> str | None:
        """What is wrong with the memory, in words; None while nothing is."""
        if not self._course.leaking:
            return None
        if self._profile_in is not None:
            where = "a profile follows"
        else:
            where = f"see {self._profile}" if self._profile else "no profile could be written"
        return f"the daemon's memory has grown far above {in_units(self._course.baseline)} and stays there: {where}"

    async def look(self, reading: Reading) -> None:
        resident = reading.sample.rss_bytes
        finding = self._course.add(resident, self._config().monitor.memory_growth)
        if self._config().monitor.trace_memory:
            profile.trace()
        elif self._profile_in is None:
            profile.trace_no_more()
        if finding == "settled":
            log.debug("memory has settled", resident_bytes=resident)
        elif finding == "grown":
            await self._relieve(resident)
        elif finding == "leak":
            self._report_leak(resident)
        elif finding == "recovered":
            self._profile_in = None
            log.info("memory is well again", resident_bytes=resident)
            self._emit("memory_recovered", data=self._data(resident))
        if self._profile_in is not None:
            self._profile_in -= 1
            if self._profile_in < 0:
                self._profile_in = None
                await self._write_profile(resident)

    def _data(self, resident: int) -> dict[str, int]:
        return {"rss_bytes": resident, "baseline_bytes": self._course.baseline}

    async def _relieve(self, resident: int) -> None:
        # on this thread: elsewhere it would hold up this one all the same, and finalizers belong here
        garbage = gc.collect()
        await in_thread(heap.give_back)
        log.warning("memory has grown; what was free is given back", garbage=garbage, **self._data(resident))
        self._emit("memory_warning", data=self._data(resident))

    def _report_leak(self, resident: int) -> None:
        log.warning("memory stays far above the baseline: the daemon leaks, or so it seems", **self._data(resident))
        self._emit("memory_leak", data=self._data(resident))
        if self._profile_in is None:
            self._profile_in = 0 if profile.is_tracing() else _TRACE
            profile.trace()

    async def _write_profile(self, resident: int) -> None:
        head = (
            f"resident: {in_units(resident)}, {in_units(self._course.baseline)} when the daemon had settled, "
            f"{in_units(self._course.peak)} at most"
        )
        try:
            path = await in_thread(partial(profile.write, self._profiles, head), abandon_on_cancel=True)
        except OSError as error:
            log.warning("a profile of the memory cannot be written", error=str(error))
            return
        self._profile = str(path)
        log.warning("a profile of the memory was written", path=self._profile)
        self._emit("memory_profile", data={**self._data(resident), "path": self._profile})
