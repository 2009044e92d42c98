"""Clones and fetches on their way, and what people are told about them."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import trio
from msgspec import Struct

from buildd.model import CloneProgress, Repository
from buildd.repos.transfer import CloneFailed
from buildd.repos.url import Credentials, RepoUrl
from buildd.repos.wire import Operation, Progress, Stage, Transport


class CloneSettings(Struct, frozen=True, kw_only=True):
    """How to clone. Times in seconds; `tokens` maps a host (`host` or `host:port`) to a file with its token."""

    schemes: tuple[str, ...] = ("https", "ssh", "git", "file")
    max_concurrent: int = 4
    idle_timeout_s: float = 60.0
    total_timeout_s: float = 7200.0
    connect_timeout_s: float = 30.0
    transport: Transport = "auto"
    """`auto`: the git program when there is one, else libgit2."""
    tokens: dict[str, str] = msgspec.field(default_factory=dict)
    ssh_key: str | None = None
    known_hosts: str | None = None
    max_repositories: int = 0
    """Most clones that are kept, and most bytes of all of them; 0 sets no limit."""
    max_bytes: int = 0


class Refreshed(Struct, frozen=True, kw_only=True):
    """What a refresh came to."""

    repository: Repository
    changed: bool
    """Whether a branch or tag differs from before, or there was no clone before."""


class CloneAnswer(Struct, frozen=True, kw_only=True):
    """What a request for a repository comes to, at once."""

    status: Literal["accepted", "cloning", "cloned", "failed"]
    path: str
    message: str


class ActiveClone(Struct, frozen=True, kw_only=True):
    """A job that waits for a slot or runs. `stage` is None while it waits."""

    url: str
    operation: Operation
    stage: Stage | None
    started_at: float
    waiters: int
    progress: CloneProgress


class RepositoryStatus(Struct, frozen=True, kw_only=True):
    repository: Repository
    users: int
    """How many builds, maps … use the clone just now."""
    active: ActiveClone | None


class Job:
    """A clone or fetch on its way. `error` is set before `done`, once."""

    def __init__(
        self,
        url: RepoUrl,
        operation: Operation,
        credentials: Credentials | None,
        now: float,
        *,
        if_changed: bool = False,
        unasked: bool = False,
    ) -> None:
        """`if_changed` fetches only when a reference differs; `unasked` is of a job that nobody asked for."""
        self.url = url
        self.operation: Operation = operation
        self.credentials = credentials
        self.started_at = now
        self.if_changed = if_changed
        self.unasked = unasked
        self.changed = False
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.error: CloneFailed | None = None
        self.why_cancelled = ""
        self.waiters = 0
        self.detached = False
        self.running = False
        self.progress = Progress(stage="connecting")
        self.next_event = -math.inf

    def cancel(self, why: str) -> None:
        self.why_cancelled = self.why_cancelled or why
        self.scope.cancel()

    def active(self) -> ActiveClone:
        progress = self.progress
        return ActiveClone(
            url=self.url.normalized,
            operation=self.operation,
            stage=progress.stage if self.running else None,
            started_at=self.started_at,
            waiters=self.waiters,
            progress=CloneProgress(
                received_objects=progress.received_objects,
                total_objects=progress.total_objects,
                indexed_objects=progress.indexed_objects,
                received_bytes=progress.received_bytes,
            ),
        )

    def describe(self) -> str:
        """How far it is, in words."""
        if not self.running:
            return "waiting for a free clone slot"
        progress = self.active().progress
        return f"being cloned: {progress.percent:.0f} %, {progress.received_bytes} bytes so far"
