"""The helpers of the benchmarks. Nothing here is timed: what is measured is measured by `python -m bench`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from harness.daemon import needs_bwrap  # the benchmarks measure that sandbox and no other

from bench.cleanup import cost_of, read_closings
from bench.client import Asking
from bench.daemon import BenchError, Daemon
from bench.dispatch import recipes, sandboxed
from bench.figures import Figure, Report, Sample, number, percentile, table
from bench.history import GitServer, write_history
from bench.makespan import draw_durations, lower_bound, read_graphs
from bench.packages import GIT_ENVIRONMENT, write_repository
from bench.results import section, update
from buildd.model import BuildRecord, PhaseRecord


def test_a_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_medians() -> None:
    figure = Figure(name="x", unit="s", ours=Sample((2.0, 30.0, 2.2)), peer=Sample((1.0, 10.0, 2.0)), most_ratio=2.0)
    ratios = figure.ratios()
    assert ratios is not None
    assert ratios.values == pytest.approx((2.0, 3.0, 1.1))
    assert figure.met() is True


def test_a_bound_on_a_value_holds_for_the_worst_repetition() -> None:
    assert Figure(name="x", unit="ms", ours=Sample((1.0, 2.0, 51.0)), most=50.0).met() is False
    assert Figure(name="x", unit="ms", ours=Sample((1.0, 2.0, 49.0)), most=50.0).met() is True
    assert Figure(name="x", unit="ms", ours=Sample((1.0,))).met() is None


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.995, 100), (1.0, 100)]
)
def test_a_percentile_is_the_smallest_value_with_that_share_at_or_below_it(fraction: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), fraction) == expected


def test_numbers_have_three_significant_digits() -> None:
    assert [number(v) for v in (0.12345, 1.2345, 12.345, 123.45, 12345.6, 4.0)] == [
        "0.123",
        "1.23",
        "12.3",
        "123",
        "12,346",
        "4",
    ]


def test_a_table_has_cells_of_one_width_in_each_column() -> None:
    lines = table(
        [
            Figure(name="short", unit="s", ours=Sample((1.0,))),
            Figure(name="a longer name", unit="s", ours=Sample((1.0, 2.0)), peer=Sample((1.0, 1.0)), most_ratio=1.1),
        ]
    )
    assert len({len(line) for line in lines}) == 1
    assert "**no**" in lines[-1]


def test_updating_the_results_replaces_one_section_and_keeps_the_others_in_order(tmp_path: Path) -> None:
    path, order = tmp_path / "RESULTS.md", ("first", "second", "third")

    def write(name: str, value: float) -> None:
        report = Report(about=f"about {name}", figures=(Figure(name="f", unit="s", ours=Sample((value,))),))
        update(path, {name: section(name, report, ["measured today"])}, order)

    write("third", 3.0)
    write("first", 1.0)
    write("third", 33.0)
    text = path.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## first", "## third"]
    assert "33 s" in text
    assert "| 3 s" not in text
    write("second", 2.0)
    again = path.read_text()
    write("second", 2.0)
    assert path.read_text() == again
    assert again.startswith("# ")


def test_the_lower_bound_is_the_critical_path_or_the_work_divided_by_the_workers() -> None:
    durations = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert lower_bound({"a": [], "b": ["a"], "c": ["b"]}, durations, 8) == 6.0
    assert lower_bound({"a": [], "b": [], "c": []}, durations, 1) == 6.0
    assert lower_bound({"a": [], "b": [], "c": []}, durations, 8) == 3.0


def test_the_real_graphs_are_whole_and_their_durations_always_the_same() -> None:
    graphs = read_graphs()
    assert {name: (len(g), sum(map(len, g.values()))) for name, g in graphs.items()} == {
        "gnome": (300, 1383),
        "kde": (300, 1922),
        "ros": (300, 1173),
    }
    for graph in graphs.values():
        durations = draw_durations(graph, 25.0, 8)
        assert durations == draw_durations(dict(reversed(graph.items())), 25.0, 8)
        assert lower_bound(graph, durations, 8) == pytest.approx(25.0, abs=0.2)
        assert all(needed in graph for needs in graph.values() for needed in needs)


def test_the_history_is_the_same_every_time(tmp_path: Path) -> None:
    tips = []
    for name in ("one.git", "two.git"):
        packed = write_history(tmp_path / name, 2_000_000)
        assert 1_000_000 < packed < 5_000_000
        tips.append(_git("rev-parse", "main", cwd=tmp_path / name))
    assert tips[0] == tips[1]
    _git("fsck", "--strict", cwd=tmp_path / "one.git")


def test_the_git_server_serves_while_its_context_lasts(tmp_path: Path) -> None:
    write_repository(tmp_path / "served", recipes(1))
    server = GitServer(tmp_path)
    with server.serving():
        assert _git("ls-remote", server.url("served"), "refs/heads/main").endswith("refs/heads/main")
    with pytest.raises(subprocess.CalledProcessError):
        _git("ls-remote", server.url("served"))


@needs_bwrap
def test_the_peer_of_dispatch_runs_its_phases_in_the_sandbox(tmp_path: Path) -> None:
    work, state = tmp_path / "work", tmp_path / "state"
    for name in ("src", "build", "dest", "home", "tmp"):
        (work / name).mkdir(parents=True)
    state.mkdir()
    ran = subprocess.run(sandboxed(state, work), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == ["==>", "configure", "==>", "build", "==>", "check", "==>", "stage"]


def test_what_follows_the_last_phase_is_told_by_the_record_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    closed = {"event": "scope closed", "task": "build", "build": "b", "cleanup_ms": 20.0}
    lines = [
        {**closed, "task": "probe", "timestamp": "2026-01-01T00:00:00Z"},
        {**closed, "timestamp": "2026-01-01T00:00:02.050000Z"},
        {"event": "stopped"},
    ]
    log.write_text("no JSON\n" + "".join(json.dumps(line) + "\n" for line in lines) + '{"cut off')
    began = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    phases = (
        PhaseRecord(name="build", started_at=began + 0.5, duration_s=0.5),
        PhaseRecord(name="stage", started_at=began + 1.5, duration_s=0.5),
    )
    build = BuildRecord(
        id="b", run="r", package="p", version="1", state="success", started_at=began + 1.0, phases=phases
    )
    cost = cost_of(build, read_closings(log)["b"])
    assert (cost.phases, cost.after, cost.closing) == pytest.approx((1.0, 0.05, 0.02))
    assert (cost.cleanup, cost.tail) == pytest.approx((2.0, 5.0))


@needs_bwrap
def test_a_daemon_of_a_benchmark_builds_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", recipes(2))
    with Daemon(tmp_path / "d") as daemon:
        with Asking(daemon.socket, clients=2) as asking:
            daemon.timed("start", str(repository), "--wait")
        daemon.check_run(2)
        with pytest.raises(BenchError, match="3 packages should have been built"):
            daemon.check_run(3)
        assert daemon.memory().rss > daemon.memory().pss > 0
        pid = daemon.pid
    assert 0 < asking.latency.p50 <= asking.latency.p99 <= asking.latency.worst
    assert not Path(f"/proc/{pid}").exists()
    assert not daemon.socket.exists()


def test_a_daemon_that_cannot_start_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"workers\.max_concurrent_builds"):
        Daemon(tmp_path / "d", settings={"workers.max_concurrent_builds": 0}).__enter__()


def test_an_unknown_benchmark_is_a_usage_error_that_names_the_known_ones() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert "dispatch" in ran.stderr


@needs_bwrap
def test_an_interrupted_benchmark_leaves_no_process_and_no_directory_behind() -> None:
    with tempfile.TemporaryDirectory() as home:  # not tmp_path: the path of a socket has to be short
        bench = subprocess.Popen(
            [sys.executable, "-m", "bench", "dispatch", "--quick", f"--disk={home}"],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not list(Path(home).glob("*/*/daemon/run/control.sock")):
            assert bench.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert _processes_of(home)
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) == 130
        assert _processes_of(home) == []
        assert list(Path(home).iterdir()) == []


def _processes_of(directory: str) -> list[str]:
    """Command lines of the daemons whose state is below `directory`."""
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if f"daemon.state_dir={directory}" in line]


def _git(*arguments: str, cwd: Path | None = None) -> str:
    ran = subprocess.run(["git", *arguments], cwd=cwd, env=GIT_ENVIRONMENT, capture_output=True, text=True, check=True)
    return ran.stdout.strip()
