"""Sockets for a worker thread that can be called off: every wait has a deadline and looks at `check` meanwhile.

http.client reads and writes through the few methods of a socket that `Wire` has; Python's own sockets cannot be
used there, for a read that timed out once makes their file objects unusable, so they could not wake up to look.

Invariant: no call blocks for longer than `TICK` without calling `check`, which raises once the work is cancelled.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Buffer  # known to type checkers; in the library from Python 3.12 on

T = TypeVar("T")

TICK = 0.2
"""Seconds that a cancelled thread may take to notice."""

Address = tuple[int, int, int, str, tuple[str | int | bytes, ...]]
"""What getaddrinfo answers with."""


class Wire:
    """A connected stream, plain or TLS; raises TimeoutError when nothing moves for `idle` seconds."""

    def __init__(self, sock: socket.socket, idle: float, check: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._idle = idle
        self._check = check
        self._files = 0
        self._closed = False

    def secure(self, context: ssl.SSLContext, hostname: str, timeout: float) -> Wire:
        """The same connection after a TLS handshake within `timeout` seconds; this object is spent."""
        wrapped = context.wrap_socket(self._sock, server_hostname=hostname, do_handshake_on_connect=False)
        wire = Wire(wrapped, self._idle, self._check)
        self._sock = wrapped
        wire._retry(wrapped.do_handshake, "the TLS handshake made no progress", timeout, select.POLLIN)
        return wire

    def recv_into(self, buffer: memoryview) -> int:
        """Bytes received into `buffer`; 0 at the end of the stream."""
        return self._retry(lambda: self._sock.recv_into(buffer), "no data came", self._idle, select.POLLIN)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent = self._retry(partial(self._sock.send, view), "no data was taken", self._idle, select.POLLOUT)
            view = view[sent:]

    def makefile(self, mode: str) -> io.BufferedReader:
        """The receiving side as a file, for http.client."""
        if mode != "rb":
            raise ValueError(f"a Wire is read as bytes, not {mode!r}")
        self._files += 1
        return io.BufferedReader(_Receiver(self))

    def close(self) -> None:
        """Close once no file is open on it: http.client closes a connection whose answer is still to be read."""
        self._closed = True
        if not self._files:
            self._sock.close()

    def _file_closed(self) -> None:
        self._files -= 1
        if self._closed:
            self.close()

    def _retry(self, call: Callable[[], T], what: str, timeout: float, event: int) -> T:
        deadline = time.monotonic() + timeout
        while True:
            try:
                return call()
            except BlockingIOError:
                wanted = event
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            _wait(self._sock, wanted, deadline, self._check, f"{what} for {timeout:g} s")


class _Receiver(io.RawIOBase):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        return self._wire.recv_into(memoryview(buffer))

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._wire._file_closed()


def dial(addresses: Sequence[Address], timeout: float, idle: float, check: Callable[[], None]) -> Wire:
    """Connect to the first address that answers; `timeout` seconds in all. Raises OSError, with the last cause."""
    deadline = time.monotonic() + timeout
    failure: OSError = OSError(errno.EHOSTUNREACH, "the name has no address")
    for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        now = time.monotonic()
        try:
            sock = _connected(family, kind, protocol, address, now + (deadline - now) / left, check)
        except OSError as error:
            failure = error
        else:
            return Wire(sock, idle, check)
    raise failure


def _connected(
    family: int,
    kind: int,
    protocol: int,
    address: tuple[str | int | bytes, ...],
    deadline: float,
    check: Callable[[], None],
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        number = sock.connect_ex(address)
        if number == errno.EINPROGRESS:
            _wait(sock, select.POLLOUT, deadline, check, "no connection was made in time")
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock


def _wait(sock: socket.socket, event: int, deadline: float, check: Callable[[], None], late: str) -> None:
    poller = select.poll()
    poller.register(sock, event)
    while True:
        check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, late)
        if poller.poll(min(TICK, left) * 1000):
            return
