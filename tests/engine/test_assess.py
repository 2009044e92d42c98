"""What of a plan is up to date, from real records and real artifacts; and which artifacts can be relied upon."""

from __future__ import annotations

import gc
import shutil
from collections.abc import AsyncIterator, Collection, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from buildd import config as configuration
from buildd.config import Config
from buildd.engine.assess import NAMED_OUTPUTS, Assessor
from buildd.engine.prepare import Located, Places, Plan
from buildd.engine.uptodate import Rules, Settled, Standing
from buildd.execute.environment import Environment
from buildd.model import BuildRecord, Package, Strategy
from buildd.planner.keys import Inputs, closure_id, key_of
from buildd.store.artifacts import ArtifactStore
from buildd.store.database import Database
from buildd.store.journal import Journal
from buildd.store.runs import RunStore, insert_build, update_build

pytestmark = pytest.mark.trio
HOME, OTHER = "https://example.org/things.git", "https://example.org/other.git"


class House:
    """An assessor with a real database and real artifacts; builds are made by hand."""

    def __init__(self, root: Path, database: Database, journal: Journal) -> None:
        self.root = root
        self.database = database
        self.journal = journal
        self.artifacts = ArtifactStore(root / "artifacts")
        self.config: Config = configuration.load(files=[], environ={"HOME": str(root)})
        self.assessor = self.another_life()
        self.reads: list[Collection[str]] = []
        self._count = 0

    def another_life(self) -> Assessor:
        store: Any = RunStore(self.database)
        known_results = store.known_results

        async def read(names: Any) -> Any:
            self.reads.append(set(names))
            return await known_results(names)

        store.known_results = read  # to see what is asked
        return Assessor(
            lambda: self.config,
            store,
            self.artifacts,
            self.journal,
            lambda strategy: Environment(id=f"environment of {strategy}", parts={"sandbox": "plain"}),
        )

    def configure(self, **cache: Any) -> None:
        self.config = msgspec.structs.replace(self.config, cache=msgspec.structs.replace(self.config.cache, **cache))

    def output(self, text: str) -> str:
        """An artifact with this text in it."""
        staged = self.root / "staged"
        staged.mkdir()
        (staged / "file").write_text(text)
        output = self.artifacts.add(staged, created_at=1.0, mtime=1, check=lambda: None).output_id
        shutil.rmtree(staged, ignore_errors=True)
        gc.collect()  # nobody holds it now
        return output

    async def build(self, plan: Plan, name: str, standing: dict[str, Settled], text: str = "") -> Settled:
        """A success of a package whose dependencies are in `standing`, as the engine records and reports it."""
        rules = self.assessor.rules(plan, None)
        package, dependencies = plan.packages[name], {d: standing[d].closure for d in plan.graph[name]}
        parts = rules.parts(package, dependencies)
        key, output = key_of(parts), self.output(text or name)
        self._count += 1
        record = BuildRecord(
            id=f"{self._count:08x}-0000-4000-8000-000000000000",
            run="r",
            package=name,
            version=package.version,
            state="success",
            started_at=float(self._count),
            completed_at=self._count + 0.5,
            key=key,
            output_id=output,
            repository=package.repository,
        )
        inputs = Inputs(
            parts=parts,
            outputs={},
            environment={},
            strategy="aggressive",
            repository=HOME,
            commit=None,
            root="0",
            path=".",
        )
        await self.database.submit([insert_build(record, inputs), update_build(record)]).wait()
        self.assessor.succeeded(name, key, output)
        return Settled(package, key, closure_id(output, dependencies), output, record.id)

    async def build_all(self, plan: Plan) -> dict[str, Settled]:
        standing: dict[str, Settled] = {}
        for name in plan.packages:
            standing[name] = await self.build(plan, name, standing)
        return standing

    async def standing(self, plan: Plan, *, strategy: Strategy | None = None, forced: Iterable[str] = ()) -> Standing:
        rules = self.assessor.rules(plan, strategy)
        self.reads.clear()
        with trio.fail_after(20):
            standing, _ = await self.assessor.standing(plan, rules, forced=frozenset(forced))
        assert [*standing.settled.keys() & set(standing.open)] == []
        assert standing.settled.keys() | set(standing.open) == plan.packages.keys()
        return standing

    async def open(self, plan: Plan, **options: Any) -> list[str]:
        return list((await self.standing(plan, **options)).open)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    database = Database(tmp_path / "b.db")
    database.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        yield House(tmp_path, database, Journal(database, 1_000_000))
        nursery.cancel_scope.cancel()


def package(name: str, *depends: str, **fields: Any) -> Package:
    given = {"version": "1", "tree": "1" * 40, "path": name, "store": "/s", "repository": HOME}
    return Package(name=name, depends=depends, **(given | fields))


