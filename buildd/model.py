"""The words of buildd as data: frozen structs that every room shares.

One word per thing, the same here, in the command line, in JSON, in the database and in the man pages.
Times are seconds since the epoch (float); durations are seconds; sizes are bytes; ids of runs and builds are
UUIDs in their text form; git ids and digests are lower-case hexadecimal.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all data: immutable, built by keyword."""


# --- repositories -----------------------------------------------------------------------------------------

CloneState = Literal["not_started", "cloning", "cloned", "failed"]


class CloneStatus(Struct):
    status: CloneState = "not_started"
    started_at: float | None = None
    completed_at: float | None = None
    error: str | None = None


class CloneProgress(Struct):
    """Live progress of a clone or fetch, as the transport reports it."""

    received_objects: int
    total_objects: int
    indexed_objects: int
    received_bytes: int

    @property
    def percent(self) -> float:
        return 100.0 * self.received_objects / self.total_objects if self.total_objects else 0.0


class Repository(Struct):
    """A URL and its bare clone."""

    url: str
    """Normalised, without credentials: the identity of the repository."""
    name: str
    """Last component of the URL without `.git`; what people may type for it."""
    path: str
    """Where the bare clone is, or will be."""
    last_access: float
    clone_status: CloneStatus = CloneStatus()
    bytes: int = 0
    """Size on disk of the clone when it was last cloned or fetched."""
    fetched_at: float | None = None
