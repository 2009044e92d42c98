"""Tools for runs and their builds: what an AI calls a build is a run of targets with all the packages they need."""

from __future__ import annotations

import time
from typing import Annotated, TypeVar

from msgspec import Meta

from buildd import protocol
from buildd.protocol import PackageState, RunView, Stats, Strategy
from ctl.failure import Gone
from ctl.mcp.advice import for_tools
from ctl.mcp.fields import POLL_S, Count, LongAnswer, NextOffset, NextStep, Offset, Time, Wait, extend, moment, page
from ctl.mcp.tool import Answer, Arguments, Call, ToolError, tool
from ctl.mcp.waiting import within
from ctl.target import absolute
from ctl.text import counts, duration, plural, size, without_escapes
from ctl.why import explanation, subject

T = TypeVar("T")
ENDED = ("completed", "failed", "cancelled")
_OF_INTEREST = ("failed", "running", "blocked", "cancelled", "ignored", "queued", "success", "skipped")
"""States in the order in which their packages are shown."""

Targets = Annotated[
    tuple[str, ...],
    Meta(
        min_length=1,
        description="What to build: REPO[@REV][//PACKAGE] each, REPO a URL, a path or a known name; without PACKAGE "
        "all that the repository builds by default. As in https://example.org/things.git@v1.2//libthing",
    ),
]
Run = Annotated[
    str, Meta(min_length=1, description="Number or id of a run, as start_build and list_builds give it, or latest.")
]


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


# --- logs -------------------------------------------------------------------------------------------------


class LogArguments(Arguments, frozen=True, kw_only=True):
    build: Annotated[str, Meta(description="Id of a build. Without it, `run` and `package` name one.")] = ""
    run: Run = "latest"
    package: Annotated[
        str, Meta(description="Name of a package of the run; may be left out when one was built, or one failed.")
    ] = ""
    offset: Annotated[
        Count | None,
        Meta(description="Byte to start at, as `next_offset` of an earlier answer; without it, the end."),
    ] = None
    max_bytes: Annotated[int, Meta(ge=1, le=protocol.MAX_CHUNK_BYTES)] = 16_384
    wait_seconds: Wait = 0.0


class LogAnswer(Answer, frozen=True, kw_only=True):
    """A piece of the log of a build."""

    build: str
    package: str
    version: str
    state: Annotated[str, Meta(description="running, success, failed or cancelled.")]
    message: Annotated[str, Meta(description="Why it failed; empty otherwise.")]
    offset: Annotated[int, Meta(description="Byte where the text begins.")]
    next_offset: Annotated[int, Meta(description="What to pass as `offset` for what follows.")]
    finished: Annotated[bool, Meta(description="True when the build has ended and nothing follows.")]
    text: str
    next_step: NextStep

    def as_text(self) -> str:
        head = f"log of {self.package} {self.version}, build {self.build}, {self.state}"
        why = f"\n{self.message}" if self.message else ""
        return f"{head}, bytes {self.offset} to {self.next_offset}{why}\n{self.next_step}\n\n{self.text}"


@tool("Log of a build")
async def get_build_log(call: Call, args: LogArguments) -> LogAnswer:
    """The output of the build of one package: its end, or a piece from `offset`. While it is being built,
    `wait_seconds` waits for output after `offset`, so calls with `next_offset` follow the log."""
    record = await _find_build(call, args)
    offset = -args.max_bytes if args.offset is None else args.offset
    deadline = time.monotonic() + args.wait_seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        params = protocol.LogParams(
            build=record.id, offset=offset, limit=args.max_bytes, timeout=min(POLL_S, left) if offset >= 0 else 0.0
        )
        chunk = await call.daemon.call("build.log", params, protocol.LogChunk, hold=POLL_S, patience=left)
        if chunk.text or chunk.finished or left <= 0:
            break
        offset = chunk.next_offset
        await call.progress.tell(float(chunk.next_offset), None, f"{record.package}: waiting for output")
    if record.state == "running":
        record = await call.daemon.call("build.show", protocol.BuildParams(build=record.id), protocol.BuildRecord)
    return LogAnswer(
        build=record.id,
        package=record.package,
        version=record.version,
        state=record.state,
        message=record.message or "",
        offset=chunk.offset,
        next_offset=chunk.next_offset,
        finished=chunk.finished,
        text=without_escapes(chunk.text),
        next_step=_next_piece(chunk, record.log_bytes),
    )


