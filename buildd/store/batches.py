"""Batches of statements on their way to the database, and those that wait in memory until it takes them.

Invariants: batches leave the backlog in the order in which they were submitted, each whole; one that was kept is
never given up, but for its note when memory runs out; one that must not be kept leaves at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal

import trio

from buildd.store.sqlite import DatabaseError, Statement

KEEP_BYTES = 64 * 1024 * 1024
"""Memory for batches that cannot be written yet; beyond it they lose their notes."""
_KEPT_PART = 0.75
"""Of `KEEP_BYTES`, what is left when notes are dropped: so that it is not done for each batch."""
_OVERHEAD = 1024
"""Bytes that Python takes for a batch, its event and the journal's copy, besides the parameters."""

State = Literal["submitted", "stored", "kept", "withdrawn", "failed"]
Outcome = tuple["Commit", State, Exception | None]
"""What became of a batch now. One that was kept or withdrawn is `stored` when it, or what is in its place, is."""


class Commit:
    """A batch on its way to disk.

    `note` is a statement that reports on the others: it is written with them, by itself when they can never be,
    and is the first to go when memory runs out. Without `keep` the batch is written at once or never; then
    `instead` is written in its place. The statements are the writer thread's once it has been submitted.
    """

    __slots__ = (
        "_ended",
        "_settled",
        "done",
        "error",
        "instead",
        "keep",
        "lenient",
        "note",
        "size",
        "state",
        "statements",
    )

    def __init__(
        self,
        statements: Sequence[Statement],
        *,
        note: Statement | None = None,
        keep: bool = True,
        instead: Statement | None = None,
        lenient: bool = False,
    ) -> None:
        self.statements = statements
        self.note = note
        self.keep = keep
        self.instead = instead
        self.lenient = lenient
        """Rows that are there already are no fault."""
        self.size = 0
        """Bytes in memory once it is kept."""
        self.state: State = "submitted"
        self.done = False
        """Whether nothing of it, or in place of it, is still to be written."""
        self.error: DatabaseError | None = None
        """Why it is not on disk."""
        self._settled = trio.Event()
        self._ended: trio.Event | None = None

    @property
    def settled(self) -> bool:
        """Whether it is known what becomes of it."""
        return self.state != "submitted"

    def settle(self, state: State, error: DatabaseError | None) -> None:
        """Note what became of it. On trio's thread."""
        self.done = state in ("stored", "failed")
        if self.state != "withdrawn":  # for good, whatever becomes of what is in its place
            self.state, self.error = state, error
        self._settled.set()
        if self.done and self._ended is not None:
            self._ended.set()

    async def wait(self, *, kept: bool = False) -> None:
        """Return once the batch is on disk; with `kept`, also when it is kept in memory for later.

        Raises DatabaseError as soon as it is not: a batch that is kept will be written all the same.
        """
        await self._settled.wait()
        if self.error is not None and not (kept and self.state == "kept"):
            raise DatabaseError(self.error.message, hint=self.error.hint)

    async def wait_done(self) -> None:
        """Return once nothing of it is still to be written, however long the database is in trouble."""
        if not self.done:
            if self._ended is None:
                self._ended = trio.Event()
            await self._ended.wait()


class Backlog:
    """What has been submitted and is not on disk, oldest first. Of the writer's thread."""

    def __init__(self, limit: int = KEEP_BYTES) -> None:
        self._limit = limit
        self._batches: deque[Commit] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, commits: Iterable[Commit]) -> None:
        self._batches.extend(commits)

    def first(self, count: int) -> list[Commit]:
        return list(islice(self._batches, count))

    def pop(self) -> Commit:
        commit = self._batches.popleft()
        self._bytes -= commit.size
        return commit

    def keep(self) -> tuple[list[Commit], list[Commit]]:
        """Make all that is new here part of what is kept; what was kept, and what had to be withdrawn."""
        kept: list[Commit] = []
        withdrawn: list[Commit] = []
        for index in range(len(self._batches) - 1, -1, -1):  # new ones are at the end
            commit = self._batches[index]
            if commit.size:
                break
            if commit.keep:
                kept.append(commit)
            else:
                withdrawn.append(commit)
                commit.statements, commit.note, commit.keep = (), commit.instead, True
            commit.size = _size(commit)
            self._bytes += commit.size
        return kept[::-1], withdrawn[::-1]

    def shed(self) -> list[Commit]:
        """Drop the oldest notes when memory runs out; the batches that lost theirs."""
        if self._bytes <= self._limit:
            return []
        shed: list[Commit] = []
        for commit in self._batches:
            if self._bytes <= _KEPT_PART * self._limit:
                break
            if commit.note is not None:
                commit.note = None
                shed.append(commit)
                left = _size(commit) if commit.statements else 0
                self._bytes -= commit.size - left
                commit.size = left
        if shed:
            self._batches = deque(commit for commit in self._batches if commit.statements or commit.note is not None)
        return shed

    def begin_with(self, statements: list[Statement]) -> None:
        """Put a batch before all others, whose rows may be in the database by then."""
        commit = Commit(statements)
        commit.size = _size(commit)
        self._bytes += commit.size
        self._batches.appendleft(commit)
        for other in self._batches:
            other.lenient = True


def _size(commit: Commit) -> int:
    notes = [commit.note] if commit.note is not None else []
    parameters = (value for _, values in (*commit.statements, *notes) for value in values)
    return _OVERHEAD + sum(len(value) for value in parameters if isinstance(value, str | bytes))
