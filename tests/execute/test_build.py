"""One attempt at one package: what limits of phases end, and whether another attempt may help."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from execute_boxes import Box, no_subreaper_afterwards
from execute_server import SHA256, Server, serving
from harness import RecipeRepository
from harness.repository import git

from buildd import config
from buildd.execute import build as build_module
from buildd.execute.build import BuildControl, BuildSpec, BuildTools, Outcome, run_build
from buildd.execute.download import DistfileCache, FetchSettings
from buildd.execute.turns import Turns
from buildd.execute.workdirs import WorkDirectories
from buildd.model import Limits, Package, PhaseLimits, Source
from buildd.process import Process, Spawner, live_pids, spawn
from buildd.scope import Scope
from buildd.store.artifacts import ArtifactStore
from buildd.store.logs import Logs

pytestmark = pytest.mark.trio
LIMIT_S = 30.0


class Site:
    """A source and everything that a build of it needs."""

    def __init__(self, root: Path) -> None:
        self.box = Box("bwrap" if shutil.which("bwrap") else "plain", root)
        self.repository = RecipeRepository(root / "repository")
        self.repository.write("pkg/README", "hello\n").commit()
        state = root / "state"
        settings = [f"daemon.{name}={state / name}" for name in ("state_dir", "cache_dir", "runtime_dir", "work_dir")]
        self.config = config.load(files=[], settings=settings, environ={})
        Path(self.config.daemon.work_dir).mkdir()
        fetching = FetchSettings(schemes=("http", "file"), retries=0, idle_timeout=20)
        self.tools = BuildTools(
            config=lambda: self.config,
            sandbox=self.box.sandbox,
            spawner=self._spawn,
            distfiles=DistfileCache(state / "distfiles", fetching),
            artifacts=ArtifactStore(state / "artifacts"),
            logs=Logs(state / "logs"),
            work=WorkDirectories(Path(self.config.daemon.work_dir)),
            threads=trio.CapacityLimiter(3),
            cgroups=None,
            instance="test",
        )
        self.spawner: Spawner = spawn
        self.control = BuildControl()
        self.recorded: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.phases: list[str] = []
        """Those that were reported, of all builds."""
        self.left: list[str] = []
        """Work directories that were there when the last build had its outcome, and its scope was still open."""

    async def _spawn(self, *arguments: Any, **keywords: Any) -> Process:
        return await self.spawner(*arguments, **keywords)

    async def build(
        self,
        *sources: str,
        phases: dict[str, str] | None = None,
        limits: dict[str, PhaseLimits] | None = None,
        sha256: str = SHA256,
        attempt: int = 1,
        fetch_only: bool = False,
        formats: tuple[str, ...] = (),
    ) -> Outcome:
        """Build the package, with sources from these URLs."""
        package = Package(
            name="pkg",
            version="1",
            path="pkg",
            repository=str(self.repository),
            store=str(self.repository),
            tree=git("rev-parse", "HEAD:pkg", cwd=self.repository.path),
            phases=phases or {},
            sources=tuple(
                Source(url=url, sha256=sha256, filename=f"file-{number}", extract=False)
                for number, url in enumerate(sources)
            ),
            formats=formats,
            limits=Limits(phases=limits or {}),
        )
        self.box.build, self.control = str(uuid.uuid4()), BuildControl()
        spec = BuildSpec(
            id=self.box.build,
            package=package,
            key="k" * 64,
            dependencies=(),
            attempt=attempt,
            fetch_only=fetch_only,
        )
        with trio.fail_after(LIMIT_S):
            async with Scope("build", close_within=LIMIT_S) as scope:
                outcome = await run_build(
                    spec, self.tools, self.control, self.phases.append, scope=scope, recorded=self.recorded
                )
                self.left = os.listdir(self.config.daemon.work_dir)
            return outcome

    @property
    def log(self) -> list[str]:
        return self.tools.logs.path(self.box.build).read_text().splitlines()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The test fails for whatever the build leaves behind."""
    with no_subreaper_afterwards():
        site = Site(tmp_path)
        yield site
        site.tools.work.close()
        assert os.listdir(site.config.daemon.work_dir) == []
        assert site.box.processes == []
        assert live_pids() == frozenset()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@contextmanager
