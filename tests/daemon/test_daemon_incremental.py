"""What a run builds and what it skips: only what changed, and what that changes."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, GitServer, RpcError, Workspace, booted, git, named, states, until

from buildd.protocol import RunView

Boot = Callable[..., Daemon]


def built(view: RunView) -> set[str]:
    """What a run has built; everything else it skipped."""
    assert view.state == "completed", view.error
    assert set(states(view).values()) <= {"success", "skipped"}
    return {package.name for package in view.packages if package.state == "success"}


def installed(view: RunView, name: str) -> str:
    """What the file of a compiled package in its artifact says."""
    package = named(view, name)
    assert package.artifact is not None
    (file,) = Path(package.artifact).glob(f"tree/**/share/{name}")
    return file.read_text()


def index_of(daemon: Daemon, package: str) -> list[tuple[Any, ...]]:
    return daemon.rows("SELECT * FROM package_index WHERE package = ? ORDER BY version, repository", package)


# --- nothing, a comment, a change -------------------------------------------------------------------------


def test_a_second_run_skips_everything_and_makes_no_record_also_after_a_restart(
    boot: Boot, backend: str, workspace: Workspace
) -> None:
    daemon = boot(backend=backend)
    workspace.compiled("base").compiled("middle", "base")
    workspace.compiled("top", "middle", "base", version="9.0.0").commit()
    first = daemon.build(workspace)
    assert built(first) == {"base", "middle", "top"}
    records, index = daemon.records(), daemon.rows("SELECT * FROM package_index")

    def runs_again() -> RunView:
        again = daemon.build(workspace)
        assert (again.state, again.stats.skipped, again.stats.total) == ("completed", 3, 3)
        assert {(p.reason, p.message, p.build_id) for p in again.packages} == {
            ("unchanged", "CRC match, skipped", None)
        }
        assert [(p.name, p.version, p.artifact) for p in sorted(again.packages, key=lambda p: p.name)] == [
            (p.name, p.version, p.artifact) for p in sorted(first.packages, key=lambda p: p.name)
        ]
        for name in ("base@1.0", "middle@1.0", "top@9.0.0"):
            lines = daemon.log_lines(f"{name} (CRC match, skipped)")
            assert [line["event"] for line in lines if line["run"] == again.id] == [f"{name} (CRC match, skipped)"]
        assert daemon.records() == records
        assert daemon.rows("SELECT * FROM package_index") == index
        return again

    second = runs_again()
    daemon.restart()
    assert daemon.run(second.number) == second  # read from the disk now
    runs_again()


def test_a_comment_builds_its_package_and_what_it_leads_to_is_cut_off(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("middle", "base").compiled("top", "middle").compiled("other").commit()
    first = daemon.build(workspace)
    workspace.edit("middle", "1", comment="a remark").commit()

    view = daemon.build(workspace)

    assert built(view) == {"middle"}
    before, after = (daemon.record(named(run, "middle").build_id) for run in (first, view))
    assert before.tree != after.tree
    assert before.key != after.key
    assert before.output_id == after.output_id
    assert built(daemon.build(workspace)) == set()


def test_a_change_in_the_middle_of_a_chain_builds_it_and_what_is_above(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("middle", "base").compiled("top", "middle").compiled("other").commit()
    assert installed(daemon.build(workspace), "top") == workspace.output("top=1", "middle=1", "base=1")
    workspace.edit("middle", "2").commit()

    view = daemon.build(workspace)

    assert built(view) == {"middle", "top"}
    assert installed(view, "top") == workspace.output("top=1", "middle=2", "base=1")
    middle, top = (daemon.record(named(view, name).build_id) for name in ("middle", "top"))
    assert middle.completed_at is not None
    assert middle.completed_at <= top.started_at
    assert built(daemon.build(workspace)) == set()


def test_a_change_that_its_neighbour_hides_reaches_what_sees_it_all_the_same(
    daemon: Daemon, workspace: Workspace
) -> None:
    workspace.compiled("base").compiled("middle", "base", links=False)
    workspace.compiled("top", "middle", first='cat "$PREFIX/share/base"').commit()  # the whole closure is there
    daemon.build(workspace)
    workspace.edit("base", "2").commit()
    view = daemon.build(workspace)
    assert built(view) == {"base", "middle", "top"}
    assert "2" in daemon.log_of(view, "top").splitlines()


def test_a_change_of_a_recipe_or_a_version_builds_its_package_alone(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("top", "base").commit()
    daemon.build(workspace)
    workspace.compiled("base", first="echo a different way to the same").commit()
    assert built(daemon.build(workspace)) == {"base"}
    workspace.compiled("base", version="2.0").commit()
    view = daemon.build(workspace)
    assert built(view) == {"base"}  # what it leaves behind is the same
    assert named(view, "base").version == "2.0"
    assert built(daemon.build(workspace)) == set()


def test_a_dependency_more_or_less_builds_the_package(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("more").compiled("top", "base").commit()
    daemon.build(workspace)
    workspace.compiled("top", "base", "more").commit()
    view = daemon.build(workspace)
    assert built(view) == {"top"}
    assert installed(view, "top") == workspace.output("top=1", "base=1", "more=1")
    workspace.compiled("top", "base").commit()
    assert built(daemon.build(workspace)) == set()  # as it was


# --- failures ---------------------------------------------------------------------------------------------


def test_a_failing_change_leaves_fingerprint_and_index_as_they_are(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("failing").compiled("above", "failing").commit()
    daemon.build(workspace)
    index = index_of(daemon, "failing")
    assert len(index) == 1

    workspace.edit("failing", "error: no").commit()
    for _ in range(2):  # a failure answers nothing
        view = daemon.build(workspace)
        assert (view.state, states(view)) == ("failed", {"failing": "failed", "above": "blocked"})
        record = daemon.record(named(view, "failing").build_id)
        assert (record.state, record.reason, record.output_id) == ("failed", "phase_failed", None)
        assert index_of(daemon, "failing") == index

    workspace.edit("failing", "1").commit()  # as it was before
    assert built(daemon.build(workspace)) == set()
    assert index_of(daemon, "failing") == index

    workspace.edit("failing", "2").commit()
    view = daemon.build(workspace)
    assert built(view) == {"failing", "above"}
    mended = daemon.record(named(view, "failing").build_id)
    columns = "version, repository, build, key, output_id, tree, crc, built_at"
    assert daemon.rows(f"SELECT {columns} FROM package_index WHERE package = 'failing'") == [
        *[
            (
                "1.0",
                str(workspace),
                mended.id,
                mended.key,
                mended.output_id,
                mended.tree,
                mended.crc,
                mended.completed_at,
            )
        ]
    ]
    assert index_of(daemon, "failing") != index


def test_a_fingerprint_is_that_of_the_committed_source(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("printed").commit()
    record = daemon.record(named(daemon.build(workspace), "printed").build_id)
    assert record.tree == git("rev-parse", "HEAD:printed", cwd=workspace.path)
    assert daemon.rows("SELECT crc FROM source_trees WHERE tree = ?", record.tree) == [(record.crc,)]
    assert isinstance(record.crc, int)


# --- the same work elsewhere ------------------------------------------------------------------------------


def test_switching_branches_and_back_builds_nothing(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("top", "base").commit()
    daemon.build(workspace)
    git("switch", "-qc", "next", cwd=workspace.path)
    workspace.edit("base", "2").commit()
    assert built(daemon.build(workspace)) == {"base", "top"}

    git("switch", "-q", "main", cwd=workspace.path)
    view = daemon.build(workspace)
    assert built(view) == set()
    assert installed(view, "top") == workspace.output("top=1", "base=1")
    view = daemon.build(f"{workspace}@next")
    assert built(view) == set()
    assert installed(view, "top") == workspace.output("top=1", "base=2")


def test_equal_sources_in_a_second_repository_are_not_built_again(
    daemon: Daemon, workspace: Workspace, tmp_path: Path
) -> None:
    workspace.compiled("base").compiled("top", "base").commit()
    daemon.build(workspace)
    other = Workspace(tmp_path / "other", mark=workspace.mark)
    other.compiled("base").compiled("top", "base").compiled("more", "top").commit()

    view = daemon.build(other)

    assert built(view) == {"more"}
    assert installed(view, "more") == workspace.output("more=1", "top=1", "base=1")


def test_a_clone_that_was_deleted_and_cloned_again_is_not_built_again(
    boot: Boot, workspace: Workspace, git_server: GitServer
) -> None:
    daemon = boot(backend="plain")
    workspace.compiled("base").compiled("top", "base").commit()
    url = git_server.url(workspace)
    assert built(daemon.build(url)) == {"base", "top"}
    for restart in (False, True):
        (known,) = daemon.call("repo.list")["repositories"]
        daemon.call("repo.delete", {"repo": url})
        assert not Path(known["path"]).exists()
        if restart:
            daemon.restart()
        assert built(daemon.build(url)) == set()
    assert built(daemon.build(workspace)) == set()  # nor is what it was cloned from


# --- strategies -------------------------------------------------------------------------------------------


@pytest.fixture
def two_branches(workspace: Workspace) -> Workspace:
    """Two branches with different sources; `main` is checked out."""
    workspace.compiled("base").compiled("top", "base").commit()
    git("switch", "-qc", "next", cwd=workspace.path)
    workspace.edit("base", "2").commit()
    git("switch", "-q", "main", cwd=workspace.path)
    return workspace


def assert_behaves_as(expected: str, daemon: Daemon, repository: Workspace, **options: Any) -> None:
    """Whether a repository with two branches is built as a strategy says."""
    main, following = f"{repository}@main", f"{repository}@next"
    both: set[str] = {"base", "top"}
    again = both if expected == "none" else set()
    back = set() if expected == "aggressive" else both
    assert built(daemon.build(main, **options)) == both
    assert built(daemon.build(main, **options)) == again
    assert built(daemon.build(following, **options)) == both
    assert built(daemon.build(following, **options)) == again
    assert built(daemon.build(main, **options)) == back
    assert built(daemon.build(main, **options)) == again


@pytest.mark.parametrize("strategy", ["none", "conservative", "aggressive"])
def test_a_run_s_own_strategy_says_which_results_count(daemon: Daemon, two_branches: Workspace, strategy: str) -> None:
    assert_behaves_as(strategy, daemon, two_branches, strategy=strategy)


def test_a_repository_s_strategy_is_configured_by_path_or_pattern(tmp_path: Path) -> None:
    strategies = {f"{tmp_path}/a*": "aggressive", f"{tmp_path}/c?reful": "conservative", f"{tmp_path}/always": "none"}
    table = ", ".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in strategies.items())
    settings = {"cache.strategy": "none", "cache.strategies": f"{{ {table} }}"}
    with booted(backend="plain", settings=settings) as daemon:
        for name, strategy in {
            "careful": "conservative",
            "always": "none",  # its own entry counts more than a pattern
            "as-usual": "aggressive",
            "unnamed": "none",  # the configuration's for all others
        }.items():
            repository = Workspace(tmp_path / name, mark=name).compiled("base").compiled("top", "base")
            repository.commit()
            git("switch", "-qc", "next", cwd=repository.path)
            repository.edit("base", "2").commit()
            git("switch", "-q", "main", cwd=repository.path)
            assert_behaves_as(strategy, daemon, repository)
        assert built(daemon.build(tmp_path / "always", strategy="aggressive")) == {"base", "top"}  # of another kind
        assert built(daemon.build(tmp_path / "always", strategy="aggressive")) == set()


def test_under_conservative_another_repository_s_results_do_not_count(
    daemon: Daemon, workspace: Workspace, tmp_path: Path
) -> None:
    other = Workspace(tmp_path / "other", mark=workspace.mark)
    for repository in (workspace, other):
        repository.compiled("base").commit()
        assert built(daemon.build(repository, strategy="conservative")) == {"base"}
    for repository in (workspace, other):
        assert built(daemon.build(repository, strategy="conservative")) == set()


def test_under_conservative_the_last_result_counts_whatever_target_it_was_built_for(
    daemon: Daemon, two_branches: Workspace
) -> None:
    def start(target: str) -> set[str]:
        return built(daemon.build(f"{two_branches}{target}", strategy="conservative"))

    assert start("@main") == {"base", "top"}
    assert start("@next//base") == {"base"}
    assert start("@main") == {"base"}  # `top` was not built since
    assert start("@main//base") == set()


def test_an_unknown_strategy_is_refused(daemon: Daemon, workspace: Workspace) -> None:
    with pytest.raises(RpcError) as caught:
        daemon.start(workspace, strategy="hopeful")
    assert caught.value.code == -32602
    assert "hopeful" in str(caught.value)


# --- force ------------------------------------------------------------------------------------------------


def test_a_forced_run_builds_all_and_a_forced_package_itself(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("middle", "base").compiled("top", "middle").compiled("other").commit()
    first = daemon.build(workspace)
    forced = daemon.build(workspace, force=True)
    assert built(forced) == {"base", "middle", "top", "other"}
    assert {p.artifact for p in forced.packages} == {p.artifact for p in first.packages}
    assert built(daemon.build(workspace)) == set()

    one = daemon.build(workspace, force_packages=["base"])
    assert built(one) == {"base"}  # its dependents find the same output
    assert len(daemon.records(run=one.number)) == 1
    assert built(daemon.build(workspace, force_packages=["top", "other"])) == {"top", "other"}

    done = daemon.buildctl("start", workspace, "--wait", "--json", "--force-package", "middle")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stats"]["success"] == 1


def test_an_unknown_forced_package_fails_the_run_and_is_explained(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").commit()
    view = daemon.build(workspace, force_packages=["bsae"])
    assert (view.state, view.stats.total) == ("failed", 0)
    assert "bsae" in str(view.error)
    assert "buildctl plan" in str(view.hint)


# --- many -------------------------------------------------------------------------------------------------


def test_more_than_a_hundred_up_to_date_are_one_event(boot: Boot, workspace: Workspace) -> None:
    daemon = boot(backend="plain", settings={"workers.max_concurrent_builds": 4})
    workspace.write("all/src", workspace.mark)
    for number in range(101):
        workspace.package(f"p{number}", path="all")
    workspace.commit()
    assert daemon.build(workspace).stats.success == 101
    records = daemon.records()

    view = daemon.build(workspace)

    assert view.stats.skipped == view.stats.total == len(view.packages) == 101
    assert all(p.artifact is not None and Path(p.artifact).is_dir() for p in view.packages)
    (event,) = daemon.events(view.number, "packages_skipped", "package_skipped")
    assert event.kind == "packages_skipped"
    assert event.data == {"count": 101, "reason": "unchanged", "message": "CRC match, skipped"}
    assert len(daemon.log_lines("101 packages (CRC match, skipped)")) == 1
    assert daemon.log_lines("p1@") == []

    workspace.package("p100", path="all", default=False).commit()
    view = daemon.build(workspace)
    assert view.stats.skipped == 100
    events = daemon.events(view.number, "packages_skipped", "package_skipped")
    assert {(e.kind, e.package) for e in events} == {("package_skipped", f"p{n}") for n in range(100)}
    assert len(daemon.log_lines("p1@0 (CRC match, skipped)")) == 1
    assert daemon.records() == records
    assert daemon.run(view.number - 1).stats.skipped == 101


# --- artifacts that are gone or damaged -------------------------------------------------------------------


def remove_by_hand(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
            path.rmdir()
        else:
            path.parent.chmod(0o700)
            path.unlink()
    directory.rmdir()


def flip_a_byte(file: Path) -> None:
    """As a disk would: the size stays the same."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    mode = stat.S_IMODE(file.stat().st_mode)
    file.chmod(0o600)
    file.write_bytes(content)
    file.chmod(mode)


