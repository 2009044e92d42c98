"""A database that is deleted, replaced or damaged: a new one takes its place, and nothing that can be had is lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from harness import killed_before

from buildd.errors import Refused
from buildd.model import Repository
from buildd.store import sqlite, writer as writer_module
from buildd.store.database import Database, DatabaseError, Statement
from buildd.store.dbfile import DatabaseFile, apply
from buildd.store.journal import Journal
from buildd.store.repositories import RepositoryStore

pytestmark = pytest.mark.trio
LIMIT_S = 30.0
PARTS = ("", "-wal", "-shm")


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "LOOK_EVERY_S", 0.1)


class Ledger:
    """A history that knows some builds."""

    def __init__(self, *builds: str, runs: int = 0) -> None:
        self.builds = builds
        self.runs = runs
        self.gate: threading.Event | None = None

    def exists(self) -> bool:
        return bool(self.builds)

    def last_run(self) -> int:
        return self.runs

    def statements(self) -> Iterator[Statement]:
        if self.gate is not None:
            assert self.gate.wait(LIMIT_S)
        yield from (build(id, "success") for id in self.builds)


def build(id: str, state: str) -> Statement:
    return (
        "INSERT INTO builds (id, run, package, version, repository, state, started_at, key, record) "
        "VALUES (?, ?, 'jq', '1', 'r', ?, 0, 'k', '{}')",
        (id, f"run of {id}", state),
    )


def repository(url: str) -> Statement:
    return ("INSERT INTO repositories (url, record) VALUES (?, ?)", (url, b"{}" + b"x" * 500))


def urls(database: Database) -> list[str]:
    return [
        row[0] for row in database.read_now(lambda c: c.execute("SELECT url FROM repositories ORDER BY url").fetchall())
    ]


def builds(database: Database) -> list[tuple[str, str]]:
    return database.read_now(lambda c: c.execute("SELECT id, state FROM builds ORDER BY id").fetchall())


@asynccontextmanager
async def opened(path: Path, history: Ledger | None = None, *, first: bool = True) -> AsyncIterator[Database]:
    """An open database; with `first`, there was one before."""
    if first and not path.exists():
        sqlite.connect(path).close()
    database = Database(path, history or Ledger())
    database.open()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            yield database
            nursery.cancel_scope.cancel()


async def renewed(database: Database, times: int = 1) -> None:
    """Until a new file is in place and everything is recorded."""
    while database._generation < times or database.trouble is not None or database.waiting:
        await trio.sleep(0.01)


def part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def overwrite(path: Path) -> None:
    """Other bytes in the same file, from another process as it were."""
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def foreign(path: Path) -> Path:
    """A healthy database of somebody else."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
    return path


def everything(path: Path) -> list[str]:
    return sorted(name.removeprefix(path.name) for name in os.listdir(path.parent) if name.startswith(path.name))


# --- the file is gone while it is in use ------------------------------------------------------------------


@pytest.mark.parametrize("gone", [("",), PARTS, ("-wal",)], ids=["file", "all", "log"])
async def test_a_deleted_file_is_written_anew_and_nothing_is_lost(tmp_path: Path, gone: tuple[str, ...]) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        for n in range(50):
            await database.submit([repository(f"u{n:02}")]).wait()
        await database.read(lambda c: c.execute("SELECT 1").fetchone())
        for suffix in gone:
            part(path, suffix).unlink()
        commit = database.submit([repository("z")])
        await commit.wait(kept=True)
        await renewed(database)
        assert database.renewal is not None
        assert "was deleted while in use" in database.renewal.why
        assert database.renewal.rebuilt is None
        assert len(urls(database)) == 51
        await database.submit([repository("zz")]).wait()
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM repositories").fetchone()) == (52,)
    async with opened(path) as database:
        assert database.renewal is None
        assert len(urls(database)) == 52


async def test_a_deleted_file_is_noticed_without_anything_to_write(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
        for suffix in PARTS:
            part(path, suffix).unlink()
        await renewed(database)
        assert urls(database) == ["a"]


async def test_a_reader_gets_its_answer_though_the_file_was_deleted_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "LOOK_EVERY_S", 1000.0)
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
        for suffix in PARTS:
            part(path, suffix).unlink()
        assert await database.read(lambda c: c.execute("SELECT url FROM repositories").fetchall()) == [("a",)]
        assert database.renewal is not None


