"""Following a run until it ends: one loop that talks to the daemon, and what it learned on the way.

Three requests are outstanding on the one connection: the long poll for the run's end, so that the client ends
when the run does; the long poll for its events; and, for a display that wants it, the status of what is
running. The last two are asked at most every `INTERVAL_S`, however busy the daemon is.
"""

from __future__ import annotations

import time
from typing import Protocol

from buildd import protocol
from buildd.protocol import Event, Stats
from ctl.client import COME_BACK_S, QUICK_S, Client
from ctl.failure import Gone
from ctl.output import note
from ctl.text import plural

INTERVAL_S = 0.2
"""Least time between two requests of one kind, and between two drawings."""
POLL_S = 30.0
ENDINGS = tuple(
    f"package_{how}"
    for how in ("completed", "failed", "skipped", "blocked", "ignored", "cancelled", "interrupted", "retry")
)
"""Events after which a package does not run."""
EARLY = ("initialized", "discovering")
"""States of a run in which the daemon may be cloning for it."""


class Running:
    """A package that is being built, as far as the client knows."""

    def __init__(self, name: str, started_at: float) -> None:
        self.name = name
        self.started_at = started_at
        self.phase = ""
        self.last_line = ""


class Progress:
    """What is known about a run while it goes on. `apply` and `update` bring news; views read the rest."""

    def __init__(self) -> None:
        self.state = "initialized"
        self.wave: int | None = None
        self.waves: int | None = None
        self.stats = Stats()
        self.running: dict[str, Running] = {}
        self.clones: tuple[protocol.ActiveClone, ...] = ()
        self.waiting = ""
        """Why nothing of the run is being built, if it is for the daemon; empty when it is not."""
        self.started_at = time.time()
        self.versions: dict[str, str] = {}

    def title(self, package: str) -> str:
        """Name and version, as far as it is known."""
        version = self.versions.get(package)
        return f"{package} {version}" if version else package

    def where(self) -> str:
        """The state of the run, with the wave while it builds."""
        if self.state == "building" and self.wave and self.waves:
            return f"{self.state} (wave {self.wave} of {self.waves})"
        return self.state

    def apply(self, event: Event) -> None:
        """Take in one event."""
        if event.kind == "run_state":
            self.state = str(event.data.get("to", self.state))
            self.wave = _whole(event.data.get("wave")) or self.wave
            self.waves = _whole(event.data.get("waves")) or self.waves
        if event.package is None:
            return
        if "version" in event.data:
            self.versions[event.package] = str(event.data["version"])
        if event.kind == "package_started":
            self.running[event.package] = Running(event.package, event.time)
        elif event.kind == "package_phase":
            running = self.running.setdefault(event.package, Running(event.package, event.time))
            running.phase = str(event.data.get("phase", ""))
        elif event.kind in ENDINGS:
            self.running.pop(event.package, None)

    def update(self, run: protocol.RunView) -> None:
        """Take in an answer of run.status."""
        self.state, self.stats = run.state, run.stats
        self.wave, self.waves = run.wave, run.waves
        self.started_at = run.started_at or run.created_at
        now = time.time()
        alive = {}
        for package in run.packages:
            self.versions[package.name] = package.version
            if package.state != "running":
                continue
            running = self.running.get(package.name) or Running(package.name, now)
            if package.duration_s is not None:
                running.started_at = now - package.duration_s
            running.phase = package.phase or running.phase
            running.last_line = package.last_line or running.last_line
            alive[package.name] = running
        self.running = alive

    def look_at(self, status: protocol.DaemonStatus) -> None:
        """Take in an answer of daemon.status."""
        self.clones = status.clones
        self.waiting = _why_waiting(status) if self.idle else ""

    @property
    def idle(self) -> bool:
        """Whether something is to be built, and nothing is."""
        return self.state == "building" and not self.running


def _why_waiting(status: protocol.DaemonStatus) -> str:
    """Why the daemon starts no build, if it is not for the builds that run."""
    if status.state == "draining":
        return "no builds are started: the daemon is draining"
    if status.paused:
        return f"no builds are started: {status.paused}"
    throttle = status.throttle
    if throttle.reason and status.workers.busy >= throttle.workers:
        return f"no more than {plural(throttle.workers, 'build')} at a time now: {throttle.reason}"
    return ""


