"""ZMTP 3.0 by hand (https://rfc.zeromq.org/spec/23/): for saying what no library would let one say."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\x00" + bytes(31)


def frame(body: bytes, flags: int = 0) -> bytes:
    """A frame; `flags` MORE for a part that is not the last."""
    if len(body) > 255:
        return struct.pack(">BQ", flags | LONG, len(body)) + body
    return struct.pack(">BB", flags, len(body)) + body


def ready(kind: bytes = b"DEALER") -> bytes:
    """The command that ends the handshake."""
    return frame(b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind, COMMAND)


def message(*parts: bytes) -> bytes:
    return b"".join(frame(part, MORE) for part in parts[:-1]) + frame(parts[-1])


def connect(path: Path, *, timeout: float = 10.0) -> socket.socket:
    """A raw connection to the daemon's socket; it has said nothing yet."""
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.settimeout(timeout)
    raw.connect(str(path))
    return raw


def shake_hands(path: Path) -> socket.socket:
    """A raw connection that may send messages."""
    raw = connect(path)
    raw.sendall(GREETING + ready())
    _receive(raw, 64)
    _receive(raw, _receive(raw, 2)[1])
    return raw


def send_all_of(raw: socket.socket, data: bytes) -> bool:
    """Send; False when the daemon hung up instead of reading it all."""
    try:
        raw.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def hung_up(raw: socket.socket) -> bool:
    """Read on until the other side closes; False when it has not within the connection's timeout."""
    try:
        while raw.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def _receive(raw: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = raw.recv(count - len(data))
        assert more, "the daemon closed the connection during the handshake"
        data += more
    return data
