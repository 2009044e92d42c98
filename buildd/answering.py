"""The other end of `conversation`: how a child process answers what it is asked. Loaded at each start."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any, Generic, Protocol, TypeVar

import msgspec

_REPORT_INTERVAL_S = 0.1
_PR_SET_PDEATHSIG = 1


class _Progress(Protocol):
    @property
    def stage(self) -> str: ...


P = TypeVar("P", bound=_Progress)


class Answers(Generic[P]):
    """Writes answers as lines of JSON; progress of one stage at most ten times a second."""

    def __init__(self) -> None:
        """They go where standard output leads, which from now on is where standard error does."""
        self._fd = os.dup(1)
        os.dup2(2, 1)  # a stray print must not look like an answer
        self._encode = msgspec.json.Encoder().encode
        self.told: P | None = None
        """The progress that was told last."""
        self._next_at = 0.0

    def __call__(self, progress: P) -> None:
        now = time.monotonic()
        if self.told is None or progress.stage != self.told.stage or now >= self._next_at:
            self._next_at = now + _REPORT_INTERVAL_S
            self.told = progress
            self.send(progress)

    def send(self, answer: Any) -> None:
        data = memoryview(self._encode(answer) + b"\n")
        while data:
            data = data[os.write(self._fd, data) :]


def lead_group() -> None:
    """Lead the process group that is killed as one."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Get a signal when the parent ends. Raises ProcessLookupError when it is not the parent any more, OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot ask to die with the parent process")
    if os.getppid() != parent:
        raise ProcessLookupError("the parent process is gone")
