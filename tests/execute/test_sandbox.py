"""Sandboxes: what builds see and do not see, and how they share what others left behind."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from execute_boxes import PREFIX, Box, files_below, no_subreaper_afterwards, output
from harness import bwrap_trouble
from structlog.testing import capture_logs

from buildd import config as configuration
from buildd.config import Config
from buildd.errors import BuildFailure
from buildd.execute.sandbox import WORK_DIRECTORIES, Output
from buildd.execute.sandbox.bwrap import _ETC, _NETWORK_ETC, BwrapSandbox
from buildd.execute.sandbox.choose import NoSandbox, choose
from buildd.execute.sandbox.plain import PlainSandbox, SharedPrefix
from buildd.store.tree import remove_tree

LIMIT_S = 30.0
needs_bwrap = pytest.mark.skipif(bwrap_trouble() is not None, reason=str(bwrap_trouble()))


@pytest.fixture
def box(backend: str, tmp_path: Path) -> Iterator[Box]:
    with no_subreaper_afterwards():
        yield Box(backend, tmp_path)


@pytest.fixture
def bwrap(tmp_path: Path) -> Box:
    return Box("bwrap", tmp_path)


async def said(box: Box, text: str, **options: bool) -> str:
    """What a phase with this text writes; it must succeed."""
    with trio.fail_after(LIMIT_S):
        end = await box.run(("build", text), **options)  # type: ignore[arg-type]
    shown = box.log.removeprefix("==> build\n")
    box.log_path.unlink()
    assert end.exit_status == 0, shown
    return shown


# --- every back end ---------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_the_directories_of_the_layout_are_there_and_writable(box: Box) -> None:
    layout = box.sandbox.layout(box.work)
    places = (layout.src, layout.build, layout.dest, layout.home, layout.tmp)
    await said(box, "\n".join(f"echo {n} >{place}/file" for n, place in enumerate(places)))
    names = ("src", "build", "dest", "home", "tmp")
    assert [(box.work / name / "file").read_text() for name in names] == [f"{n}\n" for n in range(5)]


@pytest.mark.trio
async def test_a_build_finds_its_dependencies_at_the_prefix(box: Box, tmp_path: Path) -> None:
    prefix = box.sandbox.layout(box.work).prefix
    one = output(tmp_path, "one", {"lib/one": "1", "share/doc/one": "d"}, prefix=prefix)
    two = output(tmp_path, "two", {"lib/two": "2"}, prefix=prefix)
    nothing = output(tmp_path, "nothing", {})
    for outputs in ([one, two, nothing], [one], [one, nothing]):
        async with box.sandbox.prefix(box.build, outputs) as directory:
            box.log_path.unlink(missing_ok=True)
            with trio.fail_after(LIMIT_S):
                await box.run(("build", f"cd {prefix} && find . -type f | sort"), prefix=directory)
            wanted = sorted(f"./{path}" for o in outputs for path in files_below(o.tree / prefix.lstrip("/")))
            assert box.log.split("\n")[1:-1] == wanted
    async with box.sandbox.prefix(box.build, []) as directory:
        box.log_path.unlink()
        with trio.fail_after(LIMIT_S):
            await box.run(("build", f"ls -A {prefix}"), prefix=directory)
        assert box.log == "==> build\n"


@pytest.mark.trio
async def test_two_dependencies_with_one_path_are_a_failure_that_names_both(box: Box, tmp_path: Path) -> None:
    prefix = box.sandbox.layout(box.work).prefix
    outputs = [output(tmp_path, name, {"lib/same": name}, prefix=prefix) for name in ("one", "two")]
    with pytest.raises(BuildFailure, match=r"one and .*two both .*lib/same") as caught:
        async with box.sandbox.prefix(box.build, outputs):
            pytest.fail("it was composed")
    assert caught.value.reason == "phase_failed"
    async with box.sandbox.prefix(box.build, outputs[:1]) as directory:
        assert directory is not None


@pytest.mark.trio
async def test_a_file_where_another_dependency_has_a_directory_is_a_failure_that_names_both(
    box: Box, tmp_path: Path
) -> None:
    prefix = box.sandbox.layout(box.work).prefix
    outputs = [
        output(tmp_path, "one", {"lib/x": "a file"}, prefix=prefix),
        output(tmp_path, "two", {"lib/x/y": "in a directory"}, prefix=prefix),
    ]
    for order in (outputs, outputs[::-1]):
        with pytest.raises(BuildFailure, match=r"(one|two) and (.* )?(one|two) both") as caught:
            async with box.sandbox.prefix(box.build, order):
                pytest.fail("it was composed")
        assert caught.value.reason == "phase_failed"


@pytest.mark.trio
async def test_nothing_is_left_of_a_prefix_when_the_build_is_over(box: Box, tmp_path: Path) -> None:
    prefix = box.sandbox.layout(box.work).prefix
    outputs = [output(tmp_path, name, {f"lib/{name}": name}, prefix=prefix) for name in ("one", "two")]
    with trio.CancelScope() as scope:
        async with box.sandbox.prefix(box.build, outputs):
            assert [p for p in box.state.rglob("*") if p.name in ("one", "two")]
            scope.cancel()
            await trio.sleep_forever()
    assert [p for p in box.state.rglob("*") if p.name in ("one", "two")] == []
    assert [files_below(o.tree) for o in outputs] != [{}, {}], "the artifacts stay"


# --- bubblewrap -------------------------------------------------------------------------------------------


@needs_bwrap
@pytest.mark.trio
async def test_a_build_is_nobody_in_particular(bwrap: Box) -> None:
    shown = await said(
        bwrap, "id -u; id -g; id -un; grep CapEff /proc/self/status; hostname || uname -n; echo $$ $PPID"
    )
    lines = shown.split("\n")
    assert lines[:3] == ["1000", "1000", "build"]
    assert lines[3].split() == ["CapEff:", "0000000000000000"]
    assert lines[4] == "buildd"
    assert lines[5].split()[1] == "1", "the driver is the init of its own pid namespace"


@needs_bwrap
@pytest.mark.trio
async def test_a_build_sees_no_process_but_its_own(bwrap: Box) -> None:
    shown = await said(bwrap, "cd /proc; ls -d [0-9]* | wc -l")
    assert int(shown) < 8


@needs_bwrap
@pytest.mark.trio
async def test_the_system_is_read_only_and_secrets_are_not_there(bwrap: Box, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    await said(
        bwrap,
        f"""
        for place in / /usr /usr/bin /etc /opt /var {PREFIX}; do
          if touch $place/x 2>/dev/null; then echo "$place is writable"; exit 1; fi
        done
        for secret in /etc/shadow /etc/ssh /root /home {tmp_path}/secret {tmp_path}; do
          if [ -e $secret ]; then echo "$secret is visible"; exit 1; fi
        done
        """,
    )


@needs_bwrap
@pytest.mark.trio
async def test_of_etc_a_build_sees_what_is_listed(bwrap: Box) -> None:
    shown = await said(bwrap, "ls -A /etc; echo --; cat /etc/passwd /etc/os-release; echo --; ls -A /etc/alternatives")
    names, texts, alternatives = shown.split("--\n")
    assert set(names.split()) <= {name.split("/")[0] for name in (*_ETC, *_NETWORK_ETC)} | {"passwd", "group"}
    assert {"ld.so.cache", "nsswitch.conf", "os-release", "passwd", "ssl"} <= set(names.split())
    assert texts.startswith("root:x:0:0:root:/:/usr/sbin/nologin\n")
    assert texts.endswith(Path("/etc/os-release").read_text())
    assert alternatives.split() == sorted(os.listdir("/etc/alternatives"))


@needs_bwrap
@pytest.mark.trio
async def test_how_names_are_resolved_is_known_where_there_is_a_network(bwrap: Box) -> None:
    text = "cat /etc/resolv.conf 2>/dev/null; :"
    assert await said(bwrap, text) == ""
    assert await said(bwrap, text, network=True) == (
        Path("/etc/resolv.conf").read_text() if os.path.exists("/etc/resolv.conf") else ""
    )


@needs_bwrap
@pytest.mark.trio
async def test_readonly_paths_may_be_below_etc(bwrap: Box) -> None:
    program = shutil.which("bwrap")
    assert program is not None
    paths = ["/etc/login.defs", "/etc/security/limits.d", "/etc/missing"]
    sandbox = BwrapSandbox(program, prefix=PREFIX, state_dir=bwrap.state, readonly_paths=paths)
    with trio.fail_after(LIMIT_S):
        end = await bwrap.run(
            ("build", "cat /etc/login.defs; cd /etc/security && echo *; ! touch limits.d/x; ! [ -e /etc/missing ]"),
            sandbox=sandbox,
        )
    assert end.exit_status == 0
    assert Path("/etc/login.defs").read_text() + "limits.d\n" in bwrap.log


@needs_bwrap
@pytest.mark.trio
async def test_the_network_is_there_in_fetch_only(bwrap: Box) -> None:
    own = os.readlink("/proc/self/ns/net")
    assert (await said(bwrap, "readlink /proc/self/ns/net", network=True)).strip() == own
    assert (await said(bwrap, "readlink /proc/self/ns/net")).strip() != own
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        connect = f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}' 2>/dev/null && echo reached || echo refused"
        assert await said(bwrap, connect, network=True) == "reached\n"
        assert await said(bwrap, connect) == "refused\n"


@needs_bwrap
@pytest.mark.trio
async def test_artifacts_cannot_be_changed_through_the_prefix(bwrap: Box, tmp_path: Path) -> None:
    outputs = [output(tmp_path, name, {f"lib/{name}": "intact"}) for name in ("one", "two")]
    for chosen in (outputs[:1], outputs):
        async with bwrap.sandbox.prefix(bwrap.build, chosen) as directory:
            with trio.fail_after(LIMIT_S):
                end = await bwrap.run(("build", f"echo changed >{PREFIX}/lib/one"), prefix=directory)
            assert end.exit_status != 0
    assert files_below(outputs[0].tree) == {f"{PREFIX[1:]}/lib/one": "intact"}


# --- the shared prefix of plain processes -----------------------------------------------------------------


class Shelf:
    """A `SharedPrefix` and outputs for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = SharedPrefix(root / "prefix")

    def output(self, name: str, files: dict[str, str], id: str = "") -> Output:
        return output(self.root, name, files, prefix=str(self.prefix.directory), id=id)

    @property
    def files(self) -> dict[str, str]:
        return files_below(self.prefix.directory)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.mark.trio
