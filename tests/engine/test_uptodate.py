"""What is up to date, remembered: whatever happened before, the memory gives what a look at everything would."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from buildd.engine.prepare import Places, Plan
from buildd.engine.uptodate import (
    KEPT,
    Lineage,
    Lineages,
    Rule,
    Rules,
    Settled,
    Standing,
    above,
    settle,
)
from buildd.execute.environment import Environment
from buildd.model import Package, Strategy
from buildd.planner.graph import closure
from buildd.planner.keys import closure_id, key_of
from buildd.store.runs import KnownResult

REPOSITORIES: dict[str, Strategy] = {"/aggressive": "aggressive", "/conservative": "conservative", "/none": "none"}
RULES = Rules(
    repositories={
        name: Rule(strategy=strategy, environment=Environment(id=f"{strategy} environment", parts={}))
        for name, strategy in REPOSITORIES.items()
    },
    architecture="x86_64",
)
OUTPUTS = tuple(digit * 64 for digit in "0123")


def package(name: str, depends: Iterable[str] = (), repository: str = "/aggressive", **fields: Any) -> Package:
    given = {"version": "1", "tree": "1" * 40, "path": name, "store": "/s", "depends": tuple(depends)}
    return Package(name=name, repository=repository, **(given | fields))


def plan_of(packages: Iterable[Package]) -> Plan:
    """`packages` in topological order."""
    return Plan(
        {p.name: p for p in packages}, Places(targets=(), foreign={}), (), {}, home="what was asked for", wanted=()
    )


class Records:
    """Successes as the database has them, and the artifacts that are there."""

    def __init__(self) -> None:
        self.successes: list[tuple[Package, KnownResult]] = []
        self.artifacts: set[str] = set()
        self.asked: list[str] = []
        """Artifacts that the last look asked for."""

    def add(self, package: Package, key: str, output: str) -> KnownResult:
        known = KnownResult(key=key, output_id=output, build=f"build {len(self.successes)}")
        self.successes.append((package, known))
        self.artifacts.add(output)
        return known

    def results(self, plan: Plan, names: Collection[str]) -> dict[str, KnownResult]:
        """What the assessor asks the database for; see `RunStore.known_results`."""
        found: dict[str, KnownResult] = {}
        for name in names:
            strategy = RULES.strategy(plan.packages[name])
            same = [(p, known) for p, known in reversed(self.successes) if p.name == name]
            if strategy == "conservative":
                same = [(p, k) for p, k in same if p.repository == plan.packages[name].repository][:1]
            for _, known in same if strategy != "none" else ():
                found.setdefault(known.key, known)
        return found

    def look(
        self,
        plan: Plan,
        settled: Mapping[str, Settled] | None = None,
        candidates: Collection[str] | None = None,
        forced: Collection[str] = (),
    ) -> Standing:
        """A look at the candidates, or without a memory at everything."""
        candidates = plan.packages.keys() if candidates is None else candidates
        self.asked = []

        def usable(output: str) -> bool:
            self.asked.append(output)
            return output in self.artifacts

        found, open_ = settle(
            plan,
            settled or {},
            candidates,
            RULES,
            results=self.results(plan, above(plan, candidates)),
            usable=usable,
            forced=frozenset(forced),
        )
        return Standing(found, open_)

    def build(self, plan: Plan, name: str, standing: Mapping[str, Settled], output: str) -> Settled:
        """Record a success of a package whose dependencies are in `standing`."""
        dependencies = {d: standing[d].closure for d in plan.graph[name]}
        key = key_of(RULES.parts(plan.packages[name], dependencies))
        known = self.add(plan.packages[name], key, output)
        return Settled(plan.packages[name], key, closure_id(output, dependencies), output, known.build)


def facts(standing: Standing) -> tuple[dict[str, tuple[Any, ...]], list[str]]:
    """What a standing says, without which of several builds made an output."""
    for name, entry in standing.settled.items():
        assert entry.package.name == name
    return {name: (entry.package, *entry[1:4]) for name, entry in standing.settled.items()}, list(standing.open)


def equal_to_a_look_at_everything(records: Records, plan: Plan, standing: Standing) -> None:
    everything = records.look(plan)
    assert facts(standing) == facts(everything)
    for name, entry in standing.settled.items():
        assert entry.package is plan.packages[name], "identities are compared later on"


# --- one look ---------------------------------------------------------------------------------------------

CHAIN = [package("base"), package("lib", ["base"]), package("app", ["lib"]), package("other")]


@pytest.fixture
def records() -> Records:
    return Records()


def built(records: Records, plan: Plan, output: str = OUTPUTS[0]) -> dict[str, Settled]:
    """Everything built in order, each with its own output."""
    standing: dict[str, Settled] = {}
    for name in plan.packages:
        if not plan.packages[name].ignore:
            standing[name] = records.build(plan, name, standing, output)
    return standing


def changed(plan: Plan, name: str, **fields: Any) -> Plan:
    new = msgspec.structs.replace(plan.packages[name], **fields)
    return plan_of({**plan.packages, name: new}.values())


def test_without_any_result_everything_is_open_in_order(records: Records) -> None:
    standing = records.look(plan_of(CHAIN))
    assert standing == ({}, ["base", "lib", "app", "other"])


def test_what_was_built_with_the_same_key_is_up_to_date(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    assert records.look(plan) == (entries, [])


def test_what_depends_on_something_open_is_open_and_nothing_else(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    now = changed(plan, "lib", tree="2" * 40)
    assert records.look(now, entries, ["lib"]) == ({n: entries[n] for n in ("base", "other")}, ["lib", "app"])


def test_what_is_forced_is_open_with_all_that_depends_on_it(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    assert records.look(plan, entries, ["lib"], forced=["lib"]).open == ["lib", "app"]
    assert records.look(plan, entries, plan.packages, forced=plan.packages).settled == {}


def test_a_package_that_is_not_to_be_built_here_is_open_whatever_is_known(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    now = changed(plan, "lib", ignore="no cmake")
    assert records.look(now, entries, ["lib"]).open == ["lib", "app"]


def test_a_new_output_that_equals_the_old_one_stops_the_change(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    now = changed(plan, "base", tree="2" * 40)
    before = records.build(now, "base", entries, OUTPUTS[0])
    standing = records.look(now, entries, ["base"])
    assert standing.open == []
    assert standing.settled["base"] == before
    assert standing.settled["lib"] is entries["lib"]
    assert before.closure == entries["base"].closure
    assert records.asked == [OUTPUTS[0]], "nothing else was even looked at"


def test_a_new_output_opens_what_depends_on_it(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    now = changed(plan, "base", tree="2" * 40)
    records.build(now, "base", entries, OUTPUTS[1])
    assert records.look(now, entries, ["base"]).open == ["lib", "app"]


def test_what_depends_on_something_that_was_not_known_is_looked_at_with_it(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    base = records.build(plan, "base", {}, OUTPUTS[1])
    del entries["base"]
    standing = records.look(plan, entries, ["base"])
    assert standing.settled["base"] == base
    assert standing.open == ["lib", "app"]


def test_a_result_whose_artifact_is_gone_is_none(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    entries["other"] = records.build(plan, "other", {}, OUTPUTS[1])
    records.artifacts.remove(OUTPUTS[0])
    assert records.look(plan).open == ["base", "lib", "app"]
    assert records.look(plan, entries, ["base"]).open == ["base", "lib", "app"]


def test_a_package_that_is_gone_from_the_plan_is_not_up_to_date_any_more(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    less, lineage = plan_of(CHAIN[:2]), Lineage()
    lineage.remember(plan, entries, set())
    standing = records.look(less, lineage.settled_in(less), lineage.candidates(less))
    assert standing == ({n: entries[n] for n in ("base", "lib")}, [])


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_a_strategy_decides_which_results_count(records: Records, repository: str) -> None:
    old, new = plan_of([package("a", (), repository)]), plan_of([package("a", (), repository, tree="2" * 40)])
    built(records, old)
    built(records, new)
    assert records.look(new).open == (["a"] if repository == "/none" else [])
    assert records.look(old).open == ([] if repository == "/aggressive" else ["a"]), "a branch switch and back"


def test_a_conservative_package_is_answered_from_its_own_repository_only(records: Records) -> None:
    here = plan_of([package("a", (), "/conservative")])
    built(records, here)
    records.add(package("a", (), "/fork"), "another key", OUTPUTS[1])
    assert records.look(here).open == []


def test_a_chain_as_long_as_a_plan_is_looked_at_in_one_go(records: Records) -> None:
    plan = plan_of([package("0"), *(package(str(n), [str(n - 1)]) for n in range(1, 3000))])
    entries = built(records, plan)
    now = changed(plan, "0", tree="2" * 40)
    records.build(now, "0", {}, OUTPUTS[1])
    assert len(records.look(now, entries, ["0"]).open) == 2999
    assert records.look(plan, entries, ["0"]) == (entries, [])


def test_above_is_everything_that_a_change_may_reach() -> None:
    plan = plan_of(CHAIN)
    assert above(plan, ["lib"]) == {"lib", "app"}
    assert above(plan, ["base", "other"]) == set(plan.packages)
    assert above(plan, []) == set()


# --- any graph, any results, any changes ------------------------------------------------------------------

NAMES = tuple(f"p{n}" for n in range(7))


@st.composite
def packages(draw: st.DrawFn, like: Mapping[str, Package] | None = None) -> list[Package]:
    """A plan's packages in order; with `like`, mostly the very same ones."""
    found: list[Package] = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES)).map(sorted)):
        old = (like or {}).get(name)
        names = {p.name for p in found}
        if old is not None and names.issuperset(old.depends) and draw(st.integers(0, 3)):
            found.append(old)
            continue
        found.append(
            package(
                name,
                draw(st.lists(st.sampled_from(sorted(names)), unique=True, max_size=3)) if names else (),
                old.repository if old is not None else draw(st.sampled_from([*REPOSITORIES, "/aggressive"])),
                tree=draw(st.sampled_from(["1" * 40, "2" * 40])),
                ignore=draw(st.sampled_from(["", "", "", "no cmake"])),
            )
        )
    return found


