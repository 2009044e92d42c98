"""Keeping a scene up to date, without ever waiting for the daemon alone.

A look is two questions, daemon.resources and daemon.status, sent together at most once per interval and never before
the last ones are answered. A run is asked for its number once, and each time only where the last lines of output are
wanted. A daemon that does not answer, or that goes away and comes back, is something to show: it ends nothing.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from buildd.protocol import (
    CancelParams,
    DaemonStatus,
    Empty,
    Ok,
    Params,
    ResourcesParams,
    ResourcesResult,
    RunStatusParams,
    RunView,
)
from ctl.client import Client
from ctl.failure import NOT_FOUND, CtlError, Gone
from ctl.text import duration
from ctl.top.scene import Row, Scene

LOOK = ("daemon.resources", "daemon.status")
LATE_S = 3.0
"""Age from which an unanswered look is worth a word."""
TAKEN_S = 1.0
"""How long the daemon has for taking a question: so long no key is heard."""
REDIAL_S = 0.5
"""Between two attempts to reach a daemon that went away."""
TICK_S = 1.0
"""Between two pictures of something that grows by itself."""

T = TypeVar("T")


class _Question(NamedTuple):
    method: str
    answered: Callable[[int], None]
    """Takes the answer. Raises the CtlError that it holds."""
    run: str
    """Whom it is about; empty for the daemon."""
    asked_at: float


class Talk:
    """`say` gets a sentence for the person when something was done or refused."""

    def __init__(self, client: Client, scene: Scene, interval: float, say: Callable[[str], None]) -> None:
        self._client = client
        self._scene = scene
        self._interval = interval
        self._say = say
        self._asked: dict[int, _Question] = {}
        self._status: DaemonStatus | None = None
        self._resources: ResourcesResult | None = None
        self._next_look = time.monotonic() + interval
        self._lines = False
        self._gone_since: float | None = None
        self._next_call = 0.0

    def wait(self, descriptors: Sequence[int], *, held: bool) -> bool:
        """Wait until there is something to do or to show; whether there is something to read from `descriptors`."""
        now = time.monotonic()
        if self._gone_since is not None:
            return bool(select.select(descriptors, [], [], max(0.0, min(TICK_S, self._next_call - now)))[0])
        until = TICK_S if self._looking() or held else self._next_look - now
        return self._client.wait_or_readable(descriptors, max(0.0, until))

    def attend(self, *, held: bool, lines: bool) -> None:
        """Take what the daemon has said and ask what is due; nothing while the picture is `held`."""
        if self._gone_since is not None:
            self._call_again(held=held)
            return
        try:
            while (request := self._client.first_of(self._asked, 0.0)) is not None:
                self._take(self._asked.pop(request), request)
            more_lines, self._lines = lines and not self._lines, lines
            if more_lines:
                self._ask_for_runs()
            if not held and not self._looking() and time.monotonic() >= self._next_look:
                self._look()
        except Gone:
            self._went_away()

    def begin(self) -> None:
        """Ask what the first look has left open."""
        self._ask_for_runs()

    def cancel(self, row: Row) -> None:
        """Cancel the package of a running build."""
        if self._gone_since is not None:
            self._say("nothing was cancelled: the daemon is not there")
            return
        params = CancelParams(run=row.use.run, package=row.use.package)
        self._ask("run.cancel", params, Ok, lambda answer: self._say(answer.message))

    def trouble(self) -> str:
        """Why the scene may be old; empty when it is not."""
        now = time.monotonic()
        if self._gone_since is not None:
            return f"the daemon went away {duration(now - self._gone_since)} ago; waiting for it to come back"
        late = now - min((question.asked_at for question in self._asked.values()), default=now)
        return f"the daemon has not answered for {duration(late)}" if late >= LATE_S else ""

    # --- asking -----------------------------------------------------------------------------------------

    def _ask(self, method: str, params: Params, result: type[T], take: Callable[[T], None], run: str = "") -> bool:
        """Ask for something that `take` gets; whether the daemon was there for it."""

        def answered(request: int) -> None:
            take(self._client.take(request, result, method))

        try:
            request = self._client.send(method, params, TAKEN_S)
        except CtlError:  # it is gone, or takes nothing, as when it is only about to begin
            self._went_away()
            return False
        self._asked[request] = _Question(method, answered, run, time.monotonic())
        return True

    def _looking(self) -> bool:
        """Whether a look is not answered yet."""
        return any(question.method in LOOK for question in self._asked.values())

    def _look(self) -> bool:
        self._next_look = time.monotonic() + self._interval
        params = ResourcesParams(samples=self._scene.samples_wanted(time.time()))
        return self._ask("daemon.resources", params, ResourcesResult, self._got_resources) and self._ask(
            "daemon.status", Empty(), DaemonStatus, self._got_status
        )

    def _ask_for_runs(self) -> None:
        """Numbers of runs that are new, or last lines of all of them."""
        asked = {question.run for question in self._asked.values()}
        for run in self._scene.runs if self._lines else self._scene.unknown_runs:
            if run not in asked:
                params = RunStatusParams(run=run, live=self._lines, packages=self._lines, states=("running",))
                self._ask("run.status", params, RunView, self._scene.take_run, run)

    def _went_away(self) -> None:
        self._gone_since = self._gone_since or time.monotonic()
        self._asked.clear()
        self._status = self._resources = None

    def _call_again(self, *, held: bool) -> None:
        now = time.monotonic()
        if now < self._next_call:
            return
        self._next_call = now + REDIAL_S
        if self._client.reopen(0.0) and (held or self._look()):
            self._gone_since = None

    # --- hearing ----------------------------------------------------------------------------------------

    def _take(self, question: _Question, request: int) -> None:
        try:
            question.answered(request)
        except CtlError as error:
            if question.run and error.code == NOT_FOUND:  # its record was removed
                self._scene.forget_run(question.run)
            else:
                self._say(f"{error.message}; {error.hint}" if error.hint else error.message)
        if question.method in LOOK and not self._looking():
            self._look_ends()

    def _got_status(self, status: DaemonStatus) -> None:
        self._status = status

    def _got_resources(self, resources: ResourcesResult) -> None:
        self._resources = resources

    def _look_ends(self) -> None:
        if self._status is not None and self._resources is not None:
            self._scene.take(self._status, self._resources, time.time())
            self._ask_for_runs()
        self._status = self._resources = None
