"""Clients that send garbage: `buildctl status` keeps answering, and the daemon's memory stays flat."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq
from harness import Daemon, RecipeRepository, Silence, booted, resident_bytes, rpc, until, zmtp

MAY_GROW = 48 << 20
"""Bytes that a test's attacks may leave in the daemon's resident memory."""
MAY_PEAK = 450 << 20
"""Bytes that they may take meanwhile: libzmq collects a message's parts out of the daemon's sight."""
ANSWERS_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def attacked() -> Iterator[Daemon]:
    with booted() as daemon:
        for _ in range(200):  # what a working daemon has in memory anyway
            daemon.status()
        yield daemon


def shown(body: bytes) -> str:
    """A request as the name of a test."""
    return ascii(body.removeprefix(b'{"jsonrpc": "2.0", "id": 1, ')[:70].decode("latin-1"))


class Watch:
    """Asks for the daemon's status all the time, and remembers the worst."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.slowest_s = 0.0
        self.peak_bytes = 0
        self.answers = 0
        self.lost = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(0.02):
            asked = time.monotonic()
            try:
                rss = self._daemon.call("daemon.status", timeout=5)["resources"]["rss_bytes"]
            except Silence:  # to end an attack on its memory the daemon shuts all connections
                self.lost += 1
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - asked)
            self.peak_bytes = max(self.peak_bytes, rss)
            self.answers += 1


@pytest.fixture
def unharmed(attacked: Daemon) -> Iterator[Daemon]:
    """The daemon, watched: it answers during the test and after it, and its memory comes back."""
    before = resident_bytes(attacked.pid)
    with Watch(attacked) as watch:
        yield attacked
        until(lambda: watch.answers > 0, "the daemon answers")
    assert watch.slowest_s < ANSWERS_WITHIN_S
    assert watch.lost <= 1
    assert watch.peak_bytes - before < MAY_PEAK
    until(lambda: resident_bytes(attacked.pid) - before < MAY_GROW, "its memory is back", within=10)
    assert attacked.buildctl("status").returncode == 0
    attacked.check_log()


def test_raw_garbage_is_hung_up_on(unharmed: Daemon) -> None:
    noise = random.Random(1)
    pieces = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
        b"\0" * 500,
        b"\xff" * 500,
        *(noise.randbytes(size) for size in (1, 9, 10, 64, 1000, 65536)),
        zmtp.GREETING[:11] + b"\x01" * 200,
        zmtp.GREETING + noise.randbytes(300),
        zmtp.GREETING + zmtp.ready(b"PUB"),
        zmtp.GREETING + zmtp.frame(b"\x05READY\xff" + b"a" * 40, zmtp.COMMAND),
        zmtp.GREETING + zmtp.message(b"", b"{}"),  # a message where the handshake should be
    ]
    for piece in pieces * 10:
        with closing(zmtp.connect(unharmed.socket)) as raw:
            zmtp.send_all_of(raw, piece)


def test_half_frames_and_half_handshakes_cost_nothing(unharmed: Daemon) -> None:
    whole = zmtp.message(b"", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "daemon.status"}).encode())
    connections = []
    for cut in range(1, len(zmtp.GREETING), 5):
        raw = zmtp.connect(unharmed.socket)
        raw.sendall(zmtp.GREETING[:cut])
        connections.append(raw)
    for cut in range(1, len(whole), 5):
        raw = zmtp.shake_hands(unharmed.socket)
        raw.sendall(whole[:cut])
        connections.append(raw)
    assert unharmed.buildctl("status").returncode == 0  # while all of them hold on
    for raw in connections:
        raw.close()


def test_frames_of_50_mb_end_their_connection(unharmed: Daemon) -> None:
    for _ in range(5):
        raw = zmtp.shake_hands(unharmed.socket)
        with closing(raw):
            zmtp.send_all_of(raw, zmtp.frame(b"", zmtp.MORE) + zmtp.frame(b"x" * (50 << 20)))
            assert zmtp.hung_up(raw)


def test_a_frame_that_only_claims_to_be_huge_ends_its_connection(unharmed: Daemon) -> None:
    for size in (b"\x7f" + b"\xff" * 7, b"\xff" * 8, (2 << 20).to_bytes(8, "big")):
        raw = zmtp.shake_hands(unharmed.socket)
        with closing(raw):
            zmtp.send_all_of(raw, b"\x02" + size + b"some")
            assert zmtp.hung_up(raw)


