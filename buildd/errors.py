"""The errors that reach people, and the reasons a build can end with.

Every `BuilddError` says what happened and to what (`message`) and what to do about it (`hint`). Its `code`
is both the JSON-RPC error code and the exit status of `buildctl`, so a script sees one number everywhere.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Literal, get_args

FailureReason = Literal[
    "phase_failed",
    "timeout",
    "silent",
    "oom",
    "disk_full",
    "log_limit",
    "pids_limit",
    "fetch_failed",
    "checksum_mismatch",
    "sandbox_failed",
    "interrupted",
    "cancelled",
    "not_reproducible",
]
"""Why a build did not succeed."""

FAILURE_REASONS: tuple[str, ...] = get_args(FailureReason)


def encodable(text: str) -> str:
    """`text` with lone surrogates (file names that are not UTF-8) written out: fit for JSON and the database."""
    return text.encode("utf-8", "backslashreplace").decode()


class BuilddError(Exception):
    """Base of all errors with a text for the user. `code` 1: something failed that the request asked for."""

    code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = encodable(message)
        self.hint = encodable(hint)


class InvalidInput(BuilddError):
    """The request, a recipe or the configuration is wrong; the same input will be wrong again."""

    code = 2


class NotFound(BuilddError):
    """A named run, build, repository, revision or package does not exist."""

    code = 3


class Refused(BuilddError):
    """Understood and allowed, but not in this state (draining, busy, still in use)."""

    code = 4


class NotPermitted(BuilddError):
    """The caller lacks the right; the hint names it."""

    code = 5


class Busy(BuilddError):
    """A limit on concurrent work was reached; the same request may succeed later."""

    code = 6


_SCARCE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
"""What the kernel says when processes, memory or open files are short: others may give some back."""


class BuildFailure(BuilddError):
    """A build ended without success, for `reason`.

    `transient` says whether the same build may succeed by itself later. None takes what holds for the reason: a
    full disk may be emptied; of `fetch_failed` and `sandbox_failed` only who raises them can know; nothing else
    passes by itself.
    """

    def __init__(self, reason: FailureReason, message: str, *, hint: str = "", transient: bool | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason: FailureReason = reason
        self.transient: bool = reason == "disk_full" if transient is None else transient


def is_shortage(error: OSError) -> bool:
    """Whether the machine was short of processes, memory or open files, which may pass."""
    return error.errno in _SCARCE
