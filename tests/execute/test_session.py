"""Sessions: consecutive phases in one real sandbox, watched, bounded, and gone afterwards."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from execute_boxes import Box, no_subreaper_afterwards
from harness import resident_bytes, until

from buildd.config import LimitsConfig
from buildd.errors import BuildFailure
from buildd.execute import limits as limits_module, session as session_module
from buildd.execute.limits import PhaseBounds, phase_bounds
from buildd.execute.proctree import alive, children
from buildd.execute.sandbox import Sandbox
from buildd.model import PhaseLimits
from buildd.process import Process, live_pids, spawn

pytestmark = pytest.mark.trio
LIMIT_S = 30.0


@pytest.fixture
def box(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A build in each sandbox; the test fails for whatever it leaves behind."""
    monkeypatch.setattr(limits_module, "TICK_S", 0.05)
    before = len(os.listdir("/proc/self/fd"))
    with no_subreaper_afterwards():
        box = Box(backend, tmp_path)
        yield box
        assert box.processes == []
        assert live_pids() == frozenset()
        assert len(os.listdir("/proc/self/fd")) == before


_FIND_PIPE = """
for pipe in /proc/$PPID/fd/*; do
  case $(readlink $pipe) in
    $(readlink /proc/$$/fd/1)) ;;  # the log's
    pipe:*) break;;
  esac
done
test -p $pipe
"""


class Driver:
    """A spawner that remembers the process."""

    process: Process | None = None

    async def __call__(self, *arguments: Any, **keywords: Any) -> Process:
        self.process = await spawn(*arguments, **keywords)
        return self.process

    @property
    def pid(self) -> int:
        """The shell that runs the phases: bwrap's child, or the process itself."""
        assert self.process is not None
        return self.process.pid


# --- phases -----------------------------------------------------------------------------------------------


async def test_phases_run_in_order_in_the_source_directory_and_are_reported(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        end = await box.run(
            ("configure", "echo made by configure >conf; pwd"), ("build", "cat conf >&2"), ("stage", ":")
        )
    assert (end.failed_phase, end.exit_status) == (None, 0)
    assert box.events == [
        ("begin", "configure"),
        ("end", "configure", 0),
        ("begin", "build"),
        ("end", "build", 0),
        ("begin", "stage"),
        ("end", "stage", 0),
    ]
    src = box.sandbox.layout(box.work).src
    assert box.log == f"==> configure\n{src}\n==> build\nmade by configure\n==> stage\n"
    assert (box.work / "src" / "conf").read_text() == "made by configure\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("exit 3", 3),
        ("false; echo not reached", 1),
        ("no-such-command", 127),
        ("kill -9 $$", -9),
        ("kill -TERM $$", -15),
        ("sh -c 'kill -SEGV $$'", -11),
        ("exit 255", 255),
        ("exit 200", 200),
        ("syntax error (", 2),
    ],
)
async def test_the_first_phase_that_fails_ends_the_session_with_its_status(box: Box, text: str, status: int) -> None:
    with trio.fail_after(LIMIT_S):
        end = await box.run(("configure", ":"), ("build", text), ("stage", "echo never"))
    assert (end.failed_phase, end.exit_status) == ("build", status)
    assert box.events[2:] == [("begin", "build"), ("end", "build", status)]
    assert "never" not in box.log
    assert "not reached" not in box.log


