"""The structs of the protocol that `buildd.protocol` takes from the model, under the names used here.

mypy counts a name imported by a module as private to it unless it says otherwise, hence the one `ignore`.
"""

from __future__ import annotations

from buildd.protocol import (  # type: ignore[attr-defined]  # see above
    BuildRecord,
    Event,
    Repository,
    Stats,
)

__all__ = ["BuildRecord", "Event", "Repository", "Stats"]