def build_some(draw: st.DrawFn, records: Records, plan: Plan) -> None:
    """Successes of some packages of a plan, with outputs that are often the same."""
    standing: dict[str, Settled] = {}
    for name in plan.packages:
        if standing.keys() >= set(plan.graph[name]) and draw(st.integers(0, 4)):
            standing[name] = records.build(plan, name, standing, draw(st.sampled_from(OUTPUTS)))


@st.composite
def two_plans(draw: st.DrawFn) -> tuple[Records, Plan, Plan, set[str]]:
    """Records, a plan, another one that differs in some packages, and names to force."""
    records = Records()
    one = plan_of(draw(packages()))
    two = plan_of(draw(packages(one.packages)))
    for plan in draw(st.lists(st.sampled_from([one, two]), max_size=4)):
        build_some(draw, records, plan)
    records.artifacts -= draw(st.sets(st.sampled_from(OUTPUTS), max_size=1))
    forced = draw(st.sets(st.sampled_from(sorted(two.packages)))) if two.packages else set()
    return records, one, two, forced


@given(two_plans())
@settings(deadline=None, max_examples=300)
def test_a_look_that_starts_from_what_is_remembered_gives_what_a_look_at_everything_gives(
    case: tuple[Records, Plan, Plan, set[str]],
) -> None:
    records, one, two, forced = case
    lineage = Lineage()
    for plan in (one, two, two, one):
        standing = records.look(plan, lineage.settled_in(plan), lineage.candidates(plan))
        equal_to_a_look_at_everything(records, plan, standing)
        lineage.remember(plan, standing.settled, set(standing.open))
    everything = records.look(two, forced=forced)
    standing = records.look(two, lineage.settled_in(two), lineage.candidates(two) | forced, forced)
    assert facts(standing) == facts(everything)