async def test_what_two_builds_need_stays_until_both_are_done(shelf: Shelf) -> None:
    both, one, two = (shelf.output(name, {f"lib/{name}": name}) for name in ("both", "one", "two"))
    async with AsyncExitStack() as first:
        async with AsyncExitStack() as second:
            await first.enter_async_context(shelf.prefix.hold([both, one]))
            await second.enter_async_context(shelf.prefix.hold([both, two]))
            assert set(shelf.files) == {"lib/both", "lib/one", "lib/two"}
        assert set(shelf.files) == {"lib/both", "lib/one"}
    assert shelf.files == {}


@pytest.mark.trio
async def test_a_build_waits_while_another_one_needs_something_else_at_the_same_path(shelf: Shelf) -> None:
    old = shelf.output("old", {"lib/x": "old"})
    new = shelf.output("new", {"lib/x": "new"})
    seen: list[str] = []

    async def build(dependency: Output) -> None:
        async with shelf.prefix.hold([dependency]):
            seen.append(shelf.files["lib/x"])

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            async with shelf.prefix.hold([old]):
                nursery.start_soon(build, new)
                nursery.start_soon(build, old)
                while not seen:
                    await trio.sleep(0.001)
                assert seen == ["old"], "who needs the same goes ahead"
                assert shelf.files == {"lib/x": "old"}
    assert seen == ["old", "new"]
    assert shelf.files == {}


