"""A session: the commands of consecutive phases, run one after the other in one sandbox.

One sandbox for several phases, because setting one up costs most of a small build. A driver of a few lines of
shell runs each phase by `/bin/sh -e` and reports begin and end over a pipe, which it gets as standard input
closes in the phases. Output goes through a pipe that is spliced into the log file.

Invariant: when `run_session` returns or raises, no process of the session is left; those that survived
SIGKILL, stuck in the kernel, are named in the daemon's log.
"""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import structlog
import trio
from msgspec import Struct

from buildd.cgroups import Cgroup
from buildd.errors import BuildFailure, is_shortage
from buildd.execute.diskwatch import DiskWatch
from buildd.execute.limits import SessionLimits, Watch
from buildd.execute.meter import GroupMeter, Meter, SampledMeter, Use
from buildd.execute.output_pump import LAST_BYTES, OutputPump
from buildd.execute.proctree import kill_until_gone
from buildd.execute.sandbox import Sandbox, Tree
from buildd.process import Exit, Process, Spawner

log = structlog.get_logger()

# A trapped (not ignored) SIGTERM lets the driver outlive the phase that is asked to end, and is back at its
# default in the phase itself.
DRIVER = """\
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
_REPORT = re.compile(rb"(?P<verb>begin|end) (?P<phase>[a-z]{1,16})(?: (?P<status>[0-9]{1,3}))?")
_LONGEST_REPORT = 64
_PIPE_BYTES = 65536
KILL_WITHIN_S = 5.0
_GRACE_TICK_S = 0.1
_OOM_SCORE = 500
"""Of 1,000, as of proc_pid_oom_score_adj(5): before anything that has not been given a score."""
_UNSEEN_PROCESSES = 16
_first_processor = count()
"""Builds that may not use all processors begin at different ones."""


class Command(Struct, frozen=True, kw_only=True):
    phase: str
    text: str


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


async def run_session(
    commands: Sequence[Command],
    *,
    build: str,
    sandbox: Sandbox,
    spawner: Spawner,
    disk_turn: trio.CapacityLimiter,
    work: Path,
    prefix: Path | None,
    network: bool,
    env: Mapping[str, str],
    log_file: int,
    limits: SessionLimits,
    group: Cgroup | None,
    nice: int,
    use: Use,
    observer: Observer,
    grace: Callable[[], float],
) -> SessionEnd:
    """Run the commands; the first that fails ends the session.

    `log_file` is a descriptor positioned at the log's end. `group` is the build's cgroup, where there is one; `use`
    is told what the session uses. `grace()` gives the seconds between SIGTERM and SIGKILL when the session is
    cancelled. Raises BuildFailure for limits, and for a sandbox that cannot be started or that does not report as it
    should.
    """
    arguments = [part for c in commands for part in (c.phase, c.text)]
    driver = _bounds(limits, count_processes=sandbox.counts_processes) + DRIVER
    argv = sandbox.argv(
        ["/bin/sh", "-c", driver, "buildd", *arguments],
        work=work,
        prefix=prefix,
        network=network,
        shm_bytes=limits.memory,
    )
    if group is not None:
        argv = group.command(argv)
    processors = _processors(limits.cpu) if group is None or "cpu" not in group.controllers else None
    with _pipe() as reports, closing(OutputPump(log_file, limits.log)) as output:
        try:
            process = await spawner(
                argv,
                env=env,
                stdin=reports.writer,
                stdout=output.writer,
                stderr=output.writer,
                processors=processors,
                nice=nice,
            )
        except OSError as error:
            raise BuildFailure(
                "sandbox_failed",
                f"cannot start {argv[0]}: {error.strerror}",
                hint="run `buildctl doctor`; out of processes, memory or open files?",
                transient=is_shortage(error),
            ) from None
        finally:
            reports.close_writer()
            output.close_writer()
        with process:
            tree = sandbox.tree(process, build)
            meter: Meter = SampledMeter(tree, limits.of_processes)
            if group is not None:
                meter = GroupMeter(group, tree, limits.of_processes)
            disk = DiskWatch(work, limits.of_disk, tree.pids, disk_turn)
            watch = Watch(limits, meter, disk, output, use)
            report = _Report([c.phase for c in commands], observer, watch)
            failure: BuildFailure | None = None
            finished = False
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(output.run)
                    nursery.start_soon(disk.run)
                    try:
                        await _follow(reports.reader, report, watch, process)
                        with trio.move_on_after(KILL_WITHIN_S):
                            await process.wait()
                    except BuildFailure as error:  # not through the nursery, which would wrap it
                        failure = error
                    nursery.cancel_scope.cancel()
                finished = True
            finally:
                if not finished:  # cancelled
                    tree.terminate()
                    await _wait_at_most(process, grace, output)
                survivors = [process.pid]
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * KILL_WITHIN_S):
                    survivors = await _end_all(tree, group)
                _complain(survivors, build)
                output.drain(LAST_BYTES)
                if process.exit is not None:
                    meter.ended(use, process.exit)
            if failure is None and (broken := watch.last_look()) is not None:
                failure = BuildFailure(*broken)
            if failure is not None:
                raise failure
            if process.exit is None:
                raise BuildFailure("sandbox_failed", "the sandbox did not end, not even by SIGKILL", transient=True)
            return report.end(process.exit)


class _Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1


@contextmanager
def _pipe() -> Iterator[_Pipe]:
    """A pipe of which the reader does not block, closed at the end."""
    pipe = _Pipe()
    try:
        yield pipe
    finally:
        pipe.close_writer()
        os.close(pipe.reader)


async def _wait_at_most(process: Process, grace: Callable[[], float], output: OutputPump) -> None:
    """Wait for the end of the process, shielded, for `grace()` seconds: asked again and again, as it may shrink."""
    asked = trio.current_time()
    while process.exit is None and trio.current_time() < asked + grace():
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GRACE_TICK_S):
            await process.wait()
        output.drain(LAST_BYTES)


async def _end_all(tree: Tree, group: Cgroup | None) -> list[int]:
    """End what the session started; the pids of what survived. What left the tree is still in the group."""
    if group is not None:
        group.kill()
    survivors = await tree.kill(within=KILL_WITHIN_S)
    if group is not None:

        async def left() -> list[int]:
            return group.pids()

        survivors = await kill_until_gone(left, within=KILL_WITHIN_S)
    return survivors


def _bounds(limits: SessionLimits, *, count_processes: bool) -> str:
    """Shell text by which the driver bounds itself, and makes itself the first choice of a machine without memory."""
    lines = [f"echo {_OOM_SCORE} 2>/dev/null >/proc/self/oom_score_adj || :"]
    if limits.open_files:
        lines.append(f"ulimit -n {limits.open_files} 2>/dev/null || :")
    if limits.pids and count_processes:  # a little more, so that a look finds the limit reached
        most = limits.pids + _UNSEEN_PROCESSES
        lines.append(f"ulimit -u {most} 2>/dev/null || ulimit -p {most} 2>/dev/null || :")  # bash's, and dash's
    return "{ " + "; ".join(lines) + "; } 2>/dev/null\n"


def _processors(limit: float) -> set[int] | None:
    """As many processors as the limit has, rounded up; None for all that there are."""
    ours = sorted(os.sched_getaffinity(0))
    count = math.ceil(limit)
    if not count or count >= len(ours):
        return None
    start = next(_first_processor) * count
    return {ours[(start + n) % len(ours)] for n in range(count)}


def _complain(survivors: Sequence[int], build: str) -> None:
    if survivors:
        log.error("processes of a build survived SIGKILL", build=build, pids=list(survivors))


class _Report:
    """What the driver said so far.

    A phase can reach the driver's pipe through /proc, so nothing is believed but `begin` and `end` of the
    expected phases in their order; a build can lie about its own success, as it can by `exit 0`, and no more.
    """

    def __init__(self, expected: Sequence[str], observer: Observer, watch: Watch) -> None:
        self._expected = list(reversed(expected))
        self._observer = observer
        self._watch = watch
        self._buffer = b""
        self._failed: tuple[str, int] | None = None
        self._current: str | None = None
        self._begun = False

    def feed(self, data: bytes) -> None:
        """Raises BuildFailure for what the driver would not say."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_REPORT:
            raise _tampered()
        for line in lines:
            match = _REPORT.fullmatch(line)
            if match is None:
                raise _tampered()
            verb, phase, status = match["verb"].decode(), match["phase"].decode(), match["status"]
            if verb == "begin" and status is None and self._current is None and self._expected[-1:] == [phase]:
                self._begun, self._current = True, self._expected.pop()
                self._watch.enter(phase)
                self._observer.begin(phase)
            elif verb == "end" and status is not None and phase == self._current and self._failed is None:
                self._end(phase, _exit_status(int(status)))
            else:
                raise _tampered()
        self._observer.settled()

    def _end(self, phase: str, status: int) -> None:
        self._current = None
        self._watch.leave()
        self._observer.end(phase, status)
        if status:
            self._failed = (phase, status)

    def end(self, exit: Exit) -> SessionEnd:
        """How the session ended, now that its process has. Raises BuildFailure when it ended outside of a phase."""
        if self._failed is not None:
            return SessionEnd(failed_phase=self._failed[0], exit_status=self._failed[1])
        if self._current is not None:  # the driver itself was killed in the middle of a phase
            self._observer.end(self._current, exit.status or -9)
            return SessionEnd(failed_phase=self._current, exit_status=exit.status or -9)
        if not self._begun or self._expected or exit.status:
            raise BuildFailure(
                "sandbox_failed",
                f"the sandbox ended with status {exit.status} outside of any phase; its message is in the log",
                hint="run `buildctl doctor`",
                transient=not self._begun,
            )
        return SessionEnd(failed_phase=None, exit_status=0)


