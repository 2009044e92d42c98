"""The process of one map, or of one question about a map: the request on stdin, replies on stdout.

Cancelling means killing its process group. Invariant: it leads that group, and neither it nor a parser of its own
outlives the daemon.
"""

from __future__ import annotations

import errno
import os
import sys
import time

import msgspec

from buildd.errors import BuilddError, InvalidInput, NotFound
from buildd.repomap.forks import die_with
from buildd.repomap.sections import DamagedMap
from buildd.repomap.wire import (
    Answer,
    BuildRequest,
    Failure,
    FilesRequest,
    Progress,
    RefsRequest,
    Reply,
    Request,
    TagsRequest,
    TextRequest,
)
from buildd.store.trouble import kind_of

_REPORT_INTERVAL = 0.1
_encode = msgspec.json.Encoder().encode


class _Reporter:
    """Writes replies; progress of one stage at most ten times a second."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._stage = ""
        self._next_at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.stage != self._stage or now >= self._next_at:
            self._next_at = now + _REPORT_INTERVAL
            self._stage = progress.stage
            self.send(progress)

    def send(self, reply: Reply) -> None:
        data = memoryview(_encode(reply) + b"\n")
        while data:
            data = data[os.write(self._fd, data) :]


def main() -> None:
    """Serve one request and exit; status 0 when an answer or a `Failure` was written."""
    replies = _Reporter(os.dup(1))
    os.dup2(2, 1)  # a stray print must not look like a reply
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    try:
        request: Request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        parent = request.parent_pid if isinstance(request, BuildRequest) else request.source.parent_pid
        die_with(parent)
        replies.send(serve(request, replies))
    except NotFound as error:
        replies.send(Failure(kind="not_found", message=_words(error)))
    except InvalidInput as error:
        replies.send(Failure(kind="invalid", message=_words(error)))
    except DamagedMap as error:
        replies.send(Failure(kind="damaged", message=str(error)))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        replies.send(Failure(kind="disk_full" if full else "other", message=str(error)))
    except Exception as error:  # the edge of this process: whatever it is, the daemon is told
        full = kind_of(error) == "full"
        replies.send(Failure(kind="disk_full" if full else "other", message=f"{type(error).__name__}: {error}"))


def serve(request: Request, report: _Reporter) -> Answer:
    """Carry out `request`. Raises BuilddError, DamagedMap, OSError, sqlite.Error."""
    if isinstance(request, BuildRequest):
        from buildd.repomap.build import build

        return build(request, report)
    from buildd.repomap import questions

    try:
        match request:
            case TextRequest():
                return questions.text(request)
            case TagsRequest():
                return questions.tags(request)
            case RefsRequest():
                return questions.refs(request)
            case FilesRequest():
                return questions.files(request)
    except FileNotFoundError as error:
        raise DamagedMap(f"the map is not complete: {error}") from None


def _words(error: BuilddError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
