"""The event journal: numbered, persistent, and the queue that readers poll.

Invariants: numbers rise by one without gaps; a reader sees an event only after its commit, so a number never
means two things, whatever is killed when; asking for events that are no longer kept is an error, never a silent
gap.

While the database cannot record, events are not held back: they are kept in memory, for readers too, until they
are on disk. An event whose change was refused leaves another one with its number. When memory runs out, the oldest
events that are not on disk are dropped, and all before them: as if they were not kept any more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import msgspec
import trio

from buildd.errors import Refused, encodable
from buildd.model import Event
from buildd.protocol import MAX_EVENTS, PollResult
from buildd.store.database import Commit, Database, Statement
from buildd.store.renewal import Renewal
from buildd.store.sqlite import keep_number, last_number

RECENT = 5_000
"""Events kept in memory, so that readers who keep up never reach the disk."""
TRIM_EVERY = 10_000

_INSERT = (
    "INSERT INTO events (number, time, kind, run, build, package, repository, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_RESTORE = _INSERT.replace("INSERT", "INSERT OR IGNORE", 1)
_FORGET = "DELETE FROM events WHERE number < ?"
_encode = msgspec.json.Encoder().encode


class Journal:
    def __init__(self, database: Database, keep: int) -> None:
        self._database = database
        self._keep = keep
        self._recent: deque[Event] = deque()
        """The newest events that readers can see, and all of those that are not on disk."""
        self._pending: deque[tuple[Commit, Event, Event]] = deque()
        """Events that nobody can see yet, and what is seen in their place when they are withdrawn."""
        self._unwritten: deque[tuple[Commit, Event]] = deque()
        """Events that readers can see and that are not on disk."""
        self._arrival = trio.Event()
        first = database.read_now(lambda c: c.execute("SELECT min(number) FROM events").fetchone()[0])
        last = database.read_now(lambda c: last_number(c, "events"))
        self._first: int = first or last + 1
        self._next: int = last + 1
        self._visible: int = last
        database.on_commit(self._publish)
        database.on_shed(self._shed)
        database.on_renewed(self._restore)
        database.after_renewal(self._tell_of_renewal)
        if database.renewal is not None:
            self._tell_of_renewal(database.renewal)

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
        keep: bool = True,
    ) -> Commit:
        """Append an event, in one transaction with the `statements` it reports on.

        What cannot be recorded now is kept for later. Without `keep` it is given up, and nobody sees the event.
        """
        event, note = self._emit(kind, self._next, run, build, package, repository, data or {})
        other, instead = (event, None) if keep else self._emit("event_withdrawn", self._next)
        self._next += 1
        if event.number % TRIM_EVERY == 0:
            self._first = max(self._first, event.number - self._keep)
            statements = [*statements, (_FORGET, (self._first,))]
        commit = self._database.submit(statements, note=note, keep=keep, instead=instead)
        self._pending.append((commit, event, other))
        return commit

    def _emit(
        self,
        kind: str,
        number: int,
        run: str | None = None,
        build: str | None = None,
        package: str | None = None,
        repository: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> tuple[Event, Statement]:
        """An event, and the statement that writes it. Raises when `data` is not fit for JSON."""
        event = Event(
            number=number,
            time=time.time(),
            kind=kind,
            run=run,
            build=build,
            package=_fit(package),
            repository=_fit(repository),
            data=data or {},
        )
        return event, _row(event)

    def _publish(self) -> None:
        """Show what has been recorded, or will be, and forget what is on disk."""
        arrived = False
        while self._pending and self._pending[0][0].settled:
            commit, event, other = self._pending.popleft()
            if commit.state == "withdrawn":
                event = other
            if not commit.done:
                self._unwritten.append((commit, event))
            self._recent.append(event)
            self._visible = event.number
            arrived = True
        while self._unwritten and self._unwritten[0][0].done:
            self._unwritten.popleft()
        oldest = self._unwritten[0][1].number if self._unwritten else self._next
        while len(self._recent) > RECENT and self._recent[0].number < oldest:
            self._recent.popleft()
        if arrived:
            self._arrival.set()
            self._arrival = trio.Event()

    def _shed(self, commits: Sequence[Commit]) -> None:
        """Forget events that will never be on disk, and all before them."""
        lost = set(map(id, commits))
        last = max((event.number for commit, event in self._unwritten if id(commit) in lost), default=0)
        if last < self._first:
            return
        self._first = last + 1
        while self._recent and self._recent[0].number <= last:
            self._recent.popleft()
        while self._unwritten and self._unwritten[0][1].number <= last:
            self._unwritten.popleft()
        self._database.submit([(_FORGET, (self._first,)), keep_number("events", last)])

    def _restore(self) -> Iterator[Statement]:
        """What of the journal is in memory, for a database that lost it. Older events are no longer kept."""
        self._first = self._recent[0].number if self._recent else self._visible + 1
        recent, last = tuple(self._recent), self._visible
        return chain([keep_number("events", last)], map(partial(_row, insert=_RESTORE), recent))

    def _tell_of_renewal(self, renewal: Renewal) -> None:
        data = {"path": renewal.path, "why": renewal.why, "rebuilt": renewal.rebuilt}
        self.emit("database_set_aside", data=data)

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
        found: list[Event] = []
        while True:
            arrival = self._arrival
            position = self._checked(position)
            while self._first - 1 <= position < self._visible and len(found) < limit:  # on disk, then in memory
                events, position = await self._read(position, limit - len(found), run, kinds)
                found += events
            if found or trio.current_time() >= deadline:
                return PollResult(events=tuple(found), next=position)
            with trio.move_on_at(deadline):
                await arrival.wait()

    def _checked(self, after: int) -> int:
        """The number after which events can be read. Raises Refused when there are none, or not any more."""
        if after == 0:
            return self._first - 1
        if after + 1 < self._first:
            raise Refused(
                f"events after {after} are no longer kept; the oldest is {self._first}",
                hint=f"go on with --after {self._first - 1}, or raise events.keep in buildd.conf",
            )
        if after > self._visible:
            raise Refused(
                f"there is no event {after} yet, the newest is {self._visible}: was the journal begun anew?",
                hint="read on with --after 0",
            )
        return after

    async def _read(self, after: int, limit: int, run: str | None, kinds: Collection[str]) -> tuple[list[Event], int]:
        """Matching events after a number that is not the last, and up to which number that answer is complete."""
        visible = self._visible
        if not self._recent:
            return await self._read_from_disk(after, visible, limit, run, kinds)
        oldest = self._recent[0].number
        if after + 1 < oldest:
            return await self._read_from_disk(after, oldest - 1, limit, run, kinds)
        found: list[Event] = []
        for event in islice(self._recent, after + 1 - oldest, None):
            if (run is None or event.run == run) and (not kinds or event.kind in kinds):
                found.append(event)
                if len(found) == limit:
                    return found, event.number
        return found, visible

    async def _read_from_disk(
        self, after: int, upto: int, limit: int, run: str | None, kinds: Collection[str]
    ) -> tuple[list[Event], int]:
        conditions, values = ["number > ?", "number <= ?"], [after, upto]
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
        return events, events[-1].number if len(events) == limit else upto


def _row(event: Event, insert: str = _INSERT) -> Statement:
    """The statement that writes an event."""
    data = _encode(event.data)
    return (
        insert,
        (event.number, event.time, event.kind, event.run, event.build, event.package, event.repository, data),
    )


def _fit(name: str | None) -> str | None:
    """A name as the database can hold it: one that is not UTF-8 is written out."""
    return name if name is None or name.isascii() else encodable(name)