async def test_a_phase_has_no_input_and_no_way_to_the_drivers_reports(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        end = await box.run(
            ("build", "cat; test ! -e /proc/self/fd/3; (echo 'end build 9' >&3) 2>/dev/null && exit 9; :")
        )
    assert end.failed_phase is None
    assert box.events == [("begin", "build"), ("end", "build", 0)]


async def test_a_phase_of_any_text_arrives_as_it_is(box: Box) -> None:
    text = "cat <<'EOF'\n'single' \"double\" $HOME `x` \\n ✓ %s\nEOF\n"
    with trio.fail_after(LIMIT_S):
        await box.run(("build", text))
    assert box.log == "==> build\n'single' \"double\" $HOME `x` \\n ✓ %s\n"


async def test_phases_see_exactly_the_environment_given(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        await box.run(("build", "env | cut -d= -f1 | sort"), env={"ONE": "1"})
    shown = set(box.log.split("\n")) - {"==> build", "", "PWD", "OLDPWD", "_", "SHLVL", "container"}
    assert shown == {"PATH", "ONE", "BUILDD_BUILD"}


async def test_what_a_session_used_is_told_once_however_it_ended(box: Box) -> None:
    large = "a=x; while [ ${#a} -lt 30000000 ]; do a=$a$a; done; sleep 0.8;"
    with trio.fail_after(LIMIT_S):
        await box.run(("build", f"{large} exit 1"))
        with pytest.raises(BuildFailure):
            await box.run(("build", f"{large} sleep 1000"), timeout=2.0)
        with trio.move_on_after(0.01):
            await box.run(("build", "sleep 1000"))
    ended, stopped, cancelled = box.used
    assert ended.max_rss_bytes > 30_000_000
    assert stopped.max_rss_bytes > 30_000_000
    assert ended.cpu_s > 0
    assert cancelled.cpu_s < 1


async def test_the_output_of_several_sessions_follows_one_another_in_the_log(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        await box.run(("fetch", "echo one"))
        await box.run(("build", "echo two"))
    assert box.log == "==> fetch\none\n==> build\ntwo\n"


# --- what is left running ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "sleep 1000 &",
        "setsid sleep 1000 >/dev/null 2>&1 &",
        "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; sleep 0.05",
        "trap '' TERM INT HUP; setsid nohup sh -c \"trap '' TERM; sleep 1000; sleep 1000\" & exit 1",
    ],
)
async def test_what_a_phase_leaves_running_is_ended_with_the_session(box: Box, text: str) -> None:
    with trio.fail_after(LIMIT_S):
        await box.run(("build", text))
    assert box.processes == []


async def test_a_driver_that_is_killed_is_a_failure_of_the_phase_it_was_in(box: Box) -> None:
    driver = Driver()

    async def kill_it() -> None:
        while not (box.work / "src" / "ready").exists():
            await trio.sleep(0.005)
        victim = driver.pid if box.backend == "plain" else children(driver.pid)[0]
        os.kill(victim, 9)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_it)
            end = await box.run(
                ("build", "setsid sleep 1000 & touch ready; sleep 1000"), ("stage", ":"), spawner=driver
            )
    assert end.failed_phase == "build"
    assert end.exit_status not in (0, None)
    assert box.events[0] == ("begin", "build")
    assert box.events[1][:2] == ("end", "build")


@pytest.mark.parametrize(
    "line",
    ["end build x", "end", "begin", "nonsense", "end build 0 0", "end build 999999999999", "begin stage", "x" * 999],
)
async def test_a_phase_that_writes_to_the_drivers_pipe_by_a_back_door_does_no_harm(box: Box, line: str) -> None:
    # a recipe is not trusted, and finds the pipe below /proc of its parent
    with trio.fail_after(LIMIT_S):
        try:
            end = await box.run(("build", f"{_FIND_PIPE}\necho '{line}' >$pipe; sleep 0.1; exit 4"), ("stage", ":"))
        except BuildFailure as failure:
            assert failure.reason == "sandbox_failed"
            assert not failure.transient, "it would do so again"
            return
    assert (end.failed_phase, end.exit_status) == ("build", 4)
    assert box.events == [("begin", "build"), ("end", "build", 4)]


@pytest.mark.parametrize("line", ["nonsense", "begin build"])
async def test_a_phase_that_keeps_the_drivers_pipe_busy_does_not_escape_its_limits(box: Box, line: str) -> None:
    flood = f"{_FIND_PIPE}\nexec >$pipe; while :; do echo {line}; sleep 0.01; done"
    with trio.fail_after(LIMIT_S):
        with trio.move_on_after(4) as patience:
            with pytest.raises(BuildFailure):
                await box.run(("build", flood), timeout=0.5)
    assert not patience.cancelled_caught
    assert len(box.events) < 10, "what was not begun by the driver is not told"


async def test_a_line_without_end_in_the_drivers_pipe_takes_no_memory(box: Box) -> None:
    flood = f"{_FIND_PIPE}\nhead -c 16000000 /dev/zero >$pipe; exit 4"
    before = resident_bytes(os.getpid())
    largest = 0

    async def watch() -> None:
        nonlocal largest
        while True:
            largest = max(largest, resident_bytes(os.getpid()))
            await trio.sleep(0.01)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                await box.run(("build", flood), timeout=5)
            except BuildFailure:
                pass  # a way to put an end to it
            nursery.cancel_scope.cancel()
    assert largest - before < 8_000_000


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limits", "reason", "words"),
    [
        ("echo x; sleep 1000", {"timeout": 0.2}, "timeout", "longer than 0.2 s (limits.timeout)"),
        ("echo x; sleep 1000", {"silence": 0.2}, "silent", "no output for 0.2 s (limits.silence)"),
        (
            "while :; do echo a line of the log; done",
            {"log": 10_000},
            "log_limit",
            "10000 bytes (limits.log)",
        ),
        (
            "a=x; while :; do a=$a$a; sleep 0.02; done",
            {"memory": 40_000_000},
            "oom",
            "over 40000000 (limits.memory)",
        ),
    ],
)
async def test_a_limit_that_is_hit_ends_everything_and_is_named(
    box: Box, text: str, limits: dict[str, Any], reason: str, words: str
) -> None:
    with trio.fail_after(LIMIT_S):
        with pytest.raises(BuildFailure) as caught:
            await box.run(("build", f"trap '' TERM; setsid sleep 1000 & {text}"), ("stage", "echo never"), **limits)
    assert caught.value.reason == reason
    assert words in caught.value.message
    assert "never" not in box.log


