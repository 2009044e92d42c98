"""The one door to SQLite: a writer thread that groups commits, and a pool of read-only connections.

Invariants: all writes go through one thread, in the order they were submitted; a `Commit` that reports
success is on disk (WAL, synchronous=FULL); a batch is applied whole or not at all, and a batch that fails
does not take the others of its group with it.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio

from buildd.errors import BuilddError
from buildd.store.schema import MIGRATIONS

log = structlog.get_logger()
T = TypeVar("T")
Statement = tuple[str, Sequence[Any]]

READERS = 4
BUSY_TIMEOUT_S = 5.0


class DatabaseError(BuilddError):
    """A write could not be made durable, or a read failed."""


class Commit:
    """A batch on its way to disk. `await commit.wait()` returns once it is there, or raises DatabaseError."""

    __slots__ = ("_event", "error", "statements")

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = statements
        self.error: Exception | None = None
        self._event = trio.Event()

    @property
    def settled(self) -> bool:
        """Whether the batch is on disk, or has failed."""
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()
        if self.error is not None:
            raise DatabaseError(
                f"the database could not record this: {self.error}",
                hint="see `buildctl status` and the daemon's log; free disk space or check the state directory",
            )


class Database:
    """The database at `path`. `open` before use; `run` owns the writer thread; all methods on trio's thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_aside: Path | None = None
        """Where a corrupt database was moved to at `open`."""
        self.trouble: str | None = None
        """The last write error; None when the last write worked."""
        self._queue: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._readers: list[sqlite3.Connection] = []
        self._limiter = trio.CapacityLimiter(READERS)
        self._writer: sqlite3.Connection | None = None
        self._on_commit: list[Callable[[], None]] = []

    # --- opening ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open or create, check and migrate. A damaged file is set aside and a new one begun.

        Raises DatabaseError when the file is from a newer buildd, or cannot be opened at all.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise DatabaseError(
                    f"cannot open the database {self.path}: {error}",
                    hint="check that the state directory is writable by the daemon and the disk is not full",
                ) from None
            self._move_aside(str(error))
            self._writer = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise DatabaseError(
                f"the database {self.path} was written by a newer buildd (schema {version}, known {len(MIGRATIONS)})",
                hint="start that version, or give this one another state directory",
            )
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")

    def _move_aside(self, why: str) -> None:
        self.set_aside = self.path.with_name(f"{self.path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}")
        for suffix in ("-wal", "-shm", ""):
            file = self.path.with_name(self.path.name + suffix)
            if file.exists():
                file.rename(self.set_aside.with_name(self.set_aside.name + suffix))
        log.error("the database was damaged and is set aside", path=str(self.set_aside), why=why)

    # --- writing ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the writer until cancelled; then write what was submitted, and close every connection."""
        assert self._writer is not None, "open() comes first"
        thread = threading.Thread(
            target=self._write_forever,
            args=(trio.lowlevel.current_trio_token(),),
            name="database-writer",
            daemon=True,
        )
        thread.start()
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            for connection in self._readers:  # before the writer: the last one to close leaves no write-ahead log
                connection.close()
            self._readers.clear()
            self._queue.put(None)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + BUSY_TIMEOUT_S):
                await trio.to_thread.run_sync(thread.join, abandon_on_cancel=True)

    def submit(self, statements: Sequence[Statement]) -> Commit:
        """Hand a batch to the writer; it is applied after everything submitted before."""
        commit = Commit(statements)
        self._queue.put(commit)
        return commit

    def _write_forever(self, token: trio.lowlevel.TrioToken) -> None:
        assert self._writer is not None
        stop = False
        while not stop:
            group: list[Commit] = []
            item = self._queue.get()
            while True:
                if item is None:
                    stop = True
                else:
                    group.append(item)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._write_group(group)
                try:
                    token.run_sync_soon(self._settle, group)
                except trio.RunFinishedError:
                    break
        self._writer.close()

    def _write_group(self, group: list[Commit]) -> None:
        """One transaction for all; when it fails as a whole, each batch gets a transaction of its own."""
        try:
            self._transact([s for commit in group for s in commit.statements])
        except Exception as error:  # OverflowError, UnicodeEncodeError: values that SQLite cannot take
            if len(group) == 1:
                group[0].error = error
                return
            for commit in group:
                try:
                    self._transact(commit.statements)
                except Exception as single:
                    commit.error = single

    def _transact(self, statements: Sequence[Statement]) -> None:
        writer = self._writer
        assert writer is not None
        writer.execute("BEGIN IMMEDIATE")
        try:
            for sql, parameters in statements:
                writer.execute(sql, parameters)
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise

    def _settle(self, group: list[Commit]) -> None:
        trouble = next((str(c.error) for c in group if c.error is not None), None)
        if trouble != self.trouble:
            if trouble is None:
                log.info("the database records again")
            else:
                log.error("the database cannot record", error=trouble, path=str(self.path))
            self.trouble = trouble
        for commit in group:
            commit._event.set()
        for call in self._on_commit:
            call()

    def on_commit(self, call: Callable[[], None]) -> None:
        """Call this on trio's thread after each group that was written or failed."""
        self._on_commit.append(call)

    # --- reading ------------------------------------------------------------------------------------------

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on a read-only connection in a worker thread. Raises DatabaseError."""

        def work() -> T:
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._connect_reader()
            try:
                result = query(connection)
            except BaseException:
                connection.close()
                raise
            self._readers.append(connection)
            return result

        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except sqlite3.Error as error:
            raise DatabaseError(f"the database {self.path} cannot be read: {error}") from None

    def read_now(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on this thread: for start-up, before there is anything to hold up."""
        connection = self._connect_reader()
        try:
            return query(connection)
        except sqlite3.Error as error:
            raise DatabaseError(f"the database {self.path} cannot be read: {error}") from None
        finally:
            connection.close()

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = ON")
        return connection
