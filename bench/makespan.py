"""How near a run comes to the shortest possible: real dependency graphs, their packages replaced by `sleep`.

The graphs are those of 300 source packages each, read from Debian 12's package index (build dependencies of the
GNOME, KDE and ROS sets). Durations are log-normal, heavy-tailed like those of real packages, from a fixed seed.
No schedule on P workers is shorter than max(critical path, work / P); what the daemon adds to each build counts
as delay like everything else. On these graphs the critical path is the bound, and a schedule in the order of the
remaining critical path that costs nothing reaches it: with history, all that is above the bound is the daemon's
cost of a start, and of each build on that path, a sandbox's included. Builds take less than a second on average here,
a small part of what they take in truth, which makes that cost weigh more.
"""

from __future__ import annotations

import graphlib
import json
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.daemon import Daemon
from bench.figures import Figure, Options, Report, Sample
from bench.packages import Recipe, write_repository
from bench.results import show

WORKERS = 8
SIGMA = 1.25
"""Of the logarithm of a duration: the longest of 300 takes some 40 times the median."""
_TARGETS = {"without history": None, "with history": 1.03}
"""The most that a start may take, as a multiple of the lower bound: of the first and of the second one."""
_SEED = 12
_GRAPHS = Path(__file__).parent / "data" / "dependency-graphs.json"

Graph = Mapping[str, Sequence[str]]


def read_graphs() -> dict[str, dict[str, list[str]]]:
    """`{set: {package: [packages it needs]}}`."""
    graphs: dict[str, dict[str, list[str]]] = json.loads(_GRAPHS.read_text())
    return graphs


def critical_path(graph: Graph, durations: Mapping[str, float]) -> list[str]:
    """The packages of the chain that takes longest, in the order in which they are built."""
    ends: dict[str, float] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        ends[name] = durations[name] + max((ends[needed] for needed in graph[name]), default=0.0)
    path: list[str] = []
    names: Iterable[str] = graph
    while last := max(names, key=ends.__getitem__, default=None):
        path.append(last)
        names = graph[last]
    return path[::-1]


def lower_bound(graph: Graph, durations: Mapping[str, float], workers: int) -> float:
    """Seconds that no schedule of the graph on so many workers can beat."""
    longest = sum(durations[name] for name in critical_path(graph, durations))
    return max(longest, sum(durations.values()) / workers)


def draw_durations(graph: Graph, bound: float, workers: int) -> dict[str, float]:
    """Durations in whole milliseconds with which the lower bound is about `bound` seconds."""
    rng = random.Random(_SEED)
    drawn = {name: rng.lognormvariate(0.0, SIGMA) for name in sorted(graph)}
    scale = bound / lower_bound(graph, drawn, workers)
    return {name: round(value * scale, 3) for name, value in drawn.items()}


def run(options: Options) -> Report:
    bound = 60.0 if not options.quick else 5.0
    graphs = read_graphs()
    if options.quick:
        graphs = dict(list(graphs.items())[:1])
    figures: list[Figure] = []
    notes: list[str] = []
    for name, graph in graphs.items():
        durations = draw_durations(graph, bound, WORKERS)
        least = lower_bound(graph, durations, WORKERS)
        taken = _replay(options, graph, durations)
        for (history, most), took in zip(_TARGETS.items(), taken, strict=True):
            show(f"  {name} {history}: {took:.2f} s, lower bound {least:.2f} s, {took / least:.3f} x")
            figures.append(
                Figure(
                    name=f"{name}, {history}",
                    unit="s",
                    ours=Sample((took,)),
                    peer=Sample((least,)),
                    most_ratio=most,
                )
            )
        steps = len(critical_path(graph, durations))
        above = (taken[-1] - least) * 1e3
        notes.append(f"{name}, with history: {above:.0f} ms above the bound; the critical path has {steps} builds.")
    return Report(
        about=f"300 packages of each graph as `sleep` recipes on {WORKERS} workers, the whole `buildctl start --wait`; "
        "the peer is the lower bound max(critical path, work / workers). With history is the same again with "
        f"`--force` in the same daemon. Durations are log-normal (sigma {SIGMA}, seed {_SEED}).",
        figures=tuple(figures),
        notes=tuple(notes),
    )


def _replay(options: Options, graph: Graph, durations: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of a first run, and of a second that knows the durations of the first."""
    recipes = [
        Recipe(name=name, phases={"build": f"sleep {durations[name]}"}, depends=tuple(graph[name])) for name in graph
    ]
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        home = Path(temporary)
        repository = write_repository(home / "repository", recipes)
        with Daemon(home / "daemon", settings={"workers.max_concurrent_builds": WORKERS}) as daemon:
            first = daemon.timed("start", str(repository), "--wait")
            daemon.check_run(len(graph))
            second = daemon.timed("start", str(repository), "--wait", "--force")
            daemon.check_run(len(graph))
    return first, second
