"""The event journal: numbered, persistent, and the queue that readers poll.

Invariants: numbers rise by one without gaps; a reader sees an event only after its commit, so a number never
means two things, whatever is killed when (a database that cannot record does not hold events back); asking
for events that are no longer kept is an error, never a silent gap.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import msgspec
import trio

from buildd.errors import Refused
from buildd.model import Event
from buildd.protocol import MAX_EVENTS, PollResult
from buildd.store.database import Commit, Database, Statement

RECENT = 20_000
"""Events kept in memory, so that readers who keep up never reach the disk."""
TRIM_EVERY = 10_000

_INSERT = (
    "INSERT INTO events (number, time, kind, run, build, package, repository, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_encode = msgspec.json.Encoder().encode


class Journal:
    def __init__(self, database: Database, keep: int) -> None:
        self._database = database
        self._keep = keep
        self._recent: deque[Event] = deque(maxlen=RECENT)
        self._pending: deque[tuple[Commit, Sequence[Event]]] = deque()
        self._arrival = trio.Event()
        first, last = database.read_now(lambda c: c.execute("SELECT min(number), max(number) FROM events").fetchone())
        self._first: int = first or 1
        self._next: int = (last or 0) + 1
        self._visible: int = self._next - 1
        database.on_commit(self._publish)

    @property
    def last(self) -> int:
        """Number of the newest event that readers can see."""
        return self._visible

    def emit(
        self,
        kind: str,
        *,
        run: str | None = None,
        build: str | None = None,
        package: str | None = None,
        repository: str | None = None,
        data: dict[str, Any] | None = None,
        statements: Sequence[Statement] = (),
    ) -> Commit:
        """Append an event, in one transaction with the `statements` it reports on."""
        event = Event(
            number=self._next,
            time=time.time(),
            kind=kind,
            run=run,
            build=build,
            package=package,
            repository=repository,
            data=data or {},
        )
        encoded = _encode(event.data)  # before the number is taken: what cannot be encoded raises
        self._next += 1
        batch = [
            *statements,
            (_INSERT, (event.number, event.time, kind, run, build, package, repository, encoded)),
        ]
        if event.number % TRIM_EVERY == 0:
            self._first = max(self._first, event.number - self._keep)
            batch.append(("DELETE FROM events WHERE number < ?", (self._first,)))
        commit = self._database.submit(batch)
        self._pending.append((commit, (event,)))
        return commit

    def _publish(self) -> None:
        arrived = False
        while self._pending and self._pending[0][0].settled:
            _, events = self._pending.popleft()
            self._recent.extend(events)
            self._visible = events[-1].number
            arrived = True
        if arrived:
            self._arrival.set()
            self._arrival = trio.Event()

    async def poll(
        self,
        after: int,
        *,
        timeout: float,
        limit: int = MAX_EVENTS,
        run: str | None = None,
        kinds: Collection[str] = (),
    ) -> PollResult:
        """Events after number `after` (-1: only those to come), waiting up to `timeout` s for the first.

        Raises Refused when events after `after` are no longer kept.
        """
        position = self._visible if after < 0 else after
        limit = max(1, min(limit, MAX_EVENTS))
        deadline = trio.current_time() + timeout
        while True:
            arrival = self._arrival
            events, position = await self._read(position, limit, run, kinds)
            if events or trio.current_time() >= deadline:
                return PollResult(events=tuple(events), next=position)
            if position >= self._visible:
                with trio.move_on_at(deadline):
                    await arrival.wait()

    async def _read(self, after: int, limit: int, run: str | None, kinds: Collection[str]) -> tuple[list[Event], int]:
        """Matching events after a number, and the number up to which that answer is complete."""
        if after + 1 < self._first and after != 0:
            raise Refused(
                f"events after {after} are no longer kept; the oldest is {self._first}",
                hint=f"go on with --after {self._first - 1}, or raise events.keep in buildd.conf",
            )
        visible = self._visible
        if after > visible:
            raise Refused(
                f"there is no event {after} yet, the newest is {visible}: was the journal begun anew?",
                hint="read on with --after 0",
            )
        if after == visible:
            return [], visible
        if self._recent and self._recent[0].number <= after + 1:
            start = after + 1 - self._recent[0].number
            found: list[Event] = []
            for event in islice(self._recent, start, None):
                if (run is None or event.run == run) and (not kinds or event.kind in kinds):
                    found.append(event)
                    if len(found) == limit:
                        return found, event.number
            return found, visible
        return await self._read_from_disk(after, visible, limit, run, kinds)

    async def _read_from_disk(
        self, after: int, visible: int, limit: int, run: str | None, kinds: Collection[str]
    ) -> tuple[list[Event], int]:
        conditions, values = ["number > ?", "number <= ?"], [after, visible]
        parameters: list[Any] = list(values)
        if run is not None:
            conditions.append("run = ?")
            parameters.append(run)
        if kinds:
            conditions.append(f"kind IN ({', '.join('?' * len(kinds))})")
            parameters.extend(kinds)
        sql = (
            "SELECT number, time, kind, run, build, package, repository, data FROM events "
            f"WHERE {' AND '.join(conditions)} ORDER BY number LIMIT ?"
        )
        rows = await self._database.read(lambda c: c.execute(sql, (*parameters, limit)).fetchall())
        events = [
            Event(
                number=number,
                time=at,
                kind=kind,
                run=run_id,
                build=build,
                package=package,
                repository=repository,
                data=msgspec.json.decode(data),
            )
            for number, at, kind, run_id, build, package, repository, data in rows
        ]
        return events, events[-1].number if len(events) == limit else visible
