"""run.* and object.show: accepting, watching and cancelling runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import trio

from buildd.control.handlers.services import Services
from buildd.control.rights import user_name
from buildd.control.socket import Peer
from buildd.engine.run import Run
from buildd.engine.views import roster_view, run_view, selected
from buildd.errors import NotFound, Refused
from buildd.model import PackageState
from buildd.planner.graph import waves
from buildd.protocol import (
    MAX_POLL_S,
    CancelParams,
    Ok,
    PackageVerdict,
    PlannedPackage,
    PlanParams,
    PlanResult,
    RunList,
    RunListParams,
    RunPackage,
    RunStatusParams,
    RunView,
    ShowParams,
    ShowResult,
    StartParams,
    StartResult,
    WaitParams,
    WaitResult,
)
from buildd.store.runs import RunRecord
from buildd.threads import in_thread

_NEWS: Collection[PackageState] = ("success", "failed", "blocked", "cancelled")
"""Packages that the answer to a start names, when the run is over by then."""
_PLANNED_FILES = 20
"""Changed files that a plan names of each package; `package.why` has more."""


async def start(services: Services, params: StartParams, peer: Peer) -> StartResult:
    event = services.journal.last
    run = await services.engine.start(params, user_name(peer.uid))
    ended: RunView | None = None
    if params.wait > 0:
        with trio.move_on_after(min(params.wait, MAX_POLL_S)):
            await run.finished.wait()
            ended = services.engine.view(run, states=_NEWS)
    return StartResult(id=run.id, number=run.record.number, event=event, run=ended)


async def plan(services: Services, params: PlanParams, peer: Peer) -> PlanResult:
    verdicts: Mapping[str, PackageVerdict] = {}
    if params.why:
        assessment = await services.engine.assess(
            params.targets, refresh=params.refresh, worktree=params.worktree, strategy=params.strategy
        )
        plan = assessment.plan
        verdicts = await services.explainer.explain(assessment.verdicts.values(), files=_PLANNED_FILES)
    else:
        plan = await services.engine.plan(params.targets, refresh=params.refresh, worktree=params.worktree)
    wave = await in_thread(waves, plan.graph, list(plan.packages))
    return PlanResult(
        packages=tuple(
            PlannedPackage(
                name=p.name,
                version=p.version,
                repository=p.repository,
                path=p.path,
                tree=p.tree,
                depends=p.depends,
                wave=wave[p.name],
                ignore=p.ignore,
                verdict=verdicts.get(p.name),
            )
            for p in plan.packages.values()
        ),
        waves=max(wave.values(), default=0),
    )


async def lookup(services: Services, text: str) -> tuple[RunRecord, Run | None, tuple[RunPackage, ...]]:
    """The run that `text` names: its record; the engine's, if it has not ended; its packages, if it has.

    Raises NotFound or InvalidInput.
    """
    run = services.engine.find(text)
    if run is not None:
        return run.record, run, ()
    record, packages = await services.runs.find_run(text)
    return record, services.engine.find(record.id), packages


async def view(
    services: Services,
    text: str,
    *,
    packages: bool = True,
    live: bool = False,
    states: Collection[PackageState] = (),
) -> RunView:
    """The run that `text` names, with all its packages or those in some `states`. Raises NotFound or InvalidInput."""
    record, run, recorded = await lookup(services, text)
    if run is not None:
        return services.engine.view(run, packages=packages, live=live, states=states)
    if not packages:
        return run_view(record)
    if not states or "skipped" in states:
        entries = await services.runs.roster(record.id)
        recorded = (*recorded, *roster_view(entries, services.artifacts.directory))
    return run_view(record, packages=selected(recorded, states))


async def status(services: Services, params: RunStatusParams, peer: Peer) -> RunView:
    return await view(services, params.run, packages=params.packages, live=params.live, states=params.states)


async def list_recent(services: Services, params: RunListParams, peer: Peer) -> RunList:
    found = []
    for record in await services.runs.runs(max(1, min(params.limit, 1000)), active=params.active):
        run = services.engine.find(record.id)
        found.append(services.engine.view(run, packages=False) if run is not None else run_view(record))
    return RunList(runs=tuple(found))


async def wait(services: Services, params: WaitParams, peer: Peer) -> WaitResult:
    record, run, _ = await lookup(services, params.run)
    if run is None:
        return WaitResult(finished=True, run=await view(services, record.id, packages=params.packages))
    with trio.move_on_after(max(0.0, min(params.timeout, MAX_POLL_S))):
        await run.finished.wait()
    shown = await view(services, record.id, packages=params.packages)
    return WaitResult(finished=run.finished.is_set(), run=shown)


async def cancel(services: Services, params: CancelParams, peer: Peer) -> Ok:
    record, run, _ = await lookup(services, params.run)
    if run is None:
        raise Refused(f"run {record.number} has already ended", hint=f"`buildctl show {record.number}` tells how")
    return Ok(message=await services.engine.cancel(run, params.package, user_name(peer.uid)))


async def show_object(services: Services, params: ShowParams, peer: Peer) -> ShowResult:
    try:
        return ShowResult(run=await view(services, params.id))
    except NotFound:
        pass
    try:
        return ShowResult(build=await services.runs.find_build(params.id))
    except NotFound:
        raise NotFound(
            f"there is no run and no build {params.id!r}", hint="`buildctl list` and `buildctl history` show them"
        ) from None