def _next_piece(chunk: protocol.LogChunk, log_bytes: int) -> str:
    again = f"Call get_build_log with build={chunk.build}"
    if chunk.finished:
        return f"{again} and offset=0 for its beginning." if chunk.offset else "This is all of it."
    return f"{again} and offset={chunk.next_offset} for what follows, with wait_seconds while it is being built."


async def _find_build(call: Call, args: LogArguments) -> protocol.BuildRecord:
    """The build that the arguments mean. Raises ToolError when that is none, or several."""
    if args.build:
        return await call.daemon.call("build.show", protocol.BuildParams(build=args.build), protocol.BuildRecord)
    view = await call.daemon.call("run.status", protocol.RunStatusParams(run=args.run), RunView)
    named = [package for package in view.packages if not args.package or package.name == args.package]
    if args.package and not named:
        raise ToolError(
            f"run {view.number} has no package {args.package}",
            f"get_build_status with run={view.number} shows those it has."
            if view.packages
            else f"It has none yet: call get_build_status with run={view.number} and wait_seconds=10 first.",
        )
    built = [package for package in named if package.build_id]
    failed = [package for package in built if package.state == "failed"]
    for choice in (built, failed):
        if len(choice) == 1:
            params = protocol.BuildParams(build=choice[0].build_id or "")
            return await call.daemon.call("build.show", params, protocol.BuildRecord)
    if not built:
        what = f"{args.package} in run {view.number}" if args.package else f"run {view.number}"
        states = ", ".join(dict.fromkeys(f"{package.name} {package.state}" for package in named[:10]))
        raise ToolError(
            f"there is no log of {what}: nothing of it was built{f' ({states})' if states else ''}",
            f"get_build_status with run={view.number} tells why, or when it will be. list_builds shows other runs.",
        )
    names = ", ".join(package.name for package in (failed or built)[:20])
    raise ToolError(f"run {view.number} has {len(built)} logs", f"Say which package you mean: {names}.")


# --- why --------------------------------------------------------------------------------------------------


class PlanArguments(Arguments, frozen=True, kw_only=True):
    targets: Targets
    why: Annotated[bool, Meta(description="Say of each package whether it would be built, and why.")] = False
    refresh: Annotated[bool, Meta(description="Fetch cloned repositories first.")] = True
    worktree: Annotated[bool, Meta(description="Take local repositories as their files are now.")] = False
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
    offset: Offset = 0
    wait_seconds: LongAnswer = 45.0


class PlannedAnswer(Answer, frozen=True, kw_only=True):
    name: str
    version: str
    path: Annotated[str, Meta(description="Its directory in the repository.")]
    repository: str
    depends: tuple[str, ...]
    wave: Annotated[int, Meta(description="1 for packages without dependencies in the plan.")]
    ignored: Annotated[str, Meta(description="Why it cannot be built here; empty otherwise.")]
    verdict: Annotated[str, Meta(description="up_to_date, build or ignored; empty without `why`.")]
    causes: tuple[str, ...]


class PlanAnswer(Answer, frozen=True, kw_only=True):
    """What a start of these targets would consider, in topological order."""

    packages: tuple[PlannedAnswer, ...]
    total: int
    waves: int
    next_offset: NextOffset


@tool("What a build would consider", changes=True, open_world=True)
async def plan_build(call: Call, args: PlanArguments) -> PlanAnswer:
    """The packages of targets, with versions, dependencies and, with `why`, whether each would be built. Tells which
    packages a repository has. Builds nothing; clones or fetches the repositories where it has to."""
    params = protocol.PlanParams(
        targets=tuple(map(absolute, args.targets)), refresh=args.refresh, worktree=args.worktree, why=args.why
    )
    plan = await _long_answer(call, "plan_build", args.wait_seconds, "run.plan", params, protocol.PlanResult)
    shown, next_offset = page(plan.packages, args.offset, args.limit)
    return PlanAnswer(
        packages=tuple(
            PlannedAnswer(
                name=package.name,
                version=package.version,
                path=package.path,
                repository=package.repository,
                depends=package.depends,
                wave=package.wave,
                ignored=package.ignore,
                verdict=package.verdict.state if package.verdict else "",
                causes=tuple(cause.message or cause.kind for cause in package.verdict.causes)
                if package.verdict
                else (),
            )
            for package in shown
        ),
        total=len(plan.packages),
        waves=plan.waves,
        next_offset=next_offset,
    )


