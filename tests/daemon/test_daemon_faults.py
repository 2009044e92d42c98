"""Faults of the machine under the real daemon: it lives, says what is wrong, and is as before when they are gone.

Disk errors and shortages are made by a library that is preloaded into the daemon (`harness.faults`); limits of
processes and open files are real ones, lowered while it runs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import Daemon, GitServer, RecipeRepository, RpcError, unbooted, until
from harness.census import Census, excess, take
from harness.faults import Faults, faulty

SETTINGS: dict[str, object] = {
    "workers.max_concurrent_builds": 4,
    "retry.delay": "200ms",
    "retry.backoff": 1,
    "retry.max_retries": 50,
}
STAGE = 'mkdir -p "$DESTDIR$PREFIX" && echo "$BUILDD_PACKAGE" > "$DESTDIR$PREFIX/$BUILDD_PACKAGE"'
NAMES = ["p1", "p2", "p3", "p4"]
NO_SPACE, IO, SCARCE = errno.ENOSPC, errno.EIO, errno.EMFILE


@pytest.fixture
def daemon_and_faults() -> Iterator[tuple[Daemon, Faults]]:
    with faulty(settings=SETTINGS) as pair:
        yield pair


@pytest.fixture
def daemon(daemon_and_faults: tuple[Daemon, Faults]) -> Daemon:
    return daemon_and_faults[0]


@pytest.fixture
def faults(daemon_and_faults: tuple[Daemon, Faults]) -> Faults:
    return daemon_and_faults[1]


def waiting_builds(daemon: Daemon, repository: RecipeRepository) -> int:
    """A run of four builds that wait for the gate."""
    wait = f"echo waiting; {daemon.at_gate()}"
    repository.packages(NAMES, phases={"build": wait, "stage": STAGE}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 4, saying="waiting")
    return number


def warmed_up(daemon: Daemon, tmp_path: Path) -> Census:
    """What the daemon holds after a build has succeeded."""
    repository = RecipeRepository(tmp_path / "before")
    repository.packages(["b1", "b2", "b3", "b4"], phases={"stage": STAGE}).commit()
    assert daemon.build(repository).stats.success == 4
    return at_rest(daemon)


def at_rest(daemon: Daemon) -> Census:
    until(lambda: not daemon.status()["builds"]["running"] and not daemon.work_directories(), "it is at rest")

    def settled() -> Census | None:
        """None while who removed the last directory has not closed it."""
        census = take(daemon)
        return census if not any("(deleted)" in target for target in census.descriptors) else None

    return until(settled, "what was removed is closed")


def assert_as_before(daemon: Daemon, before: Census) -> None:
    """Nothing is held that was not held before; connections to the database are kept, and may be other ones."""
    database = {str(daemon.state_dir / f"buildd.db{suffix}") for suffix in ("", "-wal", "-shm")}

    def left() -> list[str]:
        found = [line for line in excess(take(daemon), before) if not any(name in line for name in database)]
        return [line for line in found if "threads instead" not in line]

    until(lambda: not left(), f"nothing is left of it: {left()}", within=30)


def reasons(daemon: Daemon) -> str:
    return " | ".join(daemon.status()["reasons"])


def until_well(daemon: Daemon) -> None:
    until(lambda: daemon.status()["state"] == "running", "the daemon is well again", within=30)


# --- disk errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "what", "hint"),
    [(IO, "cannot be read or written", "dmesg"), (NO_SPACE, "no space is left", "free disk space")],
    ids=["EIO", "ENOSPC"],
)
def test_builds_go_on_while_the_database_cannot_be_written(
    daemon: Daemon, faults: Faults, repository: RecipeRepository, tmp_path: Path, error: int, what: str, hint: str
) -> None:
    daemon.expect("the database|a record could not be written|could not be recorded")
    before = warmed_up(daemon, tmp_path)
    number = waiting_builds(daemon, repository)
    with faults.failing(error, "open write fsync truncate", "*/buildd.db*"):
        daemon.open_gate()
        until(lambda: daemon.status()["state"] == "degraded", "the daemon says that it cannot record")
        assert what in reasons(daemon)
        assert hint in reasons(daemon)
        with pytest.raises(RpcError, match=what) as caught:
            daemon.start(repository)
        assert hint in caught.value.hint
        assert daemon.wait(number).stats.success == 4
        assert daemon.status()["state"] == "degraded"
    until_well(daemon)
    assert {record.state for record in daemon.records(run=number)} == {"success"}
    assert_as_before(daemon, before)
    daemon.restart()
    assert daemon.build(repository).stats.skipped == 4


@pytest.mark.parametrize("error", [IO, NO_SPACE], ids=["EIO", "ENOSPC"])
def test_a_build_whose_log_cannot_be_written_fails_and_says_so(
    daemon: Daemon, faults: Faults, repository: RecipeRepository, tmp_path: Path, error: int
) -> None:
    before = warmed_up(daemon, tmp_path)
    number = waiting_builds(daemon, repository)
    with faults.failing(error, "write", "*/logs/*.log"):
        daemon.open_gate()
        if error == NO_SPACE:  # it may pass
            until(lambda: any(r.retried for r in daemon.records(run=number)), "a build is tried again")
        else:
            view = daemon.wait(number)
    if error == NO_SPACE:
        view = daemon.wait(number)
        assert view.stats.success == 4
    failed = [record for record in daemon.records(run=number) if record.state == "failed"]
    assert failed
    for record in failed:
        assert record.reason == ("disk_full" if error == NO_SPACE else "sandbox_failed")
        assert os.strerror(error) in str(record.message)
        assert "log" in str(record.message)
        assert record.output_id is None
    assert daemon.build(repository).state == "completed"
    assert_as_before(daemon, before)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "mkdir", "rename"])
def test_a_build_whose_output_cannot_be_stored_fails_and_leaves_nothing(
    daemon: Daemon, faults: Faults, repository: RecipeRepository, tmp_path: Path, call: str
) -> None:
    before = warmed_up(daemon, tmp_path)
    number = waiting_builds(daemon, repository)
    with faults.failing(IO, call, "*/artifacts/*"):
        daemon.open_gate()
        view = daemon.wait(number)
    assert view.stats.failed == 4
    for record in daemon.records(run=number):
        assert record.reason == "sandbox_failed"
        assert "could not be put into the artifact store: Input/output error" in str(record.message)
        assert "dmesg" in str(record.message)
        assert record.output_id is None
    again = daemon.build(repository)
    assert again.stats.success == 4
    assert all(Path(str(package.artifact), "manifest.json").exists() for package in again.packages)
    assert_as_before(daemon, before)


def test_a_full_disk_under_the_artifacts_is_waited_for(
    daemon: Daemon, faults: Faults, repository: RecipeRepository, tmp_path: Path
) -> None:
    before = warmed_up(daemon, tmp_path)
    number = waiting_builds(daemon, repository)
    with faults.failing(NO_SPACE, "write mkdir", "*/artifacts/*"):
        daemon.open_gate()
        until(lambda: any(r.retried for r in daemon.records(run=number)), "a build is tried again")
    view = daemon.wait(number)
    assert view.stats.success == 4
    failed = [record for record in daemon.records(run=number) if record.state == "failed"]
    assert {record.reason for record in failed} == {"disk_full"}
    assert all("free disk space" in str(record.message) for record in failed)
    assert_as_before(daemon, before)


def test_a_build_without_a_receipt_on_disk_has_not_succeeded(
    daemon: Daemon, faults: Faults, repository: RecipeRepository, tmp_path: Path
) -> None:
    before = warmed_up(daemon, tmp_path)
    number = waiting_builds(daemon, repository)
    with faults.failing(IO, "fsync", "*/artifacts/*/builds"):
        daemon.open_gate()
        until(lambda: any(r.retried for r in daemon.records(run=number)), "a build is tried again")
    assert daemon.wait(number).stats.success == 4
    for record in daemon.records(run=number):
        receipts = list(daemon.state_dir.glob(f"artifacts/*/*/builds/{record.id}.json"))
        assert len(receipts) == (1 if record.state == "success" else 0)
    assert_as_before(daemon, before)


# --- no processes, no threads, no memory -------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOMEM], ids=["EAGAIN", "ENOMEM"])
def test_builds_and_clones_that_cannot_be_started_are_when_there_are_processes_again(
    daemon: Daemon, faults: Faults, git_server: GitServer, tmp_path: Path, error: int
) -> None:
    daemon.expect("short of|clone failed")
    before = warmed_up(daemon, tmp_path)
    remote = RecipeRepository(tmp_path / "remote.git")
    remote.packages(NAMES, phases={"stage": STAGE}).commit()
    with faults.failing(error, "fork"):
        number = daemon.start(remote)
        until(lambda: any(r.retried for r in daemon.records(run=number)), "a build is tried again")
        assert daemon.status()["state"] == "degraded"
        assert f"no process can be started ({os.strerror(error)})" in reasons(daemon)
        assert "TasksMax" in reasons(daemon)
        url = git_server.url(remote)
        daemon.call("repo.clone", {"repo": url})
        status = until(lambda: s if (s := clone_status(daemon, url))["status"] != "cloning" else None, "the clone ends")
        assert status["status"] == "failed"
        assert os.strerror(error) in status["error"]
    assert daemon.wait(number).stats.success == 4
    until_well(daemon)
    failed = [record for record in daemon.records(run=number) if record.state == "failed"]
    assert {record.reason for record in failed} == {"sandbox_failed"}
    assert all("doctor" in str(record.message) for record in failed)
    assert daemon.call("repo.clone", {"repo": url, "again": True})["status"] == "accepted"
    until(lambda: clone_status(daemon, url)["status"] == "cloned", "it is cloned")
    daemon.call("repo.delete", {"repo": url})
    assert_as_before(daemon, before)


def clone_status(daemon: Daemon, url: str) -> dict[str, str]:
    found: dict[str, str] = daemon.call("repo.status", {"repo": url})["clone_status"]
    return found


def test_a_daemon_that_can_start_no_threads_waits_for_them_and_lives(
    daemon: Daemon, faults: Faults, repository: RecipeRepository, tmp_path: Path
) -> None:
    daemon.expect("short of")
    before = warmed_up(daemon, tmp_path)
    number = waiting_builds(daemon, repository)
    build = str(daemon.run(number).packages[0].build_id)
    readers = 30  # far more than there are idle threads
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        with faults.failing(errno.EAGAIN, "thread"):
            answers = [pool.submit(daemon.call, "build.log", {"build": build}, timeout=60) for _ in range(readers)]
            daemon.open_gate()
            until(lambda: "no worker thread can be started" in reasons(daemon), "the daemon says so")
            assert daemon.status()["state"] == "degraded"
            assert "TasksMax" in reasons(daemon)
        assert all("waiting" in answer.result()["text"] for answer in answers), "who had to wait is answered"
    assert daemon.wait(number).stats.success == 4
    until_well(daemon)
    assert_as_before(daemon, before)


@contextlib.contextmanager
def few_processes(daemon: Daemon) -> Iterator[None]:
    """As long as the block takes, the kernel starts no process and no thread for the daemon: fork(2) says EAGAIN.

    By the pids controller, which counts root's processes too. Skips the test where we cannot have a cgroup of it.
    """
    group = Path("/sys/fs/cgroup/pids") / f"bd-test-{daemon.pid}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"there is no cgroup v1 of the pids controller that we can use: {error}")
    procs = Path(f"/proc/{daemon.pid}/cgroup").read_text()
    home = next(line.split(":", 2)[2] for line in procs.splitlines() if line.split(":")[1] == "pids")
    try:
        (group / "pids.max").write_text("1")
        (group / "cgroup.procs").write_text(str(daemon.pid))
        yield
    finally:
        (Path("/sys/fs/cgroup/pids") / home.strip("/") / "cgroup.procs").write_text(str(daemon.pid))
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (Path("/sys/fs/cgroup/pids") / home.strip("/") / "cgroup.procs").write_text(pid)
        until(lambda: not (group / "cgroup.procs").read_text(), "the cgroup is empty")
        group.rmdir()


def test_a_daemon_in_a_cgroup_that_is_full_of_processes_has_its_builds_wait(
    daemon: Daemon, repository: RecipeRepository, tmp_path: Path
) -> None:
    daemon.expect("short of|control group is full")
    before = warmed_up(daemon, tmp_path)
    repository.packages(NAMES, phases={"stage": STAGE}).commit()
    with few_processes(daemon):
        number = daemon.start(repository)
        until(lambda: daemon.status()["state"] == "degraded", "the daemon says what it is short of")
        assert "can be started" in reasons(daemon)
        assert "Resource temporarily unavailable" in reasons(daemon) or "new thread" in reasons(daemon)
        assert daemon.run(number).stats.failed == 0
    assert daemon.wait(number).stats.success == 4
    until_well(daemon)
    assert_as_before(daemon, before)


# --- no descriptors ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def few_files(daemon: Daemon, most: int) -> Iterator[None]:
    """As long as the block takes, the daemon may open so many files and no more."""
    process = psutil.Process(daemon.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


def test_builds_wait_for_file_descriptors_instead_of_failing(repository: RecipeRepository, tmp_path: Path) -> None:
    with unbooted(settings={**SETTINGS, "workers.max_concurrent_builds": 64}) as daemon:
        daemon.boot().expect("short of")
        before = warmed_up(daemon, tmp_path)
        wait = f"echo waiting; {daemon.at_gate()}"
        repository.packages([f"p{number}" for number in range(64)], phases={"build": wait, "stage": STAGE}).commit()
        with few_files(daemon, 128):
            number = daemon.start(repository)
            until(lambda: daemon.status()["state"] == "degraded", "the daemon says what it is short of")
            assert "of 128 file descriptors are in use, and no builds or clones are started" in reasons(daemon)
            assert "LimitNOFILE" in reasons(daemon)
            stats = daemon.run(number).stats
            assert 4 <= stats.running < 64
            assert stats.failed == 0
            daemon.open_gate()
            assert daemon.wait(number).stats.success == 64
        assert all(record.attempt == 1 for record in daemon.records(run=number)), "none had to be tried again"
        until_well(daemon)
        assert_as_before(daemon, before)


def open_as_many_as_it_takes(daemon: Daemon, connections: contextlib.ExitStack, most: int) -> None:
    """Connect to the daemon, as fast as it goes, until it takes no more for now."""
    for _ in range(most):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(str(daemon.socket))
        except BlockingIOError:  # the kernel's queue is full
            connection.close()
            return
        connections.enter_context(connection)


def test_a_client_that_opens_connections_without_end_is_shut_out_and_the_daemon_lives(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.expect("descriptors run out|short of")
    before = warmed_up(daemon, tmp_path)
    most = 16_384
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < most + 1000:
        pytest.skip(f"{most} connections take a higher limit of open files than {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1000, hard))
    try:
        with few_files(daemon, most), contextlib.ExitStack() as connections:
            deadline = time.monotonic() + 60
            while not daemon.log_lines("file descriptors run out"):
                assert time.monotonic() < deadline, "the daemon does not notice"
                open_as_many_as_it_takes(daemon, connections, 500)
            assert daemon.status()["pid"] == daemon.pid
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until_well(daemon)
    assert_as_before(daemon, before)
