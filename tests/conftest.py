"""Fixtures of the end-to-end tests; see `harness`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# how fast a machine is that others use too is no property of ours
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

pytest.register_assert_rewrite("harness")

from harness import (  # noqa: E402
    BACKENDS,
    Daemon,
    GitServer,
    RecipeRepository,
    Workspace,
    booted,
    served,
    unbooted,
    until,
)


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
    until(lambda: not shared_daemon.work_directories(), "no directory of a build is left")  # they go after its end


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
def on_a_small_disk() -> Iterator[Daemon]:
    """A daemon that is not booted, with its state directory on a file system of 20 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    with unbooted(settings={"workers.max_concurrent_builds": 4}) as daemon:
        daemon.state_dir.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "tmpfs", str(daemon.state_dir)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
        try:
            yield daemon
        finally:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.settings_for_quick_end()
                daemon.terminate()  # else it would see its files vanish
            subprocess.run(["umount", "-l", str(daemon.state_dir)], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> RecipeRepository:
    """An empty git repository for recipes."""
    return RecipeRepository(tmp_path / "workspace")


@pytest.fixture
def workspace(tmp_path: Path, request: pytest.FixtureRequest) -> Workspace:
    """An empty git repository for packages that a daemon takes for no other test's."""
    return Workspace(tmp_path / "workspace", mark=request.node.name)


@pytest.fixture
def git_server(tmp_path: Path) -> Iterator[GitServer]:
    """`git daemon` over the test's directory."""
    with served(tmp_path) as server:
        yield server
