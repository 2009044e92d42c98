"""The dependency graph: order, waves, cycles, closures and critical paths.

A graph maps each package's name to the names it depends on; every name that is depended on is a key. Results
are deterministic: they depend on the graph alone, not on the order it was built in.
"""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Iterable, Mapping
from statistics import median

from buildd.errors import InvalidInput

Graph = Mapping[str, Collection[str]]


def topological_order(graph: Graph) -> list[str]:
    """Names with every dependency before its dependents. Raises InvalidInput that names a cycle."""
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for name in sorted(graph):
        sorter.add(name, *sorted(graph[name]))
    try:
        return list(sorter.static_order())
    except graphlib.CycleError as error:
        # graphlib lists each package before the one that needs it; people read "a needs b"
        cycle = " -> ".join(reversed(error.args[1]))
        raise InvalidInput(f"dependency cycle: {cycle}", hint="remove one of these dependencies") from None


def waves(graph: Graph, order: Iterable[str]) -> dict[str, int]:
    """The wave of each package: 1 without dependencies, else one more than its latest dependency's."""
    result: dict[str, int] = {}
    for name in order:
        result[name] = 1 + max((result[d] for d in graph[name]), default=0)
    return result


def closure(graph: Graph, names: Iterable[str]) -> set[str]:
    """`names` and everything they depend on, directly or not."""
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(graph[name])
    return found


def dependents(graph: Graph) -> dict[str, list[str]]:
    """The graph turned round: who depends directly on each package."""
    result: dict[str, list[str]] = {name: [] for name in graph}
    for name in sorted(graph):
        for dependency in graph[name]:
            result[dependency].append(name)
    return result


def urgency(graph: Graph, order: Iterable[str], durations: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the longest chain that starts with each package: itself, then what waits for it.

    Building the highest first is critical-path list scheduling. `durations` are recorded ones; a package
    without a record counts as the median of those that have one, or 1 s when none has.
    """
    unknown = median(durations.values()) if durations else 1.0
    result: dict[str, float] = {}
    behind = dependents(graph)
    for name in reversed(list(order)):
        own = durations.get(name, unknown)
        result[name] = own + max((result[d] for d in behind[name]), default=0.0)
    return result
