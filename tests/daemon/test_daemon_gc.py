"""Artifacts go when the limits ask for it, and only then; damaged ones are never used."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, GitServer, RecipeRepository, RpcError, named, until

Boot = Callable[..., Daemon]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=30).returncode == 0


STAGE = 'mkdir -p "$DESTDIR$PREFIX/lib"; yes "{name}" | head -c {size} > "$DESTDIR$PREFIX/lib/{name}"'
USE = 'mkdir -p "$DESTDIR$PREFIX/app"; cat "$PREFIX"/lib/* > "$DESTDIR$PREFIX/app/{name}"'


def library(repository: RecipeRepository, name: str, size: int = 30_000, **more: Any) -> None:
    repository.package(name, phases={"stage": STAGE.format(name=name, size=size)}, **more)


def application(repository: RecipeRepository, name: str, depends: list[str], before: str = "") -> None:
    stage = f"{before}\n{USE.format(name=name)}"
    repository.package(name, depends=depends, phases={"stage": stage})


def disk_usage(daemon: Daemon) -> int:
    """Bytes that artifacts and releases take of the disk, as du counts them."""
    found: dict[int, int] = {}
    for root in (*(daemon.state_dir / "artifacts").glob("??/*"), *(daemon.state_dir / "releases").glob("*")):
        for directory, _, files in os.walk(root):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                with contextlib.suppress(FileNotFoundError):  # it goes while we look
                    status = os.lstat(path)
                    found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def on_disk(daemon: Daemon) -> set[str]:
    return {path.parent.name for path in (daemon.state_dir / "artifacts").glob("??/*/manifest.json")}


def output_of(daemon: Daemon, view: Any, name: str) -> str:
    artifact = named(view, name).artifact
    assert artifact is not None
    return Path(artifact).name


def gc(daemon: Daemon, *options: object, status: int = 0) -> dict[str, Any]:
    done = daemon.buildctl("gc", "--json", *options)
    assert done.returncode == status, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def events(daemon: Daemon, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.call("events.poll", {"after": 0, "kinds": [kind]})["events"]
    return found


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Change a bit of a published file."""
    status = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(status.st_mode)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def file_of(daemon: Daemon, view: Any, name: str) -> Path:
    (path,) = Path(str(named(view, name).artifact)).glob(f"tree/**/lib/{name}")
    return path


# --- limits ---------------------------------------------------------------------------------------------------


def test_half_of_two_hundred_artifacts_go_while_ten_builds_use_some_and_none_fails(
    boot: Boot, repository: RecipeRepository
) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 10})
    names = [f"lib{n:03}" for n in range(200)]
    for n, name in enumerate(names):
        library(repository, name, 20_000 + 300 * n)
    repository.commit()
    view = daemon.build(repository)
    assert view.stats.success == 200
    outputs = {name: output_of(daemon, view, name) for name in names}
    for n, name in enumerate(names):  # lib000 was used least recently
        manifest = daemon.state_dir / "artifacts" / outputs[name][:2] / outputs[name] / "manifest.json"
        os.utime(manifest, (time.time() - 1000 + n,) * 2)
    pinned = {outputs[name] for name in names[3:8]}
    for output in pinned:
        assert daemon.buildctl("artifacts", "pin", output, "--note", "shipped").returncode == 0

    wanted = {f"app{n}": [names[n], names[10 + 7 * n], names[199 - n]] for n in range(10)}
    for name, depends in wanted.items():
        application(repository, name, depends, f"echo at the gate\n{daemon.at_gate()}")
    repository.commit()
    number = daemon.start(*(f"{repository}//{name}" for name in wanted))
    daemon.until_running(number, 10, saying="at the gate")
    used = {outputs[name] for depends in wanted.values() for name in depends}

    limit = disk_usage(daemon) // 2
    before = on_disk(daemon)
    dry = gc(daemon, "--dry-run", "--max-bytes", limit)
    assert on_disk(daemon) == before
    went = gc(daemon, "--max-bytes", limit)

    assert went["collected"] == dry["collected"], "the dry run said exactly what went"
    assert {key: went[key] for key in went.keys() - {"dry_run", "free_bytes", "free_inodes"}} == {
        key: dry[key] for key in dry.keys() - {"dry_run", "free_bytes", "free_inodes"}
    }
    gone = [item["id"] for item in went["collected"]]
    assert on_disk(daemon) == before - set(gone)
    assert not set(gone) & (used | pinned)
    candidates = [outputs[name] for name in names if outputs[name] not in used | pinned]
    assert gone == candidates[: len(gone)], "what was used least recently went first"
    assert 60 < len(gone) < 140
    assert [item["reason"] for item in went["collected"]] == ["size"] * len(gone)
    made = {outputs[name]: name for name in names}
    assert all(item["packages"][0].partition("@")[0] == made[item["id"]] for item in went["collected"])
    assert disk_usage(daemon) <= limit

    daemon.config_file.write_text(f"[cache]\nmax_bytes = {limit}\n")
    assert daemon.buildctl("reload").returncode == 0
    daemon.open_gate()
    view = daemon.wait(number)
    assert view.stats.success == 10
    assert view.stats.failed == view.stats.blocked == 0
    until(lambda: disk_usage(daemon) <= limit, "the limit holds", within=30)
    assert pinned <= on_disk(daemon)
    for name, depends in wanted.items():
        (content,) = Path(str(named(view, name).artifact)).glob(f"tree/**/app/{name}")
        assert set(content.read_text().split()) >= set(depends)
    again = daemon.build(repository)
    assert again.stats.failed == again.stats.blocked == 0
    assert again.stats.success >= len(gone), "what went is built again when it is wanted"


