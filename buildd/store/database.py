"""The database: what is submitted goes to the writer's thread, questions to a pool of read-only connections.

Invariants: all writes go through one thread, in the order they were submitted; a `Commit` that is stored is on
disk (WAL, synchronous=FULL); a batch is applied whole or not at all, and a batch that fails does not take the
others of its group with it; what the database cannot take now is kept and written when it can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from buildd.store import sqlite
from buildd.store.batches import Commit as Commit
from buildd.store.dbfile import DatabaseFile
from buildd.store.renewal import History, Renewal
from buildd.store.sqlite import Connection as Connection, DatabaseError as DatabaseError, Statement as Statement
from buildd.store.trouble import in_words, kind_of
from buildd.store.writer import Report, Writer
from buildd.threads import in_thread

log = structlog.get_logger()
T = TypeVar("T")

READERS = 4
END_PATIENCE_S = 10.0
"""How long the end of the daemon waits for what is still to be written."""
REPAIR_PATIENCE_S = 30.0
"""How long a reader waits for a new file when the one in use is lost."""


class Database:
    """The database at `path`. `open` before use; `run` owns the writer thread; all methods on trio's thread."""

    def __init__(self, path: Path, history: History | None = None) -> None:
        self.path = path
        self.renewal: Renewal | None = None
        """The last time that it was replaced, since the daemon began."""
        self.trouble: str | None = None
        """Why it cannot record now, and what to do about it; None when it can."""
        self.waiting = 0
        """Batches in memory that are to be written when it can."""
        self._file = DatabaseFile(path, history)
        self._writer: Writer | None = None
        self._running = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._failure: Exception | None = None
        self._broken = trio.Event()
        self._ended = trio.Event()
        self._readers: list[tuple[int, Connection]] = []
        self._shed = 0
        """Events that were dropped since it cannot record."""
        self._generation = 0
        """Of the file: connections to an earlier one are not used again."""
        self._limiter = trio.CapacityLimiter(READERS)
        self._on_commit: list[Callable[[], None]] = []
        self._on_shed: list[Callable[[Sequence[Commit]], None]] = []
        self._on_lost: list[Callable[[], Iterable[Statement]]] = []
        self._on_renewed: list[Callable[[Renewal], None]] = []

    # --- life ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create, check and migrate. A damaged file is set aside and a new one begun. Blocks.

        Raises DatabaseError when the file is from a newer buildd, or cannot be opened at all.
        """
        connection, self.renewal = self._file.open()
        self._writer = Writer(self._file, connection, self)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the writer until cancelled; then write what was submitted, and close every connection."""
        writer = self._opened()
        self._token = trio.lowlevel.current_trio_token()
        thread = threading.Thread(target=writer.run, args=(self._token,), name="database-writer", daemon=True)
        thread.start()
        self._running = True
        task_status.started()
        try:
            await self._broken.wait()
            raise RuntimeError("the database's writer met what it was not made for") from self._failure
        finally:
            self._running = False
            for _, connection in self._readers:  # before the writer: the last one to close leaves no write-ahead log
                connection.close()
            self._readers.clear()
            writer.submit(writer.stop)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_PATIENCE_S):
                await self._ended.wait()

    def _opened(self) -> Writer:
        assert self._writer is not None, "open() comes first"
        return self._writer

    # --- writing ------------------------------------------------------------------------------------------

    def submit(
        self,
        statements: Sequence[Statement],
        *,
        keep: bool = True,
        note: Statement | None = None,
        instead: Statement | None = None,
    ) -> Commit:
        """Hand a batch to the writer; it is applied after everything submitted before.

        What cannot be written now is kept for later, or without `keep` given up; see `Commit` for the rest.
        """
        commit = Commit(statements, keep=keep, note=note, instead=instead)
        self._opened().submit(commit)
        return commit

    async def flush(self) -> None:
        """Return once everything that was submitted so far is on disk, or kept for when it can be."""
        await self.submit([]).wait(kept=True)

    def on_commit(self, call: Callable[[], None]) -> None:
        """Call this on trio's thread each time that batches were written, kept or failed."""
        self._on_commit.append(call)

    def on_shed(self, call: Callable[[Sequence[Commit]], None]) -> None:
        """Call this on trio's thread with kept batches that lost their notes for want of memory."""
        self._on_shed.append(call)

    def on_renewed(self, statements: Callable[[], Iterable[Statement]]) -> None:
        """Ask this on trio's thread for what only memory knows, when a new database lacks it.

        The statements are written before everything that waits then and everything submitted later. A row that is
        there already is left as it is. They are read in another thread.
        """
        self._on_lost.append(statements)

    def after_renewal(self, call: Callable[[Renewal], None]) -> None:
        """Call this on trio's thread when a new database is in place."""
        self._on_renewed.append(call)

    # --- what the writer tells, on trio's thread ----------------------------------------------------------

    def report(self, report: Report) -> None:
        trouble = "; ".join(report.trouble) if report.trouble is not None else None
        if trouble is not None and trouble != self.trouble:
            log.error("the database cannot record; builds go on", why=trouble, waiting=report.waiting)
        elif trouble is None and self.trouble is not None:
            log.info("the database records again", waiting=report.waiting, events_dropped=self._shed)
            self._shed = 0
        self.trouble, self.waiting = trouble, report.waiting
        for commit, state, error in report.outcomes:
            commit.settle(state, self._explained(error, state) if error is not None else None)
        for call in self._on_commit:
            call()
        if report.shed:
            if not self._shed:
                log.error("memory runs out for what the database cannot take: the oldest events are dropped")
            self._shed += len(report.shed)
            for drop in self._on_shed:
                drop(report.shed)
        if report.renewal is not None:
            self._renewed(report.renewal)

    def _explained(self, error: Exception, state: str) -> DatabaseError:
        what, hint = in_words(error, self.path)
        if state == "failed":
            log.error("a record can never be written", error=what)
        return DatabaseError(f"the database could not record this: {what}", hint=hint)

    def _renewed(self, renewal: Renewal) -> None:
        self.renewal = renewal
        self._generation += 1
        renewal.log()
        for call in self._on_renewed:
            call(renewal)

    def live_state(self) -> list[Iterable[Statement]]:
        parts: list[Iterable[Statement]] = []
        for statements in self._on_lost:
            try:
                parts.append(statements())
            except Exception:
                log.exception("a part of the daemon's state is missing in the new database")
        return parts

    def broken(self, error: Exception) -> None:
        self._failure = error
        self._broken.set()
        self._ended.set()

    def ended(self) -> None:
        self._ended.set()

    # --- reading ------------------------------------------------------------------------------------------

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on a read-only connection in a worker thread. Raises DatabaseError."""
        try:
            return await self._read(query)
        except sqlite.Error as error:
            if kind_of(error) not in ("damaged", "cannot_open") or not self._running:
                raise self._unreadable(error) from None
        await self._look()
        try:
            return await self._read(query)
        except sqlite.Error as error:
            raise self._unreadable(error) from None

    async def _read(self, query: Callable[[Connection], T]) -> T:
        generation = self._generation

        def work() -> T:
            connection = self._pooled(generation) or self._file.connect_reader()
            try:
                result = query(connection)
            except BaseException:
                connection.close()
                raise
            if self._running:
                self._readers.append((generation, connection))
            else:
                connection.close()
            return result

        return await in_thread(work, limiter=self._limiter)

    def _pooled(self, generation: int) -> Connection | None:
        while self._readers:
            try:
                made, connection = self._readers.pop()
            except IndexError:  # another thread was faster
                break
            if made == generation:
                return connection
            connection.close()
        return None

    async def _look(self) -> None:
        """Have the file checked, and mended if it is lost."""
        done = trio.Event()
        self._opened().submit(partial(self._opened().look, partial(self._call, done.set)))
        with trio.move_on_after(REPAIR_PATIENCE_S):
            await done.wait()

    def _call(self, call: Callable[[], None]) -> None:
        assert self._token is not None
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            pass  # nobody waits any more

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on this thread: for start-up, before there is anything to hold up."""
        try:
            connection = self._file.connect_reader()
            try:
                return query(connection)
            finally:
                connection.close()
        except sqlite.Error as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: sqlite.Error) -> DatabaseError:
        if kind_of(error) is None:
            return DatabaseError(f"the database {self.path} cannot be read: {error}")
        what, hint = in_words(error, self.path)
        return DatabaseError(f"the database cannot be read: {what}", hint=hint)

    # --- steering -----------------------------------------------------------------------------------------

    async def verify(self) -> list[str]:
        """Check the whole database; what is wrong with it, nothing when it is sound.

        What is damaged is mended afterwards. Raises DatabaseError when it cannot be told.
        """

        def work() -> list[str]:
            try:
                connection = self._file.connect_reader()
                try:
                    rows = connection.execute("PRAGMA integrity_check").fetchall()
                finally:
                    connection.close()
            except sqlite.Error as error:
                if kind_of(error) != "damaged":
                    raise self._unreadable(error) from None
                return [str(error)]
            return [str(row[0]) for row in rows if row[0] != "ok"]

        problems = await in_thread(work, limiter=self._limiter)
        if problems:
            await self._look()
        return problems

    async def reset(self) -> Path:
        """Begin a new, empty database with what is under way; where the old one was set aside.

        Raises DatabaseError when that cannot be done now.
        """
        done = trio.Event()
        failure: Exception | None = None

        def finish(error: Exception | None) -> None:
            nonlocal failure
            failure = error
            self._call(done.set)

        writer = self._opened()
        writer.submit(partial(writer.reset, finish))
        await done.wait()
        if failure is not None:
            what, hint = in_words(failure, self.path)
            raise DatabaseError(f"the database could not be begun anew: {what}", hint=hint)
        assert self.renewal is not None
        assert self.renewal.path is not None
        return Path(self.renewal.path)
