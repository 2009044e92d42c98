"""What daemon and clone worker say to each other: one request on stdin, JSON lines back on stdout.

The request carries credentials and therefore travels over a pipe only: never in arguments, never in a file.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from buildd.repos.url import Credentials

Operation = Literal["clone", "fetch"]
Transport = Literal["auto", "git", "libgit2"]
FailureClass = Literal["auth", "not_found", "network", "tls", "host_key", "disk_full", "interrupted", "other"]
Stage = Literal["connecting", "counting", "receiving", "resolving", "finishing"]
"""`connecting` and `counting` wait for the server; `resolving` and `finishing` are local work."""

MAX_LINE = 64 * 1024


class Request(msgspec.Struct, frozen=True, kw_only=True):
    operation: Operation
    parent_pid: int
    """The daemon; the worker ends when that is not its parent (any more)."""
    scheme: str
    url: str
    """Without credentials."""
    origin: str
    """The normalised URL, written into the clone so that it can be recognised without a database."""
    path: str
    """The bare repository: to be created by `clone` (its parent exists), present for `fetch`."""
    transport: Transport
    if_changed: bool = False
    """Of `fetch`: ask for the references first, and fetch only when one differs."""
    credentials: Credentials | None = None
    ssh_key: str | None = None
    known_hosts: str | None = None
    """An additional known_hosts file; ssh's own files are used when None."""
    connect_timeout_s: float = 30.0


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    stage: Stage
    received_objects: int = 0
    total_objects: int = 0
    indexed_objects: int = 0
    received_bytes: int = 0
    remote_messages: int = 0
    """How often the server has told of its own progress; a sign of life before it sends anything."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    bytes: int | None
    """Size of the clone on disk; None when nothing was fetched."""
    changed: bool
    """Some reference differs from before."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    kind: FailureClass
    message: str


Reply = Progress | Done | Failure


class TransferError(Exception):
    """A clone or fetch failed inside the worker; becomes a `Failure`."""

    def __init__(self, kind: FailureClass, message: str) -> None:
        super().__init__(message)
        self.kind: FailureClass = kind
        self.message = message
