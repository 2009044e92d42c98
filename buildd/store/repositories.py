"""Repositories in the database: what `buildd.repos` keeps between two lives of the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from buildd.model import Repository
from buildd.store.database import Database, Statement

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Repository)


class RepositoryStore:
    """Implements `buildd.repos.records.RepositoryRecords`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Repository]:
        rows = self._database.read_now(lambda c: c.execute("SELECT record FROM repositories ORDER BY url").fetchall())
        return [_decoder.decode(row[0]) for row in rows]

    def save(self, repository: Repository) -> None:
        self._database.submit([_save(repository)])

    def remove(self, url: str) -> None:
        self._database.submit([("DELETE FROM repositories WHERE url = ?", (url,))])

    def restore_from(self, known: Callable[[], Iterable[Repository]]) -> None:
        """Fill a database that had to be begun anew with what `known` gives then."""
        self._database.on_renewed(lambda: [_save(repository) for repository in known()])


def _save(repository: Repository) -> Statement:
    return (
        "INSERT INTO repositories (url, record) VALUES (?, ?) ON CONFLICT (url) DO UPDATE SET record = excluded.record",
        (repository.url, _encode(repository)),
    )
