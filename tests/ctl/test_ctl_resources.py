"""`buildctl status` on what is short, and `buildctl status --resources`."""

from __future__ import annotations

import time

import msgspec
from ctl_peer import Ctl, Peer
from hypothesis import given, strategies as st

from buildd import protocol as p
from ctl.resources import COLUMNS, SAMPLES, trend


def sample(n: int, **changes: object) -> p.Sample:
    given = p.Sample(
        at=1.7e9 + 5 * n,
        rss_bytes=(60 + n) << 20,
        open_files=20,
        threads=5,
        children=2,
        load_1m=n / 10,
        memory_total_bytes=16 << 30,
        memory_available_bytes=9 << 30,
        swap_total_bytes=0,
        swap_used_bytes=0,
        free_bytes=50 << 30,
        free_inodes=1234,
        busy=n % 3,
        queued=n,
    )
    return msgspec.structs.replace(given, **changes)


def test_status_says_why_fewer_builds_are_started_or_none(peer: Peer, ctl: Ctl) -> None:
    text = ctl("status").stdout
    assert "throttled" not in text
    assert "paused" not in text
    peer.throttle = p.Throttle(workers=2, total=8, reason="the load is 9.5 on 2 processors\x1b[31m")
    peer.paused = "the file system of /var/lib/buildd has 3.0 MiB free"
    text = ctl("status").stdout
    assert "  throttled  to 2 workers: the load is 9.5 on 2 processors\\x1b[31m\n" in text
    assert "  paused     the file system of /var/lib/buildd has 3.0 MiB free\n" in text


def test_resources_are_shown_with_their_course_and_each_build(peer: Peer, ctl: Ctl) -> None:
    peer.samples = [sample(n) for n in range(SAMPLES + 20)]
    peer.throttle = p.Throttle(workers=2, total=8, reason="the load is high")
    peer.paused = "the disk is full"
    peer.uses = (
        p.BuildUse(
            build="b1",
            run="r1",
            package="editors/vim",
            phase="configure",
            started_at=time.time() - 7630,
            processes=7,
            memory_bytes=300 << 20,
            cpu_s=61.5,
            disk_bytes=20 << 20,
        ),
        p.BuildUse(
            build="b2",
            run="r1",
            package="odd\x1b[2J",
            phase=None,
            started_at=time.time(),
            processes=0,
            memory_bytes=0,
            cpu_s=0.0,
            disk_bytes=0,
        ),
    )
    lines = ctl("status", "--resources").stdout.splitlines()
    assert peer.calls("daemon.resources") == [p.ResourcesParams(samples=SAMPLES)]
    load = next(line for line in lines if line.startswith("load"))
    assert load.split()[1:4] == ["7.9", "2.0", "7.9"]
    assert load.endswith("█")
    assert "LAST 4m 55s" in lines[0]
    assert any(line.startswith("memory available") and "9.0 GiB" in line for line in lines)
    assert "the daemon had 40 MiB of memory when it had settled, and 60 MiB at most, too much 1 time" in lines
    assert "profile of its memory: /p/memory.txt" in lines
    assert "throttled to 2 of 8 workers: the load is high" in lines
    assert "paused: the disk is full" in lines
    vim = next(line for line in lines if line.startswith("editors/vim"))
    assert vim.split() == ["editors/vim", "configure", "2h", "07m", "1m", "02s", "300", "MiB", "20", "MiB", "7"]
    assert any(line.startswith("odd\\x1b[2J ") for line in lines)


def test_what_is_not_known_is_a_dash(peer: Peer, ctl: Ctl) -> None:
    peer.samples = [sample(1, free_bytes=None, free_inodes=None)]
    lines = ctl("status", "--resources").stdout.splitlines()
    assert next(line for line in lines if line.startswith("disk free")).split()[2:] == ["-", "-", "-"]
    assert lines[-1] == "no build is running"


def test_resources_as_json_are_the_answer_of_the_method(peer: Peer, ctl: Ctl) -> None:
    peer.samples = [sample(1), sample(2)]
    answer = msgspec.json.decode(ctl("status", "--resources", "--json").stdout, type=p.ResourcesResult)
    assert answer.samples == (sample(1), sample(2))
    assert answer.memory.profile == "/p/memory.txt"


@given(st.lists(st.floats(-1e9, 1e9), max_size=200))
def test_a_trend_has_a_bar_for_each_value_as_far_as_there_is_room(values: list[float]) -> None:
    shown = trend(values)
    assert len(shown) == min(len(values), COLUMNS)
    assert set(shown) <= set("▁▂▃▄▅▆▇█")
    if len(set(values)) > 1:
        assert "█" in shown, "a peak is never left out"


def test_a_trend_rises_and_falls_as_the_values_do() -> None:
    assert trend([]) == ""
    assert trend([3, 3, 3]) == "▁▁▁"
    assert trend([0, 7, 0]) == "▁█▁"
    assert trend([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
