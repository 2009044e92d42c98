"""Targets: local repositories, plain directories, URLs and known names, with revisions and packages."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, GitServer, RecipeRepository, git, named, until

Boot = Callable[..., Daemon]
SHOW = {"build": "cat README"}


def test_a_repository_is_cloned_planned_and_built_over_the_git_protocol(
    boot: Boot, repository: RecipeRepository, git_server: GitServer
) -> None:
    daemon = boot()
    repository.package("base", phases=SHOW).package("top", depends=["base"], phases=SHOW).commit()

    done = daemon.buildctl("start", git_server.url(repository), "--wait")

    assert done.returncode == 0, done.stderr
    assert "base" in done.stdout
    (known,) = daemon.call("repo.list")["repositories"]
    assert known["clone_status"]["status"] == "cloned"
    assert Path(known["path"]).is_relative_to(daemon.cache_dir)
    assert daemon.build(known["name"]).stats.skipped == 2  # by its known name

    repository.write("base/README", "changed\n").commit()
    view = daemon.build(known["name"])  # a start fetches first
    assert named(view, "base").state == "success"
    assert "changed" in daemon.log_of(view, "base").splitlines()
    repository.write("base/README", "changed again\n").commit()
    assert daemon.build(known["name"], refresh=False).stats.skipped == 2

    kinds = [event["kind"] for event in daemon.call("events.poll", {"after": 0})["events"] if event["repository"]]
    assert any("clone" in kind for kind in kinds)
    assert daemon.buildctl("repo", "delete", known["name"]).returncode == 0
    assert not Path(known["path"]).exists()
    assert daemon.buildctl("plan", known["name"]).returncode == 3


def test_revisions_are_branches_tags_and_commits(daemon: Daemon, repository: RecipeRepository) -> None:
    first = repository.package("a", phases=SHOW).write("a/README", "first\n").commit()
    git("tag", "v1", cwd=repository.path)
    git("switch", "-qc", "next", cwd=repository.path)
    repository.write("a/README", "second\n").commit()
    git("switch", "-q", "main", cwd=repository.path)

    def built(revision: str) -> str:
        view = daemon.build(f"{repository}@{revision}", force=True)
        assert view.state == "completed", view.error
        lines = daemon.log_of(view, "a").splitlines()
        return lines[lines.index("==> build") + 1]

    assert [built(r) for r in ("main", "v1", first, first[:10])] == ["first"] * 4
    assert built("next") == "second"
    missing = daemon.buildctl("plan", f"{repository}@no-such-branch")
    assert missing.returncode == 3
    assert "no-such-branch" in missing.stderr


def test_only_committed_files_of_a_repository_are_built(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("a", phases={"build": "ls"}).commit()
    repository.write("a/uncommitted", "x")
    view = daemon.build(repository)
    assert "uncommitted" not in daemon.log_of(view, "a").splitlines()


def test_a_plain_directory_is_built_as_it_is(daemon: Daemon, tmp_path: Path) -> None:
    plain = RecipeRepository(tmp_path / "plain", plain=True)
    plain.package("a", phases=SHOW).write("a/README", "one\n").commit()
    view = daemon.build(plain)
    assert "one" in daemon.log_of(view, "a").splitlines()
    assert daemon.build(plain).stats.skipped == 1
    plain.write("a/README", "two\n")
    view = daemon.build(plain)
    assert "two" in daemon.log_of(view, "a").splitlines()
    refused = daemon.buildctl("plan", f"{plain}@v1")
    assert refused.returncode in (2, 3)


def test_a_subdirectory_of_a_repository_builds_what_is_below_it(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.write("libs/buildd.toml", '[package.lib]\npath = "src"\n').write("libs/src/x", "x")
    repository.write("apps/buildd.toml", '[package.app]\ndepends = ["lib"]\n[package.other]\n').commit()
    assert {p.name for p in daemon.build(repository.path / "libs").packages} == {"lib"}
    assert {p.name for p in daemon.build(repository.path / "apps").packages} == {"lib", "app", "other"}
    assert {p.name for p in daemon.build(f"{repository}//other").packages} == {"other"}


def test_a_relative_path_is_the_client_s(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("a").commit()
    done = daemon.buildctl("start", ".", "--wait", "--json", cwd=repository.path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["targets"] == [str(repository)]


def test_a_dependency_in_another_repository_is_found(daemon: Daemon, tmp_path: Path) -> None:
    lib, app = RecipeRepository(tmp_path / "lib"), RecipeRepository(tmp_path / "app")
    lib.package("zlib", phases={"stage": 'mkdir -p "$DESTDIR$PREFIX"; echo z > "$DESTDIR$PREFIX/z"'}).commit()
    app.package("tool", depends=[f"{lib}//zlib"], phases={"build": 'cat "$PREFIX/z"'}).commit()
    view = daemon.build(app)
    assert view.state == "completed", view.error
    assert {p.name for p in view.packages} == {"zlib", "tool"}


def test_several_targets_are_one_run(daemon: Daemon, tmp_path: Path) -> None:
    repositories = [RecipeRepository(tmp_path / name) for name in ("one", "two")]
    for repository in repositories:
        repository.package(f"in-{repository.path.name}").commit()
    assert {p.name for p in daemon.build(*repositories).packages} == {"in-one", "in-two"}


@pytest.mark.parametrize(
    ("target", "code", "word"),
    [
        ("ftp://127.0.0.1/x", 2, "ftp"),
        ("ext::sh -c 'touch /tmp/owned'", 2, "ext"),
        ("git://127.0.0.1:1/x", 1, "127.0.0.1"),
        ("https://user:hunter2@127.0.0.1:1/x", 1, "127.0.0.1"),
        ("-x", 3, "-x"),
        ("/nowhere/at/all", 3, "/nowhere/at/all"),
        ("a//", 2, "//"),
    ],
)
def test_a_target_that_cannot_be_is_explained(daemon: Daemon, target: str, code: int, word: str) -> None:
    done = daemon.buildctl("plan", "--", target)
    assert done.returncode == code, done
    assert word in done.stderr
    assert "hunter2" not in done.stderr + daemon.log() + json.dumps(daemon.call("events.poll", {"after": 0}))


def test_a_run_of_an_unreachable_repository_fails_and_leaves_nothing(boot: Boot) -> None:
    daemon = boot()
    view = daemon.build("git://127.0.0.1:1/nothing")
    assert view.state == "failed"
    assert view.stats.total == 0
    assert "127.0.0.1" in str(view.error)
    assert [path for path in (daemon.cache_dir / "repos").rglob("*") if path.is_dir() and path.suffix == ".git"] == []


def test_a_server_that_says_nothing_is_cancelled_within_a_second(boot: Boot) -> None:
    daemon = boot()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        number = daemon.start(f"git://127.0.0.1:{silent.getsockname()[1]}/x")
        until(lambda: daemon.status()["clones"], "the clone is under way")
        daemon.call("run.cancel", {"run": str(number)})
        assert daemon.wait(number, within=1.5).state == "cancelled"
        until(lambda: not daemon.status()["clones"], "the clone has ended", within=1.5)
    assert [path for path in (daemon.cache_dir / "repos").rglob("*") if path.suffix == ".git"] == []


def test_a_server_that_says_nothing_fails_after_the_configured_time(boot: Boot) -> None:
    daemon = boot(settings={"repos.idle_timeout": "1s"})
    before = daemon.status()["resources"]["children"]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        view = daemon.build(f"git://127.0.0.1:{silent.getsockname()[1]}/x")
    assert view.state == "failed"
    assert "nothing for 1 s" in str(view.error)
    until(lambda: daemon.status()["resources"]["children"] == before, "its processes are gone", within=2)
