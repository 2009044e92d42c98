"""What `top` makes of the daemon's answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from ctl_peer import Peer, build_use, package, sample

from buildd import protocol as p
from ctl.top.scene import HISTORY, WINDOW_S, Scene

NOW = 1_700_000_000.0


def resources(*builds: p.BuildUse, samples: tuple[p.Sample, ...] = (), **fields: Any) -> p.ResourcesResult:
    given: dict[str, Any] = {
        "interval_s": 2.0,
        "samples": samples,
        "throttle": p.Throttle(workers=4, total=4),
        "paused": "",
        "memory": p.MemoryWatch(baseline_bytes=0, peak_bytes=0, warnings=0, profile=""),
        "builds": builds,
    }
    return p.ResourcesResult(**(given | fields))


@pytest.fixture
def status(tmp_path: Any) -> p.DaemonStatus:
    return Peer(tmp_path / "s").daemon_status(p.Empty())


def test_at_first_sight_the_use_of_processors_is_the_mean_since_the_beginning(status: p.DaemonStatus) -> None:
    scene = Scene(status, resources(build_use("b", "a", started_at=NOW - 100, cpu_s=150.0)), NOW)
    assert scene.rows[0].cpu == pytest.approx(1.5)
    assert scene.rows[0].elapsed_s == 100


def test_later_it_is_that_of_the_last_seconds(status: p.DaemonStatus) -> None:
    use = build_use("b", "a", started_at=NOW - 1000, cpu_s=0.0)
    scene = Scene(status, resources(use), NOW)
    for second in range(1, 10):
        busy = 2.0 * max(0, second - 5)
        scene.take(status, resources(msgspec.structs.replace(use, cpu_s=busy)), NOW + second)
        if second == 5:
            assert scene.rows[0].cpu == 0.0
    assert scene.rows[0].cpu == pytest.approx(2.0), f"what was {WINDOW_S:g} s ago does not count"


def test_looks_far_apart_measure_between_each_other(status: p.DaemonStatus) -> None:
    use = build_use("b", "a", started_at=NOW - 5000, cpu_s=100.0)
    scene = Scene(status, resources(use), NOW)
    scene.take(status, resources(msgspec.structs.replace(use, cpu_s=130.0)), NOW + 60)
    assert scene.rows[0].cpu == pytest.approx(0.5)
    scene.take(status, resources(msgspec.structs.replace(use, cpu_s=190.0)), NOW + 120)
    assert scene.rows[0].cpu == pytest.approx(1.0)


def test_processor_time_that_goes_back_is_no_use_and_no_negative_one(status: p.DaemonStatus) -> None:
    use = build_use("b", "a", started_at=NOW - 10, cpu_s=20.0)
    scene = Scene(status, resources(use), NOW)
    scene.take(status, resources(msgspec.structs.replace(use, cpu_s=5.0)), NOW + 5)
    assert scene.rows[0].cpu == 0.0
    ahead = build_use("c", "a", started_at=NOW + 100, cpu_s=1.0)  # by another clock
    scene.take(status, resources(ahead), NOW + 6)
    assert (scene.rows[0].cpu, scene.rows[0].elapsed_s) == (0.0, 0.0)


def test_samples_are_joined_without_gap_and_without_double(status: p.DaemonStatus) -> None:
    kept = tuple(sample(NOW + 2 * i, load_1m=float(i)) for i in range(300))
    scene = Scene(status, resources(samples=kept[:10]), NOW + 18)
    assert scene.samples_wanted(NOW + 18) == 1
    assert scene.samples_wanted(NOW + 25) >= 4
    scene.take(status, resources(samples=kept[8:13]), NOW + 24)
    assert [s.load_1m for s in scene.history] == [float(i) for i in range(13)]
    assert scene.now == kept[12]
    scene.take(status, resources(samples=kept), NOW + 598)
    assert list(scene.history) == list(kept[-HISTORY:])
    assert scene.samples_wanted(NOW + 1e6) == HISTORY


def test_a_clock_that_was_set_back_does_not_stop_the_curves(status: p.DaemonStatus) -> None:
    scene = Scene(status, resources(samples=(sample(NOW),)), NOW)
    scene.take(status, resources(samples=(sample(NOW - 3600),)), NOW - 3600)
    assert [s.at for s in scene.history] == [NOW - 3600]


def test_a_daemon_without_samples_is_asked_for_all(status: p.DaemonStatus) -> None:
    scene = Scene(status, resources(), NOW)
    assert scene.now is None
    assert scene.samples_wanted(NOW) == HISTORY


def test_numbers_and_last_lines_come_with_the_run_and_go_with_the_build(status: p.DaemonStatus, tmp_path: Any) -> None:
    peer = Peer(tmp_path / "s")
    use = build_use("b", "zlib")
    scene = Scene(status, resources(use, build_use("c", "png")), NOW)
    assert scene.unknown_runs == (use.run,)
    assert scene.rows[0].run is None
    running = package("zlib", "running", build_id="b", last_line="cc -c a.c")
    run = peer.add_run(12, packages=(running,))
    scene.take_run(peer.runs[run])
    assert scene.unknown_runs == ()
    assert [(row.run, row.line) for row in scene.rows] == [(12, "cc -c a.c"), (12, "")]
    scene.take(status, resources(), NOW + 1)
    scene.take(status, resources(use), NOW + 2)
    assert scene.rows[0].line == ""
    scene.forget_run(use.run)
    assert scene.unknown_runs == (), "there is nothing to be learned by asking again"
