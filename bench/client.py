"""Clients that ask for daemon.status again and again and time the answers, in a process of their own.

`python -m bench.client SOCKET --clients N --interval S` asks until its standard input is closed, and then prints
one JSON object: `Latency`. `Asking` is the same for use by a benchmark.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq
from msgspec import Struct

from bench.daemon import ROOT, BenchError
from bench.figures import percentile
from bench.processes import start

_WARM_UP = 20
"""Requests of each client that are not counted: the connection is made with the first."""
_PATIENCE_MS = 30_000
_PEER = Path(__file__).parent / "peers" / "echo.py"
_REQUEST = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": "daemon.status", "params": {}})


class Latency(Struct, frozen=True, kw_only=True):
    """Seconds between a request and its answer."""

    requests: int
    per_second: float
    p50: float
    p99: float
    worst: float


def ask(address: str, clients: int, interval: float) -> Latency:
    """Each client asks, waits for the answer, rests for `interval` seconds, until standard input is closed."""
    context = zmq.Context()
    poller = zmq.Poller()
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    sent: dict[zmq.Socket[bytes], float] = {}
    resting: list[tuple[float, zmq.Socket[bytes]]] = []
    for _ in range(clients):
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(address)
        poller.register(socket, zmq.POLLIN)
        for _ in range(_WARM_UP):
            socket.send_multipart([b"", _REQUEST])
            if not socket.poll(_PATIENCE_MS):
                raise BenchError(f"no answer from {address}")
            socket.recv_multipart()
        resting.append((0.0, socket))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    taken: list[float] = []
    began = time.perf_counter()
    while True:
        now = time.perf_counter()
        while resting and resting[0][0] <= now:
            _, socket = resting.pop(0)
            sent[socket] = time.perf_counter()
            socket.send_multipart([b"", _REQUEST])
        patience = max(0, round((resting[0][0] - now) * 1000)) if resting else _PATIENCE_MS
        ready = poller.poll(patience)
        if not ready and not resting:
            raise BenchError(f"{address} has not answered for {_PATIENCE_MS} ms")
        for source, _ in ready:
            if not isinstance(source, zmq.Socket):
                took = time.perf_counter() - began
                context.destroy(0)
                return _summary(taken, took)
            source.recv_multipart()
            answered = time.perf_counter()
            taken.append(answered - sent.pop(source))
            resting.append((answered + interval, source))


def _summary(taken: list[float], seconds: float) -> Latency:
    if not taken:
        raise BenchError("nothing was asked")
    return Latency(
        requests=len(taken),
        per_second=len(taken) / seconds,
        p50=percentile(taken, 0.5),
        p99=percentile(taken, 0.99),
        worst=max(taken),
    )


class Asking:
    """Clients that ask as long as the context lasts; `latency` is there afterwards."""

    def __init__(self, socket: Path, *, clients: int = 1, interval: float = 0.0) -> None:
        self._command = [sys.executable, "-m", "bench.client", str(socket)]
        self._command += ["--clients", str(clients), "--interval", str(interval)]
        self._result: Latency | None = None

    @property
    def latency(self) -> Latency:
        assert self._result is not None
        return self._result

    def __enter__(self) -> Self:
        self._process = start(self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self._process.kill()
            self._process.communicate()
            raise BenchError("the asking clients got no answer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
            self._process.communicate()
            return
        try:
            output, _ = self._process.communicate(timeout=60)
        finally:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            raise BenchError("the asking clients failed")
        self._result = msgspec.json.decode(output, type=Latency)


@contextmanager
def bare_server(socket: Path, answer: object) -> Iterator[Path]:
    """The peer: a ROUTER at `socket` that gives every request the same `answer`, as long as the context lasts."""
    process = start([sys.executable, str(_PEER), str(socket)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(answer))
        process.stdin.close()
        if process.stdout.readline() != b"ready\n":
            raise BenchError("the peer did not start")
        yield socket
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.client", description="Ask for the status, and time it.")
    parser.add_argument("socket")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--interval", type=float, default=0.0)
    arguments = parser.parse_args()
    result = ask(f"ipc://{arguments.socket}", arguments.clients, arguments.interval)
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
