"""The processes that benchmarks leave running beside them, and the end of all of them.

Invariant: what `start` has started is known here before an interrupt can strike, so `end_all` misses nothing,
whatever was interrupted where.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_started: list[subprocess.Popen[bytes]] = []
_starting = False
_interrupted = False


def catch_interrupts() -> None:
    """From now on the first of SIGINT, SIGTERM and SIGHUP raises KeyboardInterrupt; later ones are ignored."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    _interrupted = True
    if not _starting:
        raise KeyboardInterrupt


def start(command: Sequence[str], **arguments: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen` in a session of its own. An interrupt while the process is being made waits for that."""
    global _starting
    _starting = True
    try:
        process = subprocess.Popen(command, start_new_session=True, **arguments)
        _started.append(process)
    finally:
        _starting = False
    if _interrupted:
        raise KeyboardInterrupt
    return process


def end_all() -> None:
    """Kill what is still running of all that was started, with its process groups."""
    for process in _started:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _started.clear()
