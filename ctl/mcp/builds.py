"""Tools for runs and their builds: what an AI calls a build is a run of targets with all the packages they need."""

from __future__ import annotations

import time
from typing import Annotated

from msgspec import Meta

from buildd import protocol
from buildd.protocol import PackageState, RunView, Stats, Strategy
from ctl.failure import Gone
from ctl.mcp.advice import for_tools
from ctl.mcp.fields import POLL_S, Count, NextOffset, NextStep, Offset, Run, Targets, Time, Wait, extend, moment, page
from ctl.mcp.tool import Answer, Arguments, Call, ToolError, tool
from ctl.target import absolute
from ctl.text import counts, duration, plural

ENDED = ("completed", "failed", "cancelled")
_OF_INTEREST = ("failed", "running", "blocked", "cancelled", "ignored", "queued", "success", "skipped")
"""States in the order in which their packages are shown."""


# --- what is told of a run --------------------------------------------------------------------------------


class PackageAnswer(Answer, frozen=True, kw_only=True):
    """A package in a run."""

    name: str
    version: str
    state: PackageState
    reason: Annotated[str, Meta(description="Of a failure, as in phase_failed, timeout or oom.")]
    message: Annotated[str, Meta(description="The failure in words, what blocks it, why it was skipped or ignored.")]
    phase: Annotated[str, Meta(description="That it is in, or failed in.")]
    seconds: float | None
    build: Annotated[str, Meta(description="Id of the build, for get_build_log; empty when it was not built.")]
    artifact: Annotated[str, Meta(description="Directory with what it left behind, on the daemon's machine.")]
    log_bytes: int


class RunAnswer(Answer, frozen=True, kw_only=True):
    """A run: `number` names it in other calls."""

    number: int
    id: str
    state: Annotated[
        str,
        Meta(
            description="initialized, discovering, planning, building, packaging, creating_repository; or, ended, "
            "completed, failed, cancelled."
        ),
    ]
    finished: bool
    targets: tuple[str, ...]
    created_at: Time
    completed_at: Time
    stats: Annotated[Stats, Meta(description="Number of packages by state.")]
    packages: Annotated[tuple[PackageAnswer, ...], Meta(description="Failed ones first, skipped ones last.")]
    packages_total: Annotated[int, Meta(description="That match.")]
    next_offset: NextOffset
    wave: int | None
    waves: int | None
    error: Annotated[str, Meta(description="Why the run failed; empty otherwise.")]
    waiting: Annotated[str, Meta(description="Why nothing is being built just now, if that is so.")]
    next_step: NextStep

    def as_text(self) -> str:
        where = f"{self.state} (wave {self.wave} of {self.waves})" if self.wave and not self.finished else self.state
        lines = [f"run {self.number} {where}: {counts(_numbers(self.stats))}"]
        lines += [text for text in (self.error, self.waiting) if text]
        lines += [_package_line(package) for package in self.packages]
        if self.next_offset is not None:
            lines.append(f"… {self.packages_total} in all; next offset {self.next_offset}")
        return "\n".join([*lines, *([self.next_step] if self.next_step else [])])


def _numbers(stats: Stats) -> dict[str, int]:
    return {name: getattr(stats, name) for name in stats.__struct_fields__}


def _package_line(package: PackageAnswer) -> str:
    phase = f"phase {package.phase}" if package.phase and package.state == "running" else ""
    details = [package.reason, phase, package.message]
    took = f" in {duration(package.seconds)}" if package.seconds is not None else ""
    told = "; ".join(filter(None, details))
    build = f" [build {package.build}]" if package.build else ""
    return f"{package.state:<9} {package.name} {package.version}{took}{f': {told}' if told else ''}{build}"


def _package(package: protocol.RunPackage) -> PackageAnswer:
    return PackageAnswer(
        name=package.name,
        version=package.version,
        state=package.state,
        reason=package.reason or "",
        message=package.message or "",
        phase=package.phase or "",
        seconds=package.duration_s,
        build=package.build_id or "",
        artifact=package.artifact or "",
        log_bytes=package.log_bytes,
    )