def slow(monkeypatch: pytest.MonkeyPatch, name: str, seconds: float) -> Iterator[None]:
    """Let what the builder calls by this name take its time, as it does with much to do."""
    real = getattr(build_module, name)

    def dawdle(*arguments: Any, check: Callable[[], None], **keywords: Any) -> Any:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            check()
            time.sleep(0.01)
        return real(*arguments, check=check, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, name, dawdle)
        yield


# --- limits of phases -------------------------------------------------------------------------------------


async def test_the_limits_of_the_fetch_phase_end_a_download(site: Site, server: Server) -> None:
    outcome = await site.build(f"{server.url}/stall/x", limits={"fetch": PhaseLimits(timeout=0.5)})
    assert (outcome.state, outcome.reason, outcome.transient) == ("failed", "timeout", False)
    assert outcome.message == "phase fetch took longer than 0.5 s (limits.phases.fetch.timeout)"
    assert [(p.name, p.exit_status) for p in outcome.phases] == [("fetch", -1)]
    assert outcome.message in site.log[-1]


async def test_a_download_is_silent_while_nothing_is_said_about_it(site: Site, server: Server) -> None:
    outcome = await site.build(f"{server.url}/stall/x", limits={"fetch": PhaseLimits(silence=0.5)})
    assert (outcome.reason, outcome.transient) == ("silent", False)
    assert outcome.message == "no output for 0.5 s in phase fetch (limits.phases.fetch.silence)"


async def test_the_limits_of_another_phase_do_not_count_in_the_builders_own_work(site: Site, server: Server) -> None:
    limits = {phase: PhaseLimits(timeout=0.3, silence=0.3) for phase in ("checksum", "extract", "build")}
    async with trio.open_nursery() as nursery:

        async def answer_late() -> None:
            await trio.to_thread.run_sync(server.wait_for_requests, 1)
            await trio.sleep(0.8)
            server.gate.set()

        nursery.start_soon(answer_late)
        outcome = await site.build(f"{server.url}/gate/x", limits=limits)
    assert outcome.state == "success"


