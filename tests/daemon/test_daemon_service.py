"""The daemon as a service: configuration, reloading, its socket, and one daemon per state directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, RecipeRepository, until

Boot = Callable[..., Daemon]

# What systemd does with a socket unit: the listening socket as descriptor 3, and LISTEN_PID of who gets it.
_ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen(64)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="control")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_sighup_reloads_what_can_change_while_running(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(ready=False)
    daemon.config_file.write_text("[workers]\nmax_concurrent_builds = 1\n")
    daemon.boot()
    repository.packages([f"p{i}" for i in range(3)], phases={"build": f"echo here; {daemon.at_gate()}"}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")
    assert daemon.run(number).stats.running == 1

    daemon.config_file.write_text("[workers]\nmax_concurrent_builds = 3\n")
    daemon.signal(signal.SIGHUP)

    until(lambda: daemon.status()["workers"]["total"] == 3, "the new number of workers is in use")
    daemon.until_running(number, 3, saying="here", within=10)  # at once, not when the next build ends
    daemon.open_gate()
    assert daemon.wait(number).state == "completed"


def test_a_bad_configuration_is_reported_and_the_old_one_kept(boot: Boot) -> None:
    daemon = boot(ready=False)
    daemon.config_file.write_text("[workers]\nmax_concurrent_builds = 3\n")
    daemon.boot()
    daemon.expect("the configuration was not reloaded")
    daemon.config_file.write_text('[workers]\nmax_concurrent_builds = "many"\n')

    daemon.signal(signal.SIGHUP)

    (line,) = until(lambda: daemon.log_lines("the configuration was not reloaded"), "the trouble is logged")
    assert str(daemon.config_file) in line["error"]
    assert "workers.max_concurrent_builds" in line["error"]
    assert "whole number" in line["hint"]
    refused = daemon.buildctl("reload")
    assert refused.returncode == 2
    assert "workers.max_concurrent_builds" in refused.stderr
    assert daemon.status()["workers"]["total"] == 3

    daemon.config_file.write_text("[workers]\nmax_concurrent_builds = 2\n[events]\nkeep = 5000\n")
    done = daemon.buildctl("reload")
    assert done.returncode == 0
    assert "[events]" in done.stdout  # which takes effect at the next start
    assert daemon.status()["workers"]["total"] == 2


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[worker]\n", ["worker", "did you mean workers"]),
        ("[workers]\nmax_concurent_builds = 1\n", ["max_concurent_builds", "did you mean max_concurrent_builds"]),
        ("[workers]\nmax_concurrent_builds = 0\n", ["workers.max_concurrent_builds", "at least 1"]),
        ('[daemon]\nstate_dir = "relative"\n', ["daemon.state_dir", "absolute"]),
        ('[limits]\ntimeout = "soon"\n', ["limits.timeout", "30s"]),
        ('[sandbox]\nbackend = "jail"\n', ["sandbox.backend", "bwrap"]),
        ("workers = 3\n", ["workers", "section"]),
        ("[workers\n", ["not valid TOML"]),
        ("\xff\n", ["not valid TOML"]),
    ],
)
def test_a_daemon_does_not_start_on_a_configuration_it_does_not_understand(
    boot: Boot, text: str, names: list[str]
) -> None:
    daemon = boot(ready=False)
    daemon.config_file.write_bytes(text.encode("latin-1"))
    daemon.settings.pop("sandbox.backend")
    daemon.settings.pop("daemon.state_dir")
    daemon.boot(ready=False)
    assert daemon.exit_status(within=15) == 2
    said = daemon.log()
    assert "Traceback" not in said
    for name in [str(daemon.config_file), *names]:
        assert name in said


def test_later_settings_win_and_print_config_shows_the_result(boot: Boot) -> None:
    daemon = boot(ready=False)
    daemon.config_file.write_text('[workers]\nmax_concurrent_builds = 3\njobs = 5\n[limits]\ntimeout = "1min"\n')
    daemon.settings["limits.silence"] = "90s"
    printed = subprocess.run(
        [*daemon.command, "--print-config"],
        env=daemon.environ | {"BUILDD_WORKERS_JOBS": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    config = json.loads(printed.stdout)
    assert config["workers"]["max_concurrent_builds"] == 3
    assert config["workers"]["jobs"] == 7
    assert (config["limits"]["timeout"], config["limits"]["silence"]) == (60.0, 90.0)


def test_a_second_daemon_on_the_same_state_directory_refuses(boot: Boot) -> None:
    first, second = boot(), boot(ready=False)
    second.settings["daemon.state_dir"] = first.state_dir
    second.boot(ready=False)
    assert second.exit_status() == 1
    assert f"another buildd uses the state directory {first.state_dir}" in second.log()
    assert first.status()["state"] == "running"


def test_a_second_daemon_at_the_same_socket_refuses_and_leaves_it_alone(boot: Boot) -> None:
    first, second = boot(), boot(ready=False)
    second.settings["daemon.runtime_dir"] = first.runtime_dir
    second.boot(ready=False)
    assert second.exit_status() in (1, 2)
    assert f"another daemon answers at {first.socket}" in second.log()
    assert "Traceback" not in second.log()
    assert first.status()["pid"] == first.pid


def test_a_socket_that_a_killed_daemon_left_is_replaced(boot: Boot) -> None:
    daemon = boot()
    daemon.kill9()
    assert daemon.socket.exists()
    gone = daemon.buildctl("status")
    assert gone.returncode == 69
    daemon.boot()
    assert daemon.buildctl("status").returncode == 0


def test_a_socket_path_that_is_too_long_is_explained(boot: Boot) -> None:
    daemon = boot(ready=False)
    daemon.settings["daemon.runtime_dir"] = daemon.home / ("x" * 120)
    daemon.boot(ready=False)
    assert daemon.exit_status() in (1, 2)
    assert "daemon.runtime_dir" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_a_state_directory_that_cannot_be_made_is_explained(boot: Boot) -> None:
    daemon = boot(ready=False)
    daemon.settings["daemon.state_dir"] = daemon.config_file / "below-a-file"
    daemon.boot(ready=False)
    assert daemon.exit_status() == 1
    assert "cannot make the directory" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_a_socket_from_systemd_is_adopted_and_outlives_the_daemon(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(ready=False)
    daemon.runtime_dir.mkdir()
    daemon.boot(sys.executable, "-c", _ACTIVATE, str(daemon.socket))
    inode = daemon.socket.stat().st_ino
    repository.package("one", phases={"build": "env"}).commit()
    view = daemon.build(repository)
    assert view.state == "completed"
    assert "LISTEN_" not in daemon.log_of(view, "one")
    assert daemon.terminate() == 0
    assert daemon.socket.stat().st_ino == inode  # it is systemd's to remove


def test_a_request_that_waits_in_the_activated_socket_is_answered_once_the_daemon_is_up(boot: Boot) -> None:
    daemon = boot(ready=False)
    daemon.runtime_dir.mkdir()
    wait_first = _ACTIVATE.replace("os.dup2", "open(sys.argv[1] + '.bound', 'w').close(); sys.stdin.read(); os.dup2")
    reader, writer = os.pipe()
    with daemon.log_file.open("ab") as log:
        daemon.process = subprocess.Popen(
            [sys.executable, "-c", wait_first, str(daemon.socket), *daemon.command],
            env=daemon.environ,
            stdin=reader,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(reader)
    until(lambda: Path(f"{daemon.socket}.bound").exists(), "the socket is bound")
    early = daemon.buildctl_in_background("status", "--json")
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(daemon.socket))  # it listens, and nobody accepts
        os.close(writer)
        out, err = early.communicate(timeout=30)
    finally:
        early.kill()
        early.communicate()
    assert early.returncode == 0, err
    assert json.loads(out)["pid"] == daemon.pid


def test_readiness_and_the_end_are_told_to_systemd(boot: Boot) -> None:
    daemon = boot(ready=False)
    address = daemon.home / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.settimeout(20)
        daemon.environ["NOTIFY_SOCKET"] = str(address)
        daemon.environ["WATCHDOG_USEC"] = "300000"
        daemon.boot()
        assert "READY=1" in notify.recv(4096).decode().splitlines()
        assert [notify.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        daemon.signal(signal.SIGHUP)
        heard = [notify.recv(4096).decode().splitlines()[0] for _ in range(12)]
        assert heard.index("RELOADING=1") < heard.index("READY=1")
        daemon.signal(signal.SIGTERM)
        while "STOPPING=1" not in notify.recv(4096).decode().splitlines():
            pass
    assert daemon.exit_status() == 0


def test_the_log_is_json_lines_with_run_and_build_bound(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"daemon.log_level": "debug"})
    repository.package("one").commit()
    view = daemon.build(repository)
    assert daemon.terminate() == 0
    assert all(line.startswith("{") for line in daemon.log().splitlines())
    (line,) = [line for line in daemon.log_lines("scope closed") if line.get("package") == "one"]
    assert line["run"] == view.id
    assert line["build"] == view.packages[0].build_id


def test_check_and_doctor_say_what_this_machine_has(boot: Boot) -> None:
    daemon = boot()
    done = daemon.buildctl("doctor", "--json")
    assert done.returncode in (0, 1)
    names = {check["name"] for check in json.loads(done.stdout)["checks"]}
    assert {"sandbox", "state_dir"} <= names
    checked = subprocess.run(
        [*daemon.command, "--check", "--json"], env=daemon.environ, capture_output=True, text=True, timeout=60
    )
    assert {check["name"] for check in json.loads(checked.stdout)} <= names


def test_schema_and_call_work_from_a_shell(boot: Boot) -> None:
    daemon = boot()
    schema = json.loads(daemon.buildctl("schema").stdout)
    assert "run.start" in schema["methods"]
    answer = daemon.buildctl("call", "daemon.status", "{}")
    assert json.loads(answer.stdout)["pid"] == daemon.pid
    wrong = daemon.buildctl("call", "run.start", '{"target": "x"}')
    assert wrong.returncode == 2
    assert "target" in wrong.stderr
