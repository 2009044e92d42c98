"""The door to child processes: each is waited for once, ends with its owner, and inherits nothing by accident."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from harness import alive

from buildd import launch, process as process_module
from buildd.process import Exit, launcher_thread_id, live_pids, spawn

ENV = {"PATH": os.defpath}
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert live_pids() == frozenset()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.trio
@pytest.mark.parametrize(
    ("script", "status"), [("true", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", -9), ("kill -TERM $$", -15)]
)
async def test_the_status_is_the_exit_code_or_minus_the_signal(script: str, status: int) -> None:
    with trio.fail_after(LIMIT_S), await spawn(["sh", "-c", script], env=ENV) as process:
        assert process.pid in live_pids()
        first = await process.wait()
        assert first.status == status
        assert await process.wait() is first
        assert process.poll() is first


@pytest.mark.trio
async def test_what_it_used_is_measured_with_its_children() -> None:
    program = "n = 0\nwhile n < 3_000_000: n += 1"
    script = f'python3 -c "{program}"; true'
    with trio.fail_after(LIMIT_S), await spawn(["sh", "-c", script], env={"PATH": os.environ["PATH"]}) as process:
        exit = await process.wait()
    assert exit.status == 0
    assert 0.02 < exit.cpu_s < LIMIT_S


def test_the_largest_memory_is_that_of_the_children_and_never_our_own() -> None:
    # in a process of its own: this one may have had more memory at some time than any child will
    program = """
import os, trio
from buildd.process import spawn

async def largest(command):
    with await spawn(["sh", "-c", command], env={"PATH": os.environ["PATH"]}) as process:
        return (await process.wait()).max_rss_bytes

async def main():
    print(await largest("python3 -c 'b = bytearray(150_000_000)'; true"), await largest("true"))

trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    large, small = map(int, done.stdout.split())
    assert 150_000_000 < large < 300_000_000
    assert small == 0


@pytest.mark.trio
async def test_a_child_leads_a_session_of_its_own_with_exactly_the_environment_and_descriptors_given(
    tmp_path: Path,
) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)  # by carelessness
    script = (
        f"echo $(pwd) $$ $(cut -d' ' -f6 /proc/$$/stat); env | sort; ls /proc/self/fd; test ! -e /proc/$$/fd/{write}"
    )
    with (tmp_path / "out").open("wb") as out:
        with await spawn(["/bin/sh", "-c", script], env={"ONE": "1"}, cwd=tmp_path, stdout=out) as process:
            assert (await process.wait()).status == 0
            pid = process.pid
    os.close(read)
    os.close(write)
    first, *rest = (tmp_path / "out").read_text().split("\n")
    assert first == f"{tmp_path} {pid} {pid}"
    variables = [line for line in rest if "=" in line and not line.startswith(("PWD=", "_=", "OLDPWD=", "SHLVL="))]
    assert variables == ["ONE=1"]


@pytest.mark.trio
async def test_standard_streams_are_empty_unless_given() -> None:
    script = "cat && readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 | uniq"
    read, write = os.pipe()
    with trio.fail_after(LIMIT_S), await spawn(["sh", "-c", f"{script} | grep -qx /dev/null"], env=ENV) as child:
        assert (await child.wait()).status == 0
    with (
        trio.fail_after(LIMIT_S),
        await spawn(["sh", "-c", "echo one; echo two >&2"], env=ENV, stdout=write, stderr=write) as child,
    ):
        assert (await child.wait()).status == 0
    os.close(write)
    assert os.read(read, 100) == b"one\ntwo\n"
    os.close(read)


@pytest.mark.trio
async def test_waiting_can_be_called_off_and_leaves_the_child_running() -> None:
    with await spawn(["sleep", "1000"], env=ENV) as process:
        with trio.move_on_after(0.02) as scope:
            await process.wait()
        assert scope.cancelled_caught
        assert process.poll() is None
        assert alive(process.pid)
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(LIMIT_S):
            assert (await process.wait()).status == -signal.SIGTERM


@pytest.mark.trio
async def test_leaving_the_context_kills_and_reaps() -> None:
    with await spawn(["sh", "-c", "trap '' TERM; sleep 1000 & wait"], env=ENV) as process:
        pid = process.pid
    assert process.exit is not None
    assert process.exit.status == -signal.SIGKILL
    assert not os.path.exists(f"/proc/{pid}")
    _kill_session(pid)


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.mark.trio
async def test_after_the_end_signals_go_nowhere() -> None:
    process = await spawn(["true"], env=ENV)
    await process.wait()
    process.kill()
    process.close()
    process.close()
    process.send_signal(signal.SIGKILL)
    assert process.exit is not None
    assert process.exit.status == 0


