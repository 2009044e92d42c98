"""Questions to the database: each answer is what a look at all the rows would give."""

from __future__ import annotations

import os
import statistics
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import zstandard

from buildd.errors import NotFound
from buildd.model import BuildRecord, Stats
from buildd.planner.keys import Inputs, KeyParts
from buildd.planner.states import Building, Cancelled, Completed, Failed, RunState
from buildd.protocol import PackageTime, StartParams
from buildd.store.database import Database, Statement
from buildd.store.queries import Queries
from buildd.store.runs import RunRecord, insert_run, update_run

pytestmark = pytest.mark.trio
HOME, FORK = "https://example.org/r", "https://example.org/fork"
INPUTS = Inputs(
    parts=KeyParts(
        name="jq",
        version="1",
        tree="1" * 40,
        sources=(),
        patches=(),
        phases={"build": "make"},
        formats=(),
        environment="e" * 64,
        architecture="x86_64",
        dependencies={},
    ),
    outputs={},
    environment={"os-release": "7" * 64},
    strategy="aggressive",
    repository=HOME,
    commit=None,
    root="2" * 40,
    path="jq",
)


class Store:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.queries = Queries(database)

    async def write(self, *statements: Statement) -> None:
        await self.database.submit(statements).wait()

    async def build(
        self,
        id: str,
        package: str = "jq",
        *,
        started: float = 0.0,
        took: float = 1.0,
        home: str = HOME,
        inputs: Inputs | None = None,
        **fields: Any,
    ) -> BuildRecord:
        given = {"run": "r1", "package": package, "version": "1", "state": "success", "output_id": "0" * 64}
        record = BuildRecord(id=id, started_at=started, completed_at=started + took, **(given | fields))
        columns = {
            "id": id,
            "run": record.run,
            "package": package,
            "version": record.version,
            "repository": home,
            "state": record.state,
            "started_at": started,
            "duration_s": took,
            "key": record.key,
            "output_id": record.output_id,
            "record": msgspec.json.encode(record),
            "inputs": msgspec.json.encode(inputs) if inputs is not None else None,
        }
        await self.insert("builds", columns)
        return record

    async def indexed(self, package: str, version: str, home: str, built_at: float, tree: str = "1" * 40) -> None:
        columns = {"package": package, "version": version, "repository": home, "build": f"b{built_at:g}", "key": "k"}
        await self.insert(
            "package_index", {**columns, "output_id": "0" * 64, "tree": tree, "crc": 7, "built_at": built_at}
        )

    async def source(self, tree: str, files: list[tuple[bytes, int, bytes]] | bytes | None) -> None:
        if isinstance(files, list):
            files = zstandard.compress(msgspec.msgpack.encode(files))
        await self.insert("source_trees", {"tree": tree, "crc": 7, "files": files})

    async def insert(self, table: str, columns: dict[str, Any]) -> None:
        marks = ", ".join("?" * len(columns))
        await self.write((f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", tuple(columns.values())))

    async def ended(self, number: int, state: RunState, **stats: int) -> None:
        record = RunRecord(
            id=f"{number:08x}-0000-4000-8000-000000000000",
            number=number,
            request=StartParams(targets=(HOME,)),
            requested_by="root",
            created_at=1e9 + number,
            state=state,
            stats=Stats(total=sum(stats.values()), **stats),
        )
        await self.write(insert_run(record), update_run(record))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    database = Database(tmp_path / "b.db")
    database.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        yield Store(database)
        nursery.cancel_scope.cancel()


# --- the index --------------------------------------------------------------------------------------------


async def test_the_latest_successes_are_those_of_the_index_newest_first(store: Store) -> None:
    for number, (package, version, home) in enumerate(
        [("jq", "1", HOME), ("zlib", "1.3", HOME), ("jq", "2", HOME), ("jq", "1", FORK)]
    ):
        await store.indexed(package, version, home, float(number))

    async def found(package: str | None, limit: int = 100) -> list[tuple[str, str, str]]:
        return [(e.package, e.version, e.repository) for e in await store.queries.latest(package, limit)]

    assert await found(None) == [("jq", "1", FORK), ("jq", "2", HOME), ("zlib", "1.3", HOME), ("jq", "1", HOME)]
    assert await found(None, 1) == [("jq", "1", FORK)]
    assert await found("jq") == [("jq", "1", FORK), ("jq", "2", HOME), ("jq", "1", HOME)]
    assert await found("jq@1") == [("jq", "1", FORK), ("jq", "1", HOME)]
    assert await found("jq@3") == await found("j") == await found("jq@") == []
    (entry,) = await store.queries.latest("zlib", 1)
    assert (entry.build, entry.tree, entry.crc, entry.built_at) == ("b1", "1" * 40, 7, 1.0)


async def test_a_fingerprint_tells_the_tree_its_crc_and_the_build(store: Store) -> None:
    await store.indexed("jq", "1", HOME, 5.0, tree="a" * 40)
    await store.indexed("jq", "2", HOME, 6.0, tree="b" * 40)
    await store.source("a" * 40, [(b"Makefile", 0o100644, b"\x01" * 20), (b"caf\xe9", 0o100755, b"\x02" * 20)])

    newest, oldest = await store.queries.fingerprints("jq")

    assert (newest.version, newest.tree, newest.files) == ("2", "b" * 40, None)
    assert (oldest.version, oldest.tree, oldest.crc, oldest.files) == ("1", "a" * 40, 7, 2)
    assert (oldest.build, oldest.built_at, oldest.repository) == ("b5", 5.0, HOME)
    assert await store.queries.fingerprints("jq@1") == [oldest]
    with pytest.raises(NotFound) as caught:
        await store.queries.fingerprints("zlib")
    assert caught.value.hint


async def test_listings_come_back_as_they_were_stored(store: Store) -> None:
    await store.source("a" * 40, [(b"Makefile", 0o100644, b"\x01" * 20), (b"caf\xe9", 0o120000, b"\xab" * 20)])
    await store.source("b" * 40, None)
    await store.source("c" * 40, b"not zstandard")
    await store.source("d" * 40, zstandard.compress(b"not msgpack"))
    assert await store.queries.listing("a" * 40) == [
        ("Makefile", 0o100644, "01" * 20),
        (os.fsdecode(b"caf\xe9"), 0o120000, "ab" * 20),
    ]
    for tree in ("b" * 40, "c" * 40, "d" * 40, "e" * 40):
        assert await store.queries.listing(tree) is None


# --- builds -----------------------------------------------------------------------------------------------


async def test_failures_are_listed_newest_first(store: Store) -> None:
    for number, state in enumerate(["failed", "success", "failed", "cancelled", "failed"]):
        output = "0" * 64 if state == "success" else None
        await store.build(f"b{number}", "jq" if number else "zlib", started=number, state=state, output_id=output)
    assert [b.id for b in await store.queries.failures(None, 10)] == ["b4", "b2", "b0"]
    assert [b.id for b in await store.queries.failures(None, 1)] == ["b4"]
    assert [b.id for b in await store.queries.failures("jq", 10)] == ["b4", "b2"]
    assert [b.id for b in await store.queries.failures("zlib@1", 10)] == ["b0"]
    assert await store.queries.failures("zlib@2", 10) == []


async def test_what_decided_a_build_comes_back(store: Store) -> None:
    await store.build("b1", inputs=INPUTS)
    await store.build("b2")
    assert await store.queries.inputs_of("b1") == INPUTS
    assert await store.queries.inputs_of("b2") is None
    assert await store.queries.inputs_of("none") is None


async def test_the_last_success_is_the_repositorys_own_or_else_of_any(store: Store) -> None:
    await store.build("b1", started=1.0, inputs=INPUTS)
    await store.build("b2", started=2.0, home=FORK)
    await store.build("b3", started=3.0, state="failed", output_id=None)
    await store.build("b4", started=4.0, output_id=None)  # it only fetched
    await store.build("b5", "zlib", started=5.0)

    async def found(repository: str, **limits: Any) -> str | None:
        success = await store.queries.last_success("jq", repository=repository, **limits)
        return success.build.id if success is not None else None

    assert await found(HOME) == "b1"
    assert await found(FORK) == "b2"
    assert await found("elsewhere") == "b2"
    assert await found("elsewhere", elsewhere=False) is None
    assert await found(FORK, before=2.0) == "b1"
    assert await found(HOME, before=1.0) is None
    success = await store.queries.last_success("jq", repository=HOME)
    assert success is not None
    assert success.inputs == INPUTS
    other = await store.queries.last_success("jq", repository=FORK)
    assert other is not None
    assert other.inputs is None


async def test_successes_are_found_by_key_and_by_output(store: Store) -> None:
    one, two = "1" * 64, "2" * 64
    for number, (output, key) in enumerate([(one, "k"), (one, "k"), (two, "l"), (one, "m"), (two, "k")]):
        await store.build(f"b{number}", started=float(number), output_id=output, key=key)
    await store.build("other", "zlib", started=9.0, output_id=one, key="n")

    found = await store.queries.last_with_key("k")
    assert found is not None
    assert found.build.id == "b4"
    assert await store.queries.last_with_key("z") is None
    first = await store.queries.first_with_output("jq", two, after=1.0)
    assert first is not None
    assert first.build.id == "b2"
    last = await store.queries.last_with_output("jq", one, before=3.0)
    assert last is not None
    assert last.build.id == "b1"
    assert await store.queries.last_with_output("jq", two, before=2.0) is None


# --- all of it --------------------------------------------------------------------------------------------


async def test_statistics_of_nothing_are_zeros_and_unknowns(store: Store) -> None:
    stats = await store.queries.statistics(5)
    assert (stats.packages, stats.outputs, stats.runs, stats.builds, stats.slowest) == (0, 0, {}, {}, ())
    assert (stats.hits, stats.misses, stats.hit_rate, stats.total_s) == (0, 0, None, 0.0)
    assert (stats.since, stats.mean_s, stats.median_s) == (None, None, None)
    assert stats.database_bytes > 0


async def test_hits_and_misses_are_of_runs_that_have_ended(store: Store) -> None:
    await store.ended(1, Completed(), success=3)
    await store.ended(2, Completed(), skipped=3)
    await store.ended(3, Failed(error="it"), success=1, failed=1, blocked=4)
    await store.ended(4, Cancelled(reason="he"), cancelled=9)
    await store.ended(5, Building(wave=1, waves=1), skipped=100)
    stats = await store.queries.statistics(5)
    assert stats.runs == {"completed": 2, "failed": 1, "cancelled": 1, "building": 1}
    assert (stats.hits, stats.misses, stats.hit_rate) == (3, 5, 0.375)
    assert stats.since == 1e9 + 1


async def test_times_are_those_of_successes_and_the_slowest_come_first(store: Store) -> None:
    durations = {"odd": [5.0, 1.0, 9.0], "even": [1.0, 2.0, 4.0, 100.0], "one": [30.0]}
    for package, list_ in durations.items():
        for number, took in enumerate(list_):
            await store.build(f"{package}{number}", package, took=took, output_id=f"{package:0>64}")
    await store.build("failed", "odd", took=1000.0, state="failed", output_id=None)
    await store.build("running", "odd", state="running", output_id=None)
    await store.indexed("odd", "1", HOME, 1.0)
    await store.indexed("odd", "2", HOME, 1.0)

    stats = await store.queries.statistics(2)

    assert stats.builds == {"failed": 1, "running": 1, "success": 8}
    assert (stats.packages, stats.outputs) == (1, 3)
    everything = [took for list_ in durations.values() for took in list_]
    assert stats.total_s == sum(everything)
    assert stats.mean_s == pytest.approx(statistics.mean(everything))
    assert stats.median_s == statistics.median(everything)
    assert stats.slowest == (
        PackageTime(package="one", builds=1, total_s=30.0, mean_s=30.0, median_s=30.0),
        PackageTime(package="odd", builds=3, total_s=15.0, mean_s=5.0, median_s=5.0),
    )
    assert [t.median_s for t in (await store.queries.statistics(9)).slowest] == [30.0, 5.0, 3.0]
    assert (await store.queries.statistics(0)).slowest == ()
    assert await store.queries.running() == {"running"}
    assert await store.queries.count() == 10
    assert sorted((await store.queries.outputs()).values()) == [1, 3, 4]


async def test_questions_about_one_package_do_not_look_at_all_builds(store: Store) -> None:
    def plan(sql: str) -> str:
        steps = store.database.read_now(lambda c: c.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall())
        return "".join(f"{step[3]}\n" for step in steps)

    asked: list[str] = []
    rows = store.queries._rows

    async def noting(sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        asked.append(sql)
        return await rows(sql, parameters)

    store.queries._rows = noting  # type: ignore[method-assign]
    await store.queries.last_success("jq", repository=HOME, before=1.0)
    await store.queries.last_with_key("k")
    await store.queries.first_with_output("jq", "0" * 64, after=1.0)
    await store.queries.failures(None, 5)
    await store.queries.failures("jq", 5)
    await store.queries.latest("jq", 5)
    for sql in asked:
        assert "SCAN builds\n" not in plan(sql.replace("?", "1")), sql
        assert "SCAN package_index" not in plan(sql.replace("?", "1")), sql
    assert "SCAN builds\n" in plan("SELECT count(*) FROM builds WHERE version = '1'")
