"""The collector, in a process of its own making: what it asks, forgets and removes, and in which order."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from buildd import config as configuration
from buildd.config import Config
from buildd.engine.collector import Collector
from buildd.model import Event
from buildd.store.artifacts import ArtifactStore
from buildd.store.collect import Entry, Limits, Space
from buildd.store.database import Database
from buildd.store.journal import Journal
from buildd.store.usage import Surveyor

pytestmark = pytest.mark.trio
LIMIT_S = 20.0


class Home:
    """Artifacts on disk, a journal, and an engine that uses what it is told to use."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self.journal = journal
        self.store = ArtifactStore(path / "artifacts")
        self.used: set[str] = set()
        self.forgotten: list[str] = []
        self.on_forget: Callable[[Collection[str]], None] = lambda outputs: None
        self.config: Config = configuration.load(files=[], environ={"HOME": str(path)})
        self.configure(min_free_bytes=0, min_free_inodes=0)
        daemon = msgspec.structs.replace(self.config.daemon, work_dir=str(path))
        self.config = msgspec.structs.replace(self.config, daemon=daemon)
        self.collector = Collector(
            config=lambda: self.config,
            artifacts=self.store,
            releases=path / "releases",
            journal=journal,
            in_use=lambda output: output in self.used,
            forget=self._forget,
        )

    def configure(self, **cache: Any) -> None:
        self.config = msgspec.structs.replace(self.config, cache=msgspec.structs.replace(self.config.cache, **cache))

    def _forget(self, outputs: Collection[str]) -> None:
        self.forgotten += outputs
        self.on_forget(outputs)

    def artifacts(self, count: int, size: int = 20_000) -> list[str]:
        """So many artifacts, used one after the other."""
        outputs = []
        for n in range(count):
            staged = self.path / f"dest{n}"
            staged.mkdir()
            (staged / f"f{n}").write_bytes(os.urandom(size))
            output = self.store.add(staged, created_at=1.0, mtime=1, check=lambda: None).output_id
            os.utime(self.store.directory(output) / "manifest.json", (1000 + n, 1000 + n))
            outputs.append(output)
        gc.collect()  # nobody holds them now
        return outputs

    @property
    def there(self) -> list[str]:
        return [output for output in self.store.outputs() if self.store.exists(output)]

    def size(self, output: str) -> int:
        return next(e.bytes for e in Surveyor(self.store, self.path / "releases").survey() if e.id == output)

    async def told(self, count: int = 1) -> list[Event]:
        """The events of so many collections, and no more."""
        found: list[Event] = []
        while len(found) < count:
            found = list((await self.journal.poll(0, timeout=5, kinds=("artifacts_collected",))).events)
            await trio.sleep(0.01)
        return found


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    database = Database(tmp_path / "b.db")
    database.open()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            yield Home(tmp_path, Journal(database, 1_000_000))
            nursery.cancel_scope.cancel()


async def test_the_engine_forgets_an_artifact_when_nobody_finds_it_and_before_its_files_go(home: Home) -> None:
    outputs = home.artifacts(5)
    seen: list[tuple[bool, bool]] = []
    home.on_forget = lambda gone: seen.extend((home.store.exists(o), home.store.directory(o).exists()) for o in gone)
    result = await home.collector.collect(Limits(max_age=1))
    assert home.forgotten == [item.id for item in result.collected] == outputs
    assert seen == [(False, True)] * 5
    assert list(home.store.outputs()) == []


async def test_what_comes_into_use_after_the_choice_stays_and_another_goes_in_its_place(home: Home) -> None:
    outputs = home.artifacts(4)
    limit = 3 * home.size(outputs[0])
    asked: list[str] = []

    def in_use(output: str) -> bool:
        asked.append(output)
        return output == outputs[0] and asked.count(output) > 1

    home.collector._in_use = in_use
    result = await home.collector.collect(Limits(max_bytes=limit))
    assert [item.id for item in result.collected] == [outputs[1]]
    assert sorted(home.there) == sorted(set(outputs) - {outputs[1]})
    assert home.forgotten == [outputs[1]]
    assert result.unmet == ()


async def test_what_is_held_stays(home: Home) -> None:
    outputs = home.artifacts(2)
    with home.store.holds.holding(outputs[0]):
        result = await home.collector.collect(Limits(max_age=1))
    assert [item.id for item in result.collected] == [outputs[1]]


async def test_a_dry_run_changes_nothing_and_says_what_would_go(home: Home) -> None:
    outputs = home.artifacts(3)
    home.used = {outputs[0]}
    dry = await home.collector.collect(Limits(max_bytes=1), dry_run=True)
    assert (sorted(home.there), home.forgotten) == (sorted(outputs), [])
    went = await home.collector.collect(Limits(max_bytes=1))
    assert dry.dry_run
    assert went.collected == dry.collected
    assert (went.freed_bytes, went.artifacts, went.bytes) == (dry.freed_bytes, dry.artifacts, dry.bytes)
    assert went.unmet == dry.unmet
    (unmet,) = went.unmet
    assert "1 in use" in unmet.message


