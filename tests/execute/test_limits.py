"""Limits: which ones count, and that those of a phase end with it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from buildd.config import Bytes, LimitsConfig, Seconds
from buildd.errors import BuildFailure
from buildd.execute.diskwatch import DiskWatch
from buildd.execute.limits import Bound, PhaseBounds, SessionLimits, Watch, held_to, phase_bounds, session_limits
from buildd.execute.meter import SampledMeter, Use
from buildd.execute.output_pump import OutputPump
from buildd.model import Limits, PhaseLimits

_NO_OTHERS = LimitsConfig(memory=Bytes(0), pids=0, disk=Bytes(0), files=0, open_files=0)
MOST = msgspec.structs.replace(_NO_OTHERS, timeout=Seconds(100), silence=Seconds(10))
NONE = msgspec.structs.replace(_NO_OTHERS, timeout=Seconds(0), silence=Seconds(0))


# --- which ones count -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "most", "timeout", "silence"),
    [
        (PhaseLimits(), MOST, None, None),
        (
            PhaseLimits(timeout=50, silence=5),
            MOST,
            Bound(50, "limits.phases.check.timeout"),
            Bound(5, "limits.phases.check.silence"),
        ),
        (PhaseLimits(timeout=500, silence=50), MOST, Bound(100, "limits.timeout"), Bound(10, "limits.silence")),
        (PhaseLimits(timeout=0, silence=0), MOST, Bound(100, "limits.timeout"), Bound(10, "limits.silence")),
        (
            PhaseLimits(timeout=500, silence=50),
            NONE,
            Bound(500, "limits.phases.check.timeout"),
            Bound(50, "limits.phases.check.silence"),
        ),
    ],
)
def test_a_phase_cannot_have_more_than_the_configuration_gives(
    own: PhaseLimits, most: LimitsConfig, timeout: Bound | None, silence: Bound | None
) -> None:
    assert phase_bounds("check", own, most) == PhaseBounds(timeout=timeout, silence=silence)


def test_the_limits_of_a_session_are_those_of_the_recipe_below_the_configuration() -> None:
    own = Limits(timeout=60, silence=500, log=7, phases={"fetch": PhaseLimits(timeout=5)})
    limits = session_limits(own, MOST, started=1000.0, spent={"fetch": 3.0}.__getitem__)
    assert limits == SessionLimits(
        deadline=1060.0,
        timeout=60,
        silence=10,
        log=7,
        memory=0,
        phases={"fetch": PhaseBounds(timeout=Bound(5, "limits.phases.fetch.timeout"), spent=3.0)},
    )
    unlimited = session_limits(Limits(), NONE, started=1000.0, spent=lambda phase: 0.0)
    assert (unlimited.deadline, unlimited.timeout, unlimited.silence) == (math.inf, 0, 0)


# --- whether they hold ------------------------------------------------------------------------------------


class NoProcesses:
    def pids(self, most: int = 0) -> list[int]:
        return []

    def shm_bytes(self) -> int:
        return 0

    def terminate(self) -> None: ...

    async def kill(self, *, within: float) -> list[int]:
        return []


@pytest.fixture
def output(tmp_path: Path) -> Iterator[OutputPump]:
    handle = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    pump = OutputPump(handle, 0)
    yield pump
    pump.close()
    os.close(handle)


def watch(output: OutputPump, *, silence: float = 0, deadline: float = math.inf, **phases: PhaseLimits) -> Watch:
    limits = SessionLimits(
        deadline=deadline,
        timeout=60,
        silence=silence,
        log=0,
        memory=0,
        phases={name: phase_bounds(name, own, NONE) for name, own in phases.items()},
    )
    tree = NoProcesses()
    disk = DiskWatch(Path(), limits.of_disk, tree.pids, trio.CapacityLimiter(1))
    return Watch(limits, SampledMeter(tree, limits.of_processes), disk, output, Use())


def test_between_two_phases_the_silence_of_the_first_one_is_forgotten(output: OutputPump) -> None:
    # the driver says `end` and `begin` one after the other, and anything may come between for the daemon
    seen = watch(output, silence=0.05, check=PhaseLimits(silence=50))
    seen.enter("check")
    time.sleep(0.06)
    assert seen.look() is None
    seen.leave()
    assert seen.look() is None
    seen.enter("stage")
    assert seen.look() is None
    time.sleep(0.06)
    assert seen.look() == ("silent", "no output for 0.05 s (limits.silence)")


def test_between_two_phases_there_is_no_time_limit_but_that_of_the_build(output: OutputPump) -> None:
    seen = watch(output, check=PhaseLimits(timeout=0.05))
    seen.enter("check")
    seen.leave()
    time.sleep(0.06)
    assert seen.look() is None
    assert seen.breaks_at == math.inf
    seen.enter("check")
    time.sleep(0.06)
    assert seen.look() == ("timeout", "phase check took longer than 0.05 s (limits.phases.check.timeout)")


def test_of_two_limits_that_are_broken_the_one_that_broke_first_is_named(output: OutputPump) -> None:
    now = time.monotonic()
    seen = watch(output, deadline=now + 0.05, check=PhaseLimits(timeout=0.02))
    seen.enter("check")
    assert seen.breaks_at < now + 0.05
    time.sleep(0.06)
    broken = seen.look()
    assert broken is not None
    assert "limits.phases.check.timeout" in broken[1]
    seen = watch(output, deadline=time.monotonic() + 0.02, check=PhaseLimits(timeout=0.05))
    seen.enter("check")
    time.sleep(0.06)
    assert seen.look() == ("timeout", "it took longer than 60 s (limits.timeout)")


def test_what_was_written_and_is_not_in_the_log_yet_is_no_silence(output: OutputPump) -> None:
    seen = watch(output, check=PhaseLimits(silence=0.05))
    seen.enter("check")
    time.sleep(0.06)
    os.write(output.writer, b"a line that nobody has moved\n")
    assert seen.look() is None
    time.sleep(0.06)
    assert seen.look() == ("silent", "no output for 0.05 s in phase check (limits.phases.check.silence)")


# --- what the builder does itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "spent", "message"),
    [
        ({"timeout": 0.2}, 0.0, "phase fetch took longer than 0.2 s (limits.phases.fetch.timeout)"),
        ({"timeout": 100}, 99.8, "phase fetch took longer than 100 s (limits.phases.fetch.timeout)"),
        ({"silence": 0.2}, 0.0, "no output for 0.2 s in phase fetch (limits.phases.fetch.silence)"),
        ({"timeout": 0.2, "silence": 5}, 0.0, "phase fetch took longer than 0.2 s (limits.phases.fetch.timeout)"),
        ({"timeout": 5, "silence": 0.2}, 0.0, "no output for 0.2 s in phase fetch (limits.phases.fetch.silence)"),
    ],
)
async def test_the_builders_own_work_is_ended_by_a_limit_of_its_phase(
    own: dict[str, Any], spent: float, message: str
) -> None:
    with trio.fail_after(10):
        with pytest.raises(BuildFailure) as caught:
            with held_to("fetch", phase_bounds("fetch", PhaseLimits(**own), NONE, spent)):
                await trio.sleep_forever()
    assert caught.value.message == message
    assert caught.value.reason == ("timeout" if "timeout" in message else "silent")
    assert not caught.value.transient


async def test_a_line_in_the_log_ends_the_silence_but_not_the_time() -> None:
    bounds = phase_bounds("fetch", PhaseLimits(timeout=1.9, silence=1.0), NONE)
    with held_to("fetch", bounds) as heard:
        for _ in range(3):
            await trio.sleep(0.4)
            heard()
    with pytest.raises(BuildFailure, match=r"phase fetch took longer than 1\.9 s"):
        with held_to("fetch", bounds) as heard:
            while True:
                await trio.sleep(0.4)
                heard()


async def test_without_limits_the_builders_own_work_goes_on() -> None:
    with trio.move_on_after(0.2) as patience:
        with held_to("fetch", PhaseBounds()):
            await trio.sleep_forever()
    assert patience.cancelled_caught
