"""The dependency graph: order, waves, cycles, closures, urgency."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, strategies as st

from buildd.errors import InvalidInput
from buildd.planner.graph import closure, dependents, topological_order, urgency, waves

Graph = dict[str, list[str]]


@st.composite
def acyclic(draw: st.DrawFn) -> Graph:
    """A graph whose edges lead from later names to earlier ones, in any order of insertion."""
    names = draw(st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=12))
    graph = {
        name: draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        for index, name in enumerate(names)
    }
    return {name: graph[name] for name in draw(st.permutations(names))}


@st.composite
def any_graph(draw: st.DrawFn) -> Graph:
    names = draw(st.lists(st.text("abcdefgh", min_size=1, max_size=2), unique=True, min_size=1, max_size=8))
    return {name: draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) for name in names}


def is_cyclic(graph: Graph) -> bool:
    """By the definition: some package needs itself, directly or not."""
    return any(name in closure(graph, graph[name]) for name in graph)


@given(acyclic())
def test_every_dependency_comes_before_what_needs_it(graph: Graph) -> None:
    order = topological_order(graph)
    assert sorted(order) == sorted(graph)
    place = {name: index for index, name in enumerate(order)}
    assert all(place[dependency] < place[name] for name in graph for dependency in graph[name])


@given(acyclic(), st.randoms())
def test_the_order_does_not_depend_on_how_the_graph_was_made(graph: Graph, rng: random.Random) -> None:
    names = list(graph)
    rng.shuffle(names)
    again = {name: rng.sample(graph[name], len(graph[name])) for name in names}
    assert topological_order(again) == topological_order(graph)


@given(any_graph())
def test_a_cycle_is_found_exactly_when_there_is_one_and_named_in_the_direction_a_needs_b(graph: Graph) -> None:
    if not is_cyclic(graph):
        topological_order(graph)
        return
    with pytest.raises(InvalidInput) as caught:
        topological_order(graph)
    prefix, _, cycle = caught.value.message.partition(": ")
    assert prefix == "dependency cycle"
    names = cycle.split(" -> ")
    assert len(names) >= 2
    assert names[0] == names[-1]
    assert all(needed in graph[name] for name, needed in itertools.pairwise(names))
    assert caught.value.hint


def test_a_package_that_needs_itself_is_a_cycle() -> None:
    with pytest.raises(InvalidInput, match=re.escape("dependency cycle: a -> a")):
        topological_order({"a": ["a"]})


def test_a_cycle_of_three_reads_as_its_dependencies_do() -> None:
    with pytest.raises(InvalidInput) as caught:
        topological_order({"app": ["lib"], "lib": ["tool"], "tool": ["app"]})
    assert caught.value.message.removeprefix("dependency cycle: ") in {
        "app -> lib -> tool -> app",
        "lib -> tool -> app -> lib",
        "tool -> app -> lib -> tool",
    }


@given(acyclic())
def test_the_wave_of_a_package_is_the_length_of_the_longest_chain_below_it(graph: Graph) -> None:
    def longest(name: str) -> int:
        return 1 + max((longest(dependency) for dependency in graph[name]), default=0)

    assert waves(graph, topological_order(graph)) == {name: longest(name) for name in graph}


@given(any_graph(), st.data())
def test_the_closure_is_everything_that_can_be_reached(graph: Graph, data: st.DataObject) -> None:
    start = data.draw(st.lists(st.sampled_from(sorted(graph)), max_size=3))
    found = closure(graph, start)
    assert found >= set(start)
    assert all(dependency in found for name in found for dependency in graph[name]), "closed"
    assert all(name in start or any(name in graph[other] for other in found) for name in found), "and no larger"


@given(any_graph())
def test_dependents_are_the_graph_turned_round(graph: Graph) -> None:
    turned = dependents(graph)
    assert turned.keys() == graph.keys()
    assert {(a, b) for a in graph for b in graph[a]} == {(a, b) for b in turned for a in turned[b]}


@given(acyclic(), st.data())
def test_urgency_is_the_longest_chain_from_a_package_to_the_end(graph: Graph, data: st.DataObject) -> None:
    durations = {name: data.draw(st.integers(0, 100)) for name in graph}
    turned = dependents(graph)

    def longest(name: str) -> float:
        return durations[name] + max((longest(other) for other in turned[name]), default=0)

    assert urgency(graph, topological_order(graph), durations) == {name: longest(name) for name in graph}


def test_a_package_without_a_record_counts_as_the_median_of_the_others() -> None:
    graph: Graph = {"a": [], "b": [], "c": [], "new": []}
    assert urgency(graph, list(graph), {"a": 1.0, "b": 5.0, "c": 100.0})["new"] == 5.0
    assert urgency(graph, list(graph), {}) == dict.fromkeys(graph, 1.0)


def test_a_chain_as_long_as_the_largest_plan_needs_no_recursion() -> None:
    graph: Graph = {"0": []} | {str(n): [str(n - 1)] for n in range(1, 20_000)}
    order = topological_order(graph)
    assert waves(graph, order)["19999"] == 20_000
    assert urgency(graph, order, {})["0"] == 20_000
    assert len(closure(graph, ["19999"])) == 20_000
