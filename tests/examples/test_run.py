"""`examples/run` with the real daemon: it always ends with its result, and never leaves a daemon behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "examples/run"
LIMIT = 120


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "home"
    yield directory
    for process in daemons(directory):
        process.kill()


def daemons(home: Path) -> list[psutil.Process]:
    """The daemons that use `home`."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"--config={home}/buildd.conf" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue  # gone meanwhile, or not ours to look at
    return found


def recipe(directory: Path, build: str) -> Path:
    """A directory with one package whose build phase is `build`."""
    directory.mkdir()
    (directory / "buildd.toml").write_text(f"[package.{directory.name}]\nphases = {{ build = '{build}' }}\n")
    return directory


def start(home: Path, *targets: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), "--home", str(home), *map(str, targets)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def run(home: Path, *targets: str | Path) -> tuple[int, str]:
    with start(home, *targets) as process:
        output, _ = process.communicate(timeout=LIMIT)
    return process.returncode, output


def until(process: subprocess.Popen[str], words: str) -> None:
    """Reads the output up to the line that has `words`."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"the output ended without {words!r}")


@pytest.mark.skipif(not all(map(shutil.which, ("cc", "make"))), reason="needs cc and make")
def test_the_workspace_is_built_with_a_fetched_source_and_again_without_complaint(home: Path) -> None:
    for _ in range(2):
        code, output = run(home, "./examples/workspace//tally", "./examples/workspace//roman")
        assert code == 0, output
        assert "artifacts:" in output
        assert daemons(home) == []


def test_a_failed_package_is_the_exit_code_and_the_daemon_is_stopped(home: Path, tmp_path: Path) -> None:
    code, output = run(home, recipe(tmp_path / "hopeless", "echo no hope; exit 3"))
    assert code == 1, output
    assert "no hope" in output
    assert daemons(home) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_cancels_the_run_and_stops_the_daemon(
    home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with start(home, recipe(tmp_path / "slow", "sleep 600")) as process:
        until(process, "$ buildctl start")
        process.send_signal(number)
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, output
    assert daemons(home) == []


def test_a_daemon_left_over_by_a_killed_run_is_stopped_first(home: Path, tmp_path: Path) -> None:
    quick = recipe(tmp_path / "quick", "true")
    with start(home, recipe(tmp_path / "slow", "sleep 600")) as process:
        until(process, "$ buildctl start")
        os.killpg(process.pid, signal.SIGKILL)
    (left_over,) = daemons(home)
    code, output = run(home, f"{quick}//quick")
    assert "a daemon of an earlier run is still there" in output
    assert not left_over.is_running()
    assert code == 0, output
    assert daemons(home) == []


def test_two_runs_of_one_checkout_do_not_meet(home: Path, tmp_path: Path) -> None:
    slow = recipe(tmp_path / "slow", "sleep 600")
    with start(home, slow) as first:
        until(first, "$ buildctl start")
        code, output = run(home, slow)
        assert code == 4
        assert f"pid {first.pid}" in output
        first.terminate()
        first.communicate(timeout=LIMIT)


def test_a_long_path_of_the_checkout_does_not_break_the_socket(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    code, output = run(home, recipe(tmp_path / "quick", "true"))
    assert code == 0, output
    assert daemons(home) == []
