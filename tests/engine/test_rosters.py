"""Packages that were up to date, as runs record them: each run gets back its own, however many share a roster."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings, strategies as st

from buildd.engine.prepare import Places, Plan
from buildd.engine.progress import PackageRun, Progress
from buildd.engine.rosters import Rosters
from buildd.engine.run import Run
from buildd.engine.uptodate import Settled, Settlement, Standing
from buildd.model import Package
from buildd.planner.states import Initialized
from buildd.protocol import StartParams
from buildd.store.database import Database
from buildd.store.runs import RosterEntry, RunRecord, RunStore, insert_run

pytestmark = pytest.mark.trio
MANY = 100
"""Packages of which a few changes are few."""


class House:
    """Runs whose ends are written into a real database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = RunStore(database)
        self.rosters = Rosters()
        self.runs: list[Run] = []

    async def end(
        self, settled: Mapping[str, Settled], *, home: object = "home", packages: tuple[PackageRun, ...] = ()
    ) -> Run:
        """A run that found these up to date comes to its end."""
        number = len(self.runs) + 1
        run = Run(
            RunRecord(
                id=f"{number:08x}-0000-4000-8000-000000000000",
                number=number,
                request=StartParams(targets=("/r",)),
                requested_by="root",
                created_at=1e9,
                state=Initialized(),
            )
        )
        run.plan = Plan({}, Places(targets=(), foreign={}), (), {}, home=home, wanted=())
        settlement = settled if isinstance(settled, Settlement) else Settlement(settled)
        run.standing = Standing(settlement, [p.package.name for p in packages])
        run.progress = Progress(packages, settlement)
        self.runs.append(run)
        await self.database.submit([insert_run(run.record), *await self.rosters.record(run)]).wait()
        return run

    async def check(self) -> None:
        """Every run that has ended says what it found."""
        for run in self.runs:
            expected = {
                RosterEntry(name, entry.package.version, entry.output_id)
                for name, entry in run.standing.settled.items()
            }
            found = await self.store.roster(run.id)
            assert len(found) == len(expected)
            assert set(found) == expected

    @property
    def stored(self) -> int:
        """Rosters in the database."""
        count: int = self.database.read_now(lambda c: c.execute("SELECT count(*) FROM rosters").fetchone()[0])
        return count


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[House]:
    database = Database(path)
    database.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        yield House(database)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path / "b.db") as house:
        yield house


def package(name: str, version: str = "1") -> Package:
    return Package(name=name, version=version, path=".", repository="/r", store="/s", tree="1" * 40)


def entry(name: str, version: str = "1", output: str = "0" * 64) -> Settled:
    return Settled(package(name, version), "key", "closure", output, "build")


def many(count: int = MANY) -> dict[str, Settled]:
    return {f"p{number}": entry(f"p{number}", output=f"{number:064x}") for number in range(count)}


async def test_equal_runs_share_one_roster(house: House) -> None:
    settled = many()
    for same in (settled, settled, dict(settled), many()):
        await house.end(same)
    assert house.stored == 1
    await house.check()


async def test_a_run_that_differs_in_little_keeps_the_difference_only(house: House) -> None:
    settled = many()
    await house.end(settled)
    without = {name: found for name, found in settled.items() if name != "p7"}
    await house.end(without)
    await house.end({**without, "p8": entry("p8", "2"), "p9": entry("p9", output="f" * 64), "new": entry("new")})
    await house.end(settled)
    assert house.stored == 1
    await house.check()


async def test_a_run_that_differs_in_much_has_a_roster_of_its_own_and_the_next_one_shares_that(house: House) -> None:
    await house.end(many())
    other = {name: entry(name, "2", found.output_id) for name, found in many().items()}
    await house.end(other)
    await house.end({**other, "new": entry("new")})
    assert house.stored == 2
    await house.check()


async def test_different_targets_do_not_share(house: House) -> None:
    for number in range(20):
        await house.end(many(3), home=number % 10)
    assert house.stored == 20, "more sets of targets take turns than are remembered"
    await house.check()


async def test_a_database_that_was_begun_anew_has_no_roster_to_share(house: House) -> None:
    await house.end(many())
    house.rosters.clear()
    await house.end(many())
    assert house.stored == 2
    await house.check()


async def test_a_run_in_which_nothing_was_up_to_date_stores_none(house: House) -> None:
    run = await house.end({}, packages=(PackageRun(package("a"), (), 1, 1.0),))
    assert house.stored == 0
    assert await house.store.roster(run.id) == []
    _, packages = await house.store.find_run(run.id)
    assert [p.name for p in packages] == ["a"]


async def test_what_was_built_is_recorded_beside_the_roster(house: House) -> None:
    built = PackageRun(package("built"), ("p1",), 1, 1.0)
    run = await house.end(many(3), packages=(built,))
    _, packages = await house.store.find_run(run.id)
    assert [(p.name, p.state) for p in packages] == [("built", "queued")]
    assert {e.package for e in await house.store.roster(run.id)} == {"p0", "p1", "p2"}


async def test_a_run_that_was_never_planned_has_no_packages(house: House) -> None:
    run = Run(RunRecord(id="r", number=9, request=StartParams(targets=()), requested_by="", created_at=0.0,
                        state=Initialized()))  # fmt: skip
    await house.database.submit([insert_run(run.record), *await house.rosters.record(run)]).wait()
    assert await house.store.find_run("9") == (run.record, ())


entries = st.builds(
    entry,
    st.sampled_from([f"p{n}" for n in range(6)]),
    st.sampled_from(["1", "2"]),
    st.sampled_from(["0" * 64, "f" * 64]),
)
ends = st.tuples(st.lists(entries, max_size=6), st.sampled_from(["one", "other"]), st.booleans())


@given(st.lists(ends, min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
async def test_whatever_runs_found_in_whatever_order_each_gets_back_its_own(
    sequence: list[tuple[list[Settled], str, bool]],
) -> None:
    common = many()
    with tempfile.TemporaryDirectory() as home:
        async with opened(Path(home) / "b.db") as house:
            for found, what, alone in sequence:
                settled = {} if alone else dict(common)
                await house.end(settled | {e.package.name: e for e in found}, home=what)
            await house.check()


variations = st.tuples(
    st.integers(0, 9), st.lists(entries, max_size=3), st.sets(st.sampled_from([f"p{n}" for n in range(6)]), max_size=2)
)


@given(st.lists(variations, min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
async def test_variations_of_what_any_earlier_run_found_are_recorded_as_they_are(
    sequence: list[tuple[int, list[Settled], set[str]]],
) -> None:
    known = [Settlement(many())]
    with tempfile.TemporaryDirectory() as home:
        async with opened(Path(home) / "b.db") as house:
            for number, put, dropped in sequence:
                found = Settlement(known[number % len(known)])
                for each in put:
                    found[each.package.name] = each
                    found.varied.add(each.package.name)
                for name in dropped:
                    found.pop(name, None)
                    found.varied.add(name)
                known.append(found)
                await house.end(found)
            await house.check()
            assert house.stored == 1