def plan_of(packages: Iterable[Package]) -> Plan:
    found = {p.name: p for p in packages}
    targets = [
        Located(repository=home, store="/s", commit="c" * 40, tree="t" * 40)
        for home in dict.fromkeys(p.repository for p in found.values())
    ]
    return Plan(found, Places(targets=tuple(targets), foreign={}), (), {}, home="home", wanted=tuple(found))


CHAIN = [package("base"), package("lib", "base"), package("app", "lib"), package("other")]


def changed(plan: Plan, name: str, **fields: Any) -> Plan:
    return plan_of({**plan.packages, name: msgspec.structs.replace(plan.packages[name], **fields)}.values())


# --- what is up to date -----------------------------------------------------------------------------------


async def test_what_was_built_is_up_to_date_and_the_second_look_asks_nothing(house: House) -> None:
    plan = plan_of(CHAIN)
    assert await house.open(plan) == ["base", "lib", "app", "other"]
    built = await house.build_all(plan)
    assert (await house.standing(plan)).settled == built
    assert await house.open(plan) == []
    assert house.reads == []
    assert await house.open(plan_of(plan.packages.values())) == [], "an equal plan of the same packages"
    assert house.reads == []
    house.assessor = house.another_life()
    assert (await house.standing(plan)).settled == built


async def test_a_change_is_looked_at_with_what_depends_on_it_and_nothing_else(house: House) -> None:
    plan = plan_of(CHAIN)
    built = await house.build_all(plan)
    await house.standing(plan)
    now = changed(plan, "lib", tree="2" * 40)
    assert await house.open(now) == ["lib", "app"]
    assert house.reads == [{"lib", "app"}]
    await house.build(now, "lib", built, "lib")
    assert await house.open(now) == [], "the same output stops the change"
    await house.build(now, "lib", built, "another output")
    assert await house.open(now) == ["app"]


async def test_a_package_that_is_gone_is_not_counted_any_more(house: House) -> None:
    plan = plan_of(CHAIN)
    await house.build_all(plan)
    await house.standing(plan)
    less = plan_of(CHAIN[:2])
    standing = await house.standing(less)
    assert list(standing.settled) == ["base", "lib"]
    assert list((await house.standing(plan)).settled) == ["base", "lib", "app", "other"]


async def test_what_is_forced_is_open_this_time_only(house: House) -> None:
    plan = plan_of(CHAIN)
    await house.build_all(plan)
    assert await house.open(plan) == []
    assert await house.open(plan, forced=["lib"]) == ["lib", "app"]
    assert await house.open(plan, forced=plan.packages) == list(plan.packages)
    assert await house.open(plan) == []


async def test_a_large_plan_is_looked_at_in_another_thread_with_the_same_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(CHAIN)
    await house.build_all(plan)
    monkeypatch.setattr("buildd.engine.assess._AT_ONCE", 0)
    assert await house.open(plan) == []
    assert await house.open(changed(plan, "base", version="2")) == ["base", "lib", "app"]


# --- strategies -------------------------------------------------------------------------------------------


async def test_the_strategy_none_never_answers_with_an_earlier_result(house: House) -> None:
    plan = plan_of(CHAIN)
    await house.build_all(plan)
    for _ in range(2):
        assert await house.open(plan, strategy="none") == list(plan.packages)
        assert house.reads == []
    assert await house.open(plan) == []


async def test_a_branch_switch_and_back_is_up_to_date_unless_the_strategy_is_conservative(house: House) -> None:
    house.configure(strategy="conservative")
    for strategy in ("conservative", "aggressive"):
        house.configure(strategy=strategy)
        one, two = plan_of([package("a")]), plan_of([package("a", tree="2" * 40)])
        await house.build_all(one)
        assert await house.open(one) == []
        await house.build_all(two)
        assert await house.open(two) == []
        assert await house.open(one) == (["a"] if strategy == "conservative" else [])


@pytest.mark.parametrize(
    ("strategies", "mine", "its"),
    [
        ({}, "aggressive", "aggressive"),
        ({HOME: "none"}, "none", "aggressive"),
        ({"https://example.org/*": "conservative"}, "conservative", "conservative"),
        ({"*": "none", HOME: "conservative"}, "conservative", "none"),
        ({"*/other.git": "none", "https://*": "conservative"}, "conservative", "none"),
    ],
)
async def test_each_repository_has_the_strategy_that_is_configured_for_it_and_a_run_may_have_its_own(
    strategies: dict[str, Strategy], mine: str, its: str, tmp_path: Path
) -> None:
    config = configuration.load(files=[], environ={"HOME": str(tmp_path)})
    cache = msgspec.structs.replace(config.cache, strategy="aggressive", strategies=strategies)
    config = msgspec.structs.replace(config, cache=cache)
    nothing: Any = None
    assessor = Assessor(lambda: config, nothing, nothing, nothing, lambda strategy: Environment(id=strategy, parts={}))
    plan = plan_of([package("a"), package("b", repository=OTHER)])
    rules = assessor.rules(plan, None)
    assert [rules.strategy(p) for p in plan.packages.values()] == [mine, its]
    assert [rules.of(p).environment.id for p in plan.packages.values()] == [mine, its]
    own = assessor.rules(plan, "conservative")
    assert {own.strategy(p) for p in plan.packages.values()} == {"conservative"}


