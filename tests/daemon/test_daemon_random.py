"""Random graphs, edits, failures, cancellations and crashes, against a model of what a run must build.

More examples: BUILDD_TEST_EXAMPLES=200 pytest tests/daemon/test_daemon_random.py
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from harness import Daemon, RpcError, Workspace, booted, until
from hypothesis import HealthCheck, Phase, note, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from buildd.model import BuildRecord
from buildd.protocol import RunView

EXAMPLES = int(os.environ.get("BUILDD_TEST_EXAMPLES", "10"))
FINAL = ("completed", "failed", "cancelled")
GOOD = ("success", "skipped")
_numbers = count(1)


# --- the model --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a package is built from."""

    needs: tuple[str, ...]
    code: int = 0
    """Comes out in the output."""
    comment: int = 0
    """Does not."""
    fails: bool = False
    links: bool = True
    """Whether the outputs of what it needs come out too."""


State = Mapping[str, Source]
"""The sources of all packages, those that others need first."""
Key = tuple[object, ...]


@dataclass
class Known:
    """What earlier builds have shown, by package and key."""

    made: dict[Key, str] = field(default_factory=dict)
    """The outputs of successes."""
    lost: dict[str, Path] = field(default_factory=dict)
    """Outputs whose artifacts somebody has removed, and where those were."""

    def __contains__(self, key: Key) -> bool:
        return key in self.made and self.made[key] not in self.lost

    def look(self) -> None:
        """What was lost may be there again, also of a build that was killed before it was recorded."""
        self.lost = {output: path for output, path in self.lost.items() if not path.exists()}


class Expectation:
    """What becomes of the packages of one state when all goes well."""

    def __init__(self, state: State, mark: str) -> None:
        self.state = state
        self.outputs: dict[str, str] = {}
        """What the file in each package's output says."""
        self.keys: dict[str, Key] = {}
        closures: dict[str, object] = {}
        for name, source in state.items():
            below = "".join(self.outputs[other] for other in source.needs if source.links)
            self.outputs[name] = f"{name} {mark}\n{source.code}\n{below}"
            needs = tuple((other, closures[other]) for other in source.needs)
            closures[name] = (self.outputs[name], needs)
            self.keys[name] = (name, replace(source, links=source.links or not needs), needs)

    def states(self, known: Known, forced: Collection[str] = ()) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, source in self.state.items():
            if any(found[other] not in GOOD for other in source.needs):
                found[name] = "blocked"
            elif self.keys[name] in known and name not in forced:
                found[name] = "skipped"
            else:
                found[name] = "failed" if source.fails else "success"
        return found


# --- the machine ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A run, and what it is about."""

    number: int
    expected: Expectation
    forced: frozenset[str] = frozenset()
    cancelled: bool = False
    """Whether somebody wants it, or one of its packages, cancelled."""
    fail_fast: bool = False


Change = tuple[str, int, int]
"""What is turned over of which package; a second one is only used by `needs`."""
KINDS = ("code", "code", "code", "comment", "fails", "needs", "links")
CHANGES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 6), st.integers(0, 5)),
    max_size=3,
)
"""Every change undoes the one before it of its kind, so that what was there before comes back often."""