def test_artifacts_go_by_themselves_when_there_are_too_many(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"cache.max_bytes": "400KiB", "cache.collect_interval": "1s"})
    for n in range(12):
        library(repository, f"lib{n}", 50_000)
    repository.commit()
    for n in range(12):
        assert daemon.build(f"{repository}//lib{n}").state == "completed"
    until(lambda: disk_usage(daemon) <= 400 * 1024, "the limit holds", within=30)
    assert len(on_disk(daemon)) >= 4, "no more goes than must"

    def told() -> list[dict[str, Any]]:
        return [event["data"] for event in events(daemon, "artifacts_collected")]

    until(lambda: sum(d["artifacts"] for d in told()) == 12 - len(on_disk(daemon)), "all that went is told")
    data = told()
    assert all(d["freed_bytes"] > 0 and d["reasons"] == {"size": d["artifacts"]} for d in data)
    last = daemon.build(f"{repository}//lib11")
    assert last.stats.skipped == 1, "what was used most recently is still there"


def test_what_lies_unused_for_too_long_goes(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"cache.max_age": "1h", "cache.collect_interval": "1s"})
    library(repository, "old")
    library(repository, "new")
    repository.commit()
    view = daemon.build(repository)
    old, new = output_of(daemon, view, "old"), output_of(daemon, view, "new")
    os.utime(daemon.state_dir / "artifacts" / old[:2] / old / "manifest.json", (time.time() - 3601,) * 2)
    until(lambda: on_disk(daemon) == {new}, "the old one goes", within=30)


def test_a_limit_that_cannot_be_kept_is_said_with_what_stands_in_the_way(
    boot: Boot, repository: RecipeRepository
) -> None:
    daemon = boot()
    library(repository, "kept")
    library(repository, "used")
    application(repository, "app", ["used"], f"echo at the gate\n{daemon.at_gate()}")
    repository.commit()
    daemon.build(f"{repository}//kept")
    assert daemon.buildctl("artifacts", "pin", "kept", "--note", "for ever").returncode == 0
    number = daemon.start(f"{repository}//app")
    daemon.until_running(number, 1, saying="at the gate")
    done = daemon.buildctl("gc", "--max-bytes", "1")
    assert done.returncode == 1
    assert "more than 1 bytes, and what is left must stay: 1 pinned (" in done.stderr
    assert "1 in use (" in done.stderr
    listed = daemon.call("artifact.list")["artifacts"]
    assert {(a["packages"][0].partition("@")[0], a["in_use"], a["pinned"] is not None) for a in listed} == {
        ("kept", False, True),
        ("used", True, False),
    }
    assert any("for ever" in str(a["pinned"]) for a in listed)
    daemon.open_gate()
    assert daemon.wait(number).state == "completed"
    assert daemon.buildctl("artifacts", "unpin", "kept").returncode == 0
    assert gc(daemon, "--max-bytes", "1")["artifacts"] == 0
    assert on_disk(daemon) == set()


