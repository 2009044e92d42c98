"""One life of the daemon, from its boot to its death: asking it things, and hearing what it tells."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import DEADLINE_S, Daemon, rpc

STEPS = Path(__file__).parent / "steps"
Told = tuple[int, str, str | None, str | None, str | None]
"""Number, kind, run, build and package of an event."""


class Life:
    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, *, steps: Mapping[str, str] | None = None, patience: float = DEADLINE_S) -> bool:
        """Boot the daemon; False when it has died, or did not answer within `patience` seconds.

        `steps` are variables of `sitecustomize`.
        """
        environ = self.daemon.environ
        if steps:
            self.daemon.environ = {**environ, **steps, "PYTHONPATH": f"{STEPS}{os.pathsep}{environ['PYTHONPATH']}"}
        try:
            self._process = self.daemon.boot(ready=False).process
        finally:
            self.daemon.environ = environ
        deadline = time.monotonic() + patience
        while not self.is_over():
            if self.answers():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return False

    def is_over(self) -> bool:
        """Whether the daemon's process has ended. From any thread."""
        return self._process is None or self._process.poll() is not None

    def answers(self) -> bool:
        if not self.daemon.socket.exists():
            return False
        try:
            status = rpc.call(self.daemon.socket, "daemon.status", timeout=1.0, gone=self.is_over)
        except rpc.Silence:
            return False
        return bool(status["pid"] == self.daemon.pid)

    def call(self, method: str, params: dict[str, Any] | None = None, *, timeout: float = DEADLINE_S) -> Any:
        """The result of a request. Raises RpcError, and Silence at once when the daemon is gone."""
        return rpc.call(self.daemon.socket, method, params, timeout=timeout, gone=self.is_over)


class Reader:
    """Follows the journal over all lives, as any reader may: what it was told once must be true for ever."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._news = threading.Condition()
        self._life: list[dict[str, Any]] = []
        """The events of this life."""

    def follow(self, life: Life) -> threading.Thread:
        """Read on, in a thread that ends with the life."""
        self._life = []
        thread = threading.Thread(target=self._read, args=(life, self.told[-1][0] if self.told else 0), name="reader")
        thread.start()
        return thread

    def _read(self, life: Life, after: int) -> None:
        while not life.is_over():
            try:
                answer = life.call("events.poll", {"after": after, "timeout": 20})
            except rpc.Silence:
                continue
            with self._news:
                self._life += answer["events"]
                self.told += [told(event) for event in answer["events"]]
                self._news.notify_all()
            after = answer["next"]

    def wait_for(self, matches: Callable[[dict[str, Any]], bool], nth: int, *, within: float) -> bool:
        """Whether the life has `nth` events that match, within so many seconds from now."""
        with self._news:
            return self._news.wait_for(lambda: sum(map(matches, self._life)) >= nth, within)


def told(event: dict[str, Any]) -> Told:
    return event["number"], event["kind"], event.get("run"), event.get("build"), event.get("package")
