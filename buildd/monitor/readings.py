"""What the kernel says about this machine and this process. Small reads of /proc, none of which blocks."""

from __future__ import annotations

import os

import psutil
from msgspec import Struct

from buildd import descriptors
from buildd.process import children
from buildd.protocol import DaemonResources

_process = psutil.Process()
_seen = DaemonResources(rss_bytes=0, open_files=0, threads=0, children=0)


class Machine(Struct, frozen=True, kw_only=True):
    load_1m: float
    processors: int
    """That the load is shared by: all of the machine, not only those that this process may use."""
    memory_total_bytes: int
    memory_available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int


def read_machine() -> Machine:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Machine(
        load_1m=os.getloadavg()[0],
        processors=os.cpu_count() or 1,
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        swap_total_bytes=swap.total,
        swap_used_bytes=swap.used,
    )


def read_daemon() -> DaemonResources:
    """What this process uses, without its children; as it was last seen, when no descriptor is left to look with."""
    global _seen
    try:
        with _process.oneshot():
            _seen = DaemonResources(
                rss_bytes=_process.memory_info().rss,
                open_files=descriptors.in_use(),
                threads=_process.num_threads(),
                children=len(children(os.getpid())),
            )
    except OSError:
        pass
    return _seen
