"""Tools that say what would be built, and why. The daemon may have to fetch repositories for that."""

from __future__ import annotations

from typing import Annotated, TypeVar

from msgspec import Meta

from buildd import protocol
from ctl.mcp.fields import LongAnswer, NextOffset, Offset, Targets, page
from ctl.mcp.tool import Answer, Arguments, Call, ToolError, tool
from ctl.mcp.waiting import within
from ctl.target import absolute
from ctl.text import size
from ctl.why import explanation, subject

T = TypeVar("T")


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


TOOLS = (plan_build, explain_build)