@given(two_plans())
@settings(deadline=None)
def test_every_package_is_either_up_to_date_or_open_and_each_is_so_with_reason(
    case: tuple[Records, Plan, Plan, set[str]],
) -> None:
    records, _, plan, forced = case
    standing = records.look(plan, forced=forced)
    assert standing.open == [name for name in plan.packages if name not in standing.settled], "in the plan's order"
    for name, entry in standing.settled.items():
        assert entry.package is plan.packages[name]
        assert entry.output_id in records.artifacts
        assert name not in forced
        assert not entry.package.ignore
        dependencies = {d: standing.settled[d].closure for d in plan.graph[name]}
        assert entry.key == key_of(RULES.parts(entry.package, dependencies))
        assert entry.closure == closure_id(entry.output_id, dependencies)
        assert RULES.strategy(entry.package) != "none"
        assert entry.build in [k.build for p, k in records.successes if (p.name, k.key) == (name, entry.key)]
    for name in standing.open:
        needed = closure(plan.graph, [name]) - {name}
        if needed.isdisjoint(standing.open) and name not in forced and not plan.packages[name].ignore:
            key = key_of(RULES.parts(plan.packages[name], {d: standing.settled[d].closure for d in plan.graph[name]}))
            known = records.results(plan, [name]).get(key)
            assert known is None or known.output_id not in records.artifacts, "what has a result is not built again"


