"""A peer that speaks the protocol, and the client as a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ctl_peer import ROOT, Background, Ctl, Peer, command


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which only the test's own socket can be found."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "BUILDD_SOCKET": str(tmp_path / "s"),
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
    }


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "s")
    peer.start()
    yield peer
    peer.stop()


@pytest.fixture
def background(environment: dict[str, str], tmp_path: Path) -> Iterator[Background]:
    """Start `buildctl` with pipes and leave it running; it is gone when the test is."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **more: Any) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command(*args), **({"env": environment, "cwd": tmp_path} | pipes | more))
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def ctl(environment: dict[str, str], tmp_path: Path) -> Ctl:
    """Run `buildctl` to its end in the test's directory."""

    def run(*args: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*args),
            env=environment | (env or {}),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **more,
        )

    return run
