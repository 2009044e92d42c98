"""Fixtures of the end-to-end tests; see `harness`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("harness")

from harness import BACKENDS, Daemon, GitServer, RecipeRepository, booted, served, unbooted  # noqa: E402


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each sandbox that this machine can have, for tests of what must hold in all."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon for the tests of a module that leave it as they found it."""
    with booted(settings={"workers.max_concurrent_builds": 4}) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon; the test fails for what was logged while it ran, and for what is left of builds."""
    yield shared_daemon
    shared_daemon.check_log()
    assert shared_daemon.build_processes() == []
    assert shared_daemon.work_directories() == []


@pytest.fixture
def boot() -> Iterator[Callable[..., Daemon]]:
    """Boot a daemon for this test alone: `boot(backend="plain", settings={…})`."""
    with ExitStack() as stack:

        def start(
            *, backend: str | None = None, settings: Mapping[str, object] | None = None, ready: bool = True
        ) -> Daemon:
            daemon = stack.enter_context(unbooted(backend=backend, settings=settings))
            return daemon.boot() if ready else daemon

        yield start


@pytest.fixture
def repository(tmp_path: Path) -> RecipeRepository:
    """An empty git repository for recipes."""
    return RecipeRepository(tmp_path / "workspace")


@pytest.fixture
def git_server(tmp_path: Path) -> Iterator[GitServer]:
    """`git daemon` over the test's directory."""
    with served(tmp_path) as server:
        yield server