class View(Protocol):
    """Something that shows a `Progress`."""

    wants: tuple[str, ...]
    """Which of events.poll, run.status and daemon.status it needs."""

    def event(self, event: Event, progress: Progress) -> None: ...

    def draw(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


class Silent:
    """The view that shows nothing, and so asks for nothing but the end."""

    wants: tuple[str, ...] = ()

    def event(self, event: Event, progress: Progress) -> None:
        pass

    def draw(self, progress: Progress) -> None:
        pass

    def close(self) -> None:
        pass


def newest_event(client: Client) -> int:
    """The number of the last event so far."""
    return client.call("events.poll", protocol.PollParams(after=-1), protocol.PollResult).next


def run_view(client: Client, run: str, *, states: tuple[protocol.PackageState, ...] = ()) -> protocol.RunView:
    """A run with all its packages, or those in some states."""
    return client.call("run.status", protocol.RunStatusParams(run=run, states=states), protocol.RunView)


def follow(
    client: Client, run: str, after: int, view: View, *, timeout: float | None = None
) -> protocol.RunView | None:
    """Show a run's events after number `after` until it ends; the run without its packages, or None when `timeout`
    is over first.

    A daemon that is restarted meanwhile is waited for. Raises CtlError, and whatever interrupts it.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    follower = _Follower(client, run, after, view, deadline)
    try:
        while True:
            try:
                return follower.until_end()
            except Gone:
                view.close()
                note("buildctl: the daemon went away; waiting for it to come back, the run goes on then")
                patience = COME_BACK_S if deadline is None else min(COME_BACK_S, deadline - time.monotonic())
                if not client.reopen(patience):
                    if deadline is not None and time.monotonic() >= deadline:
                        return None
                    raise
    finally:
        view.close()


def replay(client: Client, run: str, after: int, view: View) -> None:
    """Show the events of a run that has ended, for a view that shows events."""
    if "events.poll" in view.wants:
        _Follower(client, run, after, view, None).rest_of_events()
        view.close()


class _Follower:
    def __init__(self, client: Client, run: str, after: int, view: View, deadline: float | None) -> None:
        self._client = client
        self._run = run
        self._after = after
        self._view = view
        self._deadline = deadline
        self._progress = Progress()
        self._sent: dict[int, tuple[str, float]] = {}
        """Outstanding requests: method, and when the answer is overdue."""
        self._due: dict[str, float] = {}
        """When a method may be asked again."""

    def until_end(self) -> protocol.RunView | None:
        """The run when it has ended and all its events are shown; None at the deadline. Raises Gone."""
        self._sent.clear()
        self._due.clear()
        self._progress.update(
            self._client.call(
                "run.status",
                protocol.RunStatusParams(run=self._run, live="run.status" in self._view.wants, states=("running",)),
                protocol.RunView,
            )
        )
        next_drawing = 0.0
        while True:
            now = time.monotonic()
            if self._deadline is not None and now >= self._deadline:
                return None
            self._ask(now)
            if now >= next_drawing:
                self._view.draw(self._progress)
                next_drawing = now + INTERVAL_S
            request = self._client.first_of(self._sent, next_drawing - now)
            if request is not None:
                method, _ = self._sent.pop(request)
                ended = self._answered(request, method)
                if ended is not None:
                    self._progress.clones, self._progress.waiting = (), ""
                    self.rest_of_events()
                    self._view.draw(self._progress)
                    return ended
            for method, overdue in self._sent.values():
                if now > overdue:
                    raise self._client.no_answer(method, POLL_S + QUICK_S)

    def _ask(self, now: float) -> None:
        """Send what is wanted, due and not outstanding."""
        wanted = ["run.wait", *self._view.wants]
        if self._progress.state not in EARLY and not self._progress.idle and "daemon.status" in wanted:
            wanted.remove("daemon.status")
            self._progress.clones, self._progress.waiting = (), ""
        outstanding = {method for method, _ in self._sent.values()}
        for method in wanted:
            if method in outstanding or now < self._due.get(method, 0.0):
                continue
            request = self._client.send(method, self._params(method, now))
            self._sent[request] = (method, now + POLL_S + QUICK_S)
            self._due[method] = now + INTERVAL_S

    def _params(self, method: str, now: float) -> protocol.Params:
        poll_s = POLL_S if self._deadline is None else min(POLL_S, self._deadline - now)
        if method == "run.wait":
            return protocol.WaitParams(run=self._run, timeout=poll_s, packages=False)
        if method == "events.poll":
            return protocol.PollParams(after=self._after, run=self._run, timeout=poll_s)
        if method == "run.status":
            return protocol.RunStatusParams(run=self._run, live=True, states=("running",))
        return protocol.Empty()

    def _answered(self, request: int, method: str) -> protocol.RunView | None:
        """Take in an answer; the run when it says that it has ended."""
        take = self._client.take
        if method == "run.wait":
            answer = take(request, protocol.WaitResult, method)
            return answer.run if answer.finished else None
        if method == "events.poll":
            self._show(take(request, protocol.PollResult, method))
        elif method == "run.status":
            self._progress.update(take(request, protocol.RunView, method))
        else:
            self._progress.look_at(take(request, protocol.DaemonStatus, method))
        return None

    def _show(self, page: protocol.PollResult) -> None:
        progress = self._progress
        self._after = page.next
        told = {e.package for e in page.events if "version" in e.data}
        unknown = {e.package for e in page.events if e.package is not None} - progress.versions.keys() - told
        if unknown:  # lines name the version, which events need not carry
            for package in run_view(self._client, self._run).packages:
                progress.versions[package.name] = package.version
            for name in unknown:
                progress.versions.setdefault(name, "")
        for event in page.events:
            progress.apply(event)
            self._view.event(event, progress)

    def rest_of_events(self) -> None:
        """Show what has happened up to now."""
        while "events.poll" in self._view.wants:
            params = protocol.PollParams(after=self._after, run=self._run)
            page = self._client.call("events.poll", params, protocol.PollResult)
            if not page.events:
                return
            self._show(page)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