class Machine(RuleBasedStateMachine):
    """One repository. Each step changes it, and has it built."""

    daemon: ClassVar[Daemon]
    """One for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="bd-random-"))
        self.workspace = Workspace(self.home / "w", mark=f"example-{next(_numbers)}")
        self.pauses: list[int] = []
        self.sources: dict[str, Source] = {}
        self.commits: list[tuple[str, State]] = []
        self.known = Known()

    def teardown(self) -> None:
        self.daemon.settings_for_quick_end()  # of an example that failed
        shutil.rmtree(self.home)

    @initialize(
        needs=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=2, max_size=7),
        pauses=st.lists(st.integers(0, 9), min_size=7, max_size=7),
    )
    def begin(self, needs: list[set[int]], pauses: list[int]) -> None:
        self.pauses = pauses
        for i, others in enumerate(needs):
            self.sources[f"p{i}"] = Source(tuple(f"p{other}" for other in sorted(others) if other < i))
            self.write(f"p{i}")

    # --- changes ------------------------------------------------------------------------------------------

    def pick(self, which: int) -> str:
        return f"p{which % len(self.sources)}"

    def write(self, name: str) -> None:
        source = self.sources[name]
        code = f"{source.code}\nerror: no" if source.fails else str(source.code)
        pause = f"sleep 0.0{self.pauses[int(name[1:])]}"
        self.workspace.compiled(name, *source.needs, first=pause, links=source.links)
        self.workspace.edit(name, code, comment=str(source.comment))

    def change(self, changes: Collection[Change]) -> None:
        for kind, which, other in changes:
            name = self.pick(which)
            source = self.sources[name]
            if kind == "needs":
                below = {f"p{other}"} if other < int(name[1:]) else set()
                self.sources[name] = replace(source, needs=tuple(sorted(below ^ set(source.needs))))
            else:
                value = getattr(source, kind)
                self.sources[name] = replace(source, **{kind: type(value)(not value)})
            self.write(name)

    def commit(self, changes: Collection[Change] = ()) -> int:
        """Change and commit; the commit's place."""
        self.change(changes)
        self.commits.append((self.workspace.commit(), dict(self.sources)))
        return len(self.commits) - 1

    # --- runs that are left alone -------------------------------------------------------------------------

    @rule(changes=CHANGES)
    def build(self, changes: list[Change]) -> None:
        self.settle_exactly(self.start(self.commit(changes)))

    @rule(changes=CHANGES, forced=st.sets(st.integers(0, 6), min_size=1, max_size=2))
    def build_with_force(self, changes: list[Change], forced: set[int]) -> None:
        self.settle_exactly(self.start(self.commit(changes), forced=frozenset(map(self.pick, forced))))

    @rule(changes=CHANGES, which=st.integers(0, 7))
    def build_what_was_before(self, changes: list[Change], which: int) -> None:
        self.commit(changes)
        self.settle_exactly(self.start(which % len(self.commits)))

    @rule(changes=CHANGES)
    def build_the_work_tree(self, changes: list[Change]) -> None:
        if not self.commits:
            self.commit()
        self.change(changes)
        self.workspace.save()
        expected = Expectation(dict(self.sources), self.workspace.mark)
        self.settle_exactly(Started(self.daemon.start(self.workspace, worktree=True), expected))

    @rule(changes=CHANGES, which=st.integers(0, 6))
    def lose_an_artifact(self, changes: list[Change], which: int) -> None:
        """Somebody removes the artifact that a package would have now."""
        place, name = self.commit(changes), self.pick(which)
        output = Expectation(self.sources, self.workspace.mark).outputs[name]
        for artifact in {record.artifact for record in self.daemon.records(package=name)}:
            if artifact is not None and Path(artifact).exists() and self.installed(artifact, name) == output:
                make_writable(Path(artifact))
                shutil.rmtree(artifact)
                self.known.lost[output] = Path(artifact)
        self.settle_exactly(self.start(place))

    def settle_exactly(self, run: Started) -> None:
        expected = run.expected.states(self.known, run.forced)
        (view,) = self.settle(run)
        assert {p.name: p.state for p in view.packages} == expected

    # --- runs that are disturbed --------------------------------------------------------------------------

    @rule(changes=CHANGES, more=CHANGES, delay=st.integers(0, 8))
    def build_two_at_once(self, changes: list[Change], more: list[Change], delay: int) -> None:
        first = self.start(self.commit(changes))
        time.sleep(delay / 100)
        self.settle(first, self.start(self.commit(more)))

    @rule(changes=CHANGES)
    def build_fail_fast(self, changes: list[Change]) -> None:
        self.settle(self.start(self.commit(changes), fail_fast=True))

    @rule(changes=CHANGES, delay=st.integers(0, 9), package=st.none() | st.integers(0, 6), which=st.integers(0, 2))
    def cancel(self, changes: list[Change], delay: int, package: int | None, which: int) -> None:
        """One run, or a package of it, is cancelled, while others may want the same."""
        place = self.commit(changes)
        runs = [self.start(place, cancelled=i == which % 2) for i in range(min(2, which + 1))]
        unlucky = runs[which % 2]
        self.wait_until_something_runs(*runs)
        time.sleep(delay / 100)
        wanted = {} if package is None else {"package": self.pick(package)}
        try:
            self.daemon.call("run.cancel", {"run": str(unlucky.number), **wanted})
        except RpcError as error:
            assert error.code == 4, error  # it has ended already
        self.settle(*runs)

    @rule(changes=CHANGES, delay=st.integers(0, 9), hard=st.booleans(), runs=st.integers(1, 2))
    def restart(self, changes: list[Change], delay: int, hard: bool, runs: int) -> None:
        place = self.commit(changes)
        started = [self.start(place) for _ in range(runs)]
        time.sleep(delay / 100)
        if hard:
            self.daemon.kill9()
        self.daemon.restart()
        self.settle(*started)

    def wait_until_something_runs(self, *runs: Started) -> None:
        def look() -> bool:
            views = [self.daemon.run(run.number) for run in runs]
            return all(view.state in FINAL or view.stats.running for view in views)

        until(look, "all runs run or have ended", within=60)

    # --- what must hold -----------------------------------------------------------------------------------

    def start(
        self,
        which: int,
        *,
        forced: frozenset[str] = frozenset(),
        cancelled: bool = False,
        fail_fast: bool = False,
    ) -> Started:
        commit, state = self.commits[which]
        number = self.daemon.start(
            f"{self.workspace}@{commit}", force_packages=sorted(forced), keep_going=not fail_fast
        )
        expected = Expectation(state, self.workspace.mark)
        return Started(number, expected, forced=forced, cancelled=cancelled, fail_fast=fail_fast)

    def settle(self, *runs: Started) -> list[RunView]:
        """Wait for runs that go on together, check them, and learn what they have shown."""
        views = [self.watch(run) for run in runs]
        records = [self.daemon.records(run=view.id) for view in views]
        made: dict[Key, str] = {}
        for run, found in zip(runs, records, strict=True):
            for record in found:
                if record.state == "success":
                    made[run.expected.keys[record.package]] = run.expected.outputs[record.package]
        built: Counter[Key] = Counter()
        for run, view, found in zip(runs, views, records, strict=True):
            self.check_packages(run, view, made)
            self.check_records(run, found)
            self.check_events(run, view)
            built.update(
                run.expected.keys[r.package] for r in found if r.state == "success" and r.package not in run.forced
            )
        assert all(times == 1 for times in built.values()), f"built more than once: {built}"
        self.known.made |= made
        self.known.look()
        return views

    def watch(self, run: Started) -> RunView:
        """Wait for the end of a run; the harness checks that its statistics add up whenever one looks."""
        deadline = time.monotonic() + 60
        while (view := self.daemon.run(run.number)).state not in FINAL:
            assert time.monotonic() < deadline, f"run {run.number} does not end: {view}"
            time.sleep(0.01)
        return self.daemon.wait(run.number)  # until that is on disk, with all events before it

    def check_packages(self, run: Started, view: RunView, made: Mapping[Key, str]) -> None:
        states = {p.name: p.state for p in view.packages}
        note(f"run {view.number}: {view.state} {states}")
        failed = any(state == "failed" for state in states.values())
        assert failed <= (view.state in ("failed", "cancelled"))
        assert view.state != "cancelled" or run.cancelled
        for p in view.packages:
            source, key = run.expected.state[p.name], run.expected.keys[p.name]
            below = [states[other] for other in source.needs]
            if p.state in ("success", "skipped", "failed"):
                assert set(below) <= set(GOOD), f"{p.name} is {p.state}, and below it are {below}"
            if p.state == "skipped":
                assert key in self.known or key in made, f"{p.name} is new and was skipped"
            if p.state in GOOD:
                assert p.artifact is not None
                assert self.installed(p.artifact, p.name) == run.expected.outputs[p.name]
            if p.state == "failed":
                assert source.fails, p.message
            if p.state == "blocked":
                assert {"failed", "blocked", "cancelled"} & set(below)
            if p.state == "cancelled":
                assert run.cancelled or (run.fail_fast and failed)
            assert p.state in (*GOOD, "failed", "blocked", "cancelled")

    def check_records(self, run: Started, records: Collection[BuildRecord]) -> None:
        for record in records:
            assert record.state != "running"
            key = run.expected.keys[record.package]
            again = key in self.known and record.package not in run.forced
            assert not again, f"{record.package} is unchanged and known, and was built"

    def check_events(self, run: Started, view: RunView) -> None:
        """A package starts after all that it needs, and its last event is what became of it."""
        done: set[str] = set()
        last: dict[str, str] = {}
        for event in self.daemon.events(run.number):
            if event.package is None or event.kind == "run_cancel_requested":
                continue
            last[event.package] = event.kind
            if event.kind == "package_started":
                missing = set(run.expected.state[event.package].needs) - done
                assert not missing, f"{event.package} started before {missing}"
            if event.kind in ("package_completed", "package_skipped"):
                done.add(event.package)
        kinds = {"success": "package_completed"}
        assert last == {p.name: kinds.get(p.state, f"package_{p.state}") for p in view.packages}

    def installed(self, artifact: str, name: str) -> str:
        (file,) = Path(artifact).glob(f"tree/**/share/{name}")
        return file.read_text()


def make_writable(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)


@pytest.fixture(scope="module")
def one_daemon() -> Iterator[Daemon]:
    with booted(backend="plain", settings={"workers.max_concurrent_builds": 4}) as daemon:
        yield daemon


def test_runs_build_what_is_new_and_nothing_else_whatever_happens(one_daemon: Daemon) -> None:
    Machine.daemon = one_daemon
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=8,
            deadline=None,
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if EXAMPLES > 10 else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
    until(lambda: not one_daemon.work_directories(), "no directory of a build is left")
    assert one_daemon.build_processes() == []
    assert one_daemon.rows("SELECT id FROM builds WHERE state = 'running'") == []
    assert one_daemon.rows("SELECT id FROM runs WHERE finished = 0") == []


def test_the_model_is_told_apart_by_what_counts() -> None:
    state = {"p0": Source(()), "p1": Source(("p0",))}
    before = Expectation(state, "m")
    remark = Expectation({**state, "p0": Source((), comment=1)}, "m")
    change = Expectation({**state, "p0": Source((), code=1)}, "m")
    assert before.keys["p0"] not in (remark.keys["p0"], change.keys["p0"])
    assert before.keys["p1"] == remark.keys["p1"] != change.keys["p1"]