async def test_memory_is_that_of_all_processes_together(box: Box) -> None:
    hungry = "sh -c 'a=x; while [ ${#a} -lt 16000000 ]; do a=$a$a; done; sleep 1000' &"
    with trio.fail_after(LIMIT_S):
        with pytest.raises(BuildFailure, match="together"):
            await box.run(("build", hungry * 5 + " wait"), memory=100_000_000)


async def test_a_build_that_talks_is_not_silent(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        end = await box.run(("build", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done"), silence=0.4)
    assert end.exit_status == 0


def bounds(
    phase: str, *, timeout: float | None = None, silence: float | None = None, spent: float = 0.0
) -> dict[str, PhaseBounds]:
    return {phase: phase_bounds(phase, PhaseLimits(timeout=timeout, silence=silence), LimitsConfig(), spent)}


@pytest.mark.parametrize(
    ("text", "limits", "reason", "message"),
    [
        (
            "while :; do echo x; sleep 0.05; done",
            {"timeout": 0.3},
            "timeout",
            "phase check took longer than 0.3 s (limits.phases.check.timeout)",
        ),
        (
            "echo x; sleep 1000",
            {"silence": 0.3},
            "silent",
            "no output for 0.3 s in phase check (limits.phases.check.silence)",
        ),
    ],
)
async def test_a_limit_of_a_phase_ends_everything_and_is_named_with_its_phase(
    box: Box, text: str, limits: dict[str, Any], reason: str, message: str
) -> None:
    with trio.fail_after(LIMIT_S):
        with pytest.raises(BuildFailure) as caught:
            await box.run(
                ("build", "sleep 0.5"),
                ("check", f"trap '' TERM; setsid sleep 1000 & {text}"),
                ("stage", "echo never"),
                bounds=bounds("check", **limits),
            )
    assert (caught.value.reason, caught.value.message) == (reason, message)
    assert not caught.value.transient
    assert box.events == [("begin", "build"), ("end", "build", 0), ("begin", "check")]
    assert "never" not in box.log


async def test_the_limits_of_one_phase_do_not_count_in_the_next(box: Box) -> None:
    # together they take longer than any of them may, and what is quiet comes after what may not be
    tight = bounds("configure", timeout=1.6, silence=1.6) | bounds("build", timeout=1.6) | bounds("stage", timeout=1.6)
    with trio.fail_after(LIMIT_S):
        end = await box.run(
            ("configure", "sleep 0.6"), ("build", "sleep 0.6"), ("check", "sleep 2"), ("stage", ":"), bounds=tight
        )
    assert end.failed_phase is None
    assert len(box.events) == 8


async def test_a_phase_may_be_quiet_for_longer_than_the_others(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        end = await box.run(
            ("build", "sleep 0.1"),
            ("check", "sleep 1.6"),
            ("stage", "sleep 0.1"),
            silence=0.8,
            bounds=bounds("check", silence=30.0),
        )
        assert end.failed_phase is None
        with pytest.raises(BuildFailure, match=r"no output for 0\.8 s \(limits\.silence\)"):
            await box.run(
                ("check", "sleep 1.6"), ("stage", "sleep 1000"), silence=0.8, bounds=bounds("check", silence=30.0)
            )


async def test_what_the_driver_takes_between_two_phases_counts_in_none(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = 'echo "end $1 $status" >&3\n'
    monkeypatch.setattr(session_module, "DRIVER", session_module.DRIVER.replace(said, f"{said}  sleep 0.8\n"))
    tight = bounds("configure", timeout=0.5) | bounds("build", timeout=0.5, silence=0.5)
    with trio.fail_after(LIMIT_S):
        end = await box.run(("configure", ":"), ("build", ":"), ("stage", ":"), bounds=tight)
    assert end.failed_phase is None


def block(seconds: float) -> None:
    """Let nothing of the daemon run, as on a machine that is suspended or has no time for it."""
    time.sleep(seconds)


async def test_a_daemon_that_was_held_up_does_not_blame_the_phases_that_ended_meanwhile(box: Box) -> None:
    tight = bounds("configure", timeout=0.8, silence=0.8) | bounds("build", timeout=0.8, silence=0.8)

    async def hold_up() -> None:
        await when(lambda: (box.work / "src" / "begun").exists())
        block(1.5)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold_up)
            end = await box.run(
                ("configure", "touch begun; sleep 0.2"), ("build", "sleep 0.2"), ("check", "sleep 0.3"), bounds=tight
            )
    assert end.failed_phase is None


async def test_output_that_nobody_had_time_to_read_is_no_silence(box: Box) -> None:
    async def hold_up() -> None:
        await when(lambda: (box.work / "src" / "begun").exists())
        for _ in range(2):
            block(1.0)
            await trio.lowlevel.checkpoint()

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold_up)
            end = await box.run(
                ("check", "touch begun; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $i; sleep 0.2; done"),
                bounds=bounds("check", silence=0.9),
            )
    assert end.failed_phase is None


async def test_a_limit_is_looked_at_when_it_breaks_and_not_a_tick_later(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "TICK_S", 1000.0)
    for limits in (bounds("check", timeout=0.3), bounds("check", silence=0.3)):
        with trio.fail_after(LIMIT_S):
            started = trio.current_time()
            with pytest.raises(BuildFailure):
                await box.run(("build", ":"), ("check", "sleep 1000"), bounds=limits)
        assert 0.3 <= trio.current_time() - started < 5


async def test_what_a_phase_took_before_the_session_counts(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        end = await box.run(("extract", "sleep 0.4"), bounds=bounds("extract", timeout=1000.0, spent=999.0))
        assert end.failed_phase is None
        with pytest.raises(BuildFailure, match="phase extract took longer than 1000 s"):
            await box.run(("extract", "sleep 1000"), bounds=bounds("extract", timeout=1000.0, spent=999.7))


# --- what cannot be started -------------------------------------------------------------------------------


async def test_a_sandbox_that_cannot_be_started_is_a_sandbox_failure(box: Box) -> None:
    def full(*_: Any, **__: Any) -> Process:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with pytest.raises(BuildFailure, match="Resource temporarily unavailable") as caught:
        await box.run(("build", ":"), spawner=full)
    assert caught.value.reason == "sandbox_failed"
    assert "doctor" in caught.value.hint
    assert caught.value.transient, "others may give processes and memory back"


async def test_a_sandbox_that_is_not_there_is_not_there_later_either(box: Box) -> None:
    def missing(*_: Any, **__: Any) -> Process:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with pytest.raises(BuildFailure, match="No such file") as caught:
        await box.run(("build", ":"), spawner=missing)
    assert not caught.value.transient


async def test_a_sandbox_that_ends_before_any_phase_is_a_sandbox_failure(box: Box) -> None:
    class Broken:
        def __init__(self, sandbox: Sandbox) -> None:
            self._sandbox = sandbox

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sandbox, name)

        def argv(self, command: Sequence[str], **_: Any) -> list[str]:
            return ["/bin/sh", "-c", "echo no namespaces here >&2; exit 1"]

    broken: Any = Broken(box.sandbox)
    with trio.fail_after(LIMIT_S):
        with pytest.raises(BuildFailure, match="status 1 outside of any phase") as caught:
            await box.run(("build", ":"), sandbox=broken)
    assert caught.value.reason == "sandbox_failed"
    assert caught.value.transient
    assert box.log == "no namespaces here\n"


async def test_processes_that_nothing_can_end_are_complained_of_and_do_not_break_the_daemon(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "KILL_WITHIN_S", 0.1)

    class Stuck:
        def __init__(self, tree: Any) -> None:
            self._tree = tree

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tree, name)

        async def kill(self, *, within: float) -> list[int]:
            try:
                await trio.sleep_forever()  # as one that waits for a process in the kernel does
            finally:
                with trio.CancelScope(shield=True):
                    await self._tree.kill(within=5)
            return []

    class Holding:
        def __init__(self, sandbox: Sandbox) -> None:
            self._sandbox = sandbox

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sandbox, name)

        def tree(self, process: Process, build: str) -> Any:
            return Stuck(self._sandbox.tree(process, build))

    holding: Any = Holding(box.sandbox)
    with trio.fail_after(LIMIT_S):
        end = await box.run(("build", ":"), sandbox=holding)
    assert end.failed_phase is None


# --- cancellation -----------------------------------------------------------------------------------------


async def test_cancelled_at_any_moment_nothing_is_left(box: Box) -> None:
    text = "setsid sleep 1000 & (sleep 1000 &) ; trap '' TERM; sleep 0.02; echo on; sleep 1000"
    for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.04, 0.08, 0.15):
        with trio.fail_after(LIMIT_S):
            with trio.move_on_after(delay) as scope:
                await box.run(("configure", ":"), ("build", text), ("stage", "echo never"))
            took = trio.current_time() - scope.deadline
        assert scope.cancelled_caught
        assert box.processes == [], f"cancelled after {delay} s"
        assert live_pids() == frozenset()
        assert took < 2, f"cancelled after {delay} s, it took {took:.2f} s more"
    assert "never" not in box.log


