"""The engine: the one owner of all unfinished runs.

Every change of state happens in a synchronous method here, on trio's thread, and ends with the statements and
the event that record it in one transaction; `_dispatch` then starts what may start. Tasks (one per run, one
per build) wait and act, and come back to those methods.

Invariants: never more builds than `max_concurrent_builds`; a package is built only when all it depends on has
an output; a run that was accepted ends in a final state, also across restarts.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from buildd.config import Config
from buildd.engine.prepare import Plan, Planner
from buildd.engine.progress import FINAL, PackageRun, Progress
from buildd.engine.release import collect_release
from buildd.engine.run import Run
from buildd.engine.targets import parse_target
from buildd.engine.views import package_view, run_view
from buildd.errors import BuilddError, InvalidInput, NotFound, Refused
from buildd.execute.build import BuildControl, BuildSpec, BuildTools, Outcome, run_build
from buildd.execute.sandbox import Output
from buildd.model import BuildRecord, Stats
from buildd.planner.graph import topological_order, urgency, waves
from buildd.planner.keys import key_of, key_parts
from buildd.planner.queue import Ready, ReadyQueue
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
from buildd.store.artifacts import Receipt
from buildd.store.database import Commit, DatabaseError, Statement
from buildd.store.journal import Journal
from buildd.store.runs import (
    KnownResult,
    RunRecord,
    RunRequest,
    RunStore,
    insert_build,
    insert_run,
    save_packages,
    save_plan,
    update_build,
    update_run,
)

log = structlog.get_logger()

KILLER_ATTEMPTS = 3
"""A package during whose builds the daemon died this often is set aside."""
CANCEL_GRACE_S = 1.0
"""Seconds between SIGTERM and SIGKILL when a person cancels: they are watching."""
_DIED = "the daemon was killed while this was built"
_SKIPPED = "CRC match, skipped"


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
        self._environment = environment
        self._runs: dict[str, Run] = {}
        self._by_number: dict[int, Run] = {}
        self._queue = ReadyQueue()
        self._next_number = store.next_number()
        self._fresh: deque[Ready] = deque()
        """Packages whose dependencies are done, not looked at yet."""
        self._dispatching = False
        self._busy = 0
        self._draining: str | None = None
        self._stopping = False
        self._finished_builds: Counter[str] = Counter()
        self._idle = trio.Event()
        self._run_nursery: trio.Nursery | None = None
        self._build_nursery: trio.Nursery | None = None

    # --- life ---------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise runs, and below them builds, until cancelled; takes up unfinished runs first."""
        async with trio.open_nursery() as run_nursery:
            async with trio.open_nursery() as build_nursery:
                self._run_nursery, self._build_nursery = run_nursery, build_nursery
                await self._take_up()
                task_status.started()
                await trio.sleep_forever()

    async def _take_up(self) -> None:
        """Close the builds of an earlier life and go on with its runs."""
        for build in await self._store.running_builds():
            closed = msgspec.structs.replace(
                build, state="failed", reason="interrupted", message=_DIED, completed_at=time.time()
            )
            self._journal.emit(
                "package_interrupted",
                run=build.run,
                build=build.id,
                package=build.package,
                data={"message": _DIED},
                statements=[update_build(closed)],
            )
            self._append_log(build.id, f"failed: interrupted: {_DIED}")
        for record in await self._store.unfinished():
            run = Run(
                msgspec.structs.replace(record, state=resumed(record.state)), plan=await self._store.plan(record.id)
            )
            self._admit(run)
            self._record_state(run, before=name_of(record.state), data={"resumed": True})
            log.info("run resumed", run=run.id, number=record.number)

    def _admit(self, run: Run) -> None:
        assert self._run_nursery is not None
        self._runs[run.id] = run
        self._by_number[run.record.number] = run
        self._run_nursery.start_soon(self._supervise, run)

    # --- what the control plane asks ----------------------------------------------------------------------

    async def start(self, params: StartParams, requested_by: str) -> RunRecord:
        """Accept a run; returns once it is on disk. Raises InvalidInput, Refused, DatabaseError."""
        if not params.targets:
            raise InvalidInput("no target was named", hint="write REPO[@REV][//PACKAGE]")
        if self._stopping:
            raise Refused("the daemon is stopping", hint="start it again when it has stopped")
        if self._draining is not None:
            raise Refused(f"the daemon takes no new runs: {self._draining}", hint="`buildctl resume`")
        for text in params.targets:
            parse_target(text)
        request = RunRequest(
            targets=params.targets,
            keep_going=params.keep_going,
            force=params.force,
            fetch_only=params.fetch_only,
            refresh=params.refresh,
            priority=params.priority,
        )
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
            data={"from": None, "to": "initialized", "number": record.number, "targets": list(params.targets)},
            statements=[insert_run(record)],
        )
        await commit.wait()
        self._admit(Run(record))
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

    def cancel(self, run: Run, package: str | None, by: str) -> str:
        """Cancel a run or one of its packages; says what was done. Raises NotFound, Refused."""
        if run.finished.is_set() or name_of(run.record.state) in ("completed", "failed", "cancelled"):
            raise Refused(f"run {run.record.number} has already ended", hint="`buildctl show` tells how")
        if package is not None:
            return self._cancel_package(run, package, f"cancelled by {by}")
        if run.record.cancelled_by is None:
            run.record = msgspec.structs.replace(run.record, cancelled_by=by)
            self._journal.emit("run_cancel_requested", run=run.id, data={"by": by}, statements=[update_run(run.record)])
        run.preparing.cancel()
        self._cancel_rest(run, f"cancelled by {by}")
        return f"run {run.record.number} is being cancelled"

    def _cancel_package(self, run: Run, name: str, message: str) -> str:
        package = run.progress.packages.get(name) if run.progress is not None else None
        if package is None:
            raise NotFound(f"run {run.record.number} has no package {name}", hint="`buildctl show` lists them")
        if package.state in FINAL:
            raise Refused(f"package {name} is {package.state} already")
        if package.state == "running":
            self._stop_build(run, name, message)
            return f"the build of {name} is being cancelled"
        self._settle_package(run, name, "cancelled", reason="cancelled", message=message)
        return f"{name} is cancelled"

    def drain(self, reason: str) -> None:
        """Start no more builds and accept no more runs."""
        if self._draining is None:
            self._journal.emit("daemon_draining", data={"reason": reason})
        self._draining = reason

    def resume(self) -> None:
        if self._draining is not None:
            self._journal.emit("daemon_resumed")
        self._draining = None
        self._dispatch()

    async def stop(self, grace: Callable[[], float]) -> None:
        """Start nothing more, interrupt what runs, and return when nothing does. Queued work stays on disk."""
        self._stopping = True
        for run in self._runs.values():
            run.preparing.cancel()
            for control in run.builds.values():
                control.cancel("interrupted", "the daemon was stopped; it will be built again", grace=grace)
        await self.wait_idle()

    async def wait_idle(self) -> None:
        """Return when no build is running."""
        while self._busy:
            self._idle = trio.Event()
            await self._idle.wait()

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

    def unfinished(self) -> list[Run]:
        return [run for _, run in sorted(self._by_number.items())]

    def _tail(self, build: str) -> tuple[str, int]:
        return self._tools.logs.last_line(build), self._tools.logs.size(build)

    @property
    def statistics(self) -> dict[str, int]:
        """Counts for the daemon's status: busy, queued, success, failed, active."""
        queued = sum(len(r.progress.in_state("queued")) for r in self._runs.values() if r.progress is not None)
        return {
            "busy": self._busy,
            "queued": queued,
            "success": self._finished_builds["success"],
            "failed": self._finished_builds["failed"],
            "active": len(self._runs),
        }

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken: then systemd's watchdog hears nothing more."""
        running = sum(len(run.builds) for run in self._runs.values())
        if running != self._busy:
            raise AssertionError(f"{self._busy} workers are busy, and {running} builds running")

    @property
    def draining(self) -> str | None:
        return self._draining

    @property
    def stopping(self) -> bool:
        return self._stopping

    # --- one run ------------------------------------------------------------------------------------------

    async def _supervise(self, run: Run) -> None:
        """The task of a run: prepare, let the packages be built, conclude."""
        structlog.contextvars.bind_contextvars(run=run.id)
        try:
            async with run.held:
                with run.preparing:
                    if run.record.cancelled_by is None:
                        await self._prepare(run)
                if self._stopping and run.progress is None:
                    return  # it begins anew at the next start
                if run.progress is not None:
                    await run.settled.wait()
                await self._conclude(run)
        except BuilddError as error:
            await self._end(run, Failed(error=error.message, hint=error.hint))
        except OSError as error:
            await self._end(run, Failed(error=f"{error.strerror}: {error.filename}", hint="free disk space?"))
        except Exception:
            log.exception("run failed by a fault of the daemon")
            await self._end(
                run, Failed(error="internal error; the daemon's log has the details", hint="please report it")
            )

    async def _prepare(self, run: Run) -> None:
        """Discover and plan, or go on with the plan of an earlier life."""
        request = run.record.request
        targets = [parse_target(text) for text in request.targets]
        run.record = msgspec.structs.replace(run.record, started_at=run.record.started_at or time.time())
        self._move(run, Discovering())
        statements: list[Statement] = []
        if run.plan is None:
            located = await self._planner.locate(targets, refresh=request.refresh, held=run.held)
            self._move(run, Planning())
            plan = await self._planner.plan(targets, located, refresh=request.refresh, held=run.held)
            statements.append(save_plan(run.id, plan.packages))
        else:
            self._move(run, Planning())
            plan = Plan(packages=tuple(run.plan))
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
        self._restore(run, earlier)
        for name in order:
            package = run.progress.packages[name]
            if package.state == "queued" and package.package.ignore:
                self._settle_package(run, name, "ignored", reason="ignored", message=package.package.ignore)
        for name in run.progress.ready():
            self._make_ready(run, name)
        if run.record.cancelled_by is not None:
            self._cancel_rest(run, f"cancelled by {run.record.cancelled_by}")
        self._after_change(run)

    def _restore(self, run: Run, earlier: Sequence[BuildRecord]) -> None:
        """Put the results of an earlier life of the daemon into the progress, dependencies first."""
        assert run.progress is not None
        last = {build.package: build for build in earlier}
        run.attempts.update(build.package for build in earlier)
        died = Counter(build.package for build in earlier if build.message == _DIED)
        for name, package in run.progress.packages.items():
            build = last.get(name)
            if build is None or package.state != "queued":
                continue
            if build.state == "success" and (build.output_id is None or self._tools.artifacts.exists(build.output_id)):
                self._note_build(package, build)
                run.progress.move(name, "success")
            elif build.reason == "interrupted":
                if died[name] >= KILLER_ATTEMPTS:
                    message = f"set aside: the daemon died {died[name]} times while this was built"
                    self._settle_package(run, name, "failed", reason="interrupted", message=message)
            elif build.state in ("failed", "cancelled"):
                self._note_build(package, build)
                run.progress.move(name, build.state, reason=build.reason, message=build.message)

    def _note_build(self, package: PackageRun, build: BuildRecord) -> None:
        package.build_id = build.id
        package.output_id = build.output_id
        package.artifact = build.artifact
        package.log_bytes = build.log_bytes
        package.started_at = build.started_at
        package.duration_s = build.completed_at - build.started_at if build.completed_at is not None else None
        package.phase = build.phases[-1].name if build.phases else None

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
                run, Failed(error=f"failed to build: {names}{more}", hint=f"`buildctl show {run.record.number}`")
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
            for package in run.progress.in_state("queued", "running"):
                if package.state == "queued":
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

    def _settle_package(
        self, run: Run, name: str, state: Any, *, reason: str | None = None, message: str | None = None
    ) -> None:
        """Move a package that is not being built to a final state, with all that follows from it."""
        assert run.progress is not None
        ready, blocked = run.progress.move(name, state, reason=reason, message=message)
        self._journal.emit(f"package_{state}", run=run.id, package=name, data={"reason": reason, "message": message})
        self._report_blocked(run, blocked)
        for other in ready:
            self._make_ready(run, other)
        self._after_change(run)

    def _report_blocked(self, run: Run, blocked: Sequence[str]) -> None:
        assert run.progress is not None
        for name in blocked:
            self._journal.emit(
                "package_blocked", run=run.id, package=name, data={"message": run.progress.packages[name].message}
            )

    def _after_change(self, run: Run) -> None:
        assert run.progress is not None
        if run.progress.finished:
            run.settled.set()
            return
        if (wave := run.enter_wave()) is not None:
            self._move(run, wave)
        self._dispatch()

    def _cancel_rest(self, run: Run, message: str, *, reason: str = "cancelled") -> None:
        """Cancel everything of a run that has not ended."""
        if run.progress is None:
            return
        for package in run.progress.in_state("queued"):
            if package.state == "queued":  # not blocked by one before it
                run.progress.move(package.package.name, "cancelled", reason=reason, message=message)
                self._journal.emit(
                    "package_cancelled", run=run.id, package=package.package.name, data={"message": message}
                )
        for name in list(run.builds):
            self._stop_build(run, name, message)
        self._after_change(run)

    def _stop_build(self, run: Run, name: str, message: str) -> None:
        run.builds[name].cancel("cancelled", message, grace=lambda: CANCEL_GRACE_S)

    # --- building -----------------------------------------------------------------------------------------

    def _make_ready(self, run: Run, name: str) -> None:
        """All dependencies are done: use an earlier result, or queue the build."""
        assert run.progress is not None
        package = run.progress.packages[name]
        for dependency in package.depends:
            other = run.progress.packages[dependency]
            package.closure |= other.closure
            if other.output_id is not None:
                package.closure[dependency] = other.output_id
        package.parts = key_parts(
            package.package,
            environment=self._environment(),
            architecture=platform.machine(),
            dependencies=package.closure,
        )
        package.key = key_of(package.parts)
        self._fresh.append(Ready(run.record.number, name))

    def _dispatch(self) -> None:
        """Answer ready packages with earlier results, and start the most urgent others while workers are free.

        What that changes may call for another round; it is made here and not by recursion, since a chain of
        unchanged packages can be as long as the plan.
        """
        if self._dispatching or self._stopping or self._build_nursery is None:
            return
        self._dispatching = True
        try:
            while self._fresh or self._may_start():
                while self._fresh:
                    self._sort_in(self._fresh.popleft())
                if not self._may_start():
                    continue
                ready = self._queue.pop()
                if ready is None:
                    return
                waiting = self._waiting(ready)
                if waiting is not None and not self._skip(*waiting):
                    self._start_build(*waiting)
        finally:
            self._dispatching = False

    def _may_start(self) -> bool:
        return self._draining is None and self._busy < self._config().workers.max_concurrent_builds

    def _waiting(self, ready: Ready) -> tuple[Run, PackageRun] | None:
        """The package, unless it was cancelled or blocked since it became ready."""
        run = self._by_number.get(ready.run)
        if run is None or run.progress is None:
            return None
        package = run.progress.packages[ready.package]
        return (run, package) if package.state == "queued" else None

    def _sort_in(self, ready: Ready) -> None:
        waiting = self._waiting(ready)
        if waiting is not None and not self._skip(*waiting):
            run, package = waiting
            self._queue.push(ready, urgency=package.urgency, priority=run.record.request.priority)

    def _skip(self, run: Run, package: PackageRun) -> bool:
        """Answer a package with an earlier result, if there is one and its artifact is there."""
        known = run.results.get(package.key)
        if known is None or run.record.request.fetch_only or not self._tools.artifacts.exists(known.output_id):
            return False
        name, version = package.package.name, package.package.version
        package.output_id = known.output_id
        package.artifact = str(self._tools.artifacts.directory(known.output_id))
        log.info(f"{name}@{version} ({_SKIPPED})", run=run.id, key=package.key)
        self._settle_package(run, name, "skipped", reason="unchanged", message=_SKIPPED)
        return True

    def _start_build(self, run: Run, package: PackageRun) -> None:
        assert run.progress is not None
        assert self._build_nursery is not None
        name = package.package.name
        run.attempts[name] += 1
        build = BuildRecord(
            id=str(uuid.uuid4()),
            run=run.id,
            package=name,
            version=package.package.version,
            state="running",
            started_at=time.time(),
            attempt=run.attempts[name],
            key=package.key,
        )
        build = msgspec.structs.replace(build, log=str(self._tools.logs.path(build.id)))
        run.progress.move(name, "running")
        package.build_id, package.started_at = build.id, build.started_at
        control = BuildControl()
        run.builds[name] = control
        self._busy += 1
        self._build_nursery.start_soon(self._build, run, package, build, control)

    async def _build(self, run: Run, package: PackageRun, build: BuildRecord, control: BuildControl) -> None:
        """The task of a build: record it, run it, record how it ended."""
        name = package.package.name
        structlog.contextvars.bind_contextvars(run=run.id, build=build.id, package=name)
        commit = self._journal.emit(
            "package_started",
            run=run.id,
            build=build.id,
            package=name,
            data={"version": build.version, "attempt": build.attempt},
            statements=[insert_build(build, package.package.repository)],
        )
        try:
            await self._recorded(commit)
            outcome = await run_build(
                BuildSpec(
                    id=build.id,
                    package=package.package,
                    key=build.key,
                    dependencies=self._outputs(package),
                    fetch_only=run.record.request.fetch_only,
                ),
                self._tools,
                control,
                partial(self._enter_phase, run, package),
            )
        except Exception:
            log.exception("build failed by a fault of the daemon")
            outcome = Outcome(
                state="failed", reason="sandbox_failed", message="internal error; the daemon's log has the details"
            )
        await self._close_build(run, package, build, outcome)

    def _outputs(self, package: PackageRun) -> tuple[Output, ...]:
        artifacts = self._tools.artifacts
        return tuple(
            Output(name=name, output_id=output, tree=artifacts.tree(output))
            for name, output in sorted(package.closure.items())
        )

    def _enter_phase(self, run: Run, package: PackageRun, phase: str) -> None:
        package.phase = phase
        self._journal.emit(
            "package_phase",
            run=run.id,
            build=package.build_id,
            package=package.package.name,
            data={"phase": phase},
        )

    async def _close_build(self, run: Run, package: PackageRun, build: BuildRecord, outcome: Outcome) -> None:
        manifest = outcome.manifest
        output = manifest.output_id if manifest is not None else None
        build = msgspec.structs.replace(
            build,
            state=outcome.state,
            completed_at=time.time(),
            reason=outcome.reason,
            message=outcome.message,
            exit_status=outcome.exit_status,
            phases=outcome.phases,
            resources=outcome.resources,
            output_id=output,
            artifact=str(self._tools.artifacts.directory(output)) if output is not None else None,
            log_bytes=outcome.log_bytes,
        )
        if output is not None:
            build = await self._write_receipt(build, package)
        self._finished_builds[build.state] += 1
        commit = self._report_build(run, package, build)
        await self._recorded(commit)
        self._after_build(run, package, build)

    async def _write_receipt(self, build: BuildRecord, package: PackageRun) -> BuildRecord:
        """Leave the receipt beside the artifact; a build without one has failed."""
        assert build.output_id is not None
        assert package.parts is not None
        receipt = Receipt(repository=package.package.repository, build=build, key_parts=package.parts)
        try:
            await trio.to_thread.run_sync(self._tools.artifacts.add_receipt, build.output_id, receipt)
        except OSError as error:
            return msgspec.structs.replace(
                build,
                state="failed",
                reason="disk_full",
                message=f"the artifact's receipt could not be written: {error}",
                output_id=None,
                artifact=None,
            )
        return build

    def _report_build(self, run: Run, package: PackageRun, build: BuildRecord) -> Commit:
        kinds = {"success": "package_completed", "failed": "package_failed", "cancelled": "package_cancelled"}
        kind = "package_interrupted" if build.reason == "interrupted" else kinds[build.state]
        duration = (build.completed_at or build.started_at) - build.started_at
        return self._journal.emit(
            kind,
            run=run.id,
            build=build.id,
            package=package.package.name,
            data={
                "state": build.state,
                "reason": build.reason,
                "message": build.message,
                "duration_s": round(duration, 3),
                "output_id": build.output_id,
            },
            statements=[update_build(build)],
        )

    async def _recorded(self, commit: Commit) -> None:
        """Wait for a record; trouble with the database never fails a build (D4)."""
        try:
            await commit.wait()
        except DatabaseError as error:
            log.error("a record could not be written; the build goes on", error=error.message)

    def _after_build(self, run: Run, package: PackageRun, build: BuildRecord) -> None:
        """A build has ended and is recorded: free its worker and move the run on."""
        assert run.progress is not None
        name = package.package.name
        del run.builds[name]
        self._busy -= 1
        if self._busy == 0:
            self._idle.set()
        self._note_build(package, build)
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
        ready, blocked = run.progress.move(name, state, reason=build.reason, message=build.message)
        self._report_blocked(run, blocked)
        for other_name in ready:
            self._make_ready(run, other_name)
        if state == "failed" and not run.record.request.keep_going:
            self._cancel_rest(run, f"{name} failed and the run is fail-fast", reason="fail_fast")
        self._after_change(run)
        self._dispatch()

    def _append_log(self, build: str, text: str) -> None:
        try:
            with self._tools.logs.path(build).open("ab") as file:
                file.write(f"==> buildd: {text}\n".encode())
        except OSError as error:
            log.warning("cannot write to the log of a build", build=build, error=str(error))
