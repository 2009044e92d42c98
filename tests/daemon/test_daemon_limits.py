"""Limits end a build, and the reason has the limit's name."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from harness import BACKENDS, Daemon, RecipeRepository, booted, named

Boot = Callable[..., Daemon]
HOG = """python3 -c 'import time; data = bytearray(300 << 20); print("fat", flush=True); time.sleep(60)'"""


@pytest.fixture(scope="module", params=BACKENDS)
def limited(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with booted(backend=request.param, settings={"workers.max_concurrent_builds": 6}) as daemon:
        yield daemon


def test_each_limit_of_a_recipe_ends_the_build_with_its_reason(limited: Daemon, repository: RecipeRepository) -> None:
    deaf = "trap '' TERM; "
    noise = "while :; do echo noise; sleep 0.1; done"
    repository.package("slow", phases={"build": deaf + noise}, limits={"timeout": "1s"})
    repository.package("quiet", phases={"build": "echo once; sleep 60"}, limits={"silence": "1s"})
    chatter = "while :; do head -c 500000 /dev/zero; sleep 0.02; done"
    repository.package("loud", phases={"build": chatter}, limits={"log": "1MiB"})
    # over before anybody looks
    repository.package("burst", phases={"build": "head -c 20000000 /dev/zero"}, limits={"log": "1MiB"})
    repository.package("fat", phases={"build": HOG}, limits={"memory": "100MiB"})
    # two that are thin each, and fat together
    half = HOG.replace("300 <<", "70 <<")
    repository.package("fat-together", phases={"build": f"{half} & {half}"}, limits={"memory": "100MiB"})
    repository.package("fine", phases={"build": "echo fine"}, limits={"timeout": "50s", "memory": "1GiB"}).commit()

    view = limited.build(repository)

    reasons = {p.name: p.reason for p in view.packages if p.state == "failed"}
    assert reasons == {
        "slow": "timeout",
        "quiet": "silent",
        "loud": "log_limit",
        "burst": "log_limit",
        "fat": "oom",
        "fat-together": "oom",
    }
    assert named(view, "fine").state == "success"
    for name, key in (("slow", "timeout"), ("quiet", "silence"), ("loud", "log"), ("fat", "memory")):
        package = named(view, name)
        assert f"limits.{key}" in str(package.message)
        last = (limited.state_dir / "logs" / str(package.build_id)[:2] / f"{package.build_id}.log").read_bytes()
        assert f"limits.{key}" in last[-300:].decode()
    assert limited.build_processes() == []
    assert limited.work_directories() == []
    duration = named(view, "slow").duration_s
    assert duration is not None
    assert 1 <= duration < 8


@pytest.fixture
def silent_server() -> Iterator[str]:
    """URL of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x.tar"


def test_a_limit_of_a_phase_ends_the_build_and_is_named(
    limited: Daemon, repository: RecipeRepository, silent_server: str
) -> None:
    noise = "trap '' TERM; while :; do echo noise; sleep 0.1; done"
    source = [{"url": silent_server, "sha256": "0" * 64}]
    repository.package(
        "slow",
        phases={"build": "sleep 1.5", "check": noise, "stage": "echo never"},
        limits={"timeout": "1min", "phases": {"check": {"timeout": "1s"}}},
    )
    repository.package(
        "quiet",
        phases={"build": "sleep 1.5", "check": "sleep 60", "stage": "echo never"},
        limits={"phases": {"check": {"silence": "1s"}}},
    )
    repository.package("waiting", source=source, limits={"phases": {"fetch": {"timeout": "1s"}}})
    repository.package("unanswered", source=source, limits={"phases": {"fetch": {"silence": "1s"}}}).commit()

    view = limited.build(repository)

    assert {p.name: (p.reason, p.message) for p in view.packages} == {
        "slow": ("timeout", "phase check took longer than 1 s (limits.phases.check.timeout)"),
        "quiet": ("silent", "no output for 1 s in phase check (limits.phases.check.silence)"),
        "waiting": ("timeout", "phase fetch took longer than 1 s (limits.phases.fetch.timeout)"),
        "unanswered": ("silent", "no output for 1 s in phase fetch (limits.phases.fetch.silence)"),
    }
    for package, phases in (("slow", ["build", "check"]), ("waiting", ["fetch"])):
        record = limited.record(named(view, package).build_id)
        assert [p.name for p in record.phases] == phases
        assert record.attempt == 1, "it would take as long again"
        assert str(record.message) in limited.build_log(record.id).splitlines()[-1]
    assert "never" not in limited.log_of(view, "slow") + limited.log_of(view, "quiet")
    assert limited.build_processes() == []
    assert limited.work_directories() == []


