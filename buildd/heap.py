"""The C library's heap: what a long-running process with worker threads tells it, to stay small.

glibc gives each thread an arena of its own and returns little of what was freed; after a run of ten thousand packages
that is tens of megabytes. Other C libraries have none of this, and there nothing is done.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
_ARENAS = 2


def few_arenas() -> None:
    """Share the heap between threads; before there are any."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    except (AttributeError, OSError):
        pass


def give_back() -> None:
    """Return freed memory to the system. Blocks for milliseconds, without holding up other threads."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass
