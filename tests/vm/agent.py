"""Commands in the guest, by the QEMU guest agent: https://qemu.readthedocs.io/en/v7.2/interop/qemu-ga-ref.html

It needs no network in the guest and no terminal, and is independent of what runs there. Every wait has a deadline.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LOOK_AGAIN_S = 0.05
_LOOK_AGAIN_AT_MOST_S = 0.4
"""A look keeps an emulated processor busy for some milliseconds."""


class AgentError(Exception):
    """The agent did not answer in time, or refused."""


class Agent:
    """A connection to the agent; one at a time."""

    def __init__(self, path: Path) -> None:
        """`path` is the socket at which qemu offers the port of the guest."""
        self._path = path
        self._socket: socket.socket | None = None
        self._received = b""

    def connect(self, *, within: float, alive: Callable[[], None] = lambda: None) -> None:
        """Wait until the agent answers; `alive` raises when there is no more hope. Raises AgentError."""
        deadline = time.monotonic() + within
        while True:
            alive()
            try:
                self._synchronise()
            except (OSError, AgentError) as error:
                self.close()
                if time.monotonic() > deadline:
                    raise AgentError(f"the guest agent did not answer within {within:g} s: {error}") from None
                time.sleep(0.2)
            else:
                return

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, b""

    def call(self, command: str, arguments: dict[str, Any] | None = None, *, within: float = 60.0) -> Any:
        """The answer to one command of the agent. Raises AgentError."""
        self._send({"execute": command, "arguments": arguments or {}}, within)
        answer = self._receive(within)
        if "return" not in answer:
            raise AgentError(f"{command}: {answer.get('error', {}).get('desc', answer)}")
        return answer["return"]

    def start(self, *command: str, stdin: bytes = b"") -> int:
        """Start a program in the guest; its pid."""
        path, *arguments = command
        wanted = {"path": path, "arg": arguments, "capture-output": True}
        if stdin:
            wanted["input-data"] = base64.b64encode(stdin).decode()
        return int(self.call("guest-exec", wanted)["pid"])

    def finished(self, pid: int) -> tuple[int, str, str] | None:
        """Exit status (of a signal: 128 + its number) and output of a program, once it has ended and closed it."""
        state = self.call("guest-exec-status", {"pid": pid})
        if not state["exited"]:
            return None
        assert not state.get("out-truncated"), "the guest agent keeps 16 MiB of output at most"
        out, err = (base64.b64decode(state.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data"))
        return state.get("exitcode", 0) + (128 + state["signal"] if "signal" in state else 0), out, err

    def wait(self, pid: int, *, within: float) -> tuple[int, str, str]:
        """As `finished`. Raises AgentError when it has not within so many seconds."""
        deadline = time.monotonic() + within
        pause = _LOOK_AGAIN_S
        while (result := self.finished(pid)) is None:
            if time.monotonic() > deadline:
                raise AgentError(f"the command did not end within {within:g} s")
            time.sleep(pause)
            pause = min(1.2 * pause, _LOOK_AGAIN_AT_MOST_S)
        return result

    def _synchronise(self) -> None:
        """Throw away what earlier conversations left in the line, on both sides."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(1)
            self._socket.connect(str(self._path))
        number = random.getrandbits(31)
        self._socket.sendall(b"\xff")
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, within=2)
        while self._receive(within=2).get("return") != number:
            pass

    def _send(self, message: dict[str, Any], within: float) -> None:
        assert self._socket is not None, "not connected"
        self._socket.settimeout(within)
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise AgentError(f"the connection to the guest agent broke: {error}") from None

    def _receive(self, within: float) -> dict[str, Any]:
        assert self._socket is not None, "not connected"
        deadline = time.monotonic() + within
        while b"\n" not in self._received:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                more = self._socket.recv(1 << 16)
            except TimeoutError:
                raise AgentError(f"the guest agent did not answer within {within:g} s") from None
            except OSError as error:
                raise AgentError(f"the connection to the guest agent broke: {error}") from None
            if not more:
                raise AgentError("the virtual machine closed the line to the guest agent")
            self._received += more
        line, self._received = self._received.split(b"\n", 1)
        line = line.rpartition(b"\xff")[2]
        answer: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # the rest of a line that was cut off before the delimiter
            answer = json.loads(line)
        return answer
