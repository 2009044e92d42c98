"""The one door to processes below the map process: a child that serves requests over two pipes.

A fork, not a new interpreter: what is imported is shared, and a child is there within a millisecond. The map process
has one thread, so nothing can be held by another one that the child does not have.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from buildd.answering import die_with

_PIPE_BYTES = 1 << 20


class Child:
    """A process that runs `serve(read_fd, write_fd)` until that returns, and never outlives its parent."""

    def __init__(self, serve: Callable[[int, int], None], max_memory: int) -> None:
        """It gets no more than `max_memory` bytes in addition to what it has from its parent."""
        theirs_in, self.requests = os.pipe()
        self.replies, theirs_out = os.pipe()
        with suppress(OSError):  # there is a limit for all pipes of a user; then it waits for its parent more often
            fcntl.fcntl(self.replies, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        parent = os.getpid()
        self._inherited = _memory(parent)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                die_with(parent)
                for fd in (self.requests, self.replies):
                    os.close(fd)
                limit = _data() + max_memory
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                serve(theirs_in, theirs_out)
                status = 0
            except BaseException as error:  # whatever it is, it must not go on as a second parent
                print(f"parser: {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
            finally:
                os._exit(status)
        os.close(theirs_in)
        os.close(theirs_out)

    def cpu_s(self) -> float:
        """Processor time that it has used (clock_getcpuclockid(3))."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def growth(self) -> int:
        """Bytes in memory, not backed by files, beyond what it had from its parent."""
        return _memory(self.pid) - self._inherited

    def end(self, *, kill: bool) -> int:
        """Close the pipes, and wait until it is gone; the status of waitpid(2)."""
        os.close(self.requests)
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.replies)
        return os.waitpid(self.pid, 0)[1]


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * resource.getpagesize()


def _data() -> int:
    """What counts against RLIMIT_DATA."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
