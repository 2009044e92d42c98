"""Whole commands as users run them, in turns, and what the runs that they started did.

Every command's standard output goes to /dev/null. Peers run without the user's configuration, and the client with
its bytecode, as where it is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from bench.daemon import CTL_S, ROOT, BenchError, Daemon
from bench.packages import GIT_ENVIRONMENT
from bench.processes import start
from bench.results import show

_CLIENT_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
_PROGRESS_S = 10.0
_FIRST_BUILD_S = 3600.0


class Command(Struct, frozen=True, kw_only=True):
    argv: Sequence[str]
    directory: Path
    environment: Mapping[str, str]


def client_command(daemon: Daemon, *arguments: str) -> Command:
    return Command(argv=(*daemon.client, *arguments), directory=ROOT, environment=_CLIENT_ENVIRONMENT)


def start_command(daemon: Daemon, repository: Path, *options: str) -> Command:
    return client_command(daemon, "start", str(repository), "--wait", *options)


def peer_command(directory: Path, *argv: str) -> Command:
    return Command(argv=argv, directory=directory, environment=GIT_ENVIRONMENT)


def timed(command: Command) -> float:
    """Seconds that the command takes. Raises BenchError when it fails."""
    began = time.perf_counter()
    ran = subprocess.run(
        command.argv, cwd=command.directory, env=command.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=CTL_S,
    )  # fmt: skip
    took = time.perf_counter() - began
    if ran.returncode != 0:
        raise BenchError(f"{' '.join(command.argv)} ended with {ran.returncode}:\n{ran.stderr[-1000:]}")
    return took


def in_turns(commands: Mapping[str, Command], number: int) -> dict[str, float]:
    """Seconds of each command in round `number`; every other round goes backwards, so that none has a better place."""
    names = list(commands)
    return {name: timed(commands[name]) for name in (names if number % 2 == 0 else names[::-1])}


def build_all(daemon: Daemon, repository: Path, packages: int) -> float:
    """Seconds of a first start, in which every package is built; tells how far it is. Raises BenchError."""
    began = time.perf_counter()
    command = start_command(daemon, repository, "--quiet")
    process = start(
        command.argv, cwd=command.directory, env=command.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not _has_ended(process):
            if time.perf_counter() - began > _FIRST_BUILD_S:
                raise BenchError(f"{packages:,} packages are not built within {_FIRST_BUILD_S:g} s")
            show(f"    {latest_stats(daemon)['success']:,} of {packages:,} packages are built")
        took = time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
    check_latest(daemon, success=packages)
    return took


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process ends while one waits for it a little."""
    try:
        process.wait(_PROGRESS_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def latest_stats(daemon: Daemon) -> dict[str, int]:
    """How many packages the last run has in each state. The packages themselves are not asked for: there are many."""
    answer = json.loads(daemon.ctl("call", "run.status", '{"run": "latest", "packages": false}'))
    stats: dict[str, int] = answer["stats"]
    return stats


def check_latest(daemon: Daemon, **expected: int) -> None:
    """Make sure that the last run has so many packages in each state, and no others. Raises BenchError."""
    stats = {state: count for state, count in latest_stats(daemon).items() if state != "total" and count}
    if stats != {state: count for state, count in expected.items() if count}:
        raise BenchError(f"the run should have been {expected}, and was {stats}")
