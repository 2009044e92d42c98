"""What the machine is short of, as those who met it say: for the daemon's status, and for its log.

A shortage passes when somebody gets what was short, or when nobody has asked for it in vain for a while.
"""

from __future__ import annotations

import time
from typing import Literal

import structlog
from msgspec import Struct

log = structlog.get_logger()

Kind = Literal["threads", "processes", "descriptors"]

REMEMBERED_S = 60.0
"""After the last time that somebody met it."""
_HINTS: dict[Kind, str] = {
    "threads": "raise the limit of processes of the daemon's user (TasksMax=, ulimit -u), or free memory",
    "processes": "raise the limits of the daemon on processes and open files (TasksMax=, LimitNOFILE=), or free memory",
    "descriptors": "raise the daemon's limit of open files (LimitNOFILE=, ulimit -Hn)",
}


class _Note(Struct):
    what: str
    until: float
    """On time.monotonic()'s clock."""


_notes: dict[Kind, _Note] = {}


def note(kind: Kind, what: str) -> None:
    """Something could not be had, or done. May be called from any thread."""
    if kind not in _notes:
        log.error("the machine is short of something", short_of=kind, what=what, hint=_HINTS[kind])
    _notes[kind] = _Note(what, time.monotonic() + REMEMBERED_S)


def clear(kind: Kind) -> None:
    """Somebody has got it."""
    if _notes.pop(kind, None) is not None:
        log.info("the machine is not short of it any more", short_of=kind)


def reasons() -> tuple[str, ...]:
    """What is short now, and what to do about it; one sentence for each."""
    for kind in [kind for kind, found in _notes.items() if found.until < time.monotonic()]:
        clear(kind)
    return tuple(f"{found.what}; {_HINTS[kind]}" for kind, found in _notes.items())