async def test_the_builders_work_and_the_recipes_in_one_phase_share_its_time(
    site: Site, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/file/x"
    with slow(monkeypatch, "copy_file", 0.7):
        outcome = await site.build(
            url,
            phases={"extract": "sleep 0.7", "patch": "touch patched"},
            limits={"extract": PhaseLimits(timeout=1.0, silence=5.0)},
        )
    assert (outcome.reason, outcome.exit_status) == ("timeout", None)
    assert outcome.message == "phase extract took longer than 1 s (limits.phases.extract.timeout)"
    assert [p.name for p in outcome.phases] == ["fetch", "checksum", "extract"]


async def test_extraction_and_packing_are_held_to_their_phases(
    site: Site, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/file/x"
    with slow(monkeypatch, "copy_file", 60):
        outcome = await site.build(url, limits={"extract": PhaseLimits(timeout=0.3)})
    assert outcome.message == "phase extract took longer than 0.3 s (limits.phases.extract.timeout)"
    with slow(monkeypatch, "pack", 60):
        outcome = await site.build(url, limits={"package": PhaseLimits(silence=0.3)}, formats=("tar",))
    assert outcome.message == "no output for 0.3 s in phase package (limits.phases.package.silence)"


async def test_a_line_about_each_source_is_output(site: Site, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [f"{server.url}/file/{number}" for number in range(3)]
    with slow(monkeypatch, "copy_file", 0.5):
        outcome = await site.build(*urls, limits={"extract": PhaseLimits(silence=1.2)})
    assert outcome.state == "success"
    assert next(p.duration_s or 0 for p in outcome.phases if p.name == "extract") > 1.2


async def test_a_quick_phase_after_a_slow_one_is_left_alone(site: Site) -> None:
    limits = {"build": PhaseLimits(timeout=5.0), "check": PhaseLimits(timeout=1.0, silence=1.0)}
    outcome = await site.build(
        phases={"build": "sleep 1", "check": "sleep 0.2", "stage": "sleep 1.5"},
        limits=limits,
    )
    assert outcome.state == "success"
    assert not outcome.transient


# --- whether another attempt may help ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "reason", "transient"),
    [
        ("status/503/9", "fetch_failed", True),
        ("status/429/9", "fetch_failed", True),
        ("reset/rst", "fetch_failed", True),
        ("missing", "fetch_failed", False),
        ("status/403/9", "fetch_failed", False),
        ("redirect/ftp://127.0.0.1/x", "fetch_failed", False),
        ("wrong/x", "checksum_mismatch", False),
    ],
)
async def test_a_download_that_failed_may_be_worth_another_attempt(
    site: Site, server: Server, path: str, reason: str, transient: bool
) -> None:
    outcome = await site.build(f"{server.url}/{path}")
    assert (outcome.state, outcome.reason, outcome.transient) == ("failed", reason, transient)


async def test_a_server_that_is_down_may_be_up_later(site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        outcome = await site.build(f"http://127.0.0.1:{unused.getsockname()[1]}/x")
    assert (outcome.reason, outcome.transient) == ("fetch_failed", True)


@pytest.mark.parametrize("phase", ["fetch", "build"])
async def test_commands_that_fail_would_fail_again(site: Site, phase: str) -> None:
    outcome = await site.build(phases={phase: "exit 3"})
    assert (outcome.reason, outcome.exit_status, outcome.transient) == ("phase_failed", 3, False)


@pytest.mark.parametrize(
    ("number", "reason", "transient"),
    [
        (errno.EAGAIN, "sandbox_failed", True),
        (errno.ENOMEM, "sandbox_failed", True),
        (errno.EMFILE, "sandbox_failed", True),
        (errno.ENFILE, "sandbox_failed", True),
        (errno.ENOENT, "sandbox_failed", False),
        (errno.EACCES, "sandbox_failed", False),
    ],
)
async def test_a_machine_that_is_short_of_something_may_have_it_later(
    site: Site, number: int, reason: str, transient: bool
) -> None:
    def fail(*_: Any, **__: Any) -> Process:
        raise OSError(number, os.strerror(number))

    site.spawner = fail
    outcome = await site.build(phases={"build": ":"})
    assert (outcome.state, outcome.reason, outcome.transient) == ("failed", reason, transient)


@pytest.mark.parametrize(
    ("number", "reason", "transient"),
    [
        (errno.ENOSPC, "disk_full", True),
        (errno.EDQUOT, "disk_full", True),
        (errno.EMFILE, "sandbox_failed", True),
        (errno.EROFS, "sandbox_failed", False),
    ],
)
async def test_a_disk_may_have_room_later(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int, reason: str, transient: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "dest")

    monkeypatch.setattr(ArtifactStore, "add", fail)
    outcome = await site.build()
    assert (outcome.state, outcome.reason, outcome.transient) == ("failed", reason, transient)
    message = f"its output could not be put into the artifact store: {os.strerror(number)}: dest"
    assert outcome.message == (f"{message} (free disk space)" if reason == "disk_full" else message)


async def test_a_source_that_cannot_be_written_out_stays_so(site: Site) -> None:
    (site.repository.path / "pkg" / "out").symlink_to("/etc/passwd")
    site.repository.commit()
    outcome = await site.build(phases={"build": ":"})
    assert (outcome.reason, outcome.transient) == ("fetch_failed", False)
    assert "leads out of the source tree" in str(outcome.message)


async def test_a_fault_of_the_daemon_is_not_tried_again(site: Site) -> None:
    def fault(*_: Any, **__: Any) -> Process:
        raise RuntimeError("a bug")

    site.spawner = fault
    outcome = await site.build(phases={"build": ":"})
    assert (outcome.reason, outcome.transient) == ("sandbox_failed", False)
    assert "internal error" in str(outcome.message)


async def test_what_was_stopped_is_not_tried_again_by_itself(site: Site) -> None:
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.sleep(0.3)
            site.control.cancel("cancelled", "by a test", grace=lambda: 0.0)

        nursery.start_soon(stop)
        outcome = await site.build(phases={"build": "sleep 1000"})
    assert (outcome.state, outcome.reason, outcome.transient) == ("cancelled", "cancelled", False)


async def test_the_log_of_a_further_attempt_says_which_one_it_is(site: Site) -> None:
    await site.build(attempt=2)
    assert site.log[0].endswith(", attempt 2")
    await site.build(attempt=1)
    assert "attempt" not in site.log[0]


# --- the order of things ----------------------------------------------------------------------------------


async def test_no_phase_begins_before_the_build_is_on_record(site: Site, server: Server) -> None:
    spawned: list[Any] = []
    site.spawner = lambda *arguments, **keywords: (spawned.append(arguments), spawn(*arguments, **keywords))[1]
    seen: list[Any] = []

    async def record() -> None:
        await trio.sleep(0.2)
        seen.append((list(spawned), list(site.phases), list(server.requests)))

    site.recorded = record
    assert (await site.build(f"{server.url}/file/x", phases={"build": ":"})).state == "success"
    assert seen == [([], [], [])]
    assert (len(spawned), site.phases[0]) == (1, "fetch")


async def test_nobody_waits_until_the_directories_of_a_success_are_removed(site: Site) -> None:
    assert (await site.build(phases={"build": ":"})).state == "success"
    assert site.left == [site.box.build]


async def test_the_directories_of_a_failure_are_gone_when_it_is_known(site: Site) -> None:
    assert (await site.build(phases={"build": "exit 1"})).state == "failed"
    assert site.left == []
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.sleep(0.3)
            site.control.cancel("cancelled", "by a test", grace=lambda: 0.0)

        nursery.start_soon(stop)
        assert (await site.build(phases={"build": "sleep 1000"})).state == "cancelled"
    assert site.left == []


async def test_a_build_has_started_when_its_first_phase_begins(site: Site) -> None:
    site.tools = msgspec.structs.replace(site.tools, starts=Turns(1, lasting=10 * LIMIT_S))
    async with trio.open_nursery() as nursery:

        async def start_another() -> None:
            work = Path(site.config.daemon.work_dir) / site.box.build
            while not (work / "tmp" / "begun").exists():
                await trio.sleep(0.01)
            async with site.tools.starts.take(1):
                (work / "tmp" / "go").touch()

        nursery.start_soon(start_another)
        text = "touch $TMPDIR/begun; until [ -e $TMPDIR/go ]; do sleep 0.01; done"
        assert (await site.build(phases={"build": text})).state == "success"


@pytest.mark.parametrize(
    ("phases", "contained", "reused"),
    [
        ({"build": "touch left; ln -s /etc/passwd $BUILDDIR/link; chmod 0 $HOME"}, True, False),
        ({"build": "touch left; ln -s /etc/passwd $BUILDDIR/link; mkdir $DESTDIR/x"}, True, True),
        ({"build": ":"}, False, False),
        ({"fetch": ":", "build": ":"}, True, False),  # it had a network, and with that sockets
        ({"build": "exit 1"}, True, False),
    ],
)
async def test_work_directories_are_used_again_after_a_build_that_left_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, phases: dict[str, str], contained: bool, reused: bool
) -> None:
    if not site.box.sandbox.contains:
        pytest.skip("only bwrap contains what a build does")
    monkeypatch.setattr(site.box.sandbox, "contains", contained)
    await site.build(phases=phases)
    spares = os.listdir(site.config.daemon.work_dir)
    assert bool(spares) == reused
    listing = "ls -A $SRCDIR $BUILDDIR $DESTDIR $HOME $TMPDIR; stat -c %a $SRCDIR $BUILDDIR $DESTDIR $HOME $TMPDIR"
    assert (await site.build(phases={"build": listing})).state == "success"
    shown = site.log[site.log.index("==> build") + 1 : -1]
    assert [line for line in shown if line and not line.endswith(":")] == ["README", *["755"] * 5]
