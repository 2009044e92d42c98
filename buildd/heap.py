"""The heap: what a long-running process with worker threads tells the C library and Python, to stay small and quick.

glibc gives each thread an arena of its own and returns little of what was freed; after a run of ten thousand packages
that is tens of megabytes. Other C libraries have none of this, and there nothing is done.
"""

from __future__ import annotations

import ctypes
import gc

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


def settle() -> None:
    """What is there now stays: spare Python's collector looking through it each time, which takes some 30 ms."""
    gc.collect()
    gc.freeze()
