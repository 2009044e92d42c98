"""What a lost database is replaced with: history from outside of it, and the record of the replacement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import structlog
from msgspec import Struct

from buildd.store.sqlite import Statement

log = structlog.get_logger()


class History(Protocol):
    """Where records can be had again when the database is lost. Blocks."""

    def exists(self) -> bool:
        """Whether there is any."""
        ...

    def last_run(self) -> int:
        """The highest number of a run that is known outside of the database, 0 for none."""
        ...

    def statements(self) -> Iterator[Statement]:
        """Statements that add what is missing, and bring to an end what says `running`."""
        ...


class Renewal(Struct, frozen=True):
    """A database that was replaced by a new one."""

    path: str | None
    """Where the old file was moved to; None when it was gone."""
    why: str
    rebuilt: int | None
    """Number of builds that were read back from the history; None when nothing was lost."""
    asked: bool = False
    """Somebody wanted it."""

    def __str__(self) -> str:
        if self.asked:
            return f"the database was begun anew; the old one is {self.path}"
        aside = f"; what was there is set aside as {self.path}" if self.path is not None else ""
        kept = "nothing was lost" if self.rebuilt is None else f"{self.rebuilt} builds were read back from receipts"
        return f"the database was replaced: {self.why}{aside}; {kept}"

    def log(self) -> None:
        facts = {"path": self.path, "why": self.why, "rebuilt": self.rebuilt}
        if self.asked:
            log.warning("the database was begun anew", **facts)
        elif self.rebuilt is None:
            log.error("the database was lost while in use and is written anew", **facts)
        elif self.path is not None:
            log.error("the database was damaged and is set aside", **facts)
        else:
            log.error("the database was missing and is made anew", **facts)
