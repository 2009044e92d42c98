"""The connection to the daemon: JSON-RPC 2.0 in ZeroMQ messages.

msgspec and the protocol's structs are imported when an answer is wanted as one: `raw` does without, and a short
command ends before they would be loaded.

Invariant: every wait ends. An answer has a deadline; where the work may take long (`timeout=None`) the daemon
has to answer a `daemon.status` in between; and a connection that breaks raises `Gone` at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ctl import endpoint
from ctl.failure import UNREACHABLE, USAGE, CtlError, Gone, NoSuchMethod, exit_code
from ctl.section import Record
from ctl.wire import Closed, Wire

if TYPE_CHECKING:
    import argparse
    import socket

QUICK_S = 10.0
"""How long a request that is answered at once may take, and a daemon with long work may be silent."""
COME_BACK_S = 60.0
"""How long a follower waits for a daemon that went away."""
_METHOD_NOT_FOUND = -32601

T = TypeVar("T")


class Client:
    """Requests to one daemon. Use as a context manager."""

    def __init__(self, path: str, connection: socket.socket, *, timeout: float | None = None) -> None:
        """`connection` leads to the daemon's socket at `path`."""
        self.path = path
        self._timeout = timeout
        """What the user allows one request to take, instead of our own defaults."""
        self._last_id = 0
        self._open(connection)

    def _open(self, connection: socket.socket) -> None:
        self._wire = Wire(connection)
        self._waiting: set[int] = set()
        self._answers: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._wire.close()

    def hang_up(self) -> None:
        """End the connection, from whichever thread: whoever waits for an answer gets Gone."""
        self._wire.hang_up()

    def reopen(self, patience: float = COME_BACK_S) -> bool:
        """Connect again once the daemon is back; False when it is not after `patience` seconds."""
        self._wire.close()
        deadline = time.monotonic() + patience
        while True:
            time.sleep(0.2)  # also before the first: it may take connections and close them
            try:
                self._open(endpoint.connect(self.path))
                return True
            except CtlError:
                if time.monotonic() > deadline:
                    return False

    # --- requests -------------------------------------------------------------------------------------

    def send(self, method: str, params: object = None, within: float = QUICK_S) -> int:
        """Send a request and return its id; `receive` or `take` gives the answer.

        Raises Gone, and another CtlError when the daemon does not take it `within` so many seconds.
        """
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": plain(params or {})}
        try:
            body = json.dumps(request, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise CtlError("an argument is not valid UTF-8", code=USAGE) from None
        if len(body) > 1 << 16:
            _check_size(method, len(body))
        try:
            sent = self._wire.send(body, within)
        except Closed:
            raise Gone(self.path) from None
        if not sent:
            raise self.no_answer(method, within)
        self._waiting.add(self._last_id)
        return self._last_id

    def receive(self, timeout: float) -> int | None:
        """Wait for the next answer to any request; its id, or None after `timeout` seconds. Raises Gone."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                body = self._wire.receive(max(0.0, deadline - time.monotonic()))
            except Closed:
                raise Gone(self.path) from None
            if body is None:
                return None
            answer = _answer(body)
            id = answer.get("id")
            if isinstance(id, int) and id in self._waiting:
                self._waiting.remove(id)
                self._answers[id] = answer
                return id
            if id is None and "error" in answer:  # it could not even read the id
                raise _error(answer["error"])

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
        return self._wire.wait_or_readable(descriptors, timeout)

    def take(self, request: int, result: type[T], method: str) -> T:
        """The answer to `request`, which has been received, as a struct. Raises the CtlError it holds."""
        return convert(self._take(request), result, method)

    def _take(self, request: int) -> Any:
        answer = self._answers.pop(request)
        if answer.get("error") is not None:
            raise _error(answer["error"])
        return answer.get("result")

    def call(self, method: str, params: object, result: type[T], *, timeout: float | None = QUICK_S) -> T:
        """One request and its answer as a struct. `timeout` None waits as long as the daemon shows that it lives."""
        return convert(self.raw(method, params, timeout=timeout), result, method)

    def raw(self, method: str, params: object = None, *, timeout: float | None = QUICK_S) -> Any:
        """As `call`, with the answer as the JSON says it."""
        limit = timeout if self._timeout is None else self._timeout
        asked = time.monotonic()
        # one that is being started by systemd takes the request when it is ready
        request = self.send(method, params, QUICK_S if limit is None else limit)
        if limit is None:
            self._wait_patiently(request, method)
        elif not self._wait(request, limit - (time.monotonic() - asked)):
            raise self.no_answer(method, limit)
        return self._take(request)

    def read(self, method: str, params: object = None) -> Any:
        """As `call`, with the answer as something that has the struct's attributes."""
        answer = self.raw(method, params)
        if not isinstance(answer, dict):
            raise _not_understood(method, "it is no object")
        return Record(answer)

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
    path, connection = endpoint.find(args.socket)
    return Client(path, connection, timeout=args.answer_timeout)


def _check_size(method: str, size: int) -> None:
    from buildd.protocol import MAX_MESSAGE_BYTES

    if size > MAX_MESSAGE_BYTES:
        raise CtlError(
            f"the request {method} has {size} bytes, more than the {MAX_MESSAGE_BYTES} that the daemon takes",
            hint="name fewer targets at once",
            code=USAGE,
        )


def plain(value: object) -> object:
    """A struct, or what holds structs, as JSON says it."""
    if isinstance(value, dict):
        return value
    import msgspec

    return msgspec.to_builtins(value)


def convert(value: object, result: type[T], method: str) -> T:
    """The answer to `method` as a struct. Raises CtlError when it is none."""
    import msgspec

    try:
        return msgspec.convert(value, result, builtin_types=())  # JSON has none of the others
    except msgspec.ValidationError as error:
        raise _not_understood(method, error) from None


def _answer(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise _not_understood("a request", error) from None
    if not isinstance(answer, dict):
        raise _not_understood("a request", "it is no object")
    return answer


def _not_understood(method: str, why: object) -> CtlError:
    return CtlError(
        f"the daemon's answer to {method} is not understood: {why}",
        hint="client and daemon may be of different versions: `buildctl version` shows both",
    )


def _error(refusal: object) -> CtlError:
    """The error that an answer holds."""
    found = refusal if isinstance(refusal, dict) else {}
    data = found.get("data")
    hint = data.get("hint", "") if isinstance(data, dict) else ""
    code = found.get("code")
    kind = NoSuchMethod if code == _METHOD_NOT_FOUND else CtlError
    return kind(
        str(found.get("message", "the daemon gives no reason")),
        hint=str(hint),
        code=exit_code(code) if isinstance(code, int) else exit_code(1),
    )