# --- a memory through runs that overlap -------------------------------------------------------------------


def learn(lineage: Lineage, plan: Plan, fresh: Mapping[str, Settled], standing: Mapping[str, Settled]) -> None:
    """The end of a run that has built `fresh`, in which everything stood as `standing` says."""
    lineage.add(plan, fresh, {n: {d: standing[d].closure for d in plan.graph[n]} for n in fresh})


def test_what_a_run_has_built_is_up_to_date_for_the_next_one_without_a_look(records: Records) -> None:
    plan = plan_of(CHAIN)
    lineage = Lineage()
    assert lineage.candidates(plan) == set(plan.packages)
    lineage.remember(plan, {}, set(plan.packages))
    entries = built(records, plan)
    learn(lineage, plan, entries, entries)
    assert lineage.candidates(plan) == set()
    assert lineage.settled == entries


def test_what_a_run_has_not_built_is_looked_at_by_the_next_one(records: Records) -> None:
    plan = plan_of(CHAIN)
    lineage = Lineage()
    lineage.remember(plan, {}, set(plan.packages))
    entries = {name: records.build(plan, name, {}, OUTPUTS[0]) for name in ("base", "other")}
    learn(lineage, plan, entries, entries)
    assert lineage.candidates(plan) == {"lib", "app"}


def test_a_run_of_an_older_plan_teaches_nothing(records: Records) -> None:
    plan = plan_of(CHAIN)
    lineage = Lineage()
    now = changed(plan, "base", tree="2" * 40)
    lineage.remember(now, {}, set(now.packages))
    entries = built(records, plan)
    learn(lineage, plan, entries, entries)
    assert lineage.settled == {}
    assert lineage.candidates(now) == set(now.packages)


def test_another_output_of_a_forced_package_is_seen_by_what_a_run_beside_it_had_found_up_to_date(
    records: Records,
) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    lineage = Lineage()
    forced = records.look(plan, forced=["lib"])
    lineage.remember(plan, forced.settled, set(forced.open))
    beside = records.look(plan, lineage.settled_in(plan), lineage.candidates(plan))
    assert beside.open == []
    lineage.remember(plan, beside.settled, set())
    lib = records.build(plan, "lib", entries, OUTPUTS[1])
    lineage.doubt("lib", lib.key, lib.output_id)  # and the build of app against it fails
    learn(lineage, plan, {"lib": lib}, entries)
    standing = records.look(plan, lineage.settled_in(plan), lineage.candidates(plan))
    equal_to_a_look_at_everything(records, plan, standing)
    assert standing.open == ["app"]


