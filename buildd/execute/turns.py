"""Turns: who starts next when several want to start at once.

Eight builds that are set up side by side on two cores all begin late, and the one that others wait for no earlier
than the rest; one after the other, the most urgent begins as if it were alone.

Invariants: of those who wait, the one with the lowest order is next; a turn lasts a bounded time, so that nobody
who is stuck holds up the others.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import trio


class Turn:
    """The right to be starting now."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.begun = trio.Event()

    def end(self) -> None:
        """Let the next one start; nothing happens when it has ended already."""
        self._turns.end(self)


class Turns:
    def __init__(self, number: int, *, lasting: float) -> None:
        """At most `number` have a turn at a time; after `lasting` seconds a turn does not count any more."""
        self._number = number
        self._lasting = lasting
        self._held: dict[Turn, float] = {}
        """The turns that count, and until when on trio's clock."""
        self._waiting: list[tuple[int, int, Turn]] = []
        self._arrivals = count()

    @asynccontextmanager
    async def take(self, order: int) -> AsyncIterator[Turn]:
        """Wait for a turn, and have it until the context is left or it is ended before."""
        turn = Turn(self)
        waiting = (order, next(self._arrivals), turn)
        heapq.heappush(self._waiting, waiting)
        try:
            await trio.lowlevel.checkpoint()  # trio runs tasks in any order: all that start now have come by then
            self._hand_out()
            while not turn.begun.is_set():
                with trio.move_on_at(min(self._held.values())):
                    await turn.begun.wait()
                self._hand_out()
            yield turn
        finally:
            if not turn.begun.is_set():
                self._waiting.remove(waiting)
                heapq.heapify(self._waiting)
            turn.end()

    def end(self, turn: Turn) -> None:
        if self._held.pop(turn, None) is not None:
            self._hand_out()

    def _hand_out(self) -> None:
        now = trio.current_time()
        self._held = {turn: until for turn, until in self._held.items() if until > now}
        while self._waiting and len(self._held) < self._number:
            _, _, turn = heapq.heappop(self._waiting)
            self._held[turn] = now + self._lasting
            turn.begun.set()
