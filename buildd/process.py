"""The one door to child processes.

Each child leads a session of its own and is waited for through a pidfd, so its pid cannot be reused while we hold it.
How it is started is in `buildd.launch`.

Invariant: a `Process` is reaped exactly once, and no signal is sent after that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import trio

from buildd import shortage
from buildd.errors import is_shortage
from buildd.launch import Launch, Launcher

_live: set[int] = set()
_launcher = Launcher()
_KILL_LIMIT_S = 1.0
_RSS_MARGIN = 4 << 20  # the kernel's counters lag behind by some pages for each thread


def children(pid: int, *, but_of: int | None = None) -> list[int]:
    """Direct children of a process, of all its threads but one; empty when it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        if thread == str(but_of):
            continue
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
        except OSError:
            continue
    return found


def live_pids() -> frozenset[int]:
    """Pids of all children that were spawned here and are not reaped yet."""
    return frozenset(_live)


def _own_peak_bytes() -> int:
    """The most resident memory that this process image ever had (VmHWM of proc_pid_status(5))."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True)
class Exit:
    """How a child ended. `status` is as of `subprocess`: the exit code, or minus the signal number."""

    status: int
    cpu_s: float
    """User plus system seconds of the child and every descendant it waited for."""
    max_rss_bytes: int
    """Largest resident set of any single process among them, from getrusage(2).

    0 when that is not known: the kernel counts the moment before exec(2), in which the child shares our memory,
    so it never reports less than the most that this process ever had.
    """


class Process:
    """A running child; made by `spawn`. Use as a context manager: leaving kills and reaps it."""

    def __init__(self, pid: int) -> None:
        """Takes over a child that was just started; when that fails, it is killed and reaped. Raises OSError."""
        self.pid = pid
        _live.add(pid)
        try:
            self._own_peak = _own_peak_bytes()
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            _live.discard(pid)
            raise
        self.exit: Exit | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def wait(self) -> Exit:
        """Wait until the child itself has ended, and reap it. Cancellable; may be called again."""
        while self.exit is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            self.poll()  # who asks meanwhile may have reaped it
        return self.exit

    def poll(self) -> Exit | None:
        """The exit of the child, or None while it runs. Never blocks."""
        if self.exit is None:
            self._reap(os.WNOHANG)
        return self.exit

    def send_signal(self, number: int) -> None:
        """Signal the child alone; nothing happens when it is already reaped."""
        if self.exit is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill the child if it still runs, reap it, close the descriptors.

        Waits for the kernel, but not for ever: one that is stuck in it is reaped by a thread, whenever it ends.
        """
        if self.exit is None:
            self.kill()
            select.select([self._pidfd], [], [], _KILL_LIMIT_S)
            self._reap(os.WNOHANG)
        if self.exit is None:
            with contextlib.suppress(RuntimeError):  # no thread can be had: what is stuck stays with us
                threading.Thread(target=self._reap, args=(0,), name=f"reap-{self.pid}", daemon=True).start()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _reap(self, flags: int) -> None:
        pid, wait_status, usage = os.wait4(self.pid, flags)
        if pid == 0:
            return
        _live.discard(self.pid)
        status = os.waitstatus_to_exitcode(wait_status)
        largest = usage.ru_maxrss * 1024
        self.exit = Exit(
            status, usage.ru_utime + usage.ru_stime, largest if largest > self._own_peak + _RSS_MARGIN else 0
        )


async def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] = "/",
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    processors: Collection[int] | None = None,
    nice: int = 0,
) -> Process:
    """Start `argv` in a session of its own, with exactly `env` and no descriptors but 0-2, /dev/null unless given.

    It runs on `processors` alone, if they are named, and with a niceness of at least `nice`. Returns when it has
    executed its program; until then others have their turn. Raises OSError (no such program, EAGAIN, EMFILE, ENOMEM)
    with nothing left behind.
    """
    started: list[Process] = []
    launch = Launch(
        argv=argv,
        env=env,
        cwd=os.fspath(cwd),
        streams=(_descriptor(stdin), _descriptor(stdout), _descriptor(stderr)),
        processors=processors,
        nice=nice,
    )
    try:
        await _launcher.start(launch, lambda pid: started.append(Process(pid)))
    except OSError as error:
        if is_shortage(error):
            shortage.note("processes", f"no process can be started ({error.strerror})")
        raise
    shortage.clear("processes")
    return started[0]


def _descriptor(stream: int | IO[bytes] | None) -> int | None:
    return stream if stream is None or isinstance(stream, int) else stream.fileno()


def launcher_thread_id() -> int | None:
    """The thread that starts our children: /proc lists them as its own. None while it has not started one."""
    return _launcher.thread_id


Spawner = Callable[..., Awaitable[Process]]
"""The type of `spawn`, for what takes it as an argument."""
