"""The watch over the daemon's memory: its course, what is done about it, and the profile."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from monitor_readings import reading

from buildd import config as configuration
from buildd.monitor import profile
from buildd.monitor.memory import _SETTLED_AT_LAST, _TRACE, STEADY, Course, MemoryGuard

MIB = 1 << 20
BASE, GROWTH = 60 * MIB, 500_000_000
HIGH = BASE + GROWTH + MIB


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    yield
    profile.trace_no_more()
    assert not tracemalloc.is_tracing()


# --- the course -----------------------------------------------------------------------------------------------


def findings(course: Course, values: Sequence[int], growth: int = GROWTH) -> list[str]:
    return [found for value in values if (found := course.add(value, growth)) is not None]


def settled() -> Course:
    course = Course()
    assert findings(course, [BASE] * STEADY) == ["settled"]
    return course


def test_the_baseline_is_what_it_uses_once_that_is_steady() -> None:
    course = Course()
    assert findings(course, [20 * MIB * n for n in range(1, 20)]) == []
    assert course.baseline == 0
    assert findings(course, [400 * MIB, 402 * MIB, 401 * MIB] * 5) == ["settled"]
    assert course.baseline == 400 * MIB
    assert course.peak == 402 * MIB


def test_memory_that_never_is_steady_has_a_baseline_after_a_while() -> None:
    course = Course()
    assert findings(course, [100 * MIB, 50 * MIB] * (_SETTLED_AT_LAST // 2)) == ["settled"]
    assert course.baseline == 50 * MIB


def test_growth_is_told_then_called_a_leak_and_ended_when_it_is_gone() -> None:
    course = settled()
    assert findings(course, [BASE + GROWTH] * 100) == []
    assert findings(course, [HIGH]) == ["grown"]
    assert findings(course, [HIGH] * (STEADY - 1)) == []
    assert not course.leaking
    assert findings(course, [HIGH] * 50) == ["leak"]
    assert course.leaking
    assert findings(course, [BASE + GROWTH - MIB] * 5) == [], "not while it is all but as large"
    assert findings(course, [BASE + GROWTH // 2] * 5) == ["recovered"]
    assert not course.leaking
    assert course.warnings == 1


def test_growth_that_goes_by_itself_is_no_leak() -> None:
    course = settled()
    assert findings(course, [*[HIGH] * STEADY, BASE, BASE]) == ["grown", "recovered"]
    assert course.peak == HIGH


def test_a_leak_that_goes_on_is_told_again_each_time_it_has_grown_as_much() -> None:
    course = settled()
    leak = range(HIGH, HIGH + 5 * GROWTH, GROWTH // 40)
    found = findings(course, leak)
    assert found[:2] == ["grown", "leak"]
    assert set(found[1:]) == {"leak"}
    assert 4 <= len(found) - 1 <= 5
    assert course.warnings == len(found) - 1


def test_without_a_limit_nothing_is_too_much() -> None:
    assert findings(settled(), [HIGH * 1000] * 50, growth=0) == []


@given(st.lists(st.integers(MIB, 4 * HIGH), max_size=200))
def test_every_end_has_a_beginning(values: list[int]) -> None:
    course = Course()
    open_, leaks = False, False
    for value in values:
        found = course.add(value, GROWTH)
        if found == "grown":
            assert not open_
            open_ = True
        elif found == "leak":
            assert open_
            leaks = True
        elif found == "recovered":
            assert open_
            open_ = leaks = False
        assert course.leaking == leaks
    assert course.peak == max(values, default=0)


# --- what is done about it ------------------------------------------------------------------------------------


class Guarded:
    def __init__(self, directory: Path, **settings: str) -> None:
        self.config = configuration.load(
            files=[], settings=[f"monitor.{key}={value}" for key, value in settings.items()], environ={}
        )
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.guard = MemoryGuard(config=lambda: self.config, emit=self._emit, profiles=directory)

    def _emit(self, kind: str, *, data: dict[str, Any] | None = None, **_: str | None) -> None:
        self.events.append((kind, data or {}))

    async def look(self, resident: int, times: int = 1) -> None:
        for _ in range(times):
            await self.guard.look(reading(rss_bytes=resident))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


class Ring:
    """Refers to itself, so that only the garbage collector frees it."""

    def __init__(self) -> None:
        self.me = self


async def test_garbage_is_collected_when_memory_has_grown(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path / "p")
    await guarded.look(BASE, STEADY)
    gc.disable()
    try:
        ring = weakref.ref(Ring())
        assert ring() is not None
        await guarded.look(HIGH)
        assert ring() is None
    finally:
        gc.enable()
    assert guarded.events == [("memory_warning", {"rss_bytes": HIGH, "baseline_bytes": BASE})]
    assert guarded.guard.trouble is None


async def test_a_leak_is_traced_for_a_while_and_then_profiled(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path / "p")
    await guarded.look(BASE, STEADY)
    await guarded.look(HIGH, STEADY + 1)
    assert guarded.kinds == ["memory_warning", "memory_leak"]
    assert "a profile follows" in str(guarded.guard.trouble)
    assert tracemalloc.is_tracing()
    kept = [bytearray(100_000) for _ in range(50)]
    await guarded.look(HIGH, _TRACE)
    assert guarded.kinds == ["memory_warning", "memory_leak", "memory_profile"]
    (path,) = (tmp_path / "p").iterdir()
    assert guarded.guard.seen.profile == guarded.events[-1][1]["path"] == str(path)
    assert str(path) in str(guarded.guard.trouble)
    text = path.read_text()
    assert "test_memory.py" in text.partition("By line")[2], "the line that allocated it is named"
    assert len(kept) == 50
    await guarded.look(HIGH)
    assert not tracemalloc.is_tracing(), "it costs too much to go on"
    await guarded.look(BASE)
    assert guarded.kinds[-1] == "memory_recovered"
    assert guarded.guard.trouble is None


async def test_a_leak_that_ends_before_its_profile_has_none(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path / "p")
    await guarded.look(BASE, STEADY)
    await guarded.look(HIGH, STEADY + 1)
    await guarded.look(BASE, _TRACE + 5)
    assert guarded.kinds == ["memory_warning", "memory_leak", "memory_recovered"]
    assert not tracemalloc.is_tracing()
    assert not (tmp_path / "p").exists()


async def test_a_profile_is_written_at_once_when_allocations_were_traced(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path / "p", trace_memory="true")
    await guarded.look(BASE, STEADY)
    assert tracemalloc.is_tracing()
    await guarded.look(HIGH, STEADY + 1)
    assert guarded.kinds == ["memory_warning", "memory_leak", "memory_profile"]
    assert tracemalloc.is_tracing()
    guarded.config = configuration.load(files=[], environ={})
    await guarded.look(BASE)
    assert not tracemalloc.is_tracing(), "the configuration does not want it any more"


async def test_a_profile_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file in the place of the directory")
    guarded = Guarded(tmp_path / "p", trace_memory="true")
    await guarded.look(BASE, STEADY)
    await guarded.look(HIGH, STEADY + 1)
    assert guarded.kinds == ["memory_warning", "memory_leak"]
    assert guarded.guard.seen.profile == ""
    assert "no profile could be written" in str(guarded.guard.trouble)


# --- profiles -------------------------------------------------------------------------------------------------


def test_only_the_newest_profiles_are_kept_and_none_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile.trace()
    for n in range(profile.KEPT + 3):
        stamp = f"202401{n + 1:02}T000000"
        monkeypatch.setattr(profile.time, "strftime", lambda *_, stamp=stamp: stamp)
        assert profile.write(tmp_path, "head").name == f"memory-{stamp}.txt"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == profile.KEPT
    assert names[0] == "memory-20240104T000000.txt"
