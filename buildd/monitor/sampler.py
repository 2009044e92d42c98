"""Samples the machine and the daemon at intervals, keeps the newest, and hands each to whoever watches.

Invariant: what is kept is bounded, and a watcher that is slow holds up neither the next sample nor another watcher:
it misses some.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import structlog
import trio

from buildd.config import Config
from buildd.monitor.readings import Machine, read_daemon, read_machine
from buildd.monitor.space import Space, Spaces
from buildd.protocol import Sample

log = structlog.get_logger()

KEPT = 720
"""Samples: those of an hour at the default interval."""


class Emit(Protocol):
    """How a watcher reports: `Journal.emit`."""

    def __call__(
        self,
        kind: str,
        *,
        run: str | None = ...,
        build: str | None = ...,
        package: str | None = ...,
        data: dict[str, Any] | None = ...,
    ) -> object: ...


class Reading(NamedTuple):
    number: int
    """Counted from 1."""
    sample: Sample
    machine: Machine


class Sampler:
    def __init__(
        self,
        *,
        config: Callable[[], Config],
        directories: Collection[Path],
        load: Callable[[], tuple[int, int]],
        read: Callable[[], Machine] = read_machine,
    ) -> None:
        """`directories` are those whose file systems are asked for room; `load` is how many builds run and wait."""
        self._config = config
        self._spaces = Spaces(directories)
        self._load = load
        self._read = read
        self._kept: deque[Sample] = deque(maxlen=KEPT)
        self._last: Reading | None = None
        self._arrival = trio.Event()
        self._hurry = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample until cancelled; there is one when this has started, if the machine can be looked at."""
        failed = False
        while True:
            try:
                await self._sample()
                failed = False
            except Exception:
                if not failed:
                    log.exception("the machine cannot be looked at")
                failed = True
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            with trio.move_on_after(self._config().monitor.interval):
                await self._hurry.wait()
            self._hurry = trio.Event()

    def sample_soon(self) -> None:
        """Do not wait for the end of the interval: it may be another one by now."""
        self._hurry.set()

    def newest(self, count: int) -> Sequence[Sample]:
        """So many of the newest samples, or as many as there are, oldest first."""
        return list(self._kept)[max(0, len(self._kept) - max(0, count)) :]

    async def after(self, number: int) -> Reading:
        """The newest reading, once there is one with a greater number."""
        while self._last is None or self._last.number <= number:
            await self._arrival.wait()
        return self._last

    async def _sample(self) -> None:
        spaces = await self._spaces.look()
        machine, daemon = self._read(), read_daemon()
        busy, queued = self._load()
        sample = Sample(
            at=time.time(),
            rss_bytes=daemon.rss_bytes,
            open_files=daemon.open_files,
            threads=daemon.threads,
            children=daemon.children,
            load_1m=machine.load_1m,
            memory_total_bytes=machine.memory_total_bytes,
            memory_available_bytes=machine.memory_available_bytes,
            swap_total_bytes=machine.swap_total_bytes,
            swap_used_bytes=machine.swap_used_bytes,
            free_bytes=least_bytes(spaces.values()),
            free_inodes=least_inodes(spaces.values()),
            busy=busy,
            queued=queued,
        )
        self._kept.append(sample)
        self._last = Reading(self._last.number + 1 if self._last is not None else 1, sample, machine)
        self._arrival.set()
        self._arrival = trio.Event()


def least_bytes(spaces: Collection[Space | None]) -> int | None:
    return min((space.free_bytes for space in spaces if space is not None), default=None)


def least_inodes(spaces: Collection[Space | None]) -> int | None:
    return min((s.free_inodes for s in spaces if s is not None and s.total_inodes), default=None)


async def watch(sampler: Sampler, look: Callable[[Reading], Awaitable[None]]) -> None:
    """Call `look` with each new reading until cancelled. What goes wrong in it is logged, and the next is tried."""
    number = 0
    while True:
        reading = await sampler.after(number)
        number = reading.number
        try:
            await look(reading)
        except Exception:
            log.exception("a watcher failed")
