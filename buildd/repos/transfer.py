"""One clone or fetch as seen by the daemon: start the worker, follow it, end it in time.

Invariant: when `transfer` returns or raises, cancellation included, the worker and every process of its group
are dead and reaped. The group is always killed before the worker is reaped, so its number still is ours.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Mapping

import msgspec
import trio

from buildd.errors import BuilddError, is_shortage
from buildd.process import Process, Spawner
from buildd.repos.wire import MAX_LINE, Done, Failure, FailureClass, Progress, Reply, Request

_INHERITED = (
    *("PATH", "HOME", "USER", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
"""All of the daemon's environment that a transport sees."""
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from buildd.repos.worker import main; main()"
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
    """How to start the worker: isolated from environment and directory, but with the very `sys.path` that this
    process imports from, so that it works from a checkout as well as from an installed package."""
    return [sys.executable, "-I", "-c", _BOOT, *(path for path in sys.path if path.startswith("/"))]


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
    process, replies = await _start(request, spawner, environ)
    last: Reply | None = None
    words: list[str] = []
    with process:
        try:
            async with trio.lowlevel.FdStream(replies) as stream:
                pending = b""
                async for data in stream:
                    *lines, pending = (pending + data).split(b"\n")
                    pending = pending[-MAX_LINE:]
                    for line in lines:
                        reply = _decode(line)
                        if reply is None:
                            words = [*words[-4:], line.decode("utf-8", "replace")[:500]]
                            continue
                        if isinstance(reply, Progress) and reply != last:
                            waiting = reply.stage in _WAITING_STAGES
                            idle.deadline = trio.current_time() + idle_timeout_s if waiting else math.inf
                            report(reply)
                        last = reply
        finally:
            _kill_group(process)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await process.wait()  # after the kill: bounded by the kernel
        status = process.exit.status if process.exit is not None else "unknown"
    if isinstance(last, Done):
        return last
    if isinstance(last, Failure):
        raise CloneFailed(last.kind, last.message)
    said = f": {' / '.join(words)}" if words else ""
    raise CloneFailed("other", f"the {request.operation} worker ended without a result (status {status}){said}")


async def _start(request: Request, spawner: Spawner, environ: Mapping[str, str]) -> tuple[Process, int]:
    """The worker with its request in its stdin, and the reading end of its replies."""
    ends: list[int] = []
    try:
        out_read, out_write = os.pipe()
        ends += [out_read, out_write]
        stdin_read, stdin_write = os.pipe()
        ends += [stdin_read, stdin_write]
        # At most a few KiB, less than a pipe holds: this cannot block.
        os.write(stdin_write, msgspec.json.encode(request))
        process = await spawner(worker_argv(), env=environ, stdin=stdin_read, stdout=out_write, stderr=out_write)
    except OSError as error:
        raise CloneFailed(
            "other",
            f"cannot start a clone worker: {error}",
            hint="`buildctl status` says what the machine is short of; ask again later." if is_shortage(error) else "",
        ) from error
    else:
        ends.remove(out_read)
    finally:
        for fd in ends:
            os.close(fd)
    return process, out_read


def _kill_group(process: Process) -> None:
    if process.exit is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the worker is a zombie and nothing else is left of its group


def _decode(line: bytes) -> Reply | None:
    try:
        return _REPLIES.decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
