"""The collector: removes artifacts and releases when the limits ask for it, while builds go on.

It looks at regular intervals, after builds, and when one ended for want of space. What goes is decided by
`buildd.store.collect`; here it is made safe. For each victim, in one step on trio's thread: nobody needs it (the
engine says so, and nobody holds it), it is withdrawn, the engine forgets it. From then on nobody finds it, and its
files can go in a worker thread.

Invariants: what an unfinished run may use, what is being fetched and what is pinned never goes; no room on the disk
and no database is needed to make room; one collection at a time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from buildd.config import Config
from buildd.engine.account import Account
from buildd.errors import BuilddError
from buildd.protocol import CollectResult
from buildd.store import remains
from buildd.store.artifacts import ArtifactStore
from buildd.store.collect import Choice, Limits, Space, Victim, attainable, choose, limits_of, short_of_space
from buildd.store.journal import Journal
from buildd.store.usage import Surveyor
from buildd.threads import in_thread

log = structlog.get_logger()

LOOK_EVERY_S = 5.0
"""Between looks at the free space while nothing happens."""
SLACK = 0.05
"""Part by which the daemon itself outdoes a limit that was not kept, so that the next build does not break it."""
_REST_S, _REST_COST = 1.0, 20
"""After a look none for so many seconds, and for so many times what it took."""
_UNMET_REST_S = 60.0
_END_WITHIN_S = 2.0
"""The same where nothing more can go. A build that finds the disk full is reason to look at once, in any case."""
_ROUNDS = 3
"""Choices for one collection: a victim may come into use before it goes, and another goes in its place."""
_SLICE = 20
"""Artifacts that are asked about, or withdrawn, before other tasks have their turn."""


class Collector:
    def __init__(
        self,
        *,
        config: Callable[[], Config],
        artifacts: ArtifactStore,
        releases: Path,
        journal: Journal,
        in_use: Callable[[str], bool],
        forget: Callable[[Collection[str]], None],
    ) -> None:
        """`in_use` says whether an unfinished run may need an output; `forget` is told of those that go."""
        self._config = config
        self._artifacts = artifacts
        self._surveyor = Surveyor(artifacts, releases)
        self._journal = journal
        self._in_use = in_use
        self._forget = forget
        self._turn = trio.Lock()
        self._complained: frozenset[str] = frozenset()
        """Limits that the last collection could not meet."""
        self._next_look = 0.0
        """When all limits are looked at again; times are trio's."""
        self._rest_until = 0.0
        self._built = False
        """Whether builds have ended since the last look."""

    # --- by itself ----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the limits until cancelled; first removes what an interrupted collection left."""
        try:
            await in_thread(self._surveyor.remove_temporaries)
        except OSError as error:
            log.error("what an earlier collection left cannot be removed", error=str(error))
        position = self._journal.last
        self._next_look = trio.current_time() + min(LOOK_EVERY_S, self._config().cache.collect_interval)
        task_status.started()
        while True:
            try:
                position, disk_full = await self._wait(position)
                await self._tend(disk_full)
            except OSError as error:
                log.error("garbage cannot be collected", error=str(error))
                self._rest_until = trio.current_time() + _UNMET_REST_S
            except Exception:
                log.exception("garbage cannot be collected for a fault of the daemon")
                self._rest_until = trio.current_time() + _UNMET_REST_S

    async def _wait(self, position: int) -> tuple[int, bool]:
        """Wait until it is time to look; the position in the journal, and whether a build found the disk full."""
        await trio.sleep(_REST_S)  # builds that end together are one reason to look
        now = trio.current_time()
        due = max(self._rest_until, now if self._built else min(self._next_look, now + LOOK_EVERY_S))
        try:
            answer = await self._journal.poll(
                position, timeout=due - now, kinds=("package_completed", "package_failed")
            )
        except BuilddError:  # what has happened cannot be read: look as if it had been builds
            await trio.sleep(_REST_S)
            self._built = True
            return self._journal.last, False
        self._built = self._built or bool(answer.events)
        return answer.next, any(event.data.get("reason") == "disk_full" for event in answer.events)

    async def _tend(self, disk_full: bool) -> None:
        """Collect if a limit is not kept, or may not be."""
        if remains.some():
            await in_thread(remains.remove_again)
        now = trio.current_time()
        if now < self._rest_until and not disk_full:
            return
        cache = self._config().cache
        space = await in_thread(self._surveyor.space)
        limits = attainable(limits_of(cache), space)
        if disk_full and limits.min_free_bytes:
            limits = self._roomier(limits, space)
        due = now >= self._next_look
        if due:
            self._next_look = now + cache.collect_interval
        built, self._built = self._built, False
        self._rest_until = now + _REST_S
        if short_of_space(limits, space) or (limits.max_bytes and (built or due)) or (limits.max_age and due):
            result = await self.collect(limits, slack=SLACK)
            took = trio.current_time() - now
            rest = _UNMET_REST_S if result.unmet else min(max(_REST_S, _REST_COST * took), _UNMET_REST_S)
            self._rest_until = now + took + rest

    def _roomier(self, limits: Limits, space: Space) -> Limits:
        """Limits for a disk that was too full for a build, which has left it by now: twice as much room as there is.

        Nobody knows how much the build needs; should it fail again, the room doubles again. A build directory on
        another file system has nothing to gain from it.
        """
        if Path(self._config().daemon.work_dir).stat().st_dev != self._artifacts.root.stat().st_dev:
            return limits
        wanted = max(limits.min_free_bytes, min(2 * space.free_bytes, space.total_bytes // 2))
        return msgspec.structs.replace(limits, min_free_bytes=wanted)

    async def limits(self) -> Limits:
        """Those of the configuration, as they are applied on this file system."""
        space = await in_thread(self._surveyor.space)
        return attainable(limits_of(self._config().cache), space)

    # --- one collection -----------------------------------------------------------------------------------

    async def collect(self, limits: Limits, *, dry_run: bool = False, slack: float = 0.0) -> CollectResult:
        """Remove what the limits do not allow; `slack` is that of `choose`. Raises OSError."""
        async with self._turn:
            account = Account(limits, dry_run)
            for _ in range(_ROUNDS):
                choice = await self._choose(account, slack)
                packages = await in_thread(self._packages_of, choice.victims)
                if dry_run:
                    account.gone(choice.victims, packages)
                    break
                if await self._remove(choice.victims, packages, account):
                    break
            result = account.result()
        if not dry_run:
            self._report(result)
        return result

    async def _choose(self, account: Account, slack: float) -> Choice:
        entries = await in_thread(self._surveyor.survey, trio.from_thread.check_cancelled)
        for index, entry in enumerate(entries):
            if account.is_stuck(entry) or (entry.kind == "artifact" and self._is_needed(entry.id)):
                entries[index] = msgspec.structs.replace(entry, in_use=True)
            if index % _SLICE == 0:
                await trio.lowlevel.checkpoint()
        account.survey(entries, await in_thread(self._surveyor.space))
        work = partial(choose, entries, account.limits, account.space, now=time.time(), slack=slack)
        return await in_thread(work)

    def _is_needed(self, output: str) -> bool:
        return self._artifacts.holds.is_held(output) or self._in_use(output)

    def _packages_of(self, victims: Sequence[Victim]) -> dict[str, tuple[str, ...]]:
        """`NAME@VERSION` of the builds that made each artifact, from the receipts beside it."""
        artifacts = [victim.entry.id for victim in victims if victim.entry.kind == "artifact"]
        return {output: self._artifacts.packages(output) for output in artifacts}

    async def _remove(self, victims: Sequence[Victim], packages: dict[str, tuple[str, ...]], account: Account) -> bool:
        """Remove the victims as far as nobody needs them by now; whether all of them went."""
        going: list[Victim] = []
        for start in range(0, len(victims), _SLICE):
            part = [
                v for v in victims[start : start + _SLICE] if v.entry.kind != "artifact" or self._withdraw(v.entry.id)
            ]
            outputs = [v.entry.id for v in part if v.entry.kind == "artifact"]
            if outputs:
                self._forget(outputs)
            going += part
            await trio.lowlevel.checkpoint()
        begun, ended = threading.Event(), threading.Event()

        def work() -> tuple[list[Victim], list[tuple[Victim, OSError]]]:
            begun.set()
            try:
                return self._remove_files(going)
            finally:
                ended.set()

        try:
            gone, failed = await in_thread(work, abandon_on_cancel=True)
        finally:  # what is being removed is gone before the daemon ends, unless that takes long
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _END_WITHIN_S):
                while begun.is_set() and not ended.is_set():  # noqa: ASYNC110  # a thread that was left tells nobody
                    await trio.sleep(0.01)
        account.gone(gone, packages)
        account.failed(failed)
        return len(gone) == len(victims)

    def _withdraw(self, output: str) -> bool:
        return not self._in_use(output) and self._artifacts.holds.withdraw(output)

    def _remove_files(self, victims: Sequence[Victim]) -> tuple[list[Victim], list[tuple[Victim, OSError]]]:
        """In a worker thread. Those that are gone, and those that would not go."""
        gone: list[Victim] = []
        failed: list[tuple[Victim, OSError]] = []
        for victim in victims:
            trio.from_thread.check_cancelled()
            try:
                if self._surveyor.remove(victim.entry):
                    gone.append(victim)
            except OSError as error:
                failed.append((victim, error))
        return gone, failed

    def _report(self, result: CollectResult) -> None:
        """Say what went, and what limit cannot be met when that was not said before."""
        complaint = frozenset(unmet.limit for unmet in result.unmet)
        fresh = complaint - self._complained
        self._complained = complaint
        for what in result.failed:
            log.error("garbage cannot be removed", error=what)
        for limit in result.unmet:
            if limit.limit in fresh:
                log.warning("a limit of the cache cannot be kept", limit=limit.limit, why=limit.message)
        if not (result.collected or fresh):
            return
        kinds = Counter(item.kind for item in result.collected)
        data = {
            "artifacts": kinds["artifact"],
            "releases": kinds["release"],
            "damaged": kinds["damaged"],
            "reasons": dict(Counter(item.reason for item in result.collected)),
            "freed_bytes": result.freed_bytes,
            "freed_inodes": result.freed_inodes,
            "bytes": result.bytes,
            "free_bytes": result.free_bytes,
            "unmet": [limit.message for limit in result.unmet],
        }
        log.info("garbage collected", **data)
        self._journal.emit("artifacts_collected", data=data)
