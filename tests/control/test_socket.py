"""The control socket under trio, with real ZeroMQ clients."""

from __future__ import annotations

import json
import os
import socket as unix
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq

from buildd.control.socket import MAX_PER_PEER, ControlSocket, Peer
from buildd.errors import InvalidInput
from buildd.protocol import MAX_MESSAGE_BYTES

pytestmark = pytest.mark.trio
LIMIT_S = 30.0
PATIENCE_MS = 15_000


class Echo:
    """Answers a request with its body; `wait…` and `forget` are special."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.waiting = 0
        self.most_waiting = 0
        self.go_on = trio.Event()

    async def answer(self, body: bytes, peer: Peer) -> bytes | None:
        self.peers.append(peer)
        if body.startswith(b"wait"):
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
            try:
                await self.go_on.wait()
            finally:
                self.waiting -= 1
        if body.startswith(b"large"):
            return b"x" * 200_000
        await trio.lowlevel.checkpoint()
        return None if body == b"forget" else b"re:" + body

    def overflow(self, body: bytes) -> bytes | None:
        return b"busy:" + body

    async def wait_until_waiting(self, count: int) -> None:
        while self.waiting < count:
            await trio.sleep(0.001)


@asynccontextmanager
async def served(path: Path, *, mode: int = 0o600, **options: Any) -> AsyncIterator[tuple[Echo, ControlSocket]]:
    echo = Echo()
    control = ControlSocket(echo.answer, echo.overflow)
    serve: Callable[..., Any] = control.serve
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[None]) -> None:
                await serve(path, mode=mode, group=None, task_status=task_status, **options)

            await nursery.start(run)
            yield echo, control
            nursery.cancel_scope.cancel()


@contextmanager
def client(path: Path, kind: int = zmq.DEALER, **options: int) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
    socket.setsockopt(zmq.SNDTIMEO, PATIENCE_MS)
    for name, value in options.items():
        socket.setsockopt(getattr(zmq, name), value)
    socket.connect(f"ipc://{path}")
    try:
        yield socket
    finally:
        socket.close(linger=0)
        context.term()


def send(socket: zmq.Socket[bytes], *bodies: bytes) -> None:
    for body in bodies:
        socket.send_multipart([b"", body])


def receive(socket: zmq.Socket[bytes], count: int) -> list[bytes]:
    answers = []
    for _ in range(count):
        empty, answer = socket.recv_multipart()
        assert empty == b""
        answers.append(answer)
    return answers


async def asked(path: Path, *bodies: bytes) -> list[bytes]:
    """The answers to these requests by a DEALER of their own, in a thread."""

    def work() -> list[bytes]:
        with client(path) as socket:
            send(socket, *bodies)
            return receive(socket, len(bodies))

    return await trio.to_thread.run_sync(work)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


# --- clients ----------------------------------------------------------------------------------------------


async def test_a_req_client_is_answered_one_by_one(path: Path) -> None:
    def work() -> list[bytes]:
        with client(path, zmq.REQ) as socket:
            answers = []
            for number in range(50):
                socket.send(b"%d" % number)
                answers.append(socket.recv())
            return answers

    async with served(path) as (_, control):
        assert await trio.to_thread.run_sync(work) == [b"re:%d" % n for n in range(50)]
        assert (control.requests, control.dropped) == (50, 0)


async def test_a_dealer_is_answered_out_of_order_while_other_answers_take_long(path: Path) -> None:
    async with served(path) as (echo, _):

        def work() -> list[bytes]:
            with client(path) as socket:
                send(socket, b"wait", b"quick")
                first = receive(socket, 1)
                trio.from_thread.run_sync(echo.go_on.set)
                return first + receive(socket, 1)

        assert await trio.to_thread.run_sync(work) == [b"re:quick", b"re:wait"]


async def test_the_envelope_is_kept_whatever_is_in_it(path: Path) -> None:
    def work() -> list[bytes]:
        with client(path) as socket:
            socket.send_multipart([b"route", b"two", b"", b"hello"])
            return socket.recv_multipart()

    async with served(path):
        assert await trio.to_thread.run_sync(work) == [b"route", b"two", b"", b"re:hello"]


async def test_the_peer_is_who_the_kernel_says(path: Path) -> None:
    async with served(path) as (echo, _):
        await asked(path, b"hello")
        assert echo.peers == [Peer(os.getuid(), os.getgid(), os.getpid())]


async def test_no_answer_to_what_wants_none(path: Path) -> None:
    async with served(path) as (_, control):
        assert await asked(path, b"one") == [b"re:one"]

        def work() -> list[bytes]:
            with client(path) as socket:
                send(socket, b"forget", b"two")
                return receive(socket, 1)

        assert await trio.to_thread.run_sync(work) == [b"re:two"]
        assert control.dropped == 0


async def test_sixteen_thousand_requests_of_many_clients_are_all_answered(path: Path) -> None:
    clients, each, window = 8, 2000, MAX_PER_PEER - 2
    finished: list[int] = []

    def work(name: int) -> None:
        with client(path) as socket:
            wanted = {b"re:%d-%d" % (name, n) for n in range(each)}
            sent = 0
            while wanted:
                while sent < each and sent - (each - len(wanted)) < window:
                    send(socket, b"%d-%d" % (name, sent))
                    sent += 1
                wanted.remove(receive(socket, 1)[0])
        finished.append(name)

    async with served(path) as (_, control):
        async with trio.open_nursery() as nursery:
            for name in range(clients):
                nursery.start_soon(trio.to_thread.run_sync, work, name)
        assert sorted(finished) == list(range(clients))
        assert (control.requests, control.dropped) == (clients * each, 0)


# --- limits -----------------------------------------------------------------------------------------------


async def test_one_peer_cannot_have_more_than_its_share_answered_at_once(path: Path) -> None:
    async with served(path) as (echo, _):

        def work() -> tuple[list[bytes], list[bytes]]:
            with client(path) as socket:
                send(socket, *[b"wait%d" % n for n in range(MAX_PER_PEER + 5)])
                refused = receive(socket, 5)
                trio.from_thread.run_sync(echo.go_on.set)
                return refused, receive(socket, MAX_PER_PEER)

        refused, answered = await trio.to_thread.run_sync(work)
        assert refused == [b"busy:wait%d" % n for n in range(MAX_PER_PEER, MAX_PER_PEER + 5)]
        assert sorted(answered) == sorted(b"re:wait%d" % n for n in range(MAX_PER_PEER))
        assert echo.most_waiting == MAX_PER_PEER
        assert await asked(path, b"again") == [b"re:again"]


async def test_a_client_that_vanishes_costs_nothing_and_its_answers_are_dropped(path: Path) -> None:
    async with served(path) as (echo, control):

        def vanish() -> None:
            with client(path) as socket:
                send(socket, *[b"wait"] * 10)
                trio.from_thread.run(echo.wait_until_waiting, 10)

        await trio.to_thread.run_sync(vanish)
        await _until(lambda: connections(path) == 0)  # else libzmq takes the answers for somebody who may read them
        echo.go_on.set()
        # another client wakes the owner, which finds that nobody takes the others' answers
        while control.dropped < 10:
            assert await asked(path, b"still there?") == [b"re:still there?"]
        assert control.dropped == 10
        assert control._in_flight == 0
        assert not control._per_peer


async def test_a_client_that_does_not_read_does_not_hold_up_the_others(path: Path) -> None:
    async with served(path) as (_, control):

        def work() -> None:
            with client(path, RCVHWM=1, RCVBUF=4096) as socket:
                send(socket, *[b"large%d" % n for n in range(600)])
                trio.from_thread.run(_until, lambda: control.requests >= 600)
                for number in range(20):
                    with client(path) as other:
                        send(other, b"%d" % number)
                        assert receive(other, 1) == [b"re:%d" % number]
                kept = trio.from_thread.run_sync(lambda: sum(len(f) for frames in control._outbox for f in frames))
                assert kept < 64 << 20

        await trio.to_thread.run_sync(work)


def connections(path: Path) -> int:
    """How many the owner of the socket has; from proc_net_unix(5)."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(socket[-1] == str(path) and socket[3] != "00010000" for socket in sockets)  # which listens


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