@pytest.mark.parametrize(
    ("part", "per_second"),
    [
        pytest.param(zmtp.frame(b"x" * (1 << 19), zmtp.MORE), None, id="big parts"),
        # tiny parts take thirty times as much in memory as on the way
        pytest.param(zmtp.frame(b"", zmtp.MORE) * 50_000, None, id="tiny parts"),
        pytest.param(zmtp.frame(b"x" * (1 << 19), zmtp.MORE), 90, id="big parts, slowly"),
    ],
)
def test_a_message_without_end_is_bounded(unharmed: Daemon, part: bytes, per_second: int | None) -> None:
    with closing(zmtp.shake_hands(unharmed.socket)) as raw:
        raw.settimeout(5)
        for _ in range(1000):
            if not zmtp.send_all_of(raw, part):
                return
            if per_second is not None:
                time.sleep(1 / per_second)
            if resident_bytes(unharmed.pid) > MAY_PEAK:
                break
        assert zmtp.hung_up(raw)


def test_ten_thousand_unknown_methods_each_get_their_error(unharmed: Daemon) -> None:
    with rpc.context().socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{unharmed.socket}")
        codes = set()
        for batch in range(500):
            for i in range(20):
                request = {"jsonrpc": "2.0", "id": batch * 20 + i, "method": f"no.such{i}"}
                dealer.send_multipart([b"", json.dumps(request).encode()])
            for _ in range(20):
                assert dealer.poll(10_000)
                codes.add(json.loads(dealer.recv_multipart()[-1])["error"]["code"])
    assert codes == {-32601}


def test_a_client_that_never_reads_its_answers_costs_a_bounded_amount(unharmed: Daemon) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "daemon.status"}
    flood = zmtp.message(b"", json.dumps(request).encode()) * 1000
    raw = zmtp.shake_hands(unharmed.socket)
    raw.settimeout(1)
    with closing(raw):
        try:
            for _ in range(100):
                raw.sendall(flood)
        except TimeoutError:
            pass  # it is not read any more: that is what holds such a client back
        assert unharmed.buildctl("status").returncode == 0


def test_a_client_that_never_reads_big_answers_costs_a_bounded_amount(
    unharmed: Daemon, repository: RecipeRepository
) -> None:
    repository.package("loud", phases={"build": "head -c 400000 /dev/zero | tr '\\0' x"}).commit()
    build = unharmed.build(repository).packages[0].build_id
    request = {"jsonrpc": "2.0", "id": 1, "method": "build.log", "params": {"build": build}}
    with closing(zmtp.shake_hands(unharmed.socket)) as raw:
        raw.settimeout(1)
        try:
            for _ in range(50):
                raw.sendall(zmtp.message(b"", json.dumps(request).encode()) * 100)
        except TimeoutError:
            pass
        assert unharmed.buildctl("status").returncode == 0


