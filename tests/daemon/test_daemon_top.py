"""`buildctl top` on a terminal, with the real daemon and real builds behind it."""

from __future__ import annotations

import json
from collections.abc import Callable

from harness import BUILDCTL, Daemon, Terminal, Workspace, named, until

Boot = Callable[..., Daemon]


def watching(daemon: Daemon, *options: str) -> Terminal:
    return Terminal([*BUILDCTL, "top", *options], daemon.client_environment(), columns=100, lines=30, cwd=daemon.home)


def row(terminal: Terminal, name: str) -> list[str]:
    """The cells of a build: name, run, phase, and the rest from the right."""
    lines = [line.removeprefix("▸").split() for line in terminal.shown]
    return next((cells for cells in lines if cells[:1] == [name]), [])


def percent(terminal: Terminal, name: str) -> float:
    terminal.read(0.1)
    cells = row(terminal, name)
    return float(cells[-6]) if cells else 0.0


def test_builds_are_seen_and_one_is_cancelled(boot: Boot, backend: str, workspace: Workspace) -> None:
    daemon = boot(backend=backend, settings={"workers.max_concurrent_builds": 3})
    spin = f"echo spinning; while [ ! -e '{daemon.gates}/open' ]; do :; done"
    workspace.compiled("busy", first=spin)
    workspace.compiled("idle", first=f"echo waiting; {daemon.at_gate()}")
    workspace.compiled("other", first=f"echo waiting; {daemon.at_gate()}")
    workspace.compiled("last", "busy", "idle").commit()

    with watching(daemon, "--interval", "300ms") as terminal:
        terminal.until("no build is running", "0 of 3 busy", "q quit")
        number = daemon.start(workspace)
        terminal.until("busy", "idle", "other", "3 of 3 busy", "1 package, 1 run")
        until(lambda: percent(terminal, "busy") > 50, "the busy one uses a processor")
        assert percent(terminal, "idle") < 50
        cells = row(terminal, "busy")
        assert cells[1:3] == [str(number), "build"]
        assert int(cells[-1]) >= 1
        terminal.press("l")
        terminal.until("    spinning", "    waiting")

        terminal.press("s", "s", "s", "s", "s", "end")
        terminal.until("s sort: package", "▸ other")
        terminal.press("c")
        terminal.until(f"y cancels other of run {number}")
        terminal.press("y")
        terminal.until("2 of 3 busy", gone=["▸ other"])
        daemon.open_gate()
        view = daemon.wait(number)
        assert {package.name: package.state for package in view.packages} == {
            "busy": "success",
            "idle": "success",
            "other": "cancelled",
            "last": "success",
        }
        terminal.until("no build is running", "0 of 3 busy")
        terminal.press("q")
        assert terminal.exit_status() == 0
        assert terminal.settings() == terminal.modes
        assert not terminal.alternate


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
