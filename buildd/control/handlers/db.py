"""db.*: the index of latest successes, fingerprints, failures, statistics; checking the database and emptying it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog

from buildd.control.handlers.services import Services
from buildd.control.socket import Peer
from buildd.errors import NotFound, Refused
from buildd.protocol import (
    BuildList,
    DatabaseCheck,
    DatabaseStats,
    DatabaseStatsParams,
    Empty,
    FailuresParams,
    FingerprintList,
    FingerprintParams,
    IndexList,
    IndexParams,
    Ok,
    ResetParams,
)
from buildd.threads import in_thread

log = structlog.get_logger()

_MAX_RUNS = 1000


async def latest(services: Services, params: IndexParams, peer: Peer) -> IndexList:
    entries = await services.queries.latest(params.package, max(1, min(params.limit, 10_000)))
    if params.package is not None and not entries:
        raise NotFound(f"{params.package} was never built with success", hint="`buildctl db latest` shows what was")
    return IndexList(entries=tuple(entries))


async def failures(services: Services, params: FailuresParams, peer: Peer) -> BuildList:
    limit = max(1, min(params.limit, 1000))
    return BuildList(builds=tuple(await services.queries.failures(params.package, limit)))


async def fingerprint(services: Services, params: FingerprintParams, peer: Peer) -> FingerprintList:
    return FingerprintList(fingerprints=tuple(await services.queries.fingerprints(params.package)))


async def stats(services: Services, params: DatabaseStatsParams, peer: Peer) -> DatabaseStats:
    found = await services.queries.statistics(max(0, min(params.slowest, 1000)))
    try:
        survey = await services.collector.collect(await services.collector.limits(), dry_run=True)
    except OSError as error:
        log.warning("artifacts cannot be counted", error=str(error))
        return found
    would_go = sum(victim.kind == "artifact" for victim in survey.collected)
    return msgspec.structs.replace(
        found, artifacts=survey.artifacts + would_go, artifact_bytes=survey.bytes + survey.freed_bytes
    )


async def verify(services: Services, params: Empty, peer: Peer) -> DatabaseCheck:
    problems = await services.database.verify()
    stale = await _stale(services)
    if stale:
        problems = [*problems, f"recorded as running, and not running: {', '.join(sorted(stale))}"]
    missing = await _missing(services, await services.queries.outputs())
    return DatabaseCheck(
        ok=not problems,
        problems=tuple(problems),
        builds=await services.queries.count(),
        missing_artifacts=missing,
        stale_builds=len(stale),
    )


async def _stale(services: Services) -> set[str]:
    """Builds that are running by the database only.

    A build is in the engine before its record is there, and leaves it when the end of its record is on its way: what
    the database has before and after, and the engine has not in between, does not run. Nothing can be told while
    the database is behind.
    """
    before = await services.queries.running()
    if not before:
        return set()
    alive = await _alive(services)
    await services.database.flush()
    if services.database.waiting:
        return set()
    return (before & await services.queries.running()) - alive


async def _alive(services: Services) -> set[str]:
    found: set[str] = set()
    for record in await services.runs.runs(_MAX_RUNS, active=True):
        run = services.engine.find(record.id)
        if run is not None:
            found.update(active.build.id for active in run.builds.values())
    return found


async def _missing(services: Services, outputs: Mapping[str, int]) -> int:
    def count() -> int:
        return sum(builds for output, builds in outputs.items() if not services.artifacts.exists(output))

    return await in_thread(count)


async def reset(services: Services, params: ResetParams, peer: Peer) -> Ok:
    active = services.engine.statistics["active"]
    if active and not params.force:
        raise Refused(
            f"{active} run{'s are' if active > 1 else ' is'} active and would lose their records",
            hint="wait for them, cancel them, or use force",
        )
    kept = await services.database.reset()
    return Ok(
        message="nothing is known as built any more, and every package is built again when it is wanted; "
        f"artifacts and logs stay on disk, and so does the old database: {kept}"
    )
