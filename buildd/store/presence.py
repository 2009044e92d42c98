"""Which artifacts are there, kept current at the price of one `stat` per directory.

Whoever has planned with an artifact wants to hear when it goes, whoever removed it: `vanished` compares the
directories with what they held at the call before, and reads only those whose time has changed.

Invariant: an artifact that `vanished` has seen, or was told of by `saw`, is reported when it is gone, and only once;
a directory that cannot be read at present loses nothing.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

NAME = 64
"""Characters of an output id; other names in the directories are not artifacts."""

_SETTLED_NS = 50_000_000
"""A directory that changed more recently than this may change again without a new time: clocks of file systems are
coarse, by up to 10 ms where the kernel ticks 100 times a second."""

_PREFIXES = tuple(f"{n:02x}" for n in range(256))


class _Listing(NamedTuple):
    mtime_ns: int
    """-1 when the next call must read the directory again."""
    names: frozenset[str]


class Presence:
    def __init__(self, root: Path) -> None:
        """`root` holds the directories `00` to `ff`, each with artifacts whose ids begin like that."""
        self._directories = tuple(f"{root}/{prefix}" for prefix in _PREFIXES)
        self._listings: dict[str, _Listing] = {}
        self._added: dict[str, set[str]] = {}
        """By directory, artifacts that came after it was read."""
        self._lock = threading.Lock()

    def saw(self, output: str) -> None:
        """An artifact is there, read or not: it may be gone before the next call of `vanished`."""
        with self._lock:
            self._added.setdefault(self._directories[int(output[:2], 16)], set()).add(output)

    def vanished(self) -> set[str]:
        """Output ids that were there before and are no longer. Blocks, but hardly."""
        gone: set[str] = set()
        listings = self._listings
        with self._lock:
            for directory in self._directories:
                known = listings.get(directory)
                try:
                    mtime_ns = os.stat(directory).st_mtime_ns
                    if known is not None and known.mtime_ns == mtime_ns:
                        continue
                    fresh = _read(directory, mtime_ns)
                except (FileNotFoundError, NotADirectoryError):
                    if known is None and directory not in self._added:
                        continue
                    fresh = _Listing(-1, frozenset())
                except OSError:
                    continue  # what cannot be read now has not vanished
                if known is not None:
                    gone |= known.names - fresh.names
                gone |= self._added.pop(directory, set()) - fresh.names
                listings[directory] = fresh
        return gone


def _read(directory: str, mtime_ns: int) -> _Listing:
    settled = mtime_ns < time.time_ns() - _SETTLED_NS
    names = frozenset(name for name in os.listdir(directory) if len(name) == NAME)
    return _Listing(mtime_ns if settled else -1, names)
