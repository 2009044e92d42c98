"""An orderly stop in every state: exit status 0, in time, and nothing left.

`make chaos` has the same states in full size.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import chaos_leftovers as leftovers
import pytest
from chaos_world import silence
from harness import Daemon, RecipeRepository, RpcError, Silence, rpc, unbooted, until, zmtp
from test_chaos_rounds import FULL

AT_ONCE_S = 3.0 if FULL else 6.0
"""How long a stop may take when builds obey: it is three seconds, where other tests do not run side by side."""
LIMIT_S = 30.0
READY = "it runs"


class Scene:
    """A state to be stopped in. Each method brings a daemon into one; what it needs is closed after the stop."""

    def __init__(self, daemon: Daemon, root: Path, held: ExitStack) -> None:
        self.daemon, self.root, self.held = daemon, root, held

    def _repository(self, name: str = "packages") -> RecipeRepository:
        return RecipeRepository(self.root / name)

    def _in_background(self, call: Callable[[], object]) -> None:
        """Ask something whose answer will not come."""

        def work() -> None:
            with contextlib.suppress(RpcError, Silence):
                call()

        thread = threading.Thread(target=work)
        thread.start()
        self.held.callback(thread.join)

    def _ask(self, method: str, **params: object) -> None:
        gone = self._is_gone
        self._in_background(lambda: rpc.call(self.daemon.socket, method, params, timeout=LIMIT_S, gone=gone))

    def _is_gone(self) -> bool:
        return self.daemon.process is not None and self.daemon.process.poll() is not None

    # --- states -------------------------------------------------------------------------------------------

    def idle(self) -> None:
        self.daemon.boot()

    def starting(self) -> None:
        """Before it answers anybody: its state directory is locked, and no socket is there."""
        self.daemon.boot(ready=False)
        until((self.daemon.state_dir / "lock").exists, "it has begun")

    def cloning_from_silent_servers(self) -> None:
        """More of them than there are slots."""
        self.daemon.boot()
        for _ in range(6):
            url = self.held.enter_context(silence())
            self.daemon.call("repo.clone", {"repo": url})
        number = self.daemon.start(self.held.enter_context(silence()))
        until(lambda: self.daemon.run(number).state == "discovering", "a run waits for a clone")
        until(lambda: len(list((self.daemon.cache_dir / "repos/.incoming").iterdir())) == 4, "clones are under way")

    def planning(self) -> None:
        """A repository with very many packages, looked into for the first time."""
        repository = self._repository()
        repository.packages([f"p{i}" for i in range(20_000 if FULL else 4_000)], phases={"build": "true"}).commit()
        self.daemon.boot()
        number = self.daemon.start(repository)
        until(lambda: self.daemon.run(number).state in ("discovering", "planning"), "it plans")

    def reading_a_directory(self) -> None:
        """A plain directory with many files, which are all hashed."""
        repository = RecipeRepository(self.root / "plain", plain=True)
        repository.package("one", path=".").commit()
        for number in range(20_000 if FULL else 3_000):
            repository.write(f"{number % 100}/{number}", f"{number}\n")
        self.daemon.boot()
        self.daemon.start(repository)
        objects = self.daemon.cache_dir / "snapshots"
        until(lambda: next(objects.glob("*/objects/??/*"), None) is not None, "it reads")

    def building(self) -> None:
        self._build(100 if FULL else 12, f"echo {READY}; sleep 300")

    def building_what_cleans_up_after_itself(self) -> None:
        clean = "sleep 0.3; echo cleaned up; exit 1"
        self._build(20 if FULL else 4, f"trap '{clean}' TERM; echo {READY}; while :; do sleep 0.05; done")

    def building_what_does_not_obey(self) -> None:
        deaf = f"trap '' TERM INT HUP; (setsid sleep 300 &) >/dev/null 2>&1; echo {READY}; while :; do sleep 1; done"
        self._build(100 if FULL else 8, deaf)

    def _build(self, count: int, text: str) -> None:
        repository = self._repository()
        repository.packages([f"p{i}" for i in range(count)], phases={"build": text})
        repository.packages([f"q{i}" for i in range(count)], depends=["p0"], phases={"build": "true"}).commit()
        self.daemon.settings["workers.max_concurrent_builds"] = count
        self.daemon.boot()
        number = self.daemon.start(repository)
        self.daemon.until_running(number, count, saying=READY)

    def moving_a_large_output(self) -> None:
        """After the last phase: thousands of files are hashed, written to the disk and taken over."""
        count = 20_000 if FULL else 4_000
        many = f"""mkdir -p "$DESTDIR/opt" && cd "$DESTDIR/opt" && n=0
            while [ $n -lt {count} ]; do n=$((n + 1)); echo $n >$n; done"""
        repository = self._repository()
        repository.package("large", phases={"stage": many}).commit()
        self.daemon.boot()
        self.daemon.start(repository)
        until(
            lambda: next(self.daemon.state_dir.glob("artifacts/??/.*.tmp"), None) is not None,
            "it is taken over",
            within=60,
        )

    def downloading_from_a_silent_server(self) -> None:
        listener = self.held.enter_context(socket.create_server(("127.0.0.1", 0)))
        source = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/file", "sha256": "0" * 64}
        repository = self._repository()
        repository.packages([f"p{i}" for i in range(4)], source=[source]).commit()
        self.daemon.boot()
        self.daemon.start(repository)
        peer, _ = listener.accept()
        self.held.callback(peer.close)

    def collecting_garbage(self) -> None:
        """Many artifacts, which are all to go."""
        count = 600 if FULL else 60
        repository = self._repository()
        stage = (
            'mkdir -p "$DESTDIR/opt" && cd "$DESTDIR/opt" && for n in $(seq 50); do echo "$BUILDD_PACKAGE" >$n; done'
        )
        repository.packages([f"p{i}" for i in range(count)], phases={"stage": stage}).commit()
        self.daemon.boot()
        self.daemon.build(repository)
        before = len(list(self.daemon.state_dir.glob("artifacts/??/*")))
        self._ask("artifact.collect", max_bytes=1)
        until(lambda: len(list(self.daemon.state_dir.glob("artifacts/??/*"))) < before, "it collects")

    def with_its_database_locked(self) -> None:
        """By another process that writes, while builds run and runs end."""
        self._build(4, f"echo {READY}; sleep 300")
        self.daemon.expect("the database cannot record")
        self.daemon.expect("a record could not be written")
        self.daemon.expect("the daemon ends with records that could not be written")
        connection = sqlite3.connect(self.daemon.state_dir / "buildd.db", isolation_level=None, check_same_thread=False)
        self.held.callback(connection.close)
        connection.execute("BEGIN IMMEDIATE")

    def flooded_by_clients(self) -> None:
        """By requests of all kinds, long polls, and connections that say nothing."""
        repository = self._repository()
        repository.packages([f"p{i}" for i in range(20)], phases={"build": "sleep 0.1"}).commit()
        self.daemon.boot()
        for _ in range(20):
            self.held.enter_context(zmtp.connect(self.daemon.socket))
        for _ in range(20):
            self._ask("events.poll", after=-1, timeout=60)
        methods = ("daemon.status", "run.list", "repo.list", "build.list", "artifact.list", "db.stats")
        for number in range(24 if FULL else 8):
            self._flood(methods[number % len(methods)], {})
        self._flood("run.start", {"targets": [str(repository)]})
        before = self.daemon.status()["control"]["requests"]
        until(lambda: self.daemon.status()["control"]["requests"] > before + 50, "requests come")

    def _flood(self, method: str, params: dict[str, object]) -> None:
        def ask() -> None:
            while not self._is_gone():
                with contextlib.suppress(RpcError):
                    rpc.call(self.daemon.socket, method, params, timeout=LIMIT_S, gone=self._is_gone)

        self._in_background(ask)


QUICK = (
    Scene.starting,
    Scene.cloning_from_silent_servers,
    Scene.planning,
    Scene.building,
    Scene.with_its_database_locked,
    Scene.flooded_by_clients,
)
"""The states of the short form: those that no other test has."""
STATES = (
    *QUICK,
    Scene.idle,
    Scene.reading_a_directory,
    Scene.building_what_cleans_up_after_itself,
    Scene.moving_a_large_output,
    Scene.downloading_from_a_silent_server,
    Scene.collecting_garbage,
)


@contextmanager
def _stage(root: Path, backend: str | None = None) -> Iterator[Scene]:
    settings = {"sandbox.readonly_paths": "[]", "cache.min_free_bytes": 0}
    with unbooted(backend=backend, settings=settings) as daemon, ExitStack() as held:
        try:
            yield Scene(daemon, root, held)
        finally:
            if sys.exc_info()[0] is not None and daemon.process is not None:
                daemon.kill9()  # who waits for it in the background is to see its end


def _stop(daemon: Daemon, *, behind: bool = False) -> float:
    """Seconds that it took; `behind` when records could not be written, which leaves a mark for the next start."""
    begun = time.monotonic()
    assert daemon.terminate(within=LIMIT_S + 5) == 0
    took = time.monotonic() - begun
    assert leftovers.files(daemon) == ({"state/buildd.db.behind"} if behind else set())
    assert leftovers.processes(daemon) == []
    assert leftovers.mounts(daemon) == []
    assert leftovers.control_groups(daemon) == []
    return took


@pytest.mark.parametrize("state", STATES if FULL else QUICK, ids=lambda state: state.__name__)
def test_a_daemon_stops_at_once_and_leaves_nothing(state: Callable[[Scene], None], tmp_path: Path) -> None:
    with _stage(tmp_path) as scene:
        state(scene)
        took = _stop(scene.daemon, behind=state is Scene.with_its_database_locked)
        assert took < AT_ONCE_S, f"it took {took:.1f} s"
        sys.stdout.write(f"{state.__name__}: {took:.2f} s\n")
        scene.held.close()
        if FULL:
            scene.daemon.boot()
            assert scene.daemon.call("db.verify")["ok"]


@pytest.mark.skipif(not FULL, reason="make chaos has it")
@pytest.mark.parametrize("state", [Scene.building, Scene.building_what_cleans_up_after_itself])
def test_plain_builds_hold_up_a_stop_no_longer(state: Callable[[Scene], None], tmp_path: Path) -> None:
    with _stage(tmp_path, "plain") as scene:
        state(scene)
        took = _stop(scene.daemon)
        sys.stdout.write(f"{state.__name__}, plain: {took:.2f} s\n")
        assert took < AT_ONCE_S, f"it took {took:.1f} s"


@pytest.mark.skipif(not FULL, reason="make chaos has it; tests/daemon/test_daemon_shutdown.py has less of it")
def test_builds_that_do_not_obey_hold_up_a_stop_for_the_grace_and_no_longer(tmp_path: Path) -> None:
    with _stage(tmp_path) as scene:
        scene.daemon.settings["daemon.shutdown_grace"] = "1s"
        scene.building_what_does_not_obey()
        took = _stop(scene.daemon)
        assert 1 <= took < 1 + AT_ONCE_S, f"it took {took:.1f} s"