def test_what_was_built_with_a_dependency_that_is_another_one_by_now_is_not_up_to_date(records: Records) -> None:
    plan = plan_of(CHAIN)
    entries = built(records, plan)
    lineage = Lineage()
    lineage.remember(plan, {}, set(plan.packages))
    lib = records.build(plan, "lib", entries, OUTPUTS[1])
    lineage.doubt("lib", lib.key, lib.output_id)
    learn(lineage, plan, {"base": entries["base"], "lib": lib}, entries)
    learn(lineage, plan, {"app": entries["app"]}, entries)
    assert "app" in lineage.candidates(plan)
    equal_to_a_look_at_everything(records, plan, records.look(plan, lineage.settled_in(plan), lineage.candidates(plan)))


def test_an_older_result_does_not_come_before_a_newer_one_because_its_run_ends_later(records: Records) -> None:
    plan = plan_of(CHAIN)
    lineage = Lineage()
    lineage.remember(plan, {}, set(plan.packages))
    for output in OUTPUTS[:2]:
        base = records.build(plan, "base", {}, output)
        lineage.doubt("base", base.key, base.output_id)
        if output == OUTPUTS[0]:
            first = base
    learn(lineage, plan, {"base": first}, {})
    equal_to_a_look_at_everything(records, plan, records.look(plan, lineage.settled_in(plan), lineage.candidates(plan)))


def test_what_depends_on_a_result_that_is_not_the_newest_any_more_is_looked_at_again(records: Records) -> None:
    plan = plan_of(CHAIN)
    lineage = Lineage()
    entries = built(records, plan)
    lineage.remember(plan, entries, set())
    version = lineage.version
    lineage.doubt("base", entries["base"].key, entries["base"].output_id)
    assert (lineage.candidates(plan), lineage.version) == (set(), version), "the same once more"
    base = records.build(plan, "base", {}, OUTPUTS[1])
    lineage.doubt("base", base.key, base.output_id)
    assert lineage.version > version, "who is looking meanwhile must look again"
    assert lineage.candidates(plan) == {"base"}
    assert records.look(plan, lineage.settled_in(plan), lineage.candidates(plan)).open == ["lib", "app"]


def test_what_has_lost_its_artifact_is_looked_at_again(records: Records) -> None:
    plan = plan_of(CHAIN)
    lineage = Lineage()
    entries = built(records, plan)
    entries["other"] = records.build(plan, "other", {}, OUTPUTS[1])
    lineage.remember(plan, entries, set())
    lineage.forget([OUTPUTS[1], OUTPUTS[2]])
    assert lineage.candidates(plan) == {"other"}
    lineage.forget([OUTPUTS[0]])
    assert lineage.candidates(plan) == set(plan.packages)


def test_a_doubt_outlives_a_change_of_the_plan_and_ends_with_its_package(records: Records) -> None:
    plan = plan_of(CHAIN)
    lineage = Lineage()
    lineage.remember(plan, built(records, plan), set())
    lineage.forget([OUTPUTS[0]])
    lineage.remember(plan, lineage.settled, {"lib"})
    assert lineage.candidates(plan_of(plan.packages.values())) == {"lib"}
    assert lineage.candidates(changed(plan, "other", version="2")) == {"lib", "other"}
    assert lineage.candidates(plan_of([CHAIN[0]])) == set()


class LiveRun:
    """A run as the engine drives it: what it started from, and what it has made of it."""

    def __init__(self, records: Records, lineage: Lineage, plan: Plan, forced: set[str]) -> None:
        self.plan = plan
        self.forced = forced
        candidates = lineage.candidates(plan) | forced
        self.standing = records.look(plan, lineage.settled_in(plan), candidates, forced)
        self.results = records.results(plan, above(plan, candidates))
        lineage.remember(plan, self.standing.settled, set(self.standing.open))
        self.done: dict[str, Settled] = {}
        self.failed: set[str] = set()

    def all(self) -> dict[str, Settled]:
        return {**self.standing.settled, **self.done}

    def ready(self) -> list[str]:
        there = self.all().keys() - self.failed
        return [
            name
            for name in self.standing.open
            if name not in there | self.failed
            and not self.plan.packages[name].ignore
            and there >= set(self.plan.graph[name])
        ]

    def dependencies(self, name: str) -> dict[str, str]:
        return {d: self.all()[d].closure for d in self.plan.graph[name]}


