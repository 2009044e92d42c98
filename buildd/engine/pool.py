"""The workers: which package is built next, and the task of each build.

All runs share one pool. A package comes in when its dependencies are done (`make_ready`); it is answered with an
earlier result, or waits in the ready queue for a worker.

Invariants: never more builds than `max_concurrent_builds`; a build is recorded as running before its first
phase, and as ended before its worker is free; trouble with the database never fails a build (D4).
"""

from __future__ import annotations

import platform
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec
import structlog
import trio

from buildd.config import Config
from buildd.engine.progress import PackageRun
from buildd.engine.run import Run, note_build
from buildd.execute.build import BuildControl, BuildSpec, BuildTools, Outcome, run_build
from buildd.execute.sandbox import Output
from buildd.model import BuildRecord, PackageState
from buildd.planner.keys import key_of, key_parts
from buildd.planner.queue import Ready, ReadyQueue
from buildd.store.artifacts import Receipt
from buildd.store.database import Commit, DatabaseError
from buildd.store.journal import Journal
from buildd.store.runs import insert_build, update_build

log = structlog.get_logger()

_SKIPPED = "CRC match, skipped"


class Owner(Protocol):
    """Who owns the runs, and hears what became of their packages."""

    def settle_package(
        self, run: Run, name: str, state: PackageState, *, reason: str | None, message: str | None
    ) -> None: ...

    def after_build(self, run: Run, package: PackageRun, build: BuildRecord) -> None: ...


class WorkerPool:
    def __init__(
        self,
        owner: Owner,
        *,
        config: Callable[[], Config],
        journal: Journal,
        tools: BuildTools,
        environment: Callable[[], str],
        find: Callable[[int], Run | None],
    ) -> None:
        """`find` gives the unfinished run with a number; `environment` the id of what builds find around them."""
        self._owner = owner
        self._config = config
        self._journal = journal
        self._tools = tools
        self._environment = environment
        self._find = find
        self._fresh: deque[Ready] = deque()
        """Packages whose dependencies are done, not looked at yet."""
        self._queue = ReadyQueue()
        self._dispatching = False
        self._idle = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.busy = 0
        self.draining: str | None = None
        """Why no builds are started; None when they are."""
        self.stopping = False
        self.finished: Counter[str] = Counter()
        """Ended builds by state."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the builds' nursery until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def wait_idle(self) -> None:
        """Return when no build is running."""
        while self.busy:
            self._idle = trio.Event()
            await self._idle.wait()

    def make_ready(self, run: Run, name: str) -> None:
        """All dependencies are done: use an earlier result, or queue the build."""
        assert run.progress is not None
        package = run.progress.packages[name]
        run.progress.gather_outputs(name)
        package.parts = key_parts(
            package.package,
            environment=self._environment(),
            architecture=platform.machine(),
            dependencies=package.closure,
        )
        package.key = key_of(package.parts)
        self._fresh.append(Ready(run.record.number, name))

    def dispatch(self) -> None:
        """Answer ready packages with earlier results, and start the most urgent others while workers are free.

        What that changes may call for another round; it is made here and not by recursion, since a chain of
        unchanged packages can be as long as the plan.
        """
        if self._dispatching or self.stopping or self._nursery is None:
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
        return self.draining is None and self.busy < self._config().workers.max_concurrent_builds

    def _waiting(self, ready: Ready) -> tuple[Run, PackageRun] | None:
        """The package, unless it was cancelled or blocked since it became ready."""
        run = self._find(ready.run)
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
        if self._take_over(run, package):
            return True
        known = run.results.get(package.key)
        if known is None or run.record.request.fetch_only or not self._tools.artifacts.exists(known.output_id):
            return False
        name, version = package.package.name, package.package.version
        package.output_id = known.output_id
        package.artifact = str(self._tools.artifacts.directory(known.output_id))
        log.info(f"{name}@{version} ({_SKIPPED})", run=run.id, key=package.key)
        self._owner.settle_package(run, name, "skipped", reason="unchanged", message=_SKIPPED)
        return True

    def _take_over(self, run: Run, package: PackageRun) -> bool:
        """Answer a package with its success in an earlier life of the daemon."""
        build = run.earlier.get(package.package.name)
        if build is None or build.key != package.key:
            return False
        if build.output_id is not None and not self._tools.artifacts.exists(build.output_id):
            return False
        note_build(package, build)
        self._owner.settle_package(run, package.package.name, "success", reason=None, message=None)
        return True

    def _start_build(self, run: Run, package: PackageRun) -> None:
        assert run.progress is not None
        assert self._nursery is not None
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
        self.busy += 1
        self._nursery.start_soon(self._build, run, package, build, control)

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
        self.finished[build.state] += 1
        commit = self._report_build(run, package, build)
        await self._recorded(commit)
        del run.builds[package.package.name]
        self.busy -= 1
        if self.busy == 0:
            self._idle.set()
        note_build(package, build)
        self._owner.after_build(run, package, build)
        self.dispatch()

    async def _write_receipt(self, build: BuildRecord, package: PackageRun) -> BuildRecord:
        """Leave the receipt beside the artifact; a build without one has failed."""
        assert build.output_id is not None
        assert package.parts is not None
        receipt = Receipt(repository=package.package.repository, build=build, key_parts=package.parts)
        try:
            await trio.to_thread.run_sync(
                self._tools.artifacts.add_receipt, build.output_id, receipt, limiter=self._tools.threads
            )
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
