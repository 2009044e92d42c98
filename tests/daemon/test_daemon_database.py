"""Trouble with the database while builds run: they go on, the daemon says so, and nothing that is known is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, RecipeRepository, RpcError, named, served, until

Boot = Callable[..., Daemon]
PARTS = ("", "-wal", "-shm")
NAMES = ["p1", "p2", "p3", "p4"]
STAGE = 'mkdir -p "$DESTDIR$PREFIX" && echo "$BUILDD_PACKAGE" > "$DESTDIR$PREFIX/$BUILDD_PACKAGE"'


@pytest.fixture
def daemon(boot: Boot) -> Daemon:
    daemon = boot(settings={"workers.max_concurrent_builds": 4})
    daemon.expect("the database|a record could not be written|could not be recorded")
    return daemon


def four_builds(daemon: Daemon, repository: RecipeRepository) -> int:
    """A run of four builds that wait for the gate, after one of a package that is done."""
    repository.package("before", phases={"stage": STAGE}).commit()
    assert daemon.build(repository).state == "completed"
    for name in NAMES:
        gate = f"echo waiting; {daemon.at_gate()}"
        repository.package(name, depends=["before"], phases={"build": gate, "stage": STAGE})
    repository.commit()
    number = daemon.start(repository)
    daemon.until_running(number, 4, saying="waiting")
    return number


def database(daemon: Daemon, suffix: str = "") -> Path:
    return daemon.state_dir / f"buildd.db{suffix}"


def checkpoint(daemon: Daemon) -> None:
    """Have everything in the file itself, nothing in its log."""
    with contextlib.closing(sqlite3.connect(database(daemon), timeout=20)) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy


def records(daemon: Daemon) -> dict[str, str]:
    """State of the last build of each package, by what `buildctl history` asks for."""
    found = daemon.call("build.list", {"limit": 100})["builds"]
    return {build["package"]: build["state"] for build in reversed(found)}


def events(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = 0
    while page := daemon.call("events.poll", {"after": after})["events"]:
        found += page
        after = page[-1]["number"]
    return found


def assert_no_gaps(found: list[dict[str, Any]]) -> None:
    numbers = [event["number"] for event in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def ended(daemon: Daemon) -> set[str]:
    return {event["package"] for event in events(daemon) if event["kind"] == "package_completed"}


def until_running(daemon: Daemon) -> dict[str, Any]:
    return until(lambda: s if (s := daemon.status())["state"] == "running" else None, "the daemon is well again")


def assert_all_is_known(daemon: Daemon, repository: RecipeRepository) -> None:
    """History and skips are right, now and after a restart."""
    for _ in range(2):
        assert records(daemon) == dict.fromkeys(["before", *NAMES], "success")
        again = daemon.build(repository)
        assert again.stats.skipped == again.stats.total == 5
        daemon.restart()
    assert daemon.status()["state"] == "running"


# --- the file is lost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("",), ("", "-wal")], ids=["file", "file-and-log"])
def test_a_database_that_is_overwritten_while_builds_run_is_rebuilt(
    daemon: Daemon, repository: RecipeRepository, parts: tuple[str, ...]
) -> None:
    number = four_builds(daemon, repository)
    seen = events(daemon)
    checkpoint(daemon)
    for suffix in parts:
        with database(daemon, suffix).open("r+b") as file:
            file.write(os.urandom(max(database(daemon, suffix).stat().st_size, 20_000)))
    garbage = database(daemon).read_bytes()
    daemon.open_gate()

    view = daemon.wait(number)

    assert view.state == "completed"
    assert view.stats.success == 4
    assert view.stats.skipped == 1
    status = until_running(daemon)
    (aside,) = daemon.state_dir.glob("buildd.db.corrupt-*[0-9]")
    assert aside.read_bytes()[:4096] == garbage[:4096]
    assert any(str(aside) in reason and "damaged" in reason for reason in status["reasons"])
    assert daemon.log_lines("the database was damaged and is set aside")
    found = events(daemon)
    (told,) = [event for event in found if event["kind"] == "database_set_aside"]
    assert told["data"]["path"] == str(aside)
    assert told["data"]["rebuilt"] >= 1
    assert_no_gaps(found)
    assert found[: len(seen)] == seen
    assert daemon.run(number).state == "completed"
    assert_all_is_known(daemon, repository)
    assert daemon.run(number).state == "completed"
    assert daemon.run(number).stats.success == 4


def test_a_run_that_was_going_on_when_the_database_was_lost_goes_on_after_a_kill(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    number = four_builds(daemon, repository)
    checkpoint(daemon)
    with database(daemon).open("r+b") as file:
        file.write(os.urandom(database(daemon).stat().st_size))
    until(lambda: list(daemon.state_dir.glob("buildd.db.corrupt-*")), "the damage is noticed")
    until_running(daemon)
    daemon.kill9()
    daemon.open_gate()
    daemon.boot()
    view = daemon.wait(number)
    assert view.state == "completed"
    assert view.stats.success == 4
    assert all(daemon.record(named(view, name).build_id).attempt == 2 for name in NAMES)
    assert daemon.start(repository) == number + 1


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_database_that_is_deleted_or_replaced_while_builds_run_loses_nothing(
    daemon: Daemon, repository: RecipeRepository, tmp_path: Path, how: str
) -> None:
    number = four_builds(daemon, repository)
    if how == "deleted":
        for suffix in PARTS:
            database(daemon, suffix).unlink()
    else:
        with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
            other.execute("CREATE TABLE theirs (x)")
            other.commit()
        shutil.copy(tmp_path / "other.db", daemon.state_dir / "copy")
        os.replace(daemon.state_dir / "copy", database(daemon))
    daemon.open_gate()

    view = daemon.wait(number)

    assert view.state == "completed"
    assert view.stats.success == 4
    status = until_running(daemon)
    assert any(f"was {how} while in use" in reason for reason in status["reasons"])
    found = events(daemon)
    (told,) = [event for event in found if event["kind"] == "database_set_aside"]
    assert told["data"]["rebuilt"] is None
    aside = told["data"]["path"]
    if how == "replaced":
        assert Path(aside).read_bytes() == (tmp_path / "other.db").read_bytes()
    else:
        assert aside is None
    assert found[0]["number"] == 1
    assert_no_gaps(found)
    assert_all_is_known(daemon, repository)
    assert daemon.run(1).state == "completed", "runs are still known as well"
    assert daemon.run(number).stats.success == 4


def test_a_database_that_is_missing_at_the_start_is_made_from_receipts(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    daemon.open_gate()
    number = four_builds_done(daemon, repository)
    assert daemon.terminate() == 0
    for suffix in PARTS:
        database(daemon, suffix).unlink(missing_ok=True)
    daemon.boot()
    assert any("missing" in reason for reason in daemon.status()["reasons"])
    again = daemon.build(repository)
    assert again.stats.skipped == 5
    assert again.number > 1
    assert again.number <= number + 1
    assert records(daemon) == dict.fromkeys(["before", *NAMES], "success")


def four_builds_done(daemon: Daemon, repository: RecipeRepository) -> int:
    repository.packages(["before", *NAMES], phases={"stage": STAGE}).commit()
    number = daemon.start(repository)
    assert daemon.wait(number).stats.success == 5
    return number


# --- it cannot be written for a while ---------------------------------------------------------------------


def test_builds_go_on_while_another_process_locks_the_database(daemon: Daemon, repository: RecipeRepository) -> None:
    number = four_builds(daemon, repository)
    repository.package("after", depends=NAMES, phases={"stage": STAGE})  # not in this run
    with contextlib.closing(sqlite3.connect(database(daemon), isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN EXCLUSIVE")
        daemon.open_gate()
        until(lambda: ended(daemon) == {"before", *NAMES}, "the builds have ended, and readers of events know")
        status = daemon.status()
        assert status["state"] == "degraded"
        (reason,) = [reason for reason in status["reasons"] if "cannot record" in reason]
        assert "another process has locked" in reason
        assert "records wait" in reason
        with pytest.raises(RpcError, match="locked") as caught:
            daemon.start(repository)
        assert caught.value.code == 1
        assert records(daemon)["p1"] == "running", "what is on disk is old"
        before = len(events(daemon))
        assert before > 10
        other.execute("ROLLBACK")
    status = until_running(daemon)
    view = daemon.wait(number)
    assert view.state == "completed"
    found = events(daemon)
    assert_no_gaps(found)
    assert [event["kind"] for event in found].count("event_withdrawn") == 1
    assert {event["run"] for event in found if event["kind"] == "run_state"} == {
        run["id"] for run in daemon.call("run.list")["runs"]
    }
    with contextlib.closing(sqlite3.connect(database(daemon))) as connection:
        assert connection.execute("SELECT number FROM events").fetchall() == [(e["number"],) for e in found]
    assert_all_is_known(daemon, repository)
    (begin, *_), (end, *_) = daemon.log_lines("the database cannot record"), daemon.log_lines("the database records")
    assert begin["timestamp"] < end["timestamp"]


# --- a full disk ------------------------------------------------------------------------------------------


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    with contextlib.suppress(OSError):
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    return filler


def test_a_disk_that_fills_in_the_middle_is_said_and_nothing_false_is_recorded(
    on_a_small_disk: Daemon, repository: RecipeRepository
) -> None:
    daemon = on_a_small_disk.boot()
    daemon.expect("the database|a record could not be written|could not be recorded")
    number = four_builds(daemon, repository)
    filler = fill(daemon.state_dir)
    daemon.open_gate()

    until(lambda: daemon.status()["state"] == "degraded", "the daemon says that it cannot record")
    (reason,) = [reason for reason in daemon.status()["reasons"] if "cannot record" in reason]
    assert f"no space is left in {daemon.state_dir}" in reason
    assert "free disk space" in reason
    with pytest.raises(RpcError, match="no space is left"):
        daemon.start(repository)
    until(lambda: daemon.run(number).stats.running == 0, "the builds have ended")

    filler.unlink()
    until_running(daemon)
    view = daemon.wait(number)
    assert view.state in ("completed", "failed")
    for name in NAMES:
        package = named(view, name)
        record = daemon.record(package.build_id)
        assert record.state == package.state
        if record.state == "success":
            assert (Path(str(record.artifact)) / "manifest.json").exists()
        else:
            assert record.reason in ("disk_full", "phase_failed"), "by the daemon's own writing, or the recipe's"
    found = events(daemon)
    assert_no_gaps(found)
    with contextlib.closing(sqlite3.connect(database(daemon))) as connection:
        assert connection.execute("SELECT number FROM events").fetchall() == [(e["number"],) for e in found]
    again = daemon.build(repository)
    assert again.state == "completed"
    assert again.stats.success + again.stats.skipped == 5
    daemon.restart()
    assert records(daemon) == dict.fromkeys(["before", *NAMES], "success")
    assert daemon.build(repository).stats.skipped == 5
    assert daemon.terminate() == 0


def test_a_clone_is_accepted_or_deleted_once_that_is_on_record(daemon: Daemon, tmp_path: Path) -> None:
    def answers(method: str) -> tuple[bool, bool]:
        """Whether it answered while the database was locked for a moment, and after that."""
        with contextlib.closing(sqlite3.connect(database(daemon), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor() as pool:
                answer = pool.submit(daemon.call, method, {"repo": url})
                early = bool(wait([answer], timeout=0.5).done)
                other.execute("ROLLBACK")
                return early, answer.result(timeout=20) is not None

    with served(tmp_path) as server:
        url = server.url(RecipeRepository(tmp_path / "one").package("p"))
        assert answers("repo.clone") == (False, True)
        until(lambda: daemon.call("repo.status", {"repo": url})["clone_status"]["status"] != "cloning", "it has ended")
        assert answers("repo.delete") == (False, True)


def test_a_build_whose_end_is_still_being_written_is_not_taken_for_a_stale_record(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    four_builds(daemon, repository)
    with contextlib.closing(sqlite3.connect(database(daemon), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        daemon.open_gate()
        until(lambda: daemon.status()["workers"]["busy"] == 0, "the builds have ended")
        assert set(records(daemon).values()) == {"success", "running"}, "and that is not on record"
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(daemon.call, "db.verify")
            wait([answer], timeout=0.3)
            other.execute("ROLLBACK")
            assert answer.result(timeout=20)["ok"]
