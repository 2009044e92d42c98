"""The one door to child processes.

Children are started from the main thread: PR_SET_PDEATHSIG (bwrap --die-with-parent) is tied to the thread
that forked, and a worker thread that idles away would take the child with it. Each child leads a session of
its own and is waited for through a pidfd, so its pid cannot be reused while we hold it.

Invariant: a `Process` is reaped exactly once, and no signal is sent after that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import trio

from buildd import shortage
from buildd.errors import is_shortage

_live: set[int] = set()
_KILL_LIMIT_S = 1.0
_RSS_MARGIN = 4 << 20  # the kernel's counters lag behind by some pages for each thread


def children(pid: int) -> list[int]:
    """Direct children of a process, of all its threads; empty when it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
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

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen
        _live.add(popen.pid)
        self._own_peak = _own_peak_bytes()
        self._pidfd = os.pidfd_open(popen.pid)
        self.exit: Exit | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def stdin(self) -> IO[bytes] | None:
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        return self._popen.stdout

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
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _reap(self, flags: int) -> None:
        pid, wait_status, usage = os.wait4(self.pid, flags)
        if pid == 0:
            return
        _live.discard(self.pid)
        status = os.waitstatus_to_exitcode(wait_status)
        self._popen.returncode = status  # tells Popen that nothing is left to wait for
        largest = usage.ru_maxrss * 1024
        self.exit = Exit(
            status, usage.ru_utime + usage.ru_stime, largest if largest > self._own_peak + _RSS_MARGIN else 0
        )


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] = "/",
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    processors: Collection[int] | None = None,
    nice: int = 0,
) -> Process:
    """Start `argv` in a session of its own, with exactly `env` and no descriptors but 0-2 and `pass_fds`.

    It runs on `processors` alone, if they are named, and with a niceness of at least `nice`.
    Raises OSError (no such program, EAGAIN, EMFILE, ENOMEM) with nothing left behind.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("processes are spawned from the main thread only: PDEATHSIG follows the thread")
    try:
        with _bound_to(processors):
            process = _start(argv, dict(env), cwd, stdin, stdout, stderr, pass_fds, nice)
    except OSError as error:
        if is_shortage(error):
            shortage.note("processes", f"no process can be started ({error.strerror})")
        raise
    shortage.clear("processes")
    return process


def _start(
    argv: Sequence[str],
    env: dict[str, str],
    cwd: str | os.PathLike[str],
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    pass_fds: Sequence[int],
    nice: int,
) -> Process:
    popen = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        if nice > 0:
            os.setpriority(os.PRIO_PGRP, popen.pid, nice)  # with what it may have started by now
        return Process(popen)
    except OSError:
        popen.kill()
        popen.wait()
        _live.discard(popen.pid)
        raise


@contextlib.contextmanager
def _bound_to(processors: Collection[int] | None) -> Iterator[None]:
    """Have this thread, and so the child that it makes, run on these processors for a moment."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


Spawner = Callable[..., Process]
"""The type of `spawn`, for what takes it as an argument."""
