"""daemon.*: state, checks, and steering."""

from __future__ import annotations

import os
import time

from buildd import __version__, shortage
from buildd.control.handlers.services import Services
from buildd.control.rights import user_name
from buildd.control.socket import Peer
from buildd.engine.active import ActiveBuild
from buildd.monitor.readings import read_daemon
from buildd.protocol import (
    ActiveClone,
    BuildCounts,
    BuildUse,
    ControlCounts,
    DaemonState,
    DaemonStatus,
    DoctorResult,
    Empty,
    Ok,
    ResourcesParams,
    ResourcesResult,
    RunCounts,
    ShutdownParams,
    Workers,
)


async def status(services: Services, params: Empty, peer: Peer) -> DaemonStatus:
    config = services.config()
    counts = services.engine.statistics
    requests, dropped = services.control_counts()
    return DaemonStatus(
        version=__version__,
        pid=os.getpid(),
        uptime_s=round(time.monotonic() - services.started_at, 3),
        state=_state(services),
        reasons=_reasons(services),
        sandbox=services.sandbox_name,
        runs=RunCounts(active=counts["active"], total=counts["total"]),
        builds=BuildCounts(
            queued=counts["queued"], running=counts["busy"], success=counts["success"], failed=counts["failed"]
        ),
        workers=Workers(busy=counts["busy"], total=config.workers.max_concurrent_builds),
        throttle=services.watchers.gate.allowed(config.workers.max_concurrent_builds),
        paused=services.watchers.gate.paused,
        clones=tuple(
            ActiveClone(
                url=c.url,
                operation=c.operation,
                started_at=c.started_at,
                progress=c.progress,
                percent=round(c.progress.percent, 1),
            )
            for c in services.clones.active()
        ),
        maps=tuple(services.maps.active),
        resources=read_daemon(),
        control=ControlCounts(requests=requests, dropped=dropped),
        state_dir=config.daemon.state_dir,
        cache_dir=config.daemon.cache_dir,
        config_files=config.files,
    )


def _state(services: Services) -> DaemonState:
    if services.engine.stopping:
        return "stopping"
    if services.engine.draining is not None:
        return "draining"
    troubled = services.database.trouble is not None or services.watchers.memory.trouble is not None
    return "degraded" if troubled or shortage.reasons() else "running"


def _reasons(services: Services) -> tuple[str, ...]:
    trouble = services.database.trouble
    found = []
    if trouble is not None:
        found.append(
            f"the database cannot record: {trouble}; {services.database.waiting} records wait for it in memory"
        )
    found += shortage.reasons()
    if services.engine.draining is not None:
        found.append(f"draining: {services.engine.draining}")
    if services.database.renewal is not None:
        found.append(str(services.database.renewal))
    if services.clones.evictor.trouble:
        found.append(services.clones.evictor.trouble)
    if services.watchers.memory.trouble is not None:
        found.append(services.watchers.memory.trouble)
    return (*found, *services.watchers.overdue.reasons, *services.weaker)


async def resources(services: Services, params: ResourcesParams, peer: Peer) -> ResourcesResult:
    config = services.config()
    return ResourcesResult(
        interval_s=float(config.monitor.interval),
        samples=tuple(services.watchers.sampler.newest(params.samples)),
        throttle=services.watchers.gate.allowed(config.workers.max_concurrent_builds),
        paused=services.watchers.gate.paused,
        memory=services.watchers.memory.seen,
        builds=tuple(_use(active) for active in services.engine.active),
    )


def _use(active: ActiveBuild) -> BuildUse:
    build, use = active.build, active.control.use
    return BuildUse(
        build=build.id,
        run=build.run,
        package=build.package,
        phase=active.phase,
        started_at=build.started_at,
        processes=use.processes,
        memory_bytes=use.memory_bytes,
        cpu_s=use.cpu_s,
        disk_bytes=use.disk_bytes,
    )


async def doctor(services: Services, params: Empty, peer: Peer) -> DoctorResult:
    return DoctorResult(checks=await services.checks())


async def drain(services: Services, params: Empty, peer: Peer) -> Ok:
    services.engine.drain(f"asked for by {user_name(peer.uid)}")
    return Ok(message="no more builds are started; running ones finish")


async def resume(services: Services, params: Empty, peer: Peer) -> Ok:
    services.engine.resume()
    return Ok(message="builds are started again")


async def reload(services: Services, params: Empty, peer: Peer) -> Ok:
    return Ok(message=services.reload())


async def shutdown(services: Services, params: ShutdownParams, peer: Peer) -> Ok:
    services.shutdown(params.drain)
    return Ok(message="stopping once running builds have finished" if params.drain else "stopping")
