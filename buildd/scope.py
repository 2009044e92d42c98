"""Everything one task holds (R3): closed in reverse order whatever happened, in bounded time, and logged.

Invariant: each `add`ed closer is called exactly once, also when another one failed, when the task was
cancelled, or when the time is over (sync closers still run then; async ones are cut short and reported).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog
import trio

log = structlog.get_logger()

Closer = Callable[[], object | Awaitable[object]]


class Scope:
    """`async with Scope("build", close_within=10) as scope: scope.add("work directory", remove)`."""

    def __init__(self, task: str, *, close_within: float) -> None:
        self._task = task
        self._close_within = close_within
        self._held: list[tuple[str, Closer]] = []

    async def __aenter__(self) -> Scope:
        return self

    def add(self, what: str, close: Closer) -> None:
        """Hold `what` until the scope ends; `close` may return an awaitable."""
        self._held.append((what, close))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is held now. What is added later is closed by the next call, or when the scope ends."""
        if not self._held:
            return
        started = time.perf_counter()
        released: list[str] = []
        failed: list[str] = []
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._close_within):
            while self._held:
                what, close = self._held.pop()
                if await self._close(what, close):
                    released.append(what)
                else:
                    failed.append(what)
        report = log.error if failed else log.debug
        report(
            "scope closed",
            task=self._task,
            released=released,
            failed=failed,
            cleanup_ms=round((time.perf_counter() - started) * 1000, 1),
        )

    async def _close(self, what: str, close: Closer) -> bool:
        try:
            result = close()
            if inspect.isawaitable(result):
                await result
        except trio.Cancelled:
            # the scope's own deadline: its shield keeps every other cancellation out
            log.error("cleanup took too long", task=self._task, what=what, limit_s=self._close_within)
            return False
        except (Exception, BaseExceptionGroup):  # a closer's own nursery may mix its failures with our deadline
            log.exception("cleanup failed", task=self._task, what=what)
            return False
        return True
