"""Process trees by /proc: finding what belongs to a build, and making sure that it is gone.

Three ways lead to a process of a build: descent from the process we started, the cookie `BUILDD_BUILD=<id>`
in its environment (it survives double forks and new sessions), and, where the daemon is a subreaper, being
handed to us as an orphan. None is complete alone; together they leave nothing but processes that scrubbed
their environment *and* were adopted elsewhere, which a pid namespace catches.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import trio

from buildd.process import children as children, live_pids

COOKIE = "BUILDD_BUILD"
_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents before children, without `pid` itself."""
    found: list[int] = []
    stack = children(pid)
    while stack:
        child = stack.pop()
        found.append(child)
        stack.extend(children(child))
    return found


def processes() -> Iterator[int]:
    """All process ids that we can see."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def cookie_of(pid: int, name: str = COOKIE) -> str | None:
    """Value of the variable in the environment a process was started with; None without or not ours to read."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    wanted = name.encode() + b"="
    for entry in environment.split(b"\0"):
        if entry.startswith(wanted):
            return entry[len(wanted) :].decode(errors="replace")
    return None


def with_cookie(matches: Callable[[str], bool], name: str = COOKIE) -> list[int]:
    """Processes other than us whose cookie `matches`."""
    own = os.getpid()
    found = []
    for pid in processes():
        value = cookie_of(pid, name) if pid != own else None
        if value is not None and matches(value):
            found.append(pid)
    return found


def resident_bytes(pids: Iterable[int]) -> list[int]:
    """Resident memory of each of these processes that still runs; shared pages count for each that has them."""
    page = os.sysconf("SC_PAGE_SIZE")
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                found.append(int(file.read().split()[1]) * page)
        except (OSError, IndexError, ValueError):
            continue
    return found


def signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def become_subreaper() -> None:
    """Have orphans below this process handed to it instead of to pid 1. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def adopted() -> list[int]:
    """Our children that we did not spawn: orphans handed to a subreaper."""
    known = live_pids()
    return [pid for pid in children(os.getpid()) if pid not in known]


def reap_adopted() -> None:
    """Reap those orphans that have ended."""
    for pid in adopted():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X")


def started_at(pid: int) -> bytes | None:
    """When a process started, in the kernel's ticks since boot: with its pid it names the process for good."""
    fields = _stat(pid)
    return fields[19] if fields else None


def _stat(pid: int) -> list[bytes]:
    """The fields of proc_pid_stat(5) from the state on, which is the third; empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


async def kill_until_gone(find: Callable[[], list[int]], *, within: float) -> list[int]:
    """SIGKILL whatever `find` returns until it returns nothing; the survivors after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        victims = [pid for pid in find() if alive(pid)]
        if not victims or time.monotonic() > deadline:
            return victims
        signal_all(victims, signal.SIGKILL)
        await trio.sleep(0.005)
