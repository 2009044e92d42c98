"""Sources that nobody has committed: work trees as they are, and plain directories that may change at any time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, GitServer, RecipeRepository, RpcError, Workspace, git, named, states

Boot = Callable[..., Daemon]


def lines_of(daemon: Daemon, build: str | None) -> list[str]:
    """What the phases of a build printed."""
    return [line for line in daemon.build_log(build).splitlines() if not line.startswith("==>")]


def test_uncommitted_changes_are_built_and_the_committed_state_is_left_alone(
    boot: Boot, backend: str, workspace: Workspace
) -> None:
    daemon = boot(backend=backend)
    workspace.compiled("base", first="cat src").compiled("top", "base").compiled("other").commit()
    assert daemon.build(workspace).stats.success == 3
    index = (workspace.path / ".git" / "index").read_bytes()
    assert daemon.build(workspace, worktree=True).stats.skipped == 3  # equal content, known from the commit

    workspace.edit("base", "uncommitted")
    view = daemon.build(workspace, worktree=True)
    assert states(view) == {"base": "success", "top": "success", "other": "skipped"}
    assert "uncommitted" in lines_of(daemon, named(view, "base").build_id)
    record = daemon.record(named(view, "base").build_id)
    assert record.repository == str(workspace)
    assert daemon.build(workspace, worktree=True).stats.skipped == 3
    assert daemon.build(workspace).stats.skipped == 3  # a run of the commit goes on as before

    assert (workspace.path / ".git" / "index").read_bytes() == index
    assert git("diff", "--name-only", cwd=workspace.path) == "base/src"
    workspace.commit()
    assert daemon.build(workspace).stats.skipped == 3  # what was built as a work tree is known as a commit
    assert daemon.records(package="base")[-1] == record


def test_a_recipe_that_is_not_committed_counts(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").commit()
    daemon.build(workspace)
    workspace.compiled("fresh", "base").save()
    assert states(daemon.build(workspace)) == {"base": "skipped"}
    done = daemon.buildctl("start", ".", "--worktree", "--wait", cwd=workspace.path)
    assert done.returncode == 0, done.stderr
    assert states(daemon.run(daemon.call("run.list", {"limit": 1})["runs"][0]["number"])) == {
        "base": "skipped",
        "fresh": "success",
    }


def test_untracked_files_are_taken_and_ignored_ones_are_not(daemon: Daemon, workspace: Workspace) -> None:
    show = {"build": "find . ! -type d | sort"}
    workspace.package("a", files={"kept.log": "tracked", "removed": ""}, phases=show).commit()
    workspace.write(".gitignore", "*.log\n/a/made/\n")
    workspace.write("a/.gitignore", "!wanted.log\nb.o\n")
    for name in ("untracked", "ignored.log", "wanted.log", "made/x", "deep/b.o", "deep/c", "nested/.git/HEAD"):
        workspace.write(f"a/{name}", workspace.mark)
    workspace.write("a/nested/file", "of a checkout in a checkout")
    (workspace.path / "a" / "removed").unlink()
    (workspace.path / "a" / "empty").mkdir()
    (workspace.path / "a" / "link").symlink_to("untracked")

    view = daemon.build(workspace, worktree=True)

    names = {"README", "kept.log", "untracked", "wanted.log", "deep/c", "nested/file", "link", ".gitignore"}
    assert set(lines_of(daemon, named(view, "a").build_id)) == {f"./{name}" for name in names}
    workspace.write("a/ignored.log", "otherwise")
    workspace.write("a/made/more", "")
    assert daemon.build(workspace, worktree=True).stats.skipped == 1
    (workspace.path / "a" / "untracked").chmod(0o755)
    assert daemon.build(workspace, worktree=True).stats.success == 1


def test_a_part_of_a_work_tree_is_built_by_its_path(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("top", "base").compiled("other").commit()
    workspace.edit("other", "uncommitted")
    assert states(daemon.build(workspace.path / "other", worktree=True)) == {"other": "success"}
    assert states(daemon.build(f"{workspace}//other", worktree=True)) == {"other": "skipped"}


@pytest.mark.parametrize("target", ["{url}", "{path}@main", "{bare}"])
def test_what_has_no_work_tree_is_refused(
    daemon: Daemon, workspace: Workspace, git_server: GitServer, tmp_path: Path, target: str
) -> None:
    workspace.compiled("base").commit()
    bare = tmp_path / "bare.git"
    git("clone", "-q", "--bare", workspace.path, bare)
    text = target.format(url=git_server.url(workspace), path=workspace, bare=bare)
    view = daemon.build(text, worktree=True)
    assert (view.state, view.stats.total) == ("failed", 0)
    assert "work tree" in str(view.error)
    assert view.hint
    with pytest.raises(RpcError) as caught:
        daemon.call("run.plan", {"targets": [text], "worktree": True})
    assert caught.value.code == 2


@pytest.mark.parametrize("kind", ["plain", "worktree"])
def test_a_source_that_changes_while_it_is_built_is_not_recorded_as_built(
    daemon: Daemon, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    mark = request.node.name
    workspace = Workspace(tmp_path / "directory", mark=mark, plain=kind == "plain")
    options = {"worktree": kind == "worktree"}
    workspace.compiled("moving", first=f"echo here; {daemon.at_gate(mark)}; cat src")
    workspace.compiled("above", "moving").compiled("still", "moving").commit()
    number = daemon.start(workspace, **options)
    daemon.until_running(number, 1, saying="here")

    workspace.edit("moving", "2")
    daemon.open_gate(mark)

    view = daemon.wait(number)
    assert (view.state, view.stats.success) == ("completed", 3)
    moving = daemon.record(named(view, "moving").build_id)
    assert "1" in lines_of(daemon, moving.id)  # it had a copy of its own
    message = "its source changed while it was built; the next run builds it again"
    assert (moving.state, moving.message, named(view, "moving").message) == ("success", message, message)
    where = "FROM package_index WHERE repository = ? AND package = ?"
    assert daemon.rows(f"SELECT build {where}", str(workspace), "moving") == []
    assert daemon.rows(f"SELECT build {where}", str(workspace), "still") == [(named(view, "still").build_id,)]

    view = daemon.build(workspace, **options)
    assert states(view) == dict.fromkeys(("moving", "above", "still"), "success")
    again = daemon.record(named(view, "moving").build_id)
    assert "2" in lines_of(daemon, again.id)
    assert again.message is None
    assert daemon.rows(f"SELECT build, tree {where}", str(workspace), "moving") == [(again.id, again.tree)]
    assert again.tree != moving.tree
    assert daemon.build(workspace, **options).stats.skipped == 3


def test_a_change_beside_the_package_that_is_built_does_not_matter(daemon: Daemon, tmp_path: Path) -> None:
    plain = RecipeRepository(tmp_path / "plain", plain=True)
    plain.package("a", path="a", phases={"build": f"echo here; {daemon.at_gate('beside')}"}).write("a/file", "beside")
    plain.commit()
    number = daemon.start(plain)
    daemon.until_running(number, 1, saying="here")
    plain.write("elsewhere", "new")
    daemon.open_gate("beside")
    view = daemon.wait(number)
    record = daemon.record(named(view, "a").build_id)
    assert (record.state, record.message) == ("success", None)
    assert daemon.rows("SELECT build FROM package_index WHERE repository = ?", str(plain)) == [(record.id,)]
    assert daemon.build(plain).stats.skipped == 1
