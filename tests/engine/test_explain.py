"""Verdicts explained from the records: what is compared with what, and what is said when records are thin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from harness import RecipeRepository
from harness.repository import git

from buildd.engine.assess import Verdict
from buildd.engine.explain import MAX_CHAIN, Explainer
from buildd.errors import NotFound
from buildd.model import BuildRecord, Package, Strategy
from buildd.planner.keys import Inputs, key_of, key_parts
from buildd.protocol import PackageVerdict
from buildd.repos.clones import Clones
from buildd.store.database import Database
from buildd.store.queries import Queries
from buildd.store.runs import KnownResult, insert_build, save_source, update_build

pytestmark = pytest.mark.trio
HOME, FORK = "https://example.org/r", "https://example.org/fork"
TREE, NEW_TREE = "1" * 40, "2" * 40
FILE = 0o100644


class NoClones:
    def find(self, text: str) -> None:
        raise NotFound(f"no clone of {text}")


class World:
    """A database of builds, artifacts by name, and what a run would find now."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.artifacts: set[str] = set()
        self.explainer = Explainer(Queries(database), cast(Clones, NoClones()), self.artifacts.__contains__)
        self._count = 0

    def package(self, name: str = "jq", **fields: Any) -> Package:
        given = {"version": "1", "path": name, "repository": HOME, "store": "/nowhere", "tree": TREE}
        return Package(name=name, **(given | fields))

    def inputs(
        self,
        package: Package,
        *,
        dependencies: dict[str, str] | None = None,
        outputs: dict[str, str] | None = None,
        strategy: Strategy = "aggressive",
    ) -> Inputs:
        parts = key_parts(package, environment="e" * 64, architecture="x", dependencies=dependencies or {})
        return Inputs(
            parts=parts,
            outputs=outputs or {},
            environment={},
            strategy=strategy,
            repository=package.repository,
            commit=None,
            root="0" * 40,
            path=package.path,
        )

    async def built(
        self, inputs: Inputs, *, output: str = "a" * 64, state: Any = "success", early: bool = False
    ) -> BuildRecord:
        """A build, later than all before; `early` leaves out what early versions did not record."""
        self._count += 1
        record = BuildRecord(
            id=f"{self._count:08x}-0000-4000-8000-000000000000",
            run="r",
            package=inputs.parts.name,
            version=inputs.parts.version,
            state="running",
            started_at=float(self._count),
            key=key_of(inputs.parts),
            repository=inputs.repository,
        )
        done = msgspec.structs.replace(
            record,
            state=state,
            completed_at=self._count + 0.5,
            output_id=output if state == "success" else None,
            reason=None if state == "success" else "phase_failed",
        )
        await self.database.submit([insert_build(record, inputs), update_build(done)]).wait()
        if early:
            await self.database.submit([("UPDATE builds SET inputs = NULL WHERE id = ?", (done.id,))]).wait()
        self.artifacts.add(output)
        return done

    async def told(self, package: Package, inputs: Inputs, **fields: Any) -> PackageVerdict:
        """What is said of a package that would be built now."""
        given: dict[str, Any] = {
            "state": "build",
            "key": key_of(inputs.parts),
            "known": None,
            "inputs": inputs,
            "partial": inputs,
            "pending": (),
        }
        options = {name: fields.pop(name) for name in ("files",) if name in fields}
        verdict = Verdict(package=package, **(given | fields))
        return (await self.explainer.explain([verdict], **options))[package.name]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(tmp_path / "b.db")
    database.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        yield World(database)
        nursery.cancel_scope.cancel()


def kinds(verdict: PackageVerdict) -> list[str]:
    return [cause.kind for cause in verdict.causes]


async def test_the_last_success_of_the_same_repository_is_compared_with(world: World) -> None:
    mine = await world.built(world.inputs(world.package(version="1")))
    await world.built(world.inputs(world.package(version="2", repository=FORK)))
    package = world.package(version="3")
    told = await world.told(package, world.inputs(package))
    assert (told.build, told.built_at, told.output_id) == (mine.id, mine.started_at, "a" * 64)
    assert [(c.kind, c.old, c.new) for c in told.causes] == [("version", "1", "3")]


