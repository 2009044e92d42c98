"""The composition root: makes everything, nests it, and takes it down again.

    database writer                 outermost: the last to go, so that all others can still record
      clones, maps                  children of transfers die with it
        sampler and its watchers    of the machine, the daemon and the builds
        engine                      runs, and below them builds
          control, signals, watchdog  innermost: the first to go; still answers while builds are being stopped

Leaving a nursery means that all it holds has ended: the nesting is the order of the shutdown.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from buildd import cgroups, descriptors, heap, life, logging, systemd
from buildd.cgroups import Cgroups
from buildd.config import Config
from buildd.control.handlers import all_handlers
from buildd.control.handlers.services import Services, Watchers
from buildd.control.server import Server
from buildd.control.socket import ControlSocket
from buildd.engine.assess import Assessor
from buildd.engine.collector import Collector
from buildd.engine.engine import Engine
from buildd.engine.explain import Explainer
from buildd.engine.overdue import Overdue
from buildd.engine.prepare import Planner
from buildd.engine.room import RoomGuard
from buildd.engine.sweeper import Sweeper
from buildd.errors import BuilddError, Refused
from buildd.execute.build import BuildTools
from buildd.execute.download import DistfileCache, FetchSettings
from buildd.execute.environment import Environments
from buildd.execute.leftovers import DAEMON_COOKIE, Leftovers, new_instance
from buildd.execute.proctree import reap_adopted
from buildd.execute.sandbox import Sandbox
from buildd.execute.sandbox.choose import choose
from buildd.execute.sandbox.plain import warden_argv
from buildd.execute.transport import Proxies
from buildd.execute.workdirs import WorkDirectories
from buildd.monitor.checks import machine_checks
from buildd.monitor.gate import Gate
from buildd.monitor.memory import MemoryGuard
from buildd.monitor.sampler import Sampler, watch
from buildd.monitor.throttle import Throttler
from buildd.process import Process, spawn
from buildd.protocol import SOCKET_NAME, CheckResult
from buildd.repomap.maps import Maps
from buildd.repos.care import Caretaker
from buildd.repos.clones import Clones, CloneSettings
from buildd.repos.reading import Reader
from buildd.store.artifacts import ArtifactStore
from buildd.store.database import Database
from buildd.store.journal import Journal
from buildd.store.logs import Logs
from buildd.store.maps import MapStore
from buildd.store.queries import Queries
from buildd.store.rebuild import Receipts
from buildd.store.repositories import RepositoryStore
from buildd.store.runs import RunStore
from buildd.threads import in_thread

log = structlog.get_logger()

_SHUTDOWN_MARGIN_S = 5.0
"""Of daemon.shutdown_limit, kept for closing what is left when builds would not end."""
_BUILD_THREADS = 3
"""With 50 builds starting at once, 40 threads held up the control plane by 400 ms, and 3 by 40 ms."""
_RELOADABLE = ("workers", "limits", "control", "cache", "retry", "repos", "maps", "monitor", "throttle")
_RELOADABLE_DAEMON = ("log_level", "shutdown_grace", "shutdown_limit", "sweep_interval")


class Stop:
    """The wish to stop, and how patiently."""

    def __init__(self) -> None:
        self.requested = trio.Event()
        self.drain = False
        self.hurry = False


class Daemon:
    def __init__(self, load: Callable[[], Config], limit_life: Callable[[float], None]) -> None:
        """`load` reads the configuration; `limit_life` ends the process after so many seconds, come what may."""
        self._load = load
        self._limit_life = limit_life
        self._config = load()
        self._stop = Stop()
        self._starting = trio.CancelScope()
        self._has_begun = False
        """Whether there may be work, and stopping has an order; before that it cuts the start short."""
        self._clones: Clones | None = None
        self._engine: Engine | None = None
        self._earlier_end: life.End = "stopped"
        self._sampler: Sampler | None = None

    def config(self) -> Config:
        return self._config

    async def run(self) -> None:
        """Serve until asked to stop. Raises BuilddError when it cannot start."""
        config = self._config
        state_dir, cache_dir = Path(config.daemon.state_dir), Path(config.daemon.cache_dir)
        work_dir = Path(config.daemon.work_dir)
        for directory in (state_dir, cache_dir, work_dir):
            _make_directory(directory)
        os.chmod(work_dir, 0o700)
        lock = _lock(state_dir)
        try:
            descriptors.raise_limit()
            async with trio.open_nursery() as signals:
                await signals.start(self._signals)
                with self._starting:
                    await self._serve(state_dir, work_dir)
                signals.cancel_scope.cancel()
            life.end(state_dir)
        finally:
            os.close(lock)
        log.info("stopped")

    async def _serve(self, state_dir: Path, work_dir: Path) -> None:
        groups, trouble = cgroups.take_over()
        if groups is None:
            log.info("limits of memory, processes and processors are watched by sampling", why=trouble)
        leftovers = Leftovers(state_dir, work_dir, groups)
        await leftovers.remove_all()
        self._earlier_end = _begin_life(state_dir)
        sandbox = await choose(self._config)
        database = Database(state_dir / "buildd.db", Receipts(state_dir))
        await in_thread(database.open)
        async with trio.open_nursery() as storage:
            await storage.start(database.run)
            journal = Journal(database, self._config.events.keep)
            await self._with_storage(sandbox, groups, leftovers, database, journal)
            storage.cancel_scope.cancel()

    async def _with_storage(
        self,
        sandbox: Sandbox,
        groups: Cgroups | None,
        leftovers: Leftovers,
        database: Database,
        journal: Journal,
    ) -> None:
        config = self._config
        state_dir, cache_dir = Path(config.daemon.state_dir), Path(config.daemon.cache_dir)
        instance = new_instance(state_dir)
        repositories = RepositoryStore(database)
        clones = Clones(
            cache_dir / "repos",
            _clone_settings(config),
            repositories,
            lambda kind, url, data: _discard(journal.emit(kind, repository=url, data=data)),
            cookie={DAEMON_COOKIE: instance},
        )
        repositories.restore_from(clones.list)
        self._clones = clones
        map_records = MapStore(database)
        maps = Maps(
            cache_dir / "maps",
            self.config,
            clones,
            map_records,
            lambda kind, url, data: _discard(journal.emit(kind, repository=url, data=data)),
            earlier_end=self._earlier_end,
            cookie={DAEMON_COOKIE: instance},
        )
        map_records.restore_from(maps.list)
        tools = BuildTools(
            config=self.config,
            sandbox=sandbox,
            spawner=spawn,
            distfiles=DistfileCache(cache_dir / "distfiles", _fetch_settings(config)),
            artifacts=ArtifactStore(state_dir / "artifacts"),
            logs=Logs(state_dir / "logs"),
            work=WorkDirectories(Path(config.daemon.work_dir)),
            threads=trio.CapacityLimiter(_BUILD_THREADS),
            cgroups=groups,
            instance=instance,
        )
        planner = Planner(self.config, clones, cache_dir)
        await in_thread(_remove_leftovers, tools.artifacts, planner)
        runs = RunStore(database)
        gate = Gate(config.workers.max_concurrent_builds)
        engine = Engine(
            config=self.config,
            journal=journal,
            store=runs,
            planner=planner,
            tools=tools,
            assessor=Assessor(self.config, runs, tools.artifacts, journal, Environments(self.config, sandbox)),
            earlier_end=self._earlier_end,
            gate=gate,
        )
        self._engine = engine
        clones.evictor.needed = lambda url: engine.needs(url) or maps.in_use(url)
        clones.on_changed = maps.changed
        database.on_renewed(engine.renewed)
        collector = Collector(
            config=self.config,
            artifacts=tools.artifacts,
            releases=state_dir / "releases",
            journal=journal,
            in_use=engine.in_use,
            forget=engine.forget,
        )
        sweeper = Sweeper(
            config=self.config,
            leftovers=leftovers,
            active=engine.building,
            database=database,
            store=runs,
            journal=journal,
            logs=tools.logs,
        )
        warden = await _start_warden(tools.instance) if sandbox.name == "plain" else None
        try:
            async with trio.open_nursery() as transfers:
                await transfers.start(clones.run)
                await transfers.start(maps.run)
                async with trio.open_nursery() as work:
                    await work.start(collector.run)  # it clears up before runs make anything new
                    watchers = await self._watch(work, engine, collector, gate, journal)
                    self._has_begun = True
                    await work.start(engine.run)
                    await work.start(sweeper.run)
                    work.start_soon(Caretaker(clones, self.config).run)
                    await self._with_engine(engine, collector, clones, maps, journal, database, runs, tools, watchers)
                    work.cancel_scope.cancel()
                transfers.cancel_scope.cancel()
        finally:
            if warden is not None:
                warden.close()

    async def _watch(
        self, nursery: trio.Nursery, engine: Engine, collector: Collector, gate: Gate, journal: Journal
    ) -> Watchers:
        """Start those who watch the machine, the daemon and the builds."""

        def load() -> tuple[int, int]:
            counts = engine.statistics
            return counts["busy"], counts["queued"]

        config = self._config.daemon
        sampler = self._sampler = Sampler(
            config=self.config,
            directories=[Path(d) for d in (config.state_dir, config.work_dir, config.cache_dir)],
            load=load,
        )
        throttler = Throttler(config=self.config, gate=gate, emit=journal.emit, changed=engine.dispatch)
        memory = MemoryGuard(config=self.config, emit=journal.emit, profiles=Path(config.state_dir) / "profiles")
        overdue = Overdue(config=self.config, active=lambda: engine.active, emit=journal.emit)
        room = RoomGuard(
            config=self.config,
            gate=gate,
            collector=collector,
            emit=journal.emit,
            busy=lambda: engine.busy,
            changed=engine.dispatch,
        )
        await nursery.start(sampler.run)
        for watcher in (throttler, memory, overdue):
            nursery.start_soon(watch, sampler, watcher.look)
        nursery.start_soon(room.run)
        return Watchers(gate, sampler, memory, overdue)

    async def _with_engine(
        self,
        engine: Engine,
        collector: Collector,
        clones: Clones,
        maps: Maps,
        journal: Journal,
        database: Database,
        runs: RunStore,
        tools: BuildTools,
        watchers: Watchers,
    ) -> None:
        config = self._config
        started = time.monotonic()
        sandbox = tools.sandbox

        async def checks() -> tuple[CheckResult, ...]:
            return await in_thread(partial(machine_checks, self._config, sandbox=sandbox.name, weaker=sandbox.weaker))

        queries = Queries(database)
        services = Services(
            config=self.config,
            engine=engine,
            clones=clones,
            maps=maps,
            reader=Reader(clones),
            journal=journal,
            database=database,
            runs=runs,
            queries=queries,
            explainer=Explainer(queries, clones, tools.artifacts.exists),
            artifacts=tools.artifacts,
            collector=collector,
            logs=tools.logs,
            watchers=watchers,
            started_at=started,
            sandbox_name=sandbox.name,
            weaker=sandbox.weaker,
            control_counts=lambda: (control.requests, control.dropped),
            reload=self.reload,
            shutdown=self.stop,
            checks=checks,
        )
        server = Server(all_handlers(services), lambda: self._config.control)
        control = ControlSocket(server.answer, server.overflow)
        everyone = config.control.observe == "everyone"
        path = Path(config.daemon.runtime_dir) / SOCKET_NAME
        async with trio.open_nursery() as front:
            await front.start(
                partial(
                    control.serve,
                    path,
                    mode=0o666 if everyone else 0o660,
                    group=config.control.group,
                    adopted_fd=systemd.adopted_socket(),
                )
            )
            if sandbox.name == "plain":
                await front.start(_reap_orphans)
            front.start_soon(_feed_watchdog, engine)
            journal.emit("daemon_started", data={"pid": os.getpid(), "sandbox": sandbox.name})
            log.info("ready", socket=str(path), sandbox=sandbox.name, workers=config.workers.max_concurrent_builds)
            for weakness in sandbox.weaker:
                log.warning("weaker than it could be", what=weakness)
            systemd.notify("READY=1", f"STATUS=ready, builds run in {sandbox.name}")
            heap.settle()
            await self._stop.requested.wait()
            await self._shut_down(engine, journal)
            front.cancel_scope.cancel()

    # --- stopping -----------------------------------------------------------------------------------------

    def stop(self, drain: bool = False) -> None:
        """Ask for the shutdown. Asked again it waits no longer for a drain, and then for no grace."""
        if not self._stop.requested.is_set():
            self._stop.drain = drain
        elif self._stop.drain and not drain:
            self._stop.drain = False
        elif not drain:
            self._stop.hurry = True
        self._stop.requested.set()
        if not self._has_begun:
            self._limit_life(float(self._config.daemon.shutdown_limit))
            self._starting.cancel()

    def _grace(self) -> float:
        return 0.0 if self._stop.hurry else float(self._config.daemon.shutdown_grace)

    async def _shut_down(self, engine: Engine, journal: Journal) -> None:
        if self._stop.drain:
            log.info("draining")
            systemd.notify("STATUS=waiting for running builds")
            engine.drain("the daemon is about to stop", final=True)
            await self._drained(engine)
        limit = float(self._config.daemon.shutdown_limit)
        self._limit_life(limit)
        systemd.notify("STOPPING=1", "STATUS=stopping builds")
        log.info("stopping", grace_s=self._grace(), limit_s=limit)
        journal.emit("daemon_stopping")
        with trio.move_on_after(max(1.0, limit - _SHUTDOWN_MARGIN_S)) as patience:
            await engine.stop(self._grace)
        if patience.cancelled_caught:
            log.error("builds did not end in time; they are killed")
            self._stop.hurry = True

    async def _drained(self, engine: Engine) -> None:
        """Until no build runs, or somebody asks again."""
        while self._stop.drain:
            with trio.move_on_after(0.2):
                await engine.wait_idle()
                return

    async def _signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    try:
                        log.info("configuration", result=self.reload())
                    except BuilddError as error:
                        log.error("the configuration was not reloaded", error=error.message, hint=error.hint)
                else:
                    self.stop()

    # --- reloading ----------------------------------------------------------------------------------------

    def reload(self) -> str:
        """Read the configuration again and use what can change while running. Raises InvalidInput."""
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            fresh = self._load()
        finally:
            systemd.notify("READY=1")
        old = self._config
        daemon = msgspec.structs.replace(old.daemon, **{k: getattr(fresh.daemon, k) for k in _RELOADABLE_DAEMON})
        self._config = msgspec.structs.replace(
            old, daemon=daemon, files=fresh.files, **{section: getattr(fresh, section) for section in _RELOADABLE}
        )
        logging.set_up(self._config.daemon.log_level)
        if self._clones is not None:
            self._clones.reconfigure(_clone_settings(self._config))
        if self._engine is not None:
            self._engine.dispatch()
        if self._sampler is not None:
            self._sampler.sample_soon()
        later = [
            name
            for name in ("daemon", "sandbox", "fetch", "events")
            if getattr(self._config, name) != getattr(fresh, name)
        ]
        if later:
            return f"reloaded; changes in [{'], ['.join(later)}] take effect at the next start"
        return "reloaded" if self._config != old else "reloaded; nothing has changed"


async def _reap_orphans(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """As a subreaper we are handed the orphans of builds and transfers, and nobody else waits for them."""
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        task_status.started()
        async for _ in signals:
            reap_adopted()


async def _feed_watchdog(engine: Engine) -> None:
    """Tell systemd that we live, as long as the engine answers."""
    interval = systemd.watchdog_interval()
    while interval is not None:
        engine.check()
        systemd.notify("WATCHDOG=1")
        await trio.sleep(interval / 3)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise Refused(
            f"cannot make the directory {directory}: {error.strerror}", hint="see daemon.*_dir in buildd.conf(5)"
        ) from None


def _begin_life(state_dir: Path) -> life.End:
    try:
        return life.begin(state_dir)
    except OSError as error:
        log.warning("cannot note that the daemon runs; the next start will not know how it ended", error=str(error))
        return "killed"


def _remove_leftovers(artifacts: ArtifactStore, planner: Planner) -> None:
    """Remove what a daemon that was killed was writing. What will not go is no reason not to start. Blocks."""
    for remove in (artifacts.remove_temporaries, planner.remove_leftovers):
        try:
            remove()
        except OSError as error:
            log.error("what an earlier daemon was writing stays", path=error.filename, error=error.strerror)


def _lock(state_dir: Path) -> int:
    """Hold the state directory for this process alone. Raises Refused when another daemon has it."""
    handle = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Refused(
            f"another buildd uses the state directory {state_dir}",
            hint="stop it, or give this one another daemon.state_dir",
        ) from None
    return handle


async def _start_warden(instance: str) -> Process:
    """The warden's life line is a pipe that only this process holds open."""
    reader, writer = os.pipe()
    try:
        return await spawn(warden_argv(instance), env={}, stdin=reader, stderr=sys.stderr.fileno())
    finally:
        os.close(reader)
        del writer  # stays open for as long as this process lives: its end is the signal


def _clone_settings(config: Config) -> CloneSettings:
    return CloneSettings(
        schemes=config.repos.schemes,
        max_concurrent=config.workers.max_concurrent_clones,
        idle_timeout_s=config.repos.idle_timeout,
        total_timeout_s=config.repos.total_timeout,
        transport=config.repos.transport,
        tokens=config.repos.token_files,
        ssh_key=config.repos.ssh_key or None,
        max_repositories=config.repos.max_repositories,
        max_bytes=config.repos.max_bytes,
    )


def _fetch_settings(config: Config) -> FetchSettings:
    return FetchSettings(
        schemes=config.fetch.schemes,
        mirrors=config.fetch.mirrors,
        idle_timeout=config.fetch.idle_timeout,
        total_timeout=config.fetch.timeout,
        max_bytes=config.fetch.max_bytes,
        proxies=Proxies.from_environment(os.environ),
    )


def _discard(_: object) -> None:
    """For callbacks whose result nobody waits for."""