async def _run_answer(
    call: Call, run: str, *, states: tuple[PackageState, ...] = (), limit: int = 50, offset: int = 0
) -> RunAnswer:
    params = protocol.RunStatusParams(run=run, live=True, states=states)
    found = await call.daemon.call("run.status", params, RunView)
    finished = found.state in ENDED
    ordered = sorted(found.packages, key=lambda package: _OF_INTEREST.index(package.state))
    shown, next_offset = page(ordered, offset, limit)
    idle = not finished and not found.stats.running
    waiting = await _why_idle(call) if idle else ""
    return RunAnswer(
        number=found.number,
        id=found.id,
        state=found.state,
        finished=finished,
        targets=found.targets,
        created_at=moment(found.created_at),
        completed_at=moment(found.completed_at),
        stats=found.stats,
        packages=tuple(map(_package, shown)),
        packages_total=len(ordered),
        next_offset=next_offset,
        wave=found.wave,
        waves=found.waves,
        error=" ".join(filter(None, [found.error, for_tools(found.hint or "")])),
        waiting=waiting,
        next_step=_next_step(found),
    )


async def _why_idle(call: Call) -> str:
    """Why the daemon builds nothing, if it is not for want of something to build."""
    status = await call.daemon.call("daemon.status", None, protocol.DaemonStatus)
    if status.state == "draining":
        return "no builds are started: the daemon is draining, until the user resumes it"
    if status.paused:
        return f"no builds are started: {status.paused}"
    if status.clones:
        clone = status.clones[0]
        return f"{clone.operation} of {clone.url}: {clone.percent:.0f} %"
    if status.throttle.reason and status.workers.busy >= status.throttle.workers:
        return f"no more than {plural(status.throttle.workers, 'build')} at a time now: {status.throttle.reason}"
    return ""


def _next_step(run: RunView) -> str:
    if run.state not in ENDED:
        return f"It goes on. Call get_build_status with run={run.number} and wait_seconds=30 until it is finished."
    if run.stats.failed:
        return (
            f"Call get_build_log with run={run.number} and package=NAME for the log of a failed package; "
            "start_build tries again once the cause is gone."
        )
    if run.state == "failed":
        return "Correct the targets, or remove the cause, and start it again: list_repos shows known repositories."
    return ""


