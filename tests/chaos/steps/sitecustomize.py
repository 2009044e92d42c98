"""Python imports this at its start where PYTHONPATH names its directory: it lets a daemon die at a chosen step.

A step is a change of names on the disk (made, renamed, linked, removed, opened for writing) or the start of a
process, asked for by code of buildd and about to be done. They come from Python's audit events, so that nothing of
the daemon is replaced or knows of this. What C libraries do by themselves (SQLite, libgit2) is no step.

BUILDD_STEPS=FILE       write each step to the file, as `EVENT FILE:LINE`
BUILDD_DIE_AT=N STEP    SIGKILL in place of the Nth step of this name, or with no LINE in it, of this file
BUILDD_DIE_AFTER=N      SIGKILL in place of the Nth step of all
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_CODE = f"{os.sep}buildd{os.sep}"
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_KINDS = frozenset(
    (
        *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
        *("subprocess.Popen", "open"),
    )
)


def _place(frame: FrameType | None) -> str | None:
    """The innermost line of the daemon's own code, as `buildd/…:LINE`."""
    while frame is not None:
        _, found, rest = frame.f_code.co_filename.rpartition(_CODE)
        if found:
            return f"buildd/{rest}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class _Steps:
    def __init__(self, notes: str | None, at: str | None, after: str | None) -> None:
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if notes else -1
        number, _, self._name = (at or "0 ").partition(" ")
        self._left = int(number)
        self._left_of_all = int(after or 0)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in _KINDS or (event == "open" and not _writes(arguments)):
            return
        place = _place(sys._getframe(1))
        if place is None:
            return
        step = f"{event} {place}"
        if self._notes >= 0:
            os.write(self._notes, f"{step}\n".encode())
        if self._name in (step, step.rpartition(":")[0]):
            self._left -= 1
            if self._left == 0:
                _die()
        if self._left_of_all:
            self._left_of_all -= 1
            if self._left_of_all == 0:
                _die()


def _writes(arguments: tuple[object, ...]) -> bool:
    _, mode, flags = arguments
    return bool(isinstance(flags, int) and flags & _CHANGES) and mode != "rb"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if {"BUILDD_STEPS", "BUILDD_DIE_AT", "BUILDD_DIE_AFTER"} & os.environ.keys():
    sys.addaudithook(_Steps(*(os.environ.get(name) for name in ("BUILDD_STEPS", "BUILDD_DIE_AT", "BUILDD_DIE_AFTER"))))
