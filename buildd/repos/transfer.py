"""One clone or fetch as seen by the daemon: start the worker, follow it, end it in time.

Invariant: when `transfer` returns or raises, cancellation included, the worker and every process of its group
are dead and reaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec
import trio

from buildd.conversation import converse, module_argv
from buildd.errors import BuilddError, is_shortage
from buildd.process import Spawner
from buildd.repos.wire import MAX_LINE, Done, Failure, FailureClass, Progress, Reply, Request

_INHERITED = (
    *("PATH", "HOME", "USER", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
"""All of the daemon's environment that a transport sees."""
_WAITING_STAGES = ("connecting", "counting", "receiving")
_HINTS: dict[FailureClass, str] = {
    "auth": "Give buildd a token or an ssh key for this host (repos.token_files, repos.ssh_key), or check its rights.",
    "not_found": "Check the URL; private repositories often look like missing ones without credentials.",
    "network": "Check that the server can be reached from this machine, then try again.",
    "tls": "The server's certificate is not trusted here; install its CA or set SSL_CERT_FILE for the daemon.",
    "host_key": "Add the server's host key to known_hosts after checking it (ssh-keyscan HOST).",
    "disk_full": "Free disk space in the cache directory, or delete repositories.",
    "interrupted": "Ask for the repository again.",
}
_REPLIES: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


class CloneFailed(BuilddError):
    """A clone or fetch ended without success, for `kind`."""

    def __init__(self, kind: FailureClass, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint or _HINTS.get(kind, ""))
        self.kind: FailureClass = kind


def worker_argv() -> list[str]:
    """How to start the worker."""
    return module_argv("buildd.repos.worker")


def worker_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """What a transport needs of `environ`, and the C locale, whose messages are understood."""
    return {name: environ[name] for name in _INHERITED if name in environ} | {"LC_ALL": "C.UTF-8"}


async def transfer(
    request: Request,
    *,
    spawner: Spawner,
    environ: Mapping[str, str],
    cookie: Mapping[str, str],
    idle_timeout_s: float,
    total_timeout_s: float,
    report: Callable[[Progress], None],
) -> Done:
    """Run one worker to its end. `report` is called in this task for each change of progress.

    The worker sees of `environ` what transports need, and all of `cookie`.
    The server may be silent for `idle_timeout_s`; the whole may take `total_timeout_s`. Raises CloneFailed.
    """
    with trio.CancelScope(deadline=trio.current_time() + total_timeout_s) as total:
        with trio.CancelScope() as idle:
            return await _run(request, spawner, worker_environ(environ) | dict(cookie), idle, idle_timeout_s, report)
    if idle.cancelled_caught:
        raise CloneFailed("network", f"the server sent nothing for {idle_timeout_s:g} s")
    assert total.cancelled_caught
    raise CloneFailed(
        "network",
        f"the {request.operation} took longer than {total_timeout_s:g} s",
        hint="Raise repos.total_timeout if the repository is that large.",
    )


async def _run(
    request: Request,
    spawner: Spawner,
    environ: Mapping[str, str],
    idle: trio.CancelScope,
    idle_timeout_s: float,
    report: Callable[[Progress], None],
) -> Done:
    idle.deadline = trio.current_time() + idle_timeout_s
    last: Reply | None = None

    def hear(line: bytes) -> bool:
        nonlocal last
        reply = _decode(line)
        if isinstance(reply, Progress) and reply != last:
            idle.deadline = trio.current_time() + idle_timeout_s if reply.stage in _WAITING_STAGES else math.inf
            report(reply)
        last = reply or last
        return reply is not None

    try:
        ended = await converse(
            worker_argv(), msgspec.json.encode(request), spawner=spawner, env=environ, hear=hear, max_line=MAX_LINE
        )
    except OSError as error:
        raise CloneFailed(
            "other",
            f"cannot start a clone worker: {error}",
            hint="`buildctl status` says what the machine is short of; ask again later." if is_shortage(error) else "",
        ) from error
    if isinstance(last, Done):
        return last
    if isinstance(last, Failure):
        raise CloneFailed(last.kind, last.message)
    said = f": {ended.words}" if ended.words else ""
    raise CloneFailed("other", f"the {request.operation} worker ended without a result (status {ended.status}){said}")


def _decode(line: bytes) -> Reply | None:
    try:
        return _REPLIES.decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
