"""One map process as seen by the daemon: asked, followed, ended in time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
import trio

from buildd.conversation import converse, module_argv
from buildd.errors import BuilddError, is_shortage
from buildd.process import Spawner
from buildd.repomap.wire import MAX_LINE, Failure, FailureClass, Progress, Reply, Request

_INHERITED = ("PATH", "HOME", "TMPDIR")
_OWN = {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}  # numpy's library would start threads that nothing uses
_REPLIES: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)
A = TypeVar("A")


class MapFailed(BuilddError):
    """A map process ended without an answer, for `kind`."""

    def __init__(self, kind: FailureClass, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind: FailureClass = kind


async def ask(
    request: Request,
    answer: type[A],
    *,
    spawner: Spawner,
    cookie: Mapping[str, str],
    nice: int,
    timeout: float,
    started: Callable[[int], None] = lambda pid: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> A:
    """Have a process answer; `report` is told of progress, `started` the pid.

    Raises MapFailed: also when it takes longer than `timeout` seconds, or ends in any other way.
    """
    last: Reply | None = None

    def hear(line: bytes) -> bool:
        nonlocal last
        try:
            reply = _REPLIES.decode(line)
        except msgspec.MsgspecError:
            return False
        if isinstance(reply, Progress):
            report(reply)
        last = reply
        return True

    env = {name: os.environ[name] for name in _INHERITED if name in os.environ} | _OWN | dict(cookie)
    with trio.move_on_after(timeout) as scope:
        try:
            ended = await converse(
                module_argv("buildd.repomap.worker"),
                msgspec.json.encode(request),
                spawner=spawner,
                env=env,
                hear=hear,
                max_line=MAX_LINE,
                nice=nice,
                started=started,
            )
        except OSError as error:
            hint = "`buildctl status` says what the machine is short of; ask again later." if is_shortage(error) else ""
            raise MapFailed("other", f"cannot start a map process: {error}", hint=hint) from error
    if scope.cancelled_caught:
        raise MapFailed("other", f"the map process took longer than {timeout:g} s")
    if isinstance(last, answer):
        return last
    if isinstance(last, Failure):
        raise MapFailed(last.kind, last.message)
    raise MapFailed("other", f"the map process {_end(ended.status)}{': ' if ended.words else ''}{ended.words}")


def _end(status: int | None) -> str:
    if status is None:
        return "hangs in the kernel"
    if status < 0:
        return f"was killed by signal {-status}"
    return f"ended without an answer (status {status})"
