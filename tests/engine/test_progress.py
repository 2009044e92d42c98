"""The packages of a run: whatever happens in whatever order, the states stay consistent and everything ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from buildd.engine.progress import FINAL, PackageRun, Progress
from buildd.model import Package
from buildd.planner.graph import closure, waves

UNFINISHED = {"queued", "running"}
DONE = {"success", "skipped"}


def progress_of(graph: dict[str, list[str]]) -> Progress:
    """`graph` in topological order."""
    wave = waves(graph, graph)
    return Progress(
        PackageRun(
            Package(name=name, version="1", path=".", repository="/r", store="/r", commit=None, tree="0" * 40),
            depends,
            wave[name],
            1.0,
        )
        for name, depends in graph.items()
    )


class Run(RuleBasedStateMachine):
    """Drives a `Progress` at random beside a model of what has ended, and how."""

    graph: dict[str, list[str]]
    progress: Progress
    ended: dict[str, str]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        names = [f"p{n}" for n in range(data.draw(st.integers(1, 8)))]
        self.graph = {
            name: data.draw(st.lists(st.sampled_from(names[:index]), unique=True, max_size=3)) if index else []
            for index, name in enumerate(names)
        }
        self.progress = progress_of(self.graph)
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
        assert stats.total == len(self.graph)
        for state in (*FINAL, *UNFINISHED):
            assert getattr(stats, state) == states.count(state)

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


def test_blocking_goes_through_a_chain_as_long_as_a_plan() -> None:
    graph: dict[str, list[str]] = {"0": []} | {str(n): [str(n - 1)] for n in range(1, 5000)}
    progress = progress_of(graph)
    progress.move("0", "running")
    _, blocked = progress.move("0", "cancelled")
    assert len(blocked) == 4999
    assert progress.finished
