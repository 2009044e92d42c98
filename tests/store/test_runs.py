"""Runs and builds in the database: what is written is found again, by every name it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec import Struct

from buildd.errors import InvalidInput, NotFound
from buildd.model import BuildRecord, PhaseRecord, Stats
from buildd.planner.keys import Inputs, KeyParts
from buildd.planner.states import Completed, Discovering, Failed, Initialized
from buildd.protocol import RunPackage, StartParams
from buildd.store.database import Database
from buildd.store.runs import (
    RESULTS_PER_PACKAGE,
    RosterEntry,
    RunRecord,
    RunStore,
    index_package,
    insert_build,
    insert_run,
    save_packages,
    save_places,
    save_roster,
    save_source,
    update_build,
    update_run,
)

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
    environment={},
    strategy="aggressive",
    repository=HOME,
    commit=None,
    root="2" * 40,
    path=".",
)


class Spot(Struct, frozen=True):
    """Where sources are, as far as the store cares: anything that JSON can say."""

    repository: str
    tree: str


class Store:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.runs = RunStore(database)

    async def write(self, *statements: Any) -> None:
        await self.database.submit(statements).wait()

    async def run(self, number: int, id: str = "", **fields: Any) -> RunRecord:
        record = RunRecord(
            **{
                "id": id or f"{number:08x}-0000-4000-8000-000000000000",
                "number": number,
                "request": StartParams(targets=(HOME,)),
                "requested_by": "root",
                "created_at": 1e9 + number,
                "state": Initialized(),
                **fields,
            }
        )
        await self.write(insert_run(record))
        return record

    async def build(
        self, id: str, package: str = "jq", *, started: float = 0.0, took: float = 1.0, **fields: Any
    ) -> BuildRecord:
        record = BuildRecord(
            **{
                "id": id,
                "run": "r1",
                "package": package,
                "version": "1",
                "state": "success",
                "started_at": started,
                "completed_at": started + took,
                "key": f"key-{id}",
                "output_id": "0" * 64,
                "repository": HOME,
                **fields,
            }
        )
        begun = msgspec.structs.replace(record, state="running", completed_at=None, output_id=None)
        await self.write(insert_build(begun, INPUTS))
        if record.state != "running":
            await self.write(update_build(record))
        return record


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    database = Database(tmp_path / "b.db")
    database.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        yield Store(database)
        nursery.cancel_scope.cancel()


# --- runs -------------------------------------------------------------------------------------------------


async def test_a_run_is_found_by_id_prefix_number_and_latest(store: Store) -> None:
    first = await store.run(1, "abcd0000-0000-4000-8000-000000000001")
    second = await store.run(2, "abcd1111-0000-4000-8000-000000000002")
    for text, run in ((first.id, first), ("abcd0", first), ("1", first), ("2", second), ("latest", second)):
        assert await store.runs.find_run(text) == (run, ()), text


async def test_a_prefix_that_several_runs_have_is_ambiguous(store: Store) -> None:
    await store.run(1, "abcd0000-0000-4000-8000-000000000001")
    await store.run(2, "abcd1111-0000-4000-8000-000000000002")
    with pytest.raises(InvalidInput, match="several runs begin with 'abcd'") as caught:
        await store.runs.find_run("abcd")
    assert caught.value.hint


async def test_digits_are_a_number_first_and_a_prefix_when_no_run_has_that_number(store: Store) -> None:
    run = await store.run(1, "12345678-0000-4000-8000-000000000001")
    assert (await store.runs.find_run("12345678"))[0] == run
    assert (await store.runs.find_run("123"))[0] == run
    other = await store.run(123, "99999999-0000-4000-8000-000000000002")
    assert (await store.runs.find_run("123"))[0] == other


@pytest.mark.parametrize("text", ["", "7", "ffff", "nonsense", "%", "' OR 1=1 --", "²", "9" * 30, "-1", "latest "])
async def test_what_names_no_run_is_not_found(store: Store, text: str) -> None:
    await store.run(1)
    with pytest.raises(NotFound) as caught:
        await store.runs.find_run(text)
    assert caught.value.hint


async def test_without_any_run_there_is_no_latest(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.runs.find_run("latest")
    assert store.runs.next_number() == 1


async def test_runs_are_listed_newest_first_and_the_active_ones_alone(store: Store) -> None:
    runs = [await store.run(n) for n in range(1, 6)]
    done = msgspec.structs.replace(runs[4], state=Completed(), stats=Stats(total=1, success=1))
    await store.write(update_run(done))
    assert [r.number for r in await store.runs.runs(3, active=False)] == [5, 4, 3]
    assert [r.number for r in await store.runs.runs(3, active=True)] == [4, 3, 2]
    assert [r.number for r in await store.runs.unfinished()] == [1, 2, 3, 4]
    assert store.runs.next_number() == 6


async def test_a_run_and_its_packages_come_back_as_they_were(store: Store) -> None:
    run = await store.run(1)
    shown = RunPackage(
        name="jq", version="1", state="failed", reason="oom", phase="build", duration_s=1.5, build_id="b",
        artifact=None, log_bytes=7, message="too large",
    )  # fmt: skip
    ended = msgspec.structs.replace(run, state=Failed(error="it broke", hint="mend it"), completed_at=2e9, waves=3)
    await store.write(update_run(ended), save_packages(run.id, [shown]))
    assert await store.runs.find_run("1") == (ended, (shown,))


async def test_the_places_of_a_runs_sources_survive_a_restart(store: Store) -> None:
    run = await store.run(1)
    assert await store.runs.places(run.id) is None
    assert await store.runs.places("none") is None
    places = Spot(repository=HOME, tree="0" * 40)
    await store.write(save_places(run.id, places), update_run(msgspec.structs.replace(run, state=Discovering())))
    kept = await store.runs.places(run.id)
    assert kept is not None
    assert msgspec.json.decode(kept, type=Spot) == places


async def test_a_run_without_a_roster_had_nothing_up_to_date(store: Store) -> None:
    run = await store.run(1)
    assert await store.runs.roster(run.id) == []
    await store.write(save_packages(run.id, []))
    assert await store.runs.roster(run.id) == []
    assert await store.runs.roster("none") == []


async def test_runs_share_a_roster_and_each_has_what_differs_from_it(store: Store) -> None:
    first, second = await store.run(1), await store.run(2)
    entries = [RosterEntry(f"p{n}", "1", f"{n:064x}") for n in range(5)]
    changes = {"p1": ("2", "f" * 64), "p3": None, "new": ("1", "e" * 64), "never there": None}
    await store.write(save_roster("shared", entries), save_packages(first.id, [], "shared", {}))
    await store.write(save_packages(second.id, [], "shared", changes))
    assert await store.runs.roster(first.id) == entries
    assert await store.runs.roster(second.id) == [
        entries[0],
        RosterEntry("p1", "2", "f" * 64),
        entries[2],
        entries[4],
        RosterEntry("new", "1", "e" * 64),
    ]


# --- builds -----------------------------------------------------------------------------------------------


async def test_a_build_is_found_by_id_and_prefix(store: Store) -> None:
    one = await store.build("abc10000-0000-4000-8000-000000000001", phases=(PhaseRecord(name="build", started_at=1.0),))
    two = await store.build("abc20000-0000-4000-8000-000000000002")
    assert await store.runs.find_build(one.id) == one
    assert await store.runs.find_build("abc2") == two
    with pytest.raises(InvalidInput, match="several builds begin with 'abc'"):
        await store.runs.find_build("abc")
    for text in ("", "abd", "ABC1", "%", "xyz"):
        with pytest.raises(NotFound):
            await store.runs.find_build(text)


async def test_builds_are_listed_newest_first_by_package_and_run(store: Store) -> None:
    for number in range(6):
        await store.build(f"b{number}", "jq" if number % 2 else "zlib", started=number, run=f"r{number // 3}")
    await store.build("c", "jq", started=10.0, run="r1", state="running")

    async def ids(**query: Any) -> list[str]:
        return [b.id for b in await store.runs.builds(**({"package": None, "run": None, "limit": 100} | query))]

    assert await ids() == ["c", "b5", "b4", "b3", "b2", "b1", "b0"]
    assert await ids(limit=2) == ["c", "b5"]
    assert await ids(package="zlib") == ["b4", "b2", "b0"]
    assert await ids(package="jq", run="r0") == ["b1"]
    assert [b.id for b in await store.runs.builds_of_run("r1")] == ["b3", "b4", "b5", "c"]
    assert [b.id for b in await store.runs.running_builds()] == ["c"]


async def test_the_expected_duration_is_the_median_of_the_last_five_successes(store: Store) -> None:
    for number, took in enumerate([1000, 1, 2, 3, 4, 100]):
        await store.build(f"b{number}", started=float(number), took=float(took))
    await store.build("failed", started=50.0, took=9999.0, state="failed", output_id=None)
    await store.build("other", "zlib", state="failed", output_id=None)
    assert await store.runs.history(["jq", "zlib", "new"]) == {"jq": 3.0}
    assert await store.runs.history([]) == {}


async def test_known_results_are_by_key_and_the_newest_wins(store: Store) -> None:
    await store.build("b1", key="k1", started=1.0, output_id="1" * 64)
    await store.build("b2", key="k2", started=2.0, output_id="2" * 64)
    await store.build("b3", key="k1", started=3.0, output_id="3" * 64, repository=FORK)
    await store.build("b4", key="k4", started=4.0, output_id=None, state="failed")
    found = await store.runs.known_results({"jq": None})
    assert {key: result.build for key, result in found.items()} == {"k1": "b3", "k2": "b2"}
    assert found["k1"].output_id == "3" * 64
    assert await store.runs.known_results({"zlib": None}) == {}


async def test_conservative_results_are_each_packages_last_in_its_own_repository(store: Store) -> None:
    await store.build("b1", key="k1", started=1.0)
    await store.build("b2", key="k2", started=2.0)
    await store.build("b3", key="k3", started=3.0, repository=FORK)
    await store.build("b4", key="k4", started=4.0, state="failed", output_id=None)
    await store.build("b5", "zlib", key="k5", started=5.0)
    for home, builds in ((HOME, {"k2": "b2"}), (FORK, {"k3": "b3"}), ("https://example.org/none", {})):
        found = await store.runs.known_results({"jq": home})
        assert {key: result.build for key, result in found.items()} == builds
    mixed = await store.runs.known_results({"jq": HOME, "zlib": None})
    assert {key: result.build for key, result in mixed.items()} == {"k2": "b2", "k5": "b5"}


async def test_a_new_build_is_compared_with_the_last_successes_of_its_package_and_no_older_ones(store: Store) -> None:
    for number in range(RESULTS_PER_PACKAGE + 2):
        await store.build(f"b{number}", key=f"k{number}", started=float(number))
    found = await store.runs.known_results({"jq": None})
    assert found.keys() == {f"k{number}" for number in range(2, RESULTS_PER_PACKAGE + 2)}


async def test_outputs_lead_back_to_their_builds(store: Store) -> None:
    await store.build("b1", started=1.0, output_id="aa" + "0" * 62)
    await store.build("b2", started=2.0, output_id="aa" + "0" * 62)
    await store.build("b3", "zlib", started=3.0, output_id="ab" + "0" * 62)
    assert (await store.runs.build_of_output("aa" + "0" * 62)).id == "b2"
    with pytest.raises(NotFound):
        await store.runs.build_of_output("ff" * 32)
    assert sorted(await store.runs.outputs_like("a")) == ["aa" + "0" * 62, "ab" + "0" * 62]
    assert await store.runs.outputs_like("aa") == ["aa" + "0" * 62]
    assert [b.id for b in await store.runs.builds_of_outputs(10, None)] == ["b3", "b2", "b1"]
    assert [b.id for b in await store.runs.builds_of_outputs(1, "jq")] == ["b2"]


async def test_ten_thousand_names_are_looked_up_at_once(store: Store) -> None:
    await store.build("b1", "p9999")
    names = [f"p{n}" for n in range(10_000)]
    assert await store.runs.history(names) == {"p9999": 1.0}
    assert set(await store.runs.known_results(dict.fromkeys(names))) == {"key-b1"}
    assert set(await store.runs.known_results(dict.fromkeys(names, HOME))) == {"key-b1"}


# --- sources and the index --------------------------------------------------------------------------------


async def test_the_crc_of_a_source_is_known_once_its_listing_is_stored(store: Store) -> None:
    one, two = "1" * 40, "2" * 40
    assert await store.runs.crcs([one]) == {}
    files = [(b"caf\xe9", 0o100644, bytes.fromhex("a" * 40))]
    await store.write(save_source(one, 7, files), save_source(two, 0xFFFFFFFF, []))
    await store.write(save_source(one, 8, []))
    assert await store.runs.crcs([one, two, "3" * 40]) == {one: 7, two: 0xFFFFFFFF}, "a tree never changes"
    assert await store.runs.crcs([]) == {}


async def test_the_crc_of_a_source_with_very_many_files_is_kept_without_its_listing(store: Store) -> None:
    files = [(b"%d" % number, 0o100644, bytes(20)) for number in range(50_001)]
    await store.write(save_source("1" * 40, 7, files), save_source("2" * 40, 8, files[:-1]))
    assert await store.runs.crcs(["1" * 40]) == {"1" * 40: 7}
    rows = store.database.read_now(
        lambda c: c.execute("SELECT tree, files IS NULL FROM source_trees ORDER BY tree").fetchall()
    )
    assert [tuple(row) for row in rows] == [("1" * 40, 1), ("2" * 40, 0)]


async def test_a_success_takes_the_place_of_the_one_before_in_the_index(store: Store) -> None:
    async def indexed() -> list[tuple[Any, ...]]:
        return await store.database.read(
            lambda c: [
                tuple(row)
                for row in c.execute("SELECT version, repository, build, tree, crc FROM package_index ORDER BY build")
            ]
        )

    kinds: list[dict[str, Any]] = [{}, {"version": "2"}, {"repository": FORK}]
    builds = [await store.build(f"b{n + 1}", tree=f"b{n + 1}" * 20, crc=n, **fields) for n, fields in enumerate(kinds)]
    await store.write(*map(index_package, builds))
    await store.write(index_package(await store.build("b4", tree="b4" * 20, crc=None)))
    assert await indexed() == [
        ("2", HOME, "b2", "b2" * 20, 1),
        ("1", FORK, "b3", "b3" * 20, 2),
        ("1", HOME, "b4", "b4" * 20, None),
    ]
