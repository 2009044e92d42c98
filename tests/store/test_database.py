"""The door to SQLite: group commits, trouble, damage, migrations."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from buildd.model import RepoMapStatus
from buildd.store.database import Database, DatabaseError, Statement
from buildd.store.journal import Journal
from buildd.store.maps import MapStore
from buildd.store.runs import RunStore
from buildd.store.schema import MIGRATIONS

FIXTURES = Path(__file__).parent / "fixtures"
LIMIT_S = 20.0


def repository(url: str, record: object = b"{}") -> Statement:
    return ("INSERT INTO repositories (url, record) VALUES (?, ?)", (url, record))


def urls(database: Database) -> list[str]:
    return [
        row[0] for row in database.read_now(lambda c: c.execute("SELECT url FROM repositories ORDER BY url").fetchall())
    ]


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    """An open database with its writer running; a test that hangs on it fails."""
    database = Database(path)
    database.open()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            yield database
            nursery.cancel_scope.cancel()


# --- writing ----------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_what_was_committed_is_there_for_the_next_one_who_opens(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        await database.submit([repository("a"), repository("b")]).wait()
        assert urls(database) == ["a", "b"]
    async with opened(tmp_path / "b.db") as database:
        assert urls(database) == ["a", "b"]


@pytest.mark.trio
async def test_batches_that_wait_together_are_one_transaction(tmp_path: Path) -> None:
    database = Database(tmp_path / "b.db")
    database.open()
    groups: list[list[str]] = []
    database.on_commit(lambda: groups.append(urls(database)))
    commits = [database.submit([repository(f"u{n:03}")]) for n in range(200)]
    assert not any(commit.settled for commit in commits)
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        with trio.fail_after(LIMIT_S):
            for commit in commits:
                await commit.wait()
        nursery.cancel_scope.cancel()
    assert groups == [[f"u{n:03}" for n in range(200)]]


@pytest.mark.trio
async def test_batches_are_applied_in_the_order_in_which_they_were_submitted(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        await database.submit([repository("a", b"0")]).wait()
        update = "UPDATE repositories SET record = CAST(record || ? AS BLOB) WHERE url = 'a'"
        commits = [database.submit([(update, (bytes([48 + n % 10]),))]) for n in range(1, 100)]
        for commit in commits:
            await commit.wait()
        record = database.read_now(lambda c: c.execute("SELECT record FROM repositories").fetchone()[0])
    assert bytes(record) == bytes(48 + n % 10 for n in range(100))


@pytest.mark.trio
async def test_a_batch_that_fails_does_not_take_the_others_of_its_group_with_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "b.db")
    database.open()
    before = database.submit([repository("a")])
    failing = database.submit([repository("half"), repository("a")])  # the second one breaks the key
    after = database.submit([repository("b")])
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        with trio.fail_after(LIMIT_S):
            await before.wait()
            await after.wait()
            with pytest.raises(DatabaseError, match="UNIQUE") as caught:
                await failing.wait()
        assert caught.value.hint
        assert urls(database) == ["a", "b"], "whole or not at all"
        assert database.trouble is None, "the fault is in the data"
        nursery.cancel_scope.cancel()


@pytest.mark.trio
@pytest.mark.parametrize("value", [2**70, "\udcff", object()], ids=["huge-number", "no-utf-8", "no-sql-type"])
async def test_a_value_that_sqlite_cannot_take_fails_its_batch_and_not_the_writer(
    tmp_path: Path, value: object
) -> None:
    async with opened(tmp_path / "b.db") as database:
        with trio.fail_after(5):
            with pytest.raises(DatabaseError):
                await database.submit([repository("a", value)]).wait()
            await database.submit([repository("b")]).wait()
        assert urls(database) == ["b"]


@pytest.mark.trio
async def test_what_was_submitted_before_the_end_is_written(tmp_path: Path) -> None:
    database = Database(tmp_path / "b.db")
    database.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        commits = [database.submit([repository(f"u{n}")]) for n in range(50)]
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert all(commit.settled for commit in commits)
    assert len(urls(database)) == 50


# --- reading ----------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        with pytest.raises(DatabaseError, match="readonly"):
            await database.read(lambda c: c.execute("DELETE FROM runs"))
        with pytest.raises(DatabaseError, match="readonly"):
            database.read_now(lambda c: c.execute("DELETE FROM runs"))


@pytest.mark.trio
async def test_many_readers_at_once_all_get_their_answer_and_few_connections_stay(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        await database.submit([repository(f"u{n}") for n in range(10)]).wait()
        counts: list[int] = []

        async def count() -> None:
            counts.append(await database.read(lambda c: c.execute("SELECT count(*) FROM repositories").fetchone()[0]))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(count)
        assert counts == [10] * 100
        held = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_link(n)]
        assert held.count(str(database.path)) <= 5


def _is_link(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")


@pytest.mark.trio
async def test_a_query_that_fails_is_an_error_and_the_next_one_works(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        with pytest.raises(DatabaseError, match="no such table"):
            await database.read(lambda c: c.execute("SELECT * FROM nowhere"))
        assert await database.read(lambda c: c.execute("SELECT 1").fetchone()) == (1,)


@pytest.mark.trio
async def test_a_path_with_marks_that_urls_have_is_a_path(tmp_path: Path) -> None:
    directory = tmp_path / "50% off? #1"
    async with opened(directory / "b.db") as database:
        await database.submit([repository("a")]).wait()
        assert await database.read(lambda c: c.execute("SELECT url FROM repositories").fetchall()) == [("a",)]
    assert os.listdir(tmp_path) == [directory.name]


# --- opening ----------------------------------------------------------------------------------------------


def damaged_header(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 100)


def damaged_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.trio
@pytest.mark.parametrize("damage", [damaged_header, damaged_middle, cut_off])
async def test_a_damaged_file_is_set_aside_whole_and_a_new_one_begun(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository(f"https://example.org/{n}", b"x" * 500) for n in range(200)]).wait()
    assert callable(damage)
    damage(path)
    content = path.read_bytes()
    async with opened(path) as database:
        assert database.renewal is not None
        assert "damaged" in database.renewal.why
        aside = Path(str(database.renewal.path))
        assert aside.read_bytes() == content
        assert aside.name.startswith("b.db.corrupt-")
        assert urls(database) == []
        await database.submit([repository("a")]).wait()
    async with opened(path) as database:
        assert database.renewal is None
        assert urls(database) == ["a"]


@pytest.mark.trio
async def test_a_healthy_file_is_not_set_aside(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db"):
        pass
    async with opened(tmp_path / "b.db") as database:
        assert database.renewal is None
    assert [name for name in os.listdir(tmp_path) if "corrupt" in name] == []


def test_a_database_of_a_newer_buildd_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=f"newer buildd .schema {len(MIGRATIONS) + 1}") as caught:
        Database(path).open()
    assert caught.value.hint
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_an_error_and_not_moved(tmp_path: Path) -> None:
    (tmp_path / "b.db").mkdir()
    with pytest.raises(DatabaseError, match="cannot open the database") as caught:
        Database(tmp_path / "b.db").open()
    assert caught.value.hint
    assert (tmp_path / "b.db").is_dir()


@pytest.mark.trio
async def test_a_migration_that_fails_leaves_the_old_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
    broken = (*MIGRATIONS, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr("buildd.store.sqlite.MIGRATIONS", broken)
    with pytest.raises(DatabaseError):
        Database(path).open()
    monkeypatch.undo()
    async with opened(path) as database:
        assert database.renewal is None
        assert urls(database) == ["a"]
        tables = {row[0] for row in database.read_now(lambda c: c.execute("SELECT name FROM sqlite_schema").fetchall())}
        assert "extra" not in tables


# --- old files --------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_database_of_schema_1_is_opened_and_read(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    shutil.copy(FIXTURES / "schema-1.db", path)
    async with opened(path) as database:
        assert database.renewal is None
        version = database.read_now(lambda c: c.execute("PRAGMA user_version").fetchone()[0])
        assert version == len(MIGRATIONS)
        runs = RunStore(database)
        finished, packages = await runs.find_run("1")
        assert finished.stats.total == finished.stats.success == 1
        assert [(p.name, p.state) for p in packages] == [("zlib", "success")]
        (unfinished,) = await runs.unfinished()
        assert unfinished.number == 2
        assert await runs.places(unfinished.id) is None, "it is planned anew"
        assert await runs.roster(finished.id) == []
        (build,) = await runs.builds_of_run(finished.id)
        assert (build.package, build.state, build.output_id) == ("zlib", "success", "ab" * 32)
        assert [phase.name for phase in build.phases] == ["build", "stage"]
        assert [b.package for b in await runs.running_builds()] == ["curl"]
        assert await runs.history(["zlib", "curl"]) == {"zlib": 12.5}
        index = database.read_now(lambda c: c.execute("SELECT * FROM package_index").fetchall())
        assert index == [
            ("zlib", "1.3", "https://example.org/workspace", build.id, "cd" * 32, "ab" * 32, "", None, 1_700_000_001.0)
        ]
        assert database.read_now(lambda c: c.execute("SELECT inputs FROM builds").fetchall()) == [(None,), (None,)]
        assert urls(database) == ["https://example.org/workspace"]
        journal = Journal(database, keep=1000)
        result = await journal.poll(0, timeout=5)
        assert [(e.number, e.kind) for e in result.events] == [
            (1, "run_state"),
            (2, "package_started"),
            (3, "package_completed"),
            (4, "run_state"),
            (5, "package_started"),
        ]
        assert result.events[2].data == {"state": "success", "duration_s": 12.5}
        await journal.emit("daemon_resumed").wait()
        assert journal.last == 6


@pytest.mark.trio
async def test_a_database_of_schema_2_is_opened_and_takes_maps(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    shutil.copy(FIXTURES / "schema-2.db", path)
    async with opened(path) as database:
        assert database.renewal is None
        runs = RunStore(database)
        second, packages = await runs.find_run("2")
        assert (second.stats.skipped, second.stats.failed) == (1, 1)
        assert [(p.name, p.state) for p in packages] == [("curl", "failed")]
        assert [entry.package for entry in await runs.roster(second.id)] == ["zlib"]
        assert list(await runs.history(["zlib"])) == ["zlib"]
        maps = MapStore(database)
        assert maps.all() == []
        status = RepoMapStatus(repository="r", commit="c", status="failed", build_id="b", started_at=1.0, error="e")
        maps.save(status)
        await database.flush()
        assert maps.all() == [status]