def test_releases_go_with_the_artifacts_whose_packed_forms_they_share(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    repository.package(
        "tool",
        formats=["tar"],
        phases={"stage": 'mkdir -p "$DESTDIR$PREFIX"; head -c 300000 /dev/urandom > "$DESTDIR$PREFIX/noise"'},
    )
    library(repository, "other")
    repository.commit()
    daemon.build(repository)
    number = daemon.start(repository)
    daemon.wait(number)
    releases = daemon.state_dir / "releases"
    assert len(os.listdir(releases)) == 2
    before = disk_usage(daemon)
    answer = gc(daemon, "--max-bytes", "1000")
    assert {item["kind"] for item in answer["collected"]} == {"artifact", "release"}
    assert os.listdir(releases) == []
    assert disk_usage(daemon) == 0
    assert answer["freed_bytes"] == before


def test_pins_outlive_the_database(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    library(repository, "kept")
    library(repository, "other")
    repository.commit()
    view = daemon.build(repository)
    output = output_of(daemon, view, "kept")
    daemon.call("artifact.pin", {"artifact": output[:12], "note": "for ever"})
    assert daemon.terminate() == 0
    daemon.expect("the database was missing")
    for path in daemon.state_dir.glob("buildd.db*"):
        path.unlink()
    daemon.boot()
    assert gc(daemon, "--max-bytes", "1", status=1)["artifacts"] == 1
    assert on_disk(daemon) == {output}
    shown = daemon.buildctl("artifacts", "show", output)
    assert "for ever" in shown.stdout
    assert "kept@" in shown.stdout, "its receipt says who made it"


def test_what_a_killed_collection_left_is_removed_at_the_next_start(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    library(repository, "lib")
    repository.commit()
    output = output_of(daemon, daemon.build(repository), "lib")
    daemon.kill9()
    directory = daemon.state_dir / "artifacts" / output[:2] / output
    directory.rename(directory.with_name(f".{output}.0123.tmp"))
    (daemon.state_dir / "releases").mkdir(exist_ok=True)
    (daemon.state_dir / "releases" / ".1.gone.tmp").mkdir()
    daemon.boot()
    assert daemon.work_directories() == []
    assert not (daemon.state_dir / "releases" / ".1.gone.tmp").exists()
    assert daemon.build(repository).stats.success == 1


def listener(port: int) -> socket.socket | None:
    """A server at a port, unless somebody has it yet."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def test_what_an_interrupted_run_has_built_is_not_collected_before_the_run_goes_on(
    boot: Boot, tmp_path: Path, git_server: GitServer
) -> None:
    repository = RecipeRepository(tmp_path / "served")
    library(repository, "lib")
    repository.package("app", depends=["lib"], phases={"build": "echo here; sleep 300"}).commit()
    daemon = boot(settings={"cache.min_free_bytes": 0})
    number = daemon.start(git_server.url(repository))
    daemon.until_running(number, 1, saying="here")
    built = named(daemon.run(number), "lib")
    daemon.kill9()
    for clone in (daemon.cache_dir / "repos").glob("*.git"):
        shutil.rmtree(clone)
    git_server.close()
    with until(lambda: listener(git_server.port), "the port is free"):  # it says nothing: the run cannot go on yet
        daemon.boot()
        until(lambda: daemon.status()["clones"], "the run waits for its clone")
        assert gc(daemon, "--max-bytes", "1", status=1)["collected"] == []
        assert on_disk(daemon) == {Path(str(built.artifact)).name}
        daemon.call("run.cancel", {"run": str(number)})
        assert daemon.wait(number).state == "cancelled"
    assert len(gc(daemon, "--max-bytes", "1")["collected"]) == 1


@pytest.mark.skipif(not can_mount(), reason="user namespaces that may mount are not to be had here")
def test_room_is_made_on_a_full_disk_and_the_build_that_found_it_full_succeeds(
    boot: Boot, repository: RecipeRepository
) -> None:
    stage = 'mkdir -p "$DESTDIR$PREFIX"; mv "$SRCDIR/big" "$DESTDIR$PREFIX/"'
    for n in range(9):
        repository.package(f"p{n}", files={"big": ""}, phases={"stage": stage})
        repository.write(f"p{n}/big", os.urandom(6 << 20))
    repository.commit()
    daemon = boot(ready=False, backend="plain", settings={"retry.delay": "1s", "cache.collect_interval": "1h"})
    daemon.expect("no space is left")  # a record of the database may be what finds the disk full
    daemon.state_dir.mkdir()
    mount = 'mount -t tmpfs -o size=30m none "$0" && exec "$@"'
    daemon.boot("unshare", "-rm", "sh", "-c", mount, str(daemon.state_dir))
    for n in range(9):
        view = daemon.build(f"{repository}//p{n}")
        assert view.state == "completed", daemon.log()[-2000:]
    assert "disk_full" in [event["data"]["reason"] for event in events(daemon, "package_failed")]
    told = [event["data"] for event in events(daemon, "artifacts_collected")]
    assert sum(data["artifacts"] for data in told) >= 5
    assert all(set(data["reasons"]) == {"free_space"} for data in told)
    assert len(daemon.call("artifact.list")["artifacts"]) <= 4


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(boot: Boot, repository: RecipeRepository) -> tuple[Daemon, Any]:
    """A library and an application that holds a copy of it, both built."""
    daemon = boot()
    daemon.expect("damaged artifact")
    library(repository, "lib", 300)
    application(repository, "app", ["lib"])
    repository.commit()
    view = daemon.build(repository)
    assert view.stats.success == 2
    return daemon, view


def change(repository: RecipeRepository, name: str) -> None:
    repository.write(f"{name}/README", f"changed at {time.time_ns()}\n").commit()


@pytest.mark.parametrize("restarted", [True, False], ids=["in another life", "in the same life"])
def test_a_damaged_artifact_is_built_again_and_never_used(
    pair: tuple[Daemon, Any], repository: RecipeRepository, restarted: bool
) -> None:
    daemon, view = pair
    path = file_of(daemon, view, "lib")
    good = path.read_bytes()
    flip(path, keep_time=restarted)
    if restarted:
        daemon.restart()
    change(repository, "app")
    again = daemon.build(repository)
    assert (named(again, "lib").state, named(again, "app").state) == ("success", "success")
    (copy,) = Path(str(named(again, "app").artifact)).glob("tree/**/app/app")
    assert copy.read_bytes() == good
    assert file_of(daemon, again, "lib").read_bytes() == good
    (kept,) = (daemon.state_dir / "artifacts/.damaged").iterdir()
    assert kept.name.startswith(output_of(daemon, view, "lib"))


def test_verify_finds_and_sets_aside_what_is_damaged(pair: tuple[Daemon, Any], repository: RecipeRepository) -> None:
    daemon, view = pair
    assert daemon.buildctl("artifacts", "verify").returncode == 0
    flip(file_of(daemon, view, "lib"))
    done = daemon.buildctl("artifacts", "verify")
    assert done.returncode == 1
    assert "lib/lib: its SHA-256 is " in done.stdout
    assert "1 artifact sound, 1 damaged" in done.stderr
    assert output_of(daemon, view, "lib") not in on_disk(daemon)
    (event,) = until(lambda: events(daemon, "artifact_damaged"), "it is told")
    assert event["data"]["output_id"] == output_of(daemon, view, "lib")
    assert event["data"]["packages"][0].startswith("lib@")
    assert Path(event["data"]["kept"]).is_dir()
    assert json.loads(daemon.buildctl("artifacts", "verify", "app", "--json").stdout)["damaged"] == 0
    assert daemon.buildctl("artifacts", "verify", "lib").returncode == 3
    again = daemon.build(repository)
    assert (named(again, "lib").state, named(again, "app").state) == ("success", "skipped")
    assert daemon.buildctl("artifacts", "verify").returncode == 0


def test_a_damaged_artifact_is_not_handed_out(
    pair: tuple[Daemon, Any], repository: RecipeRepository, tmp_path: Path
) -> None:
    daemon, view = pair
    flip(file_of(daemon, view, "lib"))
    done = daemon.buildctl("artifacts", "get", "lib", "-o", tmp_path / "out")
    assert done.returncode == 4
    assert "is damaged and was set aside" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(RpcError) as caught:
        daemon.call("artifact.export", {"artifact": "lib"})
    assert caught.value.code == 3
    daemon.build(repository)
    assert daemon.buildctl("artifacts", "get", "lib", "-o", tmp_path / "out").returncode == 0


def test_a_damaged_packed_form_is_packed_again(pair: tuple[Daemon, Any], tmp_path: Path) -> None:
    daemon, _ = pair
    export = daemon.call("artifact.export", {"artifact": "lib"})
    (packed,) = (daemon.state_dir / "artifacts").glob(f"??/*/{export['filename']}")
    good = packed.read_bytes()
    packed.write_bytes(good[:-20])
    assert daemon.call("artifact.export", {"artifact": "lib"})["sha256"] == export["sha256"]
    assert packed.read_bytes() == good


def test_an_artifact_that_is_being_fetched_is_not_collected(pair: tuple[Daemon, Any]) -> None:
    daemon, view = pair
    daemon.call("artifact.export", {"artifact": "lib"})
    answer = gc(daemon, "--max-bytes", "1", status=1)
    assert on_disk(daemon) == {output_of(daemon, view, "lib")}
    assert "1 in use" in answer["unmet"][0]["message"]
