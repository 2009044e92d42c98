"""The daemon watches the machine, itself and its builds, and says and does what follows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, RecipeRepository, named, until

Boot = Callable[..., Daemon]
FAST = {"monitor.interval": "100ms", "workers.max_concurrent_builds": 4}
ALWAYS = "[throttle]\nload_from = -1\nload_to = -1\n"
NEVER = "[throttle]\nload_from = 1e9\nload_to = 2e9\nswap_from = 101\nswap_to = 102\nmemory_from = 0\nmemory_to = 0\n"


def at_gate(daemon: Daemon, repository: RecipeRepository, count: int) -> int:
    """A run of so many builds that wait for the gate."""
    repository.packages([f"p{n}" for n in range(count)], phases={"build": f"echo here; {daemon.at_gate()}"}).commit()
    return daemon.start(repository)


def configure(daemon: Daemon, text: str) -> None:
    daemon.config_file.write_text(text)
    daemon.call("daemon.reload")


def status_lines(daemon: Daemon, *options: str) -> str:
    done = daemon.buildctl("status", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- load -----------------------------------------------------------------------------------------------------


@pytest.fixture
def throttled(boot: Boot) -> Daemon:
    """A daemon for four builds on a machine that is too busy for more than one."""
    daemon = boot(ready=False, settings=FAST | {"throttle.enabled": "true"})
    daemon.config_file.write_text(ALWAYS)
    return daemon.boot()


def test_a_busy_machine_gets_fewer_builds_and_all_of_them_when_it_is_idle_again(
    throttled: Daemon, repository: RecipeRepository
) -> None:
    daemon = throttled
    until(lambda: daemon.status()["throttle"]["workers"] == 1, "the machine is found busy")
    number = at_gate(daemon, repository, 4)
    daemon.until_running(number, 1, saying="here")
    status = daemon.status()
    assert (status["throttle"]["workers"], status["throttle"]["total"]) == (1, 4)
    assert "the load is" in status["throttle"]["reason"]
    assert status["builds"]["queued"] == 3
    assert status["state"] == "running"
    assert "  throttled  to 1 worker: the load is" in status_lines(daemon)
    (told,) = daemon.events(None, "throttled")
    assert told.data == {"workers": 1, "total": 4, "reason": told.data["reason"]}

    configure(daemon, NEVER)

    daemon.until_running(number, 4, saying="here")
    assert daemon.status()["throttle"] == {"workers": 4, "total": 4, "reason": ""}
    assert "throttled" not in status_lines(daemon)
    until(lambda: daemon.events(None, "unthrottled"), "it is told")
    daemon.open_gate()
    assert daemon.wait(number).state == "completed"


def test_builds_that_run_go_on_when_the_machine_becomes_busy(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(ready=False, settings=FAST | {"throttle.enabled": "true"})
    daemon.config_file.write_text(NEVER)
    daemon.boot()
    number = at_gate(daemon, repository, 4)
    running = daemon.until_running(number, 4, saying="here")
    configure(daemon, ALWAYS)
    until(lambda: daemon.status()["throttle"]["workers"] == 1, "the machine is found busy")
    assert daemon.run(number).stats.running == 4
    daemon.open_gate()
    view = daemon.wait(number)
    assert view.state == "completed"
    assert {p.build_id for p in view.packages} == {p.build_id for p in running}, "none was begun again"


# --- a full disk ----------------------------------------------------------------------------------------------

STAGE = 'mkdir -p "$DESTDIR$PREFIX"; cp "$SRCDIR/data" "$DESTDIR$PREFIX/{name}"'


@pytest.fixture
def small(on_a_small_disk: Daemon) -> Daemon:
    on_a_small_disk.config_file.write_text('[monitor]\ninterval = "200ms"\n')
    return on_a_small_disk.boot()


def package_with_data(repository: RecipeRepository, name: str, size: int) -> None:
    repository.package(name, files={"data": ""}, phases={"stage": STAGE.format(name=name)})
    repository.write(f"{name}/data", os.urandom(size))


def leave(directory: Path, free: int) -> Path:
    """Fill the file system of a directory but for so many bytes."""
    filler = directory / "filler"
    found = os.statvfs(directory)
    with filler.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - free))
    return filler


def kinds(daemon: Daemon, *wanted: str) -> list[str]:
    return [event.kind for event in daemon.events(None, *wanted)]


def test_no_build_is_started_on_a_full_disk_until_there_is_room(small: Daemon, repository: RecipeRepository) -> None:
    daemon = small
    package_with_data(repository, "lib", 1000)
    repository.commit()
    filler = leave(daemon.state_dir, 300_000)
    reason = until(lambda: daemon.status()["paused"], "the disk is found full")
    assert str(daemon.state_dir) in reason
    assert "cache.min_free_bytes" in reason
    number = daemon.start(repository)
    until(lambda: daemon.run(number).state == "building", "the run is accepted and planned")
    assert f"  paused     {reason[:20]}" in status_lines(daemon)
    status = daemon.status()
    assert (status["builds"]["running"], status["builds"]["queued"]) == (0, 1)
    assert status["state"] == "running", "that is not a drain"
    daemon.call("daemon.resume")
    assert daemon.status()["paused"], "and not ended like one"

    filler.unlink()

    assert daemon.wait(number).state == "completed"
    assert daemon.status()["paused"] == ""
    assert kinds(daemon, "paused", "resumed") == ["paused", "resumed"]


def test_room_is_made_for_builds_that_wait_for_it(small: Daemon, repository: RecipeRepository) -> None:
    daemon = small
    for n in range(4):
        package_with_data(repository, f"p{n}", 2_000_000)
    package_with_data(repository, "last", 1000)
    repository.commit()
    for n in range(4):
        assert daemon.build(f"{repository}//p{n}").state == "completed"
    leave(daemon.state_dir, 500_000)
    view = daemon.build(f"{repository}//last")
    assert view.state == "completed"
    until(lambda: kinds(daemon, "artifacts_collected"), "room is made")
    until(lambda: kinds(daemon, "paused", "resumed")[-1:] in ([], ["resumed"]), "no pause lasts")
    assert all(event.data["room"] for event in daemon.events(None, "resumed")), "the collector may have been faster"


def test_a_limit_that_nothing_can_keep_stops_no_build_for_ever(small: Daemon, repository: RecipeRepository) -> None:
    daemon = small
    package_with_data(repository, "lib", 1000)
    repository.commit()
    leave(daemon.state_dir, 1_200_000)
    until(lambda: kinds(daemon, "resumed"), "there is nothing to collect")
    assert daemon.events(None, "resumed")[-1].data["room"] is False
    assert daemon.build(repository).state == "completed"


# --- its own memory -------------------------------------------------------------------------------------------


def test_memory_that_grows_and_stays_is_a_leak_with_a_profile(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(ready=False, settings=FAST)
    daemon.config_file.write_text('[monitor]\nmemory_growth = "3MB"\ntrace_memory = true\n')
    daemon.boot()
    baseline = until(lambda: daemon.call("daemon.resources")["memory"]["baseline_bytes"], "it has settled")
    repository.packages([f"p{n}" for n in range(1500)], phases={"build": "true"}).commit()
    daemon.call("run.plan", {"targets": [str(repository)]}, timeout=60)  # the plan is kept, and what it is made of

    profile = until(lambda: daemon.call("daemon.resources")["memory"]["profile"], "the profile is written", within=60)

    assert "allocated" in Path(profile).read_text().lower()
    status = daemon.status()
    assert status["state"] == "degraded"
    assert any("memory has grown" in reason and profile in reason for reason in status["reasons"])
    assert kinds(daemon, "memory_warning", "memory_leak", "memory_profile")[:3] == [
        "memory_warning",
        "memory_leak",
        "memory_profile",
    ]
    memory = daemon.call("daemon.resources")["memory"]
    assert memory["warnings"] >= 1
    assert memory["peak_bytes"] > baseline + 3_000_000

    configure(daemon, '[monitor]\nmemory_growth = "4GB"\n')

    until(lambda: daemon.status()["state"] == "running", "that is not too much any more")
    until(lambda: kinds(daemon, "memory_recovered") == ["memory_recovered"], "it is told")


# --- builds that do not end -----------------------------------------------------------------------------------


def test_a_build_whose_end_hangs_in_the_daemon_is_named(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings=FAST | {"monitor.stuck_after": "1s", "limits.timeout": "5s"})
    holes = 'mkdir -p "$DESTDIR$PREFIX"; truncate -s 2T "$DESTDIR$PREFIX/holes"'  # hashing it takes many minutes
    repository.package("endless", phases={"stage": holes}).commit()
    number = daemon.start(repository)
    (event,) = until(lambda: daemon.events(number, "build_stuck"), "it is told", within=40)
    assert (event.package, event.data["limit_s"]) == ("endless", 5.0)
    assert event.build == daemon.package(number, "endless").build_id
    assert any("build" in r and "endless does not end" in r for r in daemon.status()["reasons"])
    assert len(daemon.log_lines("a build does not end")) == 1
    daemon.call("run.cancel", {"run": str(number)})
    assert named(daemon.wait(number), "endless").state == "cancelled"
    until(lambda: not any("does not end" in r for r in daemon.status()["reasons"]), "it has ended")
    assert len(daemon.events(number, "build_stuck")) == 1


# --- what is used ---------------------------------------------------------------------------------------------


def test_resources_show_samples_and_running_builds(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings=FAST)
    number = at_gate(daemon, repository, 2)
    daemon.until_running(number, 2, saying="here")
    until(lambda: daemon.call("daemon.resources")["samples"][0]["busy"] == 2, "a sample is taken")

    def answer(samples: int) -> dict[str, Any]:
        found: dict[str, Any] = daemon.call("daemon.resources", {"samples": samples})
        return found

    until(lambda: len(answer(5)["samples"]) == 5, "there are five")
    found = answer(5)
    times = [sample["at"] for sample in found["samples"]]
    assert times == sorted(times)
    assert found["interval_s"] == 0.1
    last = found["samples"][-1]
    assert last["rss_bytes"] > 10 << 20
    assert last["free_bytes"] > 0
    assert {build["package"] for build in found["builds"]} == {"p0", "p1"}
    assert all(build["phase"] == "build" for build in found["builds"])

    shown = status_lines(daemon, "--resources")
    assert "memory available" in shown
    assert "p0" in shown
    as_json = json.loads(status_lines(daemon, "--resources", "--json"))
    assert len(as_json["builds"]) == 2
    daemon.open_gate()
    daemon.wait(number)
    assert "no build is running" in status_lines(daemon, "--resources")
