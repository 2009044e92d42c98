"""Scopes: everything held is closed once, in reverse, in bounded time, whatever happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from buildd.scope import Scope

pytestmark = pytest.mark.trio


class Held:
    """Makes closers that write down when they are called."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    def sync(self, name: str, error: BaseException | None = None) -> Callable[[], None]:
        def close() -> None:
            self.closed.append(name)
            if error is not None:
                raise error

        return close

    def slow(self, name: str, seconds: float) -> Callable[[], Any]:
        async def close() -> None:
            await trio.sleep(seconds)
            self.closed.append(name)

        return close


def report(logs: list[Any]) -> Any:
    (line,) = [line for line in logs if line["event"] == "scope closed"]
    return line


async def test_what_is_held_is_closed_in_reverse_order_and_logged() -> None:
    held = Held()
    with capture_logs() as logs:
        async with Scope("build", close_within=5) as scope:
            scope.add("first", held.sync("first"))
            scope.add("second", held.slow("second", 0))
            scope.add("third", held.sync("third"))
            assert held.closed == []
    assert held.closed == ["third", "second", "first"]
    line = report(logs)
    assert (line["task"], line["log_level"]) == ("build", "debug")
    assert line["released"] == ["third", "second", "first"]
    assert line["failed"] == []
    assert line["cleanup_ms"] >= 0


async def test_the_error_that_ended_it_comes_out_and_everything_is_closed_before() -> None:
    held = Held()
    with pytest.raises(LookupError, match="the cause"):
        async with Scope("build", close_within=5) as scope:
            scope.add("a", held.sync("a"))
            raise LookupError("the cause")
    assert held.closed == ["a"]


async def test_a_closer_that_fails_is_logged_and_does_not_stop_the_others() -> None:
    held = Held()
    with capture_logs() as logs:
        async with Scope("build", close_within=5) as scope:
            scope.add("a", held.sync("a"))
            scope.add("bad", held.sync("bad", OSError("busy")))
            scope.add("c", held.sync("c"))
    assert held.closed == ["c", "bad", "a"]
    line = report(logs)
    assert (line["released"], line["failed"], line["log_level"]) == (["c", "a"], ["bad"], "error")
    assert [entry["what"] for entry in logs if entry["event"] == "cleanup failed"] == ["bad"]


async def test_a_failing_closer_does_not_hide_the_error_that_ended_the_task() -> None:
    with capture_logs(), pytest.raises(LookupError, match="the cause"):
        async with Scope("build", close_within=5) as scope:
            scope.add("bad", Held().sync("bad", OSError("busy")))
            raise LookupError("the cause")


async def test_cancellation_from_outside_waits_for_the_closers(autojump_clock: trio.testing.MockClock) -> None:
    held = Held()
    with trio.move_on_after(1) as outer:
        async with Scope("build", close_within=10) as scope:
            scope.add("a", held.sync("a"))
            scope.add("slow", held.slow("slow", 3))
            await trio.sleep_forever()
    assert outer.cancelled_caught
    assert held.closed == ["slow", "a"]
    assert trio.current_time() == pytest.approx(4, abs=0.01) or autojump_clock.current_time() > 0


async def test_when_the_time_is_over_async_closers_are_cut_short_and_sync_ones_still_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    held = Held()
    started = trio.current_time()
    with capture_logs() as logs:
        async with Scope("build", close_within=10) as scope:
            scope.add("first", held.sync("first"))
            scope.add("second", held.slow("second", 1))
            scope.add("stuck", held.slow("stuck", 1000))
            scope.add("last", held.sync("last"))
    assert trio.current_time() - started == pytest.approx(10, abs=0.01)
    assert held.closed == ["last", "first"]
    assert (report(logs)["released"], report(logs)["failed"]) == (["last", "first"], ["stuck", "second"])
    assert [line["what"] for line in logs if line["event"] == "cleanup took too long"] == ["stuck", "second"]


async def test_a_stuck_closer_with_tasks_of_its_own_does_not_stop_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    held = Held()

    async def crowded() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    async def failing() -> None:
        async def stumble() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("busy")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stumble)
            nursery.start_soon(trio.sleep_forever)

    with capture_logs():
        async with Scope("build", close_within=1) as scope:
            scope.add("first", held.sync("first"))
            scope.add("crowded", crowded)
            scope.add("failing", failing)
    assert held.closed == ["first"]


async def test_cancellation_arrives_again_after_the_scope() -> None:
    with trio.CancelScope() as outer:
        async with Scope("build", close_within=5) as scope:
            scope.add("a", Held().sync("a"))
            outer.cancel()
        await trio.lowlevel.checkpoint()
        pytest.fail("the cancellation was swallowed")
    assert outer.cancelled_caught


async def test_what_is_closed_before_the_end_is_not_closed_again() -> None:
    held = Held()
    with capture_logs() as logs:
        async with Scope("build", close_within=5) as scope:
            scope.add("first", held.sync("first"))
            await scope.close()
            assert held.closed == ["first"]
            scope.add("second", held.sync("second"))
    assert held.closed == ["first", "second"]
    assert [line["released"] for line in logs if line["event"] == "scope closed"] == [["first"], ["second"]]


async def test_a_thousand_scopes_cost_little() -> None:
    held = Held()
    started = time.perf_counter()
    with capture_logs():
        for _ in range(1000):
            async with Scope("build", close_within=5) as scope:
                scope.add("a", held.sync("a"))
    assert len(held.closed) == 1000
    assert time.perf_counter() - started < 3
