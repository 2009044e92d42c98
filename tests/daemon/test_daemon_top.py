"""`buildctl top` on a terminal, with the real daemon and real builds behind it."""

from __future__ import annotations

import json
from collections.abc import Callable

from harness import BUILDCTL, Daemon, Terminal, Workspace, named, states, until

Boot = Callable[..., Daemon]


def watching(daemon: Daemon, *options: str) -> Terminal:
    return Terminal([*BUILDCTL, "top", *options], daemon.client_environment(), columns=100, lines=30, cwd=daemon.home)


def row(terminal: Terminal, name: str) -> list[str]:
    """The cells of a build: name, run, phase, and the rest from the right."""
    lines = [line.removeprefix("▸").split() for line in terminal.shown]
    return next((cells for cells in lines if cells[:1] == [name]), [])


def test_builds_are_seen_and_one_is_cancelled(boot: Boot, backend: str, workspace: Workspace) -> None:
    daemon = boot(backend=backend, settings={"workers.max_concurrent_builds": 3})
    for name in ("first", "second", "third"):
        workspace.compiled(name, first=f"echo {name} waits; {daemon.at_gate()}")
    workspace.compiled("last", "first", "second").commit()

    with watching(daemon, "--interval", "300ms") as terminal:
        terminal.until("no build is running", "0 of 3 busy", "q quit")
        number = daemon.start(workspace)
        terminal.until("first", "second", "third", "3 of 3 busy", "1 package, 1 run")
        terminal.reading(lambda: row(terminal, "first")[1:3] == [str(number), "build"], "its run and phase are shown")
        terminal.press("l")
        terminal.until("    first waits", "    second waits", "    third waits")

        terminal.press("s", "s", "s", "s", "s", "end")
        terminal.until("s sort: package", "▸ third")
        terminal.press("c")
        terminal.until(f"y cancels third of run {number}")
        terminal.press("y")
        terminal.until("2 of 3 busy", gone=["▸ third"])
        daemon.open_gate()
        ended = {"first": "success", "second": "success", "third": "cancelled", "last": "success"}
        assert states(daemon.wait(number)) == ended
        terminal.until("no build is running", "0 of 3 busy")
        terminal.press("q")
        assert terminal.exit_status() == 0
        assert terminal.settings() == terminal.modes
        assert not terminal.alternate


def test_what_builds_use_is_seen(boot: Boot, backend: str, workspace: Workspace) -> None:
    daemon = boot(backend=backend, settings={"workers.max_concurrent_builds": 2})
    workspace.compiled("busy", first=f"while [ ! -e '{daemon.gates}/open' ]; do :; done")
    workspace.compiled("idle", first=daemon.at_gate()).commit()
    with watching(daemon, "--interval", "300ms") as terminal:
        number = daemon.start(workspace)
        terminal.until("busy", "idle")
        # how much of a processor it gets is the machine's to say
        busy = terminal.reading(lambda: _busier(terminal, "busy", "idle"), "the busy one uses a processor")
        assert busy[-1] != "0", "it has processes"
        daemon.open_gate()
        daemon.wait(number)


def _busier(terminal: Terminal, name: str, other: str) -> list[str]:
    """The cells of a build, once it is seen to have memory and to use more processor time than another one."""
    one, two = row(terminal, name), row(terminal, other)
    return one if one and two and float(one[-6]) > max(5.0, float(two[-6])) and one[-5] != "0" else []


def test_a_daemon_that_is_killed_is_waited_for_and_its_builds_are_seen_again(boot: Boot, workspace: Workspace) -> None:
    daemon = boot()
    workspace.compiled("long", first=f"echo waiting; {daemon.at_gate()}").commit()
    number = daemon.start(workspace)
    with watching(daemon, "--interval", "300ms") as terminal:
        terminal.until("long", "running")
        build = daemon.package(number, "long").build_id
        daemon.kill9()
        terminal.until("no answer", "the daemon went away")
        daemon.boot()
        terminal.until("long", "running", gone=["went away"])
        until(lambda: daemon.package(number, "long").build_id not in (None, build), "it is built again")
        daemon.open_gate()
        terminal.until("no build is running", "1 built, 0 failed")
        terminal.press("\x03")
        assert terminal.exit_status() == 130
        assert terminal.settings() == terminal.modes
    assert named(daemon.wait(number), "long").state == "success"


def test_once_is_enough_for_scripts(daemon: Daemon) -> None:
    done = daemon.buildctl("top", "--once", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"]["pid"] == daemon.pid
    assert answer["resources"]["builds"] == []
    done = daemon.buildctl("top", "--once")
    assert done.returncode == 0, done.stderr
    assert "  no build is running\n" in done.stdout
