"""Limits that the kernel keeps, by a cgroup for each build below the one that systemd delegates."""

from __future__ import annotations

import pytest
from harness import RecipeRepository, named, states

from vm.guest import Guest, copied_in

GROUP = "/sys/fs/cgroup/system.slice/buildd.service"
HOG = "head -c 400000000 /dev/zero | tail -n 1 | wc -c"
"""tail keeps the last line, and there is only one."""
BOMB = "bomb() { bomb | bomb & }; bomb; sleep 60"


def groups(vm: Guest) -> dict[str, str]:
    """The name of the group that each process of the service is in."""
    shown = vm.run(f'cd {GROUP} && for f in $(find . -name cgroup.procs); do sed "s|^|$f |" $f; done', check=False)
    return {pid: file.split("/")[1] for file, pid in map(str.split, shown.out.splitlines())}


@pytest.fixture
def target(vm: Guest, repository: RecipeRepository) -> str:
    """Packages that fail in their own ways, and one that has nothing to do with them."""
    repository.package("fat", phases={"build": HOG}, limits={"memory": "100MiB"})
    repository.package("bomb", phases={"build": BOMB}, limits={"pids": 64})
    repository.package("fine", phases={"build": "echo here; sleep 20"}).commit()
    return copied_in(vm, repository)


def test_the_daemon_is_in_a_leaf_and_each_build_in_a_group_beside_it(vm: Guest, repository: RecipeRepository) -> None:
    limits = {"memory": "200MiB", "pids": 50, "cpu": 0.5}
    repository.package("limited", phases={"build": "sleep 20"}, limits=limits).commit()
    number = vm.start(copied_in(vm, repository))
    vm.until("pgrep -x sleep")

    build = vm.package(number, "limited").build_id
    where = groups(vm)
    assert where.pop(str(vm.pid)) == "daemon"
    assert set(where.values()) == {f"build-{build}"}
    kept = vm.run(f"cd {GROUP}/build-{build} && cat memory.max memory.oom.group pids.max cpu.max").out.splitlines()
    assert kept == [str(200 << 20), "1", "50", "50000 100000"]

    assert vm.wait(number).state == "completed"
    assert vm.run(f"ls -d {GROUP}/build-*", check=False).out == ""


def test_a_limit_that_is_hit_ends_its_build_and_nothing_else(vm: Guest, target: str) -> None:
    vm.configure("[workers]\nmax_concurrent_builds = 3\n")
    vm.run("systemctl reload buildd")
    pid = vm.pid
    number = vm.start(target)
    view = vm.wait(number, within=300)

    assert states(view) == {"fat": "failed", "bomb": "failed", "fine": "success"}
    assert {p.name: p.reason for p in view.packages if p.state == "failed"} == {"fat": "oom", "bomb": "pids_limit"}
    fat = named(view, "fat")
    assert "limits.memory" in str(fat.message)
    assert "the kernel ended it" in str(fat.message)
    killed = vm.run(f"journalctl -k --since=@{vm.started_at} --no-pager | grep oom-kill").out
    assert "CONSTRAINT_MEMCG" in killed
    assert f"build-{fat.build_id}" in killed
    assert vm.pid == pid
    assert vm.record(fat.build_id).resources.peak_memory_bytes >= 90 << 20


def test_a_build_gets_no_more_of_the_processors_than_its_quota(vm: Guest, repository: RecipeRepository) -> None:
    busy = "timeout 15 sh -c 'while :; do :; done' || true"
    repository.package("spin", phases={"build": f"{busy} & {busy}; wait"}, limits={"cpu": 0.5}).commit()
    view = vm.wait(vm.start(copied_in(vm, repository)))
    spin = named(view, "spin")
    assert spin.state == "success"
    assert spin.duration_s is not None
    assert 2 < vm.record(spin.build_id).resources.cpu_s < 0.6 * spin.duration_s


@pytest.mark.parametrize("backend", ["bwrap", "plain"])
@pytest.mark.parametrize("end", ["success", "cancelled"])
def test_what_a_build_put_into_the_background_ends_with_it(
    vm: Guest, repository: RecipeRepository, backend: str, end: str
) -> None:
    vm.configure(f'[sandbox]\nbackend = "{backend}"\n')
    vm.run("systemctl restart buildd")
    hidden = "setsid env -i setsid sleep 3217 </dev/null >/dev/null 2>&1 &"
    stay = "sleep 600" if end == "cancelled" else "true"
    repository.package("daemonise", phases={"build": f"( {hidden} )\n{stay}"}).commit()
    number = vm.start(copied_in(vm, repository))
    if end == "cancelled":
        vm.until("pgrep -f '^sleep 3217'")
        vm.call("run.cancel", {"run": str(number)})
    assert states(vm.wait(number)) == {"daemonise": end}
    assert vm.run("pgrep -f '^sleep 3217'", check=False).out == ""


@pytest.mark.parametrize("backend", ["bwrap", "plain"])
def test_nothing_is_left_of_builds_whose_daemon_is_killed(
    vm: Guest, repository: RecipeRepository, backend: str
) -> None:
    vm.configure(f'[sandbox]\nbackend = "{backend}"\n')
    vm.run("systemctl restart buildd")
    hidden = "setsid env -i setsid sleep 3218 </dev/null >/dev/null 2>&1 &"
    repository.package("daemonise", phases={"build": f"( {hidden} )\nsleep 600"}).commit()
    number = vm.start(copied_in(vm, repository))
    vm.until("pgrep -f '^sleep 3218'")
    pid = vm.pid

    vm.run(f"kill -KILL {pid}")

    vm.until_started(after=pid)
    vm.call("run.cancel", {"run": str(number)})
    assert vm.wait(number).state == "cancelled"
