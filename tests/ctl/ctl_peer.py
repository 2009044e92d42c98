"""A daemon for the client's tests: a real ROUTER socket that speaks the protocol from a thread.

Parameters are decoded and answers checked against `buildd.protocol.METHODS`, so that neither side can drift
from the contract. Long polls are held as the daemon holds them.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from buildd import protocol as p
from buildd.errors import BuilddError, NotFound, Refused
from buildd.model import BuildRecord, CloneProgress, CloneStatus, Event, Repository, Stats

ROOT = Path(__file__).resolve().parents[2]
Ctl = Callable[..., subprocess.CompletedProcess[str]]
Background = Callable[..., subprocess.Popen[str]]


def command(*args: str) -> list[str]:
    """The command line of `buildctl` with these arguments."""
    return [sys.executable, "-m", "ctl", *args]


TERMINAL = ("completed", "failed", "cancelled")


class Held:
    """An answer that waits for a condition: `attempt` returns None until it holds or time is up."""

    def __init__(self, seconds: float, attempt: Callable[[bool], Any]) -> None:
        self.deadline = time.monotonic() + seconds
        self.attempt = attempt


class Peer:
    """State that tests set and read, and the thread that serves it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.lock = threading.RLock()
        self.events: list[Event] = []
        self.runs: dict[str, p.RunView] = {}
        self.builds: dict[str, BuildRecord] = {}
        self.logs: dict[str, tuple[bytes, bool]] = {}
        self.plan = p.PlanResult(packages=(), waves=0)
        self.repositories: dict[str, Repository] = {}
        self.clones: tuple[p.ActiveClone, ...] = ()
        self.exports: dict[str, bytes] = {}
        self.damage_exports = False
        self.checks: tuple[p.CheckResult, ...] = ()
        self.throttle = p.Throttle(workers=8, total=8)
        self.paused = ""
        self.samples: list[p.Sample] = []
        self.uses: tuple[p.BuildUse, ...] = ()
        self.requests: list[tuple[str, Any]] = []
        self.failures: dict[str, BuilddError] = {}
        """Methods that answer with an error."""
        self.silent: set[str] = set()
        """Methods that never answer."""
        self.raw_answers: dict[str, bytes] = {}
        """Methods that answer with these bytes."""
        self.on_start: Callable[[str], None] = lambda run: None
        """Called in a thread of its own for each run that is started."""
        self._stop = threading.Event()
        self._context: zmq.Context[Any] | None = None
        self._thread: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._stop.clear()
        self._context = zmq.Context()
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.bind(f"ipc://{self.path}")
        self._thread = threading.Thread(target=self._serve, args=(socket,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is None or self._context is None:
            return
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._context.term()
        self._thread = None

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        held: list[tuple[list[bytes], Any, Held]] = []
        try:
            while not self._stop.is_set():
                if socket.poll(10 if held else 50):
                    *envelope, body = socket.recv_multipart()
                    assert envelope[-1] == b"", "the client keeps the empty delimiter"
                    request = msgspec.json.decode(body, type=p.Request)
                    with self.lock:
                        answer = self._answer(request)
                    if isinstance(answer, Held):
                        held.append((envelope, request.id, answer))
                    elif answer is not None:
                        socket.send_multipart([*envelope, answer])
                for item in list(held):
                    envelope, id_, wait = item
                    with self.lock:
                        result = wait.attempt(time.monotonic() >= wait.deadline)
                    if result is not None:
                        held.remove(item)
                        socket.send_multipart([*envelope, self._ok(id_, result)])
        finally:
            socket.close(0)

    def _ok(self, id_: Any, result: Any) -> bytes:
        return msgspec.json.encode({"jsonrpc": "2.0", "id": id_, "result": result})

    def _refusal(self, id_: Any, code: int, message: str, hint: str = "", kind: str = "") -> bytes:
        error = p.Error(code=code, message=message, data=p.ErrorData(hint=hint, kind=kind))
        return msgspec.json.encode({"jsonrpc": "2.0", "id": id_, "error": error})

    def _answer(self, request: p.Request) -> bytes | Held | None:
        method = p.METHODS.get(request.method)
        if method is None:
            return self._refusal(request.id, p.METHOD_NOT_FOUND, f"no such method: {request.method}")
        try:
            params = msgspec.json.decode(request.params, type=method.params)
        except msgspec.ValidationError as error:
            return self._refusal(request.id, p.INVALID_PARAMS, str(error))
        self.requests.append((request.method, params))
        if request.method in self.silent:
            return None
        if request.method in self.raw_answers:
            return self.raw_answers[request.method]
        try:
            if request.method in self.failures:
                raise self.failures[request.method]
            result = getattr(self, request.method.replace(".", "_"))(params)
        except BuilddError as error:
            kind = type(error).__name__
            return self._refusal(request.id, error.code, error.message, error.hint, kind)
        if isinstance(result, Held):
            first = result.attempt(time.monotonic() >= result.deadline)
            return result if first is None else self._ok(request.id, first)
        assert isinstance(result, method.result), request.method
        return self._ok(request.id, result)

    # --- the story --------------------------------------------------------------------------------------

    def emit(self, kind: str, **fields: Any) -> None:
        with self.lock:
            self.events.append(Event(number=len(self.events) + 1, time=time.time(), kind=kind, **fields))

    def set_run(self, run: str, **changes: Any) -> None:
        """Change a run; the counts follow its packages."""
        with self.lock:
            view = msgspec.structs.replace(self.runs[run], **changes)
            by_state = [package.state for package in view.packages]
            counts = {name: by_state.count(name) for name in Stats.__struct_fields__ if name != "total"}
            stats = Stats(total=len(by_state), **counts)
            self.runs[run] = msgspec.structs.replace(view, stats=stats)

    def add_run(self, number: int, **fields: Any) -> str:
        run = run_id(number)
        given: dict[str, Any] = {
            "id": run,
            "number": number,
            "state": "building",
            "targets": ("things",),
            "requested_by": "uid 1000",
            "created_at": time.time() - 5,
            "started_at": time.time() - 4,
            "completed_at": None,
            "stats": Stats(),
            "packages": (),
        }
        with self.lock:
            self.runs[run] = p.RunView(**(given | fields))
            self.set_run(run)
        return run

    def add_build(self, id_: str, run: str, package: str, *, log: bytes = b"", **fields: Any) -> None:
        given: dict[str, Any] = {
            "id": id_,
            "run": run,
            "package": package,
            "version": "1.0",
            "state": "success",
            "started_at": 1.7e9,
            "completed_at": 1.7e9 + 12.5,
            "log": f"/var/lib/buildd/logs/{id_[:2]}/{id_}.log",
            "log_bytes": len(log),
        }
        with self.lock:
            self.builds[id_] = BuildRecord(**(given | fields))
            self.logs[id_] = (log, self.builds[id_].state != "running")

    def calls(self, method: str) -> list[Any]:
        with self.lock:
            return [params for name, params in self.requests if name == method]

    def wait_for_call(self, method: str, count: int = 1) -> None:
        deadline = time.monotonic() + 10
        while len(self.calls(method)) < count:
            assert time.monotonic() < deadline, f"{method} was not called"
            time.sleep(0.005)

    # --- methods ----------------------------------------------------------------------------------------

    def _run(self, name: str) -> p.RunView:
        if name == "latest" and self.runs:
            return list(self.runs.values())[-1]
        for view in self.runs.values():
            if view.id.startswith(name) or str(view.number) == name:
                return view
        raise NotFound(f"no run {name}", hint="buildctl list shows the runs")

    def _build(self, name: str) -> BuildRecord:
        for record in self.builds.values():
            if record.id.startswith(name):
                return record
        raise NotFound(f"no build {name}")

    def daemon_status(self, params: p.Empty) -> p.DaemonStatus:
        return p.DaemonStatus(
            version="9.9",
            pid=os.getpid(),
            uptime_s=3700.0,
            state="running",
            reasons=("no cgroup: memory is watched by sampling",),
            sandbox="bwrap",
            runs=p.RunCounts(active=1, total=12),
            builds=p.BuildCounts(queued=7, running=2, success=40, failed=3),
            workers=p.Workers(busy=2, total=8),
            throttle=self.throttle,
            paused=self.paused,
            clones=self.clones,
            resources=p.DaemonResources(rss_bytes=45 << 20, open_files=20, threads=4, children=2),
            control=p.ControlCounts(requests=1, dropped=0),
            state_dir="/var/lib/buildd",
            cache_dir="/var/cache/buildd",
            config_files=(),
        )

    def daemon_resources(self, params: p.ResourcesParams) -> p.ResourcesResult:
        return p.ResourcesResult(
            interval_s=5.0,
            samples=tuple(self.samples[-params.samples :]),
            throttle=self.throttle,
            paused=self.paused,
            memory=p.MemoryWatch(baseline_bytes=40 << 20, peak_bytes=60 << 20, warnings=1, profile="/p/memory.txt"),
            builds=self.uses,
        )

    def daemon_doctor(self, params: p.Empty) -> p.DoctorResult:
        return p.DoctorResult(checks=self.checks)

    def daemon_drain(self, params: p.Empty) -> p.Ok:
        return p.Ok(message="draining")

    def daemon_resume(self, params: p.Empty) -> p.Ok:
        return p.Ok(message="running again")

    def daemon_reload(self, params: p.Empty) -> p.Ok:
        return p.Ok(message="configuration read")

    def daemon_shutdown(self, params: p.ShutdownParams) -> p.Ok:
        return p.Ok(message="drains, then stops" if params.drain else "stops")

    def _repository(self, name: str) -> Repository:
        for repository in self.repositories.values():
            if name in (repository.url, repository.name):
                return repository
        raise NotFound(f"no repository {name}")

    def repo_clone(self, params: p.CloneParams) -> p.CloneResult:
        self.repositories[params.repo] = Repository(
            url=params.repo,
            name=params.repo.rpartition("/")[2],
            path="/clones/x",
            last_access=1.7e9,
            clone_status=CloneStatus(status="cloning", started_at=1.7e9),
        )
        progress = CloneProgress(received_objects=50, total_objects=100, indexed_objects=0, received_bytes=4096)
        self.clones = (
            p.ActiveClone(url=params.repo, operation="clone", started_at=1.7e9, progress=progress, percent=50.0),
        )
        return p.CloneResult(status="accepted", path="/clones/x", message="cloning in the background")

    def end_clone(self, url: str, status: str, error: str | None = None) -> None:
        with self.lock:
            self.repositories[url] = msgspec.structs.replace(
                self.repositories[url],
                clone_status=CloneStatus(status=status, error=error),  # type: ignore[arg-type]
            )
            self.clones = ()
            self.emit("clone_completed" if status == "cloned" else "clone_failed", repository=url)

    def repo_status(self, params: p.RepoParams) -> Repository:
        return self._repository(params.repo)

    def repo_refresh(self, params: p.RefreshParams) -> p.RefreshResult:
        return p.RefreshResult(**msgspec.structs.asdict(self._repository(params.repo)), changed=not params.if_changed)

    def repo_list(self, params: p.Empty) -> p.RepoList:
        return p.RepoList(repositories=tuple(self.repositories.values()))

    def repo_cancel(self, params: p.RepoParams) -> p.Ok:
        return p.Ok(message=f"clone of {params.repo} cancelled")

    def repo_delete(self, params: p.RepoParams) -> p.Ok:
        return p.Ok(message=f"{self._repository(params.repo).url} deleted")

    def repo_branches(self, params: p.RepoParams) -> p.BranchList:
        self._repository(params.repo)
        return p.BranchList(
            branches=(
                p.Branch(name="main", commit="a" * 40, head=True),
                p.Branch(name="next", commit="b" * 40, head=False),
            )
        )

    def run_start(self, params: p.StartParams) -> Held:
        number, event = len(self.runs) + 1, len(self.events)
        run = self.add_run(number, state="initialized", targets=params.targets)
        threading.Thread(target=self.on_start, args=(run,), daemon=True).start()

        def attempt(late: bool) -> p.StartResult | None:
            view = self.runs[run] if params.wait > 0 else None
            if view is not None and view.state in TERMINAL:
                news = tuple(package for package in view.packages if package.state not in ("skipped", "ignored"))
                ended = msgspec.structs.replace(view, packages=news)
                return p.StartResult(id=run, number=number, event=event, run=ended)
            return p.StartResult(id=run, number=number, event=event) if late else None

        return Held(params.wait, attempt)

    def run_plan(self, params: p.PlanParams) -> p.PlanResult:
        return self.plan

    def run_status(self, params: p.RunStatusParams) -> p.RunView:
        view = self._run(params.run)
        packages = view.packages if params.packages else ()
        if params.states:
            packages = tuple(package for package in packages if package.state in params.states)
        if not params.live:
            packages = tuple(msgspec.structs.replace(package, last_line=None) for package in packages)
        return msgspec.structs.replace(view, packages=packages)

    def run_list(self, params: p.RunListParams) -> p.RunList:
        views = [msgspec.structs.replace(view, packages=()) for view in self.runs.values()]
        return p.RunList(runs=tuple(views[-params.limit :][::-1]))

    def run_wait(self, params: p.WaitParams) -> Held:
        run = self._run(params.run).id

        def attempt(late: bool) -> p.WaitResult | None:
            view = self.runs[run]
            finished = view.state in TERMINAL
            if not params.packages:
                view = msgspec.structs.replace(view, packages=())
            return p.WaitResult(finished=finished, run=view) if finished or late else None

        return Held(params.timeout, attempt)

    def run_cancel(self, params: p.CancelParams) -> p.Ok:
        view = self._run(params.run)
        if view.state in TERMINAL:
            raise Refused(f"run {view.number} has ended")
        what = f"{params.package} of run {view.number}" if params.package else f"run {view.number}"
        return p.Ok(message=f"{what} cancelled")

    def build_show(self, params: p.BuildParams) -> BuildRecord:
        return self._build(params.build)

    def build_list(self, params: p.BuildListParams) -> p.BuildList:
        found = [b for b in self.builds.values() if params.package in (None, b.package)]
        return p.BuildList(builds=tuple(found[: params.limit]))

    def build_log(self, params: p.LogParams) -> Held:
        build = self._build(params.build).id

        def attempt(late: bool) -> p.LogChunk | None:
            log, finished = self.logs[build]
            start = params.offset if params.offset >= 0 else max(0, len(log) + params.offset)
            piece = log[start : start + params.limit]
            over = finished and start + len(piece) >= len(log)
            if not piece and not over and not late:
                return None
            return p.LogChunk(
                build=build,
                offset=start,
                next_offset=start + len(piece),
                text=piece.decode(errors="replace"),
                finished=over,
            )

        return Held(params.timeout, attempt)

    def object_show(self, params: p.ShowParams) -> p.ShowResult:
        try:
            return p.ShowResult(run=self._run(params.id))
        except NotFound:
            pass
        try:
            return p.ShowResult(build=self._build(params.id))
        except NotFound:
            raise NotFound(f"{params.id} is neither a run nor a build") from None

    def events_poll(self, params: p.PollParams) -> Held:
        after = len(self.events) if params.after < 0 else params.after

        def attempt(late: bool) -> p.PollResult | None:
            found = [
                event
                for event in self.events[after:]
                if params.run in (None, event.run) and (not params.kinds or event.kind in params.kinds)
            ][: params.limit]
            if not found and not late:
                return None
            next_ = found[-1].number if len(found) == params.limit else len(self.events)
            return p.PollResult(events=tuple(found), next=next_)

        return Held(params.timeout, attempt)

    def _artifact(self, name: str) -> p.Artifact:
        if name not in self.exports:
            raise NotFound(f"no artifact {name}")
        return p.Artifact(
            output_id=name,
            path=f"/var/lib/buildd/artifacts/{name}",
            bytes=len(self.exports[name]),
            files=2,
            created_at=1.7e9,
            packages=("zlib@1.3.1",),
        )

    def artifact_list(self, params: p.ArtifactListParams) -> p.ArtifactList:
        return p.ArtifactList(artifacts=tuple(map(self._artifact, self.exports)))

    def artifact_show(self, params: p.ArtifactParams) -> p.ArtifactDetail:
        listing = (p.ArtifactFile(path="lib/libz.so", mode="0755", size=100, sha256="c" * 64),)
        return p.ArtifactDetail(artifact=self._artifact(params.artifact), listing=listing)

    def artifact_export(self, params: p.ArtifactParams) -> p.ArtifactExport:
        artifact = self._artifact(params.artifact)
        content = self.exports[artifact.output_id]
        return p.ArtifactExport(
            output_id=artifact.output_id,
            filename="zlib-1.3.1.tar.zst",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def artifact_read(self, params: p.ArtifactReadParams) -> p.ArtifactChunk:
        assert params.filename == "zlib-1.3.1.tar.zst"
        content = self.exports[params.output_id]
        piece = content[params.offset : params.offset + 1000]
        end = params.offset + len(piece)
        return p.ArtifactChunk(
            data=piece[::-1] if self.damage_exports else piece, next_offset=end, finished=end == len(content)
        )


def run_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def sample(at: float, **fields: Any) -> p.Sample:
    given: dict[str, Any] = {
        "at": at,
        "rss_bytes": 45 << 20,
        "open_files": 20,
        "threads": 4,
        "children": 2,
        "load_1m": 1.25,
        "memory_total_bytes": 8 << 30,
        "memory_available_bytes": 6 << 30,
        "swap_total_bytes": 2 << 30,
        "swap_used_bytes": 0,
        "free_bytes": 12 << 30,
        "free_inodes": 1_250_000,
        "busy": 2,
        "queued": 7,
    }
    return p.Sample(**(given | fields))


def build_use(build: str, package: str, **fields: Any) -> p.BuildUse:
    given: dict[str, Any] = {
        "build": build,
        "run": run_id(12),
        "package": package,
        "phase": "build",
        "started_at": time.time() - 65,
        "processes": 3,
        "memory_bytes": 300 << 20,
        "cpu_s": 13.0,
        "disk_bytes": 20 << 20,
    }
    return p.BuildUse(**(given | fields))


def package(name: str, state: str, **fields: Any) -> p.RunPackage:
    given: dict[str, Any] = {
        "name": name,
        "version": "1.0",
        "state": state,
        "reason": None,
        "phase": None,
        "duration_s": None,
        "build_id": None,
        "artifact": None,
        "log_bytes": 0,
    }
    return p.RunPackage(**(given | fields))
