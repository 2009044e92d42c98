"""Real servers on 127.0.0.1 for the tests of repositories: git daemon, smart http, one that falls silent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from buildd.model import Repository

GIT_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
    "LC_ALL": "C.UTF-8",
}


def git(*arguments: str | os.PathLike[str], cwd: Path | None = None, stdin: bytes | None = None) -> str:
    done = subprocess.run(
        ["git", *map(os.fspath, arguments)], cwd=cwd, env=GIT_ENV, input=stdin, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def make_repository(path: Path, files: dict[str, str] | None = None, *, branch: str = "main") -> Path:
    """A work tree at `path` with one commit of `files`."""
    git("init", "-q", "-b", branch, path)
    commit(path, files or {"README": "hello\n"})
    return path


def commit(path: Path, files: dict[str, str], message: str = "a change") -> str:
    for name, text in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    git("add", "-A", cwd=path)
    git("commit", "-q", "--allow-empty", "-m", message, cwd=path)
    return git("rev-parse", "HEAD", cwd=path)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class GitDaemon:
    """`git daemon` over `root`; `url(name)` names a repository there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self._process = subprocess.Popen(
            [
                *("git", "daemon", "--export-all", "--reuseaddr", "--informative-errors"),
                *(f"--base-path={root}", "--listen=127.0.0.1", f"--port={self.port}"),
            ],
            env=GIT_ENV,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                assert self._process.poll() is None, "git daemon did not start"
                time.sleep(0.01)
        raise AssertionError("git daemon does not listen")

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class StuckServer:
    """Accepts, reads the request, sends half a pkt-line and then nothing. `connected` counts clients."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.clients: list[socket.socket] = []
        self.accepted = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def url(self, name: str = "stuck") -> str:
        return f"git://127.0.0.1:{self.port}/{name}"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.clients.append(client)
            client.recv(4096)
            client.sendall(b"00ab" + b"0" * 20)
            self.accepted.set()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for client in self.clients:
            client.close()


class _Backend(BaseHTTPRequestHandler):
    """Smart http by `git http-backend`, one process per request."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._serve(body)

    def _serve(self, body: bytes) -> None:
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        self.server.requests.append(f"{self.command} {self.path}")
        wanted = self.server.authorization
        if wanted is not None and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        if self.server.redirect_to:
            self.send_response(302)
            self.send_header("Location", self.server.redirect_to + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            env={
                **GIT_ENV,
                "GIT_PROJECT_ROOT": str(self.server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            },
            capture_output=True,
            check=False,
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        status = next((value for name, value in headers if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class HttpServer(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Backend)
        self.root = root
        self.authorization: str | None = None
        self.authorizations: list[str] = []
        self.requests: list[str] = []
        """Method and path with query of each."""
        self.redirect_to = ""
        self.port = self.server_address[1]

    def handle_error(self, *_: object) -> None:
        pass  # a client that went away in the middle is what some tests are about


class MemoryRecords:
    """Records in memory; `saved` keeps every state in order."""

    def __init__(self, *repositories: Repository) -> None:
        self.rows = {repository.url: repository for repository in repositories}
        self.saved: list[Repository] = []

    def all(self) -> list[Repository]:
        return list(self.rows.values())

    def save(self, repository: Repository) -> None:
        self.rows[repository.url] = repository
        self.saved.append(repository)

    def remove(self, url: str) -> None:
        self.rows.pop(url, None)
