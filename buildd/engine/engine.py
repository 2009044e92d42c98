"""The engine: the one owner of all unfinished runs.

Every change of state happens in a synchronous method here, on trio's thread, and ends with the statements and
the event that record it in one transaction; the worker pool then starts what may start. Tasks (one per run,
one per build) wait and act, and come back to those methods.

Invariant: a run that was accepted ends in a final state, also across restarts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from buildd.config import Config
from buildd.engine.pool import WorkerPool
from buildd.engine.prepare import Plan, Planner
from buildd.engine.progress import FINAL, PackageRun, Progress
from buildd.engine.recovery import close_interrupted, restore
from buildd.engine.release import collect_release
from buildd.engine.run import Run, note_build
from buildd.engine.targets import parse_target, without_credentials
from buildd.engine.views import package_view, run_view
from buildd.errors import BuilddError, InvalidInput, NotFound, Refused, encodable
from buildd.execute.build import BuildTools
from buildd.model import BuildRecord, PackageState, Stats
from buildd.planner.graph import topological_order, urgency, waves
from buildd.planner.states import (
    Building,
    Cancelled,
    Completed,
    Discovering,
    Failed,
    Initialized,
    Packaging,
    Planning,
    RunState,
    name_of,
    resumed,
)
from buildd.protocol import RunPackage, RunView, StartParams
from buildd.store.database import Commit, DatabaseError, Statement
from buildd.store.journal import Journal
from buildd.store.runs import (
    KnownResult,
    RunRecord,
    RunStore,
    insert_run,
    save_packages,
    save_plan,
    update_run,
)

log = structlog.get_logger()

CANCEL_GRACE_S = 1.0
"""Seconds between SIGTERM and SIGKILL when a person cancels: they are watching."""


class Engine:
    def __init__(
        self,
        *,
        config: Callable[[], Config],
        journal: Journal,
        store: RunStore,
        planner: Planner,
        tools: BuildTools,
        environment: Callable[[], str],
    ) -> None:
        """`environment` gives the id of the root file system that builds see, under the present strategy."""
        self._config = config
        self._journal = journal
        self._store = store
        self._planner = planner
        self._tools = tools
        self._runs: dict[str, Run] = {}
        self._by_number: dict[int, Run] = {}
        self._next_number = store.next_number()
        self._drained_for_good = False
        self._nursery: trio.Nursery | None = None
        self._pool = WorkerPool(
            self, config=config, journal=journal, tools=tools, environment=environment, find=self._by_number.get
        )

    # --- life ---------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise runs, and below them builds, until cancelled; takes up unfinished runs first."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._pool.run)
            await self._take_up()
            task_status.started()
            await trio.sleep_forever()

    async def _take_up(self) -> None:
        """Close the builds of an earlier life and go on with its runs."""
        await close_interrupted(self._store, self._journal, self._tools.logs)
        for record in await self._store.unfinished():
            run = Run(
                msgspec.structs.replace(record, state=resumed(record.state)), plan=await self._store.plan(record.id)
            )
            self._admit(run)
            self._record_state(run, before=name_of(record.state), data={"resumed": True})
            log.info("run resumed", run=run.id, number=record.number)

    def _admit(self, run: Run) -> None:
        assert self._nursery is not None
        self._runs[run.id] = run
        self._by_number[run.record.number] = run
        self._nursery.start_soon(self._supervise, run)

    # --- what the control plane asks ----------------------------------------------------------------------

    async def start(self, params: StartParams, requested_by: str) -> RunRecord:
        """Accept a run; returns once it is on disk. Raises InvalidInput, Refused, DatabaseError."""
        if not params.targets:
            raise InvalidInput("no target was named", hint="write REPO[@REV][//PACKAGE]")
        if self._pool.stopping:
            raise Refused("the daemon is stopping", hint="start it again when it has stopped")
        if self._pool.draining is not None:
            raise Refused(f"the daemon takes no new runs: {self._pool.draining}", hint="`buildctl resume`")
        for text in params.targets:
            parse_target(text)
        request = msgspec.structs.replace(params, targets=tuple(without_credentials(t) for t in params.targets))
        record = RunRecord(
            id=str(uuid.uuid4()),
            number=self._next_number,
            request=request,
            requested_by=requested_by,
            created_at=time.time(),
            state=Initialized(),
        )
        self._next_number += 1
        commit = self._journal.emit(
            "run_state",
            run=record.id,
            data={"from": None, "to": "initialized", "number": record.number, "targets": list(request.targets)},
            statements=[insert_run(record)],
        )
        await commit.wait()
        self._admit(Run(record, targets=params.targets))
        return record

    async def plan(self, targets: Sequence[str], *, refresh: bool) -> tuple[Plan, dict[str, int]]:
        """What these targets would build, and the wave of each package."""
        parsed = [parse_target(text) for text in targets]
        if not parsed:
            raise InvalidInput("no target was named", hint="write REPO[@REV][//PACKAGE]")
        async with AsyncExitStack() as held:
            located = await self._planner.locate(parsed, refresh=refresh, held=held)
            plan = await self._planner.plan(parsed, located, refresh=refresh, held=held)
        return plan, waves(plan.graph, [p.name for p in plan.packages])

    async def cancel(self, run: Run, package: str | None, by: str) -> str:
        """Cancel a run or one of its packages; says what was done once the wish is on disk.

        Raises NotFound, Refused, DatabaseError.
        """
        if run.finished.is_set() or name_of(run.record.state) in ("completed", "failed", "cancelled"):
            raise Refused(f"run {run.record.number} has already ended", hint="`buildctl show` tells how")
        if isinstance(run.record.state, Packaging):
            raise Refused(f"run {run.record.number} is all but done", hint="everything is built; wait a moment")
        if package is not None:
            return await self._cancel_package(run, package, by)
        run.record = msgspec.structs.replace(run.record, cancelled_by=run.record.cancelled_by or by)
        commit = self._record_wish(run, by)
        if run.plan is None:  # one that was resumed has a plan, and soon knows again what it had built
            run.preparing.cancel()
        self._cancel_rest(run, f"cancelled by {by}")
        await commit.wait()
        return f"run {run.record.number} is being cancelled"

    async def _cancel_package(self, run: Run, name: str, by: str) -> str:
        package = run.progress.packages.get(name) if run.progress is not None else None
        if package is None:
            raise NotFound(f"run {run.record.number} has no package {name}", hint="`buildctl show` lists them")
        if package.state in FINAL:
            raise Refused(f"package {name} is {package.state} already")
        message = f"cancelled by {by}"
        run.record = msgspec.structs.replace(run.record, cancelled={**run.record.cancelled, name: message})
        commit = self._record_wish(run, by, package=name)
        if package.state == "running":
            self._stop_build(run, name, message)
            answer = f"the build of {name} is being cancelled"
        else:
            self.settle_package(run, name, "cancelled", reason="cancelled", message=message)
            answer = f"{name} is cancelled"
        await commit.wait()
        return answer

    def _record_wish(self, run: Run, by: str, *, package: str | None = None) -> Commit:
        """Record that somebody wants a run or package cancelled: a restart finishes what was begun."""
        return self._journal.emit(
            "run_cancel_requested",
            run=run.id,
            package=package,
            data={"by": by},
            statements=[update_run(run.record)],
        )

    def dispatch(self) -> None:
        """Start what may start, after the configuration has changed."""
        self._pool.dispatch()

    def drain(self, reason: str, *, final: bool = False) -> None:
        """Start no more builds and accept no more runs; `final` before the daemon stops: that is not undone."""
        if self._pool.draining is None:
            self._journal.emit("daemon_draining", data={"reason": reason})
        self._pool.draining = reason
        self._drained_for_good = self._drained_for_good or final

    def resume(self) -> None:
        """Undo `drain`. Raises Refused when the daemon is about to stop."""
        if self._drained_for_good:
            raise Refused(
                "the daemon stops as soon as the running builds have ended", hint="start it again when it has stopped"
            )
        if self._pool.draining is not None:
            self._journal.emit("daemon_resumed")
        self._pool.draining = None
        self._pool.dispatch()

    async def stop(self, grace: Callable[[], float]) -> None:
        """Start nothing more, interrupt what runs, and return when nothing does. Queued work stays on disk."""
        self._pool.stopping = True
        for run in self._runs.values():
            run.preparing.cancel()
            for control in run.builds.values():
                control.cancel("interrupted", "the daemon was stopped; it will be built again", grace=grace)
        await self.wait_idle()

    async def wait_idle(self) -> None:
        """Return when no build is running."""
        await self._pool.wait_idle()

    def find(self, text: str) -> Run | None:
        """The unfinished run with this id or number; None when there is none."""
        if text.isascii() and text.isdigit() and len(text) < 12:
            return self._by_number.get(int(text))
        return self._runs.get(text)

    def view(self, run: Run, *, packages: bool = True, live: bool = False) -> RunView:
        shown: list[RunPackage] = []
        if packages and run.progress is not None:
            tail = self._tail if live else None
            shown = [package_view(p, live=tail) for p in run.progress.packages.values()]
        return run_view(run.record, run.progress, shown)

    def _tail(self, build: str) -> tuple[str, int]:
        return self._tools.logs.last_line(build), self._tools.logs.size(build)

    @property
    def statistics(self) -> dict[str, int]:
        """Counts for the daemon's status: busy, queued, success, failed builds; active and all runs."""
        queued = sum(r.progress.stats().queued for r in self._runs.values() if r.progress is not None)
        return {
            "busy": self._pool.busy,
            "queued": queued,
            "success": self._pool.finished["success"],
            "failed": self._pool.finished["failed"],
            "active": len(self._runs),
            "total": self._next_number - 1,
        }

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken: then systemd's watchdog hears nothing more."""
        running = sum(len(run.builds) for run in self._runs.values())
        if running != self._pool.busy:
            raise AssertionError(f"{self._pool.busy} workers are busy, and {running} builds running")

    @property
    def draining(self) -> str | None:
        return self._pool.draining

    @property
    def stopping(self) -> bool:
        return self._pool.stopping

    # --- one run ------------------------------------------------------------------------------------------

    async def _supervise(self, run: Run) -> None:
        """The task of a run: prepare, let the packages be built, conclude."""
        structlog.contextvars.bind_contextvars(run=run.id)
        try:
            async with run.held:
                with run.preparing:
                    if run.record.cancelled_by is None or run.plan is not None:
                        await self._prepare(run)
                if self._pool.stopping and run.progress is None:
                    return  # it begins anew at the next start
                if run.progress is not None:
                    await run.settled.wait()
                await self._conclude(run)
        except BuilddError as error:
            await self._end(run, Failed(error=error.message, hint=error.hint))
        except OSError as error:
            await self._end(
                run, Failed(error=encodable(f"{error.strerror}: {error.filename}"), hint="free disk space?")
            )
        except Exception:
            log.exception("run failed by a fault of the daemon")
            await self._end(
                run, Failed(error="internal error; the daemon's log has the details", hint="please report it")
            )

    async def _prepare(self, run: Run) -> None:
        """Discover and plan, or go on with the plan of an earlier life."""
        request = run.record.request
        run.record = msgspec.structs.replace(run.record, started_at=run.record.started_at or time.time())
        self._move(run, Discovering())
        statements: list[Statement] = []
        if run.plan is not None and not await self._planner.hold(run.plan, run.held):
            run.plan = None
        resumed_plan = run.plan
        if resumed_plan is not None:
            self._move(run, Planning())
            plan = Plan(packages=tuple(resumed_plan))
        else:
            targets = [parse_target(text) for text in run.targets]
            located = await self._planner.locate(targets, refresh=request.refresh, held=run.held)
            self._move(run, Planning())
            plan = await self._planner.plan(targets, located, refresh=request.refresh, held=run.held)
            statements.append(save_plan(run.id, plan.packages))
        graph = plan.graph
        order = topological_order(graph)
        durations = await self._store.history(graph)
        if not request.force and self._config().cache.strategy != "none":
            run.results = await self._store.known_results(
                graph,
                latest_only=self._config().cache.strategy == "conservative",
                repositories={p.repository for p in plan.packages},
            )
        earlier = await self._store.builds_of_run(run.id)
        if resumed_plan is None:  # what failed may have been mended: it is built again
            earlier = [build for build in earlier if build.state == "success" or build.reason == "interrupted"]
        self._begin_building(run, plan, order, urgency(graph, order, durations), earlier, statements)

    def _begin_building(
        self,
        run: Run,
        plan: Plan,
        order: Sequence[str],
        urgent: dict[str, float],
        earlier: Sequence[BuildRecord],
        statements: list[Statement],
    ) -> None:
        graph = plan.graph
        wave = waves(graph, order)
        packages = {p.name: p for p in plan.packages}
        run.progress = Progress(PackageRun(packages[n], graph[n], wave[n], urgent[n]) for n in order)
        run.record = msgspec.structs.replace(run.record, waves=run.progress.waves)
        self._move(run, Building(wave=min(1, run.progress.waves), waves=run.progress.waves), statements)
        for name, state, reason, message in restore(run, earlier):
            if run.progress.packages[name].state == "queued":
                self.settle_package(run, name, state, reason=reason, message=message)
            if state == "failed" and not run.record.request.keep_going and run.record.failed_fast is None:
                run.record = msgspec.structs.replace(run.record, failed_fast=_fail_fast(name))
        for name in order:
            package = run.progress.packages[name]
            if package.state == "queued" and package.package.ignore:
                self.settle_package(run, name, "ignored", reason="ignored", message=package.package.ignore)
        for name in run.progress.ready():
            self._pool.make_ready(run, name)
        if run.record.cancelled_by is not None or run.record.failed_fast is not None:
            for name, build in run.earlier.items():  # nothing more is built: what had succeeded stays so
                if run.progress.packages[name].state == "queued":
                    note_build(run.progress.packages[name], build)
                    run.progress.move(name, "success")
        if run.record.cancelled_by is not None:
            self._cancel_rest(run, f"cancelled by {run.record.cancelled_by}")
        elif run.record.failed_fast is not None:
            self._cancel_rest(run, run.record.failed_fast, reason="fail_fast")
        self._after_change(run)

    async def _conclude(self, run: Run) -> None:
        stats = run.progress.stats() if run.progress is not None else Stats()
        if run.record.cancelled_by is not None:
            await self._end(run, Cancelled(reason=f"cancelled by {run.record.cancelled_by}"))
            return
        assert run.progress is not None
        self._move(run, Packaging())
        if any(p.package.formats for p in run.progress.packages.values()):
            await trio.to_thread.run_sync(
                collect_release, self._release_dir(run), list(run.progress.packages.values()), self._tools.artifacts
            )
        if stats.failed:
            names = ", ".join(p.package.name for p in run.progress.in_state("failed")[:5])
            more = f" and {stats.failed - 5} more" if stats.failed > 5 else ""
            await self._end(
                run,
                Failed(error=f"failed to build: {names}{more}", hint=f"`buildctl show {run.record.number}` tells more"),
            )
        elif stats.cancelled:
            await self._end(run, Cancelled(reason=f"{stats.cancelled} of its packages were cancelled"))
        else:
            await self._end(run, Completed())

    def _release_dir(self, run: Run) -> Path:
        return Path(self._config().daemon.state_dir) / "releases" / str(run.record.number)

    async def _end(self, run: Run, state: RunState) -> None:
        """Give a run its final state and forget it, once that is on disk."""
        if run.progress is not None:
            for package in reversed(run.progress.in_state("queued")):
                run.progress.move(package.package.name, "cancelled", reason="cancelled", message="the run ended")
        packages = [package_view(p) for p in run.progress.packages.values()] if run.progress is not None else []
        run.record = msgspec.structs.replace(
            run.record,
            completed_at=time.time(),
            stats=run.progress.stats() if run.progress is not None else Stats(),
        )
        commit = self._move(run, state, [save_packages(run.id, packages)])
        try:
            await commit.wait()
        except DatabaseError as error:
            log.error("the end of a run could not be recorded", run=run.id, error=error.message)
        del self._runs[run.id]
        del self._by_number[run.record.number]
        run.finished.set()
        log.info("run ended", run=run.id, number=run.record.number, state=name_of(state))

    # --- states -------------------------------------------------------------------------------------------

    def _move(self, run: Run, state: RunState, statements: Sequence[Statement] = ()) -> Commit:
        before = name_of(run.record.state)
        run.advance(state)
        return self._record_state(run, before=before, statements=statements)

    def _record_state(
        self, run: Run, *, before: str, data: dict[str, Any] | None = None, statements: Sequence[Statement] = ()
    ) -> Commit:
        state = run.record.state
        shown: dict[str, Any] = {"from": before, "to": name_of(state), "number": run.record.number, **(data or {})}
        shown |= {k: v for k, v in msgspec.to_builtins(state).items() if k != "name"}
        if run.progress is not None:
            shown["stats"] = msgspec.to_builtins(run.progress.stats())
        return self._journal.emit("run_state", run=run.id, data=shown, statements=[*statements, update_run(run.record)])

    def settle_package(
        self,
        run: Run,
        name: str,
        state: PackageState,
        *,
        reason: str | None,
        message: str | None,
    ) -> None:
        """Move a package that is not being built to a final state, with all that follows from it."""
        assert run.progress is not None
        ready, given_up = run.progress.move(name, state, reason=reason, message=message)
        self._report_package(run, name)
        self._report_given_up(run, given_up)
        for other in ready:
            self._pool.make_ready(run, other)
        self._after_change(run)

    def _report_given_up(self, run: Run, names: Sequence[str]) -> None:
        for name in names:
            self._report_package(run, name)

    def _report_package(self, run: Run, name: str) -> None:
        """Emit the event of a package that ended without a build of its own."""
        assert run.progress is not None
        package = run.progress.packages[name]
        kinds = {
            "success": "package_completed",
            "failed": "package_failed",
            "skipped": "package_skipped",
            "blocked": "package_blocked",
            "ignored": "package_ignored",
            "cancelled": "package_cancelled",
        }
        self._journal.emit(
            kinds[package.state],
            run=run.id,
            package=name,
            data={"state": package.state, "reason": package.reason, "message": package.message},
        )

    def _after_change(self, run: Run) -> None:
        assert run.progress is not None
        if run.progress.finished:
            run.settled.set()
            return
        if (wave := run.enter_wave()) is not None:
            self._move(run, wave)
        self._pool.dispatch()

    def _cancel_rest(self, run: Run, message: str, *, reason: str = "cancelled") -> None:
        """Cancel everything of a run that has not ended."""
        if run.progress is None:
            return
        for package in reversed(run.progress.in_state("queued")):  # dependents first: none is blocked by this
            run.progress.move(package.package.name, "cancelled", reason=reason, message=message)
            self._report_package(run, package.package.name)
        for name in list(run.builds):
            self._stop_build(run, name, message)
        self._after_change(run)

    def _stop_build(self, run: Run, name: str, message: str) -> None:
        run.builds[name].cancel("cancelled", message, grace=lambda: CANCEL_GRACE_S)

    def after_build(self, run: Run, package: PackageRun, build: BuildRecord) -> None:
        """A build has ended and is recorded: move its run on."""
        assert run.progress is not None
        name = package.package.name
        if build.reason == "interrupted":
            run.progress.move(name, "queued", reason="interrupted", message=build.message)
            return
        if build.state == "success" and build.output_id is not None:
            for other in self._runs.values():
                if not other.record.request.force and self._config().cache.strategy == "aggressive":
                    known = KnownResult(key=build.key, output_id=build.output_id, build=build.id)
                    other.results.setdefault(build.key, known)
        state = build.state
        assert state != "running"
        ready, given_up = run.progress.move(name, state, reason=build.reason, message=build.message)
        self._report_given_up(run, given_up)
        for other_name in ready:
            self._pool.make_ready(run, other_name)
        if state == "failed" and not run.record.request.keep_going:
            message = _fail_fast(name)
            run.record = msgspec.structs.replace(run.record, failed_fast=message)
            self._journal.emit(
                "run_given_up", run=run.id, data={"message": message}, statements=[update_run(run.record)]
            )
            self._cancel_rest(run, message, reason="fail_fast")
        self._after_change(run)


def _fail_fast(name: str) -> str:
    return f"{name} failed and the run is fail-fast"
