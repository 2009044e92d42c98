"""Turns: few at a time, the most urgent first, and nobody waits for one who is stuck."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from buildd.execute.turns import Turns

pytestmark = pytest.mark.trio
LASTING_S = 5.0


class Starters:
    """Tasks that take turns. What they do is in `started` and `ended`."""

    def __init__(self, number: int) -> None:
        self.turns = Turns(number, lasting=LASTING_S)
        self.started: list[int] = []
        self.ended: list[int] = []
        self.most = 0

    async def start(self, order: int, seconds: float = 1.0, *, stays: float = 0.0) -> None:
        """Start in so many seconds, and stay for some more without a turn."""
        async with self.turns.take(order) as turn:
            self.started.append(order)
            self.most = max(self.most, len(self.started) - len(self.ended))
            try:
                await trio.sleep(seconds)
            finally:
                self.ended.append(order)
            turn.end()
            await trio.sleep(stays)


Clock = trio.testing.MockClock
"""Each test asks for the clock by name: pytest-trio takes it from a test's own arguments only."""


@pytest.mark.parametrize("orders", [range(8), range(7, -1, -1), [3, 7, 0, 5, 1, 6, 2, 4]])
async def test_of_those_that_come_together_the_most_urgent_starts_first(
    orders: list[int], autojump_clock: Clock
) -> None:
    starters = Starters(1)
    async with trio.open_nursery() as nursery:
        for order in orders:
            nursery.start_soon(starters.start, order)
    assert starters.started == list(range(8))
    assert starters.most == 1


async def test_no_more_than_the_number_start_at_a_time(autojump_clock: Clock) -> None:
    starters = Starters(3)
    async with trio.open_nursery() as nursery:
        for order in range(10):
            nursery.start_soon(starters.start, order, 1 + order % 3)
    assert sorted(starters.started) == list(range(10))
    assert starters.most == 3


async def test_who_comes_later_and_is_more_urgent_goes_before_those_that_wait(autojump_clock: Clock) -> None:
    starters = Starters(1)
    async with trio.open_nursery() as nursery:
        for order in (10, 11, 12):
            nursery.start_soon(starters.start, order)
        await trio.sleep(0.5)
        nursery.start_soon(starters.start, 0)
    assert starters.started == [10, 0, 11, 12]


async def test_a_turn_that_was_ended_makes_room_while_its_holder_goes_on(autojump_clock: Clock) -> None:
    starters = Starters(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: starters.start(0, stays=100))
        await trio.sleep(0.5)
        began = trio.current_time()
        await starters.start(1, 0)
        assert trio.current_time() - began == pytest.approx(0.5, abs=0.01)
        nursery.cancel_scope.cancel()


async def test_who_is_stuck_holds_up_the_others_for_a_bounded_time(autojump_clock: Clock) -> None:
    starters, began = Starters(2), trio.current_time()
    async with trio.open_nursery() as nursery:
        for order in (0, 1):
            nursery.start_soon(starters.start, order, 1000)
        await trio.sleep(1)
        await starters.start(2, 0)
        assert trio.current_time() - began == pytest.approx(LASTING_S, abs=0.01)
        nursery.cancel_scope.cancel()


async def test_a_turn_that_was_outlived_is_not_given_back_twice(autojump_clock: Clock) -> None:
    starters = Starters(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(starters.start, 0, LASTING_S + 1)
        await trio.sleep(1)
        nursery.start_soon(starters.start, 1, 3)  # while the first one still starts, and ends
        await trio.sleep(LASTING_S - 0.5)
        assert starters.started == [0, 1]
        nursery.start_soon(starters.start, 2)
        await trio.sleep(1)
        assert starters.ended == [0]
        assert starters.started == [0, 1]
    assert starters.started == [0, 1, 2]


async def test_who_is_cancelled_while_waiting_takes_no_turn_and_loses_none(autojump_clock: Clock) -> None:
    starters = Starters(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(starters.start, 0)
        await trio.sleep(0.5)
        with trio.move_on_after(0.1) as impatient:
            await starters.start(1)
        assert impatient.cancelled_caught
        await starters.start(2)
    assert starters.started == [0, 2]


async def test_who_is_cancelled_while_starting_makes_room(autojump_clock: Clock) -> None:
    starters, began = Starters(1), trio.current_time()
    with trio.move_on_after(1):
        await starters.start(0, 1000)
    await starters.start(1, 0)
    assert trio.current_time() - began == pytest.approx(1, abs=0.01)
    with trio.move_on_after(0):
        await starters.start(2)
    await starters.start(3, 0)
    assert starters.started == [0, 1, 3]
