"""Waiting for what takes long, and telling meanwhile how far it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from buildd import protocol
from ctl.failure import CtlError
from ctl.mcp.fields import POLL_S
from ctl.mcp.tool import Call

T = TypeVar("T")


async def within(seconds: float, work: Callable[[], Awaitable[T]], tell: Callable[[], Awaitable[None]]) -> T | None:
    """What `work` returns, or None when it is not done after so many seconds. Calls `tell` while it waits, whose
    failures say nothing about the work. Raises the CtlError of the work."""
    result: T | None = None
    failure: CtlError | None = None

    async def labour() -> None:
        nonlocal result, failure
        try:
            result = await work()
        except CtlError as error:  # as it is: what leaves a nursery is a group of errors
            failure = error
        nursery.cancel_scope.cancel()

    async def watch() -> None:
        while True:
            await anyio.sleep(POLL_S)
            try:
                await tell()
            except CtlError:
                pass

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(labour)
            nursery.start_soon(watch)
    if failure is not None:
        raise failure
    return result


async def newest_event(call: Call) -> int:
    """Where to go on with events.poll: asked before the state is looked at, so that no change of it is missed."""
    return (await call.daemon.call("events.poll", protocol.PollParams(after=-1), protocol.PollResult)).next
