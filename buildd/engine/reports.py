"""The events of runs: every change is one, in the same transaction as the record that it reports on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog

from buildd.engine.progress import SKIPPED
from buildd.engine.run import Run
from buildd.engine.uptodate import Settled
from buildd.model import BuildRecord
from buildd.planner.states import name_of
from buildd.store.database import Commit, Statement
from buildd.store.journal import Journal
from buildd.store.runs import update_run

log = structlog.get_logger()

ONE_BY_ONE = 100
"""Packages that are up to date have an event and a line in the log each, unless there are more."""


class Reports:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def state(
        self, run: Run, *, before: str, data: Mapping[str, Any] | None = None, statements: Sequence[Statement] = ()
    ) -> Commit:
        """A run has another state; its record is written."""
        state = run.record.state
        shown: dict[str, Any] = {"from": before, "to": name_of(state), "number": run.record.number, **(data or {})}
        shown |= {k: v for k, v in msgspec.to_builtins(state).items() if k != "name"}
        if run.progress is not None:
            shown["stats"] = msgspec.to_builtins(run.progress.stats())
        return self._journal.emit("run_state", run=run.id, data=shown, statements=[*statements, update_run(run.record)])

    def cancel_requested(self, run: Run, by: str, *, package: str | None = None) -> Commit:
        """Somebody wants a run or package cancelled: a restart finishes what was begun."""
        return self._journal.emit(
            "run_cancel_requested",
            run=run.id,
            package=package,
            data={"by": by},
            statements=[update_run(run.record)],
        )

    def given_up(self, run: Run, message: str) -> None:
        """A fail-fast run has failed."""
        self._journal.emit("run_given_up", run=run.id, data={"message": message}, statements=[update_run(run.record)])

    def settled(self, run: Run, settled: Mapping[str, Settled], *, in_full: bool) -> None:
        """These packages are up to date: one by one if they are few. `in_full` logs each of them in any case."""
        if len(settled) <= ONE_BY_ONE or in_full:
            for name, entry in settled.items():
                log.info(f"{name}@{entry.package.version} ({SKIPPED})", run=run.id, key=entry.key)
        else:
            log.info(f"{len(settled)} packages ({SKIPPED})", run=run.id)
        if len(settled) > ONE_BY_ONE:
            self._journal.emit(
                "packages_skipped",
                run=run.id,
                data={"count": len(settled), "reason": "unchanged", "message": SKIPPED},
            )
            return
        for name, entry in settled.items():
            self._journal.emit(
                "package_skipped",
                run=run.id,
                package=name,
                data={
                    "version": entry.package.version,
                    "state": "skipped",
                    "reason": "unchanged",
                    "message": SKIPPED,
                },
            )

    def ended_without_build(self, run: Run, names: Sequence[str]) -> None:
        """Packages came to their end without a build of their own."""
        assert run.progress is not None
        kinds = {
            "success": "package_completed",
            "failed": "package_failed",
            "skipped": "package_skipped",
            "blocked": "package_blocked",
            "ignored": "package_ignored",
            "cancelled": "package_cancelled",
        }
        for name in names:
            package = run.progress.packages[name]
            self._journal.emit(
                kinds[package.state],
                run=run.id,
                package=name,
                data={
                    "version": package.package.version,
                    "state": package.state,
                    "reason": package.reason,
                    "message": package.message,
                },
            )

    def started(
        self, run: Run, build: BuildRecord, *, shared: bool = False, statements: Sequence[Statement] = ()
    ) -> Commit:
        """A build has started for a package of a run, or is `shared` with the run that started it."""
        data = {"version": build.version, "attempt": build.attempt}
        return self._journal.emit(
            "package_started",
            run=run.id,
            build=build.id,
            package=build.package,
            data={**data, "shared_with": build.run} if shared else data,
            statements=statements,
        )

    def phase(self, run: Run, build: BuildRecord, phase: str) -> None:
        self._journal.emit("package_phase", run=run.id, build=build.id, package=build.package, data={"phase": phase})

    def ended(self, run: Run, build: BuildRecord, statements: Sequence[Statement] = ()) -> Commit:
        """A build has ended for one of the runs that waited for it."""
        kinds = {"success": "package_completed", "failed": "package_failed", "cancelled": "package_cancelled"}
        kind = "package_interrupted" if build.reason == "interrupted" else kinds[build.state]
        duration = (build.completed_at or build.started_at) - build.started_at
        return self._journal.emit(
            kind,
            run=run.id,
            build=build.id,
            package=build.package,
            data={
                "version": build.version,
                "state": build.state,
                "reason": build.reason,
                "message": build.message,
                "duration_s": round(duration, 3),
                "output_id": build.output_id,
            },
            statements=statements,
        )

    def retry(self, run: Run, build: BuildRecord, delay: float) -> None:
        """A failed build is followed by another one in `delay` seconds."""
        self._journal.emit(
            "package_retry",
            run=run.id,
            build=build.id,
            package=build.package,
            data={
                "version": build.version,
                "attempt": build.attempt + 1,
                "delay_s": delay,
                "reason": build.reason,
                "message": build.message,
            },
        )