@pytest.mark.parametrize("restart", [False, True], ids=["at-once", "after-a-restart"])
def test_an_artifact_that_somebody_removed_is_built_again(boot: Boot, workspace: Workspace, restart: bool) -> None:
    daemon = boot(backend="plain")
    workspace.compiled("base").compiled("middle", "base").compiled("top", "middle").commit()
    first = daemon.build(workspace)
    for name in ("top", "base"):
        artifact = Path(str(named(first, name).artifact))
        remove_by_hand(artifact)
        if restart:
            daemon.restart()
        view = daemon.build(workspace)
        assert built(view) == {name}
        assert named(view, name).artifact == str(artifact)
        below = {"base": (), "top": ("middle=1", "base=1")}[name]
        assert installed(view, name) == workspace.output(f"{name}=1", *below)
        assert built(daemon.build(workspace)) == set()


@pytest.mark.parametrize("restart", [False, True], ids=["at-once", "after-a-restart"])
def test_a_damaged_artifact_is_set_aside_and_never_used(
    boot: Boot, backend: str, workspace: Workspace, restart: bool
) -> None:
    daemon = boot(backend=backend)
    daemon.expect("a damaged artifact is set aside")
    workspace.compiled("base").compiled("middle", "base").compiled("top", "middle").commit()
    artifact = Path(str(named(daemon.build(workspace), "base").artifact))
    (file,) = artifact.glob("tree/**/share/base")
    sound = file.read_bytes()
    flip_a_byte(file)
    damaged = file.read_bytes()
    assert damaged != sound
    if restart:
        daemon.restart()
    workspace.edit("top", "2").commit()  # its build sees the outputs of both others

    view = daemon.build(workspace)

    assert built(view) == {"base", "top"}
    assert installed(view, "top") == workspace.output("top=2", "middle=1", "base=1")
    assert file.read_bytes() == sound
    assert [line["output_id"] for line in daemon.log_lines("a damaged artifact is set aside")] == [artifact.name]
    (aside,) = (daemon.state_dir / "artifacts" / ".damaged").rglob("base")
    assert aside.read_bytes() == damaged


