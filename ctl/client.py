"""The connection to the daemon: JSON-RPC 2.0 on a DEALER socket. The one door to zmq of the client.

Invariant: every wait ends. An answer has a deadline; where the work may take long (`timeout=None`) the daemon
has to answer a `daemon.status` in between; and a connection that breaks, or cannot be made, raises `Gone` at once,
because ZeroMQ would connect again in silence, and the request would be lost or wait.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec
import zmq

from ctl import endpoint
from ctl.failure import UNREACHABLE, USAGE, CtlError, Gone, exit_code

if TYPE_CHECKING:
    import argparse

QUICK_S = 10.0
"""How long a request that is answered at once may take, and a daemon with long work may be silent."""
COME_BACK_S = 60.0
"""How long a follower waits for a daemon that went away."""

T = TypeVar("T")


class _Refusal(msgspec.Struct):
    code: int
    message: str
    data: dict[str, object] = {}


class _Answer(msgspec.Struct):
    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Refusal | None = None


class Client:
    """Requests to one daemon. Use as a context manager."""

    def __init__(self, path: str, *, timeout: float | None = None) -> None:
        self.path = path
        self._timeout = timeout
        """What the user allows one request to take, instead of our own defaults."""
        self._context = zmq.Context()
        self._last_id = 0
        self._open()

    def _open(self) -> None:
        self._waiting: set[int] = set()
        self._answers: dict[int, _Answer] = {}
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndtimeo = int(QUICK_S * 1000)
        self._last_id += 1
        watch = f"inproc://watch-{self._last_id}"
        self._socket.monitor(watch, zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.connect(watch)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(f"ipc://{self.path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
        self._context.term()

    def _close(self) -> None:
        if self._socket.closed:  # a daemon that did not come back
            return
        self._socket.disable_monitor()
        self._socket.close(0)
        self._monitor.close(0)

    def reopen(self, patience: float = COME_BACK_S) -> bool:
        """Connect again once the daemon is back; False when it is not after `patience` seconds."""
        self._close()
        deadline = time.monotonic() + patience
        while endpoint.check(self.path) is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        self._open()
        return True

    # --- requests -------------------------------------------------------------------------------------

    def send(self, method: str, params: object = None) -> int:
        """Send a request and return its id; `receive` or `take` gives the answer."""
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params or {}}
        try:
            body = msgspec.json.encode(request)
        except UnicodeEncodeError:
            raise CtlError("an argument is not valid UTF-8", code=USAGE) from None
        if len(body) > 1 << 16:
            _check_size(method, len(body))
        try:
            self._socket.send_multipart([b"", body])
        except zmq.Again:
            raise self.no_answer(method, QUICK_S) from None
        self._waiting.add(self._last_id)
        return self._last_id

    def receive(self, timeout: float) -> int | None:
        """Wait for the next answer to any request; its id, or None after `timeout` seconds. Raises Gone."""
        deadline = time.monotonic() + timeout
        while True:
            ready = dict(self._poller.poll(max(0, round((deadline - time.monotonic()) * 1000))))
            if self._socket in ready:
                frames = self._socket.recv_multipart()
                answer = _decode(frames[-1], _Answer, "a request")
                if isinstance(answer.id, int) and answer.id in self._waiting:
                    self._waiting.remove(answer.id)
                    self._answers[answer.id] = answer
                    return answer.id
                if answer.id is None and answer.error is not None:  # it could not even read the id
                    raise _error(answer.error)
            elif self._monitor in ready:
                self._check_connection(self._monitor.recv_multipart()[0])
            elif time.monotonic() >= deadline:
                return None

    def _check_connection(self, news: bytes) -> None:
        """Raise Gone for news of a connection that broke or could not be made: what answered our probe may have been
        about to die. A daemon whose backlog is full is another thing, and ZeroMQ is right to try again."""
        event = int.from_bytes(news[:2], sys.byteorder)
        if event == zmq.EVENT_DISCONNECTED or not endpoint.listens(self.path):
            raise Gone(self.path)

    def first_of(self, requests: Container[int], timeout: float) -> int | None:
        """The id of an answered request among `requests`, or None after `timeout` seconds. Raises Gone."""
        for request in self._answers:
            if request in requests:
                return request
        deadline = time.monotonic() + timeout
        while (request_ := self.receive(max(0.0, deadline - time.monotonic()))) is not None:
            if request_ in requests:
                return request_
        return None

    def wait_or_readable(self, descriptors: Iterable[int], timeout: float) -> bool:
        """Wait at most `timeout` seconds for something to receive, or to read from one of `descriptors`; whether there
        is the latter."""
        poller = zmq.Poller()
        for source in (self._socket, self._monitor, *descriptors):
            poller.register(source, zmq.POLLIN)
        ready = dict(poller.poll(round(timeout * 1000)))
        return not ready.keys() <= {self._socket, self._monitor}

    def take(self, request: int, result: type[T], method: str) -> T:
        """The answer to `request`, which has been received. Raises the CtlError it holds."""
        answer = self._answers.pop(request)
        if answer.error is not None:
            raise _error(answer.error)
        return _decode(answer.result, result, method)

    def call(self, method: str, params: object, result: type[T], *, timeout: float | None = QUICK_S) -> T:
        """One request and its answer. `timeout` None waits for as long as the daemon shows that it lives."""
        limit = timeout if self._timeout is None else self._timeout
        request = self.send(method, params)
        if limit is None:
            self._wait_patiently(request, method)
        elif not self._wait(request, limit):
            raise self.no_answer(method, limit)
        return self.take(request, result, method)

    def raw(self, method: str, params: object = None, *, timeout: float | None = QUICK_S) -> msgspec.Raw:
        """As `call`, with the answer's JSON as it came."""
        return self.call(method, params, msgspec.Raw, timeout=timeout)

    def _wait(self, request: int, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while request not in self._answers:
            if self.receive(deadline - time.monotonic()) is None:
                return False
        return True

    def _wait_patiently(self, request: int, method: str) -> None:
        while not self._wait(request, QUICK_S):
            ping = self.send("daemon.status")
            deadline = time.monotonic() + QUICK_S
            while ping not in self._answers and request not in self._answers:
                if self.receive(deadline - time.monotonic()) is None:
                    raise self.no_answer(method, 2 * QUICK_S)
            self._answers.pop(ping, None)

    def no_answer(self, method: str, seconds: float) -> CtlError:
        return CtlError(
            f"the daemon at {self.path} did not answer {method} within {seconds:g} s",
            hint="its log says what it is doing; --timeout DURATION waits longer",
            code=UNREACHABLE,
        )


def connect(args: argparse.Namespace) -> Client:
    """The client that `--socket` and `--timeout` ask for. Raises CtlError when there is no daemon."""
    return Client(endpoint.find(args.socket), timeout=args.answer_timeout)


def _check_size(method: str, size: int) -> None:
    from buildd.protocol import MAX_MESSAGE_BYTES

    if size > MAX_MESSAGE_BYTES:
        raise CtlError(
            f"the request {method} has {size} bytes, more than the {MAX_MESSAGE_BYTES} that the daemon takes",
            hint="name fewer targets at once",
            code=USAGE,
        )


def _decode(body: bytes | msgspec.Raw, result: type[T], method: str) -> T:
    try:
        return msgspec.json.decode(body, type=result)
    except msgspec.DecodeError as error:
        raise CtlError(
            f"the daemon's answer to {method} is not understood: {error}",
            hint="client and daemon may be of different versions: `buildctl version` shows both",
        ) from None


def _error(refusal: _Refusal) -> CtlError:
    hint = refusal.data.get("hint", "")
    return CtlError(refusal.message, hint=str(hint), code=exit_code(refusal.code))
