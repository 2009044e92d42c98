"""A child process that is asked one thing: a request on its stdin, lines of answers on its stdout.

What cannot be interrupted (libgit2, a parser) or takes much memory is done in such a process: cancelling means
killing, and its memory goes with it.

Invariant: when `converse` returns or raises, cancellation included, the process and everything in its group are dead
and reaped. The group is killed before the process is reaped, so its number still is ours.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

import trio
from msgspec import Struct

from buildd.process import Process, Spawner

_REAPED_WITHIN_S = 5.0
_KEPT_WORDS = 5


class Ended(Struct, frozen=True, kw_only=True):
    status: int | None
    """Exit status, negative for a signal; None when the kernel did not let it end."""
    words: str
    """The last lines that were not answers: what it, or Python for it, complained about."""


def module_argv(module: str) -> list[str]:
    """How to run `main` of a module of ours: isolated from environment and directory, but with the very `sys.path`
    that this process imports from, so that it works from a checkout as well as from an installed package."""
    boot = f"import sys; sys.path[:] = sys.argv[1:]; from {module} import main; main()"
    return [sys.executable, "-I", "-c", boot, *(path for path in sys.path if path.startswith("/"))]


async def converse(
    argv: Sequence[str],
    request: bytes,
    *,
    spawner: Spawner,
    env: Mapping[str, str],
    hear: Callable[[bytes], bool],
    max_line: int,
    nice: int = 0,
    started: Callable[[int], None] = lambda pid: None,
) -> Ended:
    """Run one process to the end of its output. `hear` gets each line, and says whether it is an answer.

    `request` is less than a pipe holds (64 KiB). Of a line over `max_line` bytes only the end is kept. `started` is
    told the pid. The process leads a group of its own, or is the only one in it. Raises OSError when it cannot be
    started.
    """
    process, answers = await _start(argv, request, spawner, env, nice)
    words: list[str] = []
    with process:
        try:
            started(process.pid)
            async with trio.lowlevel.FdStream(answers) as stream:
                pending = b""
                async for data in stream:
                    *lines, pending = (pending + data).split(b"\n")
                    pending = pending[-max_line:]
                    for line in lines:
                        if not hear(line):
                            words = [*words[1 - _KEPT_WORDS :], line.decode("utf-8", "replace")[:500]]
        finally:
            _kill_group(process)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _REAPED_WITHIN_S):
            await process.wait()  # after the kill: bounded by the kernel
        status = process.exit.status if process.exit is not None else None
    return Ended(status=status, words=" / ".join(words))


async def _start(
    argv: Sequence[str], request: bytes, spawner: Spawner, env: Mapping[str, str], nice: int
) -> tuple[Process, int]:
    """The process with its request in its stdin, and the reading end of its answers."""
    ends: list[int] = []
    try:
        out_read, out_write = os.pipe()
        ends += [out_read, out_write]
        stdin_read, stdin_write = os.pipe()
        ends += [stdin_read, stdin_write]
        os.write(stdin_write, request)  # cannot block: less than a pipe holds
        process = await spawner(argv, env=env, stdin=stdin_read, stdout=out_write, stderr=out_write, nice=nice)
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
            pass  # it is a zombie, and nothing else is left of its group