@pytest.mark.trio
async def test_who_is_cancelled_while_waiting_holds_nothing(shelf: Shelf) -> None:
    old = shelf.output("old", {"lib/x": "old"})
    new = shelf.output("new", {"lib/x": "new", "lib/y": "new"})
    async with shelf.prefix.hold([old]):
        with trio.move_on_after(0.01) as scope:
            async with shelf.prefix.hold([new]):
                pytest.fail("it did not wait")
        assert scope.cancelled_caught
        assert shelf.files == {"lib/x": "old"}
    async with shelf.prefix.hold([new]):
        assert shelf.files == {"lib/x": "new", "lib/y": "new"}


@pytest.mark.trio
async def test_a_directory_of_an_earlier_build_does_not_stand_in_the_way_of_a_file(shelf: Shelf) -> None:
    directory = shelf.output("directory", {"lib/x/y": "1"})
    file = shelf.output("file", {"lib/x": "2"})
    async with shelf.prefix.hold([directory]):
        assert shelf.files == {"lib/x/y": "1"}
    async with shelf.prefix.hold([file]):
        assert shelf.files == {"lib/x": "2"}
    async with shelf.prefix.hold([directory]):
        assert shelf.files == {"lib/x/y": "1"}


@pytest.mark.trio
async def test_what_could_not_be_linked_in_is_held_by_nobody(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = shelf.output("wanted", {"lib/a": "1", "lib/b": "2"})
    other = shelf.output("other", {"lib/a": "3"})
    link, calls = os.link, 0

    def fails_once(*arguments: object, **keywords: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        link(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", fails_once)
    with pytest.raises(OSError, match="No space left"):
        async with shelf.prefix.hold([wanted]):
            pytest.fail("it was linked")
    assert shelf.files == {}
    with trio.fail_after(1):
        async with shelf.prefix.hold([other]):
            assert shelf.files == {"lib/a": "3"}
        async with shelf.prefix.hold([wanted]):
            assert shelf.files == {"lib/a": "1", "lib/b": "2"}


@pytest.mark.trio
async def test_links_are_links_in_the_prefix_too(shelf: Shelf) -> None:
    wanted = shelf.output("wanted", {"lib/real/f": "1"})
    root = wanted.tree / str(shelf.prefix.directory).lstrip("/")
    (root / "lib" / "dangling").symlink_to("nowhere")
    (root / "lib" / "directory").symlink_to("real")
    async with shelf.prefix.hold([wanted]):
        assert os.readlink(shelf.prefix.directory / "lib" / "dangling") == "nowhere"
        assert os.readlink(shelf.prefix.directory / "lib" / "directory") == "real"
    assert not os.path.lexists(shelf.prefix.directory / "lib" / "dangling")


def test_what_a_killed_daemon_left_in_the_prefix_is_removed(tmp_path: Path) -> None:
    (tmp_path / "prefix" / "lib").mkdir(parents=True)
    (tmp_path / "prefix" / "lib" / "old").write_text("x")
    SharedPrefix(tmp_path / "prefix")
    assert os.listdir(tmp_path / "prefix") == []


# --- which one --------------------------------------------------------------------------------------------


def config(tmp_path: Path, backend: str) -> Config:
    (tmp_path / "state").mkdir(exist_ok=True)
    settings = [f"daemon.{name}_dir={tmp_path / name}" for name in ("state", "cache", "runtime")]
    return configuration.load(files=[], settings=[*settings, f"sandbox.backend={backend}"], environ={})


def fake_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@needs_bwrap
@pytest.mark.trio
@pytest.mark.parametrize("backend_", ["auto", "bwrap"])
async def test_bubblewrap_is_chosen_where_it_works(tmp_path: Path, backend_: str) -> None:
    assert (await choose(config(tmp_path, backend_))).name == "bwrap"


@pytest.mark.trio
async def test_plain_processes_are_chosen_when_asked_for_and_say_what_is_weaker(tmp_path: Path) -> None:
    with no_subreaper_afterwards():
        sandbox = await choose(config(tmp_path, "plain"))
    assert sandbox.name == "plain"
    assert "see the whole machine" in " ".join(sandbox.weaker)


@pytest.mark.trio
async def test_where_bubblewrap_does_not_work_plain_processes_are_chosen_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bwrap(tmp_path, monkeypatch, "echo 'bwrap: No permissions to create a new namespace' >&2; exit 1")
    with no_subreaper_afterwards(), capture_logs() as logs:
        assert (await choose(config(tmp_path, "auto"))).name == "plain"
    (line,) = logs
    assert line["log_level"] == "warning"
    assert "No permissions to create a new namespace" in line["why"]


@pytest.mark.trio
@pytest.mark.parametrize("script", ["exit 1", "echo 'bwrap: no' >&2; exit 1", None])
async def test_a_back_end_that_was_asked_for_and_does_not_work_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        fake_bwrap(tmp_path, monkeypatch, script)
    with pytest.raises(NoSandbox, match=r"the sandbox bwrap does not work: .+") as caught:
        await choose(config(tmp_path, "bwrap"))
    assert "bubblewrap" in caught.value.hint


def test_a_sandbox_contains_builds_unless_sockets_may_be_reached(tmp_path: Path) -> None:
    for paths in ([], ["/opt/tools"]):
        sandbox = BwrapSandbox("bwrap", prefix="/opt/x", state_dir=tmp_path, readonly_paths=paths)
        assert sandbox.contains == (not paths)
    with no_subreaper_afterwards():
        assert not PlainSandbox(state_dir=tmp_path).contains


def test_a_link_in_the_way_of_a_mount_point_is_refused(tmp_path: Path) -> None:
    # bwrap would make the mount point through it: in the victim's directory, on the machine itself
    tools = Path(tempfile.mkdtemp(prefix="bd-tools-", dir="/tmp")) / "deep" / "tools"
    tools.mkdir(parents=True)
    (tmp_path / "state").mkdir()
    sandbox = BwrapSandbox("bwrap", prefix="/opt/x", state_dir=tmp_path / "state", readonly_paths=[str(tools)])
    work = tmp_path / "work"
    for name in WORK_DIRECTORIES:
        (work / name).mkdir(parents=True)
    try:
        assert str(tools) in sandbox.argv(["true"], work=work, prefix=None, network=False)
        (work / "tmp" / tools.parts[2]).symlink_to(tmp_path)
        with pytest.raises(BuildFailure, match="a link in the way"):
            sandbox.argv(["true"], work=work, prefix=None, network=False)
    finally:
        remove_tree(tools.parent.parent)