async def test_a_frame_over_the_limit_ends_its_connection_and_nobody_elses(path: Path) -> None:
    async with served(path) as (echo, _):

        def work() -> None:
            with client(path, RCVTIMEO=300) as large, client(path) as other:
                send(other, b"before")
                assert receive(other, 1) == [b"re:before"]
                send(large, b"x" * (MAX_MESSAGE_BYTES + 1))
                with pytest.raises(zmq.Again):
                    large.recv_multipart()
                send(other, b"after")
                assert receive(other, 1) == [b"re:after"]

        await trio.to_thread.run_sync(work)
        assert len(echo.peers) == 2
        (answer,) = await asked(path, b"y" * MAX_MESSAGE_BYTES)
        assert answer == b"re:" + b"y" * MAX_MESSAGE_BYTES


@pytest.mark.parametrize("frames", [[b"x"], [b"", b""], [b""], [b"no", b"delimiter"], [b"", b"x", b"y"]], ids=str)
async def test_frames_that_can_be_neither_answered_nor_used_are_counted(path: Path, frames: list[bytes]) -> None:
    async with served(path) as (_, control):

        def work() -> None:
            with client(path) as socket:
                socket.send_multipart(frames)
                send(socket, b"after")
                assert receive(socket, 1) == [b"re:after"]

        await trio.to_thread.run_sync(work)
        assert control.dropped == 1


