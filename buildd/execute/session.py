"""A session: the commands of consecutive phases, run one after the other in one sandbox.

One sandbox for several phases, because setting one up costs most of a small build. A driver of a few lines of
shell runs each phase by `/bin/sh -e` and reports begin and end over a pipe, which it gets as standard input
and keeps from the phases. Output goes straight into the log file: no pipe through Python, no loss.

Invariant: when `run_session` returns or raises, no process of the session is left (or it raises
SandboxTrouble, which names them).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog
import trio
from msgspec import Struct

from buildd.errors import BuildFailure, FailureReason
from buildd.execute.proctree import resident_bytes
from buildd.execute.sandbox import Sandbox, Tree
from buildd.model import Resources
from buildd.process import Exit, Process, Spawner

log = structlog.get_logger()

# A trapped (not ignored) SIGTERM lets the driver outlive the phase that is asked to end, and is back at its
# default in the phase itself.
_DRIVER = """\
exec 3>&0 </dev/null
stop=
trap 'stop=yes' TERM
while [ $# -gt 0 ]; do
  echo "begin $1" >&3
  echo "==> $1"
  /bin/sh -e -c "$2" "$1" 3>&-
  status=$?
  echo "end $1 $status" >&3
  [ "$status" -eq 0 ] || exit "$status"
  [ -z "$stop" ] || exit 143
  shift 2
done
"""
TICK_S = 0.5
KILL_WITHIN_S = 5.0
_GRACE_TICK_S = 0.1


class Command(Struct, frozen=True, kw_only=True):
    phase: str
    text: str


class SessionLimits(Struct, frozen=True, kw_only=True):
    """Bounds watched while a session runs; 0 is no limit."""

    deadline: float
    """On time.monotonic()'s clock; infinite without a limit."""
    timeout: float
    silence: float
    log: int
    memory: int


class SessionEnd(Struct, frozen=True, kw_only=True):
    failed_phase: str | None
    exit_status: int
    """0; else of the phase that failed, negative for the signal that ended it."""


class Observer(Struct, frozen=True):
    """Told of each phase as it happens."""

    begin: Callable[[str], None]
    end: Callable[[str, int], None]
    settled: Callable[[], None]
    """Everything that is known by now was told: a phase that began and ended in one go is history already."""
    used: Callable[[Resources], None]
    """What the session used, however it ended."""


async def run_session(
    commands: Sequence[Command],
    *,
    build: str,
    sandbox: Sandbox,
    spawner: Spawner,
    work: Path,
    prefix: Path | None,
    network: bool,
    env: Mapping[str, str],
    log_file: int,
    limits: SessionLimits,
    observer: Observer,
    grace: Callable[[], float],
) -> SessionEnd:
    """Run the commands; the first that fails ends the session.

    `log_file` is a descriptor opened for appending. `grace()` gives the seconds between SIGTERM and SIGKILL
    when the session is cancelled. Raises BuildFailure for limits and for a sandbox that cannot be started.
    """
    arguments = [part for c in commands for part in (c.phase, c.text)]
    argv = sandbox.argv(["/bin/sh", "-c", _DRIVER, "buildd", *arguments], work=work, prefix=prefix, network=network)
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        try:
            process = spawner(argv, env=env, stdin=writer, stdout=log_file, stderr=log_file)
        except OSError as error:
            raise BuildFailure(
                "sandbox_failed",
                f"cannot start {argv[0]}: {error.strerror}",
                hint="run `buildctl doctor`; out of processes, memory or open files?",
            ) from None
        finally:
            os.close(writer)
        with process:
            tree = sandbox.tree(process, build)
            report = _Report(observer)
            watch = _Watch(limits, tree, log_file)
            finished = False
            try:
                await _follow(reader, report, watch)
                with trio.move_on_after(KILL_WITHIN_S):
                    await process.wait()
                    finished = True
            except trio.Cancelled:
                tree.terminate()
                await _wait_at_most(process, grace)
                raise
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * KILL_WITHIN_S):
                    survivors = await tree.kill(within=KILL_WITHIN_S)
                _complain(survivors, build)
                if process.exit is not None:
                    largest = max(process.exit.max_rss_bytes, watch.largest_rss)
                    observer.used(Resources(cpu_s=round(process.exit.cpu_s, 6), max_rss_bytes=largest))
            assert process.exit is not None
            return report.end(process.exit, killed=not finished)
    finally:
        os.close(reader)


