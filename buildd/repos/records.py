"""What the owner of the clones needs from the database: three calls that never block."""

from __future__ import annotations

from typing import Protocol

from buildd.model import Repository


class RepositoryRecords(Protocol):
    """Durable records of repositories, keyed by `Repository.url`. Called from the trio thread, never blocking:
    writes are queued in order, and a database in trouble is the store's to report."""

    def all(self) -> list[Repository]:
        """Every record, as it was when the store was opened plus what was saved since."""
        ...

    def save(self, repository: Repository) -> None:
        """Insert or replace the record of `repository.url`."""
        ...

    def remove(self, url: str) -> None:
        """Forget the record of `url`; nothing happens when there is none."""
        ...
