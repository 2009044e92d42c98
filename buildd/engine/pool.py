"""The workers: which package is built next, and the task of each build.

All runs share one pool. A package comes in when its dependencies are done (`make_ready`); it is answered with an
earlier result, joins the build of another run that wants the same key, or waits in the ready queue for a worker.

Invariants: never more builds than `max_concurrent_builds`, and none is started that the gate does not admit; a build
is recorded as running before its first phase, and as ended before anything that follows from its end; an artifact that
a build may use was verified in this life of the daemon; trouble with the database never fails a build (D4).
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import Protocol

import msgspec
import structlog
import trio

from buildd import descriptors
from buildd.config import Config
from buildd.engine.active import ActiveBuild
from buildd.engine.assess import NAMED_OUTPUTS
from buildd.engine.progress import SKIPPED, PackageRun
from buildd.engine.reports import Reports
from buildd.engine.run import Run, note_build
from buildd.errors import BuilddError
from buildd.execute.build import CLOSE_WITHIN_S, BuildSpec, BuildTools, Outcome, run_build
from buildd.execute.sandbox import Output
from buildd.model import BuildRecord, PackageState
from buildd.monitor.gate import Gate
from buildd.planner.keys import Inputs, key_of
from buildd.planner.queue import Ready, ReadyQueue
from buildd.scope import Scope
from buildd.store.artifacts import Manifest, Receipt
from buildd.store.database import Commit, DatabaseError, Statement
from buildd.store.listing import differing_files
from buildd.store.runs import KnownResult, index_package, insert_build, update_build
from buildd.threads import in_thread

log = structlog.get_logger()

_DESCRIPTORS = 6
"""More than a build holds while its phases run: its log, its process, and the pipes of its output and its reports."""
_SOURCE_CHANGED = "its source changed while it was built; the next run builds it again"


class Owner(Protocol):
    """Who owns the runs, and hears what became of their packages."""

    def settle_package(
        self, run: Run, name: str, state: PackageState, *, reason: str | None, message: str | None
    ) -> None: ...

    def after_build(self, run: Run, package: PackageRun, build: BuildRecord, *, transient: bool) -> None: ...

    def may_retry(self, run: Run, package: PackageRun) -> bool: ...

    async def usable(self, output: str) -> bool: ...

    async def source_changed(self, run: Run, package: PackageRun) -> bool: ...


class WorkerPool:
    def __init__(
        self,
        owner: Owner,
        *,
        config: Callable[[], Config],
        reports: Reports,
        tools: BuildTools,
        gate: Gate,
        find: Callable[[int], Run | None],
    ) -> None:
        """`find` gives the unfinished run with a number."""
        self._owner = owner
        self._config = config
        self._reports = reports
        self._tools = tools
        self._gate = gate
        self._elsewhere = msgspec.structs.replace(tools, sandbox=tools.sandbox.elsewhere())
        """For builds that verify earlier ones: they see other paths."""
        self._find = find
        self._fresh: deque[Ready] = deque()
        """Packages whose dependencies are done, not looked at yet."""
        self._queue = ReadyQueue()
        self._active: dict[str, ActiveBuild] = {}
        """Running builds by id."""
        self._by_key: dict[str, ActiveBuild] = {}
        """Those of them that other runs may share."""
        self._tree = lru_cache(maxsize=10_000)(tools.artifacts.tree)
        self._order = count()
        """In which builds were dispatched: the most urgent ones first."""
        self._dispatching = False
        self._holding = False
        """Whether builds wait for file descriptors."""
        self._idle = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.draining: str | None = None
        """Who asked for no more builds to be started, and why; None when nobody has."""
        self.stopping = False
        self.finished: Counter[str] = Counter()
        """Ended builds by state."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the builds' nursery until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_WITHIN_S):
                await in_thread(self._tools.work.close, abandon_on_cancel=True)

    @property
    def busy(self) -> int:
        """Builds that are running."""
        return len(self._active)

    @property
    def active(self) -> Sequence[ActiveBuild]:
        return list(self._active.values())

    async def wait_idle(self) -> None:
        """Return when no build is running."""
        while self.busy:
            self._idle = trio.Event()
            await self._idle.wait()

    # --- packages that are ready --------------------------------------------------------------------------

    def make_ready(self, run: Run, name: str) -> None:
        """All dependencies are done: use an earlier result, or queue the build."""
        assert run.progress is not None
        assert run.rules is not None
        package = run.progress.packages[name]
        package.parts = run.rules.parts(package.package, run.progress.closures(name))
        package.key = key_of(package.parts)
        self._fresh.append(Ready(run.record.number, name))

    def retry_later(self, run: Run, name: str, delay: float) -> None:
        """Queue a package again after so many seconds, unless it is cancelled before."""
        assert self._nursery is not None
        self._nursery.start_soon(self._retry, run, name, delay)

    async def _retry(self, run: Run, name: str, delay: float) -> None:
        await trio.sleep(delay)
        self._fresh.append(Ready(run.record.number, name))
        self.dispatch()

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
                if waiting is not None and not self._answer(*waiting):
                    self._start_build(*waiting)
        finally:
            self._dispatching = False

    def _may_start(self) -> bool:
        if self.draining is not None:
            return False
        if not self._gate.admits(self.busy, self._config().workers.max_concurrent_builds):
            return False
        if not descriptors.scarce(self._promised()):
            return True
        if not self._holding:
            self._holding = True
            assert self._nursery is not None
            self._nursery.start_soon(self._go_on_with_descriptors)
        return False

    def _promised(self) -> int:
        """Descriptors that the next build takes, with those that have not come to their first phase."""
        return _DESCRIPTORS * (1 + sum(active.phase is None for active in self._active.values()))

    async def _go_on_with_descriptors(self) -> None:
        """Start builds again when there are file descriptors for them."""
        await descriptors.wait_for_some(self._promised)
        self._holding = False
        self.dispatch()

    def _waiting(self, ready: Ready) -> tuple[Run, PackageRun] | None:
        """The package, unless it was cancelled or blocked since it became ready, or is being looked at."""
        run = self._find(ready.run)
        if run is None or run.progress is None:
            return None
        package = run.progress.packages[ready.package]
        return (run, package) if package.state == "queued" and not package.checking else None

    def _sort_in(self, ready: Ready) -> None:
        waiting = self._waiting(ready)
        if waiting is not None and not self._answer(*waiting):
            run, package = waiting
            self._queue.push(ready, urgency=package.urgency, priority=run.record.request.priority)

    # --- answers without a build of one's own -------------------------------------------------------------

    def _answer(self, run: Run, package: PackageRun) -> bool:
        """Whether a package needs no build of its own: it has a result, or shares a build that is running."""
        found = self._earlier_success(run, package) or self._known(run, package)
        if found is None:
            return self._join(run, package)
        assert run.progress is not None
        assert self._nursery is not None
        if run.progress.needed(package.package.name):  # its artifact is about to be used
            package.checking = True
            self._nursery.start_soon(self._check, run, package, found)
        else:
            self._accept(run, package, found)
        return True

    def _earlier_success(self, run: Run, package: PackageRun) -> BuildRecord | None:
        """The package's success in an earlier life of the daemon, if it still answers it."""
        build = run.earlier.get(package.package.name)
        if build is None or build.key != package.key:
            return None
        there = build.output_id is None or self._tools.artifacts.exists(build.output_id)
        return build if there else None

    def _known(self, run: Run, package: PackageRun) -> KnownResult | None:
        known = run.results.get(package.key)
        if known is None or run.record.request.fetch_only or run.forces(package.package.name):
            return None
        return known if self._tools.artifacts.exists(known.output_id) else None

    async def _check(self, run: Run, package: PackageRun, found: BuildRecord | KnownResult) -> None:
        """Use an earlier result if its artifact is sound; if not it is gone now, and the package is built."""
        good = found.output_id is None or await self._owner.usable(found.output_id)
        package.checking = False
        if not good:  # where a damaged artifact cannot be set aside, this would be found again and again
            if isinstance(found, BuildRecord):
                run.earlier.pop(package.package.name, None)
            else:
                run.results.pop(found.key, None)
        if good and package.state == "queued" and not self.stopping:
            self._accept(run, package, found)
        else:
            self._fresh.append(Ready(run.record.number, package.package.name))
        self.dispatch()

    def _accept(self, run: Run, package: PackageRun, found: BuildRecord | KnownResult) -> None:
        name = package.package.name
        if isinstance(found, BuildRecord):
            note_build(package, found)
            self._owner.settle_package(run, name, "success", reason=None, message=None)
            return
        package.output_id = found.output_id
        package.artifact = str(self._tools.artifacts.directory(found.output_id))
        package.answered_by = found.build
        log.info(f"{name}@{package.package.version} ({SKIPPED})", run=run.id, key=package.key)
        self._owner.settle_package(run, name, "skipped", reason="unchanged", message=SKIPPED)

    def _join(self, run: Run, package: PackageRun) -> bool:
        """Share the build of another run that wants the same key."""
        active = self._by_key.get(package.key)
        if active is None or not active.admits(run, package):
            return False
        active.members.append((run, package))
        name, build = package.package.name, active.build
        run.attempts[name] = max(run.attempts[name], build.attempt)  # its own next one is counted on from there
        self._note_start(run, package, active)
        package.phase = active.phase
        self._reports.started(run, build, shared=True)
        log.info("build shared", run=run.id, package=name, build=build.id)
        return True

    # --- builds -------------------------------------------------------------------------------------------

    def _start_build(self, run: Run, package: PackageRun) -> None:
        assert self._nursery is not None
        name = package.package.name
        run.attempts[name] += 1
        inputs = self._inputs(run, package)
        id = str(uuid.uuid4())
        build = BuildRecord(
            id=id,
            run=run.id,
            package=name,
            version=package.package.version,
            state="running",
            started_at=time.time(),
            attempt=run.attempts[name],
            key=package.key,
            log=str(self._tools.logs.path(id)),
            repository=package.package.repository,
            tree=package.package.tree,
            crc=inputs.crc,
        )
        shareable = not run.record.request.fetch_only and not run.forces(name)
        active = ActiveBuild(build, inputs, run, package, shareable=shareable)
        self._active[id] = active
        if shareable:
            self._by_key[build.key] = active
        self._note_start(run, package, active)
        self._nursery.start_soon(self._build, run, package, active, next(self._order))

    def _note_start(self, run: Run, package: PackageRun, active: ActiveBuild) -> None:
        assert run.progress is not None
        run.progress.move(package.package.name, "running")
        package.build_id, package.started_at = active.build.id, active.build.started_at
        run.builds[package.package.name] = active

    def _inputs(self, run: Run, package: PackageRun) -> Inputs:
        assert run.plan is not None
        assert run.rules is not None
        assert run.progress is not None
        assert package.parts is not None
        outputs = run.progress.outputs(package.package.name)
        if len(outputs) > NAMED_OUTPUTS:
            outputs = {name: output for name, output in outputs.items() if name in package.parts.dependencies}
        rule, origin = run.rules.of(package.package), run.plan.origin(package.package)
        return Inputs(
            parts=package.parts,
            outputs=outputs,
            environment=rule.environment.parts,
            strategy=rule.strategy,
            repository=package.package.repository,
            commit=origin.commit,
            root=origin.tree,
            path=package.package.path,
            crc=run.crcs.get(package.package.tree),
        )

    async def _build(self, run: Run, package: PackageRun, active: ActiveBuild, order: int) -> None:
        """The task of a build: record it, run it, record how it ended."""
        name, build = package.package.name, active.build
        structlog.contextvars.bind_contextvars(run=run.id, build=build.id, package=name)
        commit = self._reports.started(run, build, statements=[insert_build(build, active.inputs)])
        async with Scope("build", close_within=CLOSE_WITHIN_S) as scope:
            outcome = await run_build(
                BuildSpec(
                    id=build.id,
                    package=package.package,
                    key=build.key,
                    dependencies=self._outputs(run, package),
                    fetch_only=run.record.request.fetch_only,
                    attempt=build.attempt,
                    order=order,
                ),
                self._elsewhere if name in run.verified else self._tools,
                active.control,
                partial(self._enter_phase, active),
                scope=scope,
                recorded=partial(self._recorded, commit),
            )
            if outcome.manifest is not None and name in run.verified:
                outcome = await self._compare(outcome, outcome.manifest, run.verified[name])
            await self._close_build(active, outcome, await self._is_stale(run, package, outcome))

    async def _compare(self, outcome: Outcome, manifest: Manifest, earlier: str) -> Outcome:
        """The outcome of a build that verifies an earlier one: a failure that names the files that differ."""
        if manifest.output_id == earlier:
            return outcome
        try:
            before = await in_thread(self._tools.artifacts.manifest, earlier)
        except BuilddError as error:
            return msgspec.structs.replace(outcome, state="failed", reason="sandbox_failed", message=error.message)
        message = differing_files(before.entries, manifest.entries)
        return msgspec.structs.replace(outcome, state="failed", reason="not_reproducible", message=message)

    def _outputs(self, run: Run, package: PackageRun) -> tuple[Output, ...]:
        assert run.progress is not None
        return tuple(
            Output(name=name, output_id=output, tree=self._tree(output))
            for name, output in sorted(run.progress.outputs(package.package.name).items())
        )

    def _enter_phase(self, active: ActiveBuild, phase: str) -> None:
        active.phase = phase
        for run, package in active.members:
            package.phase = phase
            self._reports.phase(run, active.build, phase)

    async def _is_stale(self, run: Run, package: PackageRun, outcome: Outcome) -> bool:
        """Whether what was built is not what the source is by now."""
        return outcome.state == "success" and await self._owner.source_changed(run, package)

    async def _close_build(self, active: ActiveBuild, outcome: Outcome, stale: bool) -> None:
        manifest = outcome.manifest
        output = manifest.output_id if manifest is not None else None
        build = msgspec.structs.replace(
            active.build,
            state=outcome.state,
            completed_at=time.time(),
            reason=outcome.reason,
            message=_SOURCE_CHANGED if stale else outcome.message,
            exit_status=outcome.exit_status,
            phases=outcome.phases,
            resources=outcome.resources,
            output_id=output,
            artifact=str(self._tools.artifacts.directory(output)) if output is not None else None,
            log_bytes=outcome.log_bytes,
        )
        transient = outcome.transient
        if output is not None and build.state == "success":
            build = await self._write_receipt(build, active.inputs)
            transient = build.state == "failed"
        transient = transient and active.control.why is None
        if transient and any(run.id == build.run and self._owner.may_retry(run, p) for run, p in active.members):
            build = msgspec.structs.replace(build, retried=True)
        self.finished[build.state] += 1
        commit = self._report_build(active, build, stale=stale)
        del self._active[build.id]
        if self._by_key.get(build.key) is active:
            del self._by_key[build.key]
        if not self._active:
            self._idle.set()
        for run, package in active.members:
            del run.builds[package.package.name]
            note_build(package, build)
            self._owner.after_build(run, package, build, transient=transient)
        self.dispatch()
        await self._recorded(commit)

    async def _write_receipt(self, build: BuildRecord, inputs: Inputs) -> BuildRecord:
        """Leave the receipt beside the artifact; a build without one has failed."""
        assert build.output_id is not None
        receipt = Receipt(repository=build.repository, build=build, inputs=inputs)
        try:
            await in_thread(self._tools.artifacts.add_receipt, build.output_id, receipt, limiter=self._tools.threads)
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

    def _report_build(self, active: ActiveBuild, build: BuildRecord, *, stale: bool) -> Commit:
        """Emit the end of a build for every run that waited for it; the commit of its record."""
        statements: list[Statement] = [update_build(build)]
        if build.state == "success" and build.output_id is not None and not stale:
            statements.append(index_package(build))
        commit: Commit | None = None
        for run, _ in active.members:
            commit = self._reports.ended(run, build, statements)
            statements = []
        assert commit is not None
        return commit

    async def _recorded(self, commit: Commit) -> None:
        """Wait for a record; trouble with the database never fails a build (D4)."""
        try:
            await commit.wait()
        except DatabaseError as error:
            log.error("a record could not be written; the build goes on", error=error.message)
