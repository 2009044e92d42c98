"""The process of one map, or of one question about a map: the request on stdin, replies on stdout.

Cancelling means killing its process group. Invariant: it leads that group, and neither it nor a parser of its own
outlives the daemon.
"""

from __future__ import annotations

import errno
import sys

import msgspec

from buildd.answering import Answers, die_with, lead_group
from buildd.errors import BuilddError, InvalidInput, NotFound
from buildd.repomap.sections import DamagedMap
from buildd.repomap.wire import (
    Answer,
    BuildRequest,
    Failure,
    FilesRequest,
    Progress,
    RefsRequest,
    Request,
    TagsRequest,
    TextRequest,
)
from buildd.store.trouble import kind_of


def main() -> None:
    """Serve one request and exit; status 0 when an answer or a `Failure` was written."""
    replies: Answers[Progress] = Answers()
    lead_group()
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


def serve(request: Request, report: Answers[Progress]) -> Answer:
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
