"""Packages that were up to date in a run, recorded without a row for each.

Runs of one repository have almost the same ones, so they share a stored roster, and each run keeps what differs.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

from buildd.engine.run import Run
from buildd.engine.uptodate import Settled, Settlement
from buildd.engine.views import package_view
from buildd.store.database import Statement
from buildd.store.runs import RosterEntry, save_packages, save_roster
from buildd.threads import in_thread

_FEW_CHANGES = 50
"""A roster that differs in more than these, and in a twentieth of its packages, is stored anew."""


class Roster(NamedTuple):
    """A set of packages that were up to date, as it was stored for runs to refer to."""

    id: str
    settled: Settlement


class Rosters:
    """The last roster that was stored for each lineage of plans."""

    def __init__(self) -> None:
        self._last: dict[object, Roster] = {}

    def clear(self) -> None:
        """The database was begun anew: nothing is stored in it."""
        self._last.clear()

    async def record(self, run: Run) -> list[Statement]:
        """The statements that record what became of a run's packages."""
        if run.progress is None:
            return [save_packages(run.id, [])]
        packages = [package_view(p) for p in run.progress.packages.values()]
        settled = run.standing.settled
        if not settled or run.plan is None:
            return [save_packages(run.id, packages)]
        home, statements = run.plan.home, []
        roster = self._last.get(home)
        changes = _changes(roster.settled, settled) if roster is not None else {}
        if roster is None or len(changes) > max(_FEW_CHANGES, len(settled) // 20):
            roster, changes = Roster(str(uuid.uuid4()), settled), {}
            entries = [roster_entry(entry) for entry in settled.values()]
            statements = [await in_thread(save_roster, roster.id, entries)]
            self._last[home] = roster
            while len(self._last) > _KEPT:
                self._last.pop(next(iter(self._last)))
        return [*statements, save_packages(run.id, packages, roster.id, changes)]


_KEPT = 8


def roster_entry(entry: Settled) -> RosterEntry:
    return RosterEntry(entry.package.name, entry.package.version, entry.output_id)


def _changes(before: Settlement, now: Settlement) -> dict[str, tuple[str, str] | None]:
    """What differs from a roster: version and output id by name, None for packages that are not up to date now."""
    changes: dict[str, tuple[str, str] | None] = {}
    for name in now.differing(before):
        old, new = before.get(name), now.get(name)
        if new is old:
            continue
        if new is None:
            changes[name] = None
        elif old is None or roster_entry(old) != roster_entry(new):
            changes[name] = new.package.version, new.output_id
    return changes
