"""Who is busy with an artifact, and which artifacts are on their way out: in memory, for all threads.

Between the decision that an artifact may go and the end of its files there is time, in which a build may make the
same output again or somebody may ask for it. Invariant: an artifact is never held and withdrawn at once, and
whoever holds one may rely on its files until the hold ends.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager


class Holds:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._released: deque[str] = deque()
        """Holds that have ended and are yet to be taken off `_held`."""
        self._until: dict[str, float] = {}
        """Ends of the holds that end by themselves, on time.monotonic()'s clock."""
        self._withdrawn: set[str] = set()

    def take(self, output: str) -> bool:
        """Hold an artifact until `release`; False when it is withdrawn."""
        with self._lock:
            if output in self._withdrawn:
                return False
            self._is_held(output)  # so that what has ended does not pile up
            self._held[output] += 1
            return True

    def release(self, output: str) -> None:
        """End a hold. Takes no lock: the garbage collector may call this in the middle of anything."""
        self._released.append(output)

    @contextmanager
    def holding(self, output: str) -> Iterator[bool]:
        """Hold an artifact for as long as the block takes; gives False when it is withdrawn."""
        taken = self.take(output)
        try:
            yield taken
        finally:
            if taken:
                self.release(output)

    def keep_for(self, output: str, seconds: float) -> bool:
        """Hold an artifact for a while, or for longer than before; False when it is withdrawn."""
        now = time.monotonic()
        with self._lock:
            if output in self._withdrawn:
                return False
            self._until = {other: end for other, end in self._until.items() if end > now}
            self._until[output] = max(self._until.get(output, 0.0), now + seconds)
            return True

    def is_held(self, output: str) -> bool:
        with self._lock:
            return self._is_held(output)

    def _is_held(self, output: str) -> bool:
        while self._released:
            ended = self._released.popleft()
            self._held[ended] -= 1
            if self._held[ended] <= 0:
                del self._held[ended]
        return output in self._held or self._until.get(output, 0.0) > time.monotonic()

    def withdraw(self, output: str) -> bool:
        """Let nobody hold an artifact any more; False when somebody does."""
        with self._lock:
            if self._is_held(output):
                return False
            self._withdrawn.add(output)
            return True

    def is_withdrawn(self, output: str) -> bool:
        return output in self._withdrawn

    def restore(self, output: str) -> None:
        """The artifact is there again for all, or its files are gone."""
        with self._lock:
            self._withdrawn.discard(output)
