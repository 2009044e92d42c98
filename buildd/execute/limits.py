"""The limits of a build: which ones count for it and for each of its phases, and whether they hold.

A recipe's limit counts where it is smaller than the configuration's. Those of a phase count from the moment the
phase begins, and what the builder itself does in a phase is part of it.

Invariant: a limit that is hit is named by the key that set it, and the limits of a phase end nothing but that
phase: neither its time nor its silence counts in the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from msgspec import Struct

from buildd.config import LimitsConfig
from buildd.errors import BuildFailure
from buildd.execute.diskwatch import DiskBounds, DiskWatch
from buildd.execute.meter import Bounds, Meter, Reading, Use, Verdict
from buildd.execute.output_pump import LAST_BYTES, OutputPump
from buildd.model import Limits, PhaseLimits

TICK_S = 0.5
_ALERT_TICK_S = 0.1
_NEAR = 0.25
"""Part of a limit from which on looks are closer together: memory and processes can double between two of them."""


class Bound(Struct, frozen=True):
    """A number of seconds, and the key of the recipe or the configuration that set it; 0 is no limit."""

    seconds: float
    key: str


class PhaseBounds(Struct, frozen=True, kw_only=True):
    """What counts in one phase, beside the bounds of the build; None sets none."""

    timeout: Bound | None = None
    silence: Bound | None = None
    """Takes the place of the build's."""
    spent: float = 0.0
    """Seconds that the phase has taken already, when a session goes on with it."""


class SessionLimits(Struct, frozen=True, kw_only=True):
    """Bounds watched while a session runs; 0 is no limit."""

    deadline: float
    """On time.monotonic()'s clock; infinite without a limit."""
    timeout: float
    silence: float
    log: int
    memory: int
    cpu: float = 0.0
    pids: int = 0
    disk: int = 0
    files: int = 0
    open_files: int = 0
    phases: dict[str, PhaseBounds] = {}

    @property
    def of_processes(self) -> Bounds:
        return Bounds(memory=self.memory, pids=self.pids)

    @property
    def of_disk(self) -> DiskBounds:
        return DiskBounds(bytes=self.disk, files=self.files)


def session_limits(own: Limits, most: LimitsConfig, *, started: float, spent: Callable[[str], float]) -> SessionLimits:
    """The recipe's limits, none above the configuration's.

    `started` is when the build was, on time.monotonic()'s clock; `spent` gives the seconds that a phase has taken.
    """
    timeout = _capped(own.timeout, most.timeout)
    return SessionLimits(
        deadline=started + timeout if timeout else math.inf,
        timeout=timeout,
        silence=_capped(own.silence, most.silence),
        log=int(_capped(own.log, most.log)),
        memory=int(_capped(own.memory, most.memory)),
        cpu=_capped(own.cpu, most.cpu),
        pids=int(_capped(own.pids, most.pids)),
        disk=int(_capped(own.disk, most.disk)),
        files=int(_capped(own.files, most.files)),
        open_files=int(_capped(own.open_files, most.open_files)),
        phases={phase: phase_bounds(phase, limits, most, spent(phase)) for phase, limits in own.phases.items()},
    )


def phase_bounds(phase: str, own: PhaseLimits, most: LimitsConfig, spent: float = 0.0) -> PhaseBounds:
    """The recipe's limits of one phase, none above the configuration's."""
    return PhaseBounds(
        timeout=_phase_bound(phase, "timeout", own.timeout, most.timeout),
        silence=_phase_bound(phase, "silence", own.silence, most.silence),
        spent=spent,
    )


def _phase_bound(phase: str, name: str, own: float | None, most: float) -> Bound | None:
    if own is None:
        return None
    counts = _capped(own, most)
    return Bound(counts, f"limits.phases.{phase}.{name}" if counts == own else f"limits.{name}")


def _capped(own: float | None, most: float) -> float:
    """A recipe's limit under the configuration's; 0 is none, None takes the configuration's."""
    if own is None or (most and not own):
        return most
    return min(own, most) if most else own


def took_too_long(bound: Bound, phase: str | None = None) -> Verdict:
    what = f"phase {phase}" if phase else "it"
    return "timeout", f"{what} took longer than {bound.seconds:g} s ({bound.key})"


def _was_silent(bound: Bound, phase: str | None) -> Verdict:
    where = f" in phase {phase}" if phase else ""
    return "silent", f"no output for {bound.seconds:g} s{where} ({bound.key})"


