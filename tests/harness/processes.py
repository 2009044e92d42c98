"""Finding processes from the outside, by /proc, and waiting for conditions with a deadline."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

T = TypeVar("T")
COOKIE = "BUILDD_BUILD"
_TICK_S = 0.02


def until(condition: Callable[[], T], what: str, *, within: float = 20.0) -> T:
    """The first true result of `condition`; AssertionError naming `what` after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}; last seen: {result!r}"
        time.sleep(_TICK_S)


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty when it is gone or not ours to read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def with_environment(matches: Callable[[dict[str, str]], bool]) -> list[int]:
    """Living processes other than this one whose environment `matches`."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if matches(environment(pid)) and alive(pid)]


def with_cookie(builds: Collection[str]) -> list[int]:
    """Living processes that belong to one of these builds."""
    return with_environment(lambda variables: variables.get(COOKIE) in builds)


def command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def with_command(command: str) -> list[int]:
    """Living processes with exactly this command line."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if command_line(pid).strip() == command and alive(pid)]


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def killed_before(event: str, act: Callable[[], object], *, nth: int = 1) -> None:
    """Do something in a process of its own that dies, as by `kill -9`, at the `nth` audit event of Python's."""
    seen = itertools.count(1)

    def die(name: str, _: tuple[object, ...]) -> None:
        if name == event and next(seen) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork while threads of earlier tests linger: the child needs none
        child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(die)
            act()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"there was no {event}"


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
