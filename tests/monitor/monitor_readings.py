"""Readings of a machine that is short of nothing, but for what a test says."""

from __future__ import annotations

from typing import Any

import msgspec

from buildd.monitor.readings import Machine
from buildd.monitor.sampler import Reading
from buildd.protocol import Sample

GIB = 1 << 30


def machine(**changes: Any) -> Machine:
    """One with two processors."""
    idle = Machine(
        load_1m=0.0,
        processors=2,
        memory_total_bytes=16 * GIB,
        memory_available_bytes=12 * GIB,
        swap_total_bytes=4 * GIB,
        swap_used_bytes=0,
    )
    return msgspec.structs.replace(idle, **changes)


def reading(seen: Machine | None = None, *, rss_bytes: int = 60 << 20) -> Reading:
    seen = seen or machine()
    sample = Sample(
        at=1.7e9,
        rss_bytes=rss_bytes,
        open_files=20,
        threads=4,
        children=1,
        load_1m=seen.load_1m,
        memory_total_bytes=seen.memory_total_bytes,
        memory_available_bytes=seen.memory_available_bytes,
        swap_total_bytes=seen.swap_total_bytes,
        swap_used_bytes=seen.swap_used_bytes,
        free_bytes=GIB,
        free_inodes=None,
        busy=0,
        queued=0,
    )
    return Reading(1, sample, seen)
