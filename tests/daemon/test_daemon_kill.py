"""`kill -9` of the daemon: nothing survives, nothing is forgotten, nothing says `running` for ever."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable

import psutil
from daemon_stubborn import READY, stubborn_packages, stubborn_text
from harness import Daemon, RecipeRepository, alive, named, needs_bwrap, until

Boot = Callable[..., Daemon]


def test_kill_9_with_stubborn_builds_leaves_no_process_and_the_run_completes(
    boot: Boot, backend: str, repository: RecipeRepository
) -> None:
    daemon = boot(backend=backend, settings={"workers.max_concurrent_builds": 8})
    stubborn_packages(repository, daemon, count=8, queued=20)
    number = daemon.start(repository)
    running = daemon.until_running(number, 8, saying=READY)
    assert len(daemon.build_processes()) >= 8 * 4

    daemon.kill9()
    until(lambda: not daemon.build_processes(), "no process of a build is alive", within=1)
    until(lambda: not daemon.own_processes(), "no process of the daemon is alive", within=1)

    daemon.boot()  # with the gate closed: the same packages are stubborn once more
    for package in running:
        first = daemon.record(package.build_id)
        assert (first.state, first.reason) == ("failed", "interrupted")
        assert first.completed_at is not None
        assert "interrupted" in daemon.build_log(first.id).splitlines()[-1]
    again = daemon.until_running(number, 8, saying=READY)
    listed = daemon.call("build.list", {"run": str(number), "limit": 100})["builds"]
    assert {b["id"] for b in listed if b["state"] == "running"} == {p.build_id for p in again}
    assert len(daemon.work_directories()) == 8  # none of the first eight is left

    daemon.open_gate()
    view = daemon.wait(number)
    assert view.state == "completed"
    assert view.stats.success == view.stats.total == 28
    assert all(daemon.record(named(view, p.name).build_id).attempt == 2 for p in running)
    until(lambda: not daemon.work_directories(), "the directories of all builds are gone", within=2)


def test_a_clone_that_outlived_a_killed_daemon_is_ended_by_the_next_one(boot: Boot) -> None:
    daemon = boot()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        daemon.call("repo.clone", {"repo": f"git://127.0.0.1:{silent.getsockname()[1]}/x"})
        peer, _ = silent.accept()
        workers = psutil.Process(daemon.pid).children(recursive=True)
        for worker in workers:
            worker.suspend()  # as if the disk held it up: it cannot do what it does when its daemon dies
        daemon.kill9()
        assert workers
        assert all(alive(worker.pid) for worker in workers)
        daemon.boot()
        assert psutil.wait_procs(workers, timeout=5)[1] == []
        peer.close()


@needs_bwrap
def test_what_plain_builds_had_is_gone_when_the_next_daemon_has_a_sandbox(
    boot: Boot, repository: RecipeRepository
) -> None:
    daemon = boot(backend="plain")
    install = 'mkdir -p "$DESTDIR$PREFIX" && echo >"$DESTDIR$PREFIX/{0}"'
    repository.package("lib", phases={"stage": install.format("lib")})
    repository.package("app", depends=["lib"], phases={"build": "echo here; sleep 300"}).commit()
    daemon.until_running(daemon.start(repository), 1, saying="here")
    daemon.kill9()
    assert (daemon.state_dir / "prefix" / "lib").exists()
    daemon.settings["sandbox.backend"] = "bwrap"
    daemon.boot()
    assert not (daemon.state_dir / "prefix").exists()


def test_a_run_that_was_accepted_and_not_begun_completes(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    repository.package("one").commit()
    numbers = [daemon.start(repository, force=True) for _ in range(5)]
    daemon.kill9()
    daemon.boot()
    assert [daemon.wait(number).state for number in numbers] == ["completed"] * 5


def test_what_was_built_before_is_not_built_again(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 1})
    repository.package("done", phases={"build": "true"})
    repository.package("under-way", depends=["done"], phases={"build": stubborn_text(daemon)}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying=READY)
    before = daemon.package(number, "done")

    daemon.kill9()
    daemon.open_gate()
    daemon.boot()

    view = daemon.wait(number)
    assert view.state == "completed"
    assert named(view, "done").build_id == before.build_id
    assert daemon.record(named(view, "under-way").build_id).attempt == 2


def test_a_package_that_kills_the_daemon_each_time_is_set_aside(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    repository.package("killer", phases={"build": stubborn_text(daemon)})
    repository.package("victim", depends=["killer"]).commit()
    number = daemon.start(repository)
    for _ in range(3):
        daemon.until_running(number, 1, saying=READY)
        daemon.kill9()
        daemon.boot()

    view = daemon.wait(number)
    assert view.state == "failed"
    assert named(view, "killer").state == "failed"
    assert "the daemon died 3 times" in str(named(view, "killer").message)
    assert named(view, "victim").state == "blocked"


def test_events_are_numbered_without_a_gap_over_kill_9(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 2})
    repository.packages([f"p{i}" for i in range(60)], phases={"build": "true"}).commit()
    number = daemon.start(repository)
    until(lambda: daemon.run(number).stats.success > 5, "some are built")
    seen = daemon.call("events.poll", {"after": 0, "limit": 1000})["events"]
    daemon.kill9()
    daemon.boot()
    assert daemon.wait(number).state == "completed"

    events = daemon.call("events.poll", {"after": 0, "limit": 1000})["events"]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert events[: len(seen)] == seen  # what a reader saw once is never another event later


def test_a_damaged_database_is_set_aside_and_the_daemon_goes_on(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    daemon.expect("the database was damaged and is set aside")
    repository.package("one").commit()
    daemon.build(repository)
    assert daemon.terminate() == 0
    garbage = b"this is no database\n" * 5000
    database = daemon.state_dir / "buildd.db"
    database.write_bytes(garbage)
    for suffix in ("-wal", "-shm"):  # from the log alone SQLite could restore it
        database.with_name(database.name + suffix).unlink(missing_ok=True)

    daemon.boot()

    (aside,) = daemon.state_dir.glob("buildd.db.corrupt-*")
    assert aside.read_bytes() == garbage
    assert daemon.log_lines("the database was damaged and is set aside")
    assert any(str(aside) in reason for reason in daemon.status()["reasons"])
    kinds = [event["kind"] for event in daemon.call("events.poll", {"after": 0})["events"]]
    assert "database_set_aside" in kinds
    assert daemon.build(repository).state == "completed"
    assert daemon.restart().status()["state"] == "running"


def test_a_database_that_is_damaged_inside_is_set_aside(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    daemon.expect("the database was damaged and is set aside")
    repository.packages([f"p{i}" for i in range(40)]).commit()
    daemon.build(repository)
    assert daemon.terminate() == 0
    database = daemon.state_dir / "buildd.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(database.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 8192] = b"\xff" * 8192
    database.write_bytes(content)

    daemon.boot()

    assert list(daemon.state_dir.glob("buildd.db.corrupt-*"))
    assert daemon.build(repository).state == "completed"


def test_a_database_of_a_newer_version_is_left_alone(boot: Boot) -> None:
    daemon = boot()
    assert daemon.terminate() == 0
    database = daemon.state_dir / "buildd.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version = 9999")
    connection.close()

    daemon.boot(ready=False)

    assert daemon.exit_status() == 1
    assert "newer buildd" in daemon.log()
    assert not list(daemon.state_dir.glob("buildd.db.corrupt-*"))
