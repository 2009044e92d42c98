"""Starts that have little or nothing to do: `buildctl start --wait` against git status, ninja and make.

A run in which all packages are up to date is still a run: accepted on disk, planned, every package looked up, the
end of it recorded. The peers only look, and record nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.daemon import Daemon
from bench.edges import MAKE, NINJA, write_edges
from bench.figures import Figure, Options, Report, Sample
from bench.monorepo import SOURCE, directory_of, draw_packages, last_leaf, source_text, write_monorepo
from bench.packages import Recipe, commit_file
from bench.results import show
from bench.starts import build_all, check_latest, client_command, in_turns, peer_command, start_command, timed
from buildd.model import BuildRecord

SMALL = 1_000
LARGE = 10_000
_TARGETS_SMALL = {"buildctl status": 1.5}
_TARGETS_LARGE = {"git status": 0.7, "ninja": 1.0}
_CHANGE_RATIO = 1.2
_MEMORY_MB = 150.0
_WARM_UPS = 10
"""Starts with nothing to do before those that are timed."""
_OURS = "buildctl start"


class _Site(Struct, frozen=True, kw_only=True):
    """A repository, and a daemon that has built it or is to build it."""

    home: Path
    repository: Path
    recipes: Sequence[Recipe]
    daemon: Daemon
    settle: float
    """Seconds to wait before the memory is looked at."""

    @property
    def title(self) -> str:
        return f"{len(self.recipes):,} packages"

    def start(self, *, built: int = 0) -> float:
        """Seconds of a start that builds so many packages and skips all others. Raises BenchError."""
        took = timed(start_command(self.daemon, self.repository))
        check_latest(self.daemon, success=built, skipped=len(self.recipes) - built)
        return took

    def memory(self) -> float:
        """Megabytes that the daemon holds after a rest."""
        time.sleep(self.settle)
        return self.daemon.memory().rss / 1e6


def run(options: Options) -> Report:
    rounds, restarts = options.choose(20, 2), options.choose(5, 1)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        small = _make_site(Path(temporary) / "small", options, options.choose(SMALL, 20))
        with small.daemon:
            figures += _first_build(small)
            figures += _nothing_to_do(small, _TARGETS_SMALL, rounds)
        large = _make_site(Path(temporary) / "large", options, options.choose(LARGE, 60))
        with large.daemon:
            figures += _first_build(large)
            figures += _nothing_to_do(large, _TARGETS_LARGE, rounds)
            figures += _one_change(large, rounds)
        figures += _restarts(large, restarts)
    return Report(
        about="Generated packages of two files each, with 1.4 direct dependencies and 10 in all (see monorepo.py), in "
        "a git repository on disk, built before by the same daemon. Nothing to do: the whole `buildctl start REPO "
        "--wait` that skips every package, against `git status` in the repository's work tree with a warm index, "
        "`ninja` and `make -rR` with an up-to-date edge for each package, and `buildctl status`; each once in a round. "
        "One change: a new commit changes the source of one package that no other depends on; the peer is a start "
        "with nothing to do, in the same round, plus that build as the daemon has recorded it, from its beginning to "
        "its end.",
        figures=tuple(figures),
        notes=(
            f"Memory is the RSS of the daemon's process {large.settle:g} s later (1 MB = 1,000,000 bytes).",
            "The peer of the first start after a restart is the start that follows it.",
        ),
    )


def _make_site(home: Path, options: Options, packages: int) -> _Site:
    recipes = draw_packages(packages)
    return _Site(
        home=home,
        repository=write_monorepo(home / "repository", recipes),
        recipes=recipes,
        daemon=Daemon(home / "daemon"),
        settle=0.5 if options.quick else 5.0,
    )


def _first_build(site: _Site) -> list[Figure]:
    """Build everything once; and the memory then and after some starts with nothing to do."""
    show(f"  {site.title}: building them once; 10,000 take minutes")
    took = build_all(site.daemon, site.repository, len(site.recipes))
    after_build = site.memory()
    for _ in range(_WARM_UPS):
        site.start()
    after_starts = site.memory()
    show(f"  {site.title}: built in {took:.1f} s; memory {after_build:.1f} MB, after starts {after_starts:.1f} MB")
    return [
        Figure(name=f"{site.title}, first start", unit="s", ours=Sample((took,))),
        _megabytes(f"{site.title}, memory after it", after_build),
        _megabytes(f"{site.title}, memory after {_WARM_UPS} starts more", after_starts),
    ]


def _nothing_to_do(site: _Site, targets: Mapping[str, float], rounds: int) -> list[Figure]:
    edges = write_edges(site.home / "edges", site.repository, site.recipes)
    commands = {
        _OURS: start_command(site.daemon, site.repository),
        "git status": peer_command(site.repository, "git", "status"),
        "ninja": peer_command(edges, *NINJA),
        "make -rR": peer_command(edges, *MAKE),
        "buildctl status": client_command(site.daemon, "status"),
    }
    in_turns(commands, 0)  # whatever any of them keeps for next time is kept now
    taken: list[dict[str, float]] = []
    for number in range(rounds):
        taken.append(in_turns(commands, number))
        check_latest(site.daemon, skipped=len(site.recipes))
    last = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in taken[-1].items())
    show(f"  {site.title}, nothing to do: {last}")
    ours = _milliseconds(seconds[_OURS] for seconds in taken)
    return [
        Figure(
            name=f"{site.title}, nothing to do, {name}",
            unit="ms",
            ours=ours,
            peer=_milliseconds(seconds[name] for seconds in taken),
            most_ratio=targets.get(name),
        )
        for name in commands
        if name != _OURS
    ]


def _one_change(site: _Site, rounds: int) -> list[Figure]:
    leaf = last_leaf(site.recipes)
    changes: list[float] = []
    floors: list[float] = []
    builds: list[float] = []
    for number in range(rounds):
        nothing = site.start()
        commit_file(site.repository, f"{directory_of(leaf)}/{SOURCE}", source_text(leaf, number + 1))
        changes.append(site.start(built=1))
        builds.append(_seconds_of_last_build(site.daemon, leaf.name))
        floors.append(nothing + builds[-1])
    show(f"  {site.title}, one change: {changes[-1] * 1e3:.0f} ms, nothing and that build {floors[-1] * 1e3:.0f} ms")
    return [
        Figure(
            name=f"{site.title}, one change",
            unit="ms",
            ours=_milliseconds(changes),
            peer=_milliseconds(floors),
            most_ratio=_CHANGE_RATIO,
        ),
        Figure(name="that build", unit="ms", ours=_milliseconds(builds)),
        _megabytes(f"{site.title}, memory after all of this", site.memory()),
    ]


def _seconds_of_last_build(daemon: Daemon, package: str) -> float:
    answer = json.loads(daemon.ctl("call", "build.list", json.dumps({"package": package, "limit": 1})))
    build = msgspec.convert(answer["builds"][0], BuildRecord)
    assert build.completed_at is not None
    return build.completed_at - build.started_at


def _restarts(site: _Site, restarts: int) -> list[Figure]:
    """The first start of each of some later lives of the daemon."""
    ready: list[float] = []
    first: list[float] = []
    second: list[float] = []
    memory: list[float] = []
    for _ in range(restarts):
        with site.daemon:
            ready.append(site.daemon.started_in_s)
            first.append(site.start())
            memory.append(site.memory())
            second.append(site.start())
    show(f"  {site.title}, after a restart: {first[-1] * 1e3:.0f} ms, then {second[-1] * 1e3:.0f} ms")
    return [
        Figure(name=f"{site.title}, restart until ready", unit="ms", ours=_milliseconds(ready)),
        Figure(
            name=f"{site.title}, first start after a restart",
            unit="ms",
            ours=_milliseconds(first),
            peer=_milliseconds(second),
        ),
        _megabytes(f"{site.title}, memory after that first start", *memory),
    ]


def _milliseconds(seconds: Iterable[float]) -> Sample:
    return Sample(tuple(value * 1e3 for value in seconds))


def _megabytes(name: str, *values: float) -> Figure:
    return Figure(name=name, unit="MB", ours=Sample(values), most=_MEMORY_MB)
