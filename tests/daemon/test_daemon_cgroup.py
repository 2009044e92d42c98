"""The daemon in a cgroup of its own: each build has one beside it, and nothing is left in any.

Limits that the kernel keeps need controllers, which not every machine gives to a test; where a build is, and how it
ends, needs none.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import BACKENDS, RecipeRepository, alive, named, unbooted, until

from buildd.cgroups import Cgroup, own_group, take_over

HIDE = """env -i setsid sh -c 'trap "" TERM; echo hidden; sleep 1000' &"""
"""A process without the cookie, in a session of its own, and with its own word that it has come so far."""
ENTER = 'echo 0 >"$0/cgroup.procs" && exec "$@"'


def mounted() -> Path | None:
    """Where the hierarchy is mounted."""
    match = re.search(r"^\S+ (\S+) cgroup2 ", Path("/proc/self/mounts").read_text(), re.MULTILINE)
    return Path(match[1]) if match else None


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup with nobody in it."""
    root = mounted()
    if root is None:
        pytest.skip("there is no cgroup v2 here")
    path = root / f"buildd-test-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield path
    inside = Cgroup(path, frozenset())
    deadline = time.monotonic() + 10
    inside.kill()
    for place in sorted(path.rglob("**"), reverse=True):
        while place.is_dir() and time.monotonic() < deadline:
            with suppress(OSError):
                place.rmdir()


def in_group(group: Path, program: str) -> str:
    """What a Python program prints that is started in a cgroup."""
    done = subprocess.run(
        ["sh", "-c", ENTER, group, sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_build_has_a_cgroup_that_holds_all_of_it_and_goes_with_it(
    group: Path, repository: RecipeRepository, backend: str
) -> None:
    repository.package("hider", phases={"build": f"{HIDE} sleep 1000"}, limits={"timeout": "3s"})
    repository.commit()
    with unbooted(backend=backend) as daemon:
        daemon.boot("sh", "-c", ENTER, str(group))
        run = daemon.start(repository)
        (package,) = daemon.until_running(run, 1, saying="hidden")
        inside = [int(pid) for pid in (group / f"build-{package.build_id}/cgroup.procs").read_text().split()]
        assert len(inside) >= 4
        assert str(daemon.pid) in (group / "daemon/cgroup.procs").read_text().split()
        assert named(daemon.wait(run), "hider").reason == "timeout"
        until(lambda: not [pid for pid in inside if alive(pid)], "nobody of the build is left")
        until(lambda: not list(group.glob("build-*")), "the cgroup of the build is gone")
        assert daemon.terminate() == 0


def test_what_a_killed_daemon_leaves_in_cgroups_goes_at_the_next_start(
    group: Path, repository: RecipeRepository
) -> None:
    repository.package("a", phases={"build": f"{HIDE} sleep 1000"}).commit()
    with unbooted(backend="plain") as daemon:
        daemon.boot("sh", "-c", ENTER, str(group))
        (package,) = daemon.until_running(daemon.start(repository), 1, saying="hidden")
        before = group / f"build-{package.build_id}"
        daemon.kill9()
        left = [int(pid) for pid in (before / "cgroup.procs").read_text().split()]
        assert left, "the test is for something that hides from the warden"
        daemon.boot("sh", "-c", ENTER, str(group / "daemon"))
        assert not before.exists()
        assert not [pid for pid in left if alive(pid)]
        daemon.call("run.cancel", {"run": "1"})
        daemon.wait(1)


def test_a_group_that_holds_others_is_left_alone(group: Path) -> None:
    other = subprocess.Popen(["sh", "-c", ENTER, group, "sleep", "100"])
    try:
        until(lambda: (group / "cgroup.procs").read_text().split(), "somebody is in the group")
        program = "from buildd.cgroups import take_over; print(take_over())"
        assert "has other processes too" in in_group(group, program)
        assert not (group / "daemon").exists()
    finally:
        other.kill()
        other.wait()


def test_limits_that_the_kernel_refuses_leave_no_group(group: Path) -> None:
    program = f"""
from buildd.cgroups import Cgroups, GroupLimits
from pathlib import Path
groups = Cgroups(Path({str(group)!r}), frozenset({{"memory"}}))  # a controller that it does not have
try:
    groups.make("x", GroupLimits(memory=1 << 20))
except OSError as error:
    print("refused", len(groups.builds()))
"""
    if "memory" in (group / "cgroup.controllers").read_text().split():
        pytest.skip("the group has the controller")
    assert in_group(group, program) == "refused 0"


def test_nothing_is_taken_over_of_a_hierarchy_that_is_not_ours() -> None:
    root = mounted()
    if root is None or own_group() != root:
        pytest.skip("the tests have a cgroup of their own")
    groups, why = take_over()
    assert groups is None
    assert why