async def test_without_one_the_last_of_any_repository_is(world: World) -> None:
    await world.built(world.inputs(world.package(version="1", repository="/a")))
    other = await world.built(world.inputs(world.package(version="2", repository=FORK)))
    package = world.package(version="3")
    assert (await world.told(package, world.inputs(package))).build == other.id


async def test_what_was_never_built_says_what_its_last_try_came_to(world: World) -> None:
    package = world.package()
    told = await world.told(package, world.inputs(package))
    assert [(c.kind, c.message) for c in told.causes] == [("never_built", "it was never built")]
    failed = await world.built(world.inputs(package), state="failed")
    told = await world.told(package, world.inputs(package))
    assert [(c.kind, c.what) for c in told.causes] == [("never_built", failed.id)]


async def test_an_equal_key_whose_artifact_is_gone_is_that_and_no_difference(world: World) -> None:
    package = world.package()
    first = await world.built(world.inputs(package), output="b" * 64)
    await world.built(world.inputs(world.package(version="2")))
    world.artifacts.remove("b" * 64)
    told = await world.told(package, world.inputs(package))
    assert told.build == first.id
    assert [(c.kind, c.old) for c in told.causes] == [("artifact", "b" * 64)]


async def test_conservative_does_not_take_what_another_repository_has_built(world: World) -> None:
    await world.built(world.inputs(world.package(repository=FORK), strategy="conservative"))
    package = world.package()
    told = await world.told(package, world.inputs(package, strategy="conservative"))
    assert [(c.kind, c.what, c.old) for c in told.causes] == [("strategy", "conservative", FORK)]


async def test_none_is_the_cause_and_differences_come_after_it(world: World) -> None:
    await world.built(world.inputs(world.package()))
    package = world.package()
    assert kinds(await world.told(package, world.inputs(package, strategy="none"))) == ["strategy"]
    package = world.package(version="2")
    assert kinds(await world.told(package, world.inputs(package, strategy="none"))) == ["strategy", "version"]


async def test_a_success_of_an_early_version_cannot_be_compared_with(world: World) -> None:
    old = await world.built(world.inputs(world.package()), early=True)
    package = world.package(version="2")
    told = await world.told(package, world.inputs(package))
    assert [(c.kind, c.what) for c in told.causes] == [("format", old.id)]
    build = await world.built(world.inputs(package), early=True)
    assert kinds(await world.explainer.explain_build(build, forced=False)) == ["format"]


async def test_files_are_named_from_the_stored_listings(world: World) -> None:
    def listing(*names: str) -> list[tuple[bytes, int, bytes]]:
        return [(name.encode(), FILE, b"\1" * 20) for name in names]

    many = [f"f{n}" for n in range(30)]
    await world.database.submit([save_source(TREE, 1, listing("a")), save_source(NEW_TREE, 1, listing(*many))]).wait()
    await world.built(world.inputs(world.package()))
    package = world.package(tree=NEW_TREE)
    (cause,) = (await world.told(package, world.inputs(package))).causes
    assert len(cause.files) == 30
    (cause,) = (await world.told(package, world.inputs(package), files=3)).causes
    assert len(cause.files) == 3
    assert cause.message == "source: 29 added, 1 renamed"


async def test_files_are_named_from_git_where_no_listing_is_stored(world: World, repository: RecipeRepository) -> None:
    repository.write("lib/a", "1").commit()
    old = git("rev-parse", "HEAD:lib", cwd=repository.path)
    repository.write("lib/a", "2").commit()
    new = git("rev-parse", "HEAD:lib", cwd=repository.path)
    home = {"repository": str(repository), "store": str(repository)}
    await world.built(world.inputs(world.package(tree=old, **home)))
    package = world.package(tree=new, **home)
    (cause,) = (await world.told(package, world.inputs(package))).causes
    assert [(file.path, file.change) for file in cause.files] == [("a", "modified")]


async def test_a_source_whose_files_are_nowhere_is_a_cause_all_the_same(world: World) -> None:
    await world.built(world.inputs(world.package()))
    package = world.package(tree=NEW_TREE)
    (cause,) = (await world.told(package, world.inputs(package))).causes
    assert (cause.kind, cause.old, cause.new, cause.files) == ("source", TREE, NEW_TREE, ())


