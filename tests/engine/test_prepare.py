"""From targets to a plan, with real git repositories."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from harness import GitServer, RecipeRepository, git

from buildd import config as configuration
from buildd.engine import prepare
from buildd.engine.prepare import KEPT_PLANS, Located, Plan, Planner
from buildd.engine.targets import parse_target
from buildd.errors import BuilddError, InvalidInput, NotFound
from buildd.model import Package, Repository
from buildd.repos import trees
from buildd.repos.clones import Clones, CloneSettings

pytestmark = pytest.mark.trio


class Records:
    """Repository records in memory."""

    def __init__(self) -> None:
        self._records: dict[str, Repository] = {}

    def all(self) -> list[Repository]:
        return list(self._records.values())

    def save(self, repository: Repository) -> None:
        self._records[repository.url] = repository

    def remove(self, url: str) -> None:
        self._records.pop(url, None)


class House:
    """A planner with real clones below `root`."""

    def __init__(self, root: Path, clones: Clones) -> None:
        self._root = root
        self.clones = clones
        self.settings: list[str] = []
        self.forget()

    def forget(self) -> None:
        """Another planner, that remembers nothing but what is on disk."""
        self.planner = self.planner_without_memory(self._root / "cache")

    def planner_without_memory(self, cache: Path) -> Planner:
        return Planner(self._config, self.clones, cache)

    def _config(self) -> configuration.Config:
        directories = [f"daemon.{name}_dir={self._root / name}" for name in ("state", "cache", "runtime")]
        return configuration.load(files=[], settings=[*directories, *self.settings], environ={"HOME": str(self._root)})

    async def plan(
        self, *targets: object, refresh: bool = False, worktree: bool = False, planner: Planner | None = None
    ) -> Plan:
        planner = planner or self.planner
        parsed = [parse_target(str(target)) for target in targets]
        async with AsyncExitStack() as held:
            located = await planner.locate(parsed, refresh=refresh, held=held, worktree=worktree)
            return await planner.plan(parsed, located, refresh=refresh, held=held)

    async def plan_as_if_new(self, *targets: object, worktree: bool = False) -> Plan:
        """The plan, which is also that of a planner without any memory."""
        plan = await self.plan(*targets, worktree=worktree)
        with tempfile.TemporaryDirectory() as cache:
            new = await self.plan(*targets, worktree=worktree, planner=self.planner_without_memory(Path(cache)))
            assert facts(plan) == facts(new)
        return plan

    async def names(self, *targets: object, refresh: bool = False) -> list[str]:
        return list((await self.plan(*targets, refresh=refresh)).packages)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    root = tmp_path / "house"
    clones = Clones(
        root / "cache" / "clones",
        CloneSettings(schemes=("https", "git", "file"), idle_timeout_s=20, total_timeout_s=60),
        Records(),
        lambda kind, url, data: None,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(clones.run)
        yield House(root, clones)
        nursery.cancel_scope.cancel()


@pytest.fixture
def workspace(repository: RecipeRepository) -> RecipeRepository:
    repository.package("base").package("lib", depends=["base"]).package("app", depends=["lib"], version="2.0")
    repository.package("extra", depends=["base"], default=False)
    repository.commit()
    return repository


def facts(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says, without where snapshots of directories are."""

    def plain(found: Package | Located) -> Package | Located:
        return msgspec.structs.replace(found, store="")

    return {
        "packages": [plain(p) for p in plan.packages.values()],
        "names": list(plan.packages),
        "graph": dict(plan.graph),
        "index": dict(plan.index),
        "dependents": {name: sorted(found) for name, found in plan.dependents.items()},
        "wanted": sorted(plan.wanted),
        "packs": plan.packs,
        "repositories": plan.repositories,
        "origins": {p.name: plain(plan.origin(p)) for p in plan.packages.values()},
        "targets": [plain(place) for place in plan.places.targets],
        "foreign": {text: plain(place) for text, place in plan.places.foreign.items()},
    }


def commits(plan: Plan) -> set[str | None]:
    return {plan.origin(package).commit for package in plan.packages.values()}


