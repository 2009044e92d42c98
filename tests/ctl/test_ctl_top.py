"""`top` as a process: on a terminal, on paper, and with a daemon that comes and goes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ctl_peer import Background, Ctl, Peer, build_use, command, package, run_id, sample
from harness import Terminal, alive, until

from buildd.errors import NotFound, NotPermitted

COLOURED = re.compile(r"\x1b\[(?:[0-9]+;)*[34][0-7]m")
Start = Callable[..., Terminal]


@pytest.fixture
def top(environment: dict[str, str]) -> Iterator[Start]:
    """Start `buildctl top` on a terminal of its own."""
    with ExitStack() as stack:

        def start(*args: str, shell: str = "", env: dict[str, str] | None = None, **more: object) -> Terminal:
            program = ["sh", "-c", shell] if shell else command("top", *args)
            return stack.enter_context(Terminal(program, environment | (env or {}), **more))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def busy(peer: Peer) -> Peer:
    """A daemon with two builds of run 12."""
    packages = tuple(
        package(name, "running", build_id=build, last_line=line)
        for name, build, line in (("zlib", "b1", "cc -c inflate.c\r\n"), ("png", "b2", "\x1b[31mchecking for zlib"))
    )
    peer.add_run(12, packages=packages)
    now = time.time()
    peer.samples = [sample(now - age, load_1m=1 + age / 1000) for age in range(1000, -1, -5)]
    peer.uses = (
        build_use("b1", "zlib", started_at=now - 600, memory_bytes=100 << 20),
        build_use("b2", "png", started_at=now - 60, memory_bytes=900 << 20),
    )
    return peer


def rows(terminal: Terminal) -> list[str]:
    """Names of the builds, from top to bottom."""
    return [line.split()[-11] for line in terminal.shown if line.endswith(" 3") and "MiB" in line]


def restored(terminal: Terminal) -> None:
    assert terminal.settings() == terminal.modes
    assert not terminal.alternate
    assert not terminal.cursor_hidden
    assert terminal.output.rfind("\x1b[?1h") <= terminal.output.rfind("\x1b[?1l"), "keys send what they did"


# --- on a terminal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["screen", "xterm", "xterm-256color", "linux", "vt100", "tmux-256color"])
def test_every_kind_of_terminal_shows_the_builds_and_is_given_back(busy: Peer, top: Start, kind: str) -> None:
    if not any(os.path.exists(f"{place}/{kind[0]}/{kind}") for place in ("/lib/terminfo", "/usr/share/terminfo")):
        pytest.skip(f"this machine does not know {kind}")
    terminal = top(kind=kind)
    terminal.until("buildd 9.9", "running", "PACKAGE", "png", "q quit")
    assert terminal.settings() != terminal.modes
    terminal.press("q")
    assert terminal.exit_status() == 0
    restored(terminal)


def test_what_is_shown_is_what_the_daemon_says_and_it_goes_on(busy: Peer, top: Start) -> None:
    terminal = top("-n", "200ms")
    terminal.until("zlib", "png", "2 of 8 busy", "7 packages, 1 run", "2.0 GiB of 8.0 GiB", "   12 ")
    busy.uses = (build_use("b3", "fresh"),)
    busy.paused = "no room"
    terminal.until("fresh", "paused: no room", gone=["zlib", "png"])
    terminal.press("q")
    assert terminal.exit_status() == 0


def test_a_look_is_two_questions_per_interval_and_none_while_it_is_held(busy: Peer, top: Start) -> None:
    terminal = top("--interval", "300ms")
    busy.wait_for_call("daemon.resources", 5)
    asked = busy.calls("daemon.resources")
    assert asked[0].samples > 50, "the curves have a past from the beginning"
    assert max(params.samples for params in asked[1:]) <= 3, "and then only what is new is asked for"
    begin, before = time.monotonic(), len(busy.requests)
    busy.wait_for_call("daemon.status", len(busy.calls("daemon.status")) + 5)
    assert len(busy.requests) - before <= 2 * (time.monotonic() - begin) / 0.3 + 3
    assert len(busy.calls("run.status")) == 1, "a run is asked for its number once"
    terminal.press("p")
    terminal.until(" held ", "p go on")
    held = len(busy.requests)
    busy.uses = ()
    terminal.press("j")
    terminal.until("▸ png")
    time.sleep(0.7)  # more than two intervals
    assert len(busy.requests) <= held + 2, "a look that was under way may still have been answered"
    terminal.press(" ")
    terminal.until("no build is running", gone=[" held "])


def test_keys_move_sort_explain_and_show_output(busy: Peer, top: Start) -> None:
    terminal = top()
    terminal.until("▸ zlib")
    for down, up in (("down", "up"), ("j", "k"), ("page down", "page up"), ("\x1b[B", "\x1b[A"), ("end", "\x1b[H")):
        terminal.press(down)
        terminal.until("▸ png")
        terminal.press(up)
        terminal.until("▸ zlib")
    terminal.press("\x1bOq", "\x1b[1;5q", "\x1b[200~")  # a key of a keypad, and others that mean nothing here
    assert rows(terminal) == ["zlib", "png"]
    terminal.press("s", "s")
    terminal.until("s sort: memory")
    assert rows(terminal) == ["png", "zlib"]
    terminal.press("l")
    terminal.until("    cc -c inflate.c", "    checking for zlib")
    terminal.press("?")
    terminal.until("hold the picture", gone=["inflate"])
    terminal.press("\x1b")
    terminal.until("▸ zlib", gone=["hold the picture"])


def test_a_build_is_cancelled_after_a_question(busy: Peer, top: Start) -> None:
    terminal = top()
    terminal.until("▸ zlib", "   12 ")
    terminal.press("c")
    terminal.until("y cancels zlib of run 12, any other key does not")
    terminal.press("n")
    terminal.until("q quit")
    assert not busy.calls("run.cancel")
    terminal.press("j", "c")
    terminal.until("y cancels png of run 12")
    terminal.press("y")
    terminal.until("png of run 12 cancelled")
    (wish,) = busy.calls("run.cancel")
    assert (wish.run, wish.package) == (run_id(12), "png")
    terminal.press("k")
    terminal.until("q quit", gone=["cancelled"])


def test_a_refusal_is_said_and_ends_nothing(busy: Peer, top: Start) -> None:
    busy.failures["run.cancel"] = NotPermitted("you may not cancel", hint="join the group buildd")
    terminal = top()
    terminal.until("zlib")
    terminal.press("c", "y")
    terminal.until("you may not cancel; join the group buildd")
    terminal.press("q")
    assert terminal.exit_status() == 0


def test_names_and_output_of_others_do_nothing_to_the_terminal(busy: Peer, top: Start) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07evil\r\n\x1b[?1049l"
    busy.uses = (build_use("b1", evil, phase=evil),)
    busy.paused = evil
    busy.set_run(run_id(12), packages=(package("zlib", "running", build_id="b1", last_line=evil),))
    terminal = top(columns=120)
    terminal.press("l")
    terminal.until(r"\x1b[2J\x1b]0;owned\x07evil", "    evil")
    assert "\x1b]0" not in terminal.output
    assert "\x07" not in terminal.output
    assert terminal.alternate
    terminal.press("q")
    assert terminal.exit_status() == 0


def test_another_size_gives_another_picture_at_once(busy: Peer, top: Start) -> None:
    terminal = top("--interval", "1h")
    terminal.until("PROCS", "q quit")
    terminal.resize(40, 12)
    terminal.until("▸ zlib", "TIME", gone=["PROCS", "MEMORY"], within=10)
    assert len([line for line in terminal.shown if line]) <= 12
    terminal.resize(140, 40)
    terminal.until("PROCS", "▕", within=10)
    terminal.resize(3, 1)
    terminal.press("j")
    terminal.resize(80, 24)
    terminal.until("▸ png", "PROCS", within=10)
    assert terminal.shown[23].startswith("q quit")


def test_without_unicode_everything_is_ascii(busy: Peer, top: Start) -> None:
    busy.uses = (build_use("b1", "größe"),)
    terminal = top(env={"LC_ALL": "C"}, columns=140)
    terminal.until(r"> gr\xf6\xdfe", "##......")
    assert terminal.output.isascii()


def test_colours_are_left_out_where_they_are_not_wanted(busy: Peer, top: Start) -> None:
    coloured = top()
    coloured.until("q quit")
    assert coloured.styles_of("running")[0] == "green"
    plain = top(env={"NO_COLOR": "1"})
    plain.until("q quit")
    assert not COLOURED.search(plain.output)
    assert plain.styles_of("▸ zlib")[2], "the cursor is seen all the same"


# --- how it ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["key", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_gives_the_terminal_back(busy: Peer, top: Start, how: signal.Signals | str) -> None:
    terminal = top()
    terminal.until("q quit")
    if isinstance(how, str):
        terminal.press("\x03")
    else:
        terminal.process.send_signal(how)
    assert terminal.exit_status() == 130
    restored(terminal)
    assert "Traceback" not in terminal.output


def test_two_interrupts_at_once_give_it_back_too(busy: Peer, top: Start) -> None:
    terminal = top()
    terminal.until("q quit")
    for _ in range(20):
        terminal.press("\x03")
    assert terminal.exit_status() in (130, -signal.SIGINT)
    restored(terminal)


def test_a_fault_gives_the_terminal_back_before_it_is_told(busy: Peer, top: Start) -> None:
    program = (
        "import sys, ctl.top.live as live, ctl.__main__ as main\n"
        "def broken(*args): raise RuntimeError('the picture fell off the wall')\n"
        "live.picture = broken\n"
        "sys.exit(main.run(['top']))"
    )
    terminal = top(shell=shlex.join([*command()[:1], "-c", program]))
    assert terminal.exit_status() == 1
    restored(terminal)
    last = terminal.output[terminal.output.rindex("\x1b[?1049l") :]
    assert "internal error: RuntimeError: the picture fell off the wall" in last


def test_a_line_that_is_cut_leaves_no_process(busy: Peer, top: Start, tmp_path: Path) -> None:
    # a shell that shrugs off the hangup and whose children do as well
    terminal = top(shell=f"trap '' HUP; {shlex.join(command('top'))} 2> {tmp_path}/words; echo $? > {tmp_path}/code")
    terminal.until("q quit")
    (pid,) = (int(name) for name in os.listdir("/proc") if name.isdigit() and _is_top(int(name), terminal.process.pid))
    terminal.hang_up()
    until(lambda: not alive(pid), "top has ended by itself")
    until(lambda: (tmp_path / "code").exists() and (tmp_path / "code").read_text() == "0\n", "as it does after q")
    assert (tmp_path / "words").read_text() == ""


def _is_top(pid: int, shell: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1]) == shell
    except OSError:
        return False


def test_it_can_be_stopped_and_go_on(busy: Peer, top: Start) -> None:
    terminal = top(shell="exec sh -i", env={"PS1": "ready> "})
    terminal.until("ready>")
    terminal.press(shlex.join(command("top", "--interval", "1h")) + "\r")
    terminal.until("▸ zlib", "q quit")
    raw = terminal.settings()
    terminal.press("\x1a")
    terminal.until("Stopped")
    assert terminal.settings() != raw
    assert not terminal.alternate
    terminal.press("echo $((6*7))\r")
    terminal.until("42")
    terminal.press("fg\r")
    terminal.until("▸ zlib", "q quit", gone=["42"])
    assert terminal.alternate
    assert not terminal.settings()[3] & termios.ICANON
    terminal.press("j")
    terminal.until("▸ png")
    terminal.press("q")
    terminal.until("ready>", gone=["▸ png"])
    assert not terminal.alternate


# --- a daemon that comes and goes -------------------------------------------------------------------------


def test_a_daemon_that_goes_away_and_comes_back_is_shown_and_survived(busy: Peer, top: Start) -> None:
    terminal = top("--interval", "300ms")
    terminal.until("zlib", "running")
    busy.stop()
    terminal.until("no answer", "the daemon went away", "zlib")
    terminal.press("c", "y")
    terminal.until("nothing was cancelled: the daemon is not there")
    busy.uses = (build_use("b9", "reborn"),)
    busy.start()
    terminal.until("reborn", "running", gone=["no answer", "went away", "zlib"])
    busy.stop()
    terminal.until("the daemon went away")
    terminal.press("q")
    assert terminal.exit_status() == 0
    restored(terminal)


def test_a_socket_that_waits_for_its_daemon_does_not_make_the_keys_deaf(
    busy: Peer, top: Start, environment: dict[str, str]
) -> None:
    terminal = top("--interval", "300ms")
    terminal.until("zlib", "running")
    busy.stop()
    Path(environment["BUILDD_SOCKET"]).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as held:  # as systemd holds it
        held.bind(environment["BUILDD_SOCKET"])
        held.listen(100)
        terminal.reading(lambda: re.search(r"went away ([2-9]\.|\d\d)", terminal.text), "it is tried again and again")
        terminal.press("j")
        terminal.until("▸ png", "the daemon went away", within=10)
    Path(environment["BUILDD_SOCKET"]).unlink()
    busy.start()
    terminal.until("▸ png", "running", gone=["went away"])


def test_a_daemon_that_does_not_answer_is_shown_and_not_asked_again(busy: Peer, top: Start) -> None:
    terminal = top("--interval", "200ms")
    terminal.until("zlib", "running")
    busy.silent = {"daemon.resources"}
    terminal.until("the daemon has not answered for", "no answer")
    asked = len(busy.calls("daemon.resources"))
    terminal.press("j")
    terminal.until("▸ png")
    time.sleep(1.0)  # five intervals
    assert len(busy.calls("daemon.resources")) == asked
    terminal.press("q")
    assert terminal.exit_status() == 0


def test_without_a_daemon_there_is_no_picture_but_a_word(peer: Peer, top: Start) -> None:
    peer.stop()
    terminal = top()
    assert terminal.exit_status() == 69
    assert "daemon not reachable" in terminal.text
    assert "\x1b" not in terminal.output


def test_a_daemon_that_knows_less_is_named_before_anything_is_drawn(busy: Peer, top: Start) -> None:
    busy.failures["daemon.resources"] = NotFound("no such method: daemon.resources")
    terminal = top()
    assert terminal.exit_status() == 3
    assert "no such method: daemon.resources" in terminal.text
    assert "\x1b" not in terminal.output


# --- on paper ---------------------------------------------------------------------------------------------


def test_once_prints_one_snapshot(busy: Peer, ctl: Ctl) -> None:
    done = ctl("top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("buildd 9.9  running  up 1h 01m")
    assert "\x1b" not in done.stdout
    table = next(i for i, line in enumerate(lines) if "PACKAGE" in line)
    assert [line.split()[:3] for line in lines[table + 1 :]] == [["zlib", "12", "build"], ["png", "12", "build"]]
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("kind", ["dumb", "no-such-terminal"])
def test_a_dumb_terminal_gets_a_snapshot_per_interval(busy: Peer, top: Start, kind: str) -> None:
    terminal = top("--interval", "200ms", kind=kind, columns=60)
    terminal.until("zlib")
    terminal.reading(lambda: terminal.output.count("buildd 9.9") >= 3, "there are three of them")
    assert "\x1b" not in terminal.output
    assert all(len(line) <= 60 for line in terminal.output.splitlines())
    terminal.press("\x03")
    assert terminal.exit_status() == 130
    restored(terminal)


def test_without_a_keyboard_there_are_snapshots(busy: Peer, top: Start) -> None:
    terminal = top(shell=f"{shlex.join(command('top', '--interval', '200ms'))} < /dev/null")
    terminal.until("zlib")
    terminal.reading(lambda: terminal.output.count("buildd 9.9") >= 2, "there are two of them")
    assert "\x1b" not in terminal.output


def test_json_lines_are_the_answers_as_they_came(busy: Peer, background: Background) -> None:
    client = background("top", "--json", "--interval", "200ms")
    assert client.stdout is not None
    for _ in range(3):
        line = json.loads(client.stdout.readline())
        assert line.keys() == {"at", "status", "resources"}
        assert abs(line["at"] - time.time()) < 60
        assert line["status"]["workers"] == {"busy": 2, "total": 8}
        assert [build["package"] for build in line["resources"]["builds"]] == ["zlib", "png"]
        assert len(line["resources"]["samples"]) == 1
    client.send_signal(signal.SIGTERM)
    client.communicate(timeout=10)
    assert client.returncode == 130


def test_json_once_is_one_object(busy: Peer, ctl: Ctl) -> None:
    done = ctl("top", "--json", "--once")
    assert done.returncode == 0
    assert json.loads(done.stdout)["resources"]["interval_s"] == 5.0


def test_snapshots_go_on_when_the_daemon_is_back(busy: Peer, background: Background) -> None:
    client = background("top", "--interval", "200ms")
    assert client.stdout is not None
    assert client.stderr is not None
    assert client.stdout.readline().startswith("buildd 9.9")
    busy.stop()
    assert "the daemon went away; waiting for it to come back" in client.stderr.readline()
    busy.uses = (build_use("b9", "reborn"),)
    busy.start()
    assert any("reborn" in line for line in iter(client.stdout.readline, ""))


def test_a_closed_pipe_ends_it(busy: Peer, background: Background) -> None:
    client = background("top", "--interval", "200ms")
    assert client.stdout is not None
    client.stdout.readline()
    client.stdout.close()
    assert client.wait(10) == 0


@pytest.mark.parametrize("interval", ["0", "0.1s", "soon"])
def test_an_interval_that_makes_no_sense_is_refused(ctl: Ctl, interval: str) -> None:
    done = ctl("top", "--interval", interval)
    assert done.returncode == 2
    assert interval in done.stderr


def test_a_run_whose_record_was_removed_has_no_number(busy: Peer, ctl: Ctl, top: Start) -> None:
    busy.runs.clear()
    done = ctl("top", "--once")
    assert done.returncode == 0
    assert any(line.split()[:3] == ["zlib", "-", "build"] for line in done.stdout.splitlines())
    terminal = top("--interval", "200ms")
    busy.wait_for_call("daemon.status", 6)
    terminal.until("zlib")
    assert len(busy.calls("run.status")) == 2, "each was told once"
