"""buildd.service under a real systemd: its life, its watchdog, its socket, its log, its user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import RecipeRepository, named

from vm.guest import Guest, copied_in
from vm.image import NOBODY_SPECIAL, SOMEBODY

SLOW_START = "[Service]\nExecStartPre=/bin/sleep 5\n"


def test_it_is_up_after_the_boot_and_says_how_builds_run(vm: Guest) -> None:
    assert vm.unit("StatusText") == "ready, builds run in bwrap"
    shown = vm.run("systemctl status buildd").out
    assert "Active: active (running)" in shown
    assert 'Status: "ready, builds run in bwrap"' in shown
    assert vm.buildctl("status", user=NOBODY_SPECIAL).out.startswith("buildd")
    assert vm.buildctl("doctor", check=False).status == 0


def test_systemctl_stops_starts_and_restarts_it(vm: Guest) -> None:
    vm.run("systemctl stop buildd.socket buildd.service")
    assert (vm.unit("ActiveState"), vm.unit("Result"), vm.unit("ExecMainStatus")) == ("inactive", "success", "0")
    assert vm.buildctl("status", check=False).status == 69
    assert vm.run("pgrep -u buildd", check=False).out == ""

    vm.run("systemctl start buildd.socket buildd.service")
    first = vm.pid
    assert vm.call("daemon.status")["pid"] == first

    vm.run("systemctl restart buildd")
    assert vm.call("daemon.status")["pid"] == vm.pid != first


@pytest.mark.logs("the configuration was not reloaded")
def test_systemctl_reload_takes_the_new_configuration_and_keeps_the_process(vm: Guest) -> None:
    pid = vm.pid
    vm.configure("[workers]\nmax_concurrent_builds = 7\n")
    vm.run("systemctl reload buildd")
    vm.until("buildctl status --json | grep -q '\"total\": *7'")

    vm.configure("[workers]\nmax_concurrent_builds = 0\n")
    vm.run("systemctl reload buildd")
    vm.until_logged("the configuration was not reloaded")

    status = vm.call("daemon.status")
    assert (status["workers"]["total"], status["pid"]) == (7, pid)
    assert vm.unit("ActiveState") == "active"
    assert vm.unit("StatusText") == "ready, builds run in bwrap"


@pytest.mark.logs("max_concurrent_builds", "it must be at least 1")
def test_it_fails_to_start_with_the_reason_as_an_error_in_the_journal(vm: Guest) -> None:
    vm.run("systemctl stop buildd.socket buildd.service")
    vm.configure("[workers]\nmax_concurrent_builds = 0\n")
    assert vm.run("systemctl start buildd", check=False).status != 0
    vm.run("systemctl stop buildd.socket buildd.service")
    assert any("workers.max_concurrent_builds" in line for line in vm.faults())


def test_a_killed_daemon_is_started_again_and_goes_on_with_its_runs(vm: Guest, repository: RecipeRepository) -> None:
    repository.packages(["a", "b"], phases={"build": "echo here; sleep 15"}).commit()
    number = vm.start(copied_in(vm, repository))
    vm.until(f"""[ "$(sqlite3 -readonly /var/lib/buildd/buildd.db "SELECT count(*) FROM builds
        JOIN runs ON builds.run = runs.id WHERE number = {number} AND builds.state = 'running'")" = 2 ]""")
    pid = vm.pid

    vm.run("systemctl kill -s KILL buildd")

    assert vm.until_started(after=pid) != pid
    assert vm.wait(number).state == "completed"


def test_a_daemon_that_stands_still_is_ended_by_the_watchdog_and_started_again(vm: Guest) -> None:
    vm.drop_in("[Service]\nWatchdogSec=20\n")
    vm.run("systemctl restart buildd")
    pid = vm.pid

    vm.run(f"kill -STOP {pid}")

    vm.until_started(after=pid)
    journal = "\n".join(vm.logged())
    assert "Watchdog timeout" in journal
    assert "most recent call first" in journal, "it does not say what it was doing"
    assert vm.call("daemon.status")["pid"] == vm.pid


def test_who_connects_while_it_restarts_gets_the_answer_of_the_next_daemon(vm: Guest) -> None:
    vm.drop_in(SLOW_START)
    before = vm.pid
    vm.run("systemctl restart --no-block buildd")
    vm.until('[ "$(systemctl show -P SubState buildd)" = start-pre ]')

    answer = json.loads(vm.buildctl("status", "--json", "--timeout", "100s", user=NOBODY_SPECIAL).out)

    assert answer["pid"] == vm.pid != before


def test_a_connection_starts_a_stopped_service(vm: Guest) -> None:
    vm.run("systemctl stop buildd.service")
    assert vm.pid == 0
    assert vm.call("daemon.status")["pid"] == vm.pid != 0


def test_members_of_the_group_control_it_and_others_look(vm: Guest, repository: RecipeRepository) -> None:
    repository.package("mine", phases={"build": "true"}).commit()
    target = copied_in(vm, repository)
    assert vm.buildctl("start", target, user=NOBODY_SPECIAL, check=False).status == 5
    assert vm.buildctl("start", target, "--wait", user=SOMEBODY, check=False).status == 0
    assert "mine" in vm.buildctl("history", "mine", user=NOBODY_SPECIAL).out


def test_builds_are_processes_of_an_unprivileged_user(vm: Guest, repository: RecipeRepository) -> None:
    privileges = "grep -E '^(Uid|Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status"
    repository.package("who", phases={"build": f"{privileges}; sleep 10"}).commit()
    number = vm.start(copied_in(vm, repository))
    vm.until("pgrep -x sleep")
    users = vm.run(
        "ps -o user= -p $(cat $(find /sys/fs/cgroup$(systemctl show -P ControlGroup buildd) -name cgroup.procs) |"
        " paste -sd,) | sort -u"
    ).out.split()
    assert users == ["buildd"]

    view = vm.wait(number)
    status = dict(line.split(":", 1) for line in vm.build_log(named(view, "who").build_id).splitlines() if ":" in line)
    uids = status["Uid"].split()
    assert "0" not in uids
    assert status["NoNewPrivs"].strip() == "1"
    assert {status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0000000000000000"}


def test_its_exposure_is_at_most_four(vm: Guest) -> None:
    judged = vm.run("systemd-analyze security --no-pager --threshold=40 buildd", check=False)
    assert judged.status == 0, judged.out[-300:]


def test_entries_of_the_journal_have_priorities_and_say_which_run_and_build(
    vm: Guest, repository: RecipeRepository
) -> None:
    vm.configure('[daemon]\nlog_level = "debug"\n')
    vm.run("systemctl reload buildd")
    vm.until_logged("configuration result=reloaded")
    repository.package("good", phases={"build": "true"}).package("bad", phases={"build": "exit 3"}).commit()
    view = vm.wait(vm.start(copied_in(vm, repository)))

    def entries(*matches: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in vm.logged(*matches, form="json")]

    (ended,) = entries(f"BUILDD_RUN={view.id}", "BUILDD_EVENT=run ended")
    assert ended["PRIORITY"] == "6"
    assert ended["SYSLOG_IDENTIFIER"] == "buildd"
    assert ended["BUILDD_STATE"] == view.state
    assert ended["MESSAGE"].startswith("run ended ")
    for package in view.packages:
        told = entries(f"BUILDD_BUILD={package.build_id}")
        assert {(entry["BUILDD_PACKAGE"], entry["BUILDD_RUN"]) for entry in told} == {(package.name, view.id)}
        assert "7" in {entry["PRIORITY"] for entry in told}


def test_the_units_are_what_readme_installs(vm: Guest) -> None:
    for unit in ("buildd.service", "buildd.socket"):
        assert vm.run(f"systemctl is-enabled {unit}").out.strip() == "enabled"
    units = Path(__file__).parents[2] / "systemd"
    assert vm.run("cat /etc/systemd/system/buildd.service").out == (units / "buildd.service").read_text()
