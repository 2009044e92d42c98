"""What the benchmarks of incremental starts and of the order of builds rest on. Nothing here is timed."""

from __future__ import annotations

import heapq
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from harness.daemon import needs_bwrap

from bench import noop
from bench.daemon import BenchError, Daemon
from bench.edges import check_idle, write_edges
from bench.figures import Options
from bench.makespan import WORKERS, Graph, critical_path, draw_durations, lower_bound, read_graphs
from bench.monorepo import SOURCE, directory_of, draw_packages, last_leaf, source_text, write_monorepo
from bench.packages import GIT_ENVIRONMENT, Recipe, commit_file
from bench.starts import build_all, check_latest, in_turns, peer_command, timed
from buildd.planner.graph import dependents, topological_order, urgency

needs_peers = pytest.mark.skipif(
    None in (shutil.which("ninja"), shutil.which("make")), reason="ninja or make is not installed"
)


def test_packages_are_the_same_every_time_and_come_after_what_they_depend_on() -> None:
    recipes = draw_packages(2000)
    assert recipes == draw_packages(2000)
    seen: set[str] = set()
    for recipe in recipes:
        assert set(recipe.depends) <= seen
        assert len(recipe.depends) <= 3
        seen.add(recipe.name)
    assert len(seen) == 2000


def test_packages_need_as_many_others_as_real_ones_do() -> None:
    needed: dict[str, set[str]] = {}
    for recipe in draw_packages(10_000):
        needed[recipe.name] = set(recipe.depends).union(*(needed[name] for name in recipe.depends))
    sizes = [len(names) for names in needed.values()]
    assert 9 < sum(sizes) / len(sizes) < 11
    assert max(sizes) < 100


def test_nobody_depends_on_the_package_that_is_changed() -> None:
    recipes = draw_packages(200)
    leaf = last_leaf(recipes)
    assert leaf.depends
    assert not any(leaf.name in recipe.depends for recipe in recipes)


def test_the_repository_is_clean_and_packed_and_a_commit_changes_one_file_of_it(tmp_path: Path) -> None:
    recipes = draw_packages(120)
    repository = write_monorepo(tmp_path / "repository", recipes)
    assert _git(repository, "status", "--porcelain") == ""
    assert _git(repository, "count-objects").startswith("0 objects")
    assert len(_git(repository, "ls-files").split()) == 240
    first = _git(repository, "rev-parse", "HEAD")
    assert first == _git(write_monorepo(tmp_path / "again", recipes), "rev-parse", "HEAD")
    path = f"{directory_of(recipes[-1])}/{SOURCE}"
    commit_file(repository, path, source_text(recipes[-1], 1))
    assert _git(repository, "diff", "--name-only", first, "HEAD") == path
    assert _git(repository, "status", "--porcelain") == ""


def test_versions_of_a_source_differ_in_content_and_not_in_length() -> None:
    (recipe,) = draw_packages(1)
    assert source_text(recipe, 1) != source_text(recipe, 20)
    assert len(source_text(recipe, 1)) == len(source_text(recipe, 20))


@needs_peers
@pytest.mark.parametrize("changed", [None, *range(3)])
def test_ninja_and_make_have_nothing_to_do_until_any_input_is_newer(tmp_path: Path, changed: int | None) -> None:
    recipes = draw_packages(30)
    repository = write_monorepo(tmp_path / "repository", recipes)
    edges = write_edges(tmp_path / "edges", repository, recipes)
    check_idle(edges)
    if changed is None:
        return
    (repository / directory_of(recipes[changed]) / SOURCE).write_text("changed\n")
    with pytest.raises(BenchError, match="nothing to do"):
        check_idle(edges)


@needs_peers
def test_edges_depend_on_the_edges_of_what_their_package_depends_on(tmp_path: Path) -> None:
    recipes = draw_packages(30)
    repository = write_monorepo(tmp_path / "repository", recipes)
    edges = write_edges(tmp_path / "edges", repository, recipes)
    needed = next(name for recipe in recipes for name in recipe.depends)
    rebuilt = _waiting_for(recipes, needed)
    assert len(rebuilt) > 1
    (repository / directory_of(next(r for r in recipes if r.name == needed)) / SOURCE).write_text("changed\n")
    ran = subprocess.run(["make", "-rRn"], cwd=edges, env=GIT_ENVIRONMENT, capture_output=True, text=True, check=True)
    assert {line.split("/")[-1] for line in ran.stdout.splitlines()} == rebuilt


