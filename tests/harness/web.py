"""A web server that answers as a test says, request by request."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class WebServer(http.server.ThreadingHTTPServer):
    """Answers each path by the statuses in its script, one per request, and by the last of them from then on."""

    block_on_close = True

    def __init__(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        """`content` is what a status of 200 comes with, and `headers` what any other does."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.headers = dict(headers or {})
        self.scripts: dict[str, list[int]] = {}
        self.requests: list[str] = []

    def url(self, name: str, *statuses: int) -> str:
        """The address of a file that is answered by these statuses."""
        self.scripts[f"/{name}"] = list(statuses)
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may go away at any time."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        script = self.server.scripts.get(self.path, [404])
        status = script.pop(0) if len(script) > 1 else script[0]
        content = self.server.content if status == 200 else b""
        self.send_response(status)
        for name, value in self.server.headers.items() if status != 200 else ():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(content: bytes, headers: Mapping[str, str] | None = None) -> Iterator[WebServer]:
    with WebServer(content, headers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