async def when(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


async def test_within_its_grace_a_build_may_clean_up(box: Box) -> None:
    text = "trap 'echo cleaned; exit 1' TERM; echo ready; while :; do sleep 0.02; done"
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: box.run(("build", text), grace=lambda: 20.0))
            await when(lambda: box.log_path.exists() and "ready" in box.log)
            nursery.cancel_scope.cancel()
    assert "cleaned" in box.log


async def test_without_grace_it_is_ended_at_once(box: Box) -> None:
    text = "trap 'sleep 0.3; echo cleaned; exit 1' TERM; echo ready; while :; do sleep 0.02; done"
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run, ("build", text))
            await when(lambda: box.log_path.exists() and "ready" in box.log)
            nursery.cancel_scope.cancel()
    assert "cleaned" not in box.log


async def test_a_grace_that_shrinks_counts_at_once(box: Box) -> None:
    grace = [1000.0]
    asked: list[float] = []

    def give() -> float:
        asked.append(trio.current_time())
        if trio.current_time() > asked[0] + 0.3:
            grace[0] = 0.0
        return grace[0]

    text = "trap '' TERM; echo ready; while :; do sleep 1; done"
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: box.run(("build", text), grace=give))
            await when(lambda: box.log_path.exists() and "ready" in box.log)
            started = trio.current_time()
            nursery.cancel_scope.cancel()
    assert 0.3 <= trio.current_time() - started < 3


