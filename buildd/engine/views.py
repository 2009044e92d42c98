"""Runs as their readers see them: the JSON of `run.status` and its relatives."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from buildd.engine.progress import SKIPPED, PackageRun, Progress
from buildd.model import PackageState
from buildd.planner.states import Building, Cancelled, Failed, name_of
from buildd.protocol import RunPackage, RunView
from buildd.store.runs import RosterEntry, RunRecord


def package_view(run: PackageRun, *, live: Callable[[str], tuple[str, int]] | None = None) -> RunPackage:
    """`live` gives the last line and the size of a running build's log."""
    last_line, log_bytes = None, run.log_bytes
    duration = run.duration_s
    if run.state == "running" and run.build_id is not None:
        duration = time.time() - run.started_at if run.started_at is not None else None
        if live is not None:
            last_line, log_bytes = live(run.build_id)
    return RunPackage(
        name=run.package.name,
        version=run.package.version,
        state=run.state,
        reason=run.reason,
        phase=run.phase,
        duration_s=duration if duration is None else round(duration, 3),
        build_id=run.build_id,
        artifact=run.artifact,
        log_bytes=log_bytes,
        message=run.message,
        last_line=last_line,
    )


def roster_view(entries: Iterable[RosterEntry], directory: Callable[[str], Path]) -> list[RunPackage]:
    """Packages that were up to date; `directory` gives the place of an artifact."""
    return [
        RunPackage(
            name=entry.package,
            version=entry.version,
            state="skipped",
            reason="unchanged",
            phase=None,
            duration_s=None,
            build_id=None,
            artifact=str(directory(entry.output_id)),
            log_bytes=0,
            message=SKIPPED,
        )
        for entry in entries
    ]


def run_view(record: RunRecord, progress: Progress | None = None, packages: Sequence[RunPackage] = ()) -> RunView:
    """`progress` is that of an unfinished run; a finished one's counts are in its record."""
    state = record.state
    return RunView(
        id=record.id,
        number=record.number,
        state=name_of(state),
        targets=record.request.targets,
        requested_by=record.requested_by,
        created_at=record.created_at,
        started_at=record.started_at,
        completed_at=record.completed_at,
        stats=progress.stats() if progress is not None else record.stats,
        packages=tuple(packages),
        wave=progress.wave if progress is not None and isinstance(state, Building) else None,
        waves=record.waves or None,
        error=state.error if isinstance(state, Failed) else state.reason if isinstance(state, Cancelled) else None,
        hint=state.hint or None if isinstance(state, Failed) else None,
    )


def selected(packages: Sequence[RunPackage], states: Collection[PackageState]) -> Sequence[RunPackage]:
    return [p for p in packages if p.state in states] if states else packages
