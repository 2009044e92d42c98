"""A database that cannot record for a while: what is submitted is kept, in order, and written when it can be."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from buildd.errors import Refused
from buildd.store import batches, journal as journal_module, writer as writer_module
from buildd.store.database import Commit, Database, DatabaseError, Statement
from buildd.store.journal import Journal

pytestmark = pytest.mark.trio
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildd.store.sqlite.LOCK_PATIENCE_S", 0.05)


def repository(url: str, record: object = b"{}") -> Statement:
    return ("INSERT INTO repositories (url, record) VALUES (?, ?)", (url, record))


def urls(database: Database) -> list[str]:
    return [
        row[0] for row in database.read_now(lambda c: c.execute("SELECT url FROM repositories ORDER BY url").fetchall())
    ]


def numbers_on_disk(database: Database) -> list[int]:
    return [row[0] for row in database.read_now(lambda c: c.execute("SELECT number FROM events").fetchall())]


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    database = Database(path)
    database.open()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            yield database
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """As long as the block takes, another connection holds the lock that writers need."""
    other = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield other
        if other.in_transaction:
            other.execute("ROLLBACK")
    finally:
        other.close()


async def recovered(database: Database) -> None:
    while database.trouble is not None or database.waiting:
        await trio.sleep(0.01)


# --- a lock -----------------------------------------------------------------------------------------------


async def test_what_cannot_be_written_is_kept_in_order_and_written_when_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a", b"0")]).wait()
        update = "UPDATE repositories SET record = CAST(record || ? AS BLOB) WHERE url = 'a'"
        with locked(path):
            commits = [database.submit([(update, (bytes([48 + n % 10]),))]) for n in range(1, 100)]
            with pytest.raises(DatabaseError, match="locked") as caught:
                await commits[0].wait()
            assert "fuser" in caught.value.hint
            await commits[-1].wait(kept=True)
            assert [commit.state for commit in commits] == ["kept"] * 99
            assert not any(commit.done for commit in commits)
            assert database.waiting == 99
            assert database.trouble is not None
            assert str(path) in database.trouble
            with trio.move_on_after(0.05) as patience:
                await commits[-1].wait_done()
            assert patience.cancelled_caught
        await commits[-1].wait_done()
        await recovered(database)
        assert [commit.state for commit in commits] == ["stored"] * 99
        await commits[0].wait()
        record = database.read_now(lambda c: c.execute("SELECT record FROM repositories").fetchone()[0])
    assert bytes(record) == bytes(48 + n % 10 for n in range(100))


async def test_what_is_submitted_during_trouble_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildd.store.sqlite.LOCK_PATIENCE_S", 1.0)
    path = tmp_path / "b.db"
    async with opened(path) as database:
        with locked(path):
            await database.submit([repository("first")]).wait(kept=True)
            began = trio.current_time()
            for n in range(50):
                await database.submit([repository(f"u{n}")]).wait(kept=True)
            assert trio.current_time() - began < 1.0
        await recovered(database)
        assert len(urls(database)) == 51


async def test_a_batch_that_must_not_be_kept_is_refused_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        with locked(path):
            kept = database.submit([repository("kept")])
            refused = database.submit([repository("refused")], keep=False, instead=repository("instead"))
            for _ in range(2):
                with pytest.raises(DatabaseError, match="locked"):
                    await refused.wait()
            with pytest.raises(DatabaseError):
                await refused.wait(kept=True)
            assert (kept.state, refused.state) == ("kept", "withdrawn")
            later = database.submit([repository("too")], keep=False)
            with pytest.raises(DatabaseError):
                await later.wait()
        await recovered(database)
        assert urls(database) == ["instead", "kept"]
        assert refused.done
        with pytest.raises(DatabaseError):
            await refused.wait()
        await database.submit([repository("now")], keep=False).wait()
        assert urls(database) == ["instead", "kept", "now"]


async def test_a_new_batch_is_tried_without_waiting_for_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "LAST_PAUSE_S", 1000.0)
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_S", 0.1)
    path = tmp_path / "b.db"
    async with opened(path) as database:
        with locked(path):
            database.submit([repository("kept")])
            while not database._opened()._pause > 1:
                await trio.sleep(0.05)
        await trio.sleep(0.15)
        await database.submit([repository("new")]).wait()
        assert urls(database) == ["kept", "new"]
        assert database.trouble is None


async def test_a_batch_with_a_fault_among_those_that_were_kept_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
        with locked(path):
            faulty = database.submit([repository("a")], note=repository("note"))
            good = database.submit([repository("b")])
            await good.wait(kept=True)
        await recovered(database)
        assert (faulty.state, good.state) == ("failed", "stored")
        assert urls(database) == ["a", "b", "note"]
        with pytest.raises(DatabaseError, match="UNIQUE"):
            await faulty.wait(kept=True)


async def test_reading_goes_on_while_writing_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
        with locked(path):
            database.submit([repository("b")])
            assert await database.read(lambda c: c.execute("SELECT url FROM repositories").fetchall()) == [("a",)]
        await recovered(database)


async def test_what_is_kept_when_the_daemon_stops_is_written_if_that_is_possible_by_then(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        with locked(path):
            await database.submit([repository("a")]).wait(kept=True)
    assert urls(database) == ["a"]
    assert not list(tmp_path.glob("*.behind"))


async def test_records_that_went_down_with_the_daemon_leave_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with contextlib.ExitStack() as stack:
        async with opened(path) as database:
            stack.enter_context(locked(path))
            await database.submit([repository("a")]).wait(kept=True)
        assert list(tmp_path.glob("*.behind"))
    async with opened(path) as database:
        assert not list(tmp_path.glob("*.behind"))
        assert urls(database) == []


# --- other conditions -------------------------------------------------------------------------------------


async def test_a_database_that_became_read_only_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        await database.submit([repository("a")]).wait()
        connection = database._opened()._transactions.connection
        connection.execute("PRAGMA query_only = ON")
        with pytest.raises(DatabaseError, match="cannot be written") as caught:
            await database.submit([repository("b")]).wait()
        assert "right to write" in caught.value.hint
        await recovered(database)  # by a new connection
        assert urls(database) == ["a", "b"]


async def test_a_transaction_that_cannot_even_be_rolled_back_is_ended_before_the_next_attempt(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        await database.submit([repository("a")]).wait()
        database._opened()._transactions.connection.execute("BEGIN")
        await database.submit([repository("b")]).wait()
        assert urls(database) == ["a", "b"]


async def test_a_fault_of_the_writer_itself_ends_the_daemon_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "b.db")
    database.open()
    monkeypatch.setattr(database._opened()._backlog, "first", lambda count: 1 / 0)
    with trio.fail_after(LIMIT_S), pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="not made for")):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            database.submit([repository("a")])
            await trio.sleep_forever()


# --- events -----------------------------------------------------------------------------------------------


async def test_events_are_seen_while_they_wait_and_reach_the_disk_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        journal = Journal(database, 1000)
        await journal.emit("before").wait()
        with locked(path):
            await journal.emit("one").wait(kept=True)
            await journal.emit("two").wait(kept=True)
            kinds = [event.kind for event in (await journal.poll(0, timeout=0)).events]
            assert kinds == ["before", "one", "two"]
            assert numbers_on_disk(database) == [1]
        await recovered(database)
        assert numbers_on_disk(database) == [1, 2, 3]
    async with opened(path) as database:
        journal = Journal(database, 1000)
        assert [event.kind for event in (await journal.poll(0, timeout=0)).events] == kinds


async def test_an_event_that_is_not_on_disk_yet_is_never_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RECENT", 10)
    path = tmp_path / "b.db"
    async with opened(path) as database:
        journal = Journal(database, 1000)
        for _ in range(30):
            await journal.emit("before").wait()
        with locked(path):
            for _ in range(40):
                await journal.emit("during", run="r").wait(kept=True)
            seen, after = [], 0
            while after < 70:
                result = await journal.poll(after, timeout=0, limit=7)
                seen += [event.number for event in result.events]
                after = result.next
            assert seen == list(range(1, 71))
            result = await journal.poll(0, timeout=0, run="r", limit=5)
            assert [event.number for event in result.events] == [31, 32, 33, 34, 35]
        await recovered(database)
        await journal.emit("after").wait()
        assert len(journal._recent) == 10
        assert numbers_on_disk(database) == list(range(1, 72))


@pytest.mark.parametrize("fault", ["locked", "unique"])
async def test_an_event_of_what_was_refused_is_not_seen_and_leaves_no_gap(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        journal = Journal(database, 1000)
        await journal.emit("start", statements=[repository("a")], keep=False).wait()
        with locked(path) if fault == "locked" else contextlib.nullcontext():
            early = journal.emit("early", statements=[repository("early")])
            refused = journal.emit("start", statements=[repository("a")], keep=False, run="r", data={"secret": 1})
            later = journal.emit("later")
            await later.wait(kept=True)
            await early.wait(kept=True)
            with pytest.raises(DatabaseError):
                await refused.wait()
            live = (await journal.poll(0, timeout=0)).events
            assert [event.kind for event in live] == ["start", "early", "event_withdrawn", "later"]
            assert (live[2].run, live[2].data) == (None, {})
        await recovered(database)
        assert urls(database) == ["a", "early"]
        assert not journal._unwritten
    async with opened(path) as database:
        journal = Journal(database, 1000)
        assert (await journal.poll(0, timeout=0)).events == live
        assert [event.number for event in live] == [1, 2, 3, 4]


async def test_a_name_that_is_not_utf_8_is_written_out(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as database:
        journal = Journal(database, 1000)
        await journal.emit("clone_started", repository="/srv/\udcff").wait()
        (event,) = (await journal.poll(0, timeout=0)).events
        assert event.repository == "/srv/\\udcff"


# --- memory -----------------------------------------------------------------------------------------------


async def test_when_memory_runs_out_events_go_and_records_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches.Backlog.__init__, "__defaults__", (200_000,))
    path = tmp_path / "b.db"
    async with opened(path) as database:
        journal = Journal(database, 100_000)
        await journal.emit("before").wait()
        with locked(path):
            commits: list[Commit] = []
            for n in range(400):
                statements = [repository(f"u{n:03}")] if n % 4 == 0 else []
                commits.append(journal.emit("tick", data={"text": "x" * 500}, statements=statements))
                await commits[-1].wait(kept=True)
            assert database._opened()._backlog._bytes <= 200_000
            with pytest.raises(Refused, match="no longer kept"):
                await journal.poll(1, timeout=0)
            oldest = journal._first
            assert oldest > 100
            live = (await journal.poll(0, timeout=0, limit=1000)).events
            assert [event.number for event in live] == list(range(oldest, 402))
        await recovered(database)
        assert len(urls(database)) == 100
        assert numbers_on_disk(database) == list(range(oldest, 402))
        await journal.emit("after").wait()
    async with opened(path) as database:
        journal = Journal(database, 100_000)
        assert journal.last == 402
        with pytest.raises(Refused, match=f"the oldest is {oldest}"):
            await journal.poll(oldest - 2, timeout=0)


# --- a full disk ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def fill(directory: Path) -> None:
    with contextlib.suppress(OSError):
        with (directory / "more").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)


async def test_a_full_disk_is_said_and_what_was_kept_is_written_when_there_is_room_again(small_disk: Path) -> None:
    async with opened(small_disk / "b.db") as database:
        await database.submit([repository("before")]).wait()
        (small_disk / "ballast").write_bytes(b"x" * 300_000)
        fill(small_disk)
        with pytest.raises(DatabaseError, match=f"no space is left in {small_disk}") as caught:
            await database.submit([repository("during", b"x" * 200_000)]).wait()
        assert "free disk space" in caught.value.hint
        refused = database.submit([repository("refused")], keep=False)
        with pytest.raises(DatabaseError, match="no space"):
            await refused.wait()
        assert database.trouble is not None
        assert urls(database) == ["before"], "reading goes on"
        (small_disk / "ballast").unlink()
        await recovered(database)
        await database.submit([repository("after")]).wait()
        assert urls(database) == ["after", "before", "during"]
