"""The files of the database at one path: opened, watched, and replaced by new ones when they are lost.

A new file is made under another name and put in place by a rename, when it is complete; what was there before is
set aside and never removed. The files are watched by their inodes and times: SQLite itself goes on for long with
a file that was deleted or overwritten, and what it writes then is lost.

Invariants: a database never meets the write-ahead log of another one, whatever is killed when; from the moment that
a new file is complete, it is the database, also when the daemon is killed while it is put in place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog
from msgspec import Struct

from buildd.store import sqlite
from buildd.store.renewal import History, Renewal
from buildd.store.sqlite import Connection, DatabaseError, Statement, keep_number, last_number
from buildd.store.tree import sync_directory
from buildd.store.trouble import DamagedDatabase, in_words, is_duplicate, kind_of

log = structlog.get_logger()

_LOST_LOG = 100_000
"""More events than can be in a write-ahead log that was lost with the file."""

Seen = dict[str, tuple[int, int, int, int]]


class Change(Struct, frozen=True):
    """What somebody else did to the files."""

    what: str
    lost: bool
    """The file in use is not the one at the path any more."""


class DatabaseFile:
    """Everything here blocks."""

    def __init__(self, path: Path, history: History | None) -> None:
        self.path = path
        self._history = history
        self._fresh = path.with_name(f"{path.name}.new")
        """A new file that is being made."""
        self._ready = path.with_name(f"{path.name}.ready")
        """One that is complete and durable, on its way to the path."""
        self._behind = path.with_name(f"{path.name}.behind")
        self._watched = (("", str(path)), ("-wal", f"{path}-wal"))
        self._seen: Seen = {}
        """Device, inode, size and time of the files in use, as this process left them."""

    # --- opening ------------------------------------------------------------------------------------------

    def open(self) -> tuple[Connection, Renewal | None]:
        """Open or create, check and migrate; make a new one when the file is lost.

        Raises DatabaseError when it is from a newer buildd, or cannot be opened at all.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_fresh()
            self._finish_exchange()
            connection, renewal = self._open()
            if self._behind.exists():
                self._catch_up(connection)
        except (OSError, sqlite.Error, DamagedDatabase) as error:
            what, hint = in_words(error, self.path)
            raise DatabaseError(f"cannot open the database: {what}", hint=hint) from None
        return connection, renewal

    def _open(self) -> tuple[Connection, Renewal | None]:
        why = self._why_missing() or self.problem()
        if why is None:
            try:
                return self.connect(), None
            except (sqlite.Error, DamagedDatabase) as error:
                if kind_of(error) != "damaged":
                    raise
                why = f"the file cannot be used: {error}"
        rebuilt = self.make_new(with_history=True, beginning=True)
        renewal = self.put_in_place(why, rebuilt)
        renewal.log()
        return self.connect(), renewal

    def _why_missing(self) -> str | None:
        """Why there should be a file and is none."""
        if self._is_there() or self._history is None or not self._history.exists():
            return None
        return "the file was empty" if self.path.exists() else "the file was missing"

    def _is_there(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def connect(self) -> Connection:
        """The connection that writes. Raises sqlite.Error, DamagedDatabase, DatabaseError."""
        connection = sqlite.connect(self.path)
        self._seen = self._look()
        return connection

    def connect_reader(self) -> Connection:
        """Raises sqlite.Error."""
        return sqlite.connect_reader(self.path)

    # --- what others do to it -----------------------------------------------------------------------------

    def _look(self) -> Seen:
        seen: Seen = {}
        for suffix, name in self._watched:
            try:
                now = os.stat(name)
            except FileNotFoundError:
                continue
            seen[suffix] = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
        return seen

    def change(self) -> Change | None:
        """What somebody else has done to the files since `remember`. Raises OSError."""
        now = self._look()
        if now == self._seen:
            return None
        for suffix in self._seen:
            name = self.path.name + suffix
            if suffix not in now:
                return Change(f"{name} was deleted while in use", lost=True)
            if not self._is_own(suffix, now):
                return Change(f"{name} was replaced while in use", lost=True)
        return Change(f"{self.path.name} was written by another process", lost=False)

    def _is_own(self, suffix: str, now: Seen) -> bool:
        """Whether the file at the path is the one in use."""
        return suffix in now and suffix in self._seen and now[suffix][:2] == self._seen[suffix][:2]

    def remember(self) -> None:
        """Take the files as they are now for this process's own doing, if they are still those in use."""
        try:
            now = self._look()
        except OSError:
            return  # the next look will tell
        for suffix in now:
            if suffix not in self._seen or self._is_own(suffix, now):
                self._seen[suffix] = now[suffix]

    def problem(self) -> str | None:
        """What is damaged in the files; None when they are sound. Raises sqlite.Error when that cannot be told.

        By a connection that changes nothing, and is new: others have pages in memory.
        """
        if not self._is_there():
            return None
        try:
            connection = self.connect_reader()
            try:
                sqlite.quick_check(connection)
            finally:
                connection.close()
        except (sqlite.Error, DamagedDatabase) as error:
            if kind_of(error) != "damaged":
                raise
            return f"the file was damaged: {error}"
        return None

    # --- records that are only in memory ------------------------------------------------------------------

    def mark_behind(self) -> None:
        """Leave a mark that records are missing: should the daemon die now, the next one reads them back."""
        try:
            self._behind.touch()
        except OSError:
            pass  # without it, those records are only in the history

    def unmark_behind(self) -> None:
        try:
            self._behind.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove a file", path=str(self._behind), error=str(error))

    def _catch_up(self, connection: Connection) -> None:
        """Add what an earlier daemon could not write any more."""
        if self._history is not None:
            apply(connection, self._history.statements())
        log.warning("the last daemon ended with records that it could not write; builds are read back from receipts")
        self.unmark_behind()

    # --- making a new one ---------------------------------------------------------------------------------

    def make_copy(self, source: Connection) -> None:
        """Make a new file from an open connection, whatever became of its path. Raises like `connect`."""
        self._remove_fresh()
        sqlite.copy(source, self._fresh)

    def make_new(self, *, with_history: bool, beginning: bool = False, live: Sequence[Statement] = ()) -> int:
        """Make a new file; the number of builds that could be read back. Raises like `connect`.

        `live` is what only the daemon's memory knows: without it, a run that was accepted would be lost with a
        daemon that is killed now.
        Numbers go on above those that were used. At the `beginning` nobody remembers those of events: where the
        old file does not tell, they go on at the present time in seconds, which is far above.
        """
        numbers = self._used_numbers()
        self._remove_fresh()
        connection = sqlite.connect(self._fresh)
        try:
            connection.execute("PRAGMA synchronous = OFF")  # it counts once it is in place
            runs = [numbers.get("runs", 0)]
            if self._history is not None and with_history:
                apply(connection, self._history.statements())
                runs += [self._history.last_run(), _count(connection, "DISTINCT run")]
            kept = [keep_number("runs", max(runs))]
            if "events" in numbers:
                kept.append(keep_number("events", numbers["events"] + (_LOST_LOG if beginning else 0)))
            elif beginning:
                kept.append(keep_number("events", int(time.time())))
            apply(connection, kept)
            rebuilt = _count(connection, "*")
            apply(connection, live)
            return rebuilt
        finally:
            connection.close()

    def _used_numbers(self) -> dict[str, int]:
        """The last numbers that were used, as far as the old file still tells."""
        found: dict[str, int] = {}
        if not self.path.exists():
            return found
        try:
            connection = self.connect_reader()
            try:
                for kind in ("runs", "events"):
                    found[kind] = last_number(connection, kind)
            finally:
                connection.close()
        except (sqlite.Error, ValueError):
            pass  # it is damaged just there
        return found

    def _remove_fresh(self) -> None:
        for suffix in ("-wal", "-shm", ""):
            self._fresh.with_name(self._fresh.name + suffix).unlink(missing_ok=True)

    def put_in_place(self, why: str, rebuilt: int | None, *, asked: bool = False) -> Renewal:
        """Set aside what is at the path, and put the new file there. Raises OSError."""
        _sync(self._fresh)
        self._fresh.rename(self._ready)
        sync_directory(self.path.parent)
        try:
            aside = self._exchange("reset" if asked else "corrupt")
        except OSError:
            if self._is_there():  # it stays in use, and the next start is not to go on with this
                self._ready.unlink(missing_ok=True)
            raise
        return Renewal(path=str(aside) if aside is not None else None, why=why, rebuilt=rebuilt, asked=asked)

    def _exchange(self, label: str) -> Path | None:
        """Put the file that is ready at the path; where the one that was there is now. Raises OSError."""
        aside = self._free_name(label)
        now = self._look()
        moved = bool(self._seen) and not self._is_own("", now)  # the file in use is elsewhere, or gone
        self._part("-shm").unlink(missing_ok=True)
        if moved and self._is_own("-wal", now):
            self._part("-wal").unlink()  # of the file in use: all of it is in the new one
        elif "-wal" in now:
            self._part("-wal").rename(f"{aside}-wal")
        if "" in now:
            self.path.rename(aside)
        self._ready.rename(self.path)
        sync_directory(self.path.parent)
        return aside if "" in now else None

    def _finish_exchange(self) -> None:
        """Go on where an earlier daemon was killed."""
        if self._ready.exists():
            aside = self._exchange("replaced")
            log.warning("a new database is put in place, as the last daemon had begun to", old=str(aside))

    def _part(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _free_name(self, label: str) -> Path:
        stem = f"{self.path.name}.{label}-{time.strftime('%Y%m%dT%H%M%S')}"
        number, name = 1, self.path.with_name(stem)
        while name.exists():
            number += 1
            name = self.path.with_name(f"{stem}-{number}")
        return name


def _count(connection: Connection, what: str) -> int:
    return int(connection.execute(f"SELECT count({what}) FROM builds").fetchone()[0])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def apply(connection: Connection, statements: Iterable[Statement]) -> None:
    """Execute what can be executed, in one transaction; the rest is logged, or is there already.

    Raises sqlite.Error when something stands in the way.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for sql, parameters in statements:
            try:
                connection.execute(sql, parameters)
            except (sqlite.Error, OverflowError, UnicodeEncodeError) as error:
                if kind_of(error) is not None:
                    raise
                if not is_duplicate(error):
                    log.warning("a record could not be read back", error=str(error))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
