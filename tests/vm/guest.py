"""The daemon in the machine, as those see it who are logged in there."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import msgspec
from harness import named

from buildd.model import BuildRecord
from buildd.protocol import RunPackage, RunView
from vm.machine import RUN_S, Machine, Result

CONFIGURATION = "/etc/buildd/buildd.conf"
DATABASE = "/var/lib/buildd/buildd.db"
_DROP_INS = "/run/systemd/system/buildd.service.d"
_LEFTOVERS = """
exec 2>/dev/null
main=$(systemctl show -P MainPID buildd)
group=/sys/fs/cgroup/system.slice/buildd.service
for pid in $(cat $(find $group -name cgroup.procs) /dev/null; pgrep -u buildd); do
    [ "$pid" = "$main" ] || ps -o pid=,user=,args= -p "$pid"
done | grep -v '/buildd/execute/warden.py'
find $group -mindepth 1 -type d -name 'build-*'
cd /var/lib/buildd
find work prefixes -mindepth 1 -maxdepth 1 ! -name '.spare-*'
find artifacts -name '.*.tmp'
find /var/cache/buildd/repos/.incoming -mindepth 1 -maxdepth 1
sqlite3 -readonly buildd.db "SELECT 'running: ' || package || ' ' || id FROM builds WHERE state = 'running'"
"""
"""Prints what is there of builds, or of daemons that are gone: processes, cgroups, directories, records."""


class Guest(Machine):
    started_at = ""
    """When the test began, by the clock of the guest."""

    # --- asking the daemon ----------------------------------------------------------------------------------

    def buildctl(self, *arguments: object, user: str = "root", within: float = RUN_S, check: bool = True) -> Result:
        return self.run(shlex.join(["buildctl", *map(str, arguments)]), user=user, within=within, check=check)

    def call(self, method: str, params: dict[str, Any] | None = None, *, within: float = RUN_S) -> Any:
        """The result of a request, as JSON."""
        return json.loads(self.buildctl("call", method, json.dumps(params or {}), within=within).out)

    def start(self, *targets: str, **options: Any) -> int:
        """Start a run; its number. `options` as in `run.start`."""
        return int(self.call("run.start", {"targets": targets, **options})["number"])

    def run_view(self, number: int) -> RunView:
        return msgspec.convert(self.call("run.status", {"run": str(number)}), RunView)

    def wait(self, number: int, *, within: float = RUN_S) -> RunView:
        """The run once it has ended."""
        deadline = time.monotonic() + within
        while True:  # the daemon answers after a minute at the latest
            answer = self.call("run.wait", {"run": str(number), "timeout": 60})
            if answer["finished"]:
                return msgspec.convert(answer["run"], RunView)
            assert time.monotonic() < deadline, f"run {number} did not end within {within:g} s: {answer['run']}"

    def package(self, number: int, name: str) -> RunPackage:
        return named(self.run_view(number), name)

    def record(self, build: str | None) -> BuildRecord:
        return msgspec.convert(self.call("build.show", {"build": build}), BuildRecord)

    def build_log(self, build: str | None) -> str:
        text: str = self.call("build.log", {"build": build, "offset": 0})["text"]
        return text

    def query(self, sql: str) -> list[str]:
        """The lines that the database answers."""
        return self.run(f"sqlite3 -readonly {DATABASE} {shlex.quote(sql)}").out.splitlines()

    # --- the service ----------------------------------------------------------------------------------------

    def unit(self, name: str) -> str:
        """A property of buildd.service."""
        return self.run(f"systemctl show -P {name} buildd").out.strip()

    @property
    def pid(self) -> int:
        """Of the daemon; 0 when it does not run."""
        return int(self.unit("MainPID"))

    def until_started(self, *, after: int) -> int:
        """Wait until a daemon is ready that has another pid than this one; its pid."""
        self.until(
            f'[ "$(systemctl show -P MainPID buildd)" != {after} ] && [ "$(systemctl is-active buildd)" = active ]'
        )
        return self.pid

    def drop_in(self, text: str) -> None:
        """Settings of buildd.service until the end of the test, used from its next start on."""
        self.write(f"{_DROP_INS}/test.conf", text)
        self.run("systemctl daemon-reload")

    def configure(self, text: str) -> None:
        """The configuration until the end of the test, used from the next start or reload on."""
        self.write(CONFIGURATION, text)

    # --- around a test --------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """An active daemon with no settings of an earlier test, and nothing that was logged before counts."""
        if self.run(f"cat {_DROP_INS}/* {CONFIGURATION} 2>/dev/null", check=False).out:
            self.run(f"rm -rf {_DROP_INS} {CONFIGURATION}; systemctl daemon-reload; systemctl stop buildd")
        self.run("systemctl reset-failed; systemctl start buildd.socket buildd.service")
        self.started_at = self.run("date +%s.%N").out.strip()

    def logged(self, *matches: str, form: str = "cat") -> list[str]:
        """The journal's lines about buildd.service since the test began; arguments as journalctl(1) takes them."""
        selected = f"--since=@{self.started_at} -u buildd" if self.started_at else "-u buildd"
        command = f"journalctl --sync; journalctl {selected} -q --no-pager -o {form} {shlex.join(matches)}"
        return self.run(command, check=False).out.splitlines()

    def until_logged(self, text: str) -> None:
        self.until(f"journalctl --since=@{self.started_at} -u buildd -o cat -q | grep -qF {shlex.quote(text)}")

    def faults(self, *expected: str) -> list[str]:
        """What the daemon logged as an error since the test began, and no regular expression matches."""
        lines = self.logged("-p", "err", "_SYSTEMD_UNIT=buildd.service")
        return [line for line in lines if not any(re.search(pattern, line) for pattern in expected)]

    def leftovers(self, *, within: float = RUN_S) -> str:
        """What is left of builds after so many seconds; nothing, as soon as nothing is."""
        script = f'left() ({_LEFTOVERS})\nwhile out=$(left); [ -n "$out" ]; do echo "$out"; sleep 0.5; done'
        result = self.run(script, within=within, check=False)
        return "" if result.status == 0 else result.out[-2000:]


def copied_in(vm: Guest, repository: object, path: str = "/srv/workspace") -> str:
    """A repository of the host's as a directory in the guest that the daemon can read; the target for a run.

    It is on the disk before this returns.
    """
    source = Path(str(repository))
    vm.run(f"rm -rf {path}")
    vm.copy_in(source, path)
    vm.run(f"chmod -R a+rX {path}; sync")
    return path
