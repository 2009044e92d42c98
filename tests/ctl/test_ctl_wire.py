"""The client's own ZMTP, beside the library's."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from harness import zmtp

from ctl.wire import Closed, Wire


@pytest.fixture
def router(tmp_path: Path) -> Iterator[tuple[zmq.Socket[bytes], Path]]:
    """The library's side, as the daemon has it."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger, router.rcvtimeo = 0, 10_000
    path = tmp_path / "s"
    router.bind(f"ipc://{path}")
    yield router, path
    router.close()
    context.term()


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire, and the other end of its connection; which has greeted already."""
    ours, other = socket.socketpair()
    other.settimeout(10)
    other.sendall(zmtp.GREETING + zmtp.ready(b"ROUTER"))
    wire = Wire(ours)
    assert wire.send(b"{}", 10)
    yield wire, other
    wire.close()
    other.close()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 3_000_000])
def test_messages_of_any_size_come_and_go(router: tuple[zmq.Socket[bytes], Path], size: int) -> None:
    theirs, path = router
    wire = Wire(zmtp.connect(path))
    body = b"x" * size
    assert wire.send(body, 10)
    for _ in range(3):
        peer, empty, got = theirs.recv_multipart()
        assert (empty, got) == (b"", body)
        theirs.send_multipart([peer, b"", got])
        assert wire.receive(10) == body
        assert wire.send(body, 10)
    wire.close()


def test_many_messages_that_come_at_once_are_taken_one_by_one(router: tuple[zmq.Socket[bytes], Path]) -> None:
    theirs, path = router
    wire = Wire(zmtp.connect(path))
    assert wire.send(b"go", 10)
    peer, *_ = theirs.recv_multipart()
    for number in range(500):
        theirs.send_multipart([peer, b"", b"%d" % number])
    assert [wire.receive(10) for _ in range(500)] == [b"%d" % number for number in range(500)]
    assert wire.receive(0.05) is None
    wire.close()


def test_a_message_that_comes_byte_by_byte_is_whole_or_not_there(pair: tuple[Wire, socket.socket]) -> None:
    wire, other = pair
    for byte in zmtp.message(b"", b"whole")[:-1]:
        other.sendall(bytes([byte]))
        assert wire.receive(0.005) is None
    other.sendall(b"e")
    assert wire.receive(10) == b"whole"


def test_half_a_message_does_not_keep_a_waiting_client_busy(pair: tuple[Wire, socket.socket]) -> None:
    wire, other = pair
    other.sendall(zmtp.message(b"", b"half")[:-1])
    assert wire.receive(0.05) is None
    began = time.monotonic()
    assert not wire.wait_or_readable([], 0.2)
    assert time.monotonic() - began > 0.15


def test_a_connection_that_is_closed_is_told_after_what_had_come(pair: tuple[Wire, socket.socket]) -> None:
    wire, other = pair
    other.sendall(zmtp.message(b"", b"last"))
    other.shutdown(socket.SHUT_RDWR)
    assert wire.receive(10) == b"last"
    with pytest.raises(Closed):
        wire.receive(10)
    with pytest.raises(Closed):
        wire.send(b"x" * 1_000_000, 10)


def test_a_peer_that_does_not_read_is_waited_for_in_vain(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    began = time.monotonic()
    assert not wire.send(b"x" * 10_000_000, 0.3)
    assert time.monotonic() - began < 5