@pytest.mark.trio
async def test_a_signal_to_a_child_that_has_just_ended_is_no_error() -> None:
    with await spawn(["true"], env=ENV) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
        process.send_signal(signal.SIGTERM)
        assert (await process.wait()).status == 0


@pytest.mark.parametrize(
    ("argv", "cwd", "number"),
    [
        (["/no/such/program"], "/", errno.ENOENT),
        (["/etc/passwd"], "/", errno.EACCES),
        (["true"], "/none", errno.ENOENT),
    ],
)
@pytest.mark.trio
async def test_what_cannot_be_started_is_an_os_error_and_leaves_nothing(argv: list[str], cwd: str, number: int) -> None:
    with pytest.raises(OSError) as caught:
        await spawn(argv, env=ENV, cwd=cwd)
    assert caught.value.errno == number


@pytest.mark.trio
async def test_a_child_that_cannot_be_watched_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def no_pidfd(pid: int) -> int:
        seen.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(process_module.os, "pidfd_open", no_pidfd)
    with pytest.raises(OSError, match="Too many open files"):
        await spawn(["sleep", "1000"], env=ENV)
    assert not os.path.exists(f"/proc/{seen[0]}")


@pytest.mark.trio
async def test_all_are_children_of_one_thread_that_does_nothing_else() -> None:
    with await spawn(["sleep", "1000"], env=ENV) as one, await spawn(["sleep", "1000"], env=ENV) as other:
        launcher = launcher_thread_id()
        found = Path(f"/proc/self/task/{launcher}/children").read_text().split()
        assert {str(one.pid), str(other.pid)} <= set(found)
        assert launcher != threading.main_thread().native_id


@pytest.mark.trio
async def test_a_start_that_takes_long_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = launch._start, trio.Event()

    def slow(*arguments: Any) -> int:
        time.sleep(0.3)
        return real(*arguments)

    monkeypatch.setattr(launch, "_start", slow)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while not started.is_set():
            await trio.sleep(0.01)
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        with await spawn(["true"], env=ENV) as process:
            started.set()
            await process.wait()
    assert turns >= 10


@pytest.mark.trio
async def test_a_start_that_is_called_off_leaves_no_child_without_an_owner() -> None:
    before = live_pids()
    for _ in range(20):
        with trio.CancelScope() as scope:
            scope.cancel()
            await spawn(["sleep", "1000"], env=ENV)
        assert scope.cancelled_caught
        with trio.move_on_after(0) as scope:
            with await spawn(["sleep", "1000"], env=ENV) as process:
                await process.wait()
        assert scope.cancelled_caught
    assert live_pids() == before


@pytest.mark.trio
async def test_signals_that_python_ignores_or_blocks_are_as_ever_for_a_child() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with await spawn(["sleep", "1000"], env=ENV) as process:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            sets = {
                name: int(value, 16)
                for name, _, value in (line.partition(":") for line in lines)
                if name[:5] in ("SigBl", "SigIg")
            }
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert not sets["SigBlk"] & 1 << (signal.SIGUSR1 - 1)
    assert not sets["SigIgn"] & 1 << (signal.SIGPIPE - 1)


@pytest.mark.trio
async def test_a_child_runs_where_and_as_politely_as_it_is_told() -> None:
    processor = min(os.sched_getaffinity(0))
    with await spawn(["sleep", "1000"], env=ENV, processors=[processor], nice=7) as process:
        assert os.sched_getaffinity(process.pid) == {processor}
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 7
    with await spawn(["sleep", "1000"], env=ENV) as process:
        assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)


@pytest.mark.trio
async def test_many_children_at_once_are_all_waited_for() -> None:
    statuses: list[int] = []

    async def one(number: int) -> None:
        with await spawn(["sh", "-c", f"exit {number}"], env=ENV) as process:
            statuses.append((await process.wait()).status)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(one, number)
    assert sorted(statuses) == list(range(60))


@pytest.mark.trio
async def test_who_waits_hears_of_the_end_also_when_somebody_else_has_seen_it_first() -> None:
    exits: list[Exit] = []
    with await spawn(["sleep", "60"], env=ENV) as process, trio.fail_after(10):

        async def wait() -> None:
            exits.append(await process.wait())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            process.kill()
            while process.poll() is None:
                pass  # no other task has its turn meanwhile
    assert [exit.status for exit in exits] == [-signal.SIGKILL]
