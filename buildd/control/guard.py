"""Keeps the memory bounded that unfinished messages take.

libzmq limits the size of a frame and the number of messages, but not the frames of a message that never ends:
a client that speaks the wire protocol by itself can have it collect them without limit, out of our sight. So
resident memory is watched, and when it leaps, all connections of the control socket are shut down, which frees
what they had sent. Clients connect again by themselves, and no request that was accepted is lost by it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from pathlib import Path

import structlog
import trio

from buildd.process import own_resident_bytes

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


async def guard_memory(path: Path) -> None:
    """Watch until cancelled; `path` is that of the control socket."""
    least = resident = own_resident_bytes()
    while True:
        await trio.sleep(_ALERT_TICK_S if resident > least + _ALERT_BYTES else TICK_S)
        resident = own_resident_bytes()
        least = min(least, resident)
        if resident > least + LEAP_BYTES:
            least = resident = await _shut_until_relieved(path, least)


async def _shut_until_relieved(path: Path, least: int) -> int:
    """Shut connections, new ones too, until memory is below the limit or holds steady; what to measure from now."""
    steady, since = own_resident_bytes(), trio.current_time()
    while True:
        resident = own_resident_bytes()
        count = shut_connections(path)
        if count:
            log.warning("memory leapt; all control connections were shut", resident_bytes=resident, connections=count)
        await trio.sleep(TICK_S)
        _give_back()
        resident = own_resident_bytes()
        if resident <= least + LEAP_BYTES:
            return least
        if abs(resident - steady) > _STEADY_BYTES:
            steady, since = resident, trio.current_time()
        elif trio.current_time() > since + _STEADY_S:
            return resident


def _give_back() -> None:
    """Have the C library return to the kernel what is free: millions of small parts leave it in pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's alone
        trim(0)


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