async def test_a_cancelled_session_begins_no_further_phase(box: Box) -> None:
    first = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: box.run(("build", first), ("stage", "touch staged"), grace=lambda: 2.0))
            await when(lambda: box.log_path.exists() and "ready" in box.log)
            nursery.cancel_scope.cancel()
    assert not (box.work / "src" / "staged").exists()
    assert "==> stage" not in box.log


async def test_cancelled_again_while_it_ends_nothing_is_left(box: Box) -> None:
    with trio.fail_after(LIMIT_S):
        with trio.CancelScope() as outer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: box.run(("build", "trap '' TERM; echo ready; sleep 1000"), grace=lambda: 0.3)
                )
                await when(lambda: box.log_path.exists() and "ready" in box.log)
                nursery.cancel_scope.cancel()
                outer.cancel()
    assert box.processes == []


async def test_sessions_beside_one_another_do_not_end_each_others_processes(backend: str, tmp_path: Path) -> None:
    with no_subreaper_afterwards(), trio.fail_after(LIMIT_S):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        one, two = (Box(backend, tmp_path / name) for name in ("one", "two"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.run, ("build", "echo ready; while [ ! -e go ]; do sleep 0.01; done; echo done"))
            await when(lambda: two.log_path.exists() and "ready" in two.log)
            for _ in range(3):
                await one.run(("build", "setsid sleep 1000 & exit 1"))
            assert any(alive(pid) for pid in two.processes)
            (two.work / "src" / "go").touch()
        assert two.events[-1] == ("end", "build", 0)
        until(lambda: one.processes == two.processes == [], "both are gone")


async def test_a_background_process_that_holds_the_drivers_pipe_does_not_hold_up_the_end(box: Box) -> None:
    # plain: it is not in the way of the driver's end, but keeps the pipe from closing
    find = "for fd in 3 10 11; do if [ -e /proc/$PPID/fd/$fd ]; then exec 9>/proc/$PPID/fd/$fd; break; fi; done"
    script = f"{find}; [ -e /proc/$$/fd/9 ]; setsid sleep 1000 >/dev/null 2>&1 & true"
    with trio.fail_after(LIMIT_S):
        end = await box.run(("build", script))
    assert end.failed_phase is None
    assert box.processes == []
