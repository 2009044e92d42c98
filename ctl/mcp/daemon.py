"""The daemon, for many calls at a time from one event loop.

A `Client` blocks, so each call has a connection and a worker thread of its own: no call waits for another one, and no
connection is left over that a restart of the daemon could have closed. (Opening one takes half a millisecond, a tenth
of the shortest call of a tool.)

Invariant: cancelling a call ends its thread at once, because its connection is shut down beneath it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from ctl import endpoint
from ctl.client import QUICK_S, Client
from ctl.failure import CtlError, Gone

COME_BACK_S = 20.0
"""How long a daemon that goes away in the middle of a question is given to come back."""
REDIAL_S = 0.2
MAX_THREADS = 64

T = TypeVar("T")


class Daemon:
    """Questions to the daemon at `socket`, or where every client finds it."""

    def __init__(self, socket: str | None, answer_s: float | None = None) -> None:
        """`answer_s` is how long an answer that is given at once may take; None takes the client's default."""
        self._socket = socket
        self._answer_s = QUICK_S if answer_s is None else answer_s
        self._threads = anyio.CapacityLimiter(MAX_THREADS)

    async def call(
        self,
        method: str,
        params: object,
        result: type[T],
        *,
        hold: float | None = 0.0,
        patience: float = 0.0,
        repeatable: bool = True,
    ) -> T:
        """One question and its answer as a struct.

        `hold` is how long the daemon may take beyond what an answer takes; None lets it take as long as it shows that
        it lives. A daemon that cannot be reached is tried again for `patience` seconds, at most COME_BACK_S. When it
        goes away before it has answered, the question is asked again, unless it is not `repeatable`. Raises CtlError.
        """
        limit = None if hold is None else hold + self._answer_s
        deadline: float | None = None
        while True:
            conversation = _Conversation(self._socket)
            try:
                return await self._in_thread(
                    conversation, lambda client: client.call(method, params, result, timeout=limit)
                )
            except CtlError as error:
                went_away = isinstance(error, Gone)
                if not (went_away and repeatable) and conversation.begun:
                    raise
                now = time.monotonic()
                if deadline is None:
                    deadline = now + (COME_BACK_S if went_away else min(patience, COME_BACK_S))
                if now >= deadline:
                    raise
            await anyio.sleep(REDIAL_S)

    async def _in_thread(self, conversation: _Conversation, work: Callable[[Client], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(
                conversation.hold, work, abandon_on_cancel=True, limiter=self._threads
            )
        finally:
            conversation.break_off()


class _Conversation:
    """A connection for one piece of work in a thread, which another thread may break off."""

    def __init__(self, socket: str | None) -> None:
        self._socket = socket
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._over = False
        self.begun = False
        """Whether there was a connection, and so perhaps a question."""

    def hold(self, work: Callable[[Client], T]) -> T:
        path, connection = endpoint.find(self._socket)
        with Client(path, connection) as client:
            with self._lock:
                if self._over:
                    raise Gone(path)
                self._client = client
                self.begun = True
            try:
                return work(client)
            finally:
                with self._lock:
                    self._client = None

    def break_off(self) -> None:
        with self._lock:
            self._over = True
            if self._client is not None:
                self._client.hang_up()
