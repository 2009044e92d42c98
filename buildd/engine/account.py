"""The account of one collection: what went, what is left, and which limits are still not kept.

Invariant: what is said to be free now is what was free before, and what went since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from buildd.monitor.space import in_units
from buildd.protocol import Collected, CollectResult, UnmetLimit
from buildd.store.collect import Entry, Limits, Space, Unmet, Victim, unmet


class Account:
    """What becomes of one collection."""

    def __init__(self, limits: Limits, dry_run: bool) -> None:
        self.limits = limits
        self.space = Space(free_bytes=0, total_bytes=0)
        self._stuck: set[tuple[str, str]] = set()
        self._dry_run = dry_run
        self._entries: dict[tuple[str, str], Entry] = {}
        self._collected: list[Collected] = []
        self._failed: list[str] = []

    def is_stuck(self, entry: Entry) -> bool:
        """Whether it could not be removed, and is not tried again."""
        return (entry.kind, entry.id) in self._stuck

    def survey(self, entries: Sequence[Entry], space: Space) -> None:
        self.space = space
        self._entries = {(entry.kind, entry.id): entry for entry in entries}

    def gone(self, victims: Sequence[Victim], packages: Mapping[str, tuple[str, ...]]) -> None:
        for victim in victims:
            entry = victim.entry
            self._collected.append(
                Collected(
                    kind=entry.kind,
                    id=entry.id,
                    packages=packages.get(entry.id, ()),
                    bytes=entry.bytes,
                    inodes=entry.inodes,
                    last_used=entry.last_used,
                    reason=victim.reason,
                )
            )
            self._entries.pop((entry.kind, entry.id), None)
        self.space = msgspec.structs.replace(
            self.space,
            free_bytes=self.space.free_bytes + sum(victim.entry.bytes for victim in victims),
            free_inodes=self.space.free_inodes + sum(victim.entry.inodes for victim in victims),
        )

    def failed(self, failures: Sequence[tuple[Victim, OSError]]) -> None:
        for victim, error in failures:
            self._stuck.add((victim.entry.kind, victim.entry.id))
            self._failed.append(f"{victim.entry.kind} {victim.entry.id}: {error}")

    def result(self) -> CollectResult:
        left = list(self._entries.values())
        taken = sum(entry.bytes for entry in left)
        broken = unmet(self.limits, taken, self.space.free_bytes, self.space.free_inodes)
        return CollectResult(
            dry_run=self._dry_run,
            collected=tuple(self._collected),
            freed_bytes=sum(item.bytes for item in self._collected),
            freed_inodes=sum(item.inodes for item in self._collected),
            artifacts=sum(entry.kind == "artifact" for entry in left),
            bytes=taken,
            free_bytes=self.space.free_bytes,
            free_inodes=self.space.free_inodes,
            unmet=tuple(
                UnmetLimit(limit=u.limit, wanted=u.wanted, reached=u.reached, message=self._complaint(u, left))
                for u in broken
            ),
            failed=tuple(self._failed),
        )

    def _complaint(self, limit: Unmet, left: Sequence[Entry]) -> str:
        """Why a limit is not kept."""
        said = {
            "max_bytes": f"artifacts and releases take {in_units(limit.reached)}, more than {in_units(limit.wanted)}",
            "min_free_bytes": f"the disk has {in_units(limit.reached)} free, less than {in_units(limit.wanted)}",
            "min_free_inodes": f"the disk has {limit.reached} inodes free, less than {limit.wanted}",
        }[limit.limit]
        parts = (
            ("pinned", [entry for entry in left if entry.pinned]),
            ("in use", [e for e in left if e.in_use and not (e.pinned or self.is_stuck(e))]),
            ("that cannot be removed", [entry for entry in left if self.is_stuck(entry)]),
        )
        staying = [f"{len(some)} {why} ({in_units(sum(entry.bytes for entry in some))})" for why, some in parts if some]
        if not staying:
            return f"{said}, and there is no artifact left to go: something else takes the room"
        return f"{said}, and what is left must stay: {', '.join(staying)}"