class Watch:
    """The limits of a session, and whether they hold. All times are time.monotonic()'s."""

    def __init__(self, limits: SessionLimits, meter: Meter, disk: DiskWatch, output: OutputPump, use: Use) -> None:
        """`use` is told what each look finds."""
        self._limits = limits
        self._meter = meter
        self._disk = disk
        self._output = output
        self._use = use
        self._log_size = output.size
        self._last_output = time.monotonic()
        self._phase: str | None = None
        self._phase_deadline = math.inf
        self._quiet = Bound(limits.silence, "limits.silence")
        self.tick_s = _ALERT_TICK_S
        """Until the next look: soon where processes or memory are on their way to a limit."""

    def enter(self, phase: str) -> None:
        """A phase has begun: its own limits count from now on."""
        bounds = self._limits.phases.get(phase, PhaseBounds())
        self._settle(bounds.silence)
        self._phase = phase
        if bounds.timeout is not None and bounds.timeout.seconds:
            self._phase_deadline = time.monotonic() + bounds.timeout.seconds - bounds.spent

    def leave(self) -> None:
        """The phase has ended, and its limits with it."""
        self._settle(None)

    def _settle(self, silence: Bound | None) -> None:
        """Neither the time nor the silence of one phase counts in the next."""
        self._phase, self._phase_deadline = None, math.inf
        self._quiet = silence or Bound(self._limits.silence, "limits.silence")
        self._last_output = time.monotonic()

    @property
    def breaks_at(self) -> float:
        """When a limit will be broken if nothing happens; infinite if none would."""
        quiet_until = self._last_output + self._quiet.seconds if self._quiet.seconds else math.inf
        return min(self._limits.deadline, self._phase_deadline, quiet_until)

    def look(self) -> Verdict | None:
        """The limit that is broken, and how; None while all hold. Reports must have been heard before."""
        limits, now = self._limits, time.monotonic()
        self._hear()
        silent = self._is_silent(now)
        reading = self._read()
        if self._phase is not None and self._phase_deadline <= min(now, limits.deadline):
            bound = limits.phases[self._phase].timeout
            assert bound is not None
            return took_too_long(bound, self._phase)
        if now >= limits.deadline:
            return took_too_long(Bound(limits.timeout, "limits.timeout"))
        if silent:
            own = self._phase in limits.phases and limits.phases[self._phase].silence is not None
            return _was_silent(self._quiet, self._phase if own else None)
        return self._output.trouble or self._meter.broken(reading) or self._disk.broken

    def last_look(self) -> Verdict | None:
        """After the session has ended: the limit that the kernel kept, or that was broken unseen; None without."""
        return self._output.trouble or self._meter.broken(Reading()) or self._disk.broken

    def _read(self) -> Reading:
        reading = self._meter.read()
        self._use.note(reading, self._disk.use.bytes)
        limits = self._limits
        near = (limits.pids and reading.processes > limits.pids * _NEAR) or (
            limits.memory and reading.memory_bytes > limits.memory * _NEAR
        )
        self.tick_s = _ALERT_TICK_S if near else TICK_S
        return reading

    def _hear(self) -> None:
        if self._output.size != self._log_size:
            self._log_size, self._last_output = self._output.size, time.monotonic()

    def _is_silent(self, now: float) -> bool:
        if not self._quiet.seconds or now - self._last_output < self._quiet.seconds:
            return False
        self._output.drain(LAST_BYTES)  # what was written may be on its way
        self._hear()
        return now - self._last_output >= self._quiet.seconds


@contextmanager
def held_to(phase: str, bounds: PhaseBounds) -> Iterator[Callable[[], None]]:
    """Hold what the builder itself does in a phase to the bounds of the phase; in trio's thread.

    Yields what is to be called for each line that goes to the log. Raises BuildFailure when a bound is broken.
    """
    timeout, silence = bounds.timeout, bounds.silence
    ends = math.inf
    if timeout is not None and timeout.seconds:
        ends = trio.current_time() + timeout.seconds - bounds.spent
    with trio.CancelScope() as scope:

        def heard() -> None:
            scope.deadline = ends
            if silence is not None and silence.seconds:
                scope.deadline = min(ends, trio.current_time() + silence.seconds)

        heard()
        yield heard
    if scope.cancelled_caught:
        if timeout is not None and trio.current_time() >= ends:
            raise BuildFailure(*took_too_long(timeout, phase))
        assert silence is not None
        raise BuildFailure(*_was_silent(silence, phase))
