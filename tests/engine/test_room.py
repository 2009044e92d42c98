"""Builds are paused on a full disk, and never for ever where waiting is of no use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st

from buildd import config as configuration
from buildd.engine import room
from buildd.engine.room import Level, RoomGuard, State, level_of, next_state
from buildd.monitor.gate import Gate
from buildd.monitor.space import Space
from buildd.store.collect import Limits

LIMITS = Limits(min_free_bytes=1000, min_free_inodes=100)
states = st.sampled_from(["open", "paused", "bearable"])
levels = st.sampled_from(["full", "short", "tight", "ample"])


def space(free: int, inodes: int = 10**6, device: int = 1) -> Space:
    return Space(free_bytes=free, total_bytes=10**9, free_inodes=inodes, total_inodes=10**7, device=device)


# --- the decision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "inodes", "level"),
    [
        (99, 10**6, "full"),
        (100, 10**6, "short"),
        (999, 10**6, "short"),
        (1000, 10**6, "tight"),
        (1049, 10**6, "tight"),
        (1050, 10**6, "ample"),
        (10**6, 9, "full"),
        (10**6, 50, "short"),
        (10**6, 102, "tight"),
    ],
)
def test_bytes_and_inodes_count_alike(free: int, inodes: int, level: str) -> None:
    assert level_of(space(free, inodes), LIMITS, "open") == level


def test_a_pause_does_not_end_just_above_the_floor_that_began_it() -> None:
    assert level_of(space(150), LIMITS, "open") == level_of(space(150), LIMITS, "bearable") == "short"
    assert level_of(space(150), LIMITS, "paused") == "full"
    assert level_of(space(200), LIMITS, "paused") == "short"


def test_without_limits_nothing_is_short() -> None:
    assert level_of(space(0, 0), Limits(), "open") == "ample"


@given(state=states, level=levels, exhausted=st.booleans())
def test_what_follows_from_a_look(state: State, level: Level, exhausted: bool) -> None:
    after = next_state(state, level, exhausted=exhausted)
    assert next_state(after, level, exhausted=exhausted) == after or (after == "paused" and exhausted)
    if level == "ample":
        assert after == "open"
    if level == "full":
        assert after == "paused"
    if level in ("short", "tight") and exhausted:
        assert state != "paused" or after != "paused", "no wait for what cannot come"
    if after == "bearable":
        assert state != "open", "there is a collection before that"


@given(
    frees=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    inodes=st.lists(st.integers(0, 300), min_size=1, max_size=60),
)
def test_builds_run_with_room_and_never_below_the_floor(frees: list[int], inodes: list[int]) -> None:
    state: State = "open"
    for free, count in zip(frees, inodes, strict=False):
        state = next_state(state, level_of(space(free, count), LIMITS, state), exhausted=True)
        if free < 100 or count < 10:
            assert state == "paused"
        if free >= 1050 and count >= 105:
            assert state == "open"


# --- the guard ------------------------------------------------------------------------------------------------


class Collecting:
    """A collector that does what the test wants."""

    def __init__(self) -> None:
        self.asked = 0
        self.act: Callable[[], None] = lambda: None

    async def limits(self) -> Limits:
        return LIMITS

    async def collect(self, limits: Limits, *, slack: float) -> None:
        self.asked += 1
        assert slack > 0
        await trio.lowlevel.checkpoint()
        self.act()


class Disk:
    """A guard over file systems that the test fills."""

    def __init__(self, *, apart: bool = False) -> None:
        self.config = configuration.load(
            files=[],
            settings=[
                "cache.min_free_bytes=1000",
                "cache.min_free_inodes=0",
                "daemon.state_dir=/s",
                "daemon.work_dir=/w",
            ],
            environ={},
        )
        self.state, self.work = Path("/s"), Path("/w")
        self.free: dict[Path, int | None] = {self.state: 5000, self.work: 5000}
        self.apart = apart
        self.gate = Gate(4)
        self.collector = Collecting()
        self.busy = 0
        self.changes = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.guard = RoomGuard(
            config=lambda: self.config,
            gate=self.gate,
            collector=self.collector,  # type: ignore[arg-type]  # as much of it as is asked
            emit=self._emit,
            busy=lambda: self.busy,
            changed=self._changed,
        )
        self.guard._spaces = self  # type: ignore[assignment]

    def _emit(self, kind: str, *, data: dict[str, Any] | None = None, **_: str | None) -> None:
        self.events.append((kind, data or {}))

    def _changed(self) -> None:
        self.changes += 1

    def fill(self, free: int | None) -> None:
        self.free = dict.fromkeys(self.free, free)

    async def look(self) -> dict[Path, Space | None]:
        """What `Spaces` would find."""
        await trio.lowlevel.checkpoint()
        devices = {self.state: 1, self.work: 2 if self.apart else 1}
        return {
            path: space(free, device=devices[path]) if free is not None else None for path, free in self.free.items()
        }

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.fixture
def disk() -> Disk:
    return Disk()


async def test_builds_are_paused_room_is_made_and_they_go_on(disk: Disk) -> None:
    await disk.guard._look()
    assert disk.gate.paused == ""
    disk.fill(500)
    seen: list[str] = []
    disk.collector.act = lambda: (seen.append(disk.gate.paused), disk.fill(1060))[0]  # type: ignore[func-returns-value]
    disk.busy = 3
    await disk.guard._look()
    assert "500 bytes free, and 1000 bytes are wanted (cache.min_free_bytes)" in seen[0], "nothing is started meanwhile"
    assert disk.gate.paused == ""
    assert disk.kinds == ["paused", "resumed"]
    assert disk.events[1][1]["room"] is True
    assert disk.changes == 1
    assert disk.collector.asked == 1


async def test_with_nothing_to_collect_builds_go_on_once_none_runs_that_would_free_something(disk: Disk) -> None:
    disk.fill(500)
    disk.busy = 1
    for _ in range(5):
        await disk.guard._look()
    assert disk.gate.paused
    assert disk.collector.asked == 1, "once is enough; the collector looks by itself as well"
    disk.busy = 0
    await disk.guard._look()
    assert disk.gate.paused == ""
    assert disk.kinds == ["paused", "resumed"]
    assert disk.events[1][1]["room"] is False
    disk.busy = 4
    for free in (900, 300, 101):
        disk.fill(free)
        await disk.guard._look()
        assert disk.gate.paused == "", "nothing would come of it"
    disk.fill(99)
    await disk.guard._look()
    assert "make room" in disk.gate.paused


async def test_a_disk_that_is_really_full_waits_for_a_person(disk: Disk) -> None:
    disk.fill(20)
    for _ in range(10):
        await disk.guard._look()
    assert disk.gate.paused
    assert disk.kinds == ["paused"], "told once"
    disk.fill(2000)
    await disk.guard._look()
    assert disk.gate.paused == ""
    assert disk.kinds == ["paused", "resumed"]
    disk.fill(500)
    await disk.guard._look()
    assert disk.collector.asked == 2, "each pause has its collection"


async def test_a_little_more_than_the_limit_ends_a_pause_when_nothing_more_comes(disk: Disk) -> None:
    disk.fill(900)
    disk.collector.act = lambda: disk.fill(1001)
    await disk.guard._look()
    assert disk.gate.paused == ""
    assert disk.events[-1][1]["room"] is True


async def test_a_work_directory_on_a_full_file_system_of_its_own_pauses_too() -> None:
    disk = Disk(apart=True)
    disk.free[disk.work] = 30
    await disk.guard._look()
    assert "/w" in disk.gate.paused
    assert "/s" not in disk.gate.paused
    disk.free[disk.state] = 30
    await disk.guard._look()
    assert "/w" in disk.gate.paused
    assert "/s" in disk.gate.paused
    assert disk.collector.asked == 2, "once more for the one that has become short since"
    disk.fill(2000)
    await disk.guard._look()
    assert disk.gate.paused == ""


async def test_a_file_system_that_does_not_answer_neither_pauses_nor_resumes(disk: Disk) -> None:
    disk.fill(None)
    await disk.guard._look()
    assert disk.gate.paused == ""
    disk.fill(20)
    await disk.guard._look()
    reason = disk.gate.paused
    assert reason
    disk.fill(None)
    for _ in range(3):
        await disk.guard._look()
        assert disk.gate.paused == reason


async def test_a_collection_that_fails_is_as_one_that_finds_nothing(disk: Disk) -> None:
    def fail() -> None:
        raise OSError("no more")

    disk.collector.act = fail
    disk.fill(500)
    await disk.guard._look()
    assert disk.kinds == ["paused", "resumed"]


async def test_without_a_limit_nothing_is_paused(disk: Disk) -> None:
    disk.config = configuration.load(
        files=[],
        settings=["cache.min_free_bytes=0", "cache.min_free_inodes=0", "daemon.state_dir=/s", "daemon.work_dir=/w"],
        environ={},
    )
    disk.fill(0)
    await disk.guard._look()
    assert disk.gate.paused == ""


async def test_a_paused_guard_looks_more_often(disk: Disk, autojump_clock: trio.testing.MockClock) -> None:
    disk.fill(20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.guard.run)
        await trio.sleep(3)
        assert disk.gate.paused
        disk.fill(2000)
        await trio.sleep(room._PAUSED_LOOK_S + 0.1)
        assert disk.gate.paused == ""
        nursery.cancel_scope.cancel()
