"""Keeps the memory bounded that unfinished messages take, and descriptors free for connections.

libzmq limits the size of a frame and the number of messages, but not the frames of a message that never ends:
a client that speaks the wire protocol by itself can have it collect them without limit, out of our sight. So
resident memory is watched, and when it leaps, all connections of the control socket are shut down, which frees
what they had sent. Clients connect again by themselves, and no request that was accepted is lost by it.

And libzmq aborts the process when it cannot accept a connection for want of a descriptor. So before that happens, its
listener is closed, and all connections with it; who comes then waits until there are descriptors again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import structlog
import trio

from buildd import descriptors, heap

log = structlog.get_logger()

TICK_S = 0.25
_ALERT_TICK_S = 0.05
_ALERT_BYTES = 16 << 20
"""More than the least that was seen: from here on, look more often."""
LEAP_BYTES = 192 << 20
"""More resident memory than the least that was seen. Planning 10,000 packages takes some 100 MiB."""
_STEADY_BYTES = 8 << 20
_STEADY_S = 2.0
"""Memory that changes no more than so much for so long is in use by something else, and the new measure."""
_CONNECTIONS_PER_S = 20_000
"""About as many as one client can open."""


class Door(Protocol):
    def open(self) -> None:
        """Accept connections."""

    def close(self) -> None:
        """Shut all connections, and leave those who come in the kernel's queue."""


async def guard_memory(path: Path) -> None:
    """Watch until cancelled; `path` is that of the control socket."""
    with _resident_bytes() as resident:
        least = now = resident()
        while True:
            await trio.sleep(_ALERT_TICK_S if now > least + _ALERT_BYTES else TICK_S)
            now = resident()
            least = min(least, now)
            if now > least + LEAP_BYTES:
                least = now = await _shut_until_relieved(path, least, resident)


@contextlib.contextmanager
def _resident_bytes() -> Iterator[Callable[[], int]]:
    """Asks for resident memory, by a descriptor that is kept: there may be no other one when it counts."""
    page = os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/statm", "rb", buffering=0) as file:
        yield lambda: int(os.pread(file.fileno(), 256, 0).split()[1]) * page


async def _shut_until_relieved(path: Path, least: int, resident: Callable[[], int]) -> int:
    """Shut connections, new ones too, until memory is below the limit or holds steady; what to measure from now."""
    steady, since = resident(), trio.current_time()
    while True:
        now = resident()
        count = shut_connections(path)
        if count:
            log.warning("memory leapt; all control connections were shut", resident_bytes=now, connections=count)
        await trio.sleep(TICK_S)
        heap.give_back()
        now = resident()
        if now <= least + LEAP_BYTES:
            return least
        if abs(now - steady) > _STEADY_BYTES:
            steady, since = now, trio.current_time()
        elif trio.current_time() > since + _STEADY_S:
            return now


async def guard_descriptors(door: Door) -> None:
    """Close the door while descriptors are all but gone, until cancelled."""
    while True:
        await trio.sleep(_look_every())
        if not descriptors.all_but_gone():
            continue
        used = descriptors.in_use()
        door.close()
        log.error("file descriptors run out; all control connections are shut", open_files=used)
        await descriptors.wait_for_connections()
        door.open()


def _look_every() -> float:
    """Seconds between looks: the fewer descriptors are left for connections, the sooner they may be taken."""
    last = descriptors.kept_back(descriptors.limit()) // 2
    return min(TICK_S, max(_ALERT_TICK_S / 4, last / _CONNECTIONS_PER_S))


def shut_connections(path: Path) -> int:
    """Shut down every accepted connection of the Unix socket at `path` in this process; how many there were."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # gone
        with connection:
            try:
                if connection.family != socket.AF_UNIX or connection.getsockname() != os.fspath(path):
                    continue
                if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # shut, it would end libzmq
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
            except OSError:
                continue
    return count