# --- records ----------------------------------------------------------------------------------------------


def test_a_record_with_its_inputs_is_there_before_the_first_phase(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base")
    workspace.compiled("waiting", "base", first=f"echo here; {daemon.at_gate(workspace.mark)}")
    commit = workspace.commit()
    number = daemon.start(workspace)
    (package,) = daemon.until_running(number, 1, saying="here")

    ((state, key, repository, inputs),) = daemon.rows(
        "SELECT state, key, repository, inputs FROM builds WHERE id = ?", package.build_id
    )
    record = daemon.record(package.build_id)
    assert (state, record.state, record.completed_at) == ("running", "running", None)
    found = json.loads(inputs)
    tree = git("rev-parse", "HEAD:waiting", cwd=workspace.path)
    assert (record.tree, record.repository) == (tree, str(workspace)) == (found["parts"]["tree"], repository)
    assert (found["commit"], found["path"], found["strategy"]) == (commit, "waiting", "aggressive")
    assert found["root"] == git("rev-parse", "HEAD^{tree}", cwd=workspace.path)
    assert found["crc"] == record.crc is not None
    base = daemon.record(daemon.package(number, "base").build_id)
    assert found["outputs"] == {"base": base.output_id}
    assert list(found["parts"]["dependencies"]) == ["base"]
    assert key == record.key

    def told() -> list[str]:
        return [e.kind for e in daemon.events(number) if e.package == "waiting"]

    until(lambda: len(told()) > 1, "what has happened is on the disk, and so can be read")
    assert told() == ["package_started", "package_phase"]

    daemon.open_gate(workspace.mark)
    assert built(daemon.wait(number)) == {"base", "waiting"}
