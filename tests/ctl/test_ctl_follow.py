"""`start --wait` and `wait`: what is shown while a run goes on, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from ctl_peer import Background, Ctl, Peer, package

from buildd import protocol as p
from buildd.model import CloneProgress

BUILD = "3f2a91c0-0000-4000-8000-000000000000"
STAMP = re.compile(r"^\[\d\d:\d\d:\d\d\] ")


def story(peer: Peer, failing: bool = False) -> Callable[[str], None]:
    """A run of two packages, told as the daemon tells it."""

    def tell(run: str) -> None:
        def state(old: str, new: str, **changes: Any) -> None:
            peer.set_run(run, state=new, **changes)
            waves = {"wave": 1, "waves": 2} if new == "building" else {}
            peer.emit("run_state", run=run, data={"from": old, "to": new, **waves})

        state("initialized", "planning")
        state("planning", "building", packages=(package("a", "queued"), package("b", "queued")))
        peer.emit("package_started", run=run, package="a")
        peer.emit("package_phase", run=run, package="a", data={"phase": "build"})
        peer.emit("something_new", run=run, package="a", data={"what": 1})
        if failing:
            log = b"".join(b"\x1b[31mline %d\x1b[0m\n" % number for number in range(1, 41))
            peer.add_build(BUILD, run, "a", state="failed", log=log)
            bad = package(
                "a", "failed", reason="phase_failed", message="build exited with 2", build_id=BUILD, duration_s=1.5
            )
            data = {"reason": "phase_failed", "message": "build exited with 2", "duration_s": 1.5}
            peer.emit("package_failed", run=run, package="a", data=data)
            peer.emit("package_blocked", run=run, package="b", data={"message": "a failed"})
            packages = (bad, package("b", "blocked", message="a failed"))
            state("building", "failed", packages=packages, completed_at=time.time())
        else:
            done = {"duration_s": 1.5, "build_id": BUILD, "log_bytes": 2048}
            peer.exports = {"abc": b"x" * 3072}
            peer.add_build(BUILD, run, "a")
            peer.emit("package_completed", run=run, package="a", data={"state": "success", "duration_s": 1.5})
            peer.emit(
                "package_completed", run=run, package="b", data={"state": "skipped", "message": "CRC match, skipped"}
            )
            packages = (
                package("a", "success", artifact="/var/lib/buildd/artifacts/abc", **done),
                package("b", "skipped"),
            )
            state("building", "completed", packages=packages, completed_at=time.time())

    return tell


def test_without_a_terminal_there_is_a_line_per_change_and_a_summary(peer: Peer, ctl: Ctl) -> None:
    peer.on_start = story(peer)
    done = ctl("start", "things", "--wait")
    assert done.returncode == 0, done.stderr
    told, _, summary = done.stdout.partition("\n\n")
    assert [STAMP.sub("", line) for line in told.splitlines()] == [
        "run planning",
        "run building (wave 1 of 2)",
        "a 1.0 build started",
        "a 1.0 build",
        "✓ a 1.0 success in 1.5s",
        "= b 1.0 skipped: CRC match, skipped",
        "run completed",
    ]
    lines = summary.splitlines()
    assert lines[1].split() == ["✓", "a", "1.0", "success", "1.5s", "3.0", "KiB", "2.0", "KiB", "3f2a91c0"]
    assert lines[2].split()[:4] == ["=", "b", "1.0", "skipped"]
    assert lines[4].startswith("run 1 completed in ")
    assert lines[4].endswith(": 2 packages = 1 success + 1 skipped")
    assert lines[5:] == [
        "artifacts: /var/lib/buildd/artifacts, or buildctl artifacts get a",
        "logs: /var/lib/buildd/logs, or buildctl logs 1 a",
    ]


def test_a_failure_shows_its_reason_the_end_of_its_log_and_where_the_rest_is(peer: Peer, ctl: Ctl) -> None:
    peer.on_start = story(peer, failing=True)
    done = ctl("start", "things", "--wait", "--quiet")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "✗ a 1.0 phase_failed: build exited with 2"
    assert lines[1:16] == [f"    | line {number}" for number in range(26, 41)]
    assert lines[16] == "  the whole log: buildctl logs 3f2a91c0"
    assert lines[18].endswith(": 2 packages = 1 failed + 1 blocked")
    assert len(lines) == 19


def test_a_run_that_cannot_be_planned_says_why(peer: Peer, ctl: Ctl) -> None:
    peer.on_start = lambda run: peer.set_run(
        run, state="failed", completed_at=time.time(), error="cycle: a -> b -> a", hint="break it"
    )
    done = ctl("start", "things", "--wait")
    assert done.returncode == 1
    assert "✗ cycle: a -> b -> a\n  break it\n" in done.stdout
    assert done.stdout.endswith(": no packages\n")


def test_json_is_one_object_and_nothing_else(peer: Peer, ctl: Ctl) -> None:
    peer.on_start = story(peer)
    done = ctl("start", "things", "--wait", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    (run,) = peer.runs
    assert msgspec.json.decode(done.stdout, type=p.RunView) == peer.runs[run]
    assert not peer.calls("run.wait"), "the first answer had its end"
    assert not peer.calls("events.poll"), "nobody looks at events here"


def test_waiting_ends_when_the_run_does(peer: Peer, background: Background) -> None:
    run = peer.add_run(1)
    client = background("wait", "1")
    peer.wait_for_call("run.wait")
    peer.set_run(run, state="completed", completed_at=time.time())
    ended = time.monotonic()
    data, _ = client.communicate(timeout=10)
    assert time.monotonic() - ended < 1.0, "within a second of a run that polls for 30"
    assert client.returncode == 0
    assert "run 1 completed" in data


def test_a_wait_that_is_over_time_says_that_the_run_goes_on(peer: Peer, ctl: Ctl) -> None:
    peer.add_run(1)
    done = ctl("wait", "1", "--timeout", "300ms", "--json")
    assert done.returncode == 124
    assert done.stderr == "buildctl: run 1 has not ended within 0.3s; it goes on\n"
    assert json.loads(done.stdout)["state"] == "building"


def test_waiting_for_nothing_is_not_found(peer: Peer, ctl: Ctl) -> None:
    done = ctl("wait", "77")
    assert done.returncode == 3
    assert done.stderr == "buildctl: no run 77\n  buildctl list shows the runs\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_run_going_and_says_how_to_cancel(
    peer: Peer, background: Background, number: signal.Signals
) -> None:
    client = background("start", "things", "--wait")
    peer.wait_for_call("run.wait")
    client.send_signal(number)
    _, words = client.communicate(timeout=10)
    assert client.returncode == 130
    assert "run 1 goes on" in words
    assert "buildctl cancel 1" in words
    assert not peer.calls("run.cancel")


def test_a_daemon_that_is_restarted_is_waited_for(peer: Peer, background: Background) -> None:
    run = peer.add_run(1)
    client = background("wait", "1")
    peer.wait_for_call("run.wait")
    peer.stop()
    assert client.stderr is not None
    assert "the daemon went away" in client.stderr.readline()
    peer.emit("package_started", run=run, package="late", data={"version": "2"})
    peer.start()
    peer.wait_for_call("run.wait", 2)
    peer.set_run(run, state="completed", completed_at=time.time())
    data, words = client.communicate(timeout=10)
    assert (client.returncode, words) == (0, "")
    assert "late 2 build started" in data, "events of the time between are not lost"


def test_why_nothing_is_built_is_said_once(peer: Peer, background: Background) -> None:
    run = peer.add_run(1, packages=(package("a", "queued"),))
    peer.paused = "the disk is full"
    client = background("wait", "1")
    peer.wait_for_call("daemon.status", 4)
    with peer.lock:
        peer.paused = ""
        peer.throttle = p.Throttle(workers=2, total=8, reason="the load is high")
    peer.wait_for_call("daemon.status", 8)
    peer.emit("package_started", run=run, package="a", data={"version": "1.0"})
    peer.wait_for_call("events.poll", 2)
    peer.set_run(run, state="completed", packages=(package("a", "success"),), completed_at=time.time())
    told = [STAMP.sub("", line) for line in client.communicate(timeout=10)[0].splitlines()]
    assert told[:3] == [
        "no builds are started: the disk is full",
        "no more than 2 builds at a time now: the load is high",
        "a 1.0 build started",
    ]


def test_a_closed_pipe_does_not_look_like_success(peer: Peer, background: Background) -> None:
    run = peer.add_run(1)
    client = background("wait", "1")
    assert client.stdout is not None
    assert client.stderr is not None
    peer.wait_for_call("run.wait")
    client.stdout.close()
    peer.emit("package_started", run=run, package="a", data={"version": "1"})
    words = client.stderr.read()
    client.stderr.close()
    assert client.wait(10) == 1
    assert "nobody reads the output any more; run 1 goes on" in words
    assert "Traceback" not in words


def test_the_daemon_is_asked_no_more_than_five_times_a_second(peer: Peer, background: Background) -> None:
    run = peer.add_run(1)
    client = background("wait", "1")
    peer.wait_for_call("run.wait")
    begin = time.monotonic()
    for number in range(300):
        peer.emit("package_phase", run=run, package="a", data={"phase": f"phase-{number}", "version": "1"})
        time.sleep(0.002)
    peer.set_run(run, state="completed", completed_at=time.time())
    data, _ = client.communicate(timeout=10)
    seconds = time.monotonic() - begin
    assert data.count("a 1 phase-") == 300
    assert len(peer.calls("events.poll")) <= 5 * seconds + 5


def test_of_a_long_run_the_summary_leaves_out_what_went_well(peer: Peer, ctl: Ctl) -> None:
    packages = [package(f"p{number}", "success") for number in range(3000)]
    packages[1234] = package("p1234", "blocked", message="p7 failed")
    peer.add_run(1, state="failed", packages=tuple(packages), completed_at=time.time())
    done = ctl("wait", "1")
    assert done.returncode == 1
    assert "- p1234" in done.stdout
    assert "    p7 failed\n" in done.stdout
    assert "2999 more without trouble: buildctl show 1\n" in done.stdout
    assert len(done.stdout.splitlines()) < 12
    assert len(ctl("show", "1").stdout.splitlines()) > 3000


def test_a_long_summary_fetches_only_what_something_happened_to(peer: Peer, ctl: Ctl) -> None:
    states = ["success", "failed", "blocked", "cancelled", *["skipped"] * 60, *["ignored"] * 10]
    packages = tuple(package(f"p{number}", state) for number, state in enumerate(states))
    peer.add_run(1, state="failed", packages=packages, completed_at=time.time())
    done = ctl("wait", "1")
    assert done.returncode == 1
    rows = [line.split()[1:4] for line in done.stdout.splitlines() if " 1.0 " in line and "0s" not in line]
    assert [(name, state) for name, _, state in rows[:4]] == [
        ("p0", "success"),
        ("p1", "failed"),
        ("p2", "blocked"),
        ("p3", "cancelled"),
    ]
    assert "  70 more without trouble: buildctl show 1\n" in done.stdout
    assert ": 74 packages = 1 success + 1 failed + 60 skipped + 1 blocked + 10 ignored + 1 cancelled\n" in done.stdout
    asked = [set(params.states) for params in peer.calls("run.status") if params.packages]
    assert asked[-1] == {"success", "failed", "blocked", "cancelled"}
    assert all(asked), "nobody asked for all packages"


# --- runs that have ended before the answer ---------------------------------------------------------------


def at_once(peer: Peer, packages: tuple[p.RunPackage, ...], *, state: str = "completed") -> None:
    """Every run ends at once like this."""
    peer.on_start = lambda run: peer.set_run(
        run, state=state, packages=packages, started_at=1e9, completed_at=1e9 + 0.04
    )


def up_to_date(count: int) -> tuple[p.RunPackage, ...]:
    return tuple(package(f"p{number}", "skipped") for number in range(count))


def test_a_large_run_in_which_nothing_had_to_be_done_is_one_question_and_one_line(peer: Peer, ctl: Ctl) -> None:
    at_once(peer, up_to_date(3000))
    done = ctl("start", "things", "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "run 1 completed in 0.0s: 3000 packages = 3000 skipped\n"
    assert [method for method, _ in peer.requests] == ["run.start"]
    assert ctl("start", "things", "--wait", "--quiet").stdout == ""


def test_the_answer_is_waited_for_only_by_whoever_waits(peer: Peer, ctl: Ctl) -> None:
    at_once(peer, up_to_date(60))
    assert ctl("start", "things").stdout.startswith("run 1 accepted")
    ctl("start", "things", "--wait")
    without, with_wait = (params.wait for params in peer.calls("run.start"))
    assert without == 0
    assert 0 < with_wait <= 1


def test_json_has_all_packages_however_soon_a_run_has_ended(peer: Peer, ctl: Ctl) -> None:
    for number, packages in enumerate((up_to_date(2), up_to_date(60)), start=1):
        at_once(peer, packages)
        done = ctl("start", "things", "--wait", "--json")
        assert done.returncode == 0
        run = msgspec.json.decode(done.stdout, type=p.RunView)
        assert (run.number, run.packages) == (number, packages)


def test_a_large_run_that_failed_at_once_tells_what_failed(peer: Peer, ctl: Ctl) -> None:
    broken = package("broken", "failed", reason="phase_failed", message="build exited with 2")
    at_once(peer, (*up_to_date(60), broken, package("behind", "blocked", message="it needs broken")), state="failed")
    done = ctl("start", "things", "--wait")
    assert done.returncode == 1
    assert "✗ broken 1.0 phase_failed: build exited with 2\n" in done.stdout
    assert "    it needs broken\n" in done.stdout
    assert "60 more without trouble" in done.stdout
    assert not peer.calls("run.wait"), "there was nothing to follow"
    assert ctl("start", "things", "--wait", "--quiet").returncode == 1


def test_a_small_run_is_shown_whole_even_when_nothing_had_to_be_done(peer: Peer, ctl: Ctl) -> None:
    def tell(run: str) -> None:
        for name in ("p0", "p1"):
            data = {"version": "1.0", "state": "skipped", "reason": "unchanged", "message": "CRC match, skipped"}
            peer.emit("package_skipped", run=run, package=name, data=data)
        peer.set_run(run, state="completed", packages=up_to_date(2), completed_at=time.time())

    for number in range(5):
        peer.emit("package_skipped", run="another", package=f"old{number}", data={"version": "1"})
    peer.on_start = tell
    done = ctl("start", "things", "--wait")
    told, _, summary = done.stdout.partition("\n\n")
    assert [STAMP.sub("", line) for line in told.splitlines()] == [
        f"= {name} 1.0 skipped: unchanged: CRC match, skipped" for name in ("p0", "p1")
    ]
    assert [line.split()[:4] for line in summary.splitlines()[1:3]] == [
        ["=", "p0", "1.0", "skipped"],
        ["=", "p1", "1.0", "skipped"],
    ]
    assert peer.calls("events.poll")[0].after == 5, "what happened before the run does not matter"


def test_a_run_that_cannot_be_planned_at_once_says_why(peer: Peer, ctl: Ctl) -> None:
    peer.on_start = lambda run: peer.set_run(run, state="failed", completed_at=time.time(), error="no such thing")
    done = ctl("start", "things", "--wait")
    assert done.returncode == 1
    assert "✗ no such thing\n" in done.stdout


def test_many_packages_that_were_up_to_date_are_one_line_and_a_retry_says_when_and_why(peer: Peer, ctl: Ctl) -> None:
    def tell(run: str) -> None:
        data = {"count": 9999, "reason": "unchanged", "message": "CRC match, skipped"}
        peer.emit("packages_skipped", run=run, data=data)
        peer.emit("package_started", run=run, package="a", data={"version": "1.0", "attempt": 1})
        peer.emit(
            "package_retry",
            run=run,
            package="a",
            data={"version": "1.0", "attempt": 2, "delay_s": 5.0, "reason": "network", "message": "no route\x07"},
        )
        peer.set_run(run, packages=(package("a", "queued"),))
        time.sleep(0.5)  # longer than the first answer is waited for
        peer.set_run(run, state="completed", packages=(package("a", "success"),), completed_at=time.time())

    peer.on_start = tell
    told, _, _ = ctl("start", "things", "--wait").stdout.partition("\n\n")
    assert [STAMP.sub("", line) for line in told.splitlines()] == [
        "= 9999 packages: CRC match, skipped",
        "a 1.0 build started",
        "  a 1.0 attempt 2 follows in 5.0s: network: no route\\x07",
    ]


# --- on a terminal ------------------------------------------------------------------------------------------


class Terminal:
    """The client on a pseudo-terminal of 24 rows."""

    def __init__(self, background: Background, args: list[str], env: dict[str, str], columns: int) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        env = env | {"COLUMNS": str(columns), "LINES": "24"}
        self.process = background(*args, env=env, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.output = ""

    def read_until(self, text: str) -> str:
        deadline = time.monotonic() + 15
        while text not in self.output:
            assert time.monotonic() < deadline, self.output
            self._read()
        return self.output

    def _read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the other side is closed
                self.output += os.read(self._master, 65536).decode(errors="replace")

    def end(self) -> int:
        deadline = time.monotonic() + 15
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output
            self._read()
        return self.process.returncode

    def close(self) -> None:
        os.close(self._master)


@pytest.fixture
def terminal(background: Background, environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str, columns: int = 80, **env: str) -> Terminal:
        opened.append(Terminal(background, list(args), environment | env, columns))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.mark.parametrize("columns", [80, 30])
def test_a_terminal_shows_what_is_running_with_its_last_line(
    peer: Peer, terminal: Callable[..., Terminal], columns: int
) -> None:
    line = "\x1b[2J\x1b]0;owned\x07compiling [red]main.c\r\n"
    run = peer.add_run(
        1,
        wave=1,
        waves=2,
        packages=(
            package("zlib", "running", phase="configure", duration_s=65.0, last_line=line),
            package("other", "queued"),
        ),
    )
    screen = terminal("wait", "1", columns=columns)
    seen = screen.read_until("1m 05s")
    assert "zlib 1.0" in seen
    assert "configure" in seen
    assert ("compiling [red]main.c" in seen) == (columns == 80)
    assert "owned" not in seen
    assert "\x1b[2J" not in seen
    assert "0/2" in seen
    peer.emit("package_completed", run=run, package="zlib", data={"state": "success", "duration_s": 66})
    screen.read_until("zlib 1.0 success in")
    peer.set_run(run, state="completed", packages=(package("zlib", "success"),), completed_at=time.time())
    seen = screen.read_until("1 package = 1 success")
    assert screen.end() == 0
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is visible again"


def test_a_terminal_shows_clones_before_there_are_packages(peer: Peer, terminal: Callable[..., Terminal]) -> None:
    progress = CloneProgress(received_objects=1, total_objects=4, indexed_objects=0, received_bytes=5 << 20)
    peer.clones = (
        p.ActiveClone(url="git://h/things", operation="clone", started_at=1.0, progress=progress, percent=25.0),
    )
    peer.add_run(1, state="discovering")
    screen = terminal("wait", "1")
    screen.read_until("cloning git://h/things  25 %  5.0 MiB")
    screen.process.send_signal(signal.SIGINT)
    seen = screen.read_until("run 1 goes on")
    assert screen.end() == 130
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is visible again"


def test_a_terminal_shows_why_nothing_is_built(peer: Peer, terminal: Callable[..., Terminal]) -> None:
    run = peer.add_run(1, packages=(package("a", "queued"),))
    peer.paused = "the disk is full"
    screen = terminal("wait", "1")
    screen.read_until("no builds are started: the disk is full")
    peer.set_run(run, state="completed", packages=(package("a", "success"),), completed_at=time.time())
    assert screen.end() == 0


def test_more_running_packages_than_rows_are_counted(peer: Peer, terminal: Callable[..., Terminal]) -> None:
    peer.add_run(1, packages=tuple(package(f"p{n}", "running", duration_s=1.0) for n in range(500)))
    screen = terminal("wait", "1", "--timeout", "2s")
    screen.read_until("… and 480 more running")
    assert screen.end() == 124


def test_no_color_and_dumb_terminals_are_respected(peer: Peer, terminal: Callable[..., Terminal]) -> None:
    peer.add_run(1, state="completed", packages=(package("a", "success"),), completed_at=time.time())
    colours = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")
    plain = terminal("wait", "1", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain.read_until("1 package = 1 success"))
    assert plain.end() == 0
    dumb = terminal("wait", "1", TERM="dumb")
    assert "\x1b" not in dumb.read_until("1 package = 1 success")
    assert dumb.end() == 0
    normal = terminal("wait", "1")
    assert colours.search(normal.read_until("1 package = 1 success"))
    assert normal.end() == 0
