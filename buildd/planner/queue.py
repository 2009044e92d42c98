"""Which package is built next: the ready queue of all runs together.

Order: longest critical path first, then the run's priority, then the older run, then the name. An entry whose
package was cancelled stays in the heap and is passed over by the caller; the heap is rebuilt by nobody.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple


class Ready(NamedTuple):
    """A package whose dependencies are done."""

    run: int
    """Number of the run."""
    package: str


class ReadyQueue:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, str]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, ready: Ready, *, urgency: float, priority: int) -> None:
        """Add a package; `urgency` in seconds as of `graph.urgency`, higher first; `priority` likewise."""
        heapq.heappush(self._heap, (-urgency, -priority, ready.run, ready.package))

    def pop(self) -> Ready | None:
        """The most urgent package, removed; None when there is none."""
        if not self._heap:
            return None
        _, _, run, package = heapq.heappop(self._heap)
        return Ready(run, package)
