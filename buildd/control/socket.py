"""The one door to ZeroMQ: a ROUTER socket under trio, owned by one task.

libzmq's descriptor is edge-triggered and any operation on the socket can consume the edge, so a task that
waits for it while another one sends loses wake-ups. Here one task does all sends and receives and reads EVENTS
again after each of them; it waits only when there was nothing left to do. What others want to send lies in a
queue, and putting something there wakes the owner by cancelling its wait.

Invariants: at most MAX_IN_FLIGHT requests are being answered, MAX_PER_PEER of one peer; frames over
MAX_MESSAGE_BYTES end their connection inside libzmq; answers to a peer that does not read are dropped;
what libzmq collects of unfinished messages is bounded by `guard`.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
import zmq
from msgspec import Struct

from buildd.control.guard import guard_descriptors, guard_memory
from buildd.control.listening import listen
from buildd.protocol import MAX_MESSAGE_BYTES

MAX_IN_FLIGHT = 1024
MAX_PER_PEER = 32
_SEND_QUEUE = 64  # answers that libzmq keeps for one peer that does not read
_RECEIVE_QUEUE = 64
_LAST_WORDS_MS = 100


class Peer(Struct, frozen=True):
    """Who sent a request, as the kernel says; -1 where it does not."""

    uid: int
    gid: int
    pid: int


Answer = Callable[[bytes, Peer], Awaitable[bytes | None]]
"""Takes a request's last frame; returns the answer, or None for none."""
Overflow = Callable[[bytes], bytes | None]
"""The answer to a request for which there is no room."""


class ControlSocket:
    def __init__(self, answer: Answer, overflow: Overflow) -> None:
        self._answer = answer
        self._overflow = overflow
        self._outbox: deque[list[bytes]] = deque()
        self._waiting: trio.CancelScope | None = None
        self._in_flight = 0
        self._per_peer: Counter[bytes] = Counter()
        self.requests = 0
        self.dropped = 0

    async def serve(
        self,
        path: Path,
        *,
        mode: int,
        group: str | None,
        adopted_fd: int | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Bind and serve until cancelled. `adopted_fd` is a listening socket from systemd, bound to `path`.

        Raises InvalidInput when the path is too long, or in use by a living daemon.
        """
        context = zmq.Context()
        router = context.socket(zmq.ROUTER)
        listener = -1
        try:
            listener = listen(path, mode, group) if adopted_fd is None else adopted_fd
            os.set_blocking(listener, False)
            router.setsockopt(zmq.LINGER, 0)
            router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
            router.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
            router.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer that cannot be routed is counted, not lost
            router.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
            context.setsockopt(zmq.MAX_SOCKETS, 4096)
            door = _Door(router, listener, path, self._wake)
            door.open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guard_memory, path)
                nursery.start_soon(guard_descriptors, door)
                task_status.started()
                await self._own(router, nursery)
        finally:
            while self._outbox:  # the answer to `daemon.shutdown` is among these
                self._send(router, self._outbox.popleft())
            router.close(linger=_LAST_WORDS_MS)
            context.term()
            if listener >= 0:
                os.close(listener)
                if adopted_fd is None:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)

    async def _own(self, router: zmq.Socket[bytes], nursery: trio.Nursery) -> None:
        """The owning task: everything that touches the socket happens here."""
        descriptor = router.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        while True:
            for _ in range(100):  # then let other tasks run, however busy the socket is
                events = router.getsockopt(zmq.EVENTS)
                assert isinstance(events, int)
                if self._outbox and events & zmq.POLLOUT:
                    self._send(router, self._outbox.popleft())
                elif events & zmq.POLLIN and len(self._outbox) < MAX_IN_FLIGHT:
                    self._receive(router, nursery)
                else:
                    break
            else:
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope() as self._waiting:
                await trio.lowlevel.wait_readable(descriptor)
            self._waiting = None

    def _post(self, frames: list[bytes]) -> None:
        self._outbox.append(frames)
        self._wake()

    def _wake(self) -> None:
        """Have the owner look at the socket: somebody else may have consumed its edge."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _send(self, router: zmq.Socket[bytes], frames: list[bytes]) -> None:
        try:
            router.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError:  # gone (EHOSTUNREACH), or not reading (EAGAIN)
            self.dropped += 1

    def _receive(self, router: zmq.Socket[bytes], nursery: trio.Nursery) -> None:
        try:
            frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.ZMQError:
            return
        self.requests += 1
        envelope = _envelope([frame.bytes for frame in frames[:-1]])
        body = frames[-1].bytes
        if envelope is None or not body:
            self.dropped += 1  # no empty delimiter: not a client of ours, and nothing to address an answer to
            return
        peer = envelope[0]
        if self._in_flight >= MAX_IN_FLIGHT or self._per_peer[peer] >= MAX_PER_PEER:
            refusal = self._overflow(body)
            if refusal is not None:
                self._post([*envelope, refusal])
            return
        self._in_flight += 1
        self._per_peer[peer] += 1
        nursery.start_soon(self._handle, envelope, body, _peer(frames[-1]))

    async def _handle(self, envelope: list[bytes], body: bytes, peer: Peer) -> None:
        try:
            reply = await self._answer(body, peer)
            if reply is not None:
                self._post([*envelope, reply])
        finally:
            self._in_flight -= 1
            self._per_peer[envelope[0]] -= 1
            if not self._per_peer[envelope[0]]:
                del self._per_peer[envelope[0]]


class _Door:
    """Whether libzmq accepts connections: it is lent the listening socket while it may."""

    def __init__(self, router: zmq.Socket[bytes], listener: int, path: Path, wake: Callable[[], None]) -> None:
        self._router, self._listener, self._address, self._wake = router, listener, f"ipc://{path}", wake

    def open(self) -> None:
        self._router.setsockopt(zmq.USE_FD, os.dup(self._listener))  # libzmq closes it when the door does
        self._router.bind(self._address)
        self._wake()

    def close(self) -> None:
        self._router.unbind(self._address)  # libzmq ends the connections with the listener that accepted them
        self._wake()


def _envelope(frames: list[bytes]) -> list[bytes] | None:
    """Everything up to and with the empty delimiter; None when there is none."""
    return frames if len(frames) >= 2 and frames[-1] == b"" else None


def _peer(frame: zmq.Frame) -> Peer:
    """From libzmq's `Peer-Address`, which reads `localhost:UID:GID:PID` for ipc."""
    try:
        uid, gid, pid = str(frame.get("Peer-Address")).rsplit(":", 3)[1:]
        return Peer(int(uid), int(gid), int(pid))
    except (zmq.ZMQError, ValueError, IndexError):
        return Peer(-1, -1, -1)
