"""Maps of repositories through the real daemon: made once, killed without a trace, told as they are."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, GitServer, RecipeRepository, rpc, until
from harness.processes import alive, with_environment

from buildd.execute.leftovers import DAEMON_COOKIE, house

MANY = 1500
"""Files that take a while to look into, so that there is a moment to interfere."""


def code(repository: RecipeRepository) -> RecipeRepository:
    """A small program: everything leans on `parse_url`, a test on everything."""
    repository.write("src/urls.py", "class Url:\n    pass\n\n\ndef parse_url(text):\n    return Url()\n")
    for name in ("fetch", "serve", "store"):
        text = f"from urls import parse_url\n\n\ndef {name}_page(text):\n    return parse_url(text)\n"
        repository.write(f"src/{name}.py", text)
    repository.write("tests/test_urls.py", "def test_urls():\n    parse_url(fetch_page(serve_page(store_page())))\n")
    repository.write("picture.bin", b"\0\1\2")
    repository.commit()
    return repository


def large(repository: RecipeRepository, files: int = MANY) -> RecipeRepository:
    for number in range(files):
        body = "".join(f"def f{number}_{i}(a, b):\n    return f{number - 1}_{i}(b, a)\n\n" for i in range(40))
        repository.write(f"d{number % 20}/m{number}.py", body)
    repository.commit()
    return repository


def map_processes(daemon: Daemon) -> list[int]:
    """Living processes that make or read maps for this daemon."""
    ours = house(daemon.state_dir) + "-"
    found = with_environment(lambda variables: variables.get(DAEMON_COOKIE, "").startswith(ours))
    return [pid for pid in found if b"repomap" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def made(daemon: Daemon, repository: object, revision: str = "") -> dict[str, Any]:
    """The status of a map when its making has ended."""
    params = {"repo": str(repository), "revision": revision}
    daemon.call("map.request", params)
    return until(lambda: _ended(daemon, params), "the map is made", within=60)


def _ended(daemon: Daemon, params: dict[str, str]) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = daemon.call("map.status", params)
    except rpc.RpcError as error:
        assert error.code == 3  # it is begun in a moment
        return None
    return status if status["status"] != "building" else None


def begun(daemon: Daemon, repository: object) -> dict[str, Any]:
    """The status of a map that a process is making."""
    answer = daemon.call("map.request", {"repo": str(repository)})
    assert answer["status"] == "accepted"
    return until(lambda: _with_pid(daemon, repository), "a process makes the map")


def _with_pid(daemon: Daemon, repository: object) -> dict[str, Any] | None:
    status: dict[str, Any] = daemon.call("map.status", {"repo": str(repository)})
    assert status["status"] == "building"
    return status if status["pid"] else None


def left(daemon: Daemon) -> list[Path]:
    return list((daemon.cache_dir / "maps" / ".incoming").iterdir())


def published(daemon: Daemon) -> list[Path]:
    return [path for path in (daemon.cache_dir / "maps").glob("*/*") if path.parent.name != ".incoming"]


# --- what people see --------------------------------------------------------------------------------------


def test_the_map_of_a_repository_is_printed_under_its_budget(daemon: Daemon, repository: RecipeRepository) -> None:
    code(repository)
    done = daemon.buildctl("map", str(repository))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("src/urls.py")
    assert "def parse_url(text)" in done.stdout
    small = json.loads(daemon.buildctl("map", str(repository), "--tokens", "40", "--json").stdout)
    assert 0 < small["tokens"] <= 40
    assert len(small["text"]) < len(done.stdout)
    focused = daemon.buildctl("map", str(repository), "--mention", "store_page", "--mention", "nothing_has_it")
    assert focused.stdout.index("src/store.py") < focused.stdout.index("src/fetch.py")
    assert "nothing is called nothing_has_it" in focused.stderr


def test_definitions_references_and_files_are_told(daemon: Daemon, repository: RecipeRepository) -> None:
    code(repository)
    tags = [
        json.loads(line) for line in daemon.buildctl("map", str(repository), "--format", "jsonl").stdout.splitlines()
    ]
    (parse,) = (tag for tag in tags if tag["name"] == "parse_url")
    expected = {"path": "src/urls.py", "kind": "function", "line": 5, "end_line": 6, "parent": ""}
    assert {key: parse[key] for key in expected} == expected
    assert parse["score"] == max(tag["score"] for tag in tags)
    ctags = daemon.buildctl("map", str(repository), "--format", "ctags").stdout.splitlines()
    assert any(line.startswith("parse_url\tsrc/urls.py\t") for line in ctags)
    found = daemon.buildctl("map", "tags", str(repository), "*_page", "--path", "src", "--kind", "function")
    assert sorted(line.split(":")[0] for line in found.stdout.splitlines()) == [
        "src/fetch.py", "src/serve.py", "src/store.py",
    ]  # fmt: skip
    refs = daemon.buildctl("map", "refs", str(repository), "parse_url").stdout
    assert "defined src/urls.py:5: def parse_url(text)" in refs
    assert "src/store.py:5: return parse_url(text)" in refs
    files = daemon.buildctl("repo", "files", str(repository)).stdout.splitlines()
    assert files[1].endswith("src/urls.py")
    assert [line.split()[2] for line in files if line.endswith("test_urls.py")] == ["test"]
    status = daemon.buildctl("map", "status", str(repository)).stdout
    assert "left out     1 binary" in status
    wrong = daemon.buildctl("map", str(repository), "--format", "ctags", "--tokens", "10")
    assert wrong.returncode == 2


def test_what_cannot_be_answered_says_why(daemon: Daemon, repository: RecipeRepository, tmp_path: Path) -> None:
    code(repository)
    assert daemon.buildctl("map", str(tmp_path)).returncode == 3
    assert daemon.buildctl("map", f"{repository}@nowhere").returncode == 3
    early = daemon.buildctl("map", "tags", str(repository))
    assert early.returncode == 3
    assert made(daemon, repository)["status"] == "complete"
    for tokens in (0, 1_000_000):
        assert daemon.buildctl("map", str(repository), "--tokens", str(tokens)).returncode == 2
    too_long = daemon.buildctl("map", str(repository), *(f"--mention={'x' * 1000}{n}" for n in range(100)))
    assert too_long.returncode == 2
    assert "the question is too long" in too_long.stderr
    assert daemon.buildctl("map", "cancel", str(repository)).returncode == 3


def test_a_repository_is_cloned_for_its_map_and_every_change_is_mapped(
    boot: Callable[..., Daemon], git_server: GitServer, repository: RecipeRepository
) -> None:
    daemon = boot(settings={"maps.automatic": "true"})
    url = git_server.url(code(repository))
    done = daemon.buildctl("map", url)
    assert done.returncode == 0, done.stderr
    assert "def parse_url(text)" in done.stdout
    first = daemon.call("repo.status", {"repo": url})["repo_map_status"]
    assert first["status"] == "complete"
    assert first["parsed"] == first["files"]
    repository.write("src/fetch.py", "def fetch_anew():\n    return parse_url('')\n")
    head = repository.commit()
    daemon.call("repo.refresh", {"repo": url})
    second = until(lambda: _ended(daemon, {"repo": url, "revision": head}), "the new commit is mapped")
    assert (second["status"], second["parsed"]) == ("complete", 1)
    assert daemon.call("repo.delete", {"repo": url})["ok"]
    assert published(daemon) == left(daemon) == []
    assert daemon.call("map.list")["maps"] == []


def test_a_file_is_looked_into_once_whatever_repository_it_is_in(daemon: Daemon, tmp_path: Path) -> None:
    first, second = (code(RecipeRepository(tmp_path / name)) for name in ("first", "second"))
    second.write("only_here.py", "def only_here():\n    pass\n")
    second.commit()
    assert made(daemon, first)["status"] == "complete"
    assert made(daemon, second)["parsed"] == 1


# --- who asks, and how often ------------------------------------------------------------------------------


def test_eight_who_ask_at_once_get_one_map(daemon: Daemon, repository: RecipeRepository) -> None:
    code(repository)
    daemon.buildctl("repo", "branches", str(repository))
    after = daemon.call("events.poll", {"after": -1})["next"]
    together = threading.Barrier(8)

    def ask(_: int) -> dict[str, Any]:
        together.wait()
        answer: dict[str, Any] = rpc.call(
            daemon.socket, "map.get", {"repo": str(repository), "timeout": 30}, timeout=60
        )
        return answer

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert len({answer["text"] for answer in answers}) == 1
    assert len({answer["repo_map_status"]["build_id"] for answer in answers}) == 1
    assert len(daemon.events(None, "map_started", after=after)) == 1


def test_the_text_that_was_written_with_a_map_is_told_without_reading_the_map_again(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    status = made(daemon, code(repository))
    place = Path(status["output_path"])
    (place / "index").unlink()
    found = daemon.call("map.get", {"repo": str(repository)})
    assert found["text"] == (place / "map.txt").read_text()
    assert found["files"] >= 4
    assert daemon.call("map.status", {"repo": str(repository)})["build_id"] == status["build_id"]


def test_a_map_that_is_made_again_under_other_limits_has_other_answers(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    code(repository)
    repository.write("src/large.py", "def large_thing():\n    pass\n" + "# \n" * 2000)
    repository.commit()
    first = made(daemon, repository)
    asked = {"repo": str(repository), "name": "large_thing"}
    assert daemon.call("map.tags", asked)["total"] == 1
    assert "large_thing" in daemon.call("map.get", {"repo": str(repository)})["text"]
    daemon.config_file.write_text('[maps]\nmax_file_bytes = "2KB"\n')
    daemon.call("daemon.reload")
    daemon.call("map.request", {"repo": str(repository), "again": True})
    second = until(lambda: _ended(daemon, {"repo": str(repository)}), "the map is made again", within=60)
    assert second["build_id"] != first["build_id"]
    assert daemon.call("map.tags", asked)["total"] == 0
    assert "large_thing" not in daemon.call("map.get", {"repo": str(repository)})["text"]


def test_old_maps_go_and_the_last_used_stay(boot: Callable[..., Daemon], repository: RecipeRepository) -> None:
    daemon = boot(settings={"maps.keep": 2})
    commits = []
    for number in range(4):
        repository.write("a.py", f"def f{number}():\n    pass\n")
        commits.append(repository.commit())
        assert made(daemon, repository, commits[-1])["status"] == "complete"
        if number == 2:
            daemon.call("map.get", {"repo": str(repository), "revision": commits[1]})
    until(lambda: len(published(daemon)) == 2, "two are kept")
    assert {path.name for path in published(daemon)} == {commits[1], commits[3]}
    daemon.restart()
    assert {status["commit"] for status in daemon.call("map.list")["maps"]} == {commits[1], commits[3]}


# --- what goes wrong --------------------------------------------------------------------------------------


def test_a_map_that_is_cancelled_leaves_nothing(daemon: Daemon, repository: RecipeRepository) -> None:
    large(repository)
    status = begun(daemon, repository)
    started = time.monotonic()
    assert daemon.buildctl("map", "cancel", str(repository)).returncode == 0
    assert not map_processes(daemon)
    assert time.monotonic() - started < 5
    assert not alive(status["pid"])
    ended = daemon.call("map.status", {"repo": str(repository)})
    assert (ended["status"], ended["error"], ended["pid"]) == ("failed", "cancelled", None)
    assert left(daemon) == []
    assert ended["output_path"] is None
    daemon.expect("no map was made")


def test_a_map_whose_process_is_killed_fails_and_is_made_when_it_is_asked_for_again(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    large(repository)
    status = begun(daemon, repository)
    os.kill(status["pid"], signal.SIGKILL)
    failed = until(lambda: _ended(daemon, {"repo": str(repository)}), "it is told")
    assert failed["status"] == "failed"
    assert "was killed by signal 9" in failed["error"]
    assert not map_processes(daemon)
    assert left(daemon) == []
    daemon.expect("no map was made")
    assert made(daemon, repository)["status"] == "complete"


def test_a_map_that_takes_longer_than_it_may_fails(boot: Callable[..., Daemon], repository: RecipeRepository) -> None:
    daemon = boot(settings={"maps.timeout": "2s"})
    large(repository)
    status = begun(daemon, repository)
    os.kill(status["pid"], signal.SIGSTOP)
    failed = until(lambda: _ended(daemon, {"repo": str(repository)}), "it is told")
    assert (failed["status"], failed["error"]) == ("failed", "the map process took longer than 2 s")
    assert not map_processes(daemon)
    assert left(daemon) == []
    daemon.expect("no map was made")


@pytest.mark.parametrize("how", ["killed", "machine down"])
def test_a_map_that_was_being_made_when_the_daemon_died_has_failed(
    boot: Callable[..., Daemon], repository: RecipeRepository, how: str
) -> None:
    daemon = boot()
    large(repository)
    begun(daemon, repository)
    daemon.kill9()
    until(lambda: not map_processes(daemon), "its processes are gone", within=5)
    if how == "machine down":
        life = daemon.state_dir / "life.json"
        life.write_text(json.dumps({**json.loads(life.read_text()), "boot_id": "another"}))
    daemon.boot()
    (failed,) = daemon.call("map.list")["maps"]
    cause = {"killed": "the daemon was killed", "machine down": "the machine went down"}[how]
    assert (failed["status"], failed["error"]) == ("failed", f"interrupted: {cause} while the map was made")
    assert left(daemon) == published(daemon) == []
    until(lambda: daemon.events(None, "map_failed"), "it is told")
    daemon.expect("no map was made")
    assert made(daemon, repository)["status"] == "complete"


def test_the_daemon_stops_at_once_while_maps_are_made(
    boot: Callable[..., Daemon], repository: RecipeRepository
) -> None:
    daemon = boot()
    large(repository)
    begun(daemon, repository)
    assert daemon.terminate(within=5) == 0
    assert not map_processes(daemon)
    assert left(daemon) == []
    daemon.boot()
    (failed,) = daemon.call("map.list")["maps"]
    assert failed["error"] == "interrupted: the daemon ended while the map was made"
    daemon.expect("no map was made")


def test_a_damaged_map_is_made_again(daemon: Daemon, repository: RecipeRepository) -> None:
    code(repository)
    status = made(daemon, repository)
    index = Path(status["output_path"]) / "index"
    index.write_bytes(b"\0" * index.stat().st_size)
    found = daemon.call("map.tags", {"repo": str(repository), "name": "parse_url"}, timeout=60)
    assert [tag["path"] for tag in found["tags"]] == ["src/urls.py"]
    daemon.expect("a map is damaged, and is made again")


def test_a_map_that_vanished_while_the_daemon_was_down_is_not_told_as_there(
    boot: Callable[..., Daemon], repository: RecipeRepository
) -> None:
    daemon = boot()
    status = made(daemon, code(repository))
    assert daemon.terminate() == 0
    place = Path(status["output_path"])
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    stranger = daemon.cache_dir / "maps" / "stranger" / "0123"
    stranger.mkdir(parents=True)
    daemon.boot()
    assert daemon.call("map.list")["maps"] == []
    assert not stranger.exists()
    assert made(daemon, repository)["status"] == "complete"
