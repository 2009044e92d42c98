"""From targets to a plan, with real git repositories."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
import trio
from harness import GitServer, RecipeRepository, git

from buildd import config as configuration
from buildd.engine.prepare import Plan, Planner
from buildd.engine.targets import parse_target
from buildd.errors import InvalidInput, NotFound
from buildd.model import Repository
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
        self.clones = clones
        config = configuration.load(
            files=[],
            settings=[f"daemon.{name}_dir={root / name}" for name in ("state", "cache", "runtime")],
            environ={"HOME": str(root)},
        )
        self.planner = Planner(lambda: config, clones, root / "cache")

    async def plan(self, *targets: object, refresh: bool = False) -> Plan:
        parsed = [parse_target(str(target)) for target in targets]
        async with AsyncExitStack() as held:
            located = await self.planner.locate(parsed, refresh=refresh, held=held)
            return await self.planner.plan(parsed, located, refresh=refresh, held=held)

    async def names(self, *targets: object, refresh: bool = False) -> list[str]:
        return [package.name for package in (await self.plan(*targets, refresh=refresh)).packages]


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
    assert [p.name for p in plan.packages] == ["base", "lib", "app"]
    head = git("rev-parse", "HEAD", cwd=workspace.path)
    for package in plan.packages:
        assert (package.commit, package.repository) == (head, str(workspace))
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
        assert {p.commit for p in plan.packages} == {first}
        assert "more" not in plan.graph
    with pytest.raises(NotFound, match="'v9'"):
        await house.plan(f"{workspace}@v9")


async def test_what_is_not_committed_is_not_built(house: House, workspace: RecipeRepository) -> None:
    before = await house.plan(workspace)
    workspace.write("base/README", "changed\n")
    assert await house.plan(workspace) == before


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
    assert [p.name for p in plan.packages] == ["base", "lib", "app"]
    assert {p.repository for p in plan.packages} == {str(bare)}


async def test_a_repository_without_commits_says_so(house: House, tmp_path: Path) -> None:
    empty = RecipeRepository(tmp_path / "empty")
    with pytest.raises(NotFound, match="no commits"):
        await house.plan(empty)


async def test_a_symbolic_link_leads_to_the_same_repository(
    house: House, workspace: RecipeRepository, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(workspace.path)
    assert await house.plan(tmp_path / "link") == await house.plan(workspace)


async def test_a_plain_directory_is_a_snapshot_without_a_commit(house: House, tmp_path: Path) -> None:
    plain = RecipeRepository(tmp_path / "plain", plain=True).package("one").package("two", depends=["one"])
    plain.commit()
    first = await house.plan(plain)
    assert [p.name for p in first.packages] == ["one", "two"]
    assert {p.commit for p in first.packages} == {None}
    assert await house.plan(plain) == first, "the same content has the same trees"
    plain.write("two/README", "changed\n")
    second = await house.plan(plain)
    assert second.packages[0].tree == first.packages[0].tree
    assert second.packages[1].tree != first.packages[1].tree
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
    assert plan.packages[0].repository == str(other)


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
    assert plan.packages[0].repository == str(other)


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
    assert {p.name: p.repository for p in plan.packages} == {
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
    ignored = {p.name: p.ignore for p in (await house.plan(repository)).packages}
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
    assert [p.name for p in plan.packages] == ["base", "lib", "app"]
    assert {p.repository for p in plan.packages} == {url}
    assert await house.plan("workspace") == plan
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
        assert [p.name for p in plan.packages] == ["base", "mine"]
        assert house.clones.in_use(url)
    assert not house.clones.in_use(url)


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
