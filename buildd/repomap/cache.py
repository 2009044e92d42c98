"""Records of blobs across commits, branches and repositories, in a database that several processes use at once.

A record is found by the blob, the hint of its name and the version of what made it; those of older versions are never
found again, and go with the least recently used. It is a cache: a damaged file is set aside and begun anew, and what
cannot be written is made again next time. Times of last use are days, so that finding costs no writing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from buildd.repomap.languages import HEADER, LANGUAGES, TEXT, UNKNOWN
from buildd.repomap.records import Task
from buildd.store import sqlite
from buildd.store.trouble import kind_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS blobs_by_use ON blobs (used);
"""
_TASKS_AT_ONCE = 500
_DELETED_AT_ONCE = 2000
_PRUNED_TO = 0.8
_DAY_S = 86_400
_Result = TypeVar("_Result")


class Cache:
    def __init__(self, path: Path, version: Callable[[str], str]) -> None:
        """`version` makes the version of what makes records out of a hint. Raises sqlite.Error, OSError."""
        self._path = path
        self._prefixes = {hint: _key_end(hint, version(hint)) for hint in (*LANGUAGES, HEADER, TEXT, UNKNOWN)}
        self._connection = self._open()
        self._today = int(time.time()) // _DAY_S

    def close(self) -> None:
        self._connection.close()

    def find(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, bytes]]:
        """Those of the tasks whose record is known."""
        todo = list(tasks)
        for start in range(0, len(todo), _TASKS_AT_ONCE):
            some = {self._key(task): task for task in todo[start : start + _TASKS_AT_ONCE]}
            none: list[tuple[bytes, bytes]] = []
            for key, record in self._careful(partial(self._find, list(some)), none):
                yield some[key], record

    def keep(self, records: list[tuple[Task, bytes]]) -> None:
        rows = [(self._key(task), self._today, record) for task, record in records]
        self._careful(lambda: self._write("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", rows), None)

    def prune(self, max_bytes: int) -> None:
        """Take out the least recently used until the database has no more than `max_bytes`."""
        self._careful(lambda: self._prune(max_bytes), None)

    # --- inside -------------------------------------------------------------------------------------------

    def _key(self, task: Task) -> bytes:
        return task[0] + self._prefixes[task[1]]

    def _find(self, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        marks = ",".join("?" * len(keys))
        rows = self._connection.execute(f"SELECT key, record, used FROM blobs WHERE key IN ({marks})", keys).fetchall()
        old = [(self._today, key) for key, _, used in rows if used < self._today]
        if old:
            self._write("UPDATE blobs SET used = ? WHERE key = ?", old)
        return [(key, record) for key, record, _ in rows]

    def _write(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(sql, rows)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _prune(self, max_bytes: int) -> None:
        def pragma(name: str) -> int:
            return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

        page = pragma("page_size")
        surplus = (pragma("page_count") - pragma("freelist_count")) * page - max_bytes
        if surplus <= 0:
            return
        surplus += int(max_bytes * (1 - _PRUNED_TO))
        while surplus > 0:
            rows = self._connection.execute(
                "SELECT key, length(record) FROM blobs ORDER BY used, rowid LIMIT ?", (_DELETED_AT_ONCE,)
            ).fetchall()
            if not rows:
                break
            gone: list[tuple[bytes]] = []
            for key, size in rows:
                gone.append((key,))
                surplus -= size
                if surplus <= 0:
                    break
            self._write("DELETE FROM blobs WHERE key = ?", gone)
        self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free a single page
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _careful(self, action: Callable[[], _Result], otherwise: _Result) -> _Result:
        """What `action` makes, or `otherwise` when the database cannot do it; a damaged one is begun anew."""
        try:
            return action()
        except sqlite.Error as error:
            print(f"the cache of maps {self._path}: {error}", file=sys.stderr)  # noqa: T201
            if kind_of(error) == "damaged":
                self._connection.close()
                with self._alone():
                    self._set_aside()
                self._connection = self._open()
            return otherwise

    def _open(self) -> sqlite.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            try:
                return self._checked()
            except sqlite.Error as error:
                if kind_of(error) != "damaged":
                    raise
            self._set_aside()
            return self._checked()

    def _checked(self) -> sqlite.Connection:
        connection = sqlite.connect_cache(self._path, _SCHEMA)
        try:
            connection.execute("SELECT key, used, record FROM blobs LIMIT 1").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        """Only the last damaged one is kept. Others that have it open go on with the file that they have."""
        try:
            os.replace(self._path, f"{self._path}.damaged")
        except FileNotFoundError:
            pass
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _key_end(hint: str, version: str) -> bytes:
    return hashlib.sha256(f"{hint} {version}".encode()).digest()[:8]
