"""What it costs to build 500 packages that do nothing: `buildctl start --wait` against xargs running bwrap.

The daemon starts from nothing each time: an empty state directory, every build recorded, logged, its output
stored, all of it durable. The peer runs the very command line of the sandbox with the very driver and phases, and
does nothing else: no discovery, no records, no log, no directories.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from bench.daemon import BenchError, Daemon
from bench.figures import Figure, Options, Report, Sample
from bench.packages import Recipe, write_repository
from bench.results import show
from buildd.config import SandboxConfig
from buildd.execute.sandbox import SYSTEM_PATH
from buildd.execute.sandbox.bwrap import BwrapSandbox
from buildd.execute.session import DRIVER
from buildd.model import PHASES

PACKAGES = 500
_TRUE = {"configure": "true", "build": "true", "check": "true", "stage": "true"}
_TARGETS = {"tmpfs": 2.0, "disk": 4.0}


def recipes(count: int) -> list[Recipe]:
    """Independent packages each of whose phases is `true`."""
    return [Recipe(name=f"p{number:03}", phases=_TRUE) for number in range(1, count + 1)]


class Cost(Struct, frozen=True, kw_only=True):
    """Seconds that building all packages took."""

    wall: float
    cpu: float
    """User and system time of everything that took part, the client included."""
    own: float = 0.0
    """The daemon's own share of `cpu`: its process without those it started."""


def run(options: Options) -> Report:
    repetitions, packages = options.choose(5, 1), options.choose(PACKAGES, 50)
    cores = len(os.sched_getaffinity(0))
    ours: dict[str, list[Cost]] = {place: [] for place in _TARGETS}
    peer: dict[str, list[Cost]] = {place: [] for place in _TARGETS}
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        home = Path(temporary)
        repository = write_repository(home / "repository", recipes(packages))
        for repetition in range(repetitions):
            for place in _TARGETS:
                theirs = _peer(home / "peer", options, place, packages, cores)
                mine = _ours(home / "daemon", options, place, repository, packages)
                peer[place].append(theirs)
                ours[place].append(mine)
                show(f"  {repetition + 1}/{repetitions} {place}: {mine.wall:.2f} s, xargs {theirs.wall:.2f} s")
    figures: list[Figure] = []
    for place, most in _TARGETS.items():
        figures += _figures(f"{packages} builds on {place}", ours[place], peer[place], most)
    own = Sample(tuple(cost.own / packages * 1e6 for costs in ours.values() for cost in costs))
    return Report(
        about=f"{packages} independent packages whose phases {', '.join(_TRUE)} are `true`: the whole "
        f"`buildctl start --wait` on a fresh daemon with {cores} workers, work directories on tmpfs and on disk and "
        f"everything else on disk, against `seq {packages} | xargs -P{cores}` running the sandbox's own command line.",
        figures=tuple(figures),
        notes=(
            "CPU time counts everything that took part, the client included; it suffers less from other load.",
            f"The daemon's own process takes {own.text('µs')} of CPU for a build.",
        ),
    )


def _figures(name: str, ours: list[Cost], peer: list[Cost], most: float) -> list[Figure]:
    return [
        Figure(
            name=name,
            unit="s",
            ours=Sample(tuple(cost.wall for cost in ours)),
            peer=Sample(tuple(cost.wall for cost in peer)),
            most_ratio=most,
        ),
        Figure(
            name=f"{name}, CPU time",
            unit="s",
            ours=Sample(tuple(cost.cpu for cost in ours)),
            peer=Sample(tuple(cost.cpu for cost in peer)),
        ),
    ]


def _ours(directory: Path, options: Options, place: str, repository: Path, packages: int) -> Cost:
    work = Path(tempfile.mkdtemp(prefix="buildd-bench-", dir=options.tmpfs)) if place == "tmpfs" else None
    try:
        with Daemon(directory, work=work) as daemon:
            own, below, client = daemon.cpu(), daemon.cpu_of_children(), _cpu_of_children()
            wall = daemon.timed("start", str(repository), "--wait")
            client = _cpu_of_children() - client
            own, below = daemon.cpu() - own, daemon.cpu_of_children() - below
            daemon.check_run(packages)
        return Cost(wall=wall, cpu=own + below + client, own=own)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if work is not None:
            shutil.rmtree(work)


def _peer(directory: Path, options: Options, place: str, packages: int, cores: int) -> Cost:
    directory.mkdir()
    work = Path(tempfile.mkdtemp(prefix="buildd-bench-", dir=options.tmpfs if place == "tmpfs" else directory))
    try:
        for name in ("src", "build", "dest", "home", "tmp"):
            (work / name).mkdir()
        numbers = "".join(f"{number}\n" for number in range(packages)).encode()
        command = ["xargs", f"-P{cores}", "-I<number>", *sandboxed(directory, work)]
        cpu, began = _cpu_of_children(), time.perf_counter()
        done = subprocess.run(command, input=numbers, stdout=subprocess.DEVNULL, env={"PATH": SYSTEM_PATH}, timeout=600)
        wall = time.perf_counter() - began
        if done.returncode != 0:
            raise BenchError(f"the peer failed: xargs ended with {done.returncode}")
        return Cost(wall=wall, cpu=_cpu_of_children() - cpu)
    finally:
        shutil.rmtree(work)
        shutil.rmtree(directory)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def sandboxed(state: Path, work: Path) -> list[str]:
    """The command line with which a session of the daemon runs the phases; its reports go nowhere."""
    program = shutil.which("bwrap")
    if program is None:
        raise BenchError("bwrap is not installed, and without it there is nothing to compare with")
    driver = DRIVER.replace("exec 3>&0", "exec 3>/dev/null")
    if driver == DRIVER:
        raise BenchError("the driver of sessions has changed; bench/dispatch.py has to follow")
    arguments = [part for phase in PHASES if phase in _TRUE for part in (phase, _TRUE[phase])]
    sandbox = BwrapSandbox(program, prefix=SandboxConfig().prefix, state_dir=state)
    return sandbox.argv(["/bin/sh", "-c", driver, "buildd", *arguments], work=work, prefix=None, network=False)
