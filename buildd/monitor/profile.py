"""Profiles of the daemon's memory: which lines of code allocated it.

Objects are not counted by type: `gc.get_objects` hands out tuples that other threads are in the middle of building,
and to hold one breaks that thread (SystemError: bad argument to internal function).

Invariant: a profile is complete or not there, and no more than KEPT of them are.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from buildd.monitor.space import in_units

KEPT = 10
_FRAMES = 4
"""Of the call stack, that tracing notes for each allocation."""
_LINES, _STACKS = 40, 10
"""Shown in a profile."""

_traced_since = 0.0


def trace() -> None:
    """Note from now on where memory is allocated."""
    global _traced_since
    if not tracemalloc.is_tracing():
        _traced_since = time.time()
        tracemalloc.start(_FRAMES)


def trace_no_more() -> None:
    """Stop that, and forget what was noted; what others began to trace goes on."""
    global _traced_since
    if _traced_since:
        _traced_since = 0.0
        tracemalloc.stop()


def is_tracing() -> bool:
    return tracemalloc.is_tracing()


def write(directory: Path, head: str) -> Path:
    """Write a profile that begins with `head`, and drop old ones; while allocations are traced. Takes seconds.

    Raises OSError.
    """
    text = "\n".join(_lines(head)) + "\n"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"memory-{time.strftime('%Y%m%dT%H%M%S')}.txt"
    temporary = directory / f".{path.name}.tmp"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    for old in sorted(directory.glob("memory-*.txt"))[:-KEPT]:
        old.unlink()
    return path


def _lines(head: str) -> Iterator[str]:
    snapshot = tracemalloc.take_snapshot().filter_traces(
        (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
    )
    since = f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(_traced_since))}" if _traced_since else ""
    total = sum(trace.size for trace in snapshot.traces)
    yield f"Memory of buildd, process {os.getpid()}, at {time.strftime('%Y-%m-%d %H:%M:%S')}"
    yield head
    yield ""
    yield f"Allocated {since} and not freed: {in_units(total)}. By line (bytes, blocks):"
    for statistic in snapshot.statistics("lineno")[:_LINES]:
        yield f"{in_units(statistic.size):>12} {statistic.count:>9}  {statistic.traceback}"
    yield ""
    yield "By call stack, innermost last:"
    for statistic in snapshot.statistics("traceback")[:_STACKS]:
        yield f"{in_units(statistic.size):>12} {statistic.count:>9}"
        yield from statistic.traceback.format()
