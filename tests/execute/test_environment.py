"""What builds find around them: an id that changes when something does that can change what is built."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from execute_boxes import no_subreaper_afterwards

from buildd import config as configuration
from buildd.execute import environment
from buildd.execute.environment import Environment, Environments
from buildd.execute.sandbox.bwrap import BwrapSandbox
from buildd.execute.sandbox.plain import PlainSandbox
from buildd.model import Strategy

STRATEGIES: tuple[Strategy, ...] = ("none", "conservative", "aggressive")


class Machine:
    """A machine whose release, installed packages, sandbox and PATH are the test's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release, self.packages = root / "os-release", root / "status"
        self.release.write_text("ID=debian\n")
        self.packages.write_text("Package: gcc\n")
        monkeypatch.setattr(environment, "_RELEASE", self.release)
        monkeypatch.setattr(environment, "_PACKAGES", self.packages)
        self.root = root
        self.path = '["/opt/tools"]'
        self.sandbox: PlainSandbox | BwrapSandbox = PlainSandbox(state_dir=root / "state")
        self.environments = self.another_life()

    def another_life(self) -> Environments:
        return Environments(self._config, self.sandbox)

    def _config(self) -> configuration.Config:
        return configuration.load(files=[], settings=[f"sandbox.path={self.path}"], environ={"HOME": str(self.root)})

    def all(self) -> dict[Strategy, Environment]:
        return {strategy: self.environments(strategy) for strategy in STRATEGIES}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with no_subreaper_afterwards():
        yield Machine(tmp_path, monkeypatch)


def test_the_parts_are_named_and_make_the_id(machine: Machine) -> None:
    careful, bold = machine.environments("conservative"), machine.environments("aggressive")
    assert careful.parts == {
        "os-release": hashlib.sha256(b"ID=debian\n").hexdigest(),
        "installed packages": hashlib.sha256(b"Package: gcc\n").hexdigest(),
        "sandbox": "plain",
        "prefix": str(machine.root / "state/prefix"),
        "path": "/opt/tools",
    }
    assert bold.parts == {name: part for name, part in careful.parts.items() if name != "installed packages"}
    assert len(careful.id) == 64
    assert careful.id != bold.id
    assert machine.environments("none") == careful


def test_nothing_is_read_again_while_nothing_changes(machine: Machine) -> None:
    for strategy in STRATEGIES:
        assert machine.environments(strategy) is machine.environments(strategy)


def test_another_life_of_the_daemon_finds_the_same(machine: Machine) -> None:
    before = machine.all()
    machine.environments = machine.another_life()
    assert machine.all() == before


def test_a_package_that_is_installed_matters_to_all_but_the_aggressive(machine: Machine) -> None:
    before = machine.all()
    machine.packages.write_text("Package: gcc\nPackage: clang\n")
    now = machine.all()
    assert [strategy for strategy in STRATEGIES if now[strategy].id != before[strategy].id] == ["none", "conservative"]
    machine.packages.write_text("Package: gcc\n")
    assert machine.all() == before


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_is_noticed(machine: Machine) -> None:
    before = machine.environments("conservative")
    info = machine.packages.stat()
    fresh = machine.root / "fresh"
    fresh.write_text("Package: tcc\n")
    os.utime(fresh, ns=(info.st_atime_ns, info.st_mtime_ns))
    fresh.replace(machine.packages)
    assert machine.environments("conservative").id != before.id


def test_an_upgrade_of_the_system_matters_to_all(machine: Machine) -> None:
    before = machine.all()
    machine.release.write_text("ID=debian\nVERSION_ID=13\n")
    assert all(now.id != before[strategy].id for strategy, now in machine.all().items())


def test_a_machine_without_these_files_has_an_environment_too(machine: Machine) -> None:
    before = machine.all()
    machine.release.unlink()
    machine.packages.unlink()
    gone = machine.all()
    assert gone["none"].parts["os-release"] == gone["none"].parts["installed packages"] == "none"
    machine.release.write_text("ID=debian\n")
    machine.packages.write_text("Package: gcc\n")
    assert machine.all() == before


def test_the_path_of_builds_matters_from_the_moment_it_is_configured(machine: Machine) -> None:
    before = machine.all()
    machine.path = '["/opt/tools", "/opt/more"]'
    now = machine.all()
    assert now["aggressive"].parts["path"] == "/opt/tools:/opt/more"
    assert all(now[strategy].id != before[strategy].id for strategy in STRATEGIES)


def test_another_sandbox_or_another_prefix_is_another_environment(machine: Machine) -> None:
    found = [machine.all()]
    sandboxes: list[PlainSandbox | BwrapSandbox] = [
        PlainSandbox(state_dir=machine.root / "elsewhere"),
        BwrapSandbox("/usr/bin/bwrap", prefix="/opt/buildd", state_dir=machine.root / "state"),
        BwrapSandbox("/usr/bin/bwrap", prefix="/opt/other", state_dir=machine.root / "state"),
    ]
    for machine.sandbox in sandboxes:
        machine.environments = machine.another_life()
        found.append(machine.all())
    for strategy in STRATEGIES:
        assert len({each[strategy].id for each in found}) == 4