async def test_of_many_packages_each_gets_its_own_verdict(world: World) -> None:
    build = await world.built(world.inputs(world.package("a")))
    known = KnownResult(key=build.key, output_id="a" * 64, build=build.id)
    verdicts = [
        Verdict(
            package=world.package("a"), state="up_to_date", key="k", known=known, inputs=None, partial=None, pending=()
        ),
        Verdict(
            package=world.package("b", ignore="not here"),
            state="ignored",
            key=None,
            known=None,
            inputs=None,
            partial=None,
            pending=(),
        ),
    ]
    inputs = world.inputs(world.package("c"))
    verdicts.append(
        Verdict(
            package=world.package("c"), state="build", key=None, known=None, inputs=None, partial=inputs, pending=("a",)
        )
    )
    told = await world.explainer.explain(verdicts)
    assert list(told) == ["a", "b", "c"]
    assert (told["a"].build, told["a"].built_at, told["a"].causes) == (build.id, build.started_at, ())
    assert [(c.kind, c.message) for c in told["b"].causes] == [("ignored", "not here")]
    assert kinds(told["c"]) == ["never_built"]


# --- what is behind it ------------------------------------------------------------------------------------


async def chain(world: World, length: int) -> PackageVerdict:
    """Packages p0 … that each depend on the one before, of which p0 changed; the verdict on the last."""
    for generation in (1, 2):
        before: tuple[str, str] | None = None
        for number in range(length):
            package = world.package(f"p{number}", version=str(generation) if number == 0 else "1")
            dependencies, outputs = ({}, {}) if before is None else ({before[0]: before[1]}, {before[0]: before[1]})
            output = f"{generation}{number:063}"
            build = await world.built(world.inputs(package, dependencies=dependencies, outputs=outputs), output=output)
            before = (package.name, output)
    return await world.explainer.explain_build(build, forced=False)


async def test_a_changed_output_is_followed_down_to_what_changed_it(world: World) -> None:
    asked = await chain(world, 4)
    assert [(c.kind, c.what) for c in asked.causes] == [("dependency", "p2")]
    found = await world.explainer.chain(asked, ())
    assert [verdict.package for verdict in found] == ["p0", "p1", "p2"]
    assert [(c.kind, c.old, c.new) for c in found[0].causes] == [("version", "1", "2")]
    assert {verdict.state for verdict in found} == {"up_to_date"}


async def test_a_very_long_chain_is_followed_only_so_far(world: World) -> None:
    asked = await chain(world, MAX_CHAIN + 20)
    found = await world.explainer.chain(asked, ())
    assert len(found) == MAX_CHAIN
    assert found[-1].package == f"p{MAX_CHAIN + 18}"


async def test_an_output_that_came_back_is_compared_with_its_earlier_build(world: World) -> None:
    def base(version: str) -> Inputs:
        return world.inputs(world.package("base", version=version))

    def user(output: str) -> Inputs:
        return world.inputs(world.package("user"), dependencies={"base": output}, outputs={"base": output})

    await world.built(base("1"), output="1" * 64)
    await world.built(base("2"), output="2" * 64)
    await world.built(user("2" * 64))
    again = await world.built(user("1" * 64))  # `base` went back, and was not built for it
    asked = await world.explainer.explain_build(again, forced=False)
    (behind,) = await world.explainer.chain(asked, ())
    assert [(c.kind, c.old, c.new) for c in behind.causes] == [("version", "2", "1")]


async def test_a_forced_build_of_what_had_changed_names_both(world: World) -> None:
    await world.built(world.inputs(world.package()))
    build = await world.built(world.inputs(world.package(version="2")))
    assert kinds(await world.explainer.explain_build(build, forced=True)) == ["forced", "version"]
    again = await world.built(world.inputs(world.package(version="2")))
    assert kinds(await world.explainer.explain_build(again, forced=True)) == ["forced"]
    assert kinds(await world.explainer.explain_build(again, forced=False)) == ["artifact"]