def test_a_limit_of_a_phase_leaves_the_others_alone(limited: Daemon, repository: RecipeRepository) -> None:
    quick = {"timeout": "2s", "silence": "2s"}
    repository.package(
        "quick",
        phases={"configure": "sleep 0.9", "build": "sleep 0.9", "check": "sleep 3", "stage": "sleep 0.9"},
        limits={"phases": {"configure": quick, "build": quick, "stage": quick}},
    )
    repository.package(
        "patient",
        phases={"build": "sleep 0.2", "check": "sleep 3.5", "stage": "sleep 0.2"},
        limits={"silence": "2s", "phases": {"check": {"silence": "20s"}}},
    ).commit()
    view = limited.build(repository)
    assert {p.name: p.state for p in view.packages} == {"quick": "success", "patient": "success"}, view


@pytest.mark.parametrize(
    ("limits", "complaint", "advice"),
    [
        ({"chek": {"timeout": "1s"}}, "unknown phase limits.phases.chek", "did you mean limits.phases.check?"),
        ({"check": {"timout": "1s"}}, "unknown key limits.phases.check.timout", "did you mean limits.phases.check.t"),
        ({"check": {"silence": "soon"}}, "limits.phases.check.silence: 'soon' is not a duration", "buildd-recipe(5)"),
        ({"check": "1s"}, "limits.phases.check is not a table", "[package.a.limits.phases.check]"),
    ],
)
def test_a_limit_of_a_phase_that_does_not_exist_is_an_error_that_names_it(
    limited: Daemon, repository: RecipeRepository, limits: dict[str, object], complaint: str, advice: str
) -> None:
    repository.package("a", phases={"build": "true"}, limits={"phases": limits}).commit()
    view = limited.build(repository)
    assert view.state == "failed"
    assert f"package a: {complaint}" in str(view.error)
    assert advice in str(view.hint)


def test_what_a_build_used_is_on_record(limited: Daemon, repository: RecipeRepository) -> None:
    hungry = "python3 -c 'data = bytearray(200 << 20); sum(range(10_000_000))'"
    repository.package("hungry", phases={"build": hungry}).commit()
    record = limited.record(limited.build(repository).packages[0].build_id)
    assert 200 << 20 <= record.resources.max_rss_bytes < 400 << 20
    assert record.resources.cpu_s > 0.05


def test_a_recipe_cannot_raise_a_limit_of_the_configuration(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"limits.timeout": "2s", "limits.silence": "1s", "limits.log": "2MiB"})
    talk = "while :; do echo talk; sleep 0.1; done"
    repository.package("greedy", phases={"build": talk}, limits={"timeout": "10h"})
    ample = {"phases": {"build": {"timeout": "10h", "silence": "10h"}}}
    repository.package("greedy-phase", phases={"build": talk}, limits=ample)
    repository.package("sleepy-phase", phases={"build": "sleep 60"}, limits=ample)
    repository.package(
        "loud", phases={"build": "head -c 20000000 /dev/zero; sleep 60"}, limits={"log": "1GiB"}
    ).commit()
    view = daemon.build(repository)
    assert {p.name: p.reason for p in view.packages} == {
        "greedy": "timeout",
        "greedy-phase": "timeout",
        "sleepy-phase": "silent",
        "loud": "log_limit",
    }
    assert "(limits.silence)" in str(named(view, "sleepy-phase").message)


def test_limits_are_not_part_of_the_key(limited: Daemon, repository: RecipeRepository) -> None:
    repository.package("a", phases={"build": "true"}, limits={"timeout": "1min"}).commit()
    assert limited.build(repository).stats.success == 1
    other = {"timeout": "2min", "phases": {"build": {"timeout": "1min"}}}
    repository.package("a", phases={"build": "true"}, limits=other).commit()
    assert limited.build(repository).stats.skipped == 1