@contextmanager
def unprivileged(directory: Path) -> Iterator[None]:
    """As nobody, if the tests run as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    for path in (directory, *list(directory.parents)[:2]):
        path.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --- what a target means ----------------------------------------------------------------------------------


async def test_a_repository_means_all_its_default_packages_in_order(house: House, workspace: RecipeRepository) -> None:
    plan = await house.plan(workspace)
    assert list(plan.packages) == ["base", "lib", "app"]
    head = git("rev-parse", "HEAD", cwd=workspace.path)
    for name, package in plan.packages.items():
        assert (package.name, package.repository) == (name, str(workspace))
        assert plan.origin(package).commit == head
        assert package.tree == git("rev-parse", f"HEAD:{package.path}", cwd=workspace.path)
    assert plan.graph == {"base": (), "lib": ("base",), "app": ("lib",)}


async def test_a_package_brings_what_it_needs_and_nothing_else(house: House, workspace: RecipeRepository) -> None:
    assert await house.names(f"{workspace}//lib") == ["base", "lib"]
    assert await house.names(f"{workspace}//extra") == ["base", "extra"]


async def test_several_targets_of_one_repository_make_one_plan(house: House, workspace: RecipeRepository) -> None:
    assert await house.names(f"{workspace}//lib", f"{workspace}//extra", workspace) == ["base", "extra", "lib", "app"]


async def test_a_package_that_is_not_there_is_not_found_and_a_near_one_suggested(
    house: House, workspace: RecipeRepository
) -> None:
    with pytest.raises(NotFound, match="has no package lip") as caught:
        await house.plan(f"{workspace}//lip")
    assert "did you mean lib?" in caught.value.hint


async def test_a_revision_is_a_branch_a_tag_or_a_commit(house: House, workspace: RecipeRepository) -> None:
    first = git("rev-parse", "HEAD", cwd=workspace.path)
    git("tag", "v1", cwd=workspace.path)
    workspace.package("more").commit()
    git("branch", "feature/more", cwd=workspace.path)
    assert "more" in await house.names(workspace)
    assert "more" in await house.names(f"{workspace}@feature/more")
    for revision in ("v1", first, first[:10]):
        plan = await house.plan(f"{workspace}@{revision}")
        assert commits(plan) == {first}
        assert "more" not in plan.graph
    with pytest.raises(NotFound, match="'v9'"):
        await house.plan(f"{workspace}@v9")


async def test_what_is_not_committed_is_not_built(house: House, workspace: RecipeRepository) -> None:
    before = await house.plan(workspace)
    workspace.write("base/README", "changed\n")
    assert await house.plan(workspace) is before


async def test_a_subdirectory_means_the_packages_below_it(house: House, workspace: RecipeRepository) -> None:
    assert await house.names(workspace.path / "lib") == ["base", "lib"]
    assert await house.names(f"{workspace.path / 'lib'}@main") == ["base", "lib"]
    workspace.write("docs/readme", "no package\n").commit()
    with pytest.raises(NotFound, match=r"no package found in .* below docs"):
        await house.plan(workspace.path / "docs")


async def test_a_name_that_only_begins_alike_is_not_below_a_subdirectory(
    house: House, repository: RecipeRepository
) -> None:
    repository.package("lib").package("lib-extra").commit()
    assert await house.names(repository.path / "lib") == ["lib"]


async def test_a_subdirectory_that_the_revision_lacks_cannot_be_asked_for_by_revision(
    house: House, workspace: RecipeRepository
) -> None:
    workspace.write("new/buildd.toml", "[package.new]\n")
    assert await house.names(workspace.path / "new") == ["new"], "without a revision it is a plain directory"
    with pytest.raises(NotFound):
        await house.plan(f"{workspace.path / 'new'}@main")


async def test_a_bare_repository_is_read_in_place(house: House, workspace: RecipeRepository, tmp_path: Path) -> None:
    bare = tmp_path / "bare.git"
    git("clone", "-q", "--bare", workspace.path, bare)
    plan = await house.plan(bare)
    assert list(plan.packages) == ["base", "lib", "app"]
    assert plan.repositories == {p.repository for p in plan.packages.values()} == {str(bare)}


async def test_a_repository_without_commits_says_so(house: House, tmp_path: Path) -> None:
    empty = RecipeRepository(tmp_path / "empty")
    with pytest.raises(NotFound, match="no commits"):
        await house.plan(empty)


async def test_a_symbolic_link_leads_to_the_same_repository(
    house: House, workspace: RecipeRepository, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(workspace.path)
    assert await house.plan(tmp_path / "link") is await house.plan(workspace)


async def test_a_plain_directory_is_a_snapshot_without_a_commit(house: House, tmp_path: Path) -> None:
    plain = RecipeRepository(tmp_path / "plain", plain=True).package("one").package("two", depends=["one"])
    plain.commit()
    first = await house.plan(plain)
    assert list(first.packages) == ["one", "two"]
    assert commits(first) == {None}
    assert await house.plan(plain) is first, "the same content has the same trees"
    plain.write("two/README", "changed\n")
    second = await house.plan(plain)
    assert second.packages["one"] is first.packages["one"]
    assert second.packages["two"].tree != first.packages["two"].tree
    with pytest.raises(InvalidInput, match="plain directory and has no revision 'v1'"):
        await house.plan(f"{plain}@v1")


# --- dependencies -----------------------------------------------------------------------------------------


async def test_a_dependency_that_does_not_exist_is_named_with_who_wants_it(
    house: House, repository: RecipeRepository
) -> None:
    repository.package("lib").package("app", depends=["lub"]).commit()
    with pytest.raises(InvalidInput, match="package app depends on lub, which does not exist") as caught:
        await house.plan(repository)
    assert "did you mean lib?" in caught.value.hint


async def test_a_cycle_is_named(house: House, repository: RecipeRepository) -> None:
    repository.package("a", depends=["b"]).package("b", depends=["a"]).commit()
    with pytest.raises(InvalidInput, match=r"dependency cycle: (a -> b -> a|b -> a -> b)"):
        await house.plan(repository)


async def test_a_dependency_in_another_repository_is_found_there(
    house: House, repository: RecipeRepository, tmp_path: Path
) -> None:
    other = RecipeRepository(tmp_path / "other").package("zlib").package("unrelated")
    other.commit()
    repository.package("app", depends=[f"{other}//zlib"]).commit()
    plan = await house.plan(repository)
    assert plan.graph == {"zlib": (), "app": ("zlib",)}
    assert plan.packages["zlib"].repository == str(other)
    assert plan.origin(plan.packages["zlib"]).commit == git("rev-parse", "HEAD", cwd=other.path)
    assert plan.repositories == {str(repository), str(other)}


async def test_a_dependency_on_another_repository_is_never_answered_by_a_namesake(
    house: House, repository: RecipeRepository, tmp_path: Path
) -> None:
    other = RecipeRepository(tmp_path / "other").package("zlib", version="9")
    other.commit()
    repository.package("zlib", version="1").package("app", depends=[f"{other}//zlib"]).commit()
    try:
        plan = await house.plan(f"{repository}//app")
    except InvalidInput as error:
        assert "zlib" in error.message
        assert str(other) in error.message
        return
    assert plan.packages["zlib"].repository == str(other)


async def test_a_package_that_the_other_repository_lacks_does_not_exist(
    house: House, repository: RecipeRepository, tmp_path: Path
) -> None:
    other = RecipeRepository(tmp_path / "other").package("zlib")
    other.commit()
    repository.package("app", depends=[f"{other}//zlip"]).commit()
    with pytest.raises(InvalidInput, match=r"app depends on .*//zlip, which does not exist"):
        await house.plan(repository)


async def test_a_namesake_in_another_repository_that_nobody_wants_is_no_trouble(
    house: House, repository: RecipeRepository, tmp_path: Path
) -> None:
    other = RecipeRepository(tmp_path / "other").package("zlib").package("docs")
    other.commit()
    repository.package("docs").package("app", depends=[f"{other}//zlib"]).commit()
    plan = await house.plan(repository)
    assert {p.name: p.repository for p in plan.packages.values()} == {
        "app": str(repository),
        "docs": str(repository),
        "zlib": str(other),
    }


async def test_two_packages_of_one_name_are_refused_and_both_places_named(
    house: House, workspace: RecipeRepository, tmp_path: Path
) -> None:
    other = RecipeRepository(tmp_path / "other").package("lib")
    other.commit()
    with pytest.raises(InvalidInput, match="package lib is defined twice") as caught:
        await house.plan(workspace, other)
    assert str(workspace) in caught.value.message
    assert str(other) in caught.value.message


async def test_a_package_whose_tools_are_missing_is_planned_but_ignored(
    house: House, repository: RecipeRepository
) -> None:
    repository.package("a", tools=["sh", "no-such-tool-anywhere"]).package("b", tools=["sh"])
    repository.package("c", tools=["no-such-tool-anywhere"], ignore="broken upstream").commit()
    ignored = {p.name: p.ignore for p in (await house.plan(repository)).packages.values()}
    assert ignored == {
        "a": "it needs no-such-tool-anywhere, not found on the PATH of builds",
        "b": "",
        "c": "broken upstream",
    }


async def test_a_dependency_that_is_written_twice_counts_once(house: House, repository: RecipeRepository) -> None:
    repository.package("a").package("b", depends=["a", "a"]).commit()
    assert (await house.plan(repository)).graph == {"a": (), "b": ("a",)}


# --- URLs -------------------------------------------------------------------------------------------------


async def test_a_url_is_cloned_and_a_known_name_finds_it_again(
    house: House, workspace: RecipeRepository, git_server: GitServer
) -> None:
    url = git_server.url(workspace)
    plan = await house.plan(url)
    assert list(plan.packages) == ["base", "lib", "app"]
    assert plan.repositories == {url}
    assert await house.plan("workspace") is plan
    assert await house.names(f"{url}//base") == ["base"]


async def test_refresh_sees_what_was_pushed_and_without_it_nothing_is_fetched(
    house: House, workspace: RecipeRepository, git_server: GitServer
) -> None:
    url = git_server.url(workspace)
    await house.plan(url)
    workspace.package("more").commit()
    assert "more" not in await house.names(url)
    assert "more" in await house.names(url, refresh=True)


async def test_clones_stay_in_use_while_the_plan_is_held(
    house: House, workspace: RecipeRepository, git_server: GitServer, tmp_path: Path
) -> None:
    url = git_server.url(workspace)
    local = RecipeRepository(tmp_path / "local").package("mine", depends=[f"{url}//base"])
    local.commit()
    target = [parse_target(str(local))]
    async with AsyncExitStack() as held:
        located = await house.planner.locate(target, refresh=False, held=held)
        plan = await house.planner.plan(target, located, refresh=False, held=held)
        assert list(plan.packages) == ["base", "mine"]
        assert house.clones.in_use(url)
    assert not house.clones.in_use(url)


# --- plans that are remembered ----------------------------------------------------------------------------


async def test_the_same_targets_on_the_same_trees_are_the_same_plan(house: House, workspace: RecipeRepository) -> None:
    plan = await house.plan(workspace)
    assert await house.plan(workspace) is plan
    assert await house.plan(workspace.path) is plan
    assert await house.plan(f"{workspace}@main") is plan
    part = await house.plan(f"{workspace}//lib")
    assert part is not plan
    assert await house.plan(f"{workspace}//lib") is part
    assert await house.plan(workspace) is plan


async def test_a_commit_that_changes_nothing_is_another_plan_of_the_same_packages(
    house: House, workspace: RecipeRepository
) -> None:
    before = await house.plan(workspace)
    commit = workspace.commit("nothing")
    now = await house.plan_as_if_new(workspace)
    assert commits(now) == {commit}
    assert now.graph is before.graph
    assert all(now.packages[name] is package for name, package in before.packages.items())


async def test_a_changed_source_gives_a_variation_that_shares_all_else(
    house: House, workspace: RecipeRepository
) -> None:
    before = await house.plan(workspace)
    commit = workspace.write("lib/new.c", "int x;").commit()
    now = await house.plan_as_if_new(workspace)
    assert now is not before
    assert (now.graph, now.index, now.dependents) == (before.graph, before.index, before.dependents)
    assert now.graph is before.graph
    assert now.index is before.index
    assert now.dependents is before.dependents
    assert {name for name, package in now.packages.items() if package is not before.packages[name]} == {"lib"}
    assert now.packages["lib"].tree == git("rev-parse", "HEAD:lib", cwd=workspace.path)
    assert now.origin(now.packages["base"]).commit == commit
    assert before.packages["lib"].tree != now.packages["lib"].tree, "the earlier plan is what it was"


async def test_a_changed_command_gives_a_variation(house: House, workspace: RecipeRepository) -> None:
    before = await house.plan(workspace)
    workspace.package("lib", depends=["base"], phases={"build": "make"}, version="2").commit()
    now = await house.plan_as_if_new(workspace)
    assert now.graph is before.graph
    assert (now.packages["lib"].version, now.packages["lib"].phases) == ("2", {"build": "make"})
    assert now.packages["app"] is before.packages["app"]


EDITS: dict[str, Callable[[RecipeRepository], object]] = {
    "a dependency more": lambda r: r.package("app", depends=["lib", "base"], version="2.0"),
    "a dependency less": lambda r: r.package("app", version="2.0"),
    "a dependency the other way round": lambda r: r.package("lib").package("base", depends=["lib"]),
    "a package more": lambda r: r.package("more", depends=["lib"]),
    "a default package less": lambda r: r.package("app", depends=["lib"], version="2.0", default=False),
    "a default package more": lambda r: r.package("extra", depends=["base"]),
    "a package that is not to be built": lambda r: r.package("lib", depends=["base"], ignore="broken"),
    "a tool that is there": lambda r: r.package("lib", depends=["base"], tools=["sh"]),
    "a tool that is missing": lambda r: r.package("lib", depends=["base"], tools=["no-such-tool-anywhere"]),
    "a format": lambda r: r.package("lib", depends=["base"], formats=["tar"]),
    "another directory": lambda r: r.package("lib", depends=["base"], path="lib/c").write("lib/c/x.c", ""),
    "a move into the part that is meant": lambda r: r.package("app", path="lib/c").write("lib/c/x.c", ""),
    "a recipe of its own": lambda r: r.write("own/buildd.toml", '[package.own]\ndepends = ["app"]\n'),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("target", ["", "//lib", "/lib"])
async def test_a_plan_of_another_shape_is_made_anew(
    house: House, workspace: RecipeRepository, edit: str, target: str
) -> None:
    before = await house.plan(f"{workspace}{target}")
    EDITS[edit](workspace)
    workspace.commit()
    now = await house.plan_as_if_new(f"{workspace}{target}")
    for name in {"base", "lib"} & now.packages.keys():
        same = now.packages[name] == before.packages.get(name)
        assert same == (now.packages[name] is before.packages.get(name)), "what is unchanged is the same object"
    git("reset", "--hard", "-q", "HEAD^", cwd=workspace.path)
    assert list((await house.plan_as_if_new(f"{workspace}{target}")).packages.values()) == list(
        before.packages.values()
    )


async def test_a_mistake_does_not_stay(house: House, workspace: RecipeRepository) -> None:
    before = await house.plan(workspace)
    workspace.package("lib", depends=["nobody"]).commit()
    for _ in range(2):
        with pytest.raises(InvalidInput, match="package lib depends on nobody"):
            await house.plan(workspace)
    workspace.package("lib", depends=["base"]).commit()
    now = await house.plan_as_if_new(workspace)
    assert [p for name, p in now.packages.items() if p is not before.packages[name]] == []


async def test_branches_that_take_turns_keep_their_packages(house: House, workspace: RecipeRepository) -> None:
    git("branch", "old", cwd=workspace.path)
    workspace.write("lib/new.c", "int x;").commit()
    plans = {branch: await house.plan(f"{workspace}@{branch}") for branch in ("old", "main")}
    assert plans["old"].packages["base"] is plans["main"].packages["base"]
    assert plans["old"].packages["lib"] is not plans["main"].packages["lib"]
    for branch, plan in plans.items():
        again = await house.plan_as_if_new(f"{workspace}@{branch}")
        assert all(again.packages[name] is package for name, package in plan.packages.items())


async def test_a_tool_that_is_installed_or_removed_later_is_noticed(
    house: House, repository: RecipeRepository, tmp_path: Path
) -> None:
    repository.package("a", tools=["a-tool-of-ours"]).package("b").commit()
    house.settings = [f'sandbox.path=["{tmp_path / "bin"}"]']
    assert (await house.plan_as_if_new(repository)).packages["a"].ignore
    tool = tmp_path / "bin" / "a-tool-of-ours"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    there = await house.plan_as_if_new(repository)
    assert not there.packages["a"].ignore
    assert await house.plan(repository) is there
    tool.unlink()
    assert (await house.plan_as_if_new(repository)).packages["a"].ignore


async def test_a_part_of_a_repository_is_another_plan_than_the_whole(house: House, workspace: RecipeRepository) -> None:
    for target in (workspace.path, workspace.path / "lib", f"{workspace}//app", workspace.path / "base"):
        await house.plan_as_if_new(target)
    assert await house.names(workspace.path / "base") == ["base"]
    assert await house.names(workspace.path) == ["base", "lib", "app"]


async def test_no_more_than_so_many_plans_are_remembered(
    house: House, workspace: RecipeRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"n{number}" for number in range(KEPT_PLANS)]
    workspace.packages(names).commit()
    plan = await house.plan(workspace)
    for name in names[:-1]:
        await house.plan(f"{workspace}//{name}")
    assert await house.plan(workspace) is plan
    await house.plan(f"{workspace}//{names[-1]}")
    assert await house.plan(workspace) is plan, "the one that was used longest ago is forgotten"
    assert len(house.planner._plans) == KEPT_PLANS
    monkeypatch.setattr(prepare, "MAX_PACKAGES", len(plan.packages))
    await house.plan(f"{workspace}//base")
    assert len(house.planner._plans) == 1


async def test_two_revisions_of_a_repository_in_one_plan_stay_apart(house: House, workspace: RecipeRepository) -> None:
    workspace.package("alone").package("other").package("third").commit()
    git("branch", "old", cwd=workspace.path)
    for name in ("alone", "other", "third"):
        workspace.write(f"{name}/new.c", "int x;")
    workspace.commit()
    for revisions in (("old", "old", "old"), ("old", "main", "old"), ("old", "main", "main"), ("main", "old", "old")):
        names = ("alone", "other", "third")
        targets = [f"{workspace}@{branch}//{name}" for branch, name in zip(revisions, names, strict=True)]
        plan = await house.plan_as_if_new(*targets)
        for branch, name in zip(revisions, names, strict=True):
            assert plan.packages[name].tree == git("rev-parse", f"{branch}:{name}", cwd=workspace.path), revisions


async def test_targets_that_change_places_are_other_targets(house: House, workspace: RecipeRepository) -> None:
    await house.plan_as_if_new(f"{workspace}//lib", f"{workspace}//extra")
    assert (await house.plan_as_if_new(f"{workspace}//extra", f"{workspace}//lib")).wanted == ("extra", "lib")


# --- plans across repositories ----------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> RecipeRepository:
    other = RecipeRepository(tmp_path / "other").package("zlib").package("unrelated")
    other.commit()
    return other


async def test_a_repository_that_a_dependency_names_is_followed_when_it_moves(
    house: House, repository: RecipeRepository, other: RecipeRepository
) -> None:
    repository.package("app", depends=[f"{other}//zlib"]).package("mine").commit()
    before = await house.plan_as_if_new(repository)
    commit = other.write("zlib/new.c", "int x;").commit()
    now = await house.plan_as_if_new(repository)
    assert now.graph is before.graph
    assert now.packages["zlib"].tree != before.packages["zlib"].tree
    assert now.packages["app"] is before.packages["app"]
    assert now.origin(now.packages["zlib"]).commit == commit
    other.package("zlib", depends=["unrelated"]).commit()
    assert (await house.plan_as_if_new(repository)).graph["zlib"] == ("unrelated",)
    repository.write("mine/new.c", "int x;").commit()
    assert (await house.plan_as_if_new(repository)).graph["zlib"] == ("unrelated",)


async def test_a_repository_that_no_dependency_names_any_more_is_not_needed_any_more(
    house: House, repository: RecipeRepository, other: RecipeRepository, tmp_path: Path
) -> None:
    repository.package("app", depends=[f"{other}//zlib"]).commit()
    await house.plan(repository)
    repository.package("app").commit()
    other.write("buildd.toml", "broken [").write("x", "").plain = True
    git("commit", "-qam", "broken", cwd=other.path)
    assert list((await house.plan_as_if_new(repository)).packages) == ["app"]
    repository.package("app", depends=[f"{other}//zlib"]).commit()
    with pytest.raises(InvalidInput, match="not valid TOML"):
        await house.plan(repository)


async def test_a_repository_that_is_gone_and_that_no_dependency_names_is_not_missed(
    house: House, repository: RecipeRepository, other: RecipeRepository, tmp_path: Path
) -> None:
    repository.package("app", depends=[f"{other}//zlib"]).commit()
    before = await house.plan(repository)
    other.path.rename(tmp_path / "away")
    with pytest.raises(NotFound, match="other"):
        await house.plan(repository)
    repository.package("app").commit()
    assert list((await house.plan_as_if_new(repository)).packages) == ["app"]
    repository.package("app", depends=[f"{other}//zlib"]).commit()
    (tmp_path / "away").rename(other.path)
    assert list((await house.plan_as_if_new(repository)).packages) == list(before.packages)


async def test_a_dependency_may_name_another_repository_than_before(
    house: House, repository: RecipeRepository, other: RecipeRepository, tmp_path: Path
) -> None:
    fork = RecipeRepository(tmp_path / "fork").package("zlib", version="2").package("unrelated")
    fork.commit()
    for home in (other, fork, other):
        repository.package("app", depends=[f"{home}//zlib"]).commit()
        plan = await house.plan_as_if_new(repository)
        assert plan.packages["zlib"].repository == str(home)
        assert plan.repositories == {str(repository), str(home)}


async def test_repositories_that_take_each_others_place_are_told_apart(
    house: House, repository: RecipeRepository, other: RecipeRepository, tmp_path: Path
) -> None:
    fork = RecipeRepository(tmp_path / "fork").package("libpng", depends=[f"{other}//zlib"])
    fork.commit()
    repository.package("app", depends=[f"{fork}//libpng", f"{other}//unrelated"]).package("tool").commit()
    await house.plan_as_if_new(repository)
    await house.plan_as_if_new(repository, fork)
    await house.plan_as_if_new(fork, repository)
    fork.write("libpng/new.c", "int x;").commit()
    other.write("unrelated/new.c", "int x;").commit()
    for targets in ((repository,), (repository, fork), (fork, repository), (fork,)):
        await house.plan_as_if_new(*targets)


async def test_the_places_of_an_earlier_life_are_not_looked_up_again(
    house: House, repository: RecipeRepository, other: RecipeRepository
) -> None:
    repository.package("app", depends=[f"{other}//zlib"]).commit()
    before = await house.plan(repository)
    other.write("zlib/new.c", "int x;").commit()
    repository.write("app/new.c", "int x;").commit()
    targets = [parse_target(str(repository))]
    for remembered in (True, False):
        if not remembered:
            house.forget()
        async with AsyncExitStack() as held:
            assert await house.planner.hold(before.places, held)
            plan = await house.planner.plan(
                targets, before.places.targets, refresh=True, held=held, foreign=before.places.foreign
            )
        assert facts(plan) == facts(before)
    assert commits(await house.plan_as_if_new(repository)).isdisjoint(commits(before)), "a new run sees what is new"


async def test_sources_that_are_gone_cannot_be_held(
    house: House, repository: RecipeRepository, other: RecipeRepository, tmp_path: Path
) -> None:
    repository.package("app", depends=[f"{other}//zlib"]).commit()
    places = (await house.plan(repository)).places
    other.path.rename(tmp_path / "away")
    async with AsyncExitStack() as held:
        assert not await house.planner.hold(places, held)
    RecipeRepository(other.path).package("something else").commit()
    async with AsyncExitStack() as held:
        assert not await house.planner.hold(places, held)
    (repository.path / "README").write_text("a change that is not committed")
    async with AsyncExitStack() as held:
        assert await house.planner.hold(msgspec.structs.replace(places, foreign={}), held)


# --- work trees -------------------------------------------------------------------------------------------


async def test_a_work_tree_is_built_as_its_files_are_now(house: House, workspace: RecipeRepository) -> None:
    committed = await house.plan(workspace)
    clean = await house.plan_as_if_new(workspace, worktree=True)
    assert {n: p.tree for n, p in clean.packages.items()} == {n: p.tree for n, p in committed.packages.items()}
    assert commits(clean) == {None}
    assert clean.repositories == {str(workspace)}
    assert await house.plan(workspace, worktree=True) is clean
    workspace.write("lib/README", "changed, not committed\n")
    dirty = await house.plan_as_if_new(workspace, worktree=True)
    assert {name for name, p in dirty.packages.items() if p is not clean.packages[name]} == {"lib"}
    assert dirty.graph is clean.graph
    assert await house.plan(workspace) is committed, "without it only what is committed counts"


async def test_a_work_tree_has_files_that_git_does_not_know_and_lacks_those_that_were_removed(
    house: House, workspace: RecipeRepository
) -> None:
    workspace.write(".gitignore", "*.o\n").commit()
    clean = await house.plan(workspace, worktree=True)
    workspace.write("lib/x.o", "ignored")
    assert await house.plan(workspace, worktree=True) is clean
    workspace.write("new/buildd.toml", "[package.new]\n")
    assert "new" in (await house.plan_as_if_new(workspace, worktree=True)).packages
    (workspace.path / "app/README").unlink()
    (workspace.path / "app").rmdir()
    with pytest.raises(InvalidInput, match="package app: path 'app' is not a directory"):
        await house.plan(workspace, worktree=True)
    assert "app" in (await house.plan(workspace)).packages


async def test_a_recipe_of_a_work_tree_counts_before_it_is_committed(house: House, workspace: RecipeRepository) -> None:
    await house.plan(workspace, worktree=True)
    text = (workspace.path / "buildd.toml").read_text()
    workspace.write("buildd.toml", text.replace('depends = ["lib"]', 'depends = ["base"]'))
    assert (await house.plan_as_if_new(workspace, worktree=True)).graph["app"] == ("base",)
    assert (await house.plan(workspace)).graph["app"] == ("lib",)


async def test_a_part_of_a_work_tree_means_the_packages_below_it(house: House, workspace: RecipeRepository) -> None:
    workspace.write("base/README", "changed, not committed\n")
    part = await house.plan_as_if_new(workspace.path / "lib", worktree=True)
    assert list(part.packages) == ["base", "lib"]
    whole = await house.plan(workspace, worktree=True)
    assert part.packages["base"].tree == whole.packages["base"].tree, "what it needs is as it is now too"
    assert part.packages["base"].repository == str(workspace)


async def test_a_plain_directory_is_its_own_work_tree(house: House, tmp_path: Path) -> None:
    plain = RecipeRepository(tmp_path / "plain", plain=True).package("one")
    plain.commit()
    assert facts(await house.plan(plain, worktree=True)) == facts(await house.plan(plain))


async def test_a_linked_work_tree_is_built_as_its_files_are(
    house: House, workspace: RecipeRepository, tmp_path: Path
) -> None:
    git("worktree", "add", "-q", "-b", "side", tmp_path / "side", cwd=workspace.path)
    (tmp_path / "side/lib/README").write_text("changed, not committed\n")
    plan = await house.plan_as_if_new(tmp_path / "side", worktree=True)
    assert plan.repositories == {str(tmp_path / "side")}
    assert plan.packages["lib"].tree != (await house.plan(workspace)).packages["lib"].tree


async def refusal(house: House, *targets: object) -> BuilddError:
    with pytest.raises(BuilddError) as caught:
        await house.plan(*targets, worktree=True)
    assert caught.value.hint
    return caught.value


async def test_what_has_no_work_tree_is_refused(
    house: House, workspace: RecipeRepository, git_server: GitServer, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.git"
    git("clone", "-q", "--bare", workspace.path, bare)
    error = await refusal(house, bare)
    assert isinstance(error, InvalidInput)
    assert f"{bare} is a bare repository" in error.message
    url = git_server.url(workspace)
    for target in (url, "workspace"):
        error = await refusal(house, target)
        assert isinstance(error, InvalidInput)
        assert "no local directory" in error.message
    assert not house.clones.active(), "nothing was cloned for it"
    assert isinstance(await refusal(house, workspace, url), InvalidInput)
    assert isinstance(await refusal(house, tmp_path / "nowhere"), NotFound)


@pytest.mark.parametrize("revision", ["main", "HEAD", "v9"])
async def test_a_work_tree_has_no_revision(house: House, workspace: RecipeRepository, revision: str) -> None:
    error = await refusal(house, f"{workspace}@{revision}//lib")
    assert isinstance(error, InvalidInput)
    assert f"a work tree has no revision {revision!r}" in error.message


async def test_a_snapshot_is_looked_at_again_and_a_change_seen(house: House, workspace: RecipeRepository) -> None:
    (place,) = (await house.plan(workspace, worktree=True)).places.targets
    assert await house.planner.look_again(place) == place
    workspace.write("lib/README", "changed under the build\n")
    again = await house.planner.look_again(place)
    assert again.tree != place.tree
    assert again == (await house.plan(workspace, worktree=True)).places.targets[0]


async def test_one_snapshot_of_a_directory_is_made_at_a_time_by_whatever_name_it_is_called(
    house: House, workspace: RecipeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(workspace.path)
    (place,) = (await house.plan(workspace, worktree=True)).places.targets
    running: set[Path] = set()
    overlaps: list[Path] = []
    pause = threading.Event()

    def snapshot(directory: Path, store: Path, check: Callable[[], None]) -> str:
        if store in running:
            overlaps.append(directory)
        running.add(store)
        pause.wait(0.02)
        tree = trees.snapshot(directory, store)
        running.discard(store)
        return tree

    monkeypatch.setattr(prepare, "snapshot", snapshot)

    async def plan(target: object) -> None:
        assert (await house.plan(target, worktree=True)).places.targets[0].tree == place.tree

    async with trio.open_nursery() as nursery:
        for target in (workspace, workspace.path / "lib", tmp_path / "link", tmp_path / "link" / "app", workspace):
            nursery.start_soon(plan, target)
        nursery.start_soon(house.planner.look_again, place)
    assert overlaps == []


# --- what cannot be read ----------------------------------------------------------------------------------


async def test_a_name_that_nobody_knows_is_not_found(house: House) -> None:
    with pytest.raises(NotFound):
        await house.plan("no-such-repository")


@pytest.mark.parametrize("path", ["/no/such/directory", "/etc/passwd", "/" + "x" * 300], ids=["none", "file", "long"])
async def test_a_path_that_is_no_directory_is_not_found(house: House, path: str) -> None:
    with pytest.raises(NotFound, match="is not a directory") as caught:
        await house.plan(path)
    assert caught.value.hint


@pytest.mark.parametrize("secret", ["", "inside"])
async def test_a_directory_that_the_daemon_may_not_read_is_the_users_error_and_not_ours(
    house: House, tmp_path: Path, secret: str
) -> None:
    plain = RecipeRepository(tmp_path / "plain", plain=True).package("one")
    plain.commit()
    (plain.path / "inside").mkdir()
    await house.plan(plain)  # the store of its snapshots is there
    plain.path.chmod(0o000)
    with unprivileged(tmp_path):
        with pytest.raises((NotFound, InvalidInput)) as caught:
            await house.plan(plain.path / secret)
    plain.path.chmod(0o755)
    assert str(plain) in caught.value.message
