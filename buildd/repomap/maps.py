"""The owner of all maps: who wants which, what is being made, what is on the disk.

Everything here happens in the trio thread, one step at a time. There is at most one job for a repository and commit,
and all who want that map wait for it. A job runs until it ends, whoever waits; `cancel` kills its processes.

Layout: `<clone's name>/<commit>/` are published maps, complete and durable, `.incoming/` is what is being made or
removed. A map appears and disappears by one rename.

Invariants: a status that says `building` belongs to a job, whose process lives once it has a pid; what a daemon that
is gone left as `building` is `failed` before the next one answers. Who reads a published map holds it, and it is not
removed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import structlog
import trio

from buildd import descriptors
from buildd.config import Config
from buildd.errors import BuilddError, InvalidInput, NotFound, Refused
from buildd.life import End
from buildd.model import RepoMapStatus, Repository
from buildd.process import Spawner, spawn
from buildd.repomap.process import MapFailed, ask
from buildd.repomap.wire import Answer, BuildRequest, Built, Progress, Request, Source, TextRequest
from buildd.repos.clones import Clones
from buildd.repos.trees import GitStore
from buildd.repos.url import SCHEMES, parse_url
from buildd.scope import Scope
from buildd.store import remains
from buildd.store.tree import sync_directory
from buildd.threads import in_thread

log = structlog.get_logger(__name__)

Emit = Callable[[str, str, dict[str, object]], None]
"""`emit(kind, url, data)` publishes one event."""
A = TypeVar("A", bound=Answer)

_CLEANUP_LIMIT = 20.0
_QUESTIONS = 2
"""Processes that answer questions at a time; each holds one map."""
_ANSWER_WITHIN_S = 60.0
_KEPT_ANSWERS = 32
_KEPT_ANSWER_BYTES = 256 * 1024
_EVENT_INTERVAL = 1.0
"""Seconds between two `map_progress` events of one job: the journal keeps them all."""
_FAILED_BY: Mapping[End, str] = {
    "stopped": "interrupted: the daemon ended while the map was made",
    "killed": "interrupted: the daemon was killed while the map was made",
    "machine down": "interrupted: the machine went down while the map was made",
}

Key = tuple[str, str]
"""Normalised URL, commit."""


class Records(Protocol):
    """What is kept between two lives of the daemon."""

    def all(self) -> Sequence[RepoMapStatus]: ...
    def save(self, status: RepoMapStatus, /) -> None: ...
    def remove(self, repository: str, commit: str, /) -> None: ...


class _Job:
    """A map on its way; `status` is the newest one."""

    def __init__(self, status: RepoMapStatus) -> None:
        self.status = status
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.why_cancelled = _FAILED_BY["stopped"]
        self.next_event = 0.0

    def cancel(self) -> None:
        self.why_cancelled = "cancelled"
        self.scope.cancel()


class Maps:
    """All maps. `run` must be started before anything is asked of it."""

    def __init__(
        self,
        directory: Path,
        config: Callable[[], Config],
        clones: Clones,
        records: Records,
        emit: Emit,
        *,
        earlier_end: End,
        spawner: Spawner = spawn,
        clock: Callable[[], float] = time.time,
        cookie: Mapping[str, str] | None = None,
    ) -> None:
        """`cookie` goes into the environment of map processes, so that those that outlive this daemon are found."""
        self._root = directory
        self._incoming = directory / ".incoming"
        self._config = config
        self._clones = clones
        self._records = records
        self._emit = emit
        self._earlier_end = earlier_end
        self._spawner = spawner
        self._clock = clock
        self._cookie = dict(cookie or {})
        self._statuses: dict[Key, RepoMapStatus] = {}
        """The last used one last."""
        self._jobs: dict[Key, _Job] = {}
        self._readers: Counter[Key] = Counter()
        self._turns = trio.CapacityLimiter(1)
        self._questions = trio.CapacityLimiter(_QUESTIONS)
        self._answers: OrderedDict[tuple[str, bytes], Answer] = OrderedDict()
        """By the map's build_id and the question."""
        self._nursery: trio.Nursery | None = None

    # --- life ---------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the jobs until cancelled; then kill their processes and leave nothing of them behind."""
        await self._recover()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def _recover(self) -> None:
        on_disk = await in_thread(self._look)
        for status in sorted(self._records.all(), key=lambda status: status.started_at):
            key = status.repository, status.commit
            if status.status == "building":
                self._tell(self._end(status, error=_FAILED_BY[self._earlier_end]))
            elif status.status == "failed" or Path(status.output_path or "") in on_disk:
                self._statuses[key] = status
            else:
                self._records.remove(*key)
        kept = {status.output_path for status in self._statuses.values()}
        for path in on_disk:
            if str(path) not in kept:
                log.warning("removing a map that has no record", path=str(path))
                await in_thread(self._remove, path)

    def _look(self) -> set[Path]:
        """Make what is missing, remove what was left half made; the published maps. Blocks."""
        self._incoming.mkdir(mode=0o750, parents=True, exist_ok=True)
        for path in self._incoming.iterdir():
            remains.discard(path)
        folders = [path for path in self._root.iterdir() if path.is_dir() and path != self._incoming]
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if there is nothing in it any more
        folders = [folder for folder in folders if folder.is_dir()]
        return {path for folder in folders for path in folder.iterdir()}

    # --- questions ----------------------------------------------------------------------------------------

    def list(self) -> Sequence[RepoMapStatus]:
        """Every known map, newest first."""
        return sorted(self._all().values(), key=lambda status: (-status.started_at, status.build_id))

    def latest(self, url: str) -> RepoMapStatus | None:
        """The map of a repository (normalised URL) that was asked for last."""
        return next((status for status in self.list() if status.repository == url), None)

    @property
    def active(self) -> Sequence[RepoMapStatus]:
        """Those that are being made, or wait for their turn, oldest first."""
        return [job.status for job in self._jobs.values()]

    def in_use(self, url: str) -> bool:
        """Whether maps of the repository are being made or read."""
        return any(key[0] == url for key in (*self._jobs, *self._readers))

    async def status(self, repo: str, revision: str = "") -> RepoMapStatus:
        """The map of a revision; without one, of the default branch, or else what was asked for last.

        Raises NotFound, InvalidInput, Refused (not cloned).
        """
        key = await self._key(repo, revision)
        status = self._all().get(key) or (self.latest(key[0]) if not revision else None)
        if status is None:
            raise NotFound(f"there is no map of {key[0]} at {key[1][:12]}", hint="`buildctl map REPO` makes one.")
        return status

    async def read(self, repo: str, revision: str, file: str, offset: int, limit: int) -> tuple[bytes, int]:
        """A piece of a file of a complete map, and the size of the file. Raises as `question`."""
        with self._hold(await self._key(repo, revision)) as status:
            return await in_thread(_piece, Path(status.output_path or "") / file, offset, limit)

    async def question(
        self, repo: str, revision: str, make: Callable[[Source], Request], answer: type[A], *, again: bool = True
    ) -> A:
        """What a process answers that has loaded a complete map.

        A map that turns out to be damaged is made anew. Raises NotFound, InvalidInput, Refused (the map is not
        complete), MapFailed.
        """
        key = await self._key(repo, revision)
        try:
            with self._hold(key) as status:
                return await self._ask(key, status, make, answer)
        except MapFailed as error:
            if error.kind == "invalid":
                raise InvalidInput(error.message) from None
            if error.kind == "not_found":
                raise NotFound(error.message) from None
            if error.kind != "damaged" or not again or key not in self._statuses:
                raise
            log.error("a map is damaged, and is made again", repository=key[0], commit=key[1], error=error.message)
        job = self._jobs.get(key) or self._start(key)
        await job.done.wait()
        return await self.question(repo, revision, make, answer, again=False)

    async def _ask(self, key: Key, status: RepoMapStatus, make: Callable[[Source], Request], answer: type[A]) -> A:
        request = make(self._source(key))
        words = msgspec.json.encode(request)
        if len(words) > 48 * 1024:
            raise InvalidInput("the question is too long", hint="Name fewer focus files and identifiers.")
        known = self._answers.get((status.build_id, words))
        if isinstance(known, answer):
            self._answers.move_to_end((status.build_id, words))
            return known
        async with self._questions:
            found = await ask(
                request,
                answer,
                spawner=self._spawner,
                cookie=self._cookie,
                nice=0,  # somebody waits for it
                timeout=_ANSWER_WITHIN_S,
            )
        self._keep(status, words, found)
        return found

    def _source(self, key: Key) -> Source:
        return Source(
            parent_pid=os.getpid(),
            directory=str(self._place(key)),
            repository=self._clones.find(key[0]).path,
            commit=key[1],
        )

    def _keep(self, status: RepoMapStatus, words: bytes, answer: Answer) -> None:
        if len(msgspec.json.encode(answer)) <= _KEPT_ANSWER_BYTES:
            self._answers[status.build_id, words] = answer
            while len(self._answers) > _KEPT_ANSWERS:
                self._answers.popitem(last=False)

    # --- commands -----------------------------------------------------------------------------------------

    async def request(self, repo: str, revision: str = "", *, again: bool = False) -> tuple[RepoMapStatus, bool]:
        """The map of a revision, and whether this call began to make it: when there is none, or `again`.

        A local repository needs no clone and becomes known. Raises NotFound, InvalidInput, Refused (not cloned, or
        not running).
        """
        if repo.startswith(("/", "file://")):
            self._clones.request(repo)
        key = await self._key(repo, revision)
        status = self._all().get(key)
        if status is not None and status.status == "building":
            return status, False
        if status is not None and status.status == "complete" and not again:
            self._use(key)
            return status, False
        return self._start(key).status, True

    async def wait(self, status: RepoMapStatus, timeout: float) -> RepoMapStatus:
        """The status when the job has ended, or the time is over."""
        key = status.repository, status.commit
        job = self._jobs.get(key)
        if job is not None:
            with trio.move_on_after(timeout):
                await job.done.wait()
        return self._all().get(key, status)

    async def cancel(self, repo: str, revision: str = "") -> int:
        """Stop making maps of a repository: all, or that of one revision. How many; raises NotFound for none."""
        if revision:
            wanted = {await self._key(repo, revision)}
        else:
            url = self._clones.find(repo).url
            wanted = {key for key in self._jobs if key[0] == url}
        jobs = [job for key, job in self._jobs.items() if key in wanted]
        if not jobs:
            raise NotFound(f"no map of {repo} is being made")
        await _stop(jobs)
        return len(jobs)

    def changed(self, repository: Repository) -> None:
        """A repository was cloned, or fetched with changes: map its default branch, where that is wished."""
        if self._nursery is not None and self._config().maps.automatic:
            self._nursery.start_soon(self._map_default_branch, repository.url)

    async def stop(self, url: str) -> None:
        """Stop making maps of a repository, if there are any being made."""
        await _stop([job for key, job in self._jobs.items() if key[0] == url])

    async def forget(self, url: str) -> None:
        """Remove what there is of a repository that was deleted."""
        await self.stop(url)
        for key in [key for key in self._statuses if key[0] == url]:
            await self._drop(key)

    # --- jobs ---------------------------------------------------------------------------------------------

    async def _map_default_branch(self, url: str) -> None:
        try:
            key = await self._key(url, "", touch=False)
            if key not in self._all():
                self._start(key)
        except BuilddError as error:  # an empty repository has no commit
            log.info("no map is made", repository=url, why=error.message)

    def _start(self, key: Key) -> _Job:
        if self._nursery is None:
            raise Refused("maps are not available: the daemon is starting or ending")
        status = RepoMapStatus(
            repository=key[0],
            commit=key[1],
            status="building",
            build_id=str(uuid.uuid4()),
            started_at=self._clock(),
            stage="waiting",
        )
        job = self._jobs[key] = _Job(status)
        self._records.save(status)
        self._nursery.start_soon(self._work, key, job, name=f"map {key[0]} {key[1][:12]}")
        return job

    async def _work(self, key: Key, job: _Job) -> None:
        error: str | None = job.why_cancelled
        built: Built | None = None
        try:
            with job.scope:
                self._turns.total_tokens = self._config().workers.max_concurrent_maps
                async with self._turns:
                    await descriptors.wait_for_some()
                    built, error = await self._attempt(key, job)
            if job.scope.cancelled_caught:
                error = job.why_cancelled
        finally:
            del self._jobs[key]
            self._tell(self._end(job.status, built=built, error=error))
            job.done.set()
        if error is None:
            await self._make_room(key[0])

    async def _attempt(self, key: Key, job: _Job) -> tuple[Built | None, str | None]:
        self._emit("map_started", key[0], {"commit": key[1], "build_id": job.status.build_id})
        try:
            return await self._make(key, job), None
        except BuilddError as error:
            return None, error.message
        except OSError as error:
            return None, f"cannot keep the map: {error}"
        except Exception:
            log.exception("no map was made for a fault of the daemon", repository=key[0], commit=key[1])
            return None, "internal error; the daemon's log has the details"

    async def _make(self, key: Key, job: _Job) -> Built:
        settings = self._config().maps
        with self._clones.use(key[0], touch=False) as repository:
            async with Scope(f"map {key[0]} {key[1][:12]}", close_within=_CLEANUP_LIMIT) as scope:
                incoming = self._incoming / job.status.build_id
                incoming.mkdir(mode=0o750)
                discard = partial(remains.discard_in_thread, incoming)
                scope.add("incoming directory", discard)  # unless it was put in its place
                request = BuildRequest(
                    parent_pid=os.getpid(),
                    repository=repository.path,
                    commit=key[1],
                    output=str(incoming),
                    cache=str(self._root / "blobs.db"),
                    processes=settings.processes,
                    tokens=settings.tokens,
                    max_file_bytes=int(settings.max_file_bytes),
                    max_file_s=float(settings.max_file_time),
                    max_cache_bytes=int(settings.max_cache_bytes),
                )
                built = await ask(
                    request,
                    Built,
                    spawner=self._spawner,
                    cookie=self._cookie,
                    nice=self._config().workers.nice,
                    timeout=float(settings.timeout),
                    started=partial(self._began, job),
                    report=partial(self._progress, job),
                )
                with trio.CancelScope(shield=True):  # one rename: afterwards it is there, and recorded
                    await in_thread(self._publish, incoming, self._place(key))
                if built.text is not None:
                    question = TextRequest(source=self._source(key), tokens=settings.tokens)
                    self._keep(job.status, msgspec.json.encode(question), built.text)
                return built

    def _began(self, job: _Job, pid: int) -> None:
        job.status = msgspec.structs.replace(job.status, pid=pid, stage="listing")
        self._records.save(job.status)

    def _progress(self, job: _Job, progress: Progress) -> None:
        job.status = msgspec.structs.replace(job.status, stage=progress.stage, done=progress.done, total=progress.total)
        now = trio.current_time()
        if now >= job.next_event:
            job.next_event = now + _EVENT_INTERVAL
            self._emit(
                "map_progress",
                job.status.repository,
                {"commit": job.status.commit, "stage": progress.stage, "done": progress.done, "total": progress.total},
            )

    def _end(self, status: RepoMapStatus, *, built: Built | None = None, error: str | None) -> RepoMapStatus:
        """Put down how an attempt ended, and return that. An earlier map stays when it could not be made again."""
        key = status.repository, status.commit
        ended = msgspec.structs.replace(status, pid=None, stage="", done=0, total=0, completed_at=self._clock())
        if built is not None:
            ended = msgspec.structs.replace(
                ended,
                status="complete",
                output_path=str(self._place(key)),
                files=built.files,
                mapped=built.mapped,
                parsed=built.parsed,
                definitions=built.definitions,
                left_out=built.left_out,
                bytes=built.bytes,
            )
        else:
            ended = msgspec.structs.replace(ended, status="failed", error=error)
        earlier = self._statuses.pop(key, None)
        kept = earlier if built is None and earlier is not None and earlier.status == "complete" else ended
        self._statuses[key] = kept
        self._records.save(kept)
        return ended

    def _tell(self, status: RepoMapStatus) -> None:
        data: dict[str, object] = {"commit": status.commit, "build_id": status.build_id}
        if status.status == "complete":
            took = round((status.completed_at or 0) - status.started_at, 3)
            data |= {"path": status.output_path, "files": status.files, "parsed": status.parsed, "duration": took}
            self._emit("map_completed", status.repository, data)
        else:
            self._emit("map_failed", status.repository, data | {"error": status.error})
            log.warning("no map was made", repository=status.repository, **data, error=status.error)

    # --- what is on the disk ------------------------------------------------------------------------------

    def _place(self, key: Key) -> Path:
        return self._root / parse_url(key[0], SCHEMES).directory / key[1]

    def _publish(self, incoming: Path, place: Path) -> None:
        """Put a complete map in its place, durably. Blocks."""
        self._remove(place)
        place.parent.mkdir(mode=0o755, exist_ok=True)
        incoming.rename(place)
        sync_directory(place.parent)
        sync_directory(self._root)

    def _remove(self, place: Path) -> None:
        """Make a published map disappear at once, then remove it. Blocks."""
        aside = self._incoming / uuid.uuid4().hex
        try:
            place.rename(aside)
        except FileNotFoundError:
            return
        remains.discard(aside)
        with contextlib.suppress(OSError):
            place.parent.rmdir()

    async def _make_room(self, url: str) -> None:
        """Remove maps of a repository beyond those that are kept, and those of repositories that are gone."""
        known = {repository.url for repository in self._clones.list()}
        mine = [key for key, status in self._statuses.items() if key[0] == url and status.status == "complete"]
        old = mine[: max(0, len(mine) - self._config().maps.keep)]
        gone = [key for key in self._statuses if key[0] not in known and key not in self._jobs]
        failed = [key for key, status in self._statuses.items() if key[0] == url and status.status == "failed"]
        for key in {*old, *gone, *failed[:-1]}:
            if not self._readers[key]:
                await self._drop(key)

    async def _drop(self, key: Key) -> None:
        status = self._statuses.pop(key, None)
        if status is None:
            return
        self._records.remove(*key)
        if status.output_path is not None:
            await in_thread(self._remove, Path(status.output_path))

    @contextlib.contextmanager
    def _hold(self, key: Key) -> Iterator[RepoMapStatus]:
        """A complete map that stays as long as the context lasts. Raises NotFound, Refused."""
        status = self._all().get(key)
        if status is None:
            raise NotFound(f"there is no map of {key[0]} at {key[1][:12]}", hint="Ask for it: `buildctl map REPO`.")
        if status.status == "building":
            raise Refused(
                f"the map of {key[0]} at {key[1][:12]} is being made ({status.stage})", hint="Ask again in a moment."
            )
        if status.status == "failed":
            raise Refused(
                f"the map of {key[0]} at {key[1][:12]} could not be made: {status.error}", hint="Ask for it again."
            )
        self._use(key)
        self._readers[key] += 1
        try:
            yield status
        finally:
            self._readers[key] -= 1
            if not self._readers[key]:
                del self._readers[key]

    def _use(self, key: Key) -> None:
        """Remember that a map was used just now."""
        self._statuses[key] = self._statuses.pop(key)

    def _all(self) -> dict[Key, RepoMapStatus]:
        return self._statuses | {key: job.status for key, job in self._jobs.items()}

    # --- names --------------------------------------------------------------------------------------------

    async def _key(self, repo: str, revision: str, *, touch: bool = True) -> Key:
        """Raises NotFound, InvalidInput, Refused."""
        with self._clones.use(repo, touch=touch) as repository:
            return repository.url, await in_thread(_resolve, Path(repository.path), revision or None)


async def _stop(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.cancel()
    for job in jobs:
        await job.done.wait()


def _resolve(path: Path, revision: str | None) -> str:
    with GitStore(path) as store:
        return store.resolve(revision)


def _piece(path: Path, offset: int, limit: int) -> tuple[bytes, int]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        return file.read(limit), size
