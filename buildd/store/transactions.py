"""Batches as transactions on the one connection that writes.

Invariants: a batch is applied whole or not at all; a batch with a fault of its own fails alone, and does not take
the others of its transaction with it.
"""

from __future__ import annotations

import contextlib

import structlog

from buildd.store.batches import Backlog, Commit, Outcome
from buildd.store.sqlite import Connection, Statement
from buildd.store.trouble import is_duplicate, kind_of

log = structlog.get_logger()

CHUNK = 1000
"""Most batches in one transaction."""


class Transactions:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def use(self, connection: Connection) -> None:
        """Go on with another connection."""
        old, self.connection = self.connection, connection
        old.close()

    def wait_for_locks(self, seconds: float) -> None:
        """How long a transaction waits for a lock that another process holds, from now on."""
        self.connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def store(self, backlog: Backlog, outcomes: list[Outcome]) -> None:
        """Write the first batches of the backlog, and take out of it those that are written or can never be.

        Raises what stands in the way.
        """
        chunk = backlog.first(CHUNK)
        try:
            self._transact(chunk)
        except Exception as error:  # OverflowError, UnicodeEncodeError: values that SQLite cannot take
            if kind_of(error) is not None:
                raise
            for commit in chunk:
                outcomes += self._store_alone(commit)
                backlog.pop()
        else:
            for commit in chunk:
                outcomes.append((commit, "stored", None))
                backlog.pop()

    def _store_alone(self, commit: Commit) -> list[Outcome]:
        try:
            self._transact([commit])
        except Exception as error:
            if kind_of(error) is not None:
                raise
            rest = commit.note if commit.keep else commit.instead
            if rest is not None and (commit.statements or not commit.keep):
                self._store_rest(rest)
            return (
                [(commit, "failed", error)] if commit.keep else [(commit, "withdrawn", error), (commit, "stored", None)]
            )
        return [(commit, "stored", None)]

    def _store_rest(self, statement: Statement) -> None:
        """Write what is left of a batch that can never be written."""
        try:
            self._transact([Commit([statement])])
        except Exception as error:
            if kind_of(error) is not None:
                raise
            log.error("a record can never be written", error=str(error), statement=statement[0])

    def _transact(self, commits: list[Commit]) -> None:
        execute = self.connection.execute
        if self.connection.in_transaction:
            execute("ROLLBACK")  # did not work when it failed
        execute("BEGIN IMMEDIATE")
        try:
            for commit in commits:
                if commit.lenient:
                    self._execute_leniently(commit)
                    continue
                for sql, parameters in commit.statements:
                    execute(sql, parameters)
                if commit.note is not None:
                    execute(*commit.note)
            execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                with contextlib.suppress(Exception):  # the next attempt begins with it
                    execute("ROLLBACK")
            raise

    def _execute_leniently(self, commit: Commit) -> None:
        for sql, parameters in (*commit.statements, *([commit.note] if commit.note is not None else [])):
            try:
                self.connection.execute(sql, parameters)
            except Exception as error:
                if not is_duplicate(error):
                    raise