async def test_what_cannot_be_removed_is_named_and_the_rest_goes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = home.artifacts(3)
    real = Surveyor.remove

    def remove(self: Surveyor, entry: Entry) -> bool:
        if entry.id == outputs[0]:
            home.store.holds.restore(entry.id)
            raise OSError(errno.EIO, "Input/output error")
        return real(self, entry)

    monkeypatch.setattr(Surveyor, "remove", remove)
    limit = 2 * home.size(outputs[0])
    result = await home.collector.collect(Limits(max_bytes=limit))
    assert [item.id for item in result.collected] == outputs[1:2]
    assert result.unmet == ()
    (failed,) = result.failed
    assert outputs[0] in failed
    assert "Input/output error" in failed
    assert sorted(home.there) == sorted([outputs[0], outputs[2]])


async def test_two_collections_at_once_remove_nothing_twice(home: Home) -> None:
    outputs = home.artifacts(10)
    limit = 5 * home.size(outputs[0])
    results = []

    async def collect() -> None:
        results.append(await home.collector.collect(Limits(max_bytes=limit)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        nursery.start_soon(collect)
    gone = [item.id for result in results for item in result.collected]
    assert sorted(gone) == sorted(outputs[:5])


async def test_a_collection_that_is_called_off_leaves_every_artifact_whole_or_gone(home: Home) -> None:
    outputs = home.artifacts(40, 1000)
    for patience in (0.0, 0.001, 0.003, 0.01, 0.03):
        with trio.move_on_after(patience):
            await home.collector.collect(Limits(max_age=1))
    await trio.sleep(0.2)  # a thread that was left to itself ends
    fresh = ArtifactStore(home.store.root)
    assert all(fresh.verify(output) == [] for output in fresh.outputs())
    await home.collector.collect(Limits(max_age=1))
    assert list(home.store.outputs()) == []
    assert set(home.forgotten) == set(outputs)


async def test_builds_that_end_make_it_look_at_the_size(home: Home) -> None:
    outputs = home.artifacts(4)
    limit = int(2.5 * home.size(outputs[0]))
    async with trio.open_nursery() as nursery:
        await nursery.start(home.collector.run)
        home.configure(max_bytes=limit)
        home.journal.emit("package_completed", data={"reason": None})
        (event,) = await home.told()
        assert sorted(home.there) == sorted(outputs[2:])
        assert event.data["artifacts"] == 2
        assert event.data["reasons"] == {"size": 2}
        assert event.data["bytes"] <= limit
        nursery.cancel_scope.cancel()


async def test_a_build_that_found_the_disk_full_makes_twice_the_room(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = home.artifacts(6)
    one = home.size(outputs[0])
    space = Space(free_bytes=one, total_bytes=100 * one, free_inodes=100, total_inodes=1000)
    monkeypatch.setattr(Surveyor, "space", lambda self: space)
    async with trio.open_nursery() as nursery:
        await nursery.start(home.collector.run)
        home.journal.emit("package_failed", data={"reason": "disk_full"})
        home.journal.emit("tick")
        await trio.sleep(0.2)
        assert len(home.there) == 6, "a user who wants no free space gets none"
        home.configure(min_free_bytes=1)
        home.journal.emit("package_failed", data={"reason": "phase_failed"})
        await trio.sleep(0.2)
        assert len(home.there) == 6, "there is room"
        home.journal.emit("package_failed", data={"reason": "disk_full"})
        (event,) = await home.told()
        assert event.data["reasons"] == {"free_space": 2}, "as much again as was free, and some slack"
        nursery.cancel_scope.cancel()


async def test_a_limit_that_cannot_be_kept_is_told_once(home: Home) -> None:
    outputs = home.artifacts(2)
    home.used = set(outputs)
    for _ in range(3):
        await home.collector.collect(Limits(max_bytes=1))
    (event,) = await home.told()
    assert event.data["artifacts"] == 0
    assert "2 in use" in event.data["unmet"][0]
    home.used.clear()
    await home.collector.collect(Limits(max_bytes=1))
    assert [e.data["artifacts"] for e in await home.told(2)] == [0, 2]


async def test_what_an_interrupted_collection_left_is_gone_before_anything_else_starts(home: Home) -> None:
    (home.path / "releases" / ".3.gone.tmp").mkdir(parents=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(home.collector.run)
        assert os.listdir(home.path / "releases") == []
        nursery.cancel_scope.cancel()