async def _wait_at_most(process: Process, grace: Callable[[], float]) -> None:
    """Wait for the end of the process, shielded, for `grace()` seconds: asked again and again, as it may shrink."""
    asked = trio.current_time()
    while process.exit is None and trio.current_time() < asked + grace():
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GRACE_TICK_S):
            await process.wait()


def _complain(survivors: Sequence[int], build: str) -> None:
    if survivors:
        log.error("processes of a build survived SIGKILL", build=build, pids=list(survivors))


class _Report:
    """What the driver said so far."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._buffer = b""
        self._failed: tuple[str, int] | None = None
        self._current: str | None = None
        self._begun = False

    def feed(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            verb, _, rest = line.decode(errors="replace").partition(" ")
            if verb == "begin":
                self._begun, self._current = True, rest
                self._observer.begin(rest)
            elif verb == "end":
                phase, _, text = rest.partition(" ")
                status = int(text)
                status = 128 - status if status > 128 else status  # the shell's spelling of a signal
                self._current = None
                self._observer.end(phase, status)
                if status:
                    self._failed = (phase, status)
        self._observer.settled()

    def end(self, exit: Exit, *, killed: bool) -> SessionEnd:
        if self._failed is not None:
            return SessionEnd(failed_phase=self._failed[0], exit_status=self._failed[1])
        if self._current is not None:  # the driver itself was killed in the middle of a phase
            self._observer.end(self._current, exit.status)
            return SessionEnd(failed_phase=self._current, exit_status=exit.status or -9)
        if not self._begun or killed or exit.status:
            raise BuildFailure(
                "sandbox_failed",
                f"the sandbox ended with status {exit.status} outside of any phase; its message is in the log",
                hint="run `buildctl doctor`",
            )
        return SessionEnd(failed_phase=None, exit_status=0)


async def _follow(reader: int, report: _Report, watch: _Watch) -> None:
    """Read the driver's reports until it closes the pipe, watching the limits meanwhile."""
    while True:
        with trio.move_on_after(TICK_S) as tick:
            await trio.lowlevel.wait_readable(reader)
            data = os.read(reader, 65536)
            if not data:
                return
            report.feed(data)
        if tick.cancelled_caught:
            broken = watch.look()
            if broken is not None:
                raise BuildFailure(*broken)


class _Watch:
    """The limits of a session, and what was seen of its use of them."""

    def __init__(self, limits: SessionLimits, tree: Tree, log_file: int) -> None:
        self._limits = limits
        self._tree = tree
        self._log_file = log_file
        self._log_size = os.fstat(log_file).st_size
        self._last_output = time.monotonic()
        self.largest_rss = 0
        """Bytes of the largest process at any look."""

    def look(self) -> tuple[FailureReason, str] | None:
        """The limit that is broken, and how; None while all hold."""
        limits, now = self._limits, time.monotonic()
        size = os.fstat(self._log_file).st_size
        if size != self._log_size:
            self._log_size, self._last_output = size, now
        resident = resident_bytes(self._tree.pids())
        self.largest_rss = max(self.largest_rss, *resident, 0)
        if now > limits.deadline:
            return "timeout", f"it took longer than {limits.timeout:g} s (limits.timeout)"
        if limits.silence and now - self._last_output > limits.silence:
            return "silent", f"no output for {limits.silence:g} s (limits.silence)"
        if limits.log and size > limits.log:
            return "log_limit", f"the log grew over {limits.log} bytes (limits.log)"
        if limits.memory and sum(resident) > limits.memory:
            return (
                "oom",
                f"its processes used {sum(resident)} bytes of memory together, over {limits.memory} (limits.memory)",
            )
        return None
