"""The child process of one clone or fetch: `python -m buildd.repos.worker`, request on stdin, replies on stdout.

It exists so that cancelling means killing: nothing interrupts libgit2 or git while a server is silent, and
their memory goes with the process. Invariant: the worker leads its process group and never outlives the
daemon. With git as transport its death signal is SIGTERM, whose handler kills the whole group (git's helpers
would survive git otherwise); with libgit2, whose C code would delay a handler, it is SIGKILL.

A clone that is reported as done is complete on disk: every file and directory of it was synced.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping
from typing import Protocol

import msgspec

from buildd.answering import Answers, die_with, lead_group
from buildd.repos import gitcli
from buildd.repos.references import References, read_references
from buildd.repos.wire import Done, Failure, Progress, Request, TransferError

ORIGIN_FILE = "buildd-origin"
"""File in each clone that holds its normalised URL."""


class _Transport(Protocol):
    def clone(self, report: Answers[Progress], /) -> None: ...
    def fetch(self, report: Answers[Progress], /) -> None: ...
    def references(self) -> References | None: ...


def main() -> None:
    """Serve one request and exit; status 0 when a `Done` or a `Failure` was written."""
    replies: Answers[Progress] = Answers()
    lead_group()
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        replies.send(serve(request, os.environ, replies))
    except TransferError as error:
        replies.send(Failure(kind=error.kind, message=error.message))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        replies.send(Failure(kind="disk_full" if full else "other", message=str(error)))
    except Exception as error:  # the edge of this process: whatever it is, the daemon is told
        replies.send(Failure(kind="other", message=f"{type(error).__name__}: {error}"))


def serve(request: Request, environ: Mapping[str, str], report: Answers[Progress]) -> Done:
    """Carry out `request`. Raises TransferError or OSError."""
    git = gitcli.find_git(environ) if request.transport != "libgit2" else None
    if git is None and request.transport == "git":
        raise TransferError("other", "repos.transport is 'git', but there is no git program on PATH")
    _die_with(request.parent_pid, by_handler=git is not None)
    transport: _Transport
    if git is not None:
        transport = gitcli.GitTransport(git, request, environ)
    else:
        from buildd.repos.libgit import LibgitTransport  # 50 ms that a worker with git does not need

        transport = LibgitTransport(request)
    report(Progress(stage="connecting"))
    if request.operation == "clone":
        transport.clone(report)
        with open(os.path.join(request.path, ORIGIN_FILE), "w", encoding="utf-8") as file:
            file.write(request.origin + "\n")
        changed = True
    else:
        before = read_references(request.path)
        if request.if_changed:
            listed = transport.references()
            if listed is not None and not before.differ(listed):
                return Done(bytes=None, changed=False)
        transport.fetch(report)
        changed = before != read_references(request.path)
    report(msgspec.structs.replace(report.told or Progress(stage="connecting"), stage="finishing"))
    return Done(bytes=_sync_tree(request.path), changed=changed)


def _die_with(parent_pid: int, *, by_handler: bool) -> None:
    number = signal.SIGKILL
    if by_handler:
        number = signal.SIGTERM
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    try:
        die_with(parent_pid, number)
    except ProcessLookupError:
        raise TransferError("interrupted", "the daemon is gone") from None


def _sync_tree(path: str) -> int:
    """fsync every file and directory below `path` that may be new; the size of the tree in bytes."""
    size = 0
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            size += _sync(os.path.join(folder, name), os.O_RDONLY)
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    return size


def _sync(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
