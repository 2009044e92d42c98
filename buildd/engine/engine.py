"""The engine: the one owner of all unfinished runs.

Every change of state happens in a synchronous method here, on trio's thread, and ends with the statements and
the event that record it in one transaction; the worker pool then starts what may start. Tasks (one per run,
one per build) wait and act, and come back to those methods.

Invariant: a run that was accepted ends in a final state, also across restarts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from buildd import heap
from buildd.config import Config, RetryConfig
from buildd.engine.active import ActiveBuild
from buildd.engine.assess import Assessment, Assessor
from buildd.engine.outset import Outset, Preparer
from buildd.engine.pool import WorkerPool
from buildd.engine.prepare import Places, Plan, Planner
from buildd.engine.progress import FINAL, PackageRun, Progress
from buildd.engine.recovery import close_interrupted, restore
from buildd.engine.release import collect_release
from buildd.engine.reports import Reports
from buildd.engine.rosters import Rosters, roster_entry
from buildd.engine.run import Run, note_build
from buildd.engine.targets import parse_target, without_credentials
from buildd.engine.uptodate import Lineage, Settled
from buildd.engine.views import package_view, roster_view, run_view
from buildd.errors import BuilddError, InvalidInput, NotFound, Refused, encodable
from buildd.execute.build import BuildTools
from buildd.life import End
from buildd.model import BuildRecord, PackageState, Stats, Strategy
from buildd.monitor.gate import Gate
from buildd.planner.graph import urgency, waves
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
from buildd.repos.trees import GitStore
from buildd.store.database import Commit, DatabaseError, Statement
from buildd.store.journal import Journal
from buildd.store.runs import (
    KnownResult,
    RunRecord,
    RunStore,
    insert_build,
    insert_run,
    save_places,
    update_run,
)
from buildd.threads import in_thread

log = structlog.get_logger()

LARGE_RUN = 1000
"""After a run in which more packages were looked at one by one, freed memory is given back."""
TOUCH_EVERY_S = 3600.0
"""Artifacts of packages that stay up to date are noted as used this often; the collector's order is no finer."""
RECALL_WITHIN_S = 5.0
"""How long a run that is cancelled after a restart may take to find out what it had built before."""
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
        assessor: Assessor,
        earlier_end: End,
        gate: Gate,
    ) -> None:
        """`earlier_end` is how the daemon's last life ended."""
        self._config = config
        self._journal = journal
        self._store = store
        self._planner = planner
        self._tools = tools
        self._assessor = assessor
        self._earlier_end = earlier_end
        self._runs: dict[str, Run] = {}
        self._by_number: dict[int, Run] = {}
        self._unwritten: dict[str, Run] = {}
        """Runs that have ended while the database was in trouble: only memory knows how."""
        self._taken_up = False
        """Whether all unfinished runs of earlier lives are here."""
        self._next_number = store.next_number()
        self._drained_for_good = False
        self._nursery: trio.Nursery | None = None
        self._reports = Reports(journal)
        self._rosters = Rosters()
        self._preparer = Preparer(planner, assessor, store)
        self._pool = WorkerPool(
            self, config=config, reports=self._reports, tools=tools, gate=gate, find=self._by_number.get
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
        closed = await close_interrupted(self._store, self._journal, self._tools.logs, self._earlier_end)
        for record in await self._store.unfinished():
            kept = await self._store.places(record.id)
            run = Run(
                msgspec.structs.replace(record, state=resumed(record.state)),
                places=msgspec.json.decode(kept, type=Places) if kept is not None else None,
            )
            run.resumed = True
            run.interrupted = {id: build for id, build in closed.items() if build.run == run.id}
            run.made = await self._store.outputs_of_run(run.id)
            self._admit(run)
            self._reports.state(run, before=name_of(record.state), data={"resumed": True})
            log.info("run resumed", run=run.id, number=record.number)
        self._taken_up = True

    def _admit(self, run: Run) -> None:
        assert self._nursery is not None
        self._runs[run.id] = run
        self._by_number[run.record.number] = run
        self._nursery.start_soon(self._supervise, run)

    # --- what the control plane asks ----------------------------------------------------------------------

    async def start(self, params: StartParams, requested_by: str) -> Run:
        """Accept a run; returns once it is on disk. Raises InvalidInput, Refused, DatabaseError."""
        if not params.targets:
            raise InvalidInput("no target was named", hint="write REPO[@REV][//PACKAGE]")
        if self._pool.stopping:
            raise Refused("the daemon is stopping", hint="start it again when it has stopped")
        if self._pool.draining is not None:
            raise Refused(f"the daemon takes no new runs: {self._pool.draining}", hint="`buildctl resume`")
        for text in params.targets:
            parse_target(text)
        if params.max_retries is not None and params.max_retries < 0:
            raise InvalidInput(f"max_retries = {params.max_retries} is less than none", hint="0 tries each build once")
        if params.verify and (params.force or params.force_packages or params.fetch_only):
            raise InvalidInput("a run that verifies can neither force packages nor fetch only")
        request = msgspec.structs.replace(
            params, targets=tuple(without_credentials(t) for t in params.targets), wait=0.0
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
            data={"from": None, "to": "initialized", "number": record.number, "targets": list(request.targets)},
            statements=[insert_run(record)],
            keep=False,
        )
        await commit.wait()
        run = Run(record, targets=params.targets)
        self._admit(run)
        return run

    async def plan(self, targets: Sequence[str], *, refresh: bool, worktree: bool = False) -> Plan:
        """What these targets would consider."""
        async with AsyncExitStack() as held:
            return await self._plan(targets, held, refresh=refresh, worktree=worktree)

    async def assess(
        self, targets: Sequence[str], *, refresh: bool, worktree: bool = False, strategy: Strategy | None = None
    ) -> Assessment:
        """What these targets would build now, and what decides it."""
        async with AsyncExitStack() as held:
            plan = await self._plan(targets, held, refresh=refresh, worktree=worktree)
            return await self._assessor.assess(plan, self._assessor.rules(plan, strategy))

    async def _plan(self, targets: Sequence[str], held: AsyncExitStack, *, refresh: bool, worktree: bool) -> Plan:
        parsed = [parse_target(text) for text in targets]
        if not parsed:
            raise InvalidInput("no target was named", hint="write REPO[@REV][//PACKAGE]")
        located = await self._planner.locate(parsed, refresh=refresh, held=held, worktree=worktree)
        return await self._planner.plan(parsed, located, refresh=refresh, held=held)

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
        commit = self._reports.cancel_requested(run, by)
        if run.places is None or not run.resumed:
            run.preparing.cancel()
        else:  # it soon knows again what it had built, if its sources are still there
            run.preparing.deadline = trio.current_time() + RECALL_WITHIN_S
        self._cancel_rest(run, f"cancelled by {by}")
        await commit.wait()
        return f"run {run.record.number} is being cancelled"

    async def _cancel_package(self, run: Run, name: str, by: str) -> str:
        package = run.progress.packages.get(name) if run.progress is not None else None
        if run.progress is not None and name in run.progress.settled:
            raise Refused(f"package {name} is skipped already")
        if package is None:
            raise NotFound(f"run {run.record.number} has no package {name}", hint="`buildctl show` lists them")
        if package.state in FINAL:
            raise Refused(f"package {name} is {package.state} already")
        message = f"cancelled by {by}"
        run.record = msgspec.structs.replace(run.record, cancelled={**run.record.cancelled, name: message})
        commit = self._reports.cancel_requested(run, by, package=name)
        if package.state == "running":
            self._stop_build(run, name, message)
            self._after_change(run)
            answer = f"the build of {name} is being cancelled"
        else:
            self.settle_package(run, name, "cancelled", reason="cancelled", message=message)
            answer = f"{name} is cancelled"
        await commit.wait()
        return answer

    def dispatch(self) -> None:
        """Start what may start, after the configuration or what the machine allows has changed."""
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
        for active in self._pool.active:
            active.control.cancel("interrupted", "the daemon was stopped; it will be built again", grace=grace)
        await self.wait_idle()

    async def wait_idle(self) -> None:
        """Return when no build is running."""
        await self._pool.wait_idle()

    def find(self, text: str) -> Run | None:
        """The run with this id or number that has not ended, or whose end is not on disk; None when there is none."""
        if text.isascii() and text.isdigit() and len(text) < 12:
            number = int(text)
            unwritten = (run for run in self._unwritten.values() if run.record.number == number)
            return self._by_number.get(number) or next(unwritten, None)
        return self._runs.get(text) or self._unwritten.get(text)

    def view(
        self, run: Run, *, packages: bool = True, live: bool = False, states: Collection[PackageState] = ()
    ) -> RunView:
        """What readers see of a run, with all its packages or those in some `states`."""
        shown: list[RunPackage] = []
        if packages and run.progress is not None:
            tail = self._tail if live else None
            shown = [
                package_view(p, live=tail) for p in run.progress.packages.values() if not states or p.state in states
            ]
            if not states or "skipped" in states:
                settled = map(roster_entry, run.progress.settled.values())
                shown += roster_view(settled, self._tools.artifacts.directory)
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

    @property
    def busy(self) -> int:
        """Builds that are running."""
        return self._pool.busy

    @property
    def active(self) -> Sequence[ActiveBuild]:
        """The builds that are running, in the order in which they started."""
        return self._pool.active

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken: then systemd's watchdog hears nothing more."""
        running = {active.build.id for run in self._runs.values() for active in run.builds.values()}
        if len(running) != self._pool.busy:
            raise AssertionError(f"{self._pool.busy} workers are busy, and {len(running)} builds running")

    # --- what others must know or tell --------------------------------------------------------------------

    def building(self) -> Collection[str]:
        """The ids of the builds that run."""
        return [active.build.id for active in self._pool.active]

    def in_use(self, output: str) -> bool:
        """Whether an artifact may still be needed by an unfinished run."""
        return not self._taken_up or any(run.uses(output) for run in self._runs.values())

    def needs(self, repository: str) -> bool:
        """Whether an unfinished run may want the clone of a repository, by normalised URL, not held yet."""
        runs = self._runs.values()
        return not self._taken_up or any(repository in run.will_hold(self._planner.repositories) for run in runs)

    def forget(self, outputs: Collection[str]) -> None:
        """These artifacts are gone: nothing is answered with them any more."""
        self._assessor.forget(outputs)

    def renewed(self) -> list[Statement]:
        """The database was begun anew: what it must know of unfinished runs and running builds."""
        self._assessor.forget_all()
        self._rosters.clear()
        statements: list[Statement] = []
        for run in self._runs.values():
            statements += [insert_run(run.record), update_run(run.record)]
            if run.places is not None:
                statements.append(save_places(run.id, run.places))
        return [*statements, *(insert_build(active.build, active.inputs) for active in self._pool.active)]

    async def usable(self, output: str) -> bool:
        """Verify an artifact before it is used; a damaged one is set aside."""
        return await self._assessor.usable(output)

    async def source_changed(self, run: Run, package: PackageRun) -> bool:
        """Whether a directory is not any more what the package was built from. A commit never changes."""
        assert run.plan is not None
        origin = run.plan.origin(package.package)
        if origin.directory is None:
            return False
        try:
            now = await self._planner.look_again(origin)
            tree = await in_thread(_subtree, now.store, now.tree, package.package.path)
        except (BuilddError, OSError):
            return True  # it does not hold still, or is gone
        except Exception:
            log.exception("a source cannot be compared with what was built")
            return True
        return tree != package.package.tree

    def may_retry(self, run: Run, package: PackageRun) -> bool:
        """Whether a package has another attempt after a failure that may pass."""
        most = run.record.request.max_retries
        if most is None:
            most = self._config().retry.max_retries
        name = package.package.name
        wanted = run.record.cancelled_by is None and run.record.failed_fast is None and name not in run.record.cancelled
        return wanted and package.state == "running" and run.retries[name] < most

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
                    if run.record.cancelled_by is None or run.places is not None:
                        await self._prepare(run)
                if self._pool.stopping and run.progress is None:
                    return  # it begins anew at the next start
                if run.progress is not None:
                    await run.settled.wait()
                await self._conclude(run)
        except BuilddError as error:
            await self._give_up(run, error.message, error.hint)
        except OSError as error:
            await self._give_up(run, encodable(f"{error.strerror}: {error.filename}"), "free disk space?")
        except Exception:
            log.exception("run failed by a fault of the daemon")
            await self._give_up(run, "internal error; the daemon's log has the details", "please report it")

    async def _give_up(self, run: Run, error: str, hint: str) -> None:
        """End a run that cannot go on; nobody cares why when it was cancelled."""
        if run.record.cancelled_by is not None:
            await self._end(run, Cancelled(reason=f"cancelled by {run.record.cancelled_by}"))
        else:
            await self._end(run, Failed(error=error, hint=hint))

    async def _prepare(self, run: Run) -> None:
        """Discover, plan and find out what is up to date, or go on with the sources of an earlier life."""
        run.record = msgspec.structs.replace(run.record, started_at=run.record.started_at or time.time())
        self._move(run, Discovering())
        same_sources = await self._preparer.find_sources(run)
        self._move(run, Planning())
        self._begin_building(run, await self._preparer.prepare(run, same_sources=same_sources))

    def _begin_building(self, run: Run, outset: Outset) -> None:
        plan = outset.plan
        order = run.standing.open
        among = set(order)
        graph = {name: tuple(d for d in plan.graph[name] if d in among) for name in order}
        wave, urgent = waves(graph, order), urgency(graph, order, outset.durations)
        run.progress = Progress(
            (PackageRun(plan.packages[n], plan.graph[n], wave[n], urgent[n]) for n in order), run.standing.settled
        )
        run.record = msgspec.structs.replace(run.record, waves=run.progress.waves)
        self._move(run, Building(wave=min(1, run.progress.waves), waves=run.progress.waves), outset.statements)
        in_full = self._config().daemon.log_level == "debug"
        self._reports.settled(run, run.standing.settled, in_full=in_full)
        for name, state, reason, message in restore(run, outset.earlier):
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
        if run.plan is not None and run.plan.packs:
            done = run.progress.in_state("success", "skipped")
            made = [(p.package, p.output_id) for p in done if p.output_id is not None]
            made += [(entry.package, entry.output_id) for entry in run.progress.settled.values()]
            collect = partial(collect_release, check=trio.from_thread.check_cancelled)
            await in_thread(collect, self._release_dir(run), made, self._tools.artifacts)
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
        statements = await self._rosters.record(run)
        run.record = msgspec.structs.replace(
            run.record,
            completed_at=time.time(),
            stats=run.progress.stats() if run.progress is not None else Stats(),
        )
        commit = self._move(run, state, statements)
        if run.lineage is not None and run.plan is not None and run.rules is not None and run.progress is not None:
            done = {
                n: p
                for n, p in run.progress.packages.items()
                if p.state in ("success", "skipped") and run.rules.strategy(p.package) != "none"
            }
            run.lineage.add(run.plan, *_learned(run.progress, done))
            self._touch(run, run.lineage, [p.output_id for p in done.values() if p.output_id is not None])
        try:
            await commit.wait()
        except DatabaseError as error:
            log.error("the end of a run is not recorded yet", run=run.id, error=error.message)
            self._unwritten[run.id] = run
        del self._runs[run.id]
        del self._by_number[run.record.number]
        run.finished.set()
        log.info("run ended", run=run.id, number=run.record.number, state=name_of(state))
        if run.id in self._unwritten:
            await commit.wait_done()
            del self._unwritten[run.id]
        if run.progress is not None and len(run.progress.packages) > LARGE_RUN:
            run.progress = None
            await in_thread(heap.give_back)

    def _touch(self, run: Run, lineage: Lineage, outputs: list[str]) -> None:
        """Note in the background that artifacts were used: those of a large run not at every start."""
        assert self._nursery is not None
        if lineage.touched_at < time.time() - TOUCH_EVERY_S:
            lineage.touched_at = time.time()
            outputs = [*outputs, *(entry.output_id for entry in run.standing.settled.values())]
        if outputs:
            self._nursery.start_soon(
                partial(in_thread, self._tools.artifacts.touch, outputs, limiter=self._tools.threads)
            )

    # --- states -------------------------------------------------------------------------------------------

    def _move(self, run: Run, state: RunState, statements: Sequence[Statement] = ()) -> Commit:
        before = name_of(run.record.state)
        run.advance(state)
        return self._reports.state(run, before=before, statements=statements)

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
        self._reports.ended_without_build(run, [name, *given_up])
        for other in ready:
            self._pool.make_ready(run, other)
        self._after_change(run)

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
            self._reports.ended_without_build(run, [package.package.name])
        for name in list(run.builds):
            self._stop_build(run, name, message)
        self._after_change(run)

    def _stop_build(self, run: Run, name: str, message: str) -> None:
        """A run does not want one of its builds any more; one that other runs share goes on for them."""
        assert run.progress is not None
        active = run.builds[name]
        if active.leave(run, message, grace=lambda: CANCEL_GRACE_S):
            del run.builds[name]
            _, given_up = run.progress.move(name, "cancelled", reason="cancelled", message=message)
            self._reports.ended_without_build(run, [name, *given_up])

    def after_build(self, run: Run, package: PackageRun, build: BuildRecord, *, transient: bool) -> None:
        """A build has ended and is recorded: move its run on. `transient` is a failure that may pass."""
        assert run.progress is not None
        name = package.package.name
        if build.reason == "interrupted":
            run.progress.move(name, "queued", reason="interrupted", message=build.message)
            return
        if transient and self.may_retry(run, package):
            self._try_again(run, package, build)
            return
        if build.state == "success" and build.output_id is not None:
            self._assessor.succeeded(name, build.key, build.output_id)
            known = KnownResult(key=build.key, output_id=build.output_id, build=build.id)
            for other in self._runs.values():
                other.learn(name, build.repository, known)
        state = build.state
        assert state != "running"
        ready, given_up = run.progress.move(name, state, reason=build.reason, message=build.message)
        self._reports.ended_without_build(run, given_up)
        for other_name in ready:
            self._pool.make_ready(run, other_name)
        if state == "failed" and not run.record.request.keep_going:
            message = _fail_fast(name)
            run.record = msgspec.structs.replace(run.record, failed_fast=message)
            self._reports.given_up(run, message)
            self._cancel_rest(run, message, reason="fail_fast")
        self._after_change(run)

    def _try_again(self, run: Run, package: PackageRun, build: BuildRecord) -> None:
        """Queue a package for another attempt, after a delay that grows with each."""
        assert run.progress is not None
        name, retry = package.package.name, self._config().retry
        run.retries[name] += 1
        delay = _delay(retry, run.retries[name])
        message = f"attempt {build.attempt + 1} follows in {delay:g} s: {build.reason}: {build.message}"
        run.progress.move(name, "queued", reason=build.reason, message=message)
        self._reports.retry(run, build, delay)
        self._pool.retry_later(run, name, delay)


def _delay(retry: RetryConfig, attempt: int) -> float:
    """Seconds before the next attempt after `attempt` ones were to be tried again."""
    try:
        return min(float(retry.max_delay), float(retry.delay) * retry.backoff ** (attempt - 1))
    except OverflowError:
        return float(retry.max_delay)


def _subtree(store: str, tree: str, path: str) -> str:
    """The id of a directory in a tree. Blocks. Raises BuilddError."""
    with GitStore(Path(store)) as git:
        return git.subtree(tree, path)


def _fail_fast(name: str) -> str:
    return f"{name} failed and the run is fail-fast"


def _learned(progress: Progress, done: dict[str, PackageRun]) -> tuple[dict[str, Settled], dict[str, dict[str, str]]]:
    """What a run found out about packages for the next one: by what they are up to date, and for which dependencies."""
    fresh: dict[str, Settled] = {}
    dependencies: dict[str, dict[str, str]] = {}
    for name, p in done.items():
        build = p.build_id or p.answered_by
        if p.output_id is not None and p.parts is not None and build is not None:
            fresh[name] = Settled(p.package, p.key, progress.closure(name), p.output_id, build)
            dependencies[name] = p.parts.dependencies
    return fresh, dependencies
