"""Repositories in the database: what `buildd.repos` keeps between two lives of the daemon."""

from __future__ import annotations

import msgspec

from buildd.model import Repository
from buildd.store.database import Database

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
        self._database.submit(
            [
                (
                    "INSERT INTO repositories (url, record) VALUES (?, ?) "
                    "ON CONFLICT (url) DO UPDATE SET record = excluded.record",
                    (repository.url, _encode(repository)),
                )
            ]
        )

    def remove(self, url: str) -> None:
        self._database.submit([("DELETE FROM repositories WHERE url = ?", (url,))])
