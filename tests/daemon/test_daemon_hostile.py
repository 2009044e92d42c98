"""Builds that mean harm: each ends with its named cause in bounded time, and nobody else notices (R2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BACKENDS, Daemon, RecipeRepository, booted, named, needs_bwrap, until

WITHIN_S = 30.0
"""Long before what they do would end by itself."""
FOREVER = "while :; do sleep 0.2; done"


@pytest.fixture(scope="module", params=BACKENDS)
def hostile(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with booted(backend=request.param, settings={"workers.max_concurrent_builds": 3}) as daemon:
        yield daemon


TOO_MANY: tuple[dict[str, object], str, str] = ({"pids": 200}, "pids_limit", "limits.pids")
ATTACKS: dict[str, tuple[str, dict[str, object], str, str]] = {
    # name: what it does, its limits, the reason it ends for, and the key that the message names
    # bounded, should the daemon fail: 1,023 processes
    "fork-bomb": ("b() { [ $1 = 0 ] || { b $(($1-1)) & b $(($1-1)) & }; sleep 99; }; b 9", *TOO_MANY),
    "threads": (
        "python3 -c 'from threading import *; from time import sleep\n"
        "while active_count() < 1000: Thread(target=sleep, args=(99,)).start()'",
        *TOO_MANY,
    ),
    "memory-bomb": (
        "python3 -c 'a = []\nwhile 1: a.append(bytearray(1 << 20))'",
        {"memory": "200MiB"},
        "oom",
        "memory",
    ),
    "disk-filler": ("yes > big", {"disk": "64MiB"}, "disk_full", "limits.disk"),
    "fills-tmp": ('yes > "$TMPDIR/big"', {"disk": "64MiB"}, "disk_full", "limits.disk"),
    "fills-nameless": ("exec 5>gone; rm gone; yes >&5", {"disk": "64MiB"}, "disk_full", "limits.disk"),
    "log-flood": ("yes | head -c 5000000000", {"log": "20MiB"}, "log_limit", "limits.log"),
    "many-files": (
        'python3 -c \'for n in range(200_000): open(f"f{n}", "w").close()\'; sleep 100',
        {"files": 20_000},
        "disk_full",
        "limits.files",
    ),
    "sleeper": ("sleep 100", {"silence": "1s"}, "silent", "limits.silence"),
    "stops-itself": ("kill -STOP $$; echo on", {"silence": "1s"}, "silent", "limits.silence"),
    "stubborn-daemon": (
        f"(setsid sh -c \"trap '' TERM HUP INT; {FOREVER}\" &) ; trap '' TERM; echo away; {FOREVER}",
        {"timeout": "1s"},
        "timeout",
        "limits.timeout",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_build_ends_with_its_cause_and_harms_nobody(
    hostile: Daemon, repository: RecipeRepository, name: str
) -> None:
    text, limits, reason, key = ATTACKS[name]
    repository.package(name, phases={"build": text}, limits=limits)
    repository.package("sibling", phases={"build": "sleep 1; echo unharmed"}).commit()

    view = hostile.build(repository, force=True, max_retries=0)

    attacker = named(view, name)
    assert (attacker.state, attacker.reason) == ("failed", reason), attacker.message
    assert key in str(attacker.message)
    sibling = named(view, "sibling")
    assert sibling.state == "success", sibling.message
    assert attacker.duration_s is not None
    assert attacker.duration_s < WITHIN_S
    assert hostile.build_processes() == []
    until(lambda: not hostile.work_directories(), "no directory of a build is left")


def test_a_build_that_removes_its_own_directories_fails_and_leaves_nothing(
    hostile: Daemon, repository: RecipeRepository
) -> None:
    text = 'cd /; rm -rf "$SRCDIR" "$BUILDDIR" "$DESTDIR" "$HOME" "$TMPDIR"'
    repository.package("vandal", phases={"stage": text}).commit()
    vandal = named(hostile.build(repository, max_retries=0), "vandal")
    assert (vandal.state, vandal.reason) == ("failed", "phase_failed"), vandal.message
    until(lambda: not hostile.work_directories(), "no directory of a build is left")


@pytest.fixture
def secretive() -> Iterator[Daemon]:
    with booted(backend="bwrap", environ={"SECRET_OF_THE_DAEMON": "a-secret"}) as daemon:
        yield daemon


@needs_bwrap
def test_a_build_cannot_write_to_a_dependency_or_look_at_others(
    secretive: Daemon, repository: RecipeRepository
) -> None:
    daemon = secretive
    stage = 'mkdir -p "$DESTDIR$PREFIX"; echo good > "$DESTDIR$PREFIX/lib"'
    repository.package("lib", phases={"stage": stage})
    spoil = 'chmod u+w "$PREFIX/lib" || :; echo bad > "$PREFIX/lib"'
    repository.package("spoiler", depends=["lib"], phases={"build": spoil})
    spy = f"""
        for place in '{daemon.state_dir}' '{daemon.work_dir}' /proc/{{pid}}/environ /proc/{{pid}}/root; do
            if ls "$place" || cat "$place"; then echo "SEEN $place"; fi
        done
        grep -l -a SECRET_OF_THE_DAEMON /proc/*/environ && echo "SEEN environ"
        ls /proc | grep -c '^[0-9]'
    """
    repository.package("spy", phases={"build": spy.replace("{pid}", str(daemon.pid))}).commit()

    view = daemon.build(repository, max_retries=0)

    assert named(view, "spoiler").reason == "phase_failed"
    artifact = named(view, "lib").artifact
    assert artifact is not None
    assert (Path(artifact) / "tree/opt/buildd/lib").read_text() == "good\n"
    assert daemon.call("artifact.verify", {})["damaged"] == 0
    assert named(view, "spy").state == "success"
    log = daemon.log_of(view, "spy")
    assert "SEEN" not in log
    assert int(log.splitlines()[-2]) < 10, "it sees processes that are not its own"


def test_without_a_cgroup_the_limit_of_processors_binds_a_build_to_so_many(
    hostile: Daemon, repository: RecipeRepository
) -> None:
    burn = "python3 -c 'import os; print(len(os.sched_getaffinity(0)))'"
    repository.package("burner", phases={"build": burn}, limits={"cpu": 1}).commit()
    view = hostile.build(repository)
    assert "1" in hostile.log_of(view, "burner").splitlines()


def test_the_limit_of_open_files_holds(hostile: Daemon, repository: RecipeRepository) -> None:
    repository.package("opener", phases={"build": "ulimit -n; ulimit -Hn"}, limits={"open_files": 77}).commit()
    view = hostile.build(repository)
    assert hostile.log_of(view, "opener").splitlines().count("77") == 2
