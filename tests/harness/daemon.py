"""The real daemon in a home of its own, as a subprocess.

    with booted() as daemon:
        run = daemon.start(repository)
        assert daemon.wait(run).state == "completed"

Invariants: whatever a test does, afterwards no process of it is alive and its home is gone; a daemon that logged
an error, a warning of Python or a traceback that the test did not expect fails the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildd.model import BuildRecord, Event
from buildd.protocol import LogChunk, RunPackage, RunView
from harness import rpc
from harness.processes import kill_all, until, with_cookie, with_environment

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
"""How long a wait for the daemon may take before the test fails; far more than it should."""
BUILDCTL = (sys.executable, "-m", "ctl")
HOME_MARK = "BUILDD_TEST_HOME"
"""In the environment of the daemon and of what it starts for itself: how leftovers of a test are found."""
_FINAL = ("completed", "failed", "cancelled")


@cache
def bwrap_trouble() -> str | None:
    """Why builds in bwrap cannot be tested on this machine; None when they can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    probe = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--proc", "/proc"]
    done = subprocess.run([*probe, "--dev", "/dev", "true"], capture_output=True, text=True, check=False, timeout=30)
    return None if done.returncode == 0 else f"bubblewrap does not work here: {done.stderr.strip()}"


needs_bwrap = pytest.mark.skipif(bwrap_trouble() is not None, reason=str(bwrap_trouble()))
BACKENDS = [pytest.param("bwrap", marks=needs_bwrap), "plain"]
"""Each sandbox, for tests of what must hold in all; those that this machine cannot have are skipped."""


