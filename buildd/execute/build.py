"""One attempt at one package: scope, source, phases, output.

The builder owns nothing that outlives it but the log and, on success, the artifact with its receipt. It does
not touch the database: the engine records what `run_build` returns.

Invariant: `run_build` always returns an `Outcome` (also when cancelled through its `BuildControl`); it raises
only for cancellation from outside and for bugs. In every case its processes are gone then. Its directories go
before that too, unless it succeeded: then they go when the scope closes, and nobody has to wait for that.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
import trio
from msgspec import Struct

from buildd.cgroups import Cgroup, Cgroups, GroupLimits
from buildd.config import Config
from buildd.errors import BuilddError, BuildFailure, FailureReason, is_shortage
from buildd.execute.archive import ExtractLimits, copy_file, extract, source_directory
from buildd.execute.download import DistfileCache
from buildd.execute.limits import Bound, PhaseBounds, SessionLimits, held_to, session_limits, took_too_long
from buildd.execute.meter import Use
from buildd.execute.patches import Patch, patch_list, patch_script
from buildd.execute.proctree import COOKIE
from buildd.execute.sandbox import SYSTEM_PATH, Layout, Output, Sandbox
from buildd.execute.session import Command, Observer, run_session
from buildd.execute.turns import Turn, Turns
from buildd.execute.workdirs import WorkDirectories
from buildd.model import PHASES, BuildState, Package, PhaseRecord, Resources, Source
from buildd.process import Spawner
from buildd.publish.tarball import pack
from buildd.repos.trees import GitStore
from buildd.scope import Scope
from buildd.store.artifacts import ArtifactStore, Manifest
from buildd.store.logs import Logs
from buildd.threads import in_thread

log = structlog.get_logger()
T = TypeVar("T")

SOURCE_DATE_EPOCH = 315_532_800
"""1980-01-01: the earliest time that zip files can hold. One for all, so that equal sources build equal outputs."""

CLOSE_WITHIN_S = 30.0
"""For the scope of a build."""
_START_S = 0.5
"""As long as a build counts as one that starts: most take some milliseconds, and large sources many seconds."""
_BUILTIN = ("fetch", "checksum", "extract")
"""Phases in which the builder itself works on the recipe's sources, before the recipe's own commands."""


class BuildSpec(Struct, frozen=True, kw_only=True):
    id: str
    package: Package
    key: str
    dependencies: tuple[Output, ...]
    """The outputs of everything the package needs, directly or not."""
    fetch_only: bool = False
    attempt: int = 1
    """Counted from 1 within the run."""
    order: int = 0
    """Of the builds that start at the same time, the lowest goes first."""


class Outcome(Struct, frozen=True, kw_only=True):
    state: BuildState
    reason: FailureReason | None = None
    message: str | None = None
    transient: bool = False
    """Whether another attempt may succeed where this one failed."""
    exit_status: int | None = None
    phases: tuple[PhaseRecord, ...] = ()
    resources: Resources = Resources()
    manifest: Manifest | None = None
    log_bytes: int = 0


class BuildTools(Struct, frozen=True, kw_only=True):
    """What builds share: made once by the composition root."""

    config: Callable[[], Config]
    sandbox: Sandbox
    spawner: Spawner
    distfiles: DistfileCache
    artifacts: ArtifactStore
    logs: Logs
    work: WorkDirectories
    threads: trio.CapacityLimiter
    """Bounds the worker threads of all builds together."""
    cgroups: Cgroups | None
    """None where there is no cgroup to divide: limits are watched by sampling."""
    instance: str
    """Id of this daemon process; the warden looks for it."""
    starts: Turns = msgspec.field(default_factory=lambda: Turns(len(os.sched_getaffinity(0)), lasting=_START_S))
    """Held from the work directory to the first phase: that takes a processor."""
    disk_turn: trio.CapacityLimiter = msgspec.field(default_factory=lambda: trio.CapacityLimiter(1))
    """Of reading a work directory for what it takes."""


class BuildControl:
    """The handle by which the engine stops a build."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._why: tuple[FailureReason, str] | None = None
        self._grace: Callable[[], float] = lambda: 0.0
        self.use = Use()

    def cancel(self, reason: FailureReason, message: str, *, grace: Callable[[], float]) -> None:
        """End the build with `reason`; the first call decides.

        `grace()` is asked, again and again, for the seconds between SIGTERM and SIGKILL: it may shrink.
        """
        if self._why is None:
            self._why = (reason, message)
            self._grace = grace
            self._scope.cancel()

    def grace(self) -> float:
        return self._grace()

    @property
    def why(self) -> tuple[FailureReason, str] | None:
        return self._why

    @property
    def scope(self) -> trio.CancelScope:
        return self._scope


