"""The sweep: what no task owns any more is ended and removed, now and again while the daemon runs (R8, M2).

Every task cleans up after itself; this is for what slips through: a cleanup that took too long, a process that hid from
it, a record that says `running` though nothing runs.

Invariant: only what had no owner at two sweeps in a row goes. A build leaves the pool before its scope has closed, and
closing is bounded by less than the time between two sweeps.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection

import structlog
import trio
from msgspec import Struct

from buildd.config import Config
from buildd.engine.recovery import close_builds
from buildd.execute.build import CLOSE_WITHIN_S
from buildd.execute.leftovers import Leftovers
from buildd.store.database import Database
from buildd.store.journal import Journal
from buildd.store.logs import Logs
from buildd.store.runs import RunStore
from buildd.threads import in_thread

log = structlog.get_logger()

LEAST_INTERVAL_S = CLOSE_WITHIN_S + 5.0
_LOST = "its record said that it runs, and no task of the daemon had it"


class Strays(Struct, frozen=True, kw_only=True):
    """Builds, by their ids, of which something is there and which nobody owns."""

    processes: frozenset[str] = frozenset()
    directories: frozenset[str] = frozenset()
    cgroups: frozenset[str] = frozenset()
    records: frozenset[str] = frozenset()

    def both(self, other: Strays) -> Strays:
        return Strays(
            processes=self.processes & other.processes,
            directories=self.directories & other.directories,
            cgroups=self.cgroups & other.cgroups,
            records=self.records & other.records,
        )

    def __bool__(self) -> bool:
        return bool(self.processes or self.directories or self.cgroups or self.records)


class Sweeper:
    def __init__(
        self,
        *,
        config: Callable[[], Config],
        leftovers: Leftovers,
        active: Callable[[], Collection[str]],
        database: Database,
        store: RunStore,
        journal: Journal,
        logs: Logs,
    ) -> None:
        """`active` gives the ids of the builds that somebody owns."""
        self._config = config
        self._leftovers = leftovers
        self._active = active
        self._database = database
        self._store = store
        self._journal = journal
        self._logs = logs
        self._before = Strays()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(max(LEAST_INTERVAL_S, self._config().daemon.sweep_interval))
            try:
                await self.sweep()
            except Exception:
                log.exception("what nobody owns cannot be swept")

    async def sweep(self) -> Strays:
        """One sweep; what it removed."""
        found = await self._find()
        gone = found.both(self._before)
        self._before = found
        if gone:
            await self._remove(gone)
            data = {name: sorted(builds) for name in Strays.__struct_fields__ if (builds := getattr(gone, name))}
            log.warning("what no build owned any more was removed", **data)
            self._journal.emit("swept", data=data)
        return gone

    async def _find(self) -> Strays:
        """What is there of builds that are not active; looked for first, so that none that begins now is among it."""
        there = await in_thread(self._leftovers.find)
        records: frozenset[str] = frozenset()
        if not self._database.waiting:  # else records are behind what happened
            records = frozenset(build.id for build in await self._store.running_builds())
        active = frozenset(self._active())
        return Strays(
            processes=frozenset(there.processes) - active,
            directories=there.directories - active,
            cgroups=there.cgroups - active,
            records=records - active,
        )

    async def _remove(self, gone: Strays) -> None:
        await in_thread(self._leftovers.signal, gone.processes, signal.SIGKILL)
        for build in gone.cgroups:
            await self._leftovers.remove_cgroup(build)
        for build in gone.directories:
            await in_thread(self._leftovers.remove_directories, build)
        lost = [build for build in await self._store.running_builds() if build.id in gone.records]
        close_builds(lost, _LOST, self._journal, self._logs)
