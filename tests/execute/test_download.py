"""Distfiles: fetched once, verified always, and nothing left behind when it fails; against real servers."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from execute_server import CONTENT, SHA256, Server, serving

from buildd.errors import BuildFailure
from buildd.execute.download import DistfileCache, FetchSettings
from buildd.execute.transport import Proxies, redacted
from buildd.model import Source


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DistfileCache]]:
    """Makes the cache; at the end, nothing but whole files may be in it."""

    def call(**fields: object) -> DistfileCache:
        values = {"backoff": 0.01, "schemes": ("https", "http", "file")} | fields
        return DistfileCache(tmp_path / "distfiles", FetchSettings(**values))  # type: ignore[arg-type]

    yield call
    for path in (tmp_path / "distfiles").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


Make = Callable[..., DistfileCache]


def source(url: str, sha256: str = SHA256) -> Source:
    return Source(url=url, sha256=sha256, filename="pkg-1.0.tar.gz")


async def fails(cache: DistfileCache, wanted: Source, reason: str = "fetch_failed") -> BuildFailure:
    with pytest.raises(BuildFailure) as caught:
        await cache.fetch(wanted, lambda line: None)
    assert caught.value.reason == reason
    return caught.value


@pytest.mark.parametrize("kind", ["file", "close", "chunked"])
@pytest.mark.trio
async def test_a_file_is_fetched_once_and_then_comes_from_the_cache(kind: str, server: Server, make: Make) -> None:
    lines: list[str] = []
    cache = make()
    wanted = source(f"{server.url}/{kind}/x")
    path = await cache.fetch(wanted, lines.append)
    assert path == cache.path(SHA256)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o444
    assert await cache.fetch(wanted, lines.append) == path
    assert await make().fetch(wanted, lines.append) == path
    await cache.verify(wanted)
    assert server.requests == [f"/{kind}/x"]
    assert lines == [f"fetching {server.url}/{kind}/x"]


@pytest.mark.trio
async def test_a_local_file_is_fetched_if_that_is_allowed(tmp_path: Path, make: Make) -> None:
    (tmp_path / "a b.tar").write_bytes(CONTENT)
    url = (tmp_path / "a b.tar").as_uri()
    failure = await fails(make(schemes=("https",)), source(url))
    assert "URLs with the scheme 'file' are not allowed" in failure.message
    await make().fetch(source(url), lambda line: None)
    missing = await fails(make(), source((tmp_path / "none").as_uri(), "0" * 64))
    assert "No such file" in missing.message
    device = await fails(make(), source("file:///dev/zero", "0" * 64))
    assert "is not a regular file" in device.message
    remote = await fails(make(), source("file://other/etc/passwd", "0" * 64))
    assert "is not a local file" in remote.message


@pytest.mark.trio
async def test_a_mismatch_names_both_hashes_and_the_url(server: Server, make: Make) -> None:
    failure = await fails(make(), source(f"{server.url}/wrong/x"), "checksum_mismatch")
    assert SHA256 in failure.message
    assert hashlib.sha256(b"something else").hexdigest() in failure.message
    assert f"{server.url}/wrong/x" in failure.message
    assert server.requests == ["/wrong/x"]


@pytest.mark.trio
async def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, make: Make) -> None:
    wanted = source(f"{server.url}/file/x")
    cache = make()
    path = await cache.fetch(wanted, lambda line: None)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    lines: list[str] = []
    await cache.fetch(wanted, lines.append)
    assert path.read_bytes() == CONTENT
    assert lines[0] == "pkg-1.0.tar.gz in the cache is damaged; fetching it again"


@pytest.mark.trio
async def test_the_checksum_phase_hashes_anew_and_removes_what_is_wrong(server: Server, make: Make) -> None:
    wanted = source(f"{server.url}/file/x")
    cache = make()
    path = await cache.fetch(wanted, lambda line: None)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    with pytest.raises(BuildFailure, match=SHA256) as caught:
        await cache.verify(wanted)
    assert caught.value.reason == "checksum_mismatch"
    assert not path.exists()
    with pytest.raises(BuildFailure, match="no file"):
        await cache.verify(wanted)


@pytest.mark.trio
async def test_leftovers_of_a_killed_daemon_are_removed_at_start(tmp_path: Path, make: Make) -> None:
    (tmp_path / "distfiles").mkdir()
    (tmp_path / f"distfiles/.{SHA256}.0123.part").write_bytes(b"half")
    make()
    assert list((tmp_path / "distfiles").iterdir()) == []


# --- sharing ---


@pytest.mark.trio
async def test_concurrent_requests_for_one_hash_share_one_download(server: Server, make: Make) -> None:
    cache = make()
    lines: list[str] = []
    paths = []

    async def fetch() -> None:
        paths.append(await cache.fetch(source(f"{server.url}/gate/x"), lines.append))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(fetch)
        await trio.to_thread.run_sync(server.wait_for_requests, 1)
        server.gate.set()
    assert paths == [cache.path(SHA256)] * 5
    assert server.requests == ["/gate/x"]
    assert lines.count("waiting for pkg-1.0.tar.gz, which another build is fetching") == 4


@pytest.mark.trio
async def test_a_failure_is_shared_too(server: Server, make: Make) -> None:
    cache = make(retries=2)
    url = f"{server.url}/status/503/99"
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(fails, cache, source(url))
    assert len(server.requests) == 3
    await fails(cache, source(url))
    assert len(server.requests) == 6


@pytest.mark.trio
async def test_when_the_one_who_fetches_is_cancelled_another_takes_over(server: Server, make: Make) -> None:
    cache = make()
    wanted = source(f"{server.url}/gate/x")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as inner:
                inner.start_soon(cache.fetch, wanted, lambda line: None)
                await trio.to_thread.run_sync(server.wait_for_requests, 1)
                nursery.start_soon(cache.fetch, wanted, lambda line: None)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
        server.gate.set()
    assert cache.path(SHA256).read_bytes() == CONTENT
    assert server.requests == ["/gate/x", "/gate/x"]


# --- trouble ---


@pytest.mark.parametrize(
    "path", ["status/503/2", "status/429/2", "status/408/1", "reset/rst", "reset/fin", "chunked/short"]
)
@pytest.mark.trio
async def test_what_may_pass_is_tried_again(path: str, server: Server, make: Make) -> None:
    lines: list[str] = []
    cache = make(retries=2)
    await cache.fetch(source(f"{server.url}/{path}"), lines.append)
    assert cache.path(SHA256).read_bytes() == CONTENT
    assert any(line.endswith("trying again in 0 s") for line in lines)


@pytest.mark.parametrize(
    "path",
    [
        *(f"status/{status}/9" for status in (408, 425, 429, 500, 502, 503, 504, 507, 524)),
        "stall/x",
        "chunked/short",
        "reset/rst",
        "reset/fin",
    ],
)
@pytest.mark.trio
async def test_a_failure_that_may_pass_is_marked_so(path: str, server: Server, make: Make) -> None:
    failure = await fails(make(retries=0, idle_timeout=0.3), source(f"{server.url}/{path}"))
    assert failure.transient


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501, 505])
@pytest.mark.trio
async def test_a_refusal_is_marked_as_one_that_stays(status: int, server: Server, make: Make) -> None:
    failure = await fails(make(retries=2), source(f"{server.url}/status/{status}/9"))
    assert not failure.transient
    assert len(server.requests) == 1


@pytest.mark.trio
async def test_a_server_that_hangs_up_in_the_tls_handshake_may_be_back_later(make: Make) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, hang_up)
            failure = await fails(make(retries=0), source(f"https://127.0.0.1:{listener.getsockname()[1]}/x"))
    assert failure.transient


@pytest.mark.trio
async def test_a_failure_may_pass_when_that_of_a_mirror_may(server: Server, make: Make) -> None:
    gone = source(f"{server.url}/missing/upstream")
    busy = make(retries=0, mirrors=(f"{server.url}/status/503/9", f"{server.url}/missing"))
    failure = await fails(busy, gone)
    assert "404" in failure.message
    assert failure.transient
    wrong = await fails(busy, source(f"{server.url}/wrong/upstream"), "checksum_mismatch")
    assert not wrong.transient
    assert not (await fails(make(mirrors=(f"{server.url}/missing",)), gone)).transient


@pytest.mark.trio
async def test_those_who_share_a_failure_hear_whether_it_may_pass(server: Server, make: Make) -> None:
    cache = make(retries=0)
    failures = []

    async def fetch(path: str) -> None:
        failures.append((await fails(cache, source(f"{server.url}/{path}"))).transient)

    for path in ("status/503/9", "missing"):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fetch, path)
    assert failures == [True] * 3 + [False] * 3
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "the server answered 404"),
        ("status/403/9", "the server answered 403"),
        ("status/501/9", "the server answered 501"),
        ("loop/0", "more than 8 redirects"),
        ("redirect/file:///etc/passwd", "redirects to a local file"),
        ("redirect/ftp://127.0.0.1/x", "URLs with the scheme 'ftp' are not allowed"),
    ],
)
@pytest.mark.trio
async def test_what_will_not_pass_is_not_tried_again(path: str, message: str, server: Server, make: Make) -> None:
    failure = await fails(make(), source(f"{server.url}/{path}"))
    assert message in failure.message
    assert len(server.requests) == len(set(server.requests))


@pytest.mark.trio
async def test_a_stalled_server_is_given_up_after_the_idle_timeout(server: Server, make: Make) -> None:
    failure = await fails(make(retries=1, idle_timeout=0.3), source(f"{server.url}/stall/x"))
    assert "no data came for 0.3 s" in failure.message
    assert len(server.requests) == 2


@pytest.mark.trio
async def test_the_total_timeout_bounds_everything(server: Server, make: Make) -> None:
    failure = await fails(make(total_timeout=0.3), source(f"{server.url}/endless/x"))
    assert "was not fetched within 0.3 s" in failure.message
    assert failure.transient


@pytest.mark.trio
async def test_a_server_that_does_not_accept_is_given_up_after_the_connect_timeout(make: Make) -> None:
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # fill the backlog: the kernel then drops further SYNs
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        failure = await fails(
            make(retries=0, connect_timeout=0.3), source(f"http://127.0.0.1:{listener.getsockname()[1]}/x")
        )
    assert "no connection was made in time" in failure.message
    assert failure.transient


@pytest.mark.trio
async def test_a_refused_connection_and_an_unknown_name_are_errors_with_their_cause(make: Make) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failure = await fails(make(retries=0), source(f"http://127.0.0.1:{unused.getsockname()[1]}/x"))
    assert "Connection refused" in failure.message
    assert failure.transient
    failure = await fails(make(retries=0), source("http://name.invalid/x"))
    assert "http://name.invalid/x: the name of the server cannot be resolved" in failure.message
    assert failure.transient


@pytest.mark.trio
async def test_a_name_that_the_name_server_does_not_know_is_not_asked_for_again_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def unknown(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    failure = await fails(make(retries=3), source("http://vpn.example/x"))
    assert failure.transient, "the network that knows the name may be back later"
    assert asked == ["vpn.example"]


@pytest.mark.trio
async def test_what_a_broken_server_says_is_not_repeated(server: Server, make: Make) -> None:
    failure = await fails(make(retries=0), source(f"{server.url}/garbage/x"))
    assert "the answer is not valid HTTP" in failure.message
    assert "secret" not in failure.message


@pytest.mark.parametrize("path", ["file/x", "endless/x"])
@pytest.mark.trio
async def test_a_file_over_the_size_limit_is_refused(path: str, server: Server, make: Make) -> None:
    failure = await fails(make(max_bytes=100_000), source(f"{server.url}/{path}"))
    assert "is larger than 100000 bytes" in failure.message
    assert len(server.requests) == 1


@pytest.mark.parametrize("path", ["stall/x", "stall/silent", "endless/x"])
@pytest.mark.trio
async def test_a_cancel_takes_less_than_a_second_and_leaves_nothing(
    path: str, server: Server, make: Make, tmp_path: Path
) -> None:
    cache = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.fetch, source(f"{server.url}/{path}"), lambda line: None)
        await trio.to_thread.run_sync(server.wait_for_requests, 1)
        started = time.monotonic()
        nursery.cancel_scope.cancel()
    assert time.monotonic() - started < 1
    assert list((tmp_path / "distfiles").iterdir()) == []


@pytest.mark.trio
async def test_a_full_disk_is_named_as_the_cause(server: Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(handle: int, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("buildd.execute.download.write_all", write)
    failure = await fails(make(), source(f"{server.url}/file/x"), "disk_full")
    assert "No space left on device" in failure.message
    assert failure.transient


# --- mirrors, redirects, credentials, proxies ---


@pytest.mark.trio
async def test_mirrors_are_asked_first_and_may_be_wrong_or_down(server: Server, make: Make) -> None:
    lines: list[str] = []
    cache = make(mirrors=(f"{server.url}/missing", f"{server.url}/wrong/", f"{server.url}/file"))
    await cache.fetch(source("http://127.0.0.1:1/pkg-1.0.tar.gz"), lines.append)
    assert server.requests == ["/missing/pkg-1.0.tar.gz", "/wrong/pkg-1.0.tar.gz", "/file/pkg-1.0.tar.gz"]
    assert sum(line.endswith("trying the next place") for line in lines) == 2


@pytest.mark.trio
async def test_when_all_places_fail_the_url_of_the_recipe_is_the_one_reported(server: Server, make: Make) -> None:
    cache = make(mirrors=(f"{server.url}/wrong",))
    failure = await fails(cache, source(f"{server.url}/missing/upstream"))
    assert f"{server.url}/missing/upstream: the server answered 404" in failure.message


@pytest.mark.trio
async def test_redirects_are_followed_without_taking_credentials_along(server: Server, make: Make) -> None:
    with serving() as other:
        url = f"{server.url}/redirect/{other.url}/file/x".replace("http://", "http://user:pa%40ss@", 1)
        await make().fetch(source(url), lambda line: None)
        assert server.headers_seen[0]["Authorization"] == "Basic dXNlcjpwYUBzcw=="
        assert "Authorization" not in other.headers_seen[0]


@pytest.mark.trio
async def test_credentials_are_never_shown(server: Server, make: Make) -> None:
    lines: list[str] = []
    url = f"{server.url}/missing/x?a=1&access_token=hidden&X-Amz-Signature=hidden".replace("//", "//user:hidden@")
    with pytest.raises(BuildFailure) as caught:
        await make(mirrors=(url.partition("/missing")[0],)).fetch(source(url), lines.append)
    assert "a=1&access_token=***&X-Amz-Signature=***" in caught.value.message
    assert "hidden" not in "".join([caught.value.message, caught.value.hint, *lines])
    assert redacted("http://[oops") == "(a malformed URL)"


@pytest.mark.parametrize(
    "url",
    [
        *("http://[oops", "http:///x", "http://h:99999/", "http://h/a b", "http://h/\r\nX: y", "gopher://h/"),
        *("http://a..b/x", f"http://{'a' * 64}.org/x", "http://ü..x/", f"http://{'ü' * 70}.org/x"),
    ],
)
@pytest.mark.trio
async def test_a_url_that_cannot_be_asked_is_refused(url: str, make: Make) -> None:
    failure = await fails(make(), source(url))
    assert not failure.transient


@pytest.mark.trio
async def test_a_proxy_is_asked_for_http_unless_the_host_is_excepted(server: Server, make: Make) -> None:
    proxies = Proxies.from_environment({"http_proxy": server.url.replace("//", "//me:pw@"), "NO_PROXY": ".local,x"})
    await make(proxies=proxies).fetch(source("http://nowhere.invalid/file/x"), lambda line: None)
    assert server.requests == ["http://nowhere.invalid/file/x"]
    assert server.headers_seen[0]["Host"] == "nowhere.invalid"
    assert server.headers_seen[0]["Proxy-Authorization"] == "Basic bWU6cHc="
    assert proxies.bypassed("a.local")
    assert proxies.bypassed("x")
    assert not proxies.bypassed("notlocal")


def test_proxies_are_read_from_the_environment_as_curl_does() -> None:
    environ = {"HTTP_PROXY": "http://evil", "HTTPS_PROXY": "http://b", "all_proxy": "http://c"}
    assert Proxies.from_environment(environ) == Proxies(http="http://c", https="http://b")
    assert Proxies.from_environment({}) == Proxies()


@pytest.mark.trio
async def test_a_proxy_of_another_kind_is_an_error_with_a_hint(make: Make) -> None:
    failure = await fails(make(proxies=Proxies(http="socks5://user:hidden@h:1")), source("http://h/x"))
    assert failure.message == "the proxy socks5://h:1 cannot be used"
    assert "http://HOST:PORT" in failure.hint


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(path)]
    subprocess.run(
        [openssl, "req", "-x509", "-days", "2", *names, *key, "-out", path.with_suffix(".crt")],
        check=True,
        capture_output=True,
        timeout=60,
    )
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(context) as running:
        yield running


@pytest.mark.trio
async def test_https_works_and_certificates_are_checked(tls_server: Server, make: Make, certificate: Path) -> None:
    wanted = source(f"{tls_server.url}/file/x")
    failure = await fails(make(), wanted)
    assert "the certificate of the server is not accepted: self-signed certificate" in failure.message
    assert tls_server.requests == []
    await make(ca_file=str(certificate)).fetch(wanted, lambda line: None)
    assert tls_server.requests == ["/file/x"]


@pytest.mark.trio
async def test_https_goes_through_a_proxy(server: Server, tls_server: Server, make: Make, certificate: Path) -> None:
    proxies = Proxies(https=server.url.replace("//", "//me:pw@"))
    await make(ca_file=str(certificate), proxies=proxies).fetch(source(f"{tls_server.url}/file/x"), lambda line: None)
    assert server.requests == [f"CONNECT 127.0.0.1:{tls_server.server_port}"]
    assert server.headers_seen[0]["Proxy-Authorization"] == "Basic bWU6cHc="
    assert tls_server.requests == ["/file/x"]


@pytest.mark.trio
async def test_a_tls_server_that_never_answers_does_not_hold_a_cancel(make: Make) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with trio.open_nursery() as nursery:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/x"
            nursery.start_soon(make().fetch, source(url), lambda line: None)
            connection, _ = await trio.to_thread.run_sync(listener.accept)
            with connection:
                await trio.to_thread.run_sync(connection.recv, 1)
                started = time.monotonic()
                nursery.cancel_scope.cancel()
        assert time.monotonic() - started < 1