def _exit_status(status: int) -> int:
    """The shell's status of a command: 128 + N stands for signal N, which we write as -N."""
    return 128 - status if 128 < status <= 128 + signal.NSIG - 1 else status


def _tampered() -> BuildFailure:
    return BuildFailure("sandbox_failed", "the build wrote to the pipe by which its phases are reported")


async def _follow(reader: int, report: _Report, watch: Watch, process: Process) -> None:
    """Read the driver's reports until it closes the pipe or ends, watching the limits meanwhile.

    Limits are looked at in the moment they break, and only after everything that was reported by then: a phase
    that has ended is not held to its limits any more, and the next one to its own alone.
    """
    tick = time.monotonic() + watch.tick_s
    while True:
        with trio.move_on_after(max(0.0, min(tick, watch.breaks_at) - time.monotonic())):
            await trio.lowlevel.wait_readable(reader)
        data = _read_now(reader)
        if data == b"":
            return
        if data is not None:
            report.feed(data)
        if time.monotonic() >= min(tick, watch.breaks_at):
            broken = watch.look()
            tick = time.monotonic() + watch.tick_s
            if broken is not None:
                raise BuildFailure(*broken)
            if process.poll() is not None:  # something in the background keeps the pipe open
                report.feed(_read_now(reader) or b"")
                return


def _read_now(reader: int) -> bytes | None:
    """What is in the pipe; empty when it was closed, None when there is nothing."""
    try:
        return os.read(reader, _PIPE_BYTES)
    except BlockingIOError:
        return None
