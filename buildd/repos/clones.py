"""The owner of all clones: who wants which repository, what is running, what is on disk.

Everything here happens in the trio thread, one step at a time; nobody else writes to the cache directory or to
the records of repositories. There is at most one job (clone or fetch) per repository, and all who want that
repository wait for it. A job that somebody asked for by `request` runs until it ends; one that exists only
because of `ensure` ends with its last waiter.

Local paths (scheme `file`) are used in place: they have a record and can be listed, but never a job.

Clones beyond the limits go, the least recently used first (`buildd.repos.eviction`): before a clone begins, to make
room for it, after each transfer, and when one that was in the way is let go. Jobs that nobody asked for, the scheduled
refreshes of `buildd.repos.care`, have a slot of their own: nobody who asks waits for one of them.

At start, records that say `cloning` become `failed` ("interrupted"), records of vanished clones too. A clone
without a record, as after a lost database, is adopted when it says which URL it was made from and lies where
that URL belongs; otherwise it is removed, for nothing could ever find it again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from buildd import descriptors
from buildd.errors import InvalidInput, NotFound, Refused
from buildd.model import CloneStatus, Repository
from buildd.process import Spawner, spawn
from buildd.repos import local, trees
from buildd.repos.cachedir import CacheDir, remove, sweep, tree_bytes
from buildd.repos.catalog import Catalog
from buildd.repos.eviction import Evictor
from buildd.repos.jobs import ActiveClone, CloneAnswer, CloneSettings, Job, Refreshed, RepositoryStatus
from buildd.repos.records import RepositoryRecords
from buildd.repos.secrets import credentials_for
from buildd.repos.transfer import CloneFailed, transfer
from buildd.repos.url import SCHEMES, Credentials, RepoUrl, parse_url
from buildd.repos.wire import Done, Operation, Progress, Request
from buildd.scope import Scope
from buildd.store import remains
from buildd.threads import in_thread

__all__ = ["ActiveClone", "CloneAnswer", "CloneFailed", "CloneSettings", "Clones", "Refreshed", "RepositoryStatus"]

log = structlog.get_logger(__name__)

Emit = Callable[[str, str, dict[str, object]], None]
"""`emit(kind, url, data)` publishes one event."""

_EVENT_INTERVAL = 1.0
"""Seconds between two `clone_progress` events of one job: the journal keeps them all."""
_INTERRUPTED = "interrupted: the daemon ended while cloning"
_CLEANUP_LIMIT = 20.0
"""Seconds that removing a tree may hold up what waits for it; what is left goes at the next start."""


class Clones:
    """All repositories. `run` must be started before anything is asked of it."""

    def __init__(
        self,
        cache_dir: Path,
        settings: CloneSettings,
        records: RepositoryRecords,
        emit: Emit,
        *,
        spawner: Spawner = spawn,
        clock: Callable[[], float] = time.time,
        cookie: Mapping[str, str] | None = None,
    ) -> None:
        """`cookie` goes into the environment of workers, so that the next daemon finds those that outlived this one."""
        self._cache = CacheDir(cache_dir)
        self._settings = settings
        self._catalog = Catalog(records, clock)
        self._emit = emit
        self._spawner = spawner
        self._cookie = dict(cookie or {})
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._users: dict[str, int] = {}
        self._remembered: dict[str, Credentials] = {}
        self._slots = trio.CapacityLimiter(settings.max_concurrent)
        self._unasked_slot = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery | None = None
        self.evictor = Evictor(self._catalog, self._cache, emit, self.in_use)
        self.on_changed: Callable[[Repository], None] | None = None
        """Called when a repository was cloned, or a fetch has changed it."""

    # --- life ---------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the jobs until cancelled; then kill their workers and leave nothing of them behind."""
        await self._recover()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def reconfigure(self, settings: CloneSettings) -> None:
        """Take new settings for the jobs that start from now on."""
        self._settings = settings
        self._slots.total_tokens = settings.max_concurrent

    async def _recover(self) -> None:
        self._catalog.load()
        leftovers = await in_thread(self._cache.prepare)
        on_disk = dict(await in_thread(lambda: list(self._cache.clones())))
        if leftovers:
            log.info("removed interrupted clones", count=leftovers)
        interrupted: list[str] = []
        for repository in self._catalog.all():
            state = repository.clone_status.status
            present = Path(repository.path) in on_disk
            if state == "cloning":
                interrupted.append(repository.url)
                self._catalog.fail(repository.url, _INTERRUPTED)
            elif state == "cloned" and not present and not repository.url.startswith("file://"):
                self._catalog.fail(repository.url, "the clone has vanished from the cache directory")
        kept = {r.path for r in self._catalog.all() if r.clone_status.status == "cloned"}
        for path, origin in on_disk.items():
            if str(path) in kept or await self._adopt(path, origin):
                await in_thread(sweep, path)
            else:
                log.warning("removing a clone that belongs to no repository", path=str(path))
                await in_thread(remove, self._cache.set_aside(path))
        for url in interrupted:
            self._tell_end_of(url)

    def _tell_end_of(self, url: str) -> None:
        """How a clone ended of which readers of the journal know only that it began."""
        repository = self._catalog.get(url)
        assert repository is not None
        if repository.clone_status.status == "cloned":  # it was in place, and only its record was not
            data = {"path": repository.path, "bytes": repository.bytes, "changed": True, "duration": None}
            self._emit("clone_completed", url, data)
        else:
            self._emit("clone_failed", url, {"operation": "clone", "reason": "interrupted", "error": _INTERRUPTED})

    async def _adopt(self, path: Path, origin: str) -> bool:
        try:
            url = parse_url(origin, SCHEMES)
        except InvalidInput:
            return False
        if url.directory != path.name:
            return False
        size = await in_thread(tree_bytes, path)
        now = self._clock()
        status = CloneStatus(status="cloned", started_at=now, completed_at=now)
        self._catalog.save(msgspec.structs.replace(self._blank(url), clone_status=status, bytes=size))
        log.info("adopted a clone that had no record", url=url.normalized, path=str(path))
        return True

    # --- questions ----------------------------------------------------------------------------------------

    def list(self) -> Sequence[Repository]:
        """Every known repository, by name."""
        return self._catalog.all()

    def find(self, text: str) -> Repository:
        """The repository that a URL or name means. Raises NotFound, or InvalidInput naming the candidates."""
        return self._catalog.find(text, SCHEMES)

    def status(self, text: str) -> RepositoryStatus:
        """All about one repository. Raises like `find`."""
        repository = self.find(text)
        job = self._jobs.get(repository.url)
        return RepositoryStatus(
            repository=repository,
            users=self._users.get(repository.url, 0),
            active=job.active() if job is not None else None,
        )

    def active(self) -> Sequence[ActiveClone]:
        """The jobs that wait or run, oldest first."""
        return [job.active() for job in self._jobs.values()]

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return sum(not job.running for job in self._jobs.values())

    def in_use(self, url: str) -> bool:
        """True when `url` (normalised) must stay: somebody uses it or waits for it, or a job works on it."""
        return bool(self._users.get(url)) or url in self._jobs

    async def branches(self, text: str) -> Sequence[trees.Branch]:
        """The branches of a cloned repository. Raises NotFound, InvalidInput, or Refused when not cloned."""
        repository = self.find(text)
        with self.use(repository.url):
            return await in_thread(trees.list_branches, Path(repository.path))

    # --- commands -----------------------------------------------------------------------------------------

    def request(self, url_text: str, *, again: bool = False) -> CloneAnswer:
        """Answer at once what there is of a repository; start a clone when it is unknown.

        One whose clone failed gives the reason, and is cloned again when `again` says so. Raises InvalidInput,
        NotFound (local path), Refused (not running).
        """
        url = parse_url(url_text, self._settings.schemes)
        nursery = self._running()
        if url.scheme == "file":
            repository = self._use_in_place(url)
            return CloneAnswer(status="cloned", path=repository.path, message="local: used in place, not copied")
        job = self._jobs.get(url.normalized)
        repository = self._catalog.get(url.normalized) or self._blank(url)
        if job is not None and not job.scope.cancel_called:
            job.detached = True
            if job.operation == "fetch":
                return CloneAnswer(status="cloned", path=repository.path, message="cloned; being refreshed")
            return CloneAnswer(status="cloning", path=repository.path, message=job.describe())
        status = repository.clone_status
        if status.status == "cloned":
            repository = self._catalog.touch(url.normalized)
            return CloneAnswer(status="cloned", path=repository.path, message="already cloned")
        if status.status == "failed" and not again:
            message = f"the last clone failed: {status.error}; ask again with `again` to retry"
            return CloneAnswer(status="failed", path=repository.path, message=message)
        if job is not None:
            nursery.start_soon(self._request_after, job, url)
        else:
            self._start(url, "clone").detached = True
        return CloneAnswer(status="accepted", path=repository.path, message=f"cloning {url.normalized}")

    async def ensure(self, url_text: str, *, refresh: bool = False) -> Repository:
        """The repository, cloned; with `refresh`, as it was on the server at this call or later.

        Raises CloneFailed with the reason, InvalidInput, NotFound (local path), Refused (not running).
        """
        return (await self._settle(url_text, refresh=refresh)).repository

    async def refresh(self, text: str, *, if_changed: bool = False) -> Refreshed:
        """The known repository as it is on the server, and whether that is news; of a local path it never is.

        With `if_changed` the server is asked for its references, and for more only when one of them differs. Raises as
        `ensure` and `find` do.
        """
        return await self._settle(self.find(text).url, refresh=True, if_changed=if_changed)

    async def refresh_unasked(self, url: str) -> bool:
        """Fetch what has changed, without that counting as use; whether there was anything.

        Ends at once when there is no clone, or a job for it. Raises CloneFailed, InvalidInput, Refused.
        """
        repository = self._catalog.get(url)
        if repository is None or repository.clone_status.status != "cloned" or url in self._jobs:
            await trio.lowlevel.checkpoint()
            return False
        job = self._start(parse_url(url, self._settings.schemes), "fetch", if_changed=True, unasked=True)
        await job.done.wait()
        if job.error is not None:
            raise CloneFailed(job.error.kind, job.error.message, hint=job.error.hint)
        return job.changed

    async def _settle(self, url_text: str, *, refresh: bool, if_changed: bool = False) -> Refreshed:
        url = parse_url(url_text, self._settings.schemes)
        self._running()
        changed = False
        if url.scheme == "file":
            await trio.lowlevel.checkpoint()
            return Refreshed(repository=self._use_in_place(url), changed=False)
        while True:
            job = self._jobs.get(url.normalized)
            if job is not None and job.scope.cancel_called:
                await job.done.wait()
                continue
            repository = self._catalog.get(url.normalized)
            cloned = repository is not None and repository.clone_status.status == "cloned"
            if cloned and not refresh and (job is None or job.operation == "fetch"):
                await trio.lowlevel.checkpoint()
                return Refreshed(repository=self._catalog.touch(url.normalized), changed=changed)
            if job is None:
                job = self._start(url, "fetch" if cloned else "clone", if_changed=if_changed)
            # A job that already runs may have asked the server before what this caller wants was pushed.
            early = job.running
            await self._wait_for(job)
            changed = changed or job.changed
            refresh = refresh and early
            if not refresh:
                repository = self._catalog.get(url.normalized)
                if repository is not None:
                    return Refreshed(repository=self._catalog.touch(url.normalized), changed=changed)

    def cancel(self, text: str) -> None:
        """Stop the clone or fetch of a repository. Raises NotFound when there is none."""
        repository = self.find(text)
        job = self._jobs.get(repository.url)
        if job is None or job.scope.cancel_called:
            raise NotFound(f"nothing is being cloned or fetched for {repository.url}")
        job.cancel("cancelled")

    async def delete(self, text: str) -> None:
        """Forget a repository and remove its clone. Raises Refused while it is used or being cloned."""
        repository = self.find(text)
        url = repository.url
        job = self._jobs.get(url)
        if job is not None and job.unasked and not job.waiters:
            job.cancel("cancelled: the repository is deleted")
            await job.done.wait()
        if url in self._jobs:
            raise Refused(f"{url} is being cloned or refreshed", hint="Cancel that first.")
        if self._users.get(url):
            raise Refused(f"{url} is in use by {self._users[url]} task(s)", hint="Wait for them, or cancel them.")
        path = Path(repository.path)
        aside = None
        if not url.startswith("file://"):
            with contextlib.suppress(FileNotFoundError):
                aside = self._cache.set_aside(path)
        self._catalog.remove(url)
        self._remembered.pop(url, None)
        self._emit("repo_deleted", url, {"path": str(path), "bytes": repository.bytes})
        if aside is not None:
            await self._remove(aside)

    async def make_room(self, *, coming: int = 0) -> None:
        """Evict what the limits do not allow, with `coming` further clones; who waits for this waits for the disk."""
        settings = self._settings
        for aside in self.evictor.evict(settings.max_repositories, settings.max_bytes, coming=coming):
            await self._remove(aside)

    @contextlib.contextmanager
    def use(self, text: str, *, touch: bool = True) -> Iterator[Repository]:
        """Hold a cloned repository: it is not deleted or evicted. Raises NotFound, InvalidInput, Refused.

        `touch` says that somebody wants something of it, which makes it one of those that are used.
        """
        repository = self.find(text)
        url = repository.url
        if repository.clone_status.status != "cloned":
            raise Refused(
                f"{url} is not cloned ({repository.clone_status.status})", hint="Clone it, or wait until it is."
            )
        with self._counted(url):
            yield self._catalog.touch(url) if touch else repository

    @contextlib.contextmanager
    def _counted(self, url: str) -> Iterator[None]:
        self._users[url] = self._users.get(url, 0) + 1
        try:
            yield
        finally:
            self._users[url] -= 1
            if not self._users[url]:
                del self._users[url]
                if self.evictor.trouble and self._nursery is not None:  # perhaps it was in the way
                    self._nursery.start_soon(self.make_room)

    # --- jobs ---------------------------------------------------------------------------------------------

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise Refused("repositories are not available: the daemon is starting or ending")
        return self._nursery

    def _blank(self, url: RepoUrl) -> Repository:
        return Repository(
            url=url.normalized,
            name=url.name,
            path=url.fetch_url if url.scheme == "file" else str(self._cache.root / url.directory),
            last_access=self._clock(),
        )

    def _use_in_place(self, url: RepoUrl) -> Repository:
        local.check_directory(Path(url.fetch_url))
        if self._catalog.get(url.normalized) is None:
            now = self._clock()
            status = CloneStatus(status="cloned", started_at=now, completed_at=now)
            self._catalog.save(msgspec.structs.replace(self._blank(url), clone_status=status))
        return self._catalog.touch(url.normalized)

    def _start(self, url: RepoUrl, operation: Operation, *, if_changed: bool = False, unasked: bool = False) -> Job:
        """Register and start a job. The caller made sure that there is none."""
        nursery = self._running()
        assert url.normalized not in self._jobs
        if url.credentials is not None:
            self._remembered[url.normalized] = url.credentials
        credentials = self._remembered.get(url.normalized)
        job = Job(url, operation, credentials, self._clock(), if_changed=if_changed, unasked=unasked)
        self._jobs[url.normalized] = job
        if operation == "clone":
            repository = self._catalog.get(url.normalized) or self._blank(url)
            status = CloneStatus(status="cloning", started_at=job.started_at)
            self._catalog.save(msgspec.structs.replace(repository, last_access=job.started_at, clone_status=status))
        nursery.start_soon(self._work, job, name=f"{operation} {url.normalized}")
        return job

    async def _request_after(self, old: Job, url: RepoUrl) -> None:
        """Start a detached clone as soon as a cancelled one has cleaned up."""
        await old.done.wait()
        job = self._jobs.get(url.normalized) or self._start(url, "clone")
        job.detached = True

    async def _wait_for(self, job: Job) -> None:
        job.waiters += 1
        try:
            with self._counted(job.url.normalized):  # what has just been cloned stays until its waiters have seen it
                await job.done.wait()
        finally:
            job.waiters -= 1
            if not job.waiters and not job.detached and not job.done.is_set():
                job.cancel("cancelled: nobody waits for it any more")
        if job.error is not None:
            # Each waiter gets an exception of its own: tracebacks must not grow into each other.
            raise CloneFailed(job.error.kind, job.error.message, hint=job.error.hint)

    async def _work(self, job: Job) -> None:
        error: CloneFailed | None = CloneFailed("interrupted", "interrupted: the daemon is ending")
        try:
            with job.scope:
                async with self._unasked_slot if job.unasked else self._slots:
                    await descriptors.wait_for_some()
                    job.running = True
                    error = await self._attempt(job)
            if job.scope.cancelled_caught:
                error = CloneFailed("interrupted", job.why_cancelled)
        finally:
            self._finish(job, error)

    async def _attempt(self, job: Job) -> CloneFailed | None:
        url = job.url.normalized
        self._emit("clone_started", url, {"operation": job.operation})
        try:
            if job.operation == "clone":
                await self.make_room(coming=1)
                await self._clone(job)
            else:
                await self._fetch(job)
        except CloneFailed as error:
            return error
        except OSError as error:
            return CloneFailed("other", f"cannot keep the clone of {url}: {error}")
        return None

    def _finish(self, job: Job, error: CloneFailed | None) -> None:
        url = job.url.normalized
        del self._jobs[url]
        job.error = error
        if error is not None:
            if job.operation == "clone":
                self._catalog.fail(url, error.message)
            data = {"operation": job.operation, "reason": error.kind, "error": error.message}
            self._emit("clone_failed", url, dict(data))
            if not job.unasked:
                log.warning("clone failed", url=url, **data)
        job.done.set()
        if error is None and self._nursery is not None:
            self._nursery.start_soon(self.make_room)

    async def _clone(self, job: Job) -> None:
        async with Scope(f"clone {job.url.normalized}", close_within=_CLEANUP_LIMIT) as scope:
            incoming = self._cache.incoming()
            discard = partial(remains.discard_in_thread, incoming)
            scope.add("incoming directory", discard)  # unless it was put in its place
            done = await self._transfer(job, incoming)
            with trio.CancelScope(shield=True):  # one rename: afterwards the clone is there, and recorded
                await in_thread(self._cache.put_in_place, incoming, job.url.directory)
                repository = self._record(job, done, changed=True)
        self._tell(job, "clone_completed", repository)

    async def _fetch(self, job: Job) -> None:
        url = job.url.normalized
        repository = self._catalog.get(url)
        assert repository is not None
        path = Path(repository.path)
        try:
            done = await self._transfer(job, path)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLEANUP_LIMIT):
                await in_thread(sweep, path)
            raise
        self._tell(job, "repo_refreshed", self._record(job, done, changed=done.changed))

    def _record(self, job: Job, done: Done, *, changed: bool) -> Repository:
        job.changed = changed
        repository = self._catalog.get(job.url.normalized)
        assert repository is not None
        now = self._clock()
        if job.operation == "clone":
            status = CloneStatus(status="cloned", started_at=job.started_at, completed_at=now)
            repository = msgspec.structs.replace(repository, clone_status=status, last_access=now)
        size = repository.bytes if done.bytes is None else done.bytes
        return self._catalog.save(msgspec.structs.replace(repository, bytes=size, fetched_at=now))

    def _tell(self, job: Job, kind: str, repository: Repository) -> None:
        data: dict[str, object] = {
            "path": repository.path,
            "bytes": repository.bytes,
            "changed": job.changed,
            "duration": round(self._clock() - job.started_at, 3),
        }
        self._emit(kind, repository.url, data)
        if job.changed and self.on_changed is not None:
            self.on_changed(repository)

    async def _transfer(self, job: Job, path: Path) -> Done:
        settings = self._settings
        credentials = await in_thread(credentials_for, job.url, job.credentials, settings.tokens)
        request = Request(
            operation=job.operation,
            if_changed=job.if_changed,
            parent_pid=os.getpid(),
            scheme=job.url.scheme,
            url=job.url.fetch_url,
            origin=job.url.normalized,
            path=str(path),
            transport=settings.transport,
            credentials=credentials,
            ssh_key=settings.ssh_key,
            known_hosts=settings.known_hosts,
            connect_timeout_s=settings.connect_timeout_s,
        )
        return await transfer(
            request,
            spawner=self._spawner,
            environ=os.environ,
            cookie=self._cookie,
            idle_timeout_s=settings.idle_timeout_s,
            total_timeout_s=settings.total_timeout_s,
            report=lambda progress: self._progress(job, progress),
        )

    def _progress(self, job: Job, progress: Progress) -> None:
        job.progress = progress
        now = trio.current_time()
        if now >= job.next_event:
            job.next_event = now + _EVENT_INTERVAL
            active = job.active().progress
            data: dict[str, object] = {**msgspec.structs.asdict(active), "percent": round(active.percent, 1)}
            self._emit("clone_progress", job.url.normalized, {"stage": progress.stage, **data})

    async def _remove(self, path: Path) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLEANUP_LIMIT) as scope:
            await remains.discard_in_thread(path)
        if scope.cancelled_caught:
            log.warning("removing a directory takes long; it goes on in the background", path=str(path))