# --- artifacts --------------------------------------------------------------------------------------------


async def test_an_artifact_that_somebody_removed_is_built_again(house: House) -> None:
    plan = plan_of(CHAIN)
    built = await house.build_all(plan)
    assert await house.open(plan) == []
    shutil.rmtree(house.artifacts.directory(built["other"].output_id))
    assert await house.open(plan) == ["other"]
    await house.build(plan, "other", built, "other")
    assert await house.open(plan) == []


async def test_an_artifact_that_was_removed_before_anybody_looked_is_built_again(house: House) -> None:
    plan = plan_of(CHAIN)
    rules = house.assessor.rules(plan, None)
    await house.standing(plan)
    built = await house.build_all(plan)
    lineage = house.assessor.lineage(plan, rules)
    lineage.add(plan, built, {name: {d: built[d].closure for d in plan.graph[name]} for name in built})
    shutil.rmtree(house.artifacts.directory(built["other"].output_id))
    assert await house.open(plan) == ["other"]


async def test_an_artifact_that_was_collected_is_built_again(house: House) -> None:
    plan = plan_of(CHAIN)
    built = await house.build_all(plan)
    assert await house.open(plan) == []
    shutil.rmtree(house.artifacts.directory(built["lib"].output_id))
    house.assessor.forget([built["lib"].output_id])
    assert await house.open(plan) == ["lib", "app"]


def damage(house: House, entry: Settled) -> None:
    file = house.artifacts.tree(entry.output_id) / "file"
    file.chmod(0o644)
    file.write_text("damaged")


async def test_a_damaged_artifact_is_built_again_when_something_needs_it(house: House) -> None:
    plan = plan_of(CHAIN)
    built = await house.build_all(plan)
    assert await house.open(plan) == []
    house.assessor = house.another_life()
    house.artifacts = ArtifactStore(house.root / "artifacts")
    house.assessor = house.another_life()
    damage(house, built["base"])
    assert await house.open(plan) == [], "nothing is about to use it"
    now = changed(plan, "app", version="2")
    assert await house.open(now) == ["base", "lib", "app"], "of lib is not known what a new base makes of it"
    assert not house.artifacts.exists(built["base"].output_id)
    assert await house.open(plan) == ["base", "lib", "app"]
    events = (await house.journal.poll(0, timeout=5, kinds=("artifact_damaged",))).events
    assert [event.data["output_id"] for event in events] == [built["base"].output_id]


async def test_a_damaged_artifact_that_cannot_be_moved_is_not_used_and_not_looked_at_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(CHAIN)
    built = await house.build_all(plan)
    house.artifacts = ArtifactStore(house.root / "artifacts")
    house.assessor = house.another_life()
    damage(house, built["base"])

    def refuse(output: str) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(house.artifacts, "set_aside", refuse)
        for _ in range(2):
            assert await house.open(changed(plan, "app", version="2")) == ["base", "lib", "app"]
    house.artifacts.set_aside(built["base"].output_id)
    await house.build(plan, "base", {})
    assert await house.open(plan) == [], "a sound one has come in its place"


