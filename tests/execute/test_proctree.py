"""Finding what belongs to a build, and making sure that it is gone."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from harness import until

from buildd.execute import proctree
from buildd.execute.proctree import COOKIE, alive, children, cookie_of, descendants, kill_until_gone, with_cookie
from buildd.process import Process, spawn

LIMIT_S = 20.0


@pytest.fixture
def cookie() -> Iterator[str]:
    value = f"test-{uuid.uuid4()}"
    yield value
    assert with_cookie(lambda found: found == value) == []


async def tree(script: str, cookie: str) -> Process:
    return await spawn(["/bin/sh", "-c", script], env={"PATH": os.defpath, COOKIE: cookie})


async def left(cookie: str) -> list[int]:
    return of(cookie)


def of(cookie: str) -> list[int]:
    return with_cookie(lambda found: found == cookie)


@pytest.mark.trio
async def test_descendants_are_found_parents_first(cookie: str) -> None:
    with await tree("sh -c 'sleep 1000 & sleep 1000 & wait' & wait", cookie) as process:
        until(lambda: len(descendants(process.pid)) == 3, "the tree has grown")
        found = descendants(process.pid)
        (middle,) = children(process.pid)
        assert found[0] == middle
        assert sorted(found[1:]) == sorted(children(middle))
        assert process.pid not in found
        proctree.signal_all(found, signal.SIGKILL)
        await process.wait()


def test_who_is_gone_has_no_children_no_cookie_and_no_memory() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    assert children(done.pid) == []
    assert descendants(done.pid) == []
    assert cookie_of(done.pid) is None
    assert not alive(done.pid)
    assert proctree.uses([done.pid]) == []
    proctree.signal_all([done.pid], signal.SIGKILL)


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{child.pid}")
    assert not alive(child.pid)
    child.wait()
    assert alive(os.getpid())


@pytest.mark.trio
async def test_the_cookie_survives_new_sessions_and_double_forks(cookie: str) -> None:
    with await tree("setsid sh -c 'sleep 1000 & exec sleep 1000' >/dev/null 2>&1 & exit 0", cookie) as process:
        await process.wait()
        until(lambda: len(of(cookie)) == 2, "both have come loose")
        assert descendants(process.pid) == []
        assert {cookie_of(pid) for pid in of(cookie)} == {cookie}
        assert await kill_until_gone(lambda: left(cookie), within=5) == []


@pytest.mark.trio
async def test_the_cookie_of_a_process_that_becomes_one_program_after_another_is_found(
    cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proctree, "_EXEC_WITHIN_S", LIMIT_S)  # whatever else the machine does meanwhile
    env = {"AGAIN": 'exec /bin/sh -c "$AGAIN"', COOKIE: cookie}
    with await spawn(["/bin/sh", "-c", env["AGAIN"]], env=env) as process:
        assert {cookie_of(process.pid) for _ in range(5000)} == {cookie}


@pytest.mark.trio
async def test_an_environment_that_is_empty_is_not_waited_for() -> None:
    with await spawn(["/bin/sleep", "60"], env={}) as process:
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "S", "it sleeps")
        assert cookie_of(process.pid) is None
        assert not proctree._may_be_in_exec(process.pid)


@pytest.mark.trio
async def test_only_the_whole_name_of_a_variable_counts(cookie: str) -> None:
    env = {"PATH": os.defpath, f"X{COOKIE}": cookie, f"{COOKIE}X": cookie}
    with await spawn(["sleep", "1000"], env=env) as process:
        assert cookie_of(process.pid) is None
        assert of(cookie) == []


def test_we_ourselves_never_match() -> None:
    assert os.getpid() not in with_cookie(lambda _: True, "PATH")


@pytest.mark.trio
async def test_what_forks_faster_than_it_is_looked_at_is_ended_all_the_same(cookie: str) -> None:
    script = "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); setsid sleep 1000 & sleep 0.001; done"
    with await tree(script, cookie) as process:
        until(lambda: len(of(cookie)) > 5, "it forks")
        with trio.fail_after(LIMIT_S):
            assert await kill_until_gone(lambda: left(cookie), within=10) == []
        await process.wait()


@pytest.mark.trio
async def test_who_survives_is_named_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proctree, "signal_all", lambda pids, number: None)  # as if it were stuck in the kernel
    monkeypatch.setattr(proctree, "_kill_groups", lambda pids: None)
    with await spawn(["sleep", "1000"], env={"PATH": os.defpath}) as process:
        with trio.fail_after(LIMIT_S):

            async def stuck() -> list[int]:
                return [process.pid]

            assert await kill_until_gone(stuck, within=0.05) == [process.pid]


@pytest.mark.trio
async def test_the_memory_of_each_process_is_told(cookie: str, tmp_path: Path) -> None:
    program = f"import sys, time; b = bytearray(50_000_000); open('{tmp_path}/' + sys.argv[1], 'x'); time.sleep(1000)"
    with ExitStack() as held:
        pids = []
        for name in ("one", "two"):
            child = await spawn([sys.executable, "-S", "-c", program, name], env={COOKIE: cookie})
            pids.append(held.enter_context(child).pid)
        until(lambda: len(list(tmp_path.iterdir())) == 2, "both have their memory")
        found = proctree.uses(pids)
        assert len(found) == 2
        assert all(50_000_000 < use.resident_bytes < 100_000_000 for use in found)
        assert all(use.threads == 1 and 0 <= use.cpu_s < 10 for use in found)


_SUBREAPER = """
import os, time, trio
from buildd.execute.proctree import adopted, become_subreaper, children, reap_adopted
from buildd.process import spawn

