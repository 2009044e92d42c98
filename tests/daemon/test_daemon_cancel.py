"""Cancelling ends the whole process tree, whatever the build does, and says why it ended."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable

from daemon_stubborn import READY, stubborn_packages, stubborn_text
from harness import Daemon, RecipeRepository, kill_all, named, until, with_command

Boot = Callable[..., Daemon]


def test_cancel_ends_daemonised_grandchildren_that_ignore_sigterm(
    boot: Boot, backend: str, repository: RecipeRepository
) -> None:
    daemon = boot(backend=backend, settings={"workers.max_concurrent_builds": 2})
    stubborn_packages(repository, daemon, count=2, queued=3)
    number = daemon.start(repository)
    running = daemon.until_running(number, 2, saying=READY)
    assert len(daemon.build_processes()) >= 2 * 4  # the phase, and three that are deaf

    done = daemon.buildctl("cancel", number)

    assert done.returncode == 0, done.stderr
    me = pwd.getpwuid(os.getuid()).pw_name
    until(lambda: not daemon.build_processes(), "no process of the builds is alive", within=2)
    view = daemon.wait(number)
    assert view.state == "cancelled"
    assert view.stats.cancelled == view.stats.total == 5
    for package in running:
        record = daemon.record(package.build_id)
        assert (record.state, record.reason) == ("cancelled", "cancelled")
        assert daemon.build_log(package.build_id).splitlines()[-1].endswith(f"cancelled: cancelled by {me}")
    assert daemon.work_directories() == []
    assert daemon.status()["workers"]["busy"] == 0


def test_cancel_lets_a_build_end_by_itself_when_it_listens(
    boot: Boot, backend: str, repository: RecipeRepository
) -> None:
    daemon = boot(backend=backend)
    text = "trap 'echo cleaning up; exit 1' TERM; echo here; while :; do sleep 0.1; done"
    repository.package("polite", phases={"build": text}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")

    daemon.call("run.cancel", {"run": str(number)})

    view = daemon.wait(number, within=5)
    assert named(view, "polite").state == "cancelled"
    assert "cleaning up" in daemon.log_of(view, "polite").splitlines()


def test_cancel_ends_processes_that_scrubbed_their_environment(
    boot: Boot, backend: str, repository: RecipeRepository
) -> None:
    daemon = boot(backend=backend)
    mark = f"3600.{daemon.pid}"  # recognised by its argument, as it has no environment
    deaf = f"sh -c 'trap \"\" TERM; exec sleep {mark}'"
    text = f"env -i setsid {deaf} </dev/null >/dev/null 2>&1 & env -i {deaf} & sleep 0.05; echo here; wait"
    repository.package("secretive", phases={"build": text}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")
    until(lambda: len(with_command(f"sleep {mark}")) == 2, "both sleep")

    daemon.call("run.cancel", {"run": str(number)})

    assert daemon.wait(number).state == "cancelled"
    try:
        until(lambda: not with_command(f"sleep {mark}"), "no process of the build is alive", within=2)
    finally:
        kill_all(with_command(f"sleep {mark}"))


def test_what_a_successful_build_leaves_running_is_ended(
    boot: Boot, backend: str, repository: RecipeRepository
) -> None:
    daemon = boot(backend=backend)
    text = "setsid sh -c 'trap \"\" TERM; sleep 3600' </dev/null >/dev/null 2>&1 & sleep 0.05"
    repository.package("messy", phases={"build": text}).commit()

    view = daemon.build(repository)

    assert view.state == "completed"
    assert daemon.build_processes() == []
    until(lambda: not daemon.work_directories(), "its directories are gone", within=2)


def test_a_run_is_cancelled_while_its_packages_wait_for_workers(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 1})
    repository.package("holder", phases={"build": f"echo here; {daemon.at_gate()}"}).commit()
    first = daemon.start(repository)
    daemon.until_running(first, 1, saying="here")
    repository.packages([f"p{i}" for i in range(5)], phases={"build": "exit 1"}).commit()
    second = daemon.start(repository, force=True)
    until(lambda: daemon.run(second).stats.queued == 6, "the second run waits")

    daemon.call("run.cancel", {"run": str(second)})

    view = daemon.wait(second, within=5)
    assert view.stats.cancelled == 6
    assert all(package.build_id is None for package in view.packages)  # nothing was started for it
    daemon.open_gate()
    assert daemon.wait(first).state == "completed"


def test_a_cancelled_run_stays_cancelled_over_kill_9(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 1})
    repository.package("deaf", phases={"build": stubborn_text(daemon)})
    repository.package("later", phases={"build": "true"}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying=READY)

    daemon.call("run.cancel", {"run": str(number)})
    daemon.kill9()
    daemon.boot()

    view = daemon.wait(number)
    assert view.state == "cancelled"
    assert view.stats.cancelled == 2
