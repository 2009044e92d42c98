"""ZMTP 3.0 (https://rfc.zeromq.org/spec/23/) as a DEALER speaks it, without security, over a connected Unix socket.

Why not ZeroMQ's own library: to load it takes as long as the whole rest of a short command, and it hides what a client
at a terminal has to know at once, that the daemon has closed the connection.

Invariant: messages are whole or not there; every wait ends.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\x00" + bytes(31)
_READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
_PIECE = 1 << 18


class Closed(Exception):
    """The other side has closed the connection, or is no ZMTP peer."""


class Wire:
    """One connection. What was received stays here until it is asked for."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setblocking(False)
        self._received = bytearray()
        self._open = False
        """Whether both sides have said who they are."""
        self._poll = select.poll()

    def close(self) -> None:
        self._connection.close()

    def hang_up(self) -> None:
        """End the connection beneath another thread, whose wait then raises Closed."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def send(self, body: bytes, timeout: float) -> bool:
        """Send a message of an empty part and `body`; False when it did not go within the time. Raises Closed."""
        deadline = time.monotonic() + timeout
        if not self._open and not self._shake_hands(deadline):
            return False
        flags, size = (_LONG, struct.pack(">Q", len(body))) if len(body) > 255 else (0, bytes([len(body)]))
        return self._write(bytes([_MORE, 0, flags]) + size + body, deadline)

    def _shake_hands(self, deadline: float) -> bool:
        """Say who we are, and hear who the other side is. What comes before that it would take for part of it."""
        if not self._write(_GREETING + _READY, deadline):
            return False
        while len(self._received) < len(_GREETING):
            if not self._read(deadline):
                return False
        if self._received[0] != 0xFF or self._received[9] != 0x7F or self._received[10] < 3:
            raise Closed("it does not speak ZMTP 3")
        del self._received[: len(_GREETING)]
        while (frame := self._frame()) is None:
            if not self._read(deadline):
                return False
        flags, command = frame
        if not flags & _COMMAND or not command.startswith(b"\x05READY"):
            raise Closed("it does not want to speak with us")
        self._open = True
        return True

    def receive(self, timeout: float) -> bytes | None:
        """The last part of the next message; None when there is none within the time. Raises Closed."""
        deadline = time.monotonic() + timeout
        while True:
            while (frame := self._frame()) is not None:
                flags, body = frame
                if not flags & (_COMMAND | _MORE):
                    return body
            if not self._read(deadline):
                return None

    def wait_or_readable(self, descriptors: Iterable[int], timeout: float) -> bool:
        """Wait for something from the other side, or to read from one of `descriptors`; whether there is the latter."""
        poll, others = select.poll(), list(descriptors)
        for source in (self._connection.fileno(), *others):
            poll.register(source, select.POLLIN)
        ready = poll.poll(0 if self._first_frame() is not None else max(0.0, timeout) * 1000)
        return any(source in others for source, _ in ready)

    # --- bytes ----------------------------------------------------------------------------------------

    def _write(self, data: bytes, deadline: float) -> bool:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._connection.send(rest, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                if not self._wait(select.POLLOUT, deadline):
                    return False
            except OSError as error:
                raise Closed(error.strerror) from None
        return True

    def _read(self, deadline: float) -> bool:
        """Receive some more; False when nothing came in time."""
        while True:
            try:
                data = self._connection.recv(_PIECE)
            except BlockingIOError:
                if not self._wait(select.POLLIN, deadline):
                    return False
                continue
            except OSError as error:
                raise Closed(error.strerror) from None
            if not data:
                raise Closed("end of file")
            self._received += data
            return True

    def _wait(self, event: int, deadline: float) -> bool:
        """Wait until the socket is ready; False at the deadline."""
        self._poll.register(self._connection, event)
        return bool(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _frame(self) -> tuple[int, bytes] | None:
        """Flags and body of the next frame that is here in full, which is taken."""
        found = self._first_frame()
        if found is None:
            return None
        start, end = found
        flags, body = self._received[0], bytes(self._received[start:end])
        del self._received[:end]
        return flags, body

    def _first_frame(self) -> tuple[int, int] | None:
        """Where the body of the next frame begins and ends; None while it is not here in full."""
        received = self._received
        start = 9 if received and received[0] & _LONG else 2
        if len(received) < start:
            return None
        end = start + int.from_bytes(received[1:start], "big")
        return (start, end) if len(received) >= end else None
