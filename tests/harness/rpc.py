"""A client of the control protocol in forty lines: one REQ socket per request, every wait with a deadline."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

_context: tuple[int, zmq.Context[zmq.Socket[bytes]]] | None = None
_ids = itertools.count(1)
_GONE_TICK_MS = 50


class RpcError(Exception):
    """The daemon answered with an error."""

    def __init__(self, code: int, message: str, hint: str) -> None:
        super().__init__(f"{code}: {message} ({hint})")
        self.code, self.message, self.hint = code, message, hint


class Silence(Exception):
    """No answer in time."""


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """One context per process, also after a fork."""
    global _context
    if _context is None or _context[0] != os.getpid():
        _context = (os.getpid(), zmq.Context())
    return _context[1]


def exchange(socket: Path, body: bytes, *, timeout: float = 10.0, gone: Callable[[], bool] = lambda: False) -> bytes:
    """Send one frame as it is and return the answer's. Raises Silence, at once when the daemon is `gone`."""
    with context().socket(zmq.REQ) as request:
        request.setsockopt(zmq.LINGER, 0)
        request.connect(f"ipc://{socket}")
        if not _wait(request, zmq.POLLOUT, timeout, gone):
            raise Silence(f"nobody listens at {socket}")
        request.send(body)
        if not _wait(request, zmq.POLLIN, timeout, gone):
            raise Silence(f"no answer within {timeout:g} s to {body[:200]!r}")
        return request.recv()


def _wait(request: zmq.Socket[bytes], wanted: int, timeout: float, gone: Callable[[], bool]) -> bool:
    """Whether the socket is ready; what a daemon that is gone has answered before is waited for no longer."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        over = gone()
        if request.poll(min(_GONE_TICK_MS, left * 1000), wanted):
            return True
        if over:
            return False
    return False


def call(
    socket: Path,
    method: str,
    params: dict[str, Any] | None = None,
    *,
    timeout: float = 10.0,
    gone: Callable[[], bool] = lambda: False,
) -> Any:
    """The result of one request. Raises RpcError and Silence."""
    number = next(_ids)
    request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
    answer = json.loads(exchange(socket, json.dumps(request).encode(), timeout=timeout, gone=gone))
    assert answer["jsonrpc"] == "2.0"
    assert answer["id"] == number
    if "error" in answer:
        error = answer["error"]
        raise RpcError(error["code"], error["message"], error.get("data", {}).get("hint", ""))
    return answer["result"]