class Daemon:
    def __init__(self, home: Path, *, backend: str, settings: Mapping[str, object], environ: Mapping[str, str]) -> None:
        self.home = home
        self.state_dir, self.cache_dir, self.runtime_dir = home / "state", home / "cache", home / "run"
        self.work_dir = self.state_dir / "work"
        self.gates = home / "gates"
        """A directory that builds see, in every sandbox: what appears here lets waiting builds go on."""
        self.gates.mkdir()
        (home / "user").mkdir()
        self.socket = self.runtime_dir / "control.sock"
        self.log_file = home / "daemon.log"
        self.config_file = home / "buildd.conf"
        self.config_file.touch()
        self.backend = backend
        self.settings: dict[str, object] = {
            "daemon.state_dir": self.state_dir,
            "daemon.cache_dir": self.cache_dir,
            "daemon.runtime_dir": self.runtime_dir,
            "sandbox.backend": backend,
            "sandbox.readonly_paths": json.dumps([str(self.gates)]),
            "maps.automatic": "false",  # what is not asked for takes no time
            "throttle.enabled": "false",  # how many builds run at a time is the test's to say, not other tests' load
            **settings,
        }
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home / "user"),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "default::ResourceWarning",
            HOME_MARK: str(home),
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._expected: list[re.Pattern[str]] = []
        self._checked = 0

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def command(self) -> list[str]:
        sets = [part for key, value in self.settings.items() for part in ("--set", f"{key}={value}")]
        return [sys.executable, "-m", "buildd", "--config", str(self.config_file), *sets]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def boot(self, *prefix: str, ready: bool = True) -> Daemon:
        """Start the daemon, by the command `prefix` if there is one, and wait until it answers."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *self.command],
                env=self.environ,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if ready:
            until(self._answers, "the daemon answers", within=DEADLINE_S)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log()[-3000:]}"
        if not self.socket.exists():
            return False
        try:
            return bool(rpc.call(self.socket, "daemon.status", timeout=1.0)["pid"] == self.process.pid)
        except rpc.Silence:
            return False

    def exit_status(self, *, within: float = DEADLINE_S) -> int:
        """Wait for the end of the daemon's process."""
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {within:g} s:\n{self.log()[-3000:]}") from None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self, *, within: float = DEADLINE_S) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.exit_status(within=within)

    def kill9(self) -> None:
        self.signal(signal.SIGKILL)
        self.exit_status(within=5)

    def restart(self) -> Daemon:
        """Boot again, after an orderly stop if it still runs."""
        if self.process is not None and self.process.poll() is None:
            assert self.terminate() == 0
        return self.boot()

    def close(self) -> None:
        """End everything, look through the log, and remove the home."""
        try:
            self._end_everything()
        finally:
            shutil.rmtree(self.home, ignore_errors=True)

    def _end_everything(self) -> None:
        running = self.process is not None and self.process.poll() is None
        try:
            if running:
                self.settings_for_quick_end()
                self.terminate(within=20)
            self.check_log()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            kill_all({*self.build_processes(), *self.own_processes()})

    def settings_for_quick_end(self) -> None:
        """Cancel what still runs: a test that is over waits for no build."""
        with contextlib.suppress(rpc.RpcError, rpc.Silence):
            for run in self.call("run.list", {"active": True})["runs"]:
                self.call("run.cancel", {"run": run["id"]})

    # --- talking to it --------------------------------------------------------------------------------------

    def call(self, method: str, params: dict[str, Any] | None = None, *, timeout: float = 20.0) -> Any:
        """The result of a request, as JSON. Raises RpcError."""
        return rpc.call(self.socket, method, params, timeout=timeout)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("daemon.status")
        return answer

    def start(self, *targets: object, **options: Any) -> int:
        """Start a run; its number. `options` as in `run.start`."""
        answer = self.call("run.start", {"targets": [str(target) for target in targets], **options})
        return int(answer["number"])

    def run(self, number: int) -> RunView:
        """A run as it is now. Its statistics add up, whenever one looks."""
        view = msgspec.convert(self.call("run.status", {"run": str(number)}), RunView)
        _assert_adds_up(view)
        return view

    def wait(self, number: int, *, within: float = DEADLINE_S) -> RunView:
        """The run once it has ended."""
        deadline = time.monotonic() + within
        while True:
            answer = self.call("run.wait", {"run": str(number), "timeout": 5}, timeout=30)
            view = msgspec.convert(answer["run"], RunView)
            _assert_adds_up(view)
            if answer["finished"]:
                assert view.state in _FINAL
                assert view.stats.queued == view.stats.running == 0
                return view
            assert time.monotonic() < deadline, f"run {number} did not end within {within:g} s: {view}"

    def build(self, *targets: object, **options: Any) -> RunView:
        """Start a run and wait for its end."""
        return self.wait(self.start(*targets, **options))

    def package(self, number: int, name: str) -> RunPackage:
        return named(self.run(number), name)

    def record(self, build: str | None) -> BuildRecord:
        assert build is not None
        return msgspec.convert(self.call("build.show", {"build": build}), BuildRecord)

    def records(self, *, run: int | str | None = None, package: str | None = None) -> list[BuildRecord]:
        """The builds of a run (its number or id), of a package, or all, oldest first."""
        if isinstance(run, int):
            run = self.run(run).id
        wanted = {k: v for k, v in (("run", run), ("package", package)) if v is not None}
        answer = self.call("build.list", {**wanted, "limit": 1000})
        return msgspec.convert(list(reversed(answer["builds"])), list[BuildRecord])

    def events(self, run: int | None = None, *kinds: str, after: int = 0) -> list[Event]:
        """All events after a number, or those of a run, or of some kinds, that are there now."""
        wanted: dict[str, Any] = {"kinds": kinds} | ({"run": self.run(run).id} if run is not None else {})
        found: list[Event] = []
        while True:
            answer = self.call("events.poll", {"after": after, **wanted})
            if answer["next"] == after:
                return found
            found += msgspec.convert(answer["events"], list[Event])
            after = answer["next"]

    def build_log(self, build: str | None) -> str:
        """The whole log of a build so far."""
        assert build is not None
        text, offset = "", 0
        while True:
            chunk = msgspec.convert(self.call("build.log", {"build": build, "offset": offset}), LogChunk)
            text += chunk.text
            if chunk.next_offset == offset:
                return text
            offset = chunk.next_offset

    def log_of(self, view: RunView, name: str) -> str:
        return self.build_log(named(view, name).build_id)

    def until_running(self, number: int, count: int, *, saying: str, within: float = DEADLINE_S) -> list[RunPackage]:
        """The running packages, once there are `count` and the log of each has the line `saying`."""

        def look() -> list[RunPackage]:
            view = self.run(number)
            assert view.state not in _FINAL, f"run {number} ended as {view.state}: {view.stats}, {view.error}"
            running = [p for p in view.packages if p.state == "running" and p.build_id]
            loud = [p for p in running if self._has_line(p.build_id, saying)]
            return loud if len(loud) == count else []

        return until(look, f"{count} builds of run {number} say {saying!r}", within=within)

    def _has_line(self, build: str | None, line: str) -> bool:
        path = self.state_dir / "logs" / str(build)[:2] / f"{build}.log"
        return path.exists() and line in path.read_text(errors="replace").splitlines()

    def open_gate(self, name: str = "open") -> None:
        (self.gates / name).touch()

    def at_gate(self, name: str = "open") -> str:
        """Shell text that waits until a gate is open."""
        return f"while [ ! -e '{self.gates / name}' ]; do sleep 0.1; done"

    def client_environment(self) -> dict[str, str]:
        """An environment in which `buildctl` finds this daemon and no other."""
        names = ("PATH", "LC_ALL", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HOME")
        return {name: self.environ[name] for name in names} | {
            "BUILDD_SOCKET": str(self.socket),
            "XDG_RUNTIME_DIR": str(self.home / "user"),
        }

    def buildctl(
        self, *arguments: object, timeout: float = DEADLINE_S, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*BUILDCTL, *map(str, arguments)],
            env=self.client_environment(),
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def buildctl_in_background(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """`buildctl` with its output in pipes. The caller ends it."""
        return subprocess.Popen(
            [*BUILDCTL, *map(str, arguments)],
            env=self.client_environment(),
            cwd=self.home,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    # --- looking at it from outside -------------------------------------------------------------------------

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a query of the database answers; nothing is ever written there."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state_dir}/buildd.db?mode=ro", uri=True)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def build_ids(self) -> set[str]:
        """Every build that ever wrote a log, whether the daemon knows it or not."""
        return {path.stem for path in (self.state_dir / "logs").glob("*/*.log")}

    def build_processes(self) -> list[int]:
        """Living processes of any build of this daemon."""
        return with_cookie(self.build_ids())

    def own_processes(self) -> list[int]:
        """Living processes that this daemon, or an earlier one in the same home, has for itself."""
        return with_environment(lambda variables: variables.get(HOME_MARK) == str(self.home))

    def work_directories(self) -> list[Path]:
        """What is left of builds on disk: work directories, composed prefixes, unfinished artifacts."""
        places = (self.work_dir, self.state_dir / "prefixes")
        found = [path for place in places if place.is_dir() for path in place.iterdir()]
        return found + list((self.state_dir / "artifacts").glob("??/.*.tmp"))

    def log(self) -> str:
        """Everything that the daemon wrote to its log, of all its lives."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log as data; with `event`, only lines that begin with that."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if event is None or str(line.get("event", "")).startswith(event)]

    def expect(self, pattern: str) -> None:
        """Lines of the log that match the regular expression are no reason to fail."""
        self._expected.append(re.compile(pattern))

    def check_log(self) -> None:
        """Fail for every line since the last check that tells of a fault and was not expected."""
        lines = self.log().splitlines()
        fresh, self._checked = lines[self._checked :], len(lines)
        faults = [
            line for line in fresh if _is_fault(line) and not any(pattern.search(line) for pattern in self._expected)
        ]
        assert not faults, "the daemon logged:\n" + "\n".join(faults)[:6000]


def _is_fault(line: str) -> bool:
    if line.startswith("{"):
        return bool(json.loads(line).get("level") in ("error", "critical"))
    return "Traceback" in line or "Exception ignored" in line or re.search(r"\bWarning: ", line) is not None


def _assert_adds_up(view: RunView) -> None:
    """B6: total is always the sum, and the sum is of the packages that are shown."""
    counts = msgspec.structs.asdict(view.stats)
    total = counts.pop("total")
    assert total == sum(counts.values()), f"run {view.number}: {view.stats}"
    if view.packages:
        shown = {state: sum(p.state == state for p in view.packages) for state in counts}
        assert shown == counts, f"run {view.number} counts {counts} and shows {shown}"


def states(view: RunView) -> dict[str, str]:
    """The state of each package of a run."""
    return {package.name: package.state for package in view.packages}


def named(view: RunView, name: str) -> RunPackage:
    """One package of a run."""
    found = [package for package in view.packages if package.name == name]
    assert found, f"{name} is not among {[p.name for p in view.packages]}"
    return found[0]


@contextmanager
def a_home(parent: str = "/tmp") -> Iterator[Path]:
    """A directory with a path short enough for a socket, readable by other users, gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="bd-", dir=parent))
    home.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def unbooted(
    *,
    backend: str | None = None,
    settings: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Iterator[Daemon]:
    """A daemon that is not started yet. `settings` are `--set` options by key; `backend` None is the best one here.

    Its home is one of its own, unless one is given.
    """
    best = "bwrap" if bwrap_trouble() is None else "plain"
    with a_home() if home is None else nullcontext(home) as place:
        daemon = Daemon(place, backend=backend or best, settings=settings or {}, environ=environ or {})
        try:
            yield daemon
        finally:
            daemon.close()


@contextmanager
def booted(
    *,
    backend: str | None = None,
    settings: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    with unbooted(backend=backend, settings=settings, environ=environ) as daemon:
        yield daemon.boot()