def test_a_change_among_many_is_not_looked_for_in_all(records: Records) -> None:
    plan, lineage = plan_of([package(f"p{number}") for number in range(500)]), Lineage()
    entries = built(records, plan)
    first = records.look(plan, lineage.settled_in(plan), lineage.candidates(plan))
    lineage.remember(plan, first.settled, set(first.open))
    assert first.settled == entries
    changed = {"p7": msgspec.structs.replace(plan.packages["p7"], tree="2" * 40)}
    varied = Plan(
        {**plan.packages, **changed}, plan.places, (), {}, home=plan.home, wanted=(), like=plan, changed=changed.keys()
    )
    assert lineage.candidates(varied) == {"p7"}
    standing = records.look(varied, lineage.settled_in(varied), lineage.candidates(varied))
    assert standing.open == ["p7"]
    assert set(standing.settled.differing(first.settled)) == {"p7"}
    lineage.remember(varied, standing.settled, {"p7"})
    lineage.add(varied, {"p7": records.build(varied, "p7", standing.settled, OUTPUTS[0])}, {"p7": {}})
    assert set(lineage.settled.differing(first.settled)) == {"p7"}


class Memory(RuleBasedStateMachine):
    """Runs of one lineage that overlap, other runs, lost artifacts and changed plans; the memory is always right."""

    def __init__(self) -> None:
        super().__init__()
        self.records = Records()
        self.lineage = Lineage()
        self.runs: list[LiveRun] = []

    @initialize(packages=packages())
    def begin(self, packages: list[Package]) -> None:
        self.plan = plan_of(packages)

    @rule(data=st.data())
    def change_the_plan(self, data: st.DataObject) -> None:
        self.plan = plan_of(data.draw(packages(self.plan.packages)))

    @rule()
    def make_the_same_plan_anew(self) -> None:
        self.plan = plan_of(self.plan.packages.values())

    @rule(data=st.data())
    def change_sources(self, data: st.DataObject) -> None:
        names = sorted(self.plan.packages)
        changed = {
            name: msgspec.structs.replace(
                self.plan.packages[name], tree=data.draw(st.sampled_from(("1" * 40, "2" * 40)))
            )
            for name in (data.draw(st.sets(st.sampled_from(names), max_size=3)) if names else ())
        }
        self.plan = Plan(
            {**self.plan.packages, **changed},
            self.plan.places,
            (),
            {},
            home=self.plan.home,
            wanted=(),
            like=self.plan,
            changed=changed.keys(),
        )

    @precondition(lambda self: len(self.runs) < 3)
    @rule(data=st.data(), force=st.booleans())
    def start(self, data: st.DataObject, force: bool) -> None:
        names = sorted(self.plan.packages)
        forced = data.draw(st.sets(st.sampled_from(names), max_size=2)) if names and force else set()
        self.runs.append(LiveRun(self.records, self.lineage, self.plan, forced))

    @precondition(lambda self: any(run.ready() for run in self.runs))
    @rule(data=st.data(), output=st.sampled_from([OUTPUTS[0], *OUTPUTS]), good=st.integers(0, 4))
    def build(self, data: st.DataObject, output: str, good: int) -> None:
        run = data.draw(st.sampled_from([run for run in self.runs if run.ready()]))
        name = data.draw(st.sampled_from(run.ready()))
        dependencies = run.dependencies(name)
        key = key_of(RULES.parts(run.plan.packages[name], dependencies))
        known = run.results.get(key)
        if known is not None and name not in run.forced and known.output_id in self.records.artifacts:
            closure = closure_id(known.output_id, dependencies)
            run.done[name] = Settled(run.plan.packages[name], key, closure, known.output_id, known.build)
        elif good:
            run.done[name] = self.records.build(run.plan, name, run.all(), output)
            self.lineage.doubt(name, key, output)
        else:
            run.failed.add(name)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs))
        self.runs.remove(run)
        done = {name: entry for name, entry in run.done.items() if RULES.strategy(entry.package) != "none"}
        self.lineage.add(run.plan, done, {name: run.dependencies(name) for name in done})

    @rule(name=st.sampled_from(NAMES), output=st.sampled_from(OUTPUTS), repository=st.sampled_from([*REPOSITORIES]))
    def build_it_in_another_lineage(self, name: str, output: str, repository: str) -> None:
        self.records.add(package(name, (), repository), "a key of other sources", output)
        self.lineage.doubt(name, "a key of other sources", output)

    @rule(output=st.sampled_from(OUTPUTS))
    def lose_an_artifact(self, output: str) -> None:
        if any(entry.output_id == output for run in self.runs for entry in run.all().values()):
            return  # what runs use is not collected
        self.records.artifacts.discard(output)
        self.lineage.forget([output])

    @invariant()
    def the_memory_says_what_a_look_at_everything_says(self) -> None:
        if not hasattr(self, "plan"):
            return
        for plan in {id(p): p for p in (self.plan, *(run.plan for run in self.runs))}.values():
            candidates = self.lineage.candidates(plan)
            assert candidates <= plan.packages.keys()
            standing = self.records.look(plan, self.lineage.settled_in(plan), candidates)
            equal_to_a_look_at_everything(self.records, plan, standing)


TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


# --- memories ---------------------------------------------------------------------------------------------


def rules_of(**strategies: Strategy) -> Rules:
    found = {f"/{name}": Rule(strategy=s, environment=Environment(id=s, parts={})) for name, s in strategies.items()}
    return Rules(repositories=found, architecture="x86_64")


def test_each_set_of_targets_under_each_set_of_rules_has_a_memory_of_its_own() -> None:
    lineages = Lineages()
    plan, other = plan_of(CHAIN), plan_of(CHAIN)
    other.home = "something else"
    rules = rules_of(a="aggressive", b="conservative")
    lineage = lineages.of(plan, rules)
    assert lineages.of(plan_of([]), rules_of(b="conservative", a="aggressive")) is lineage
    environment = Environment(id="after an upgrade", parts={})
    upgraded = {**rules.repositories, "/a": Rule(strategy="aggressive", environment=environment)}
    different = [
        lineages.of(other, rules),
        lineages.of(plan, rules_of(a="aggressive", b="none")),
        lineages.of(plan, rules_of(a="aggressive")),
        lineages.of(plan, Rules(repositories=upgraded, architecture="x86_64")),
        lineages.of(plan, msgspec.structs.replace(rules, architecture="aarch64")),
    ]
    assert len({id(each) for each in [lineage, *different]}) == 6
    assert len(lineages.all()) == 6
    lineage.remember(plan, {}, set())
    version = lineage.version
    lineages.clear()
    assert (lineage.plan, lineage.candidates(plan)) == (None, set(plan.packages))
    assert lineage.version > version, "who is looking meanwhile must look again"


def test_a_memory_that_somebody_looks_at_is_kept_whatever_else_is_used() -> None:
    lineages = Lineages()
    plans = [plan_of([]) for _ in range(KEPT + 2)]
    for number, plan in enumerate(plans):
        plan.home = number
    with lineages.looking(plans[0], rules_of()) as first:
        for plan in plans[1:]:
            lineages.of(plan, rules_of())
        assert lineages.of(plans[0], rules_of()) is first


def test_the_memories_that_were_used_last_are_kept() -> None:
    lineages = Lineages()
    plans = [plan_of([]) for _ in range(KEPT + 1)]
    for number, plan in enumerate(plans):
        plan.home = number
    first = lineages.of(plans[0], rules_of())
    for plan in plans[1:-1]:
        lineages.of(plan, rules_of())
    assert lineages.of(plans[0], rules_of()) is first
    lineages.of(plans[-1], rules_of())
    assert len(lineages.all()) == KEPT
    assert lineages.of(plans[0], rules_of()) is first


def test_each_repository_has_its_own_rule() -> None:
    one, two = package("one", (), "/aggressive"), package("two", (), "/conservative")
    assert (RULES.strategy(one), RULES.strategy(two)) == ("aggressive", "conservative")
    parts = RULES.parts(two, {"one": "c" * 64})
    assert (parts.environment, parts.architecture, parts.dependencies) == (
        "conservative environment",
        "x86_64",
        {"one": "c" * 64},
    )
