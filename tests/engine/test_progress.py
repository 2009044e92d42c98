"""The packages of a run: whatever happens in whatever order, the states stay consistent and everything ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from buildd.engine.progress import FINAL, PackageRun, Progress
from buildd.engine.uptodate import Settled
from buildd.model import Package
from buildd.planner.graph import closure, waves
from buildd.planner.keys import closure_id, key_parts

UNFINISHED = {"queued", "running"}
DONE = {"success", "skipped"}


def output_of(name: str) -> str:
    return name.encode().hex().rjust(64, "0")


def package_of(name: str, depends: Collection[str]) -> Package:
    return Package(name=name, version="1", path=".", repository="/r", store="/r", tree="0" * 40, depends=tuple(depends))


def closures_of(graph: Mapping[str, Collection[str]], outputs: Mapping[str, str | None]) -> dict[str, str]:
    """The closure id of every package, from the definition."""
    found: dict[str, str] = {}
    for name, depends in graph.items():
        found[name] = closure_id(outputs[name], {d: found[d] for d in depends})
    return found


def progress_of(graph: Mapping[str, Collection[str]], settled: Collection[str] = ()) -> Progress:
    """`graph` in topological order, of which those that are `settled` were up to date from the beginning."""
    open_ = [name for name in graph if name not in settled]
    among = {name: [d for d in graph[name] if d not in settled] for name in open_}
    wave = waves(among, open_)
    closures = closures_of(graph, {name: output_of(name) for name in graph})
    return Progress(
        (PackageRun(package_of(name, graph[name]), tuple(graph[name]), wave[name], 1.0) for name in open_),
        {
            name: Settled(package_of(name, graph[name]), "key", closures[name], output_of(name), "build")
            for name in graph
            if name in settled
        },
    )


class Run(RuleBasedStateMachine):
    """Drives a `Progress` at random beside a model of what has ended, and how."""

    graph: dict[str, list[str]]
    """Of the packages that are not up to date from the beginning."""
    settled: set[str]
    progress: Progress
    ended: dict[str, str]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        names = [f"p{n}" for n in range(data.draw(st.integers(1, 8)))]
        graph = {
            name: data.draw(st.lists(st.sampled_from(names[:index]), unique=True, max_size=3)) if index else []
            for index, name in enumerate(names)
        }
        done = data.draw(st.sets(st.sampled_from(names[:-1]), max_size=3)) if names[:-1] else set()
        self.settled = closure(graph, done)
        self.progress = progress_of(graph, self.settled)
        self.graph = {
            name: [d for d in depends if d not in self.settled]
            for name, depends in graph.items()
            if name not in self.settled
        }
        self.ended = {}

    def names(self, *states: str) -> list[str]:
        return [name for name, package in self.progress.packages.items() if package.state in states]

    def is_ready(self, name: str) -> bool:
        return all(self.ended.get(dependency) in DONE for dependency in self.graph[name])

    def move(self, name: str, state: Any) -> None:
        ready_before = set(self.progress.ready()) | {name}
        ready, blocked = self.progress.move(name, state)
        if state in UNFINISHED:
            assert (ready, blocked) == ([], [])
            return
        self.ended[name] = state
        assert sorted(ready) == sorted(set(self.progress.ready()) - ready_before), "newly ready ones are reported once"
        if state in DONE:
            assert blocked == []
            return
        assert len(blocked) == len(set(blocked))
        behind = {other for other in self.graph if other != name and name in closure(self.graph, [other])}
        assert set(blocked) == behind - self.ended.keys()
        for other in blocked:
            self.ended[other] = "ignored" if state == "ignored" else "blocked"
            assert self.progress.packages[other].reason == "dependency"
            assert self.progress.packages[other].message == f"it needs {name}, which is {state}"

    @precondition(lambda self: self.progress.ready())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.move(data.draw(st.sampled_from(self.progress.ready())), "running")

    @precondition(lambda self: self.names("running"))
    @rule(data=st.data(), state=st.sampled_from(["success", "success", "failed", "cancelled", "queued"]))
    def end(self, data: st.DataObject, state: str) -> None:
        self.move(data.draw(st.sampled_from(self.names("running"))), state)

    @precondition(lambda self: self.progress.ready())
    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        self.move(data.draw(st.sampled_from(self.progress.ready())), "skipped")

    @precondition(lambda self: self.names("queued"))
    @rule(data=st.data(), state=st.sampled_from(["cancelled", "ignored"]))
    def give_up(self, data: st.DataObject, state: str) -> None:
        self.move(data.draw(st.sampled_from(self.names("queued"))), state)

    @precondition(lambda self: [n for n in self.names("queued") if not self.is_ready(n)])
    @rule(data=st.data())
    def start_too_early(self, data: st.DataObject) -> None:
        early = [name for name in self.names("queued") if not self.is_ready(name)]
        with pytest.raises(AssertionError):
            self.progress.move(data.draw(st.sampled_from(early)), "running")

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), state=st.sampled_from(sorted(FINAL | UNFINISHED)))
    def leave_a_final_state(self, data: st.DataObject, state: Any) -> None:
        with pytest.raises(AssertionError):
            self.progress.move(data.draw(st.sampled_from(sorted(self.ended))), state)

    @invariant()
    def counts_add_up(self) -> None:
        stats = self.progress.stats()
        states = [package.state for package in self.progress.packages.values()]
        assert stats.total == self.progress.total == len(self.graph) + len(self.settled)
        for state in (*FINAL, *UNFINISHED):
            assert getattr(stats, state) == states.count(state) + (len(self.settled) if state == "skipped" else 0)

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        for name, package in self.progress.packages.items():
            assert self.ended.get(name, "unfinished") == (package.state if package.state in FINAL else "unfinished")
            if package.state == "running":
                assert self.is_ready(name), "nothing runs before its dependencies are done"
            if package.state == "queued":
                assert all(self.ended.get(d, "success") in DONE for d in self.graph[name]), "what cannot run is blocked"
        assert set(self.progress.ready()) == {name for name in self.names("queued") if self.is_ready(name)}

    @invariant()
    def what_is_needed_is_what_something_waits_for(self) -> None:
        for name in self.graph:
            waiting = [other for other, depends in self.graph.items() if name in depends and other not in self.ended]
            queued = [other for other in waiting if self.progress.packages[other].state == "queued"]
            assert self.progress.needed(name) == bool(queued)

    @invariant()
    def the_wave_is_the_lowest_unfinished_one(self) -> None:
        wave = waves(self.graph, self.graph)
        open_waves = [wave[name] for name in self.graph if name not in self.ended]
        assert self.progress.waves == max(wave.values(), default=0)
        assert self.progress.wave == min(open_waves, default=self.progress.waves)
        assert self.progress.finished == (not open_waves)

    def teardown(self) -> None:
        if not hasattr(self, "progress"):
            return
        for _ in range(2 * len(self.graph)):  # something can always be done, until all is
            if self.progress.finished:
                break
            for name in self.progress.ready():
                self.move(name, "running")
            for name in self.names("running"):
                self.move(name, "success")
        assert self.progress.finished
        assert self.names(*UNFINISHED) == []
        self.counts_add_up()


TestProgress = Run.TestCase
TestProgress.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_the_dependents_of_a_failure_are_blocked_with_its_name_and_the_others_go_on() -> None:
    progress = progress_of({"base": [], "other": [], "lib": ["base"], "app": ["lib", "other"], "tool": ["other"]})
    progress.move("base", "running")
    ready, blocked = progress.move("base", "failed", reason="phase_failed", message="exit status 2")
    assert (ready, sorted(blocked)) == ([], ["app", "lib"])
    assert progress.packages["app"].message == "it needs base, which is failed"
    assert progress.packages["base"].reason == "phase_failed"
    progress.move("other", "running")
    assert progress.move("other", "success") == (["tool"], [])


def test_an_interrupted_build_is_ready_again() -> None:
    progress = progress_of({"a": []})
    progress.move("a", "running")
    progress.move("a", "queued", reason="interrupted")
    assert progress.ready() == ["a"]
    assert not progress.finished


def test_a_run_without_packages_is_finished() -> None:
    progress = progress_of({})
    assert progress.finished
    assert (progress.waves, progress.wave, progress.stats().total) == (0, 0, 0)


# --- packages that were up to date from the beginning -----------------------------------------------------

CHAIN = {"base": [], "lib": ["base"], "app": ["lib", "base"], "other": []}


def succeed(progress: Progress, name: str, state: Any = "success", output: str | None = "") -> None:
    """Bring a package to a good end, as the worker pool does."""
    package = progress.packages[name]
    package.parts = key_parts(
        package.package, environment="e", architecture="x86_64", dependencies=progress.closures(name)
    )
    if state == "success":
        progress.move(name, "running")
    package.output_id = output_of(name) if output == "" else output
    progress.move(name, state)


def test_what_was_up_to_date_counts_as_skipped_and_is_waited_for_by_nobody() -> None:
    progress = progress_of(CHAIN, {"base", "other"})
    assert progress.ready() == ["lib"]
    assert progress.waves == 2
    stats = progress.stats()
    assert (stats.total, stats.skipped, stats.queued) == (4, 2, 2)
    assert [p.package.name for p in progress.in_state("skipped")] == [], "they are not there one by one"


def test_a_run_in_which_everything_was_up_to_date_is_finished_from_the_beginning() -> None:
    progress = progress_of(CHAIN, CHAIN)
    assert progress.finished
    assert (progress.stats().total, progress.stats().skipped, progress.ready()) == (4, 4, [])
    assert (progress.waves, progress.wave) == (0, 0)


def test_outputs_are_those_of_all_that_a_package_needs_wherever_they_come_from() -> None:
    progress = progress_of({**CHAIN, "top": ["app"]}, {"base", "lib", "other"})
    succeed(progress, "app")
    assert progress.outputs("app") == {name: output_of(name) for name in ("base", "lib")}
    assert progress.outputs("top") == {name: output_of(name) for name in ("base", "lib", "app")}


def test_a_package_without_an_output_is_passed_through() -> None:
    progress = progress_of(CHAIN)
    succeed(progress, "base")
    succeed(progress, "lib", output=None)
    assert progress.outputs("app") == {"base": output_of("base")}
    base, lib = progress.closure("base"), progress.closure("lib")
    assert lib == closure_id(None, {"base": base})
    assert progress.closures("app") == {"lib": lib, "base": base}


def test_the_closure_of_what_is_not_done_is_nobodys_business() -> None:
    progress = progress_of(CHAIN)
    with pytest.raises(AssertionError):
        progress.closure("base")
    progress.move("base", "running")
    with pytest.raises(AssertionError):
        progress.closure("base")


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    names = [f"p{n}" for n in range(draw(st.integers(1, 8)))]
    return {
        name: draw(st.lists(st.sampled_from(names[:index]), unique=True, max_size=4)) if index else []
        for index, name in enumerate(names)
    }


@given(graphs(), st.data())
def test_it_makes_no_difference_to_outputs_and_closures_what_was_up_to_date_before(
    graph: dict[str, list[str]], data: st.DataObject
) -> None:
    settled = closure(graph, data.draw(st.sets(st.sampled_from(sorted(graph)))))
    progress = progress_of(graph, settled)
    expected = closures_of(graph, {name: output_of(name) for name in graph})
    while ready := progress.ready():
        name = data.draw(st.sampled_from(ready))
        assert progress.closures(name) == {d: expected[d] for d in graph[name]}
        assert progress.outputs(name) == {d: output_of(d) for d in closure(graph, graph[name])}
        succeed(progress, name, data.draw(st.sampled_from(["success", "skipped"])))
    assert progress.finished
    assert {name: progress.closure(name) for name in graph} == expected
    assert progress.stats().total == len(graph)


def test_blocking_goes_through_a_chain_as_long_as_a_plan() -> None:
    graph: dict[str, list[str]] = {"0": []} | {str(n): [str(n - 1)] for n in range(1, 5000)}
    progress = progress_of(graph)
    progress.move("0", "running")
    _, blocked = progress.move("0", "cancelled")
    assert len(blocked) == 4999
    assert progress.finished