class PhaseBook:
    """The phases of a build as they happen."""

    def __init__(self, on_phase: Callable[[str], None]) -> None:
        self.records: list[PhaseRecord] = []
        self._on_phase = on_phase
        self._begun = 0.0
        self._reported: str | None = None

    @property
    def current(self) -> str | None:
        """The phase that has begun and not ended."""
        return self.records[-1].name if self.records and self.records[-1].exit_status is None else None

    def begin(self, name: str) -> None:
        """Begin a phase; the recipe's commands of one that the builder itself began continue it."""
        if self.current != name:
            self.records.append(PhaseRecord(name=name, started_at=time.time()))
            self._begun = time.monotonic()

    def settled(self) -> None:
        """Report the present phase, if that has not been done; phases shorter than a report are passed over."""
        if self.current is not None and self.current != self._reported:
            self._reported = self.current
            self._on_phase(self.current)

    def end(self, name: str, status: int) -> None:
        last = self.records[-1]
        self.records[-1] = PhaseRecord(
            name=last.name,
            started_at=last.started_at,
            duration_s=round(time.monotonic() - self._begun, 6),
            exit_status=status,
        )

    def close(self) -> None:
        """End a phase that was cut short."""
        if self.current is not None:
            self.end(self.current, -1)

    def spent(self, name: str) -> float:
        """Seconds that a phase has taken so far."""
        ended = sum(record.duration_s or 0.0 for record in self.records if record.name == name)
        return ended + (time.monotonic() - self._begun if self.current == name else 0.0)


async def run_build(
    spec: BuildSpec,
    tools: BuildTools,
    control: BuildControl,
    on_phase: Callable[[str], None],
    *,
    scope: Scope,
    recorded: Callable[[], Awaitable[None]],
) -> Outcome:
    """Build `spec`, telling `on_phase` of each phase that begins.

    `scope` takes what the build holds on disk. No phase begins before `recorded` has returned.
    """
    builder = _Builder(spec, tools, control, PhaseBook(on_phase), scope, recorded)
    try:
        with control.scope:
            outcome = await builder.run()
        if control.scope.cancelled_caught:
            outcome = builder.stopped()
    finally:
        builder.close()
    if outcome.state != "success":
        await scope.close()  # what is done about a failure may need the room
    return outcome


