"""Fixtures of the tests of repositories: servers that are gone when the test is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repos_servers import GitDaemon, HttpServer, StuckServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitDaemon]:
    root = tmp_path / "served"
    root.mkdir()
    daemon = GitDaemon(root)
    yield daemon
    daemon.close()


@pytest.fixture
def stuck_server() -> Iterator[StuckServer]:
    server = StuckServer()
    yield server
    server.close()


@pytest.fixture
def http_servers() -> Iterator[Callable[[Path], HttpServer]]:
    """`make(root)` serves the repositories below `root` by http."""
    running: list[tuple[HttpServer, threading.Thread]] = []

    def make(root: Path) -> HttpServer:
        server = HttpServer(root)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield make
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()
