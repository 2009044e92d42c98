"""Credentials reach the server they are for, and nothing else."""

from __future__ import annotations

import base64
import os
import shutil
import ssl
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from repos_servers import GIT_ENV, HttpServer, git, make_repository
from test_repos_clones import House, running

from buildd.repos.clones import CloneFailed
from buildd.repos.trees import GitStore

Servers = Callable[[Path], HttpServer]
SECRET = "s3cret-t0ken"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(params=["git", "libgit2"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def http(tmp_path: Path, http_servers: Servers) -> HttpServer:
    make_repository(tmp_path / "served/one")
    return http_servers(tmp_path / "served")


@pytest.fixture
def https(tmp_path: Path, http: HttpServer, monkeypatch: pytest.MonkeyPatch) -> HttpServer:
    """The same server with a certificate that only `tmp_path/ca.pem` vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", "key.pem", "-out", "ca.pem", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    return http


def shown(house: House, logs: list[dict[str, object]]) -> str:
    return repr((house.events, house.records.saved, logs, house.clones.list()))


async def test_credentials_in_a_url_are_used_and_never_shown(tmp_path: Path, http: HttpServer, transport: str) -> None:
    http.authorization = basic("user", SECRET)
    house = House(tmp_path, transport=transport)
    with structlog.testing.capture_logs() as logs:
        async with running(house) as clones:
            url = f"http://user:{SECRET}@127.0.0.1:{http.port}/one"
            repository = await clones.ensure(url)
            await clones.ensure(repository.url, refresh=True)  # remembered as long as the daemon lives
            assert len(GitStore(Path(repository.path)).resolve()) == 40
            assert SECRET not in shown(house, logs)
    on_disk = b"".join(p.read_bytes() for p in house.cache.rglob("*") if p.is_file())
    assert SECRET.encode() not in on_disk
    assert house.commands
    assert SECRET not in str(house.commands)


async def test_refused_credentials_are_an_auth_failure(tmp_path: Path, http: HttpServer, transport: str) -> None:
    http.authorization = basic("user", "another")
    house = House(tmp_path, transport=transport)
    with structlog.testing.capture_logs() as logs:
        async with running(house) as clones:
            for login in ("", f"user:{SECRET}@"):
                with pytest.raises(CloneFailed) as caught:
                    await clones.ensure(f"http://{login}127.0.0.1:{http.port}/one")
                assert caught.value.kind == "auth"
                assert "token" in caught.value.hint
                assert SECRET not in str(caught.value)
    assert SECRET not in shown(house, logs)
    assert len(http.authorizations) < 20


async def test_a_missing_repository_on_a_web_server_is_not_found(
    tmp_path: Path, http: HttpServer, transport: str
) -> None:
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        with pytest.raises(CloneFailed) as caught:
            await clones.ensure(f"http://127.0.0.1:{http.port}/missing")
        assert caught.value.kind == "not_found"


async def test_a_redirect_to_another_host_gets_no_credentials(
    tmp_path: Path, http: HttpServer, http_servers: Servers, transport: str
) -> None:
    other = http_servers(http.root)
    other.authorization = "Basic never"
    http.authorization = basic("user", SECRET)
    http.redirect_to = f"http://127.0.0.1:{other.port}"
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        with pytest.raises(CloneFailed):
            await clones.ensure(f"http://user:{SECRET}@127.0.0.1:{http.port}/one")
    assert other.authorizations
    assert set(other.authorizations) == {""}


async def test_a_token_file_serves_its_host_over_tls(
    tmp_path: Path, https: HttpServer, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    token = tmp_path / "token"
    token.write_text(f"robot:{SECRET}\n")
    token.chmod(0o600)
    https.authorization = basic("robot", SECRET)
    house = House(tmp_path, transport=transport, tokens={f"127.0.0.1:{https.port}": str(token)})
    async with running(house) as clones:
        repository = await clones.ensure(f"https://127.0.0.1:{https.port}/one")
        assert len(GitStore(Path(repository.path)).resolve()) == 40


async def test_an_untrusted_certificate_ends_the_clone(tmp_path: Path, https: HttpServer, transport: str) -> None:
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        with pytest.raises(CloneFailed) as caught:
            await clones.ensure(f"https://127.0.0.1:{https.port}/one")
        assert caught.value.kind == "tls"
    assert https.authorizations == []


async def test_a_token_from_a_file_is_not_sent_in_the_clear(tmp_path: Path, http: HttpServer) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    token.chmod(0o600)
    http.authorization = basic("x-access-token", SECRET)
    house = House(tmp_path, tokens={f"127.0.0.1:{http.port}": str(token)})
    async with running(house) as clones:
        with pytest.raises(CloneFailed):
            await clones.ensure(f"http://127.0.0.1:{http.port}/one")
    assert set(http.authorizations) == {""}


@pytest.mark.parametrize(("content", "mode"), [("", 0o600), ("two\nlines", 0o600), (SECRET, 0o644), (None, 0o600)])
async def test_a_token_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, mode: int) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
        token.chmod(mode)
    house = House(tmp_path, tokens={"example.invalid": str(token)})
    async with running(house) as clones:
        with pytest.raises(CloneFailed, match="token file") as caught:
            await clones.ensure("https://example.invalid/x")
        assert str(token) in caught.value.message
        assert SECRET not in str(caught.value)


FAKE_SSH = """#!/bin/sh
# Takes the options that buildd gives to ssh and runs the remote command here.
printf '%s\\n' "$*" >> "{log}"
test -e "{refuse}" && {{ cat "{refuse}" >&2; exit 255; }}
for last; do :; done
exec sh -c "$last"
"""


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "ssh"
    script.write_text(FAKE_SSH.format(log=tmp_path / "ssh.log", refuse=tmp_path / "refuse"))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


async def test_ssh_checks_host_keys_and_uses_the_given_key_only(fake_ssh: Path) -> None:
    source = make_repository(fake_ssh / "served")
    house = House(fake_ssh, transport="git", ssh_key="/keys/id", known_hosts="/etc/buildd/known hosts")
    async with running(house) as clones:
        repository = await clones.ensure(f"git@example.org:{source}")
        assert GitStore(Path(repository.path)).resolve() == git("rev-parse", "HEAD", cwd=source)
    [line] = (fake_ssh / "ssh.log").read_text().splitlines()
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "-i /keys/id"):
        assert option in line
    assert 'UserKnownHostsFile="/etc/buildd/known hosts"' in line


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Host key verification failed.", "host_key"),
        ("git@example.org: Permission denied (publickey).", "auth"),
        ("ssh: Could not resolve hostname example.org: Name or service not known", "network"),
        ("ssh: connect to host example.org port 22: Connection timed out", "network"),
        ("ERROR: Repository not found.", "not_found"),
        ("kex_exchange_identification: Connection closed by remote host", "network"),
    ],
)
async def test_what_ssh_says_tells_the_kind_of_failure(fake_ssh: Path, words: str, kind: str) -> None:
    (fake_ssh / "refuse").write_text(words + "\n")
    house = House(fake_ssh, transport="git")
    async with running(house) as clones:
        with pytest.raises(CloneFailed) as caught:
            await clones.ensure("ssh://git@example.org/x")
        assert caught.value.kind == kind
        assert words.split(":")[0].split()[0] in caught.value.message


def test_the_environment_of_the_tests_has_no_configuration() -> None:
    assert GIT_ENV["GIT_CONFIG_GLOBAL"] == "/dev/null"