def test_a_message_without_the_empty_frame_is_dropped_and_counted(unharmed: Daemon) -> None:
    dropped = unharmed.status()["control"]["dropped"]
    with closing(zmtp.shake_hands(unharmed.socket)) as raw:
        raw.sendall(zmtp.message(b"no delimiter") + zmtp.message(b"", b"") + zmtp.message(b"a", b"b", b"c"))
        until(lambda: unharmed.status()["control"]["dropped"] >= dropped + 3, "three messages are dropped")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff\xfe\x00", -32700),
        (b"{", -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "daemon.status"} trailing', -32700),
        (b"[" * 100_000, -32600),
        (b'{"a":' * 50_000, -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"run.start","params":' + b"[" * 100_000, -32700),
        (b"null", -32600),
        (b"42", -32600),
        (b'"text"', -32600),
        (b"[]", -32600),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "daemon.status"}]', -32600),
        (b"{}", -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "daemon.status"}', -32600),
        (b'{"jsonrpc": "2.0", "id": {}, "method": "daemon.status"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 7}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "daemon.statu"}', -32601),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": []}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": null}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": {"targets": "x"}}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": {"targets": [1]}}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": {"targets": ["x"], "forced": 1}}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": {"targets": []}}', 2),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": {"targets": ["a\\u0000b"]}}', 2),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.start", "params": {"targets": ["//x"]}}', 2),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "run.list", "params": {"limit": 1e300}}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "events.poll", "params": {"after": "0"}}', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "repo.clone", "params": {"repo": "ext::sh -c id"}}', 2),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "repo.clone", "params": {"repo": "--upload-pack=x"}}', None),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "repo.clone", "params": {"repo": "https://h/\\u001b[2J"}}', 2),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "repo.status", "params": {"repo": "../../etc"}}', None),
        (
            b'{"jsonrpc": "2.0", "id": 1, "method": "artifact.read", '
            b'"params": {"output_id": "../../../../etc", "filename": "x.tar.zst"}}',
            2,
        ),
        (
            b'{"jsonrpc": "2.0", "id": 1, "method": "artifact.read", '
            b'"params": {"output_id": "' + b"0" * 64 + b'", "filename": "../../x.tar.zst"}}',
            2,
        ),
        (
            b'{"jsonrpc": "2.0", "id": 1, "method": "artifact.read", '
            b'"params": {"output_id": "' + b"0" * 64 + b'", "filename": "a\\u0000.tar.zst"}}',
            None,
        ),
    ],
    ids=lambda value: shown(value) if isinstance(value, bytes) else str(value),
)
def test_a_wrong_request_gets_an_error_that_names_it(unharmed: Daemon, body: bytes, code: int | None) -> None:
    answer = json.loads(rpc.exchange(unharmed.socket, body))
    assert answer["jsonrpc"] == "2.0"
    assert "result" not in answer
    error = answer["error"]
    assert error["message"]
    if code is None:
        assert error["code"] in (2, 3)  # wrong or unknown, and never a fault of the daemon
    else:
        assert error["code"] == code


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("build.log", {"build": "0", "offset": -(2**62)}),
        ("build.log", {"build": "0", "offset": 2**62, "limit": 2**62}),
        ("events.poll", {"after": 2**62, "limit": -5}),
        ("events.poll", {"after": 2**63}),
        ("events.poll", {"after": 0, "run": "\0"}),
        ("events.poll", {"after": 0, "kinds": ["x"] * 50_000}),
        ("run.status", {"run": "9" * 400}),
        ("run.status", {"run": "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace")}),
        ("run.list", {"limit": -1}),
        ("run.list", {"limit": 10**20}),
        ("run.wait", {"run": "1", "timeout": 1e308}),
        ("object.show", {"id": ""}),
        ("artifact.show", {"artifact": "@"}),
        ("run.start", {"targets": ["x" * 5000]}),
        ("run.start", {"targets": ["/nowhere"], "priority": 2**62}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_extreme_values_are_answered_like_any_others(unharmed: Daemon, method: str, params: dict[str, object]) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = json.loads(rpc.exchange(unharmed.socket, json.dumps(body).encode()))
    assert "result" in answer or answer["error"]["code"] in (1, 2, 3, 4, -32602), answer
    if method == "run.start":
        until(lambda: unharmed.status()["runs"]["active"] == 0, "no run is left")


def test_a_hundred_clients_at_once_and_the_daemon_goes_on(unharmed: Daemon) -> None:
    def garbage(seed: int) -> None:
        noise = random.Random(seed)
        actions: list[Callable[[], object]] = [
            lambda: zmtp.send_all_of(raw, noise.randbytes(5000)),
            lambda: zmtp.send_all_of(raw, zmtp.GREETING + zmtp.ready() + zmtp.message(b"", noise.randbytes(200))),
            lambda: zmtp.send_all_of(raw, zmtp.GREETING + zmtp.ready() + zmtp.frame(b"x" * (3 << 20))),
            lambda: zmtp.send_all_of(raw, zmtp.GREETING + zmtp.ready() + b"\x02\x00\x00"),
        ]
        for _ in range(3):
            with closing(zmtp.connect(unharmed.socket)) as raw:
                try:
                    noise.choice(actions)()
                except TimeoutError:
                    continue

    threads = [threading.Thread(target=garbage, args=(seed,)) for seed in range(100)]
    for thread in threads:
        thread.start()
    honest = [unharmed.status()["pid"] for _ in range(50)]
    for thread in threads:
        thread.join(timeout=60)
    assert honest == [unharmed.pid] * 50


def test_a_hundred_long_polls_hold_nobody_up(unharmed: Daemon) -> None:
    sockets = [rpc.context().socket(zmq.DEALER) for _ in range(100)]
    try:
        for i, dealer in enumerate(sockets):
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(f"ipc://{unharmed.socket}")
            params = {"after": -1, "timeout": 60, "kinds": ["never"]}
            request = {"jsonrpc": "2.0", "id": i, "method": "events.poll", "params": params}
            dealer.send_multipart([b"", json.dumps(request).encode()])
        assert all(unharmed.status()["pid"] == unharmed.pid for _ in range(20))
    finally:
        for dealer in sockets:
            dealer.close()


def test_one_client_may_not_have_all_the_room(unharmed: Daemon) -> None:
    with rpc.context().socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{unharmed.socket}")
        for i in range(100):
            request = {"jsonrpc": "2.0", "id": i, "method": "events.poll", "params": {"after": -1, "timeout": 60}}
            dealer.send_multipart([b"", json.dumps(request).encode()])
        assert dealer.poll(10_000)
        assert json.loads(dealer.recv_multipart()[-1])["error"]["code"] == 6
        assert unharmed.buildctl("status").returncode == 0


def test_open_files_are_back_when_the_clients_are_gone(unharmed: Daemon) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{unharmed.pid}/fd"))

    before = descriptors()
    connections: list[socket.socket] = [zmtp.shake_hands(unharmed.socket) for _ in range(100)]
    assert descriptors() >= before + 90
    for raw in connections:
        raw.close()
    until(lambda: descriptors() <= before + 5, "the descriptors are closed")
