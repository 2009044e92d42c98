"""Clones are kept within limits and fresh by a real daemon, and never taken from those who use them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from harness import Daemon, GitServer, RecipeRepository, until


def make(tmp_path: Path, *names: str) -> list[RecipeRepository]:
    made = [RecipeRepository(tmp_path / name) for name in names]
    for repository in made:
        repository.write("file", f"{repository.path.name}\n").commit()
    return made


def clone(daemon: Daemon, url: str) -> None:
    done = daemon.buildctl("repo", "clone", url, "--wait")
    assert done.returncode == 0, done.stderr


def states(daemon: Daemon) -> dict[str, str]:
    return {r["name"]: r["clone_status"]["status"] for r in daemon.call("repo.list")["repositories"]}


def on_disk(daemon: Daemon) -> set[str]:
    return {path.name.rpartition("-")[0] for path in (daemon.cache_dir / "repos").glob("*.git")}


def evicted(daemon: Daemon) -> list[str]:
    return [str(e.repository).rpartition("/")[2] for e in daemon.events(None, "repo_evicted")]


def test_the_least_recently_used_clone_goes_and_comes_back_when_it_is_wanted(
    boot: Callable[..., Daemon], git_server: GitServer, tmp_path: Path
) -> None:
    one, two, three = make(tmp_path, "one", "two", "three")
    daemon = boot(settings={"repos.max_repositories": 2})
    clone(daemon, git_server.url(one))
    clone(daemon, git_server.url(two))
    assert daemon.buildctl("repo", "cat", "one", "file").stdout == "one\n"  # now `two` is the one that was not used
    clone(daemon, git_server.url(three))
    until(lambda: on_disk(daemon) == {"one", "three"}, "the clone has gone")
    assert states(daemon) == {"one": "cloned", "two": "not_started", "three": "cloned"}
    assert evicted(daemon) == ["two"]
    refused = daemon.buildctl("repo", "cat", "two", "file")
    assert refused.returncode == 4
    assert "not cloned" in refused.stderr

    daemon.restart()
    assert states(daemon)["two"] == "not_started"
    assert daemon.buildctl("repo", "refresh", "two").stdout.endswith("changed      yes\n")
    until(lambda: on_disk(daemon) == {"three", "two"}, "the clone makes room for itself")
    assert daemon.buildctl("repo", "cat", "two", "file").stdout == "two\n"


def test_limits_of_bytes_are_kept_after_a_reload(
    boot: Callable[..., Daemon], git_server: GitServer, tmp_path: Path
) -> None:
    one, two = make(tmp_path, "one", "two")
    daemon = boot()
    clone(daemon, git_server.url(one))
    clone(daemon, git_server.url(two))
    assert on_disk(daemon) == {"one", "two"}
    daemon.config_file.write_text("[repos]\nmax_bytes = 1000\n")
    daemon.call("daemon.reload")
    daemon.call("repo.refresh", {"repo": "two"})
    until(lambda: on_disk(daemon) == {"two"}, "what was used last stays")
    reasons = " ".join(daemon.status()["reasons"])
    assert "repos.max_bytes allows 1000" in reasons
    assert daemon.status()["state"] == "running"


@pytest.mark.parametrize("how", ["goes on", "is taken up after a crash"])
def test_a_clone_that_a_run_needs_is_not_evicted(
    boot: Callable[..., Daemon], git_server: GitServer, tmp_path: Path, how: str
) -> None:
    (other,) = make(tmp_path, "other")
    daemon = boot(backend="plain", settings={"repos.max_repositories": 1})
    work = RecipeRepository(tmp_path / "work")
    work.package("slow", path=".", phases={"build": f"echo waiting; {daemon.at_gate()}; cat file"})
    work.write("file", "the source\n").commit()
    run = daemon.start(git_server.url(work))
    daemon.until_running(run, 1, saying="waiting")
    if how == "is taken up after a crash":
        daemon.kill9()
        daemon.boot()
    clone(daemon, git_server.url(other))
    assert evicted(daemon) == []
    assert on_disk(daemon) == {"work", "other"}
    until(lambda: "max_repositories" in " ".join(daemon.status()["reasons"]), "the limit is said to be broken")
    daemon.open_gate()
    assert daemon.wait(run).state == "completed"
    until(lambda: on_disk(daemon) == {"other"}, "the run's clone goes when it is let go")


def test_a_clone_that_an_accepted_run_will_want_is_not_evicted(
    boot: Callable[..., Daemon], git_server: GitServer, tmp_path: Path
) -> None:
    work, other = make(tmp_path, "work", "other")
    daemon = boot(settings={"repos.max_repositories": 1})
    clone(daemon, git_server.url(work))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first = f"git://127.0.0.1:{silent.getsockname()[1]}/first"
        run = daemon.start(first, git_server.url(work))  # the first target keeps it from looking at the second
        until(lambda: [c for c in daemon.status()["clones"] if c["url"] == first], "it waits for the first clone")
        clone(daemon, git_server.url(other))
        assert evicted(daemon) == []
        daemon.call("run.cancel", {"run": str(run)})
        assert daemon.wait(run).state == "cancelled"
    daemon.call("repo.refresh", {"repo": "other"})
    until(lambda: on_disk(daemon) == {"other"}, "nobody will want it any more")


@contextmanager
def unchanging(daemon: Daemon) -> Iterator[None]:
    """Nothing that is done here counts as use of a repository."""
    before = {r["url"]: r["last_access"] for r in daemon.call("repo.list")["repositories"]}
    yield
    assert {r["url"]: r["last_access"] for r in daemon.call("repo.list")["repositories"]} == before


def test_repositories_are_refreshed_on_schedule_also_after_a_restart(
    boot: Callable[..., Daemon], git_server: GitServer, tmp_path: Path
) -> None:
    repositories = make(tmp_path, "one", "two", "three")
    local = RecipeRepository(tmp_path / "local")
    local.write("file", "x").commit()
    daemon = boot(settings={"repos.refresh_active": "1s"})
    for repository in repositories:
        clone(daemon, git_server.url(repository))
    clone(daemon, str(local.path))

    def news() -> set[str]:
        refreshed = daemon.events(None, "repo_refreshed", after=after)
        return {str(e.repository).rpartition("/")[2] for e in refreshed if e.data["changed"]}

    for restart in (False, True):
        after = daemon.events()[-1].number
        for repository in repositories:
            repository.write("file", f"new {restart}\n").commit()
        if restart:
            daemon.restart()
        with unchanging(daemon):
            until(lambda: news() == {"one", "two", "three"}, "all of them are refreshed")
    assert daemon.buildctl("repo", "cat", "one", "file").stdout == "new True\n"


def test_a_server_that_is_gone_is_reported_once_and_asked_less_and_less(
    boot: Callable[..., Daemon], git_server: GitServer, tmp_path: Path
) -> None:
    (one,) = make(tmp_path, "one")
    daemon = boot(settings={"repos.refresh_active": "300ms"})
    clone(daemon, git_server.url(one))
    one.path.rename(tmp_path / "elsewhere")

    def failures() -> list[float]:
        return [e.time for e in daemon.events(None, "clone_failed")]

    times = until(lambda: failures() if len(failures()) >= 4 else [], "it is tried four times")
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[1] > 0.6
    assert gaps[2] > 1.2
    assert daemon.log().count("a repository cannot be refreshed") == 1
    assert states(daemon) == {"one": "cloned"}
    (tmp_path / "elsewhere").rename(one.path)
    until(lambda: "a repository can be refreshed again" in daemon.log(), "it is fetched again")


def test_a_refresh_if_changed_says_whether_there_was_anything(
    daemon: Daemon, git_server: GitServer, tmp_path: Path
) -> None:
    (one,) = make(tmp_path, "one")
    clone(daemon, git_server.url(one))
    objects = daemon.cache_dir / "repos"

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in objects.rglob("*") if p.is_file()}

    before = files()
    same = json.loads(daemon.buildctl("repo", "refresh", "one", "--if-changed", "--json").stdout)
    assert (same["changed"], same["name"], same["clone_status"]["status"]) == (False, "one", "cloned")
    assert files() == before
    one.write("file", "new\n").commit()
    assert daemon.buildctl("repo", "refresh", "one", "--if-changed").stdout.endswith("changed      yes\n")
    assert daemon.buildctl("repo", "cat", "one", "file").stdout == "new\n"
    assert "FETCHED" in daemon.buildctl("repo", "list").stdout.splitlines()[0]
    unknown = daemon.buildctl("repo", "refresh", "unheard-of", "--if-changed")
    assert unknown.returncode == 3
