"""The thread that writes the database: groups commits, keeps what cannot be written, and mends what is lost.

Everything that is submitted goes into the backlog, and leaves it in order: written, failed by a fault of its own,
or withdrawn. While a condition stands in the way (see `buildd.store.trouble`) batches are kept, tried again and
again, and those who wait for them are told at once.

When the file itself is lost (deleted, replaced, damaged) a *repair* makes a new one in a thread of its own, while
this one goes on keeping what comes in: a copy of the old file as long as that can be read, else one made from the
history outside of the database. What then only the daemon's memory knows is asked for on trio's thread, before the
history is read, and written before everything else: so whatever happens meanwhile is in one of them, or comes later.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Protocol

import structlog
import trio

from buildd.store.batches import Backlog, Commit, Outcome
from buildd.store.dbfile import DatabaseFile
from buildd.store.renewal import Renewal
from buildd.store.sqlite import LOCK_PATIENCE_S, Connection, Statement
from buildd.store.transactions import Transactions
from buildd.store.trouble import LostDatabase, in_words, kind_of

log = structlog.get_logger()

FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 5.0
"""Between attempts while something stands in the way; it doubles each time."""
LOOK_EVERY_S = 5.0
"""Between looks at the file while nothing is written."""
_LOOK_COST = 50
"""A full check of a file that somebody else has changed takes at most one part in so many of the time."""

Source = Literal["copy", "history", "nothing"]


class Owner(Protocol):
    """Called on trio's thread."""

    def report(self, report: Report) -> None: ...

    def live_state(self) -> list[Iterable[Statement]]:
        """Statements that restore what only the daemon's memory knows."""
        ...

    def broken(self, error: Exception) -> None:
        """The writer met what it was not made for, and writes no more."""
        ...

    def ended(self) -> None:
        """The writer was stopped, and has closed its connection."""
        ...


class Report:
    """What has happened since the last report."""

    def __init__(self, trouble: tuple[str, str] | None, waiting: int) -> None:
        self.outcomes: list[Outcome] = []
        self.shed: list[Commit] = []
        """Batches that lost their notes for want of memory."""
        self.trouble = trouble
        """What stands in the way, and what to do about it; None when nothing does."""
        self.waiting = waiting
        self.renewal: Renewal | None = None


class Repair:
    def __init__(self, source: Source, why: str, done: Callable[[Exception | None], None] | None = None) -> None:
        self.source = source
        self.why = why
        self.done = done
        self.making = False
        """Whether something is under way that ends in this thread's queue."""
        self.live: list[Statement] | None = None
        """What only the daemon's memory knows, once it was asked; the backlog has it too."""


