"""No builds are started on a full disk: room is made first.

What must be free is what the collector keeps free: `cache.min_free_bytes` and `min_free_inodes`, of a small file
system at most a tenth. With less, in the file system of the state directory or of the work directory, nothing more is
started, and the collector is asked at once. Builds are started again when there is room, and some to spare.

There may be nothing that the collector could remove: others fill the disk, or what is left is pinned or in use. To
wait for ever would then be worse than to go on with what room there is. So a pause also ends when nothing is
left to collect and no build runs that would free its directories, if there is at least a fifth of what the limit asks
for. From then on builds are paused below a tenth. With so little they can only fail, and nothing is started until
somebody makes room.

Invariant: a pause never depends on itself: each one ends by room, by a collection and the end of running builds, or
is told as one that needs a person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import structlog
import trio

from buildd.config import Config
from buildd.engine.collector import SLACK, Collector
from buildd.errors import BuilddError
from buildd.monitor.gate import Gate
from buildd.monitor.sampler import Emit
from buildd.monitor.space import Space, Spaces, in_units
from buildd.store.collect import Limits, attainable, limits_of, short_of_space

log = structlog.get_logger()

FLOOR_SHARE = 10
"""Below this part (one tenth) of what the limits ask for, builds are paused, whatever may be collected."""
_PAUSED_LOOK_S = 1.0
"""Between looks while builds wait, at most."""

Level = Literal["full", "short", "tight", "ample"]
"""Below the floor; below the limit; above the limit; above the limit with some to spare."""
State = Literal["open", "paused", "bearable"]
"""Bearable: below the limit, and nothing can be done about it."""


def level_of(space: Space, limits: Limits, state: State) -> Level:
    """How much room there is. To a pause the floor is twice as high, so that the next build does not reach it again."""
    share = FLOOR_SHARE // 2 if state == "paused" else FLOOR_SHARE
    if short_of_space(_scaled(limits, 1 / share), space):
        return "full"
    if short_of_space(limits, space):
        return "short"
    return "tight" if short_of_space(_scaled(limits, 1 + SLACK), space) else "ample"


def _scaled(limits: Limits, factor: float) -> Limits:
    return Limits(
        min_free_bytes=int(limits.min_free_bytes * factor), min_free_inodes=int(limits.min_free_inodes * factor)
    )


def next_state(state: State, level: Level, *, exhausted: bool) -> State:
    """What follows from a look; `exhausted` when nothing is left to collect and no build runs."""
    if level == "ample":
        return "open"
    if level == "full":
        return "paused"
    if state == "paused":
        if not exhausted:
            return "paused"
        return "open" if level == "tight" else "bearable"
    return "paused" if level == "short" and state == "open" else state


class RoomGuard:
    def __init__(
        self,
        *,
        config: Callable[[], Config],
        gate: Gate,
        collector: Collector,
        emit: Emit,
        busy: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        """`busy` is how many builds run; `changed` is called when they may be started again."""
        self._config = config
        self._gate = gate
        self._collector = collector
        self._emit = emit
        self._busy = busy
        self._changed = changed
        self._directories = (Path(config().daemon.state_dir), Path(config().daemon.work_dir))
        self._spaces = Spaces(self._directories)
        self._states: dict[Path, State] = dict.fromkeys(self._directories, "open")
        self._reasons: dict[Path, str] = {}
        """Of those that are paused."""
        self._collected = False
        """Whether a collection has ended since builds were paused."""
        self._paused_at = 0.0
        self._told = False
        """Whether the pause was reported."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("the room on the disk cannot be watched")
            interval = float(self._config().monitor.interval)
            await trio.sleep(min(interval, _PAUSED_LOOK_S) if self._gate.paused else interval)

    async def _look(self) -> None:
        self.judge(await self._spaces.look())
        if self._gate.paused and not self._collected:
            await self._collect()
            self._collected = True
            if not self._told:  # not before: on a full disk the database could not record it
                self._told = True
                self._emit("paused", data={"reason": self._gate.paused})
            self.judge(await self._spaces.look())

    async def _collect(self) -> None:
        try:
            await self._collector.collect(await self._collector.limits(), slack=SLACK)
        except (OSError, BuilddError) as error:
            log.error("garbage cannot be collected", error=str(error))

    def judge(self, spaces: Mapping[Path, Space | None]) -> None:
        """Pause or resume by what was found. What does not answer is no reason for either."""
        exhausted = self._collected and not self._busy()
        seen: set[int] = set()
        for directory in self._directories:
            space = spaces[directory]
            if space is not None and space.device not in seen:
                seen.add(space.device)
                self._judge(directory, space, exhausted=exhausted)
        self._set("; ".join(self._reasons.values()))

    def _judge(self, directory: Path, space: Space, *, exhausted: bool) -> None:
        limits = attainable(limits_of(self._config().cache), space)
        before = self._states[directory]
        level = level_of(space, limits, before)
        state = self._states[directory] = next_state(before, level, exhausted=exhausted)
        self._reasons.pop(directory, None)
        if state == "paused":
            self._reasons[directory] = _reason(directory, space, limits, level)
            self._collected = self._collected and before == "paused"
        elif state == "bearable" != before:
            log.warning("builds go on with less room than is wanted: nothing can be collected", path=str(directory))

    def _set(self, reason: str) -> None:
        before, self._gate.paused = self._gate.paused, reason
        if reason and not before:
            self._paused_at = trio.current_time()
            self._told = False
            log.warning("no more builds are started", why=reason)
        elif before and not reason:
            seconds = round(trio.current_time() - self._paused_at, 3)
            bearable = "bearable" in self._states.values()
            log.info("builds are started again", paused_s=seconds)
            self._emit("resumed", data={"reason": before, "paused_s": seconds, "room": not bearable})
            self._changed()


def _reason(directory: Path, space: Space, limits: Limits, level: Level) -> str:
    """What a person should know of a pause, and do."""
    if space.free_bytes < limits.min_free_bytes * (1 + SLACK):
        found = f"{in_units(space.free_bytes)} free, and {in_units(limits.min_free_bytes)} are wanted"
        key = "cache.min_free_bytes"
    else:
        found = f"{space.free_inodes} free inodes, and {limits.min_free_inodes} are wanted"
        key = "cache.min_free_inodes"
    advice = "make room" if level == "full" else "room is being made"
    return f"the file system of {directory} has {found} ({key}): {advice}"
