"""The lines of `top`, in any width and height, whatever is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from ctl_peer import Peer, build_use, sample
from hypothesis import given, settings, strategies as st

from buildd import protocol as p
from buildd.model import CloneProgress
from ctl.text import cells
from ctl.top.choices import Cancel, Choices
from ctl.top.gauges import ASCII, UNICODE, Glyphs, bar, curve, places
from ctl.top.lines import Line, View
from ctl.top.picture import picture, snapshot
from ctl.top.scene import Scene

NOW = 1_700_000_000.0
HOSTILE = "\x1b[2J\x1b]0;owned\x07evil\r\n\x9b31m\u202e漢"


def scene(*builds: p.BuildUse, status: dict[str, Any] | None = None, **fields: Any) -> Scene:
    given: dict[str, Any] = {
        "interval_s": 2.0,
        "samples": tuple(sample(NOW - 120 + 2 * i, load_1m=i / 15) for i in range(61)),
        "throttle": p.Throttle(workers=8, total=8),
        "paused": "",
        "memory": p.MemoryWatch(baseline_bytes=40 << 20, peak_bytes=50 << 20, warnings=0, profile=""),
        "builds": builds,
    }
    base = Peer(Path("/nowhere")).daemon_status(p.Empty())
    return Scene(msgspec.structs.replace(base, **(status or {})), p.ResourcesResult(**(given | fields)), NOW)


def builds(count: int) -> tuple[p.BuildUse, ...]:
    return tuple(build_use(f"build-{n:03}", f"package-{n:03}", started_at=NOW - 1000 + n) for n in range(count))


def text_of(line: Line) -> str:
    return "".join(span.text for span in line)


def drawn(
    scene: Scene,
    choices: Choices | None = None,
    width: int = 80,
    height: int = 24,
    glyphs: Glyphs = UNICODE,
    **more: str,
) -> list[str]:
    shown = picture(scene, choices or Choices(), View(width, glyphs, 2), height, **more)
    return [text_of(line).rstrip() for line in shown.lines]


def row_of(lines: list[str], name: str) -> list[str]:
    (line,) = (line for line in lines if name in line)
    return line.split()


# --- what is shown ----------------------------------------------------------------------------------------


def test_a_screen_of_eighty_columns_shows_all_there_is() -> None:
    progress = CloneProgress(received_objects=1, total_objects=4, indexed_objects=0, received_bytes=5 << 20)
    clone = p.ActiveClone(url="git://h/things", operation="clone", started_at=1.0, progress=progress, percent=25.0)
    use = build_use("b", "zlib", started_at=NOW - 65, cpu_s=97.5, phase="configure")
    lines = drawn(scene(use, status={"clones": (clone,)}))
    assert len(lines) == 24
    assert lines[0].startswith("buildd 9.9  running  up 1h 01m, pid ")
    load, memory, disk, swap = lines[1:5]
    assert load.startswith("load      4.00 on 2 cpus")
    assert load.split("workers")[1].split() == ["██░░░░░░", "2", "of", "8", "busy"]
    assert memory.startswith("memory    2.0 GiB of 8.0 GiB")
    assert memory.endswith("queue     7 packages, 1 run")
    assert disk.startswith("free disk 12 GiB, 1.2M inodes")
    assert disk.endswith("done      40 built, 3 failed")
    assert swap.startswith("swap      0 B of 2.0 GiB")
    assert swap.endswith("daemon    45 MiB, 20 files, 4 threads")
    assert lines[5] == "cloning   25 %, 5.0 MiB  git://h/things"
    assert lines[6] == "no cgroup: memory is watched by sampling"
    assert lines[8].split() == ["PACKAGE", "RUN", "PHASE", "TIME", "CPU%", "MEMORY", "DISK", "PROCS"]
    assert lines[9].split() == ["▸", "zlib", "-", "configure", "1m", "05s", "150", "300", "MiB", "20", "MiB", "3"]
    assert lines[-1].startswith("q quit  s sort: time  c cancel  l output  p hold  ? keys")


def test_curves_have_the_newest_at_the_right_and_are_measured_by_what_there_is() -> None:
    wide = drawn(scene(), width=200)
    assert "▕" in wide[1], "there is room for a bar"
    assert "█  " in wide[1].partition("workers")[0], "the load is the highest there was"
    assert "▂▂▂▂  " in wide[2].partition("queue")[0], "a quarter of the memory is in use"
    samples = tuple(sample(NOW - 2 * i, load_1m=0.01) for i in range(10, -1, -1))
    assert "▁▁▁▁▁▁▁▁▁▁▁" in drawn(scene(samples=samples), width=200)[1], "little is not nothing"


def test_a_narrow_terminal_has_fewer_columns_and_keeps_the_most_important() -> None:
    shown = scene(build_use("b", "a-package-with-a-long-name", started_at=NOW - 65, cpu_s=65.0))
    for width, titles in (
        (100, ["PACKAGE", "RUN", "PHASE", "TIME", "CPU%", "MEMORY", "DISK", "PROCS"]),
        (60, ["PACKAGE", "RUN", "PHASE", "TIME", "CPU%", "MEMORY"]),
        (40, ["PACKAGE", "TIME", "CPU%"]),
        (20, ["PACKAGE"]),
    ):
        lines = drawn(shown, width=width)
        assert next(line for line in lines if "PACKAGE" in line).split() == titles, width
    narrow = drawn(shown, width=40)
    labels = ["workers", "load", "queue", "memory", "done", "free", "daemon", "swap"]
    assert [line.split()[0] for line in narrow[1:9]] == labels
    assert "a-package-w" in "\n".join(narrow)


def test_there_is_no_curve_of_what_a_daemon_has_not_measured_yet() -> None:
    lines = drawn(scene(build_use("b", "zlib"), samples=()))
    assert lines[1].strip().startswith("workers")
    assert "zlib" in "\n".join(lines)
    unknown = tuple(
        sample(NOW, free_bytes=None, free_inodes=None, swap_total_bytes=0, memory_total_bytes=0) for _ in "a"
    )
    lines = drawn(scene(samples=unknown))
    assert lines[3].startswith("free disk not known")
    assert lines[4].startswith("swap      none")


def test_what_holds_builds_back_is_said_with_its_reason() -> None:
    lines = drawn(
        scene(
            throttle=p.Throttle(workers=3, total=8, reason="load 9.1"),
            paused="the disk of /var/lib/buildd has 10 MiB left",
            status={"state": "draining", "reasons": ("draining: asked for by root", "b", "c", "d")},
        ),
        width=120,
    )
    assert "draining" in lines[0]
    assert lines[1] == "paused: the disk of /var/lib/buildd has 10 MiB left"
    assert lines[2] == "throttled: 3 of 8 workers; load 9.1"
    assert "██░·····" in lines[3]
    assert "2 of 3 busy" in lines[3]
    assert lines[7:10] == ["draining: asked for by root", "b", "c"]
    assert "d" not in lines, "the rest is for `status`"


def test_a_daemon_that_is_away_leaves_the_last_picture_with_a_word_on_it() -> None:
    lines = drawn(scene(build_use("b", "zlib")), trouble="the daemon went away 4.0s ago")
    assert "no answer" in lines[0]
    assert lines[1] == "the daemon went away 4.0s ago"
    assert "zlib" in "\n".join(lines)


def test_nothing_running_says_so() -> None:
    assert "  no build is running yet" in drawn(scene())
    idle = p.BuildCounts(queued=0, running=0, success=0, failed=0)
    assert "  no build is running" in drawn(scene(status={"builds": idle}))
    assert "  no build is running" in drawn(scene(paused="the disk is full"))


def test_a_snapshot_on_paper_has_everything_and_nothing_of_the_keys() -> None:
    reasons = tuple(f"reason {n}" for n in range(9))
    lines = snapshot(scene(*builds(90), status={"reasons": reasons}), View(100, UNICODE, 2))
    assert {line.split()[0] for line in lines if "package-" in line} == {f"package-{n:03}" for n in range(90)}
    assert [line for line in lines if line.startswith("reason")] == list(reasons)
    assert not any("quit" in line or "▸" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


# --- more builds than lines -------------------------------------------------------------------------------


def test_the_page_follows_the_cursor() -> None:
    shown, choices = scene(*builds(100)), Choices()
    lines = drawn(shown, choices)
    assert "package-000" in "\n".join(lines), "the oldest is first"
    page = picture(shown, choices, View(80, UNICODE, 2), 24).page
    assert f"  1 to {page} of 100 builds" in lines
    for _ in range(page):
        choices.press("down", shown.rows, page)
    lines = drawn(shown, choices)
    assert f"  2 to {page + 1} of 100 builds" in lines
    assert row_of(lines, "▸")[1] == f"package-{page:03}"
    choices.press("end", shown.rows, page)
    lines = drawn(shown, choices)
    assert row_of(lines, "▸")[1] == "package-099"
    assert f"  {101 - page} to 100 of 100 builds" in lines
    choices.press("page up", shown.rows, page)
    assert row_of(drawn(shown, choices), "▸")[1] == f"package-{99 - page:03}"
    choices.press("home", shown.rows, page)
    choices.press("up", shown.rows, page)
    assert row_of(drawn(shown, choices), "▸")[1] == "package-000"


def test_a_page_is_full_again_when_builds_have_ended() -> None:
    many, few, choices = scene(*builds(100)), scene(*builds(100)[:20]), Choices()
    drawn(many, choices)
    choices.press("end", many.rows, 10)
    drawn(many, choices)
    page = picture(few, choices, View(80, UNICODE, 2), 24).page
    lines = drawn(few, choices)
    assert len([line for line in lines if "package-" in line]) == page
    assert row_of(lines, "▸")[1] == "package-019"


def test_last_lines_take_a_line_each() -> None:
    shown, choices = scene(*builds(3)), Choices()
    shown._lines["build-001"] = "\x1b[31mcc -c \tmain.c\x1b[0m\rcc -c other.c"
    shown._arrange()
    assert "cc -c" not in "\n".join(drawn(shown, choices))
    choices.press("l", shown.rows, 10)
    lines = drawn(shown, choices)
    here = next(i for i, line in enumerate(lines) if "package-001" in line)
    assert lines[here + 1] == "    cc -c other.c"
    assert "package-002" in lines[here + 2]


@pytest.mark.parametrize("extra", [0, 50])
def test_the_cursor_is_on_the_screen_in_the_smallest_one(extra: int) -> None:
    shown, choices = scene(*builds(4 + extra)), Choices()
    choices.press("l", shown.rows, 1)
    for key in ("end", "home", "down"):
        choices.press(key, shown.rows, 1)
        for height in (4, 5, 6, 9):
            lines = drawn(shown, choices, height=height, width=30)
            assert len(lines) == height
            assert sum("▸" in line for line in lines) == 1, (key, height, lines)


# --- whatever is in it ------------------------------------------------------------------------------------


def hostile_scene() -> Scene:
    progress = CloneProgress(received_objects=1, total_objects=4, indexed_objects=0, received_bytes=5 << 20)
    clone = p.ActiveClone(url=HOSTILE, operation="fetch", started_at=1.0, progress=progress, percent=25.0)
    shown = scene(
        build_use("b", HOSTILE, phase=HOSTILE),
        paused=HOSTILE,
        throttle=p.Throttle(workers=1, total=2, reason=HOSTILE),
        status={"state": HOSTILE, "version": HOSTILE, "reasons": (HOSTILE,), "clones": (clone,)},
    )
    shown._lines["b"] = HOSTILE
    shown._arrange()
    return shown


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("keys", ["", "l", "c", "?"])
def test_text_of_others_reaches_the_screen_as_text_only(glyphs: Glyphs, keys: str) -> None:
    shown, choices = hostile_scene(), Choices()
    for key in keys:
        choices.press(key, shown.rows, 10)
    choices.notice = HOSTILE if not keys else ""
    lines = drawn(shown, choices, width=300, height=40, glyphs=glyphs, trouble=HOSTILE)
    lines += snapshot(shown, View(300, glyphs, 2))
    assert all(line.isprintable() for line in lines)
    assert all(line.isascii() for line in lines) == glyphs.ascii
    assert "evil" in "\n".join(lines)


@settings(deadline=None)
@given(
    width=st.integers(1, 250),
    height=st.integers(1, 60),
    count=st.integers(0, 70),
    name=st.text(max_size=40),
    keys=st.lists(st.sampled_from(["s", "l", "p", "?", "c", "down", "end", "page up"]), max_size=12),
    glyphs=st.sampled_from([UNICODE, ASCII]),
    trouble=st.sampled_from(["", "the daemon went away 3s ago"]),
)
def test_no_picture_is_larger_than_the_screen_or_holds_what_a_terminal_acts_on(
    width: int, height: int, count: int, name: str, keys: list[str], glyphs: Glyphs, trouble: str
) -> None:
    shown = scene(*builds(count), build_use("odd", name, phase=name, started_at=NOW + 5))
    choices, view = Choices(), View(width, glyphs, 2)
    page = picture(shown, choices, view, height).page
    for key in keys:
        choices.press(key, shown.rows, page)
    lines = picture(shown, choices, view, height, trouble).lines
    assert len(lines) == height
    for line in lines:
        assert cells(text_of(line)) <= width
        assert text_of(line).isprintable()


def test_wide_characters_count_twice_and_marks_not_at_all() -> None:
    names = ("漢字" * 20, "e\u0301" * 60, "plain")
    shown = scene(*(build_use(str(n), name) for n, name in enumerate(names)))
    lines = picture(shown, Choices(), View(80, UNICODE, 2), 24).lines
    rows = [text_of(line) for line in lines if "20 MiB" in text_of(line)]
    assert len(rows) == 3
    assert {cells(row) for row in rows} == {80}
    assert {cells(row[: row.index("300 MiB")]) for row in rows} == {cells(rows[2][: rows[2].index("300 MiB")])}


# --- small drawings ---------------------------------------------------------------------------------------


def test_bars_are_as_full_as_what_they_show() -> None:
    assert bar(0.0, 6, ASCII) == "[    ]"
    assert bar(0.001, 6, ASCII) == "[#   ]"
    assert bar(0.5, 6, ASCII) == "[##  ]"
    assert bar(7.0, 6, ASCII) == "[####]"


def test_curves_are_as_long_as_asked_for() -> None:
    assert curve([], 4, 1.0, ASCII) == "    "
    assert curve([0.0, 0.001, 0.5, 1.0, 2.0], 4, 1.0, ASCII) == ".=@@"
    assert curve([1.0], 3, 0.0, ASCII) == "   "


@pytest.mark.parametrize(
    ("busy", "allowed", "total", "shown"),
    [(2, 4, 6, "##..xx"), (5, 3, 6, "#####x"), (0, 0, 0, ""), (50, 100, 100, "#####....."), (1, 1, 100, "#xxxxxxxxx")],
)
def test_every_worker_has_its_place(busy: int, allowed: int, total: int, shown: str) -> None:
    assert places(busy, allowed, total, 10, ASCII) == shown


# --- keys -------------------------------------------------------------------------------------------------


def test_the_columns_are_sorted_by_in_turn_and_equal_builds_by_age() -> None:
    shown = scene(
        build_use("1", "b", memory_bytes=5, started_at=NOW - 9, phase="check", cpu_s=0.0, disk_bytes=1, processes=2),
        build_use("2", "a", memory_bytes=5, started_at=NOW - 8, phase="build", cpu_s=9.0, disk_bytes=2, processes=1),
        build_use("3", "c", memory_bytes=9, started_at=NOW - 7, phase=None, cpu_s=1.0, disk_bytes=3, processes=1),
    )
    choices, orders = Choices(), {}
    for _ in range(8):
        named = drawn(shown, choices)[-1].partition("sort: ")[2].split()[0]
        orders[named] = "".join(row.use.build for row in choices.arranged(shown.rows))
        choices.press("s", shown.rows, 10)
    assert orders == {
        "time": "123",
        "cpu": "231",
        "memory": "312",
        "disk": "321",
        "procs": "123",
        "package": "213",
        "run": "123",
        "phase": "321",
    }
    assert choices.order == 0


def test_the_cursor_stays_on_its_build_and_then_in_its_place() -> None:
    shown, choices = scene(*builds(5)), Choices()
    choices.press("j", shown.rows, 10)
    choices.press("j", shown.rows, 10)
    younger = scene(*builds(5)[1:])
    assert row_of(drawn(younger, choices), "▸")[1] == "package-002"
    ended = scene(*(use for use in builds(5)[1:] if use.package != "package-002"))
    assert row_of(drawn(ended, choices), "▸")[1] == "package-003"
    assert row_of([*drawn(scene(), choices), "▸ none"], "▸") == ["▸", "none"]


def test_what_is_cancelled_is_what_the_question_named() -> None:
    shown, choices = scene(*builds(5)), Choices()
    assert choices.press("c", shown.rows, 10) is None
    assert drawn(shown, choices)[-1] == "y cancels package-000, any other key does not"
    wish = choices.press("y", scene(*builds(5)[1:]).rows, 10)
    assert isinstance(wish, Cancel)
    assert wish.row.use.package == "package-000"
    for other in ("n", "q", "c", "down", ""):
        choices.press("c", shown.rows, 10)
        assert choices.press(other, shown.rows, 10) is None, "it is the answer to the question and nothing else"
        assert choices.question is None
    assert choices.press("y", shown.rows, 10) is None
    assert choices.press("c", (), 10) is None
    assert choices.notice == "no build is running"


def test_keys_hold_explain_and_quit() -> None:
    shown, choices = scene(*builds(1)), Choices()
    choices.press("p", shown.rows, 10)
    assert " held " in drawn(shown, choices)[0]
    assert "p go on" in drawn(shown, choices)[-1]
    choices.press(" ", shown.rows, 10)
    assert " held " not in drawn(shown, choices)[0]
    choices.press("?", shown.rows, 10)
    lines = drawn(shown, choices)
    assert any("cancel the chosen build's package" in line for line in lines)
    assert "package-000" not in "\n".join(lines)
    assert choices.press("c", shown.rows, 10) is None, "it ends the help and does nothing else"
    assert choices.question is None
    assert "package-000" in "\n".join(drawn(shown, choices))
    assert choices.press("q", shown.rows, 10) == "quit"
