"""A daemon of our own for one measurement, and `buildctl` for it.

Invariant: when the context is left the process is gone, with everything it started; the caller's temporary
directories can be removed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from msgspec import Struct

from bench.processes import start
from buildd.protocol import SOCKET_NAME

ROOT = Path(__file__).resolve().parent.parent
READY_S = 60.0
STOP_S = 40.0
"""Seconds from SIGTERM until it must be gone; it promises 30."""
CTL_S = 900.0
"""No command of a benchmark takes longer."""


class BenchError(Exception):
    """A benchmark that cannot be run, or whose subject did not do what was to be measured."""


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes of a process: resident, and with what it shares divided among those that share it."""

    rss: int
    pss: int


class Daemon:
    """A fresh daemon with its state below `directory`. Use as a context manager."""

    def __init__(self, directory: Path, *, work: Path | None = None, settings: Mapping[str, object] | None = None):
        """`work` is where builds happen, below the state by default; `settings` are configuration keys."""
        self.directory = directory
        self.state = directory / "state"
        self.socket = directory / "run" / SOCKET_NAME
        self.log = directory / "daemon.log"
        self.started_in_s = 0.0
        """From the start of the process until it said that it is ready."""
        chosen: dict[str, object] = {
            "daemon.state_dir": self.state,
            "daemon.cache_dir": directory / "cache",
            "daemon.runtime_dir": directory / "run",
            "sandbox.backend": "bwrap",
            "throttle.enabled": "false",  # what else the machine does must not decide how many builds run
            **({"daemon.work_dir": work} if work is not None else {}),
            **(settings or {}),
        }
        self._command = [sys.executable, "-m", "buildd", "--config", os.devnull]
        for key, value in chosen.items():
            self._command += ["--set", f"{key}={value}"]
        script = Path(sys.executable).with_name("buildctl")
        client = [str(script)] if script.exists() else [sys.executable, "-m", "ctl"]
        self.client = [*client, "--socket", str(self.socket)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        address = self.directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications, self.log.open("wb") as log:
            notifications.bind(str(address))
            notifications.settimeout(0.5)
            environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
            began = time.perf_counter()
            self._process = start(
                self._command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                self._await_ready(notifications, began)
            except BaseException:
                self._stop()
                raise
            finally:
                address.unlink()
        return self

    def _await_ready(self, notifications: socket.socket, began: float) -> None:
        while True:
            try:
                if b"READY=1" in notifications.recv(4096).split(b"\n"):
                    self.started_in_s = time.perf_counter() - began
                    return
            except TimeoutError:
                pass
            assert self._process is not None
            if self._process.poll() is not None or time.perf_counter() - began > READY_S:
                raise BenchError(f"the daemon did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        finally:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for child in children:
                    child.kill()
                process.wait()

    # --- the client ---------------------------------------------------------------------------------------

    def ctl(self, *arguments: str) -> str:
        """What `buildctl` prints. Raises BenchError when it fails."""
        ran = subprocess.run([*self.client, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=CTL_S)
        if ran.returncode != 0:
            raise BenchError(
                f"buildctl {' '.join(arguments)} ended with {ran.returncode}:\n{ran.stdout[-1000:]}{ran.stderr[-1000:]}"
            )
        return ran.stdout

    def timed(self, *arguments: str) -> float:
        """Seconds that the whole command takes, as a user would wait for it."""
        began = time.perf_counter()
        self.ctl(*arguments)
        return time.perf_counter() - began

    def ask(self, *arguments: str) -> Any:
        """The command's answer as JSON."""
        return json.loads(self.ctl(*arguments, "--json"))

    def check_run(self, packages: int) -> None:
        """Make sure that the last run built so many packages. Raises BenchError."""
        stats = self.ask("show", "latest")["stats"]
        if stats["success"] != packages or stats["total"] != packages:
            raise BenchError(f"{packages} packages should have been built, and the run says {stats}")

    def memory(self) -> Memory:
        """What the daemon's own process holds now."""
        full = psutil.Process(self.pid).memory_full_info()
        return Memory(rss=full.rss, pss=full.pss)

    def cpu(self) -> float:
        """Seconds of user and system time of the daemon's own process so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def cpu_of_children(self) -> float:
        """The same of the children it has waited for, and of theirs."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.children_user + times.children_system)
