"""What builds find in /etc: copies that follow the machine, and nothing that was not listed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import killed_before

from buildd.execute.sandbox.etc import Etc

NAMES = ("hosts", "fonts", "ssl/openssl.cnf", "os-release", "many")
OWN = {"passwd": "root:x:0:0\n"}


class Machine:
    """Files that stand for the machine's /etc, and what is made of them."""

    def __init__(self, root: Path) -> None:
        self.root = root / "machine"
        self.copies = root / "copies" / "etc"
        self.write("hosts", "127.0.0.1 localhost\n")
        self.write("shadow", "secret\n")
        self.write("fonts/fonts.conf", "<fontconfig/>\n")
        self.write("fonts/conf.d/README", "links\n")
        (self.root / "fonts/conf.d/10.conf").symlink_to("/usr/share/fontconfig/10.conf")
        (self.root / "fonts/escape").symlink_to("../shadow")
        self.write("ssl/openssl.cnf", "[default]\n")
        self.write("ssl/private/key", "secret\n")
        self.write("usr/lib/os-release", "ID=debian\n")
        (self.root / "os-release").symlink_to("usr/lib/os-release")
        self.etc: Etc

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    def copy(self, **options: Any) -> Machine:
        self.etc = Etc(self.copies, NAMES, own=OWN, source=self.root, **{"look_every": 0.0, **options})
        return self

    @property
    def shown(self) -> dict[str, str | None]:
        """Content of each file, target of each link, None for directories."""
        found: dict[str, str | None] = {}
        for top, directories, files in os.walk(self.copies):
            for name in (*directories, *files):
                path = Path(top, name)
                text = f"-> {path.readlink()}" if path.is_symlink() else None if path.is_dir() else path.read_text()
                found[str(path.relative_to(self.copies))] = text
        return found


BASIS = {
    "fonts": None,
    "fonts/conf.d": None,
    "fonts/conf.d/10.conf": "-> /usr/share/fontconfig/10.conf",
    "fonts/conf.d/README": "links\n",
    "fonts/escape": "-> ../shadow",
    "fonts/fonts.conf": "<fontconfig/>\n",
    "hosts": "127.0.0.1 localhost\n",
    "os-release": "ID=debian\n",
    "passwd": "root:x:0:0\n",
    "ssl": None,
    "ssl/openssl.cnf": "[default]\n",
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_listed_is_there_and_nothing_else(machine: Machine) -> None:
    assert machine.copy().shown == BASIS
    assert not machine.etc.binds
    assert [path.name for path in machine.copies.parent.iterdir()] == ["etc"]


def _edit(machine: Machine) -> None:
    machine.write("fonts/conf.d/README", "other\n")


def _grow(machine: Machine) -> None:
    with (machine.root / "hosts").open("a") as file:
        file.write("::1 localhost\n")


def _replace(machine: Machine) -> None:
    status = (machine.root / "hosts").stat()
    other = machine.write("hosts.new", "127.0.0.2 localhost\n")
    os.utime(other, ns=(status.st_mtime_ns, status.st_mtime_ns))
    other.replace(machine.root / "hosts")


def _point_elsewhere(machine: Machine) -> None:
    machine.write("usr/lib/other-release", "ID=devuan\n")
    (machine.root / "os-release").unlink()
    (machine.root / "os-release").symlink_to("usr/lib/other-release")


def _change_link(machine: Machine) -> None:
    (machine.root / "fonts/conf.d/10.conf").unlink()
    (machine.root / "fonts/conf.d/10.conf").symlink_to("11.conf")


def _file_for_directory(machine: Machine) -> None:
    shutil.rmtree(machine.root / "fonts/conf.d")
    machine.write("fonts/conf.d", "a file\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_edit, {"fonts/conf.d/README": "other\n"}),
        (_grow, {"hosts": "127.0.0.1 localhost\n::1 localhost\n"}),
        (_replace, {"hosts": "127.0.0.2 localhost\n"}),
        (_point_elsewhere, {"os-release": "ID=devuan\n"}),
        (_change_link, {"fonts/conf.d/10.conf": "-> 11.conf"}),
        (lambda m: m.write("fonts/deep/new", "n"), {"fonts/deep": None, "fonts/deep/new": "n"}),
        (lambda m: m.write("many/one", "1"), {"many": None, "many/one": "1"}),
        (lambda m: (m.root / "hosts").unlink(), {"hosts": ""}),
        (lambda m: (m.root / "ssl/openssl.cnf").unlink(), {"ssl": "", "ssl/openssl.cnf": ""}),
        (_file_for_directory, {"fonts/conf.d": "a file\n", "fonts/conf.d/10.conf": "", "fonts/conf.d/README": ""}),
        (lambda m: (m.root / "hosts").chmod(0o600), {"hosts": ""}),
        (lambda m: m.write("shadow", "another secret\n"), {}),
    ],
)
def test_a_change_on_the_machine_is_taken_over(
    machine: Machine, change: Callable[[Machine], object], expected: dict[str, str | None]
) -> None:
    machine.copy()
    change(machine)
    machine.etc.refresh()
    assert machine.shown == {name: text for name, text in {**BASIS, **expected}.items() if text != ""}
    before = {name: (machine.copies / name).lstat().st_ino for name in machine.shown}
    machine.etc.refresh()
    assert before == {name: (machine.copies / name).lstat().st_ino for name in machine.shown}


