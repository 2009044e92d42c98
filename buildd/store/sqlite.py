"""The one door to SQLite: connections as this daemon uses them, and what is common to all that do.

Nothing else opens the files of a database: closing a file gives up all locks that the process has on it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from buildd.errors import BuilddError
from buildd.store.schema import MIGRATIONS
from buildd.store.trouble import DamagedDatabase

Connection = sqlite3.Connection
Error = sqlite3.Error
Statement = tuple[str, Sequence[Any]]

LOCK_PATIENCE_S = 2.0
"""How long a writer waits for a lock that another process holds."""
READ_PATIENCE_S = 5.0
"""How long a reader does."""
CACHE_PATIENCE_S = 30.0
"""How long a user of a cache does: what another one writes at a time is little."""
_READ_CACHE_KIB = 512
"""Of each reader, a quarter of what SQLite would take: the kernel has the pages as well."""
_OWN_TABLES = {"repositories", "runs", "builds", "events"}


class DatabaseError(BuilddError):
    """A write could not be made durable, or a read failed."""


def connect(path: Path) -> Connection:
    """A connection that may write, to a database that is created or migrated as needed.

    Raises Error, DamagedDatabase for one of another program, and DatabaseError for one of a newer buildd.
    """
    connection = sqlite3.connect(path, timeout=LOCK_PATIENCE_S, isolation_level=None, check_same_thread=False)
    try:
        version = _version(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> Connection:
    """A connection that cannot write. Raises Error."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=READ_PATIENCE_S, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA cache_size = {-_READ_CACHE_KIB}")
    return connection


def connect_cache(path: Path, schema: str) -> Connection:
    """A connection to a database that may be lost, and that several processes use; made by `schema` when it is new.

    A crash of the machine may lose what was written last, not the database. Raises Error, also when it is damaged.
    """
    connection = sqlite3.connect(path, timeout=CACHE_PATIENCE_S, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts as long as there is no table
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(f"BEGIN IMMEDIATE; {schema}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def quick_check(connection: Connection) -> None:
    """Raises Error or DamagedDatabase."""
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise DamagedDatabase(verdict)


def _version(connection: Connection, path: Path) -> int:
    """How many migrations were applied. Raises as `connect`."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise DatabaseError(
            f"the database {path} was written by a newer buildd (schema {version}, known {len(MIGRATIONS)})",
            hint="start that version, or give this one another state directory",
        )
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if (tables or version) and not tables >= _OWN_TABLES:
        raise DamagedDatabase("it is a database, but not one of buildd")
    return version


def copy(source: Connection, path: Path) -> None:
    """Make a new file from an open connection, whatever became of its own path. Raises Error, DamagedDatabase."""
    target = sqlite3.connect(path)
    try:
        source.backup(target)
        quick_check(target)
    finally:
        target.close()


# --- numbers ----------------------------------------------------------------------------------------------


def last_number(connection: Connection, kind: str) -> int:
    """The last number of `runs` or `events` that was ever used, as far as it is known. Raises Error."""
    sql = (
        f"SELECT max(number) FROM (SELECT max(number) AS number FROM {kind} "
        "UNION ALL SELECT last FROM numbers WHERE kind = ?)"
    )
    return int(connection.execute(sql, (kind,)).fetchone()[0] or 0)


def keep_number(kind: str, last: int) -> Statement:
    """Note that numbers of `runs` or `events` up to `last` were used, though no row may have them."""
    return (
        "INSERT INTO numbers (kind, last) VALUES (?, ?) "
        "ON CONFLICT (kind) DO UPDATE SET last = max(last, excluded.last)",
        (kind, last),
    )
