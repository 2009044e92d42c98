"""Maps in the database: which there are, which were being made, which failed and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from buildd.model import RepoMapStatus
from buildd.store.database import Database, Statement

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(RepoMapStatus)


class MapStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[RepoMapStatus]:
        rows = self._database.read_now(lambda c: c.execute("SELECT record FROM maps").fetchall())
        return [_decoder.decode(row[0]) for row in rows]

    def save(self, status: RepoMapStatus) -> None:
        self._database.submit([_save(status)])

    def remove(self, repository: str, commit: str) -> None:
        self._database.submit([("DELETE FROM maps WHERE repository = ? AND revision = ?", (repository, commit))])

    def restore_from(self, known: Callable[[], Iterable[RepoMapStatus]]) -> None:
        """Fill a database that had to be begun anew with what `known` gives then."""
        self._database.on_renewed(lambda: [_save(status) for status in known()])


def _save(status: RepoMapStatus) -> Statement:
    return (
        "INSERT INTO maps (repository, revision, record) VALUES (?, ?, ?)"
        " ON CONFLICT (repository, revision) DO UPDATE SET record = excluded.record",
        (status.repository, status.commit, _encode(status)),
    )