@pytest.mark.parametrize("junk", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 100_000, b"\xff\0\0\0\0\0\0\0\x01\x7f"])
async def test_a_connection_that_speaks_something_else_disturbs_nobody(path: Path, junk: bytes) -> None:
    async with served(path):
        stranger = await trio.open_unix_socket(path)
        async with stranger:
            try:
                await stranger.send_all(junk)
            except trio.BrokenResourceError:
                pass  # libzmq has hung up already
            assert await asked(path, b"hello") == [b"re:hello"]


# --- the socket in the file system ------------------------------------------------------------------------


async def test_the_socket_has_its_mode_and_is_gone_afterwards(path: Path) -> None:
    async with served(path, mode=0o640):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not path.exists()
    async with served(path):
        assert await asked(path, b"again") == [b"re:again"]


async def test_a_socket_that_someone_removed_does_not_spoil_the_end(path: Path) -> None:
    async with served(path):
        path.unlink()


async def test_what_a_killed_daemon_left_is_replaced(path: Path) -> None:
    with unix.socket(unix.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert path.exists()
    async with served(path):
        assert await asked(path, b"hello") == [b"re:hello"]


async def test_a_second_daemon_does_not_take_the_socket_of_a_living_one(path: Path) -> None:
    async with served(path):
        other = ControlSocket(Echo().answer, Echo().overflow)
        with pytest.raises(InvalidInput, match="another daemon answers"):
            await other.serve(path, mode=0o600, group=None)
        assert await asked(path, b"hello") == [b"re:hello"]
        assert path.exists()


async def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    control = ControlSocket(Echo().answer, Echo().overflow)
    with pytest.raises(InvalidInput, match="longer than 107 bytes") as caught:
        await control.serve(path, mode=0o600, group=None)
    assert "runtime_dir" in caught.value.hint


async def test_a_group_that_does_not_exist_is_no_reason_not_to_serve(path: Path) -> None:
    control = ControlSocket(Echo().answer, Echo().overflow)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: control.serve(path, mode=0o660, group="no-such", task_status=task_status)
        )
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        nursery.cancel_scope.cancel()


async def test_a_listening_socket_from_systemd_is_served_and_left_in_place(path: Path) -> None:
    listener = unix.socket(unix.AF_UNIX, unix.SOCK_STREAM)
    listener.bind(os.fspath(path))
    listener.listen(16)
    async with served(path, adopted_fd=listener.detach()):
        assert await asked(path, b"hello") == [b"re:hello"]
    assert path.exists(), "it is systemd's"


async def test_an_answer_that_raises_is_a_fault_that_is_not_swallowed(path: Path) -> None:
    # `Server.answer` never raises; should it, the daemon must end loudly and not stay silent
    async def broken(body: bytes, peer: Peer) -> bytes | None:
        raise LookupError(json.dumps("bug"))

    control = ControlSocket(broken, Echo().overflow)
    with trio.fail_after(LIMIT_S):
        with pytest.RaisesGroup(pytest.RaisesExc(LookupError), flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda task_status: control.serve(path, mode=0o600, group=None, task_status=task_status)
                )
                with client(path) as socket:
                    send(socket, b"x")
                    await trio.sleep_forever()
    assert not path.exists()


async def test_who_comes_while_nobody_is_accepted_waits_and_is_answered_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = False
    monkeypatch.setattr("buildd.descriptors.all_but_gone", lambda: scarce)
    async with served(path) as (_, control):
        assert await asked(path, b"early") == [b"re:early"]
        for _ in range(3):
            scarce = True
            await until_closed(path)
            requests = control.requests
            with client(path) as late:
                send(late, b"late")
                await trio.sleep(0.2)
                assert control.requests == requests
                scarce = False
                assert await trio.to_thread.run_sync(receive, late, 1) == [b"re:late"]


async def until_closed(path: Path) -> None:
    """Until a connection is not accepted any more: it stays in the kernel's queue, where nobody greets it."""
    while True:
        with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
            probe.connect(str(path))
            probe.setblocking(False)
            with trio.move_on_after(0.3) as greeted:
                await trio.lowlevel.wait_readable(probe)
            if greeted.cancelled_caught:
                return
