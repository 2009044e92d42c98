"""The one door to worker threads.

A machine that is out of processes or memory starts no threads. That passes, and there is nothing wrong with what was
to be done in one: it waits for its turn, and so do those who wait for it. Everything else goes on, and says so.

Invariant: what is handed over here is done once, or its caller was cancelled before it began; it never fails because
there was no thread for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import trio

from buildd import shortage

T = TypeVar("T")

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 1.0
"""Between attempts to start a thread; it doubles each time."""
_waiting = 0
"""Tasks that wait for a thread, or have waited for the one they have."""


async def in_thread(
    function: Callable[..., T],
    *arguments: object,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """Run what blocks in a worker thread, as `trio.to_thread.run_sync` does, once one can be had.

    Waiting for a thread is cancellable, whatever `abandon_on_cancel` says.
    """
    begun = False

    def work() -> T:
        nonlocal begun
        begun = True
        return function(*arguments)

    name = f"{getattr(function, '__name__', 'work')} from {trio.lowlevel.current_task().name}"
    start = partial(
        trio.to_thread.run_sync, work, thread_name=name, limiter=limiter, abandon_on_cancel=abandon_on_cancel
    )
    try:
        return await start()
    except RuntimeError as error:
        if begun:
            raise
        why = str(error)
    with _waiting_for_a_thread():
        pause = _FIRST_PAUSE_S
        while True:
            shortage.note("threads", f"no worker thread can be started ({why}), and {_waiting} tasks wait for one")
            await trio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)
            try:
                return await start()
            except RuntimeError:
                if begun:
                    raise


class Shared(Generic[T]):
    """What blocks, and tells how something is now: one call in a thread answers all who asked before it began."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._begun = 0
        self._last: tuple[int, T] | None = None
        self._running: trio.Event | None = None

    async def get(self) -> T:
        """What a call that begins from now on returns, or raises."""
        wanted = self._begun + 1
        while self._last is None or self._last[0] < wanted:
            if self._running is None:
                await self._call()
            else:
                await self._running.wait()
        return self._last[1]

    async def _call(self) -> None:
        self._begun = number = self._begun + 1
        self._running = ended = trio.Event()
        try:
            self._last = number, await in_thread(self._function)
        finally:
            self._running = None
            ended.set()


@contextmanager
def _waiting_for_a_thread() -> Iterator[None]:
    """It is a shortage as long as there is somebody who waits, whoever else finds an idle thread."""
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
        if not _waiting:
            shortage.clear("threads")
