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
from buildd.model import BuildRecord
from buildd.store.artifacts import ArtifactStore
from buildd.store.journal import Journal
from buildd.store.logs import Logs
from buildd.store.runs import RunStore, update_build

log = structlog.get_logger()

KILLER_ATTEMPTS = 3
"""A package during whose builds the daemon died this often is set aside."""
_DIED = "the daemon was killed while this was built"


async def close_interrupted(store: RunStore, journal: Journal, logs: Logs) -> None:
    """Close the records of builds that say `running` though their daemon is gone."""
    for build in await store.running_builds():
        closed = msgspec.structs.replace(
            build, state="failed", reason="interrupted", message=_DIED, completed_at=time.time()
        )
        journal.emit(
            "package_interrupted",
            run=build.run,
            build=build.id,
            package=build.package,
            data={"state": "failed", "reason": "interrupted", "message": _DIED},
            statements=[update_build(closed)],
        )
        try:
            logs.append(build.id, f"==> buildd: failed: interrupted: {_DIED}\n")
        except OSError as error:
            log.warning("cannot write to the log of a build", build=build.id, error=str(error))


def restore(run: Run, earlier: Sequence[BuildRecord], artifacts: ArtifactStore) -> list[tuple[str, str]]:
    """Put the results of earlier lives into the run's progress; the packages to be set aside, and why.

    `earlier` are the builds of the run, oldest first: the last one of each package counts.
    """
    assert run.progress is not None
    last = {build.package: build for build in earlier}
    run.attempts.update(build.package for build in earlier)
    died = Counter(build.package for build in earlier if build.message == _DIED)
    aside = []
    for name, package in run.progress.packages.items():
        build = last.get(name)
        if build is None or package.state != "queued":
            continue
        if build.reason == "interrupted":
            if died[name] >= KILLER_ATTEMPTS:
                aside.append((name, f"set aside: the daemon died {died[name]} times while this was built"))
        elif build.state == "success":
            if build.output_id is None or artifacts.exists(build.output_id):
                run.progress.gather_outputs(name)  # its dependents see all that it saw
                note_build(package, build)
                run.progress.move(name, "success")
        elif build.state != "running":
            note_build(package, build)
            run.progress.move(name, build.state, reason=build.reason, message=build.message)
    return aside