async def test_what_becomes_doubtful_during_a_look_is_looked_at_again(house: House) -> None:
    plan = plan_of(CHAIN)
    built = await house.build_all(plan)
    look, looks = house.assessor._look, 0
    assessor: Any = house.assessor

    async def slow(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        found = await look(*arguments)
        if looks == 1:
            shutil.rmtree(house.artifacts.directory(built["lib"].output_id))
            house.assessor.forget([built["lib"].output_id])
        return found

    assessor._look = slow
    assert await house.open(plan) == ["lib", "app"]
    assert looks == 2


async def test_after_the_loss_of_the_database_nothing_is_remembered(house: House) -> None:
    plan = plan_of(CHAIN)
    await house.build_all(plan)
    assert await house.open(plan) == []
    await house.database.submit([("DELETE FROM builds", ())]).wait()
    assert await house.open(plan) == []
    house.assessor.forget_all()
    assert await house.open(plan) == list(plan.packages)


# --- verdicts ---------------------------------------------------------------------------------------------


async def assessed(house: House, plan: Plan) -> dict[str, Any]:
    rules: Rules = house.assessor.rules(plan, None)
    assessment = await house.assessor.assess(plan, rules)
    assert assessment.plan is plan
    assert list(assessment.verdicts) == list(plan.packages)
    return assessment.verdicts


async def test_a_verdict_says_what_answers_a_package_or_what_it_would_be_built_from(house: House) -> None:
    plan = plan_of(CHAIN)
    built = await house.build_all(plan)
    now = changed(plan, "lib", version="2")
    verdicts = await assessed(house, now)
    assert {name: v.state for name, v in verdicts.items()} == {
        "base": "up_to_date",
        "lib": "build",
        "app": "build",
        "other": "up_to_date",
    }
    base, lib, app = verdicts["base"], verdicts["lib"], verdicts["app"]
    assert (base.key, base.known.build, base.inputs) == (built["base"].key, built["base"].build, None)
    assert lib.key == key_of(lib.inputs.parts)
    assert lib.inputs.parts.dependencies == {"base": built["base"].closure}
    assert lib.inputs.outputs == {"base": built["base"].output_id}
    assert (lib.inputs.repository, lib.inputs.commit, lib.inputs.root) == (HOME, "c" * 40, "t" * 40)
    assert (lib.inputs.strategy, lib.inputs.environment) == ("aggressive", {"sandbox": "plain"})
    assert (app.key, app.inputs, app.pending) == (None, None, ("lib",))
    assert app.partial.parts.dependencies == {}
    assert app.partial.outputs == {"base": built["base"].output_id}


async def test_what_needs_something_that_is_not_to_be_built_here_is_not_built_either(house: House) -> None:
    plan = plan_of([package("base"), package("lib", "base", ignore="no cmake"), package("app", "lib")])
    verdicts = await assessed(house, plan)
    assert {name: v.state for name, v in verdicts.items()} == {"base": "build", "lib": "ignored", "app": "ignored"}


async def test_of_a_very_large_closure_only_the_outputs_of_direct_dependencies_are_named(house: House) -> None:
    names = [f"n{number}" for number in range(NAMED_OUTPUTS + 2)]
    chain = [package(name, *names[:number][-1:]) for number, name in enumerate(names)]
    plan = plan_of([*chain, package("top", names[-1]), package("middle", names[-3])])
    built: dict[str, Settled] = {}
    output = house.output("the same")
    rules = house.assessor.rules(plan, None)
    for name in names:
        dependencies = {d: built[d].closure for d in plan.graph[name]}
        key = key_of(rules.parts(plan.packages[name], dependencies))
        built[name] = Settled(plan.packages[name], key, closure_id(output, dependencies), output, "b")
    house.assessor.lineage(plan, rules).remember(plan, built, {"top", "middle"})
    verdicts = await assessed(house, plan)
    assert verdicts["top"].inputs.outputs == {names[-1]: output}
    assert len(verdicts["middle"].inputs.outputs) == NAMED_OUTPUTS


# --- several at once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", range(4))
async def test_revisions_that_are_looked_at_at_the_same_time_keep_apart(house: House, rounds: int) -> None:
    """They share one memory: what another one remembers while a look waits for the records is not its own."""
    old = plan_of(CHAIN)
    new = plan_of([p for p in changed(old, "lib", tree="2" * 40).packages.values() if p.name != "other"])
    built = await house.build_all(old)
    for name in ("lib", "app"):
        built[name] = await house.build(new, name, built, f"new {name}")
    found: dict[int, Standing] = {}
    rules = house.assessor.rules(old, None)

    async def look(number: int, plan: Plan) -> None:
        for _ in range(rounds):
            await trio.lowlevel.checkpoint()
        found[number], _ = await house.assessor.standing(plan, rules)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number, plan in enumerate((old, new) * 6):
                nursery.start_soon(look, number, plan)
    for number, standing in found.items():
        plan = (old, new)[number % 2]
        assert list(standing.open) == []
        assert standing.settled.keys() == plan.packages.keys()
        assert all(entry.package is plan.packages[name] for name, entry in standing.settled.items())


async def test_more_sets_of_targets_than_are_remembered_find_a_damaged_artifact_all_the_same(house: House) -> None:
    plans = []
    for number in range(12):
        plan = plan_of(CHAIN)
        plan.home = number
        plans.append(plan)
    built = await house.build_all(plans[0])
    broken = house.artifacts.tree(built["base"].output_id) / "file"
    broken.chmod(0o644)
    broken.write_text("damage")
    rules = house.assessor.rules(plans[0], None)
    opened: list[list[str]] = []

    async def look(plan: Plan) -> None:
        standing, _ = await house.assessor.standing(plan, rules, forced=frozenset(["lib"]))
        opened.append(list(standing.open))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for plan in plans:
                nursery.start_soon(look, plan)
    assert opened == [["base", "lib", "app"]] * 12
