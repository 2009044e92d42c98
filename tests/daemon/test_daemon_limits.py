"""Limits end a build, and the reason has the limit's name."""

from __future__ import annotations

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


def test_what_a_build_used_is_on_record(limited: Daemon, repository: RecipeRepository) -> None:
    hungry = "python3 -c 'data = bytearray(200 << 20); sum(range(10_000_000))'"
    repository.package("hungry", phases={"build": hungry}).commit()
    record = limited.record(limited.build(repository).packages[0].build_id)
    assert 200 << 20 <= record.resources.max_rss_bytes < 400 << 20
    assert record.resources.cpu_s > 0.05


def test_a_recipe_cannot_raise_a_limit_of_the_configuration(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"limits.timeout": "1s", "limits.log": "2MiB"})
    repository.package("greedy", phases={"build": "sleep 60"}, limits={"timeout": "10h"})
    repository.package(
        "loud", phases={"build": "head -c 20000000 /dev/zero; sleep 60"}, limits={"log": "1GiB"}
    ).commit()
    view = daemon.build(repository)
    assert {p.name: p.reason for p in view.packages} == {"greedy": "timeout", "loud": "log_limit"}


def test_limits_are_not_part_of_the_key(limited: Daemon, repository: RecipeRepository) -> None:
    repository.package("a", phases={"build": "true"}, limits={"timeout": "1min"}).commit()
    assert limited.build(repository).stats.success == 1
    repository.package("a", phases={"build": "true"}, limits={"timeout": "2min"}).commit()
    assert limited.build(repository).stats.skipped == 1