def test_files_that_have_not_changed_stay_untouched_also_in_another_life(machine: Machine) -> None:
    machine.copy()
    before = {name: (machine.copies / name).lstat().st_ino for name in BASIS}
    (machine.copies / "stray").write_text("x")
    (machine.copies / "hosts").write_text("cut short by a power failure")
    machine.copy()
    after = {name: (machine.copies / name).lstat().st_ino for name in BASIS}
    assert machine.shown == BASIS
    assert {name for name in BASIS if before[name] != after[name]} == {"hosts"}


def test_what_somebody_removes_is_made_again(machine: Machine) -> None:
    machine.copy()
    for path in (machine.copies / "hosts", machine.copies):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        machine.etc.refresh()
        assert machine.shown == BASIS


def test_a_file_that_was_being_written_when_the_daemon_was_killed_is_removed(machine: Machine) -> None:
    machine.copy()
    machine.write("hosts", "127.0.0.9 localhost\n")
    killed_before("os.rename", machine.copy)
    assert len(list(machine.copies.parent.iterdir())) == 2
    machine.copy()
    assert [path.name for path in machine.copies.parent.iterdir()] == ["etc"]


def test_a_file_is_never_seen_half_written(machine: Machine) -> None:
    machine.copy()
    with (machine.copies / "hosts").open() as seen_by_a_build:
        machine.write("hosts", "changed\n")
        machine.etc.refresh()
        assert seen_by_a_build.read() == "127.0.0.1 localhost\n"
    assert machine.shown["hosts"] == "changed\n"


def test_what_only_some_users_may_read_is_left_out(machine: Machine) -> None:
    (machine.root / "fonts/fonts.conf").chmod(0o640)
    (machine.root / "fonts/conf.d").chmod(0o750)
    hidden = {"fonts/fonts.conf", "fonts/conf.d", "fonts/conf.d/10.conf", "fonts/conf.d/README"}
    assert machine.copy().shown == {name: text for name, text in BASIS.items() if name not in hidden}


@pytest.mark.parametrize("kind", ["tree", "file"])
def test_what_is_large_is_bound_and_has_a_mount_point(machine: Machine, kind: str) -> None:
    if kind == "tree":
        for number in range(100):
            machine.write(f"many/{number}", "x")
    else:
        machine.write("many", "x" * (2 << 20))
    machine.copy()
    assert machine.etc.binds == {"many": str(machine.root / "many")}
    assert machine.shown == {**BASIS, "many": None if kind == "tree" else ""}


def test_what_was_copied_stays_copied_when_it_grows(machine: Machine) -> None:
    machine.write("many/0", "x")
    machine.copy()
    for number in range(100):
        machine.write(f"many/{number}", "x")
    machine.etc.refresh()
    assert not machine.etc.binds
    assert sum(name.startswith("many/") for name in machine.shown) == 100


def test_a_tree_that_is_bound_and_goes_is_not_bound_any_more(machine: Machine) -> None:
    for number in range(100):
        machine.write(f"many/{number}", "x")
    machine.copy()
    shutil.rmtree(machine.root / "many")
    machine.etc.refresh()
    assert not machine.etc.binds
    assert machine.shown == BASIS


def test_what_others_bind_has_a_mount_point_as_long_as_it_is_there(machine: Machine) -> None:
    machine.write("resolv.conf", "nameserver ::1\n")
    machine.write("tools/deep/bin", "x")
    machine.copy(bound=["resolv.conf", "tools/deep", "gai.conf", "fonts", "fonts/escape/further", "ssl/private"])
    places = {"resolv.conf": "", "tools": None, "tools/deep": None, "ssl/private": None}
    assert machine.shown == {**BASIS, **places}
    (machine.root / "resolv.conf").unlink()
    machine.write("gai.conf", "x")
    machine.etc.refresh()
    del places["resolv.conf"]
    assert machine.shown == {**BASIS, **places, "gai.conf": ""}


def test_no_mount_point_is_made_through_a_link_that_was_copied(machine: Machine) -> None:
    machine.write("fonts/conf.d/below/further", "x")
    (machine.root / "fonts/out").symlink_to("conf.d/below")
    machine.copy(bound=["fonts/out/further"])
    assert machine.shown["fonts/out"] == "-> conf.d/below"
    assert machine.shown["fonts/conf.d/below/further"] == "x", "not emptied by a mount point that is it"


def test_the_machine_is_not_looked_at_before_every_build(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    machine.copy(look_every=1.0)
    machine.etc.refresh()
    machine.write("hosts", "changed\n")
    now += 0.9
    machine.etc.refresh()
    assert machine.shown == BASIS
    now += 0.2
    machine.etc.refresh()
    assert machine.shown["hosts"] == "changed\n"
