"""Distfiles: fetched once, verified always, and nothing left behind when it fails; against real servers."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from buildd.errors import BuildFailure
from buildd.execute.download import DistfileCache, FetchSettings
from buildd.execute.transport import Proxies, redacted
from buildd.model import Source

CONTENT = os.urandom(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Behaves as the first component of the path says."""

    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.changed:
            self.server.requests.append(self.path)
            self.server.headers_seen.append(dict(self.headers))
            count = self.server.requests.count(self.path)
            self.server.changed.notify_all()
        path = self.path.partition("://")[2].partition("/")[2] if self.path.startswith("http") else self.path[1:]
        name, _, rest = path.partition("/")
        getattr(self, "on_" + name, self.on_missing)(rest, count)

    def on_file(self, rest: str, count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def on_gate(self, rest: str, count: int) -> None:
        self.server.gate.wait(10)
        self.on_file(rest, count)

    def on_close(self, rest: str, count: int) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def on_chunked(self, rest: str, count: int) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (CONTENT[:300_000], CONTENT[300_000:]) if rest != "short" or count > 1 else (b"x",):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if rest != "short" or count > 1:
            self.wfile.write(b"0\r\n\r\n")

    def on_wrong(self, rest: str, count: int) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"something else")

    def on_status(self, rest: str, count: int) -> None:
        """`status/503/2`: that status the first two times."""
        status, _, times = rest.partition("/")
        if count > int(times.partition("/")[0]):
            self.on_file(rest, count)
        else:
            self.send_response(int(status))
            self.send_header("Retry-After", "0")
            self.end_headers()

    def on_reset(self, rest: str, count: int) -> None:
        if count > 1:
            self.on_file(rest, count)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000])
        self.wfile.flush()
        if rest == "rst":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

    def on_garbage(self, rest: str, count: int) -> None:
        self.wfile.write(b"secret nonsense\r\n\r\n")

    def on_stall(self, rest: str, count: int) -> None:
        """Part of the answer, then nothing until the client goes or the test ends."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if rest != "silent":
            self.wfile.write(CONTENT[:1000])
        self.wfile.flush()
        self.connection.settimeout(20)
        with contextlib.suppress(OSError):
            self.connection.recv(1)

    def on_endless(self, rest: str, count: int) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(100_000))

    def on_redirect(self, rest: str, count: int) -> None:
        self.send_response(302)
        self.send_header("Location", rest if "://" in rest else f"/{rest}")
        self.end_headers()

    def on_loop(self, rest: str, count: int) -> None:
        self.send_response(302)
        self.send_header("Location", f"/loop/{len(self.server.requests)}?token=hidden")
        self.end_headers()

    def on_missing(self, rest: str, count: int) -> None:
        self.send_error(404)

    def do_CONNECT(self) -> None:
        """Be a proxy that passes one connection on."""
        self.server.requests.append(f"CONNECT {self.path}")
        self.server.headers_seen.append(dict(self.headers))
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as upstream:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()

            def pump(source: socket.socket, target: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    while data := source.recv(65536):
                        target.sendall(data)
                    target.shutdown(socket.SHUT_WR)

            other = threading.Thread(target=pump, args=(upstream, self.connection))
            other.start()
            pump(self.connection, upstream)
            other.join()
        self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.headers_seen: list[dict[str, str]] = []
        self.changed = threading.Condition()
        self.gate = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests go away on purpose."""

    def wait_for_requests(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, 10)


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(context) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()


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


@pytest.mark.trio
async def test_a_refused_connection_and_an_unknown_name_are_errors_with_their_cause(make: Make) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failure = await fails(make(retries=0), source(f"http://127.0.0.1:{unused.getsockname()[1]}/x"))
    assert "Connection refused" in failure.message
    failure = await fails(make(retries=0), source("http://name.invalid/x"))
    assert "http://name.invalid/x: the name of the server cannot be resolved" in failure.message


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
    "url", ["http://[oops", "http:///x", "http://h:99999/", "http://h/a b", "http://h/\r\nX: y", "gopher://h/"]
)
@pytest.mark.trio
async def test_a_url_that_cannot_be_asked_is_refused(url: str, make: Make) -> None:
    await fails(make(), source(url))


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