def _waiting_for(recipes: Sequence[Recipe], name: str) -> set[str]:
    """`name` and everything that depends on it."""
    found = {name}
    for recipe in recipes:
        if found.intersection(recipe.depends):
            found.add(recipe.name)
    return found


def test_a_round_runs_every_command_once_and_every_other_round_runs_backwards(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    commands = {name: peer_command(tmp_path, "sh", "-c", f"echo {name} >> {ran}") for name in "abc"}
    for number in range(3):
        assert set(in_turns(commands, number)) == set("abc")
    assert ran.read_text().split() == list("abccbaabc")


def test_a_command_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="out of ideas"):
        timed(peer_command(tmp_path, "sh", "-c", "echo out of ideas >&2; exit 3"))


@needs_bwrap
def test_what_a_run_did_is_held_against_what_it_should_have_done(tmp_path: Path) -> None:
    repository = write_monorepo(tmp_path / "repository", draw_packages(3))
    with Daemon(tmp_path / "d") as daemon:
        assert build_all(daemon, repository, 3) > 0
        check_latest(daemon, success=3, skipped=0)
        with pytest.raises(BenchError, match="should have been"):
            check_latest(daemon, skipped=3)
        with pytest.raises(BenchError, match="should have been"):
            check_latest(daemon, success=2)
        daemon.ctl("start", str(repository), "--wait")
        check_latest(daemon, skipped=3)


@needs_bwrap
@needs_peers
def test_the_whole_benchmark_holds_every_promise_against_a_figure() -> None:
    with tempfile.TemporaryDirectory() as home:  # not tmp_path: the path of a socket has to be short
        report = noop.run(Options(quick=True, disk=Path(home), tmpfs=Path(home)))
        assert list(Path(home).iterdir()) == []
    held = {figure.name: figure.most_ratio or figure.most for figure in report.figures if figure.met() is not None}
    assert held == {
        "20 packages, nothing to do, buildctl status": 1.5,
        "20 packages, memory after it": 150.0,
        "20 packages, memory after 10 starts more": 150.0,
        "60 packages, nothing to do, git status": 0.7,
        "60 packages, nothing to do, ninja": 1.0,
        "60 packages, one change": 1.2,
        "60 packages, memory after it": 150.0,
        "60 packages, memory after 10 starts more": 150.0,
        "60 packages, memory after all of this": 150.0,
        "60 packages, memory after that first start": 150.0,
    }


def test_the_order_of_the_critical_path_alone_reaches_the_lower_bound_of_the_real_graphs() -> None:
    for graph in read_graphs().values():
        durations = draw_durations(graph, 25.0, WORKERS)
        assert _makespan(graph, durations, WORKERS) == pytest.approx(lower_bound(graph, durations, WORKERS))


def test_the_critical_path_is_a_chain_of_dependencies_that_takes_longest() -> None:
    graph = {"a": [], "b": ["a"], "c": ["a", "b"], "d": []}
    assert critical_path(graph, {"a": 1.0, "b": 2.0, "c": 1.0, "d": 3.5}) == ["a", "b", "c"]
    assert critical_path(graph, {"a": 1.0, "b": 2.0, "c": 1.0, "d": 4.5}) == ["d"]


def _makespan(graph: Graph, durations: Mapping[str, float], workers: int) -> float:
    """Seconds until all is built when nothing costs anything but the builds, the most urgent of the ready first."""
    urgent = urgency(graph, topological_order(graph), durations)
    waiting = {name: len(needed) for name, needed in graph.items()}
    behind = dependents(graph)
    ready = [(-urgent[name], name) for name, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + durations[name], name))
        now, ended = heapq.heappop(running)
        for name in behind[ended]:
            waiting[name] -= 1
            if waiting[name] == 0:
                heapq.heappush(ready, (-urgent[name], name))
    return now


def _git(repository: Path, *arguments: str) -> str:
    ran = subprocess.run(
        ["git", *arguments], cwd=repository, env=GIT_ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()
