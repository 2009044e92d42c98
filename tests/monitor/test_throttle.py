"""The throttle: how many workers a machine leaves, and how they go and come back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from monitor_readings import GIB, machine, reading

from buildd import config as configuration
from buildd.config import Config, ThrottleConfig
from buildd.monitor.gate import Gate
from buildd.monitor.readings import Machine
from buildd.monitor.throttle import LEAST_SHARE, TELL_EVERY, Throttler, next_throttle, share_left
from buildd.protocol import Throttle

DEFAULT = ThrottleConfig()
FREE = Throttle(workers=8, total=8)


machines = st.builds(
    Machine,
    load_1m=st.floats(0, 1000),
    processors=st.integers(1, 256),
    memory_total_bytes=st.integers(0, 1 << 42),
    memory_available_bytes=st.integers(0, 1 << 42),
    swap_total_bytes=st.integers(0, 1 << 42),
    swap_used_bytes=st.integers(0, 1 << 42),
)
totals = st.integers(1, 200)
throttles = st.builds(Throttle, workers=totals, total=totals, reason=st.sampled_from(["", "the load is high"]))


@given(before=throttles, seen=machines, total=totals)
def test_there_is_always_a_worker_and_never_more_than_configured(before: Throttle, seen: Machine, total: int) -> None:
    after = next_throttle(before, seen, total, DEFAULT)
    assert 1 <= after.workers <= after.total == total
    assert (after.workers < total) == bool(after.reason)


@given(before=throttles, seen=machines, total=totals)
def test_workers_go_at_once_and_come_back_one_at_a_time(before: Throttle, seen: Machine, total: int) -> None:
    goal = next_throttle(Throttle(workers=total, total=total), seen, total, DEFAULT).workers
    now = min(before.workers, total) if before.reason else total
    after = next_throttle(before, seen, total, DEFAULT).workers
    assert after == (goal if goal <= now else now + 1)


@given(seen=machines, total=totals, rounds=st.just(200))
def test_a_machine_that_stays_as_it_is_gets_what_it_bears_in_the_end(seen: Machine, total: int, rounds: int) -> None:
    goal = next_throttle(Throttle(workers=total, total=total), seen, total, DEFAULT)
    throttle = Throttle(workers=1, total=total, reason="it was worse")
    for _ in range(rounds):
        throttle = next_throttle(throttle, seen, total, DEFAULT)
    assert throttle == goal


@given(value=st.floats(0, 100), begin=st.floats(0, 100), end=st.floats(0, 100), more=st.floats(0, 100))
def test_more_strain_never_leaves_more_workers(value: float, begin: float, end: float, more: float) -> None:
    share = share_left(value, begin, end)
    assert LEAST_SHARE <= share_left(value + more, begin, end) <= share <= 1.0
    if value <= begin:
        assert share == 1.0
    elif value >= end:
        assert share == LEAST_SHARE


@pytest.mark.parametrize(("load", "workers"), [(0.0, 8), (3.0, 8), (4.0, 7), (6.5, 5), (8.0, 4), (10.0, 2), (500.0, 2)])
def test_load_counts_per_processor_and_once(load: float, workers: int) -> None:
    after = next_throttle(FREE, machine(load_1m=load), 8, DEFAULT)
    assert after.workers == workers
    assert after.reason == ("" if workers == 8 else f"the load is {load:.1f} on 2 processors")


@pytest.mark.parametrize(("per_cent", "workers"), [(50, 8), (10, 8), (6.5, 5), (3, 2), (0, 2)])
def test_memory_counts_when_less_than_a_tenth_is_available(per_cent: float, workers: int) -> None:
    seen = machine(memory_available_bytes=int(16 * GIB * per_cent / 100))
    assert next_throttle(FREE, seen, 8, DEFAULT).workers == workers


@pytest.mark.parametrize(("per_cent", "workers"), [(5, 8), (10, 8), (25, 5), (40, 2), (90, 2)])
def test_swap_space_counts_as_far_as_it_is_needed(per_cent: float, workers: int) -> None:
    used = int(4 * GIB * per_cent / 100)
    short = machine(memory_total_bytes=4 * GIB, memory_available_bytes=GIB, swap_used_bytes=GIB + used)
    short = msgspec.structs.replace(short, swap_total_bytes=4 * GIB)
    assert next_throttle(FREE, short, 8, DEFAULT).workers == workers
    idle = msgspec.structs.replace(short, memory_total_bytes=64 * GIB, memory_available_bytes=60 * GIB)
    assert next_throttle(FREE, idle, 8, DEFAULT).workers == 8, "nobody uses what lies in the swap space"


def test_each_of_the_three_counts_by_itself_and_the_worst_decides() -> None:
    busy = machine(load_1m=6.5)
    poor = msgspec.structs.replace(busy, memory_available_bytes=GIB // 4)
    assert next_throttle(FREE, busy, 8, DEFAULT).workers == 5
    worse = next_throttle(next_throttle(FREE, busy, 8, DEFAULT), poor, 8, DEFAULT)
    assert worse.workers == 2
    assert worse.reason == "only 2 % of the memory is available"


def test_four_to_eight_builds_that_sleep_on_two_processors_are_left_alone() -> None:
    for load in (0.0, 0.5, 1.0, 2.0, 3.0):
        for workers in (4, 8):
            before = Throttle(workers=workers, total=workers)
            assert next_throttle(before, machine(load_1m=load), workers, DEFAULT) == before


def test_nothing_is_throttled_when_it_is_not_enabled() -> None:
    off = ThrottleConfig(enabled=False)
    assert next_throttle(Throttle(workers=2, total=8, reason="load"), machine(load_1m=99.0), 8, off) == FREE


def test_a_machine_without_swap_space_or_known_memory_is_judged_by_the_rest() -> None:
    seen = machine(swap_total_bytes=0, swap_used_bytes=0, memory_total_bytes=0, memory_available_bytes=0)
    assert next_throttle(FREE, seen, 8, DEFAULT) == FREE


# --- the gate and the reports ---------------------------------------------------------------------------------


def test_the_gate_admits_builds_up_to_what_is_allowed_now_and_none_while_paused() -> None:
    gate = Gate(4)
    assert [gate.admits(busy, 4) for busy in (3, 4)] == [True, False]
    assert gate.admits(7, 8), "the configuration has changed since"
    gate.throttle = Throttle(workers=2, total=4, reason="load")
    assert [gate.admits(busy, 4) for busy in (1, 2)] == [True, False]
    assert gate.allowed(1) == Throttle(workers=1, total=1, reason="load")
    gate.paused = "the disk is full"
    assert not gate.admits(0, 4)


class Watched:
    """A throttler over readings that the test makes."""

    def __init__(self, workers: int) -> None:
        base = configuration.load(files=[], settings=[f"workers.max_concurrent_builds={workers}"], environ={})
        self.config: Config = base
        self.gate = Gate(workers)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.changes = 0
        self._throttler = Throttler(config=lambda: self.config, gate=self.gate, emit=self._emit, changed=self._changed)

    def _emit(self, kind: str, *, data: dict[str, Any] | None = None, **_: str | None) -> None:
        self.events.append((kind, data or {}))

    def _changed(self) -> None:
        self.changes += 1

    async def look(self, load: float, times: int = 1) -> None:
        for _ in range(times):
            await self._throttler.look(reading(machine(load_1m=load)))


async def test_changes_are_told_and_not_too_often() -> None:
    watched = Watched(8)
    await watched.look(1.0, 3)
    assert watched.events == []
    await watched.look(99.0)
    assert watched.events == [("throttled", {"workers": 2, "total": 8, "reason": "the load is 99.0 on 2 processors"})]
    assert watched.changes == 0, "nothing may start that could not before"
    for _ in range(TELL_EVERY // 2):  # it goes up and down
        await watched.look(1.0)
        await watched.look(99.0)
    assert [kind for kind, _ in watched.events] == ["throttled"], "what is as it was told is not told again"
    await watched.look(1.0, 8)
    assert watched.gate.throttle == FREE
    assert watched.changes > 6
    await watched.look(1.0, TELL_EVERY)
    assert [kind for kind, _ in watched.events][-1] == "unthrottled"
    assert watched.events[-1][1] == {"workers": 8, "total": 8, "reason": ""}
    assert len(watched.events) <= 3