async def main():
    become_subreaper()
    orphan = "sh -c 'sleep 0.1 & exec sleep 0.05' & exit 0"
    ours = await spawn(["/bin/sh", "-c", orphan], env={"PATH": os.defpath})
    os.waitid(os.P_PID, ours.pid, os.WEXITED | os.WNOWAIT)
    deadline = time.monotonic() + 10
    seen = set()
    while set(children(os.getpid())) != {ours.pid} and time.monotonic() < deadline:
        seen |= set(adopted())
        reap_adopted()
        time.sleep(0.005)
    assert set(children(os.getpid())) == {ours.pid}, "orphans are reaped"
    assert len(seen) >= 2, "there were orphans"
    assert ours.pid not in seen
    assert ours.poll().status == 0, "ours is left to its owner"

trio.run(main)
"""


def test_a_subreaper_reaps_the_orphans_that_it_is_handed_and_leaves_its_own_children() -> None:
    root = str(Path(proctree.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _SUBREAPER],
        env={"PYTHONPATH": root, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_the_kernel_says_why_it_makes_no_subreaper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proctree, "_PR_SET_CHILD_SUBREAPER", -1)
    ctypes.set_errno(0)
    with pytest.raises(OSError, match="Invalid argument"):
        proctree.become_subreaper()


# --- when the machine is short of files -------------------------------------------------------------------


@pytest.mark.trio
async def test_nobody_is_taken_for_gone_while_no_file_can_be_opened_to_look(
    cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = 3
    real = open

    def refuse(path: str, *arguments: Any, **keys: Any) -> Any:
        nonlocal short
        if short and str(path).startswith("/proc"):
            short -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return real(path, *arguments, **keys)

    with await tree("sleep 60", cookie) as process, trio.fail_after(LIMIT_S):
        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            alive(process.pid)
        assert await kill_until_gone(lambda: left(cookie), within=5) == []
        assert short == 0
        await process.wait()


@pytest.mark.trio
async def test_that_nobody_can_ever_look_is_an_error() -> None:
    async def find() -> list[int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(OSError, match="Too many open files"), trio.fail_after(LIMIT_S):
        await kill_until_gone(find, within=0.2)
