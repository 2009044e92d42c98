"""A real HTTP server that behaves as the path of a URL says, well or badly."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import socket
import ssl
import threading
from collections.abc import Iterator

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
