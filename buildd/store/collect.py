"""Which of the things that builds left behind go when there is to be less of them. Pure: no disk, no clock.

What is too old goes first; then, while there is too much of it or the disk has too little room, what was used least
recently. Damaged artifacts are of no use and go before all others.

Invariants: what is pinned or in use is never chosen; nothing is chosen that no limit asks for; a limit that cannot
be met is named, and then nothing more could have gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from buildd.config import CacheConfig
from buildd.monitor.space import Space as Space

Kind = Literal["artifact", "release", "damaged"]
Reason = Literal["age", "size", "free_space", "free_inodes"]
LimitName = Literal["max_bytes", "min_free_bytes", "min_free_inodes"]

FREE_SHARE = 10
"""Of a small file system no more than this part (one tenth) is to be kept free, whatever the limits ask for."""


class Entry(Struct, frozen=True, kw_only=True):
    """Something on the disk that may go as a whole."""

    id: str
    """Output id of an artifact, number of a run's release, name of a damaged artifact."""
    kind: Kind = "artifact"
    bytes: int
    """What the disk gets back when it goes (together with the `releases` that share files with it)."""
    inodes: int
    last_used: float
    pinned: bool = False
    in_use: bool = False
    releases: tuple[str, ...] = ()
    """Releases that have packed forms of this artifact: they go with it, else its bytes would not be free."""


class Limits(Struct, frozen=True, kw_only=True):
    """0 sets no limit."""

    max_bytes: int = 0
    max_age: float = 0.0
    min_free_bytes: int = 0
    min_free_inodes: int = 0


class Victim(Struct, frozen=True, kw_only=True):
    entry: Entry
    reason: Reason


class Unmet(Struct, frozen=True, kw_only=True):
    """A limit that would still not be kept."""

    limit: LimitName
    wanted: int
    reached: int


class Choice(Struct, frozen=True, kw_only=True):
    victims: tuple[Victim, ...]
    """In the order in which they are to go."""
    unmet: tuple[Unmet, ...]


def limits_of(config: CacheConfig) -> Limits:
    return Limits(
        max_bytes=config.max_bytes,
        max_age=config.max_age,
        min_free_bytes=config.min_free_bytes,
        min_free_inodes=config.min_free_inodes,
    )


def attainable(limits: Limits, space: Space) -> Limits:
    """The limits as they are applied on this file system: a small one is not to be emptied for its free space."""
    return msgspec.structs.replace(
        limits,
        min_free_bytes=min(limits.min_free_bytes, space.total_bytes // FREE_SHARE),
        min_free_inodes=min(limits.min_free_inodes, space.total_inodes // FREE_SHARE),
    )


def short_of_space(limits: Limits, space: Space) -> bool:
    """Whether the limits on free space and inodes are not kept."""
    return space.free_bytes < limits.min_free_bytes or space.free_inodes < limits.min_free_inodes


def choose(entries: Iterable[Entry], limits: Limits, space: Space, *, now: float, slack: float = 0.0) -> Choice:
    """What goes, and which limits cannot be met.

    `slack` is for those who choose again and again: a limit that is not kept now is then outdone by this part of
    it, so that the very next build does not break it again.
    """
    state = _State(list(entries), limits, space)
    for entry in state.candidates:
        if limits.max_age and entry.last_used < now - limits.max_age:
            state.take(entry, "age")
    goals = _goals(limits, state, slack)
    for entry in state.candidates:
        reason = state.violated(goals)
        if reason is None:
            break
        if entry.id not in state.taken[entry.kind]:
            state.take(entry, reason)
    return Choice(victims=tuple(state.victims), unmet=unmet(limits, state.bytes, state.free_bytes, state.free_inodes))


def unmet(limits: Limits, taken: int, free_bytes: int, free_inodes: int) -> tuple[Unmet, ...]:
    """The limits that are not kept when entries of so many bytes are there, and so much is free."""
    found = []
    if 0 < limits.max_bytes < taken:
        found.append(Unmet(limit="max_bytes", wanted=limits.max_bytes, reached=taken))
    if free_bytes < limits.min_free_bytes:
        found.append(Unmet(limit="min_free_bytes", wanted=limits.min_free_bytes, reached=free_bytes))
    if free_inodes < limits.min_free_inodes:
        found.append(Unmet(limit="min_free_inodes", wanted=limits.min_free_inodes, reached=free_inodes))
    return tuple(found)


class _State:
    """The disk as it will be when the victims so far have gone."""

    def __init__(self, entries: Sequence[Entry], limits: Limits, space: Space) -> None:
        self.entries = entries
        self.candidates = sorted((e for e in entries if not (e.pinned or e.in_use)), key=_order)
        self.releases = {e.id: e for e in entries if e.kind == "release"}
        self.victims: list[Victim] = []
        self.taken: dict[Kind, set[str]] = {"artifact": set(), "release": set(), "damaged": set()}
        self.bytes = sum(e.bytes for e in entries)
        self.free_bytes = space.free_bytes
        self.free_inodes = space.free_inodes

    def take(self, entry: Entry, reason: Reason) -> None:
        for release in map(self.releases.get, entry.releases):
            if release is not None and release.id not in self.taken["release"]:
                self._take(release, reason)
        if entry.id not in self.taken[entry.kind]:
            self._take(entry, reason)

    def _take(self, entry: Entry, reason: Reason) -> None:
        self.victims.append(Victim(entry=entry, reason=reason))
        self.taken[entry.kind].add(entry.id)
        self.bytes -= entry.bytes
        self.free_bytes += entry.bytes
        self.free_inodes += entry.inodes

    def violated(self, limits: Limits) -> Reason | None:
        if limits.max_bytes and self.bytes > limits.max_bytes:
            return "size"
        if self.free_bytes < limits.min_free_bytes:
            return "free_space"
        if self.free_inodes < limits.min_free_inodes:
            return "free_inodes"
        return None


def _order(entry: Entry) -> tuple[bool, float, str, str]:
    return entry.kind != "damaged", entry.last_used, entry.kind, entry.id


def _goals(limits: Limits, state: _State, slack: float) -> Limits:
    """The limits, those that are not kept now made stricter by `slack`."""
    over = 0 < limits.max_bytes < state.bytes
    return msgspec.structs.replace(
        limits,
        max_bytes=max(1, int(limits.max_bytes * (1 - slack))) if over else limits.max_bytes,
        min_free_bytes=_raised(limits.min_free_bytes, state.free_bytes, slack),
        min_free_inodes=_raised(limits.min_free_inodes, state.free_inodes, slack),
    )


def _raised(limit: int, free: int, slack: float) -> int:
    return int(limit * (1 + slack)) if free < limit else limit
