"""What no build owns any more goes at the second sweep that finds it, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from buildd import config
from buildd.engine.sweeper import Strays, Sweeper
from buildd.execute.leftovers import DAEMON_COOKIE, Leftovers, new_instance
from buildd.execute.proctree import COOKIE, alive
from buildd.model import BuildRecord
from buildd.planner.keys import Inputs, KeyParts
from buildd.process import spawn
from buildd.store.database import Database
from buildd.store.journal import Journal
from buildd.store.logs import Logs
from buildd.store.rebuild import Receipts
from buildd.store.runs import RunStore, insert_build

pytestmark = pytest.mark.trio


class Site:
    def __init__(self, root: Path, database: Database) -> None:
        self.state, self.work = root / "state", root / "work"
        self.work.mkdir()
        self.database = database
        self.active: list[str] = []
        self.store = RunStore(database)
        self.journal = Journal(database, 1000)
        settings = [f"daemon.{n}_dir={root / n}" for n in ("state", "cache", "runtime", "work")]
        self.config = config.load(files=[], settings=settings, environ={})
        self.sweeper = Sweeper(
            config=lambda: self.config,
            leftovers=Leftovers(self.state, self.work, None),
            active=lambda: self.active,
            database=database,
            store=self.store,
            journal=self.journal,
            logs=Logs(self.state / "logs"),
        )

    async def record(self, build: str) -> None:
        """Have a record on disk that says `running`."""
        parts = KeyParts(
            name="p",
            version="1",
            tree="0" * 40,
            sources=(),
            patches=(),
            phases={},
            formats=(),
            environment="",
            architecture="",
            dependencies={},
        )
        inputs = Inputs(
            parts=parts,
            outputs={},
            environment={},
            strategy="none",
            repository="/r",
            commit=None,
            root="0" * 40,
            path=".",
        )
        record = BuildRecord(id=build, run="r", package="p", version="1", state="running", started_at=1.0, log="")
        await self.journal.emit("package_started", build=build, statements=[insert_build(record, inputs)]).wait()


@asynccontextmanager
async def a_site(root: Path) -> AsyncIterator[Site]:
    (root / "state").mkdir()
    database = Database(root / "state" / "buildd.db", Receipts(root / "state"))
    database.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        yield Site(root, database)
        nursery.cancel_scope.cancel()


@pytest.fixture
def stray(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A process that carries the cookie of a build of this daemon."""
    (tmp_path / "state").mkdir()
    build = str(uuid.uuid4())
    environment = {COOKIE: build, DAEMON_COOKIE: new_instance(tmp_path / "state"), "PATH": os.defpath}
    (tmp_path / "state").rmdir()
    process = subprocess.Popen(["sleep", "100"], env=environment)
    yield build, process.pid
    process.kill()
    process.wait()


async def test_what_nobody_owns_goes_at_the_second_sweep(tmp_path: Path, stray: tuple[str, int]) -> None:
    build, pid = stray
    async with a_site(tmp_path) as site:
        (site.work / build / "src").mkdir(parents=True)
        await site.record(build)
        assert not await site.sweeper.sweep()
        assert alive(pid)
        everything = frozenset({build})
        assert await site.sweeper.sweep() == Strays(processes=everything, directories=everything, records=everything)
        assert not list(site.work.iterdir())
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with trio.fail_after(10):
            while await site.store.running_builds():
                await trio.sleep(0.01)
        event = (await site.journal.poll(0, timeout=5, kinds=("package_interrupted",))).events[0]
        assert event.build == build
        assert not await site.sweeper.sweep()


async def test_what_an_active_build_has_stays(tmp_path: Path, stray: tuple[str, int]) -> None:
    build, pid = stray
    async with a_site(tmp_path) as site:
        (site.work / build).mkdir()
        await site.record(build)
        site.active.append(build)
        for _ in range(3):
            assert not await site.sweeper.sweep()
        assert alive(pid)
        assert (site.work / build).exists()
        assert [b.id for b in await site.store.running_builds()] == [build]


async def test_what_is_on_its_way_out_between_two_sweeps_is_left_alone(tmp_path: Path) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    async with a_site(tmp_path) as site:
        (site.work / first).mkdir()
        assert not await site.sweeper.sweep()
        (site.work / first).rename(site.work / second)
        assert not await site.sweeper.sweep()
        assert (site.work / second).exists()


async def test_directories_with_other_names_and_processes_of_other_daemons_are_left_alone(tmp_path: Path) -> None:
    with await spawn(["/bin/sleep", "100"], env={COOKIE: str(uuid.uuid4()), DAEMON_COOKIE: "0123-4567"}) as other:
        async with a_site(tmp_path) as site:
            (site.work / "notes").mkdir()
            for _ in range(3):
                assert not await site.sweeper.sweep()
            assert (site.work / "notes").exists()
            assert other.poll() is None