@pytest.mark.parametrize("with_log", [False, True], ids=["file", "file-and-log"])
async def test_a_file_put_in_its_place_is_set_aside_unharmed(tmp_path: Path, with_log: bool) -> None:
    path = tmp_path / "b.db"
    other = foreign(tmp_path / "other.db")
    content = other.read_bytes()
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
        if with_log:
            shutil.copy(other, tmp_path / "log")
            os.replace(tmp_path / "log", part(path, "-wal"))
        os.replace(other, path)
        await database.submit([repository("b")]).wait(kept=True)
        await renewed(database)
        assert urls(database) == ["a", "b"]
        assert database.renewal is not None
        assert "was replaced while in use" in database.renewal.why
        aside = Path(str(database.renewal.path))
        assert aside.read_bytes() == content
        assert part(aside, "-wal").exists() == with_log, "its own log goes with it, ours does not"
        await database.submit([repository("c")]).wait()
    async with opened(path) as database:
        assert urls(database) == ["a", "b", "c"]


async def test_the_end_of_the_old_connection_takes_nothing_from_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        held = database._file.connect_reader()
        assert held.execute("SELECT count(*) FROM runs").fetchone() == (0,)
        path.unlink()
        await renewed(database)
        await database.submit([repository("a")]).wait()
        log = part(path, "-wal").stat().st_ino
        held.close()
        await database.submit([repository("b")]).wait()
        assert part(path, "-wal").stat().st_ino == log
        assert database._generation == 1
        assert urls(database) == ["a", "b"]


# --- the content is damaged while it is in use ------------------------------------------------------------


async def test_an_overwritten_file_is_set_aside_and_made_anew_from_history_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old", "finished", runs=7)) as database:
        live = {"going-on": "running"}
        database.on_renewed(lambda: [build(id, state) for id, state in live.items()])
        await database.submit([build("old", "success"), build("going-on", "running")]).wait()
        await database.submit([build("finished", "running")]).wait()
        overwrite(path)
        damaged = path.read_bytes()
        commit = database.submit([("UPDATE builds SET state = 'failed' WHERE id = 'going-on'", ())])
        live["going-on"] = "failed"
        await commit.wait(kept=True)
        await renewed(database)
        assert commit.state == "stored"
        assert builds(database) == [("finished", "success"), ("going-on", "failed"), ("old", "success")]
        assert database.renewal is not None
        assert "damaged" in database.renewal.why
        assert database.renewal.rebuilt == 2
        aside = Path(str(database.renewal.path))
        assert aside.name.startswith("b.db.corrupt-")
        assert aside.read_bytes() == damaged
        assert database.read_now(lambda c: sqlite.last_number(c, "runs")) == 7
    async with opened(path) as database:
        assert database.renewal is None
        assert len(builds(database)) == 3