class _Builder:
    def __init__(
        self,
        spec: BuildSpec,
        tools: BuildTools,
        control: BuildControl,
        book: PhaseBook,
        scope: Scope,
        recorded: Callable[[], Awaitable[None]],
    ) -> None:
        self._spec, self._tools, self._control, self._book = spec, tools, control, book
        self._scope, self._recorded = scope, recorded
        self._package = spec.package
        self._work = tools.work.path(spec.id)
        self._contained = tools.sandbox.contains
        """Whether nobody can have the directories open when the build has ended."""
        self._reusable = False
        """Whether another build may have them."""
        self._group: Cgroup | None = None
        self._exit_status: int | None = None
        self._started = time.monotonic()
        self._log: int | None = None
        """Descriptor of the log, once it is open."""
        self._heard: Callable[[], None] | None = None
        """Called for each line that goes to the log while the builder's own work is held to limits."""
        self._turn: Turn | None = None

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Run what blocks. Few at a time: Python's threads take turns of milliseconds, and trio's is one of them."""
        return await in_thread(function, limiter=self._tools.threads)

    async def run(self) -> Outcome:
        try:
            manifest = await self._build()
        except BuildFailure as failure:
            return self._failed(failure)
        except BuilddError as error:  # the source cannot be written out: a link that leaves it, an odd name
            return self._outcome("failed", "fetch_failed", error.message)
        except OSError as error:
            return self._failed(_of_the_machine("it could not go on", error))
        except Exception:
            log.exception("build failed by a fault of the daemon")
            message = "internal error; the daemon's log has the details"
            return self._outcome("failed", "sandbox_failed", message)
        return self._outcome("success", None, None, manifest=manifest)

    def _failed(self, failure: BuildFailure) -> Outcome:
        message = f"{failure.message} ({failure.hint})" if failure.hint else failure.message
        return self._outcome("failed", failure.reason, message, transient=failure.transient)

    def stopped(self) -> Outcome:
        """The outcome after the engine cancelled."""
        assert self._control.why is not None
        reason, message = self._control.why
        return self._outcome("cancelled", reason, message)

    def _outcome(
        self,
        state: BuildState,
        reason: FailureReason | None,
        message: str | None,
        *,
        transient: bool = False,
        manifest: Manifest | None = None,
    ) -> Outcome:
        self._book.close()
        self._reusable = state == "success" and self._contained
        took = time.monotonic() - self._started
        why = f": {reason}: {message}" if reason else ""
        self._say(f"{state} after {took:.1f} s{why}")
        return Outcome(
            state=state,
            reason=reason,
            message=message,
            transient=transient,
            exit_status=self._exit_status,
            phases=tuple(self._book.records),
            resources=self._control.use.most,
            manifest=manifest,
            log_bytes=os.fstat(self._log).st_size if self._log is not None else 0,
        )

    def _say(self, text: str) -> None:
        if self._heard is not None:
            self._heard()
        if self._log is None:
            return
        try:
            os.write(self._log, f"==> buildd: {text}\n".encode(errors="backslashreplace"))
        except OSError as error:
            log.warning("cannot write to the log of a build", build=self._spec.id, error=str(error))

    # --- from the source to the artifact ------------------------------------------------------------------

    async def _build(self) -> Manifest | None:
        async with self._tools.starts.take(self._spec.order) as self._turn:
            self._scope.add("work directory", self._remove_work)
            with _saying("its directories and its log could not be made"):
                await self._in_thread(self._prepare)
            with _saying("its cgroup could not be made"):
                self._make_group()
            await self._recorded()
            await self._phases(await self._prefix())
            if self._spec.fetch_only:
                return None
            with _saying("its output could not be put into the artifact store"):
                manifest = await self._collect()
            if "tar" in self._package.formats:
                with _saying("its output could not be packed"):
                    await self._pack(manifest)
            return manifest

    async def _prefix(self) -> Path | None:
        stack = AsyncExitStack()
        self._scope.add("prefix", stack.aclose)
        return await stack.enter_async_context(self._tools.sandbox.prefix(self._spec.id, self._spec.dependencies))

    async def _remove_work(self) -> None:
        remove = partial(self._tools.work.remove, self._spec.id, reuse=self._reusable)
        await in_thread(remove, abandon_on_cancel=True, limiter=self._tools.threads)

    def _prepare(self) -> None:
        self._log = self._tools.logs.open(self._spec.id)
        again = f", attempt {self._spec.attempt}" if self._spec.attempt > 1 else ""
        self._say(f"{self._package.name} {self._package.version}, build {self._spec.id}, key {self._spec.key}{again}")
        self._tools.sandbox.refresh()
        self._tools.work.make(self._spec.id)
        with GitStore(Path(self._package.store)) as git:
            git.checkout(
                self._package.tree, self._work / "src", SOURCE_DATE_EPOCH, check=trio.from_thread.check_cancelled
            )

    def _make_group(self) -> None:
        """Give the build its cgroup, where there can be one. Raises OSError."""
        if self._tools.cgroups is None:
            return
        limits = self._limits()
        self._group = self._tools.cgroups.make(
            self._spec.id, GroupLimits(memory=limits.memory, cpu=limits.cpu, pids=limits.pids)
        )
        self._scope.add("cgroup", self._group.remove)

    async def _collect(self) -> Manifest:
        """Move what is staged into the artifact store."""
        if not (self._work / "dest").is_dir():
            raise BuildFailure("phase_failed", "the build removed its own directory $DESTDIR")
        manifest = await self._in_thread(
            partial(
                self._tools.artifacts.add,
                self._work / "dest",
                created_at=time.time(),
                mtime=SOURCE_DATE_EPOCH,
                check=trio.from_thread.check_cancelled,
            )
        )
        below = self._tools.sandbox.layout(self._work).prefix.strip("/") + "/"
        outside = [e.path for e in manifest.entries if e.kind != "dir" and not e.path.startswith(below)]
        if outside:
            self._say(
                f"note: {len(outside)} files are outside $PREFIX, where dependents do not see them: {outside[0]}",
            )
        return manifest

    async def _pack(self, manifest: Manifest) -> None:
        self._begin("package")
        self._book.settled()
        with self._own_part("package"):
            path = await self._in_thread(
                partial(
                    pack,
                    self._tools.artifacts,
                    manifest.output_id,
                    self._package.name,
                    self._package.version,
                    check=trio.from_thread.check_cancelled,
                )
            )
        self._say(f"packed as {path}")
        self._book.end("package", 0)

    # --- the phases ---------------------------------------------------------------------------------------

    async def _phases(self, prefix: Path | None) -> None:
        """The builder's own part of each phase, then the recipe's; consecutive commands share a session."""
        pending: list[Command] = []
        for phase in ("fetch", "checksum") if self._spec.fetch_only else PHASES:
            if phase in _BUILTIN and self._package.sources:
                await self._session(pending, prefix, network=False)
                pending = []
                await self._builtin(phase)
            text = self._patch_text() if phase == "patch" else ""
            text += self._package.phases.get(phase, "")
            if not text:
                continue
            command = Command(phase=phase, text=text)
            if phase == "fetch":
                await self._session([command], prefix, network=True)
            else:
                pending.append(command)
        await self._session(pending, prefix, network=False)

    def _begin(self, phase: str) -> None:
        """A phase begins, and with the first one the start is over."""
        assert self._turn is not None
        self._turn.end()
        self._book.begin(phase)

    async def _builtin(self, phase: str) -> None:
        self._begin(phase)
        self._book.settled()
        self._say(phase)
        with self._own_part(phase):
            for source in self._package.sources:
                await self._handle_source(phase, source)
        if phase not in self._package.phases:
            self._book.end(phase, 0)

    async def _handle_source(self, phase: str, source: Source) -> None:
        if phase == "fetch":
            await self._tools.distfiles.fetch(source, self._say)
        elif phase == "checksum":
            await self._tools.distfiles.verify(source)
            self._say(f"{source.filename}: SHA-256 {source.sha256}")
        else:
            self._say(f"extracting {source.filename} into {source.into}")
            await self._in_thread(partial(self._extract, source))

    @contextmanager
    def _own_part(self, phase: str) -> Iterator[None]:
        """Hold what the builder itself does in a phase to the recipe's limits of that phase."""
        bounds = self._limits().phases.get(phase, PhaseBounds())
        try:
            with held_to(phase, bounds) as self._heard:
                yield
        finally:
            self._heard = None

    def _extract(self, source: Source) -> None:
        into = source_directory(self._work / "src", source.into)
        limit = self._tools.config().fetch.max_bytes
        if not source.extract:
            copy_file(
                self._tools.distfiles.path(source.sha256),
                into,
                filename=source.filename,
                limits=ExtractLimits(max_bytes=limit),
                mtime=SOURCE_DATE_EPOCH,
                check=trio.from_thread.check_cancelled,
            )
            return
        extract(
            self._tools.distfiles.path(source.sha256),
            into,
            filename=source.filename,
            strip=source.strip,
            limits=ExtractLimits(max_bytes=limit),
            mtime=SOURCE_DATE_EPOCH,
            check=trio.from_thread.check_cancelled,
        )

    def _patch_text(self) -> str:
        """Shell text that applies the recipe's patches, those of each source first."""
        root = self._work / "src"
        patches: list[Patch] = []
        for source in self._package.sources:
            patches += patch_list(root, source.patches, directory=source.into)
        patches += patch_list(root, self._package.patches)
        return patch_script(patches)

    async def _session(self, commands: Sequence[Command], prefix: Path | None, *, network: bool) -> None:
        if not commands:
            return
        assert self._log is not None
        self._contained = self._contained and not network  # there are sockets, and they take descriptors
        limits = self._limits()
        if time.monotonic() > limits.deadline:
            raise BuildFailure(*took_too_long(Bound(limits.timeout, "limits.timeout")))
        end = await run_session(
            commands,
            build=self._spec.id,
            sandbox=self._tools.sandbox,
            spawner=self._tools.spawner,
            disk_turn=self._tools.disk_turn,
            work=self._work,
            prefix=prefix,
            network=network,
            env=self._environment(network=network),
            log_file=self._log,
            limits=limits,
            group=self._group,
            nice=self._tools.config().workers.nice,
            use=self._control.use,
            observer=Observer(self._begin, self._book.end, self._book.settled),
            grace=self._control.grace,
        )
        self._exit_status = end.exit_status
        if end.failed_phase is not None:
            how = f"exit status {end.exit_status}" if end.exit_status > 0 else f"signal {-end.exit_status}"
            raise BuildFailure("phase_failed", f"phase {end.failed_phase} failed with {how}")

    def _limits(self) -> SessionLimits:
        return session_limits(
            self._package.limits, self._tools.config().limits, started=self._started, spent=self._book.spent
        )

    def _environment(self, *, network: bool) -> dict[str, str]:
        """Exactly what phases see: nothing of the daemon's own environment but what `fetch.environment` names."""
        layout: Layout = self._tools.sandbox.layout(self._work)
        config = self._tools.config()
        prefix = layout.prefix
        environment = {
            "SRCDIR": layout.src,
            "BUILDDIR": layout.build,
            "DESTDIR": layout.dest,
            "PREFIX": prefix,
            "HOME": layout.home,
            "TMPDIR": layout.tmp,
            "PATH": ":".join((*config.sandbox.path, f"{prefix}/bin", SYSTEM_PATH)),
            "PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig:{prefix}/share/pkgconfig",
            "CMAKE_PREFIX_PATH": prefix,
            "JOBS": str(config.workers.jobs),
            "MAKEFLAGS": f"-j{config.workers.jobs}",
            "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "BUILDD_PACKAGE": self._package.name,
            "BUILDD_VERSION": self._package.version,
            COOKIE: self._spec.id,
            "BUILDD_DAEMON": self._tools.instance,
        }
        if network:
            environment |= {n: os.environ[n] for n in config.fetch.environment if n in os.environ}
        return environment


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Make a failure of what the machine fails to do: `what` says what could not be done."""
    try:
        yield
    except OSError as error:
        raise _of_the_machine(what, error) from error


def _of_the_machine(what: str, error: OSError) -> BuildFailure:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    hint = "the kernel's log (dmesg) may say why" if error.errno == errno.EIO else ""
    return BuildFailure(
        "disk_full" if full else "sandbox_failed",
        f"{what}: {error.strerror}{where}",
        hint="free disk space" if full else hint,
        transient=full or is_shortage(error),
    )
