"""The worker process: what it says, what it tells apart, and that it never outlives the daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from repos_servers import GIT_ENV, GitDaemon, StuckServer, git, make_repository
from test_repos_clones import House, running

import buildd
from buildd.repos.clones import CloneFailed, CloneSettings
from buildd.repos.failures import classify, clean
from buildd.repos.transfer import worker_argv, worker_environ
from buildd.repos.trees import GitStore
from buildd.repos.wire import Failure, Reply, Request

ROOT = str(Path(buildd.__file__).parent.parent)

DAEMON = """
import sys
import trio
from pathlib import Path
from buildd.repos.clones import Clones, CloneSettings

class Records:
    def all(self): return []
    def save(self, repository): pass
    def remove(self, url): pass

async def main(cache, url, transport):
    settings = CloneSettings(transport=transport)
    clones = Clones(Path(cache), settings, Records(), lambda *_: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(clones.run)
        clones.request(url)

trio.run(main, *sys.argv[1:])
"""


def processes_about(text: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status", "ppid"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["status"] != psutil.STATUS_ZOMBIE and (text in line):
            found.append(process)
    return found


@pytest.mark.parametrize("transport", ["git", "libgit2"])
def test_killing_the_daemon_kills_the_workers_and_what_they_started(
    tmp_path: Path, stuck_server: StuckServer, transport: str
) -> None:
    url = stuck_server.url()
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tmp_path), url, transport],
        env={**GIT_ENV, "PYTHONPATH": ROOT},
        start_new_session=True,
    )
    try:
        assert stuck_server.accepted.wait(20)
        family = psutil.Process(daemon.pid).children(recursive=True)
        assert len(family) == (2 if transport == "git" else 1)
    finally:
        daemon.kill()
        daemon.wait()
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert processes_about(url) == []


def ask(request: Request, **environ: str) -> Reply:
    done = subprocess.run(
        worker_argv(),
        input=msgspec.json.encode(request),
        env={**worker_environ(os.environ), **environ},
        capture_output=True,
        start_new_session=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    replies = [msgspec.json.decode(line, type=Reply) for line in done.stdout.splitlines()]
    return replies[-1]  # type: ignore[no-any-return]


def request_for(path: Path, **changes: object) -> Request:
    fields = {
        "operation": "clone",
        "parent_pid": os.getpid(),
        "scheme": "git",
        "url": "git://127.0.0.1:1/x",
        "origin": "git://127.0.0.1:1/x",
        "path": str(path),
        "transport": "git",
    }
    return msgspec.convert({**fields, **changes}, Request)


def test_a_worker_whose_daemon_is_gone_does_nothing(tmp_path: Path) -> None:
    reply = ask(request_for(tmp_path / "x", parent_pid=1))
    assert isinstance(reply, Failure)
    assert reply.kind == "interrupted"
    assert not (tmp_path / "x").exists()


def test_without_git_the_worker_falls_back_to_libgit2_unless_told_otherwise(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    wanted = {"url": server.url("one"), "origin": server.url("one")}
    reply = ask(request_for(tmp_path / "a", transport="git", **wanted), PATH="/nonexistent")
    assert isinstance(reply, Failure)
    assert "no git program" in reply.message
    reply = ask(request_for(tmp_path / "b", transport="auto", **wanted), PATH="/nonexistent")
    assert not isinstance(reply, Failure)
    assert len(GitStore(tmp_path / "b").resolve()) == 40


@pytest.mark.parametrize("transport", ["git", "libgit2"])
def test_only_the_protocol_of_the_request_is_spoken(tmp_path: Path, transport: str) -> None:
    marker = tmp_path / "marker"
    for url in (f"ext::touch {marker}", f"--upload-pack=touch {marker}"):
        reply = ask(request_for(tmp_path / "x", url=url, transport=transport))
        assert isinstance(reply, Failure)
    source = make_repository(tmp_path / "source")
    if transport == "git":
        assert isinstance(ask(request_for(tmp_path / "y", url=f"file://{source}")), Failure)
    assert not marker.exists()


def test_a_damaged_clone_does_not_make_git_write_into_a_repository_above(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one", branch="foreign")
    above = make_repository(tmp_path / "above")
    (above / "broken.git").mkdir()
    reply = ask(request_for(above / "broken.git", operation="fetch", url=server.url("one")))
    assert isinstance(reply, Failure)
    assert git("branch", "--format=%(refname:short)", cwd=above) == "main"


async def test_a_shallow_source_is_cloned_by_git_and_fails_cleanly_with_libgit2(
    tmp_path: Path, server: GitDaemon
) -> None:
    source = make_repository(tmp_path / "deep")
    git("commit", "-q", "--allow-empty", "-m", "second", cwd=source)
    git("clone", "-q", "--bare", "--depth=1", f"file://{source}", server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        clones.reconfigure(CloneSettings(transport="libgit2"))
        with pytest.raises(CloneFailed):
            await clones.ensure(server.url("one"))
        assert house.on_disk() == []
        clones.reconfigure(CloneSettings(transport="git"))
        repository = await clones.ensure(server.url("one"))
        assert GitStore(Path(repository.path)).resolve() == git("rev-parse", "HEAD", cwd=source)


async def test_configuration_of_the_user_is_not_read(
    tmp_path: Path, server: GitDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_repository(server.root / "one")
    home = tmp_path / "home"
    home.mkdir()
    template = home / "template/hooks"
    template.mkdir(parents=True)
    hook = template / "reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/marker\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\nhooksPath={template}\n[init]\ntemplateDir={home}/template\n"
        f'[url "git://127.0.0.1:1/"]\ninsteadOf = {server.url("")}\n'
    )
    monkeypatch.setenv("HOME", str(home))
    for transport in ("git", "libgit2"):
        house = House(tmp_path / transport, transport=transport)
        (tmp_path / transport).mkdir()
        async with running(house) as clones:
            repository = await clones.ensure(server.url("one"))
            await clones.ensure(server.url("one"), refresh=True)
            assert GitStore(Path(repository.path)).resolve() == git("rev-parse", "HEAD", cwd=source)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("fatal: write error: No space left on device", "disk_full"),
        ("error: file write error: Disk quota exceeded fatal: index-pack failed", "disk_full"),
        ("SSL certificate problem: unable to get local issuer certificate", "tls"),
        ("GnuTLS recv error (-110): The TLS connection was non-properly terminated.", "network"),
        ("remote: HTTP Basic: Access denied fatal: Authentication failed for 'https://h/x/'", "auth"),
        ("The requested URL returned error: 403", "auth"),
        ("fatal: repository 'https://h/x/' not found", "not_found"),
        ("fatal: unable to look up h (port 9418) (Name or service not known)", "network"),
        ("fetch-pack: unexpected disconnect while reading sideband packet fatal: early EOF", "network"),
        ("fatal: something new", "other"),
    ],
)
def test_messages_of_git_tell_the_kind_of_failure(message: str, kind: str) -> None:
    assert classify(message) == kind


def test_messages_are_cleaned_of_secrets_and_control_characters() -> None:
    assert clean("a\x1b[31m b\n\tc hunter2 d", ("hunter2",)) == "a [31m b c *** d"
    assert len(clean("x" * 5000)) == 1000