async def _until_ended(call: Call, run: str, seconds: float) -> str:
    """Wait until a run ends, or so many seconds, telling how far it is; its id, for by then `latest` may be another."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return run
        params = protocol.WaitParams(run=run, timeout=min(POLL_S, left), packages=False)
        answer = await call.daemon.call("run.wait", params, protocol.WaitResult, hold=POLL_S, patience=left)
        run = answer.run.id
        if answer.finished:
            return run
        stats = answer.run.stats
        message = f"run {answer.run.number} {answer.run.state}: {counts(_numbers(stats))}"
        done = stats.total - stats.queued - stats.running
        await call.progress.tell(float(done), float(stats.total) or None, message)


# --- tools ------------------------------------------------------------------------------------------------


class StartArguments(Arguments, frozen=True, kw_only=True):
    targets: Targets
    keep_going: Annotated[
        bool, Meta(description="Go on with packages that do not depend on a failed one; false cancels the rest.")
    ] = True
    force: Annotated[bool, Meta(description="Build even what has a result already.")] = False
    force_packages: Annotated[tuple[str, ...], Meta(description="The same, for packages of these names.")] = ()
    fetch_only: Annotated[bool, Meta(description="Only fetch and verify sources.")] = False
    refresh: Annotated[bool, Meta(description="Fetch cloned repositories before planning.")] = True
    worktree: Annotated[
        bool, Meta(description="Build local repositories as their files are now, uncommitted changes included.")
    ] = False
    strategy: Annotated[
        Strategy | None, Meta(description="Which earlier results count; without it, as the daemon is configured.")
    ] = None
    max_retries: Annotated[Count | None, Meta(description="Further attempts after failures that may pass.")] = None
    priority: Annotated[int, Meta(description="Higher goes first.")] = 0
    wait_seconds: Wait = 0.0


class StartAnswer(RunAnswer, frozen=True, kw_only=True):
    status: Annotated[str, Meta(description="accepted: it is on record, and goes on whatever happens to this client.")]


@tool("Build", changes=True, idempotent=False, open_world=True)
async def start_build(call: Call, args: StartArguments) -> StartAnswer:
    """Build packages: clones or fetches their repositories, plans, and builds what is not up to date, with what it
    depends on, in sandboxes. Executes the recipes of the repositories. Answers at once with the number of the run,
    which get_build_status, get_build_log and cancel_build take; with `wait_seconds` it waits that long for the end.
    Committed files count, unless `worktree`. What is up to date is skipped, so starting again is cheap."""
    params = protocol.StartParams(
        targets=tuple(map(absolute, args.targets)),
        keep_going=args.keep_going,
        force=args.force,
        force_packages=args.force_packages,
        fetch_only=args.fetch_only,
        refresh=args.refresh,
        worktree=args.worktree,
        strategy=args.strategy,
        max_retries=args.max_retries,
        priority=args.priority,
    )
    try:
        started = await call.daemon.call("run.start", params, protocol.StartResult, repeatable=False)
    except Gone as error:
        raise ToolError(
            f"{error.message}: it may or may not have accepted the run",
            "Call list_builds with limit=1 before you start it again.",
        ) from None
    await _until_ended(call, started.id, args.wait_seconds)
    return extend(StartAnswer, await _run_answer(call, started.id), status="accepted")


class StatusArguments(Arguments, frozen=True, kw_only=True):
    run: Run = "latest"
    states: Annotated[tuple[PackageState, ...], Meta(description="Only packages in these states; empty for all.")] = ()
    limit: Annotated[int, Meta(ge=1, le=500, description="Most packages.")] = 50
    offset: Offset = 0
    wait_seconds: Wait = 0.0


@tool("How a build is coming along")
async def get_build_status(call: Call, args: StatusArguments) -> RunAnswer:
    """A run with its packages, failures first. With `wait_seconds` it waits that long for the run's end. `finished`
    tells whether it has ended; a run that failed is answered with its reasons."""
    run = await _until_ended(call, args.run, args.wait_seconds)
    return await _run_answer(call, run, states=args.states, limit=args.limit, offset=args.offset)


class CancelArguments(Arguments, frozen=True, kw_only=True):
    run: Annotated[str, Meta(min_length=1, description="Number or id of a run.")]
    package: Annotated[str, Meta(description="Only this package; what depends on it is blocked. Empty: all.")] = ""


class CancelAnswer(Answer, frozen=True, kw_only=True):
    """What was done."""

    message: str
    next_step: NextStep


@tool("Cancel a build", changes=True, destructive=True)
async def cancel_build(call: Call, args: CancelArguments) -> CancelAnswer:
    """Cancel a run, or one package of it, queued or running: its processes are ended, what has succeeded stays."""
    params = protocol.CancelParams(run=args.run, package=args.package or None)
    answer = await call.daemon.call("run.cancel", params, protocol.Ok)
    return CancelAnswer(
        message=answer.message or "cancelled", next_step=f"Call get_build_status with run={args.run} to see it end."
    )


class ListArguments(Arguments, frozen=True, kw_only=True):
    active: Annotated[bool, Meta(description="Only runs that have not ended.")] = False
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class RunSummary(Answer, frozen=True, kw_only=True):
    number: int
    id: str
    state: str
    targets: tuple[str, ...]
    requested_by: str
    created_at: Time
    completed_at: Time
    stats: Stats
    error: str


class RunPage(Answer, frozen=True, kw_only=True):
    """Runs, newest first."""

    runs: tuple[RunSummary, ...]


@tool("Recent builds")
async def list_builds(call: Call, args: ListArguments) -> RunPage:
    """Recent runs, newest first, with their states and counts of packages; those that are active with `active`."""
    params = protocol.RunListParams(limit=args.limit, active=args.active)
    found = (await call.daemon.call("run.list", params, protocol.RunList)).runs
    return RunPage(
        runs=tuple(
            RunSummary(
                number=run.number,
                id=run.id,
                state=run.state,
                targets=run.targets,
                requested_by=run.requested_by,
                created_at=moment(run.created_at),
                completed_at=moment(run.completed_at),
                stats=run.stats,
                error=run.error or "",
            )
            for run in found
        )
    )


TOOLS = (start_build, get_build_status, cancel_build, list_builds)