class Writer:
    def __init__(self, file: DatabaseFile, connection: Connection, owner: Owner) -> None:
        self._file = file
        self._transactions = Transactions(connection)
        self._owner = owner
        self._queue: queue.SimpleQueue[Commit | Callable[[], None]] = queue.SimpleQueue()
        self._backlog = Backlog()
        self._token: trio.lowlevel.TrioToken | None = None
        self._stopping = False
        self._obstacle: Exception | None = None
        """The condition that stands in the way."""
        self._behind = False
        """Whether there were records that could not be written at once, and are not all written yet."""
        self._reported: tuple[tuple[str, str] | None, int] = (None, 0)
        self._pause = FIRST_PAUSE_S
        self._tried = 0.0
        self._suspect = False
        """Somebody else has changed the file, and it has not been checked since."""
        self._next_look = 0.0
        self._repair: Repair | None = None
        self._listeners: list[Callable[[], None]] = []

    # --- from any thread ----------------------------------------------------------------------------------

    def submit(self, item: Commit | Callable[[], None]) -> None:
        """Hand over a batch, or something to be done on this thread after the batches before it."""
        self._queue.put(item)

    # --- on this thread -----------------------------------------------------------------------------------

    def run(self, token: trio.lowlevel.TrioToken) -> None:
        """Write until stopped; then write what there is, and close the connection."""
        self._token = token
        try:
            while not self._stopping or (self._repair is not None and self._repair.making):
                group, command = self._next()
                self._write(group)
                if command is not None:
                    command()
            if self._repair is None and self._backlog:
                self._write([], at_once=True)
            if self._backlog:
                log.error("the daemon ends with records that could not be written", count=len(self._backlog))
            self._transactions.connection.close()
        except Exception as error:
            self._post(partial(self._owner.broken, error))
        else:
            self._post(self._owner.ended)

    def stop(self) -> None:
        self._stopping = True

    def look(self, done: Callable[[], None]) -> None:
        """Somebody could not read: check the file, and call `done` once it is sound or nothing can be done."""
        self._suspect = True
        self._write([], at_once=True)
        if self._repair is None:
            done()
        else:
            self._listeners.append(done)

    def reset(self, done: Callable[[Exception | None], None]) -> None:
        """Begin a new database with nothing in it but what only the daemon's memory knows."""
        if self._obstacle is not None:
            done(self._obstacle)
        else:
            self._begin(Repair("nothing", "asked for", done))

    def _next(self) -> tuple[list[Commit], Callable[[], None] | None]:
        """All that has been submitted, up to the first command; waits, but not beyond the next attempt."""
        group: list[Commit] = []
        patience = LOOK_EVERY_S
        if self._obstacle is not None and (self._repair is None or not self._repair.making):
            patience = max(0.0, self._tried + self._pause - time.monotonic())
        try:
            item = self._queue.get(timeout=patience)
            while isinstance(item, Commit):
                group.append(item)
                item = self._queue.get_nowait()
        except queue.Empty:
            return group, None
        return group, item

    # --- writing ------------------------------------------------------------------------------------------

    def _write(self, group: list[Commit], *, at_once: bool = False) -> None:
        """Take in a group, write what can be written, and keep the rest."""
        outcomes: list[Outcome] = []
        self._backlog.add(group)
        if at_once or self._is_time(group):
            self._try(outcomes)
        kept, withdrawn = self._backlog.keep()
        outcomes += [(commit, "kept", self._obstacle) for commit in kept]
        outcomes += [(commit, "withdrawn", self._obstacle) for commit in withdrawn]
        self._report(outcomes, self._backlog.shed())

    def _is_time(self, group: list[Commit]) -> bool:
        if self._obstacle is None or not all(commit.keep for commit in group):
            return True
        since = time.monotonic() - self._tried
        return since >= self._pause or (bool(group) and since >= FIRST_PAUSE_S)

    def _try(self, outcomes: list[Outcome]) -> None:
        self._tried = time.monotonic()
        if self._repair is not None:
            self._go_on_with(self._repair)
            return
        try:
            if self._is_lost():
                return
            while self._backlog:
                self._transactions.store(self._backlog, outcomes)
        except Exception as error:
            kind = kind_of(error)
            if kind is None:
                raise
            if kind == "damaged":
                self._begin(Repair("history", f"the file was damaged: {error}"))
            else:
                self._hindered(error)
            return
        finally:
            self._file.remember()
        self._unhindered()

    # --- conditions ---------------------------------------------------------------------------------------

    def _hindered(self, error: Exception) -> None:
        """Nothing can be written now: have it tried again later."""
        if self._obstacle is None:
            self._pause = FIRST_PAUSE_S
            self._transactions.wait_for_locks(0)  # who submits something now is not held up
            self._fall_behind()
        else:
            self._pause = min(2 * self._pause, LAST_PAUSE_S)
        self._obstacle = error
        if kind_of(error) in ("io", "readonly", "cannot_open") and self._repair is None:
            self._reconnect()

    def _fall_behind(self) -> None:
        self._behind = True
        self._file.mark_behind()

    def _unhindered(self) -> None:
        if self._behind:
            self._behind = False
            self._obstacle = None
            self._transactions.wait_for_locks(LOCK_PATIENCE_S)
            self._file.unmark_behind()

    def _reconnect(self) -> None:
        """Files that were opened before may stay bad when the disk is good again."""
        with contextlib.suppress(Exception):  # then the one we have is as good
            if self._file.change() is not None:
                return
            self._transactions.use(self._file.connect())
            self._transactions.wait_for_locks(0)

    def _report(self, outcomes: list[Outcome], shed: Iterable[Commit] = (), renewal: Renewal | None = None) -> None:
        asked = self._repair is not None and self._repair.source == "nothing"
        trouble = in_words(self._obstacle, self._file.path) if self._obstacle is not None and not asked else None
        waiting = len(self._backlog)
        shed = list(shed)
        if not outcomes and not shed and renewal is None and (trouble, waiting) == self._reported:
            return
        self._reported = (trouble, waiting)
        report = Report(trouble, waiting)
        report.outcomes = outcomes
        report.shed = shed
        report.renewal = renewal
        self._post(partial(self._owner.report, report))

    def _post(self, call: Callable[[], None]) -> bool:
        """Have something called on trio's thread; False when trio has ended."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return False
        return True

    # --- a lost file --------------------------------------------------------------------------------------

    def _is_lost(self) -> bool:
        """Whether there is a file to write to; begins a repair when there is none."""
        change = self._file.change()
        if change is not None and change.lost:
            self._begin(Repair("copy", change.what))
            return True
        self._suspect = self._suspect or change is not None
        began = time.monotonic()
        if not self._suspect or began < self._next_look:
            return False
        problem = self._file.problem()
        self._next_look = time.monotonic() + _LOOK_COST * (time.monotonic() - began)
        self._suspect = False
        if problem is None:
            return False
        self._begin(Repair("history", problem))
        return True

    def _begin(self, repair: Repair) -> None:
        self._repair = repair
        self._obstacle = LostDatabase(repair.why)
        self._pause = FIRST_PAUSE_S
        if repair.source != "nothing":
            self._fall_behind()
        self._go_on_with(repair)

    def _go_on_with(self, repair: Repair) -> None:
        if repair.making:
            return
        repair.making = True
        if repair.source == "copy" or repair.live is not None:
            try:
                threading.Thread(target=self._make, args=(repair,), name="database-repair", daemon=True).start()
            except RuntimeError as error:  # the machine is short of threads or memory
                repair.making = False
                self._hindered(LostDatabase(f"{repair.why}, and {error}"))
        elif not self._post(partial(self._ask, repair)):
            self._take_in(repair, [])

    def _ask(self, repair: Repair) -> None:
        """On trio's thread: what it submits after this stands behind the answer in the queue."""
        self._queue.put(partial(self._take_in, repair, self._owner.live_state()))

    def _take_in(self, repair: Repair, live: list[Iterable[Statement]]) -> None:
        statements: list[Statement] = []
        for part in live:
            try:
                statements += part
            except Exception:
                log.exception("a part of the daemon's state could not be put into the new database")
        self._backlog.begin_with(statements)  # older batches say the same again, and what memory forgot meanwhile
        repair.live = statements
        repair.making = False
        self._write([])
        self._go_on_with(repair)

    def _make(self, repair: Repair) -> None:
        """On a thread of its own; this writer does not touch its connection meanwhile."""
        error: Exception | None = None
        rebuilt: int | None = None
        try:
            if repair.source == "copy":
                self._file.make_copy(self._transactions.connection)
            else:
                rebuilt = self._file.make_new(with_history=repair.source == "history", live=repair.live or ())
        except Exception as caught:
            error = caught
        self._queue.put(partial(self._switch, repair, rebuilt, error))

    def _switch(self, repair: Repair, rebuilt: int | None, error: Exception | None) -> None:
        """Put the new file in the place of the old one, and go on with it."""
        repair.making = False
        try:
            if error is not None:
                raise error
            if repair.source == "nothing":  # all of the old one in one file
                self._transactions.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            renewal = self._file.put_in_place(repair.why, rebuilt, asked=repair.source == "nothing")
            self._transactions.use(self._file.connect())
        except Exception as caught:
            self._not_switched(repair, caught)
            return
        self._repair = None
        self._suspect = False
        if renewal.asked:  # else nothing is well before what waits is written
            self._obstacle = None
        self._report([], renewal=renewal)
        self._write([], at_once=True)
        self._settle(repair, self._obstacle)

    def _not_switched(self, repair: Repair, error: Exception) -> None:
        if repair.source == "copy" and kind_of(error) not in ("full", "locked", "memory"):
            self._begin(Repair("history", f"{repair.why}, and what is still open cannot be copied: {error}"))
            return
        if repair.source == "nothing":  # the old one is still good
            self._repair = self._obstacle = None
            self._write([], at_once=True)
            self._settle(repair, error)
            return
        self._hindered(error)
        self._write([])
        if self._stopping:
            self._settle(repair, error)

    def _settle(self, repair: Repair, error: Exception | None) -> None:
        if repair.done is not None:
            repair.done(error)
        for listener in self._listeners:
            listener()
        self._listeners.clear()