async def _long_answer(
    call: Call, name: str, seconds: float, method: str, params: protocol.Params, result: type[T]
) -> T:
    """What the daemon answers, telling meanwhile what it clones. Raises ToolError when that takes too long."""

    async def tell() -> None:
        status = await call.daemon.call("daemon.status", None, protocol.DaemonStatus)
        for clone in status.clones[:1]:
            message = f"{clone.operation} of {clone.url}: {size(clone.progress.received_bytes)}"
            await call.progress.tell(clone.percent, 100.0, message)

    answer = await within(seconds, lambda: call.daemon.call(method, params, result, hold=None), tell)
    if answer is None:
        raise ToolError(
            f"there is no answer after {seconds:g} s",
            f"Call {name} again, with a larger wait_seconds; get_daemon_status tells what the daemon does.",
        )
    return answer


class ExplainArguments(Arguments, frozen=True, kw_only=True):
    package: Annotated[
        str,
        Meta(min_length=1, description="NAME or NAME@VERSION of a package that was built before, or REPO[@REV]//NAME."),
    ]
    run: Annotated[str, Meta(description="Explain what this run did; empty: what a run would do now.")] = ""
    worktree: Annotated[bool, Meta(description="Take local repositories as their files are now.")] = False
    wait_seconds: LongAnswer = 45.0


class ExplainAnswer(Answer, frozen=True, kw_only=True):
    """Whether a package is, or was, built, and the cause."""

    package: str
    version: str
    state: protocol.VerdictState
    explanation: Annotated[str, Meta(description="In words: the file, phase, dependency or tool that is to blame.")]
    notes: Annotated[tuple[str, ...], Meta(description="What was chosen where the request left a choice.")]

    def as_text(self) -> str:
        return "\n".join([*self.notes, self.explanation])


@tool("Why a package is built, or not", changes=True, open_world=True)
async def explain_build(call: Call, args: ExplainArguments) -> ExplainAnswer:
    """Why a package would be built or is up to date, or why a run built or skipped it: names the very file, phase,
    dependency or part of the environment that changed since its last success. Builds nothing."""
    params = protocol.WhyParams(package=subject(args.package), run=args.run or None, worktree=args.worktree)
    found = await _long_answer(call, "explain_build", args.wait_seconds, "package.why", params, protocol.WhyResult)
    return ExplainAnswer(
        package=found.verdict.package,
        version=found.verdict.version,
        state=found.verdict.state,
        explanation="\n".join(explanation(found, past=bool(args.run))),
        notes=found.notes,
    )


# --- the daemon -------------------------------------------------------------------------------------------


class NoArguments(Arguments, frozen=True, kw_only=True):
    pass


class DaemonAnswer(Answer, frozen=True, kw_only=True):
    """State and load of the daemon."""

    version: str
    state: Annotated[str, Meta(description="running, draining, stopping or degraded.")]
    reasons: Annotated[tuple[str, ...], Meta(description="Why, and what is weaker on this machine than it could be.")]
    paused: Annotated[str, Meta(description="Why no builds are started, for want of disk space; empty otherwise.")]
    sandbox: str
    uptime_seconds: float
    active_runs: int
    builds_queued: int
    builds_running: int
    workers: int
    clones: Annotated[int, Meta(description="Clones and fetches that run or wait.")]


@tool("State of the daemon")
async def get_daemon_status(call: Call, args: NoArguments) -> DaemonAnswer:
    """Whether the build daemon answers, what it does, and why it may be slow, paused or draining."""
    status = await call.daemon.call("daemon.status", None, protocol.DaemonStatus)
    return DaemonAnswer(
        version=status.version,
        state=status.state,
        reasons=(*status.reasons, *filter(None, [status.throttle.reason])),
        paused=status.paused,
        sandbox=status.sandbox,
        uptime_seconds=round(status.uptime_s, 1),
        active_runs=status.runs.active,
        builds_queued=status.builds.queued,
        builds_running=status.builds.running,
        workers=status.throttle.workers,
        clones=len(status.clones),
    )


TOOLS = (
    start_build,
    get_build_status,
    cancel_build,
    get_build_log,
    list_builds,
    plan_build,
    explain_build,
    get_daemon_status,
)
