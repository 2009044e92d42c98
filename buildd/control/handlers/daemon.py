"""daemon.*: state, checks, and steering."""

from __future__ import annotations

import os
import time

import psutil

from buildd import __version__
from buildd.control.handlers.services import Services
from buildd.control.rights import user_name
from buildd.control.socket import Peer
from buildd.execute.proctree import children
from buildd.protocol import (
    ActiveClone,
    BuildCounts,
    ControlCounts,
    DaemonResources,
    DaemonState,
    DaemonStatus,
    DoctorResult,
    Empty,
    Ok,
    RunCounts,
    ShutdownParams,
    Throttle,
    Workers,
)

_process = psutil.Process()


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
        throttle=Throttle(workers=config.workers.max_concurrent_builds, total=config.workers.max_concurrent_builds),
        paused="",
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
        resources=_resources(),
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
    return "degraded" if services.database.trouble is not None else "running"


def _reasons(services: Services) -> tuple[str, ...]:
    trouble = services.database.trouble
    found = []
    if trouble is not None:
        found.append(
            f"the database cannot record: {trouble}; {services.database.waiting} records wait for it in memory"
        )
    if services.engine.draining is not None:
        found.append(f"draining: {services.engine.draining}")
    if services.database.renewal is not None:
        found.append(str(services.database.renewal))
    return (*found, *services.weaker)


def _resources() -> DaemonResources:
    with _process.oneshot():
        return DaemonResources(
            rss_bytes=_process.memory_info().rss,
            open_files=_process.num_fds(),
            threads=_process.num_threads(),
            children=len(children(os.getpid())),
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
