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
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import trio

from buildd.errors import is_shortage
from buildd.process import children as children, launcher_thread_id, live_pids

COOKIE = "BUILDD_BUILD"
_PROC = Path("/proc")
_PAGE, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_PF_KTHREAD = 0x00200000
_EXEC_WITHIN_S = 0.1


def descendants(pid: int, most: int = sys.maxsize) -> list[int]:
    """The processes below `pid`, parents before children, without `pid` itself; at least `most` if there are more."""
    found: list[int] = []
    stack = children(pid)
    while stack and len(found) < most:
        child = stack.pop()
        found.append(child)
        stack.extend(children(child))
    return found


def processes() -> Iterator[int]:
    """All process ids that we can see."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def cookie_of(pid: int, name: str = COOKIE) -> str | None:
    """Value of the variable in the environment a process was started with; None without or not ours to read.

    Raises OSError when the machine is too short of something to tell.
    """
    return cookies([pid], name).get(pid)


def cookies(pids: Iterable[int], name: str = COOKIE) -> dict[int, str]:
    """That value of each of these processes that has one, by pid. Raises OSError when that cannot be told.

    While execve(2) replaces a program there is no environment to read for a moment, which is waited for.
    """
    wanted = name.encode() + b"="
    found: dict[int, str] = {}
    deadline = time.monotonic() + _EXEC_WITHIN_S
    while True:
        again = []
        for pid in pids:
            environment = _environment(pid)
            for entry in environment.split(b"\0"):
                if entry.startswith(wanted):
                    found[pid] = entry[len(wanted) :].decode(errors="replace")
                    break
            if not environment and _may_be_in_exec(pid):
                again.append(pid)
        if not again or time.monotonic() > deadline:
            return found
        pids = again
        time.sleep(0.001)


def _environment(pid: int) -> bytes:
    """The environment a process was started with; empty when it is gone, or not ours to read."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except OSError as error:
        if is_shortage(error):
            raise
        return b""


def _may_be_in_exec(pid: int) -> bool:
    """Whether a process that showed no environment may show one in a moment; from proc_pid_stat(5)."""
    fields = _stat(pid)
    return len(fields) > 6 and fields[0] in (b"R", b"D") and not int(fields[6]) & _PF_KTHREAD


def with_cookie(matches: Callable[[str], bool], name: str = COOKIE) -> list[int]:
    """Processes other than us whose cookie `matches`. Raises OSError when that cannot be told."""
    own = os.getpid()
    return [pid for pid, value in cookies((pid for pid in processes() if pid != own), name).items() if matches(value)]


class Use(NamedTuple):
    """What a process has and has used."""

    resident_bytes: int
    """Shared pages count for each process that has them."""
    cpu_s: float
    """User plus system time, of the children that it waited for too."""
    threads: int


def uses(pids: Iterable[int]) -> list[Use]:
    """Of each of these processes that still runs; from proc_pid_stat(5)."""
    found = []
    for pid in pids:
        fields = _stat(pid)
        if len(fields) > 21:
            found.append(Use(int(fields[21]) * _PAGE, sum(map(int, fields[11:15])) / _TICKS, int(fields[17])))
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
    """Our children that we did not spawn: orphans handed to a subreaper.

    The kernel hands them to the process's first thread, and those that we start, and may not know of yet, are
    children of the thread that starts them.
    """
    known, launcher = live_pids(), launcher_thread_id()
    return [pid for pid in children(os.getpid(), but_of=launcher) if pid not in known]


def reap_adopted() -> None:
    """Reap those orphans that have ended."""
    for pid in adopted():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie. Raises OSError when that cannot be told."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X")


def started_at(pid: int) -> bytes | None:
    """When a process started, in the kernel's ticks since boot: with its pid it names the process for good.

    None when it is gone. Raises OSError when that cannot be told.
    """
    fields = _stat(pid)
    return fields[19] if fields else None


def session_of(pid: int) -> int | None:
    """Id of the session that a process is in; None when it is gone."""
    fields = _stat(pid)
    return int(fields[3]) if fields else None


def _stat(pid: int) -> list[bytes]:
    """The fields of proc_pid_stat(5) from the state on, which is the third; empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError as error:
        if is_shortage(error):
            raise
        return []


async def kill_until_gone(find: Callable[[], Awaitable[list[int]]], *, within: float) -> list[int]:
    """SIGKILL whatever `find` returns until it returns nothing; the survivors after `within` seconds.

    What cannot be told for want of descriptors or memory is asked again. Raises OSError when it never could be.
    """
    deadline = time.monotonic() + within
    pause = 0.005
    while True:
        try:
            victims = [pid for pid in await find() if alive(pid)]
        except OSError as error:
            if not is_shortage(error) or time.monotonic() > deadline:
                raise
            pause = 0.1
        else:
            if not victims or time.monotonic() > deadline:
                return victims
            _kill_groups(victims)
            signal_all(victims, signal.SIGKILL)
        await trio.sleep(pause)


def _kill_groups(pids: Iterable[int]) -> None:
    """SIGKILL to the process groups of these processes, each as one: what forks faster than it is found ends too.

    A group is part of one session, and whoever is in the session of a build's process is the build's.
    """
    groups = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