async def test_what_is_submitted_after_memory_was_asked_comes_after_what_it_said(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    ledger = Ledger("old")
    ledger.gate = threading.Event()
    async with opened(path, ledger) as database:

        def live() -> list[Statement]:
            asked.set()
            return [build("b", "running")]

        asked = trio.Event()
        database.on_renewed(live)
        await database.submit([build("b", "running")]).wait()
        overwrite(path)
        before = database.submit([("UPDATE builds SET state = 'first' WHERE id = 'b'", ())])
        await asked.wait()
        after = database.submit([("UPDATE builds SET state = 'second' WHERE id = 'b'", ())])
        await after.wait(kept=True)
        with pytest.raises(DatabaseError, match="is being made"):
            await database.submit([repository("refused")], keep=False).wait()
        ledger.gate.set()
        await renewed(database)
        assert (before.state, after.state) == ("stored", "stored")
        assert builds(database) == [("b", "second"), ("old", "success")]
        assert urls(database) == []


async def test_the_end_of_a_build_that_meets_the_damage_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old")) as database:
        database.on_renewed(lambda: [build("b", "running")])
        await database.submit([build("b", "running")]).wait()
        overwrite(path)
        await database.submit([("UPDATE builds SET state = 'failed' WHERE id = 'b'", ())]).wait(kept=True)
        await renewed(database)
        assert builds(database) == [("b", "failed"), ("old", "success")]


async def test_a_kept_record_that_history_has_already_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    ledger = Ledger("known")
    ledger.gate = threading.Event()
    async with opened(path, ledger) as database:
        await database.submit([repository("a")]).wait()
        overwrite(path)
        commits = [database.submit([build("known", "running")])]
        commits.append(database.submit([("UPDATE builds SET state = 'success' WHERE id = 'known'", ())]))
        await commits[-1].wait(kept=True)
        ledger.gate.set()
        await renewed(database)
        assert [commit.state for commit in commits] == ["stored", "stored"]
        assert builds(database) == [("known", "success")]


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_reader_that_meets_damage_gets_its_answer_from_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(writer_module, "LOOK_EVERY_S", 1000.0)
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old")) as database:
        await database.submit([repository(f"u{n}") for n in range(200)]).wait()
        overwrite(part(path, suffix))
        if suffix == "":
            part(path, "-wal").unlink()
            part(path, "-wal").touch()
        found = await database.read(lambda c: c.execute("SELECT id, state FROM builds").fetchall())
        assert found in ([("old", "success")], []), "from history, or a copy of what was in memory"
        assert database.renewal is not None


async def test_what_another_process_writes_soundly_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("DELETE FROM repositories")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        await database.submit([repository("b")]).wait()
        assert urls(database) == ["b"]
        assert database.renewal is None


async def test_an_idle_file_is_not_checked_over_and_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    problem = DatabaseFile.problem
    monkeypatch.setattr(DatabaseFile, "problem", lambda self: checks.append(1) or problem(self))
    path = tmp_path / "b.db"
    async with opened(path) as database:
        checks.clear()
        for n in range(300):
            await database.submit([repository(f"u{n}")]).wait()
        await database.submit([("DELETE FROM repositories", ())]).wait()
        await trio.sleep(0.3)
    assert checks == []


async def test_a_new_file_that_cannot_be_made_yet_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.db"
    attempts = []
    make_new = DatabaseFile.make_new

    def reluctant(self: DatabaseFile, **options: bool) -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError(28, "No space left on device")
        return make_new(self, **options)

    async with opened(path, Ledger("old")) as database:
        asked = []
        database.on_renewed(lambda: asked.append(1) or [repository("live")])
        await database.submit([repository("a")]).wait()
        monkeypatch.setattr(DatabaseFile, "make_new", reluctant)
        overwrite(path)
        await database.submit([repository("b")]).wait(kept=True)
        while len(attempts) < 2:
            await trio.sleep(0.01)
        assert database.trouble is not None
        await database.submit([repository("c")]).wait(kept=True)
        await renewed(database)
        assert urls(database) == ["b", "c", "live"]
        assert builds(database) == [("old", "success")]
        assert asked == [1]


async def test_a_file_that_is_lost_again_and_again_is_replaced_each_time(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old")) as database:
        for n in range(1, 4):
            await database.submit([repository(f"u{n}")]).wait()
            overwrite(path) if n % 2 else path.unlink()
            await renewed(database, n)
    assert len([name for name in everything(path) if name.startswith(".corrupt") and "-wal" not in name]) == 2
    async with opened(path) as database:
        assert builds(database) == [("old", "success")]


async def test_a_part_of_memory_that_cannot_be_told_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old")) as database:
        database.on_renewed(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        database.on_renewed(lambda: (1 / 0 for _ in range(1)))  # type: ignore[arg-type,misc]
        database.on_renewed(lambda: [repository("told")])
        await database.submit([repository("a")]).wait()
        overwrite(path)
        await renewed(database)
        assert urls(database) == ["told"]


# --- what memory has --------------------------------------------------------------------------------------


async def test_the_journal_goes_on_with_its_numbers_and_what_it_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildd.store.journal.RECENT", 5)
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old")) as database:
        journal = Journal(database, 1000)
        for n in range(20):
            await journal.emit(f"e{n}").wait()
        overwrite(path)
        commit = journal.emit("found")
        await commit.wait(kept=True)
        await renewed(database)
        while journal.last < 22:
            await trio.sleep(0.01)
        live = (await journal.poll(0, timeout=0)).events
        assert [event.number for event in live] == list(range(live[0].number, 23))
        assert live[0].number in (16, 17)
        assert [event.kind for event in live[-2:]] == ["found", "database_set_aside"]
        assert live[-1].data["rebuilt"] == 1
        assert "corrupt" in live[-1].data["path"]
        assert "damaged" in live[-1].data["why"]
        with pytest.raises(Refused, match="no longer kept"):
            await journal.poll(3, timeout=0)
    async with opened(path) as database:
        journal = Journal(database, 1000)
        assert (await journal.poll(0, timeout=0)).events == live


async def test_repositories_are_written_into_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    known = [Repository(url=f"https://h/{n}", name=str(n), path=f"/c/{n}", last_access=1.0) for n in range(3)]
    async with opened(path, Ledger("old")) as database:
        store = RepositoryStore(database)
        store.restore_from(lambda: known)
        store.save(known[0])
        await database.submit([]).wait()
        overwrite(path)
        store.save(known[1])
        await renewed(database)
        assert store.all() == known


# --- at the beginning -------------------------------------------------------------------------------------


async def test_a_damaged_file_at_the_beginning_is_replaced_by_what_history_has(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()
        journal = Journal(database, 1000)
        await journal.emit("old").wait()
    path.write_bytes(b"garbage" * 10_000)
    part(path, "-wal").write_bytes(b"more")
    async with opened(path, Ledger("x", "y", runs=41)) as database:
        assert [id for id, _ in builds(database)] == ["x", "y"]
        assert database.renewal is not None
        assert database.renewal.rebuilt == 2
        aside = Path(str(database.renewal.path))
        assert part(aside, "-wal").read_bytes() == b"more"
        assert database.read_now(lambda c: sqlite.last_number(c, "runs")) == 41
        journal = Journal(database, 1000)
        assert journal.last > 1_000_000_000, "above anything that can have been used"
        await journal.emit("new").wait()
        events = (await journal.poll(0, timeout=0)).events
        assert [event.kind for event in events] == ["database_set_aside", "new"]
        assert [event.number for event in events] == [journal.last - 1, journal.last]
        with pytest.raises(Refused, match="no longer kept"):
            await journal.poll(1, timeout=0)


async def test_numbers_that_a_damaged_file_still_tells_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        journal = Journal(database, 1000)
        for _ in range(10):
            await journal.emit("old").wait()
        rows = [("INSERT INTO runs (id, number, finished, record) VALUES (?, ?, 1, '{}')", (str(n), n)) for n in (1, 9)]
        await database.submit([*rows, *(repository(f"u{n}") for n in range(300))]).wait()
    with closing(sqlite3.connect(path)) as other:
        root = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'repositories'").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(os.urandom(4096))
    async with opened(path, Ledger("x")) as database:
        assert database.renewal is not None
        assert database.read_now(lambda c: sqlite.last_number(c, "runs")) == 9
        journal = Journal(database, 1000)
        await journal.emit("new").wait()
        assert 10 < journal.last < 1_000_000
    async with opened(path) as database:
        assert database.read_now(lambda c: sqlite.last_number(c, "runs")) == 9


@pytest.mark.parametrize("empty", [False, True])
async def test_a_missing_file_is_made_from_history(tmp_path: Path, empty: bool) -> None:
    path = tmp_path / "b.db"
    if empty:
        path.touch()
    part(path, "-wal").write_bytes(b"of another one")
    async with opened(path, Ledger("x"), first=False) as database:
        assert builds(database) == [("x", "success")]
        assert database.renewal is not None
        assert database.renewal.why == ("the file was empty" if empty else "the file was missing")


async def test_a_first_start_is_no_loss(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db", first=False) as database:
        assert database.renewal is None
        assert Journal(database, 10).last == 0


async def test_a_database_of_another_program_is_set_aside(tmp_path: Path) -> None:
    path = foreign(tmp_path / "b.db")
    async with opened(path, Ledger("x")) as database:
        assert database.renewal is not None
        assert "not one of buildd" in database.renewal.why
        assert builds(database) == [("x", "success")]


async def test_what_an_interrupted_renewal_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    for suffix in PARTS:
        part(path, f".new{suffix}").write_bytes(b"half")
    async with opened(path):
        assert not [name for name in everything(path) if ".new" in name]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_a_new_file_that_is_complete_is_the_database_though_the_daemon_is_killed_while_it_is_put_in_place(
    tmp_path: Path, nth: int
) -> None:
    path = tmp_path / "b.db"

    def exchange() -> None:
        file = DatabaseFile(path, Ledger("x"))
        connection = file.connect()
        apply(connection, [repository("old")])
        file.remember()
        file.make_new(with_history=True, live=[repository("live")])
        file.put_in_place("it was damaged", 1)

    killed_before("os.rename", exchange, nth=nth)  # the new one is complete; the log and the file go aside; it is there
    async with opened(path, Ledger("x"), first=False) as database:
        assert urls(database) == (["old"] if nth == 1 else ["live"])
        assert builds(database) == ([] if nth == 1 else [("x", "success")])
        assert database.renewal is None
    assert not [name for name in everything(path) if name.startswith((".new", ".ready"))]


async def test_a_new_file_that_could_not_be_put_in_place_is_not_put_there_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()

        def fail(*_: object) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(DatabaseFile, "_exchange", fail)
            with pytest.raises(DatabaseError):
                await database.reset()
    async with opened(path) as database:
        assert urls(database) == ["a"]


async def test_records_that_an_earlier_daemon_could_not_write_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([build("x", "success")]).wait()
    part(path, ".behind").touch()
    async with opened(path, Ledger("x", "y")) as database:
        assert builds(database) == [("x", "success"), ("y", "success")]
        assert database.renewal is None
    assert everything(path) == [""]


# --- steering ---------------------------------------------------------------------------------------------


async def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old")) as database:
        await database.submit([repository(f"u{n}") for n in range(100)]).wait()
        assert await database.verify() == []
        database._opened()._transactions.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        overwrite(path)
        problems = await database.verify()
        assert problems
        await renewed(database)
        assert await database.verify() == []
        assert builds(database) == [("old", "success")]


async def test_reset_begins_an_empty_database_with_what_is_under_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.db"
    async with opened(path, Ledger("old", runs=3)) as database:
        database.on_renewed(lambda: [repository("live")])
        journal = Journal(database, 1000)
        rows = [("INSERT INTO runs (id, number, finished, record) VALUES ('r', 12, 1, '{}')", ())]
        await journal.emit("before", statements=[*rows, repository("gone")]).wait()
        aside = await database.reset()
        assert database.trouble is None
        assert "cannot record" not in capsys.readouterr().out, "it was asked for"
        assert aside.name.startswith("b.db.reset-")
        assert urls(database) == ["live"]
        assert builds(database) == []
        assert database.read_now(lambda c: sqlite.last_number(c, "runs")) == 12
        await journal.emit("after").wait()
        live = (await journal.poll(0, timeout=0)).events
        assert [event.kind for event in live] == ["before", "database_set_aside", "after"]
        assert [event.number for event in live] == [1, 2, 3]
        with closing(sqlite3.connect(aside)) as old:
            assert old.execute("SELECT url FROM repositories").fetchall() == [("gone",)]
        assert not part(aside, "-wal").exists() or not part(aside, "-wal").stat().st_size
    async with opened(path, Ledger("old")) as database:
        assert database.renewal is None
        assert builds(database) == []


async def test_reset_is_refused_while_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildd.store.sqlite.LOCK_PATIENCE_S", 0.05)
    path = tmp_path / "b.db"
    async with opened(path) as database:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            await database.submit([repository("a")]).wait(kept=True)
            with pytest.raises(DatabaseError, match="locked"):
                await database.reset()
            other.execute("ROLLBACK")
        while database.trouble is not None:
            await trio.sleep(0.01)
        assert urls(database) == ["a"]
        await database.reset()
        assert urls(database) == []


async def test_a_reset_that_fails_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.db"
    async with opened(path) as database:
        await database.submit([repository("a")]).wait()

        def fail(*_: object, **__: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(DatabaseFile, "make_new", fail)
        with pytest.raises(DatabaseError, match="no space"):
            await database.reset()
        await database.submit([repository("b")]).wait()
        assert urls(database) == ["a", "b"]
        assert database.trouble is None
