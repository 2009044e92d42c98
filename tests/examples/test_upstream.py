"""The scripts of `examples/upstream`, as far as they work without the network."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

UPSTREAM = Path(__file__).parents[2] / "examples/upstream"
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def test_an_existing_destination_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    ran = subprocess.run([UPSTREAM / "make-repository", tmp_path], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 1
    assert "exists already" in ran.stderr
    assert (tmp_path / "keep").read_text() == "mine"


@pytest.mark.parametrize("script", ["make-repository", "serve"])
def test_a_call_without_arguments_is_a_usage_error_that_explains(script: str) -> None:
    ran = subprocess.run([UPSTREAM / script], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 2
    assert script in ran.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    pytest.fail(f"nobody listens on port {port}")


def test_serve_serves_the_repository_under_its_name(tmp_path: Path) -> None:
    repository = tmp_path / "upstream"
    environ = os.environ | GIT
    subprocess.run(["git", "init", "-q", repository], check=True, env=environ)
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "one"], cwd=repository, check=True, env=environ)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    port = free_port()
    with subprocess.Popen(
        [UPSTREAM / "serve", repository, str(port)], stdout=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            wait_until_listening(port, server)
            listed = subprocess.run(
                ["git", "ls-remote", f"git://127.0.0.1:{port}/upstream", "HEAD"],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                timeout=30,
            ).stdout
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)
    assert listed.split()[0] == head
