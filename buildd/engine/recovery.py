"""After a restart: what an earlier life of the daemon left in the records, brought to a true end or taken up again.

A build that was running when the daemon died is closed as failed for the reason `interrupted`; its package gets
another attempt, until the daemon has died KILLER_ATTEMPTS times over it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import structlog

from buildd.engine.run import Run, note_build
from buildd.life import End
from buildd.model import BuildRecord, PackageState
from buildd.store.database import Commit
from buildd.store.journal import Journal
from buildd.store.logs import Logs
from buildd.store.runs import RunStore, update_build

log = structlog.get_logger()

KILLER_ATTEMPTS = 3
"""A package during whose builds the daemon died this often is set aside."""
_DEATHS: dict[End, str] = {
    "stopped": "the daemon was stopped while this was built",
    "killed": "the daemon was killed while this was built",
    "machine down": "the machine went down while this was built",
}
"""By how the daemon's life ended."""


async def close_interrupted(store: RunStore, journal: Journal, logs: Logs, end: End) -> dict[str, BuildRecord]:
    """Close the records of builds that say `running` though their daemon is gone: the closed ones by id.

    Returns when that is on disk, or kept for when the database works again: until then, reads say `running`.
    """
    closed, commit = close_builds(await store.running_builds(), _DEATHS[end], journal, logs)
    if commit is not None:
        await commit.wait(kept=True)
    return closed


def close_builds(
    builds: Sequence[BuildRecord], message: str, journal: Journal, logs: Logs
) -> tuple[dict[str, BuildRecord], Commit | None]:
    """Close records of builds that nobody builds any more; the closed ones by id, and the commit of the last."""
    commit: Commit | None = None
    found: dict[str, BuildRecord] = {}
    for build in builds:
        closed = msgspec.structs.replace(
            build, state="failed", reason="interrupted", message=message, completed_at=time.time()
        )
        found[build.id] = closed
        commit = journal.emit(
            "package_interrupted",
            run=build.run,
            build=build.id,
            package=build.package,
            data={"state": "failed", "reason": "interrupted", "message": message},
            statements=[update_build(closed)],
        )
        try:
            logs.append(build.id, f"==> buildd: failed: interrupted: {message}\n")
        except OSError as error:
            log.warning("cannot write to the log of a build", build=build.id, error=str(error))
    return found, commit


def restore(run: Run, earlier: Sequence[BuildRecord]) -> list[tuple[str, PackageState, str, str]]:
    """Note what became of a run's packages in earlier lives; those that have ended without success, as
    (package, state, reason, message).

    `earlier` are the builds of the run, oldest first: the last one of each package counts. A success is only
    noted: whether it still answers the package shows when its dependencies are done and its key is known.
    """
    assert run.progress is not None
    run.attempts.update(build.package for build in earlier)
    run.retries.update(build.package for build in earlier if build.retried)
    died = Counter(build.package for build in earlier if build.message in _DEATHS.values())
    last = {build.package: build for build in earlier if build.package in run.progress.packages}
    ended: list[tuple[str, PackageState, str, str]] = []
    for name, build in last.items():
        if build.state == "success":
            run.earlier[name] = build
        elif name in run.record.cancelled or build.retried:
            continue
        elif build.reason != "interrupted":
            note_build(run.progress.packages[name], build)
            state: PackageState = "cancelled" if build.state == "cancelled" else "failed"
            ended.append((name, state, build.reason or "", build.message or ""))
        elif died[name] >= KILLER_ATTEMPTS:
            message = f"set aside: the daemon died {died[name]} times while this was built"
            ended.append((name, "failed", "interrupted", message))
    for name, why in run.record.cancelled.items():
        if name in run.progress.packages and name not in run.earlier:
            ended.append((name, "cancelled", "cancelled", why))
    return ended
