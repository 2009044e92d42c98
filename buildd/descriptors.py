"""How many files this process may still open, and what must not happen when there are few.

libzmq ends the whole process when it cannot accept a connection for want of a descriptor (EMFILE), so the last ones
are never used up: a quarter of the limit is kept back from new builds and clones, and with half of that left no
connection is accepted any more. What runs goes on, and gives back what it has.

Invariant: nothing here opens a file, where the kernel (6.2 and later) tells the number without.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import trio

from buildd import shortage

_LOOK_EVERY_S = 0.25
_OPEN = "/proc/self/fd"
_ENOUGH = 65_536


def limit() -> int:
    """How many files this process may open now."""
    return _limits()[0]


def attainable() -> int:
    """What `raise_limit` makes of the limit: enough, and no more, since some programs look through all of it."""
    soft, hard = _limits()
    return max(soft, min(hard, _ENOUGH))


def raise_limit() -> None:
    """Let this process open as many files as it may, up to what is enough."""
    if limit() < attainable():
        resource.setrlimit(resource.RLIMIT_NOFILE, (attainable(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _limits() -> tuple[int, int]:
    """The soft and the hard limit; the kernel lets nobody have more than 2^30."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(soft % (1 << 64), 1 << 30), min(hard % (1 << 64), 1 << 30)


def in_use() -> int:
    """Open descriptors of this process."""
    try:
        return os.stat(_OPEN).st_size or len(os.listdir(_OPEN)) - 1
    except OSError:  # none is left to look with
        return limit()


def kept_back(limit: int) -> int:
    """How many of them are not for new builds and clones."""
    return limit // 4


def scarce(promised: int = 0) -> bool:
    """Whether nothing that takes descriptors may be begun; says so in the daemon's status.

    `promised` are those that somebody has been let begin with and may not have opened yet.
    """
    most, used = limit(), in_use()
    if used + promised <= most - kept_back(most):
        shortage.clear("descriptors")
        return False
    shortage.note("descriptors", f"{used} of {most} file descriptors are in use, and no builds or clones are started")
    return True


def all_but_gone() -> bool:
    """Whether not even connections may be accepted."""
    most = limit()
    return in_use() > most - kept_back(most) // 2


async def wait_for_some(promised: Callable[[], int] = int) -> None:
    """Return when descriptors are not scarce."""
    await _wait_while(lambda: scarce(promised()))


async def wait_for_connections() -> None:
    """Return when there are some for connections again."""
    await _wait_while(all_but_gone)


async def _wait_while(condition: Callable[[], bool]) -> None:
    while True:  # nobody tells of a descriptor that becomes free
        if not condition():
            return
        await trio.sleep(_LOOK_EVERY_S)
