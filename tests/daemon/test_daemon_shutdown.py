"""An orderly stop: in time, with nothing left, and nothing forgotten."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from daemon_stubborn import READY, stubborn_packages, stubborn_text
from harness import Daemon, RecipeRepository, RpcError, named, until

Boot = Callable[..., Daemon]
NOT_ENDED = ("queued", "running")


def test_sigterm_with_stubborn_builds_leaves_nothing_and_the_queue_goes_on_at_the_next_start(
    boot: Boot, backend: str, repository: RecipeRepository
) -> None:
    daemon = boot(backend=backend, settings={"workers.max_concurrent_builds": 8, "daemon.shutdown_grace": "1s"})
    stubborn_packages(repository, daemon, count=8, queued=20)
    number = daemon.start(repository)
    running = daemon.until_running(number, 8, saying=READY)
    assert daemon.run(number).stats.queued == 20

    started = time.monotonic()
    assert daemon.terminate(within=30) == 0
    assert time.monotonic() - started < 15
    assert daemon.build_processes() == []
    assert daemon.own_processes() == []
    assert daemon.work_directories() == []
    assert not daemon.socket.exists()

    daemon.open_gate()
    daemon.boot()

    view = daemon.wait(number)
    assert view.state == "completed"
    assert view.stats.success == view.stats.total == 28
    for package in running:  # the interrupted attempt is on record, and its log says what happened
        first = daemon.record(package.build_id)
        assert (first.attempt, first.reason) == (1, "interrupted")
        assert first.state in ("failed", "cancelled")
        assert "interrupted: the daemon was stopped" in daemon.build_log(first.id).splitlines()[-1]
        assert daemon.record(named(view, package.name).build_id).attempt == 2


def test_a_second_sigterm_shortens_the_grace(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"daemon.shutdown_grace": "60s", "daemon.shutdown_limit": "90s"})
    repository.package("deaf", phases={"build": stubborn_text(daemon)}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying=READY)

    daemon.signal(signal.SIGTERM)
    until(lambda: daemon.status()["state"] == "stopping", "the daemon says that it is stopping")
    with pytest.raises(RpcError) as caught:
        daemon.start(repository)
    assert caught.value.code == 4
    daemon.signal(signal.SIGTERM)

    assert daemon.exit_status(within=10) == 0
    assert daemon.build_processes() == []
    assert daemon.work_directories() == []


def test_the_shutdown_limit_holds_whatever_the_grace_is(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"daemon.shutdown_grace": "60s", "daemon.shutdown_limit": "7s"})
    daemon.expect("builds did not end in time")
    repository.package("deaf", phases={"build": stubborn_text(daemon)}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying=READY)

    started = time.monotonic()
    assert daemon.terminate(within=30) == 0
    assert time.monotonic() - started < 9
    assert daemon.build_processes() == []
    assert daemon.work_directories() == []
    daemon.open_gate()
    daemon.boot()
    assert daemon.wait(number).state == "completed"


def test_drain_starts_nothing_new_and_resume_goes_on(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 1})
    repository.package("first", phases={"build": f"echo here; {daemon.at_gate()}"})
    repository.package("second", depends=["first"]).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")

    assert daemon.buildctl("drain").returncode == 0
    assert daemon.status()["state"] == "draining"
    refused = daemon.buildctl("start", repository)
    assert refused.returncode == 4
    assert "buildctl resume" in refused.stderr
    daemon.open_gate()
    until(lambda: daemon.package(number, "first").state == "success", "what runs is finished")
    assert daemon.package(number, "second").state == "queued"
    assert daemon.status()["workers"]["busy"] == 0

    assert daemon.buildctl("resume").returncode == 0
    assert daemon.wait(number).stats.success == 2
    assert daemon.status()["state"] == "running"


def test_shutdown_drain_lets_builds_finish_and_keeps_the_queue(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 1})
    repository.package("first", phases={"build": f"echo here; {daemon.at_gate()}"})
    repository.package("second", depends=["first"]).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")

    assert daemon.buildctl("shutdown", "--drain").returncode == 0
    until(lambda: daemon.status()["state"] == "draining", "the daemon drains")
    daemon.open_gate()
    assert daemon.exit_status(within=20) == 0

    daemon.boot()
    view = daemon.wait(number)
    assert view.state == "completed"
    assert daemon.record(named(view, "first").build_id).attempt == 1  # it was finished, not interrupted


def test_sigterm_ends_a_drain_that_takes_too_long(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"daemon.shutdown_grace": "1s"})
    repository.package("long", phases={"build": "echo here; sleep 600"}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")

    assert daemon.buildctl("shutdown", "--drain").returncode == 0
    until(lambda: daemon.status()["state"] == "draining", "the daemon drains")

    assert daemon.terminate(within=15) == 0
    assert daemon.build_processes() == []


def test_a_client_that_waits_goes_on_over_a_restart(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"daemon.shutdown_grace": "0s"})
    repository.package("one", phases={"build": f"echo here; {daemon.at_gate()}"}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")

    requests = requests_of_others(daemon)
    waiting = daemon.buildctl_in_background("wait", number, "--json")
    try:
        # it looks twice at the run, and then waits for its end
        until(lambda: next(requests) >= 3, "the client waits")
        daemon.restart()
        daemon.open_gate()
        out, err = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
        waiting.communicate()
    assert waiting.returncode == 0, err
    assert '"completed"' in out


def test_an_idle_daemon_stops_at_once_by_sigint_too(boot: Boot) -> None:
    daemon = boot()
    started = time.monotonic()
    daemon.signal(signal.SIGINT)
    assert daemon.exit_status(within=10) == 0
    assert time.monotonic() - started < 5
    assert not daemon.socket.exists()


def requests_of_others(daemon: Daemon) -> Iterator[int]:
    """How many requests came since the first look, without those that this makes."""
    first = daemon.status()["control"]["requests"]
    for own in itertools.count(1):
        yield daemon.status()["control"]["requests"] - first - own


def test_a_daemon_that_drains_before_it_stops_cannot_be_resumed_and_a_signal_ends_only_the_waiting(
    boot: Boot, repository: RecipeRepository
) -> None:
    daemon = boot(settings={"daemon.shutdown_grace": "20s"})
    polite = f"trap 'sleep 0.5; echo cleaned up; exit 1' TERM; echo {READY}; while :; do sleep 0.05; done"
    repository.package("polite", phases={"build": polite}).commit()
    number = daemon.start(repository)
    (running,) = daemon.until_running(number, 1, saying=READY)

    daemon.call("daemon.shutdown", {"drain": True})
    until(lambda: daemon.status()["state"] == "draining", "it drains")
    refused = daemon.buildctl("resume")
    assert refused.returncode == 4
    assert "the daemon stops" in refused.stderr

    assert daemon.terminate(within=15) == 0
    daemon.boot()
    assert "cleaned up" in daemon.build_log(running.build_id)
    daemon.call("run.cancel", {"run": str(number)})
    assert daemon.wait(number).state == "cancelled"


def test_what_is_still_being_removed_is_gone_when_the_daemon_is(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"sandbox.readonly_paths": "[]"})  # so that empty directories are kept for other builds
    many = "for d in $(seq 40); do mkdir $d; (cd $d; seq 300 | xargs touch); done"
    repository.package("one", phases={"build": ":"})
    repository.package("many", depends=("one",), phases={"build": many}).commit()
    assert daemon.build(repository).state == "completed"
    assert daemon.terminate(within=30) == 0
    assert list(daemon.work_dir.iterdir()) == []
