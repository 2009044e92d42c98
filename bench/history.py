"""A repository with a long history, made from a seed, and `git daemon` to serve it.

Two thirds of the pack are blobs of random bytes, which neither compress nor delta; the rest are thousands of
commits that each change some lines in two of 200 text files, which git stores as chains of deltas. Commit ids are
the same on every machine; how the pack is laid out is up to git's version.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.daemon import BenchError
from bench.packages import GIT_ENVIRONMENT, git
from bench.processes import start

_SEED = 2024
_BLOB_BYTES = 256 * 1024
_BLOB_SHARE = 0.66
_TEXTS = 200
_LINES = 400
_CHANGED = 48
"""Lines that a commit changes in each of two files."""
_FIRST_BYTES = 2_200_000
_COMMIT_BYTES = 6_200
"""What the first commit's texts, and every further commit, add to a pack: measured."""
_EPOCH = 1_600_000_000


def write_history(path: Path, size: int) -> int:
    """Make a bare repository with about `size` bytes of pack at `path`; the bytes that its packs really have."""
    git("init", "--quiet", "--bare", "--initial-branch=main", str(path))
    importer = start(["git", "fast-import", "--quiet", "--done"], cwd=path, env=GIT_ENVIRONMENT, stdin=subprocess.PIPE)
    assert importer.stdin is not None
    try:
        for chunk in _stream(size):
            importer.stdin.write(chunk)
        importer.stdin.close()
    except BrokenPipeError:
        pass  # its exit status says why
    except BaseException:
        importer.kill()
        importer.wait()
        raise
    if importer.wait() != 0:
        raise BenchError("git fast-import could not make the repository")
    git("repack", "--quiet", "-a", "-d", "-f", "--window=10", "--depth=50", cwd=path)
    return sum(file.stat().st_size for file in (path / "objects" / "pack").glob("*.pack"))


def _stream(size: int) -> Iterator[bytes]:
    """The input of git fast-import."""
    rng = random.Random(_SEED)
    commits = 1 + max(0, int(size * (1 - _BLOB_SHARE)) - _FIRST_BYTES) // _COMMIT_BYTES
    blobs = int(size * _BLOB_SHARE) // _BLOB_BYTES
    texts = [[_line(rng) for _ in range(_LINES)] for _ in range(_TEXTS)]
    written = 0
    for commit in range(commits):
        message = f"change {commit}\n".encode()
        yield b"commit refs/heads/main\ncommitter bench <bench@example.org> %d +0000\n" % (_EPOCH + 60 * commit)
        yield b"data %d\n%s" % (len(message), message)
        for number in range(_TEXTS) if commit == 0 else rng.sample(range(_TEXTS), 2):
            text = texts[number]
            for _ in range(_CHANGED):
                text[rng.randrange(_LINES)] = _line(rng)
            yield _file(f"text/{number % 10}/{number:03}.txt", b"".join(text))
        while written * commits < blobs * (commit + 1):
            yield _file(f"data/{written:04}.bin", rng.randbytes(_BLOB_BYTES))
            written += 1
    yield b"done\n"


def _file(path: str, content: bytes) -> bytes:
    return b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(content), content)


def _line(rng: random.Random) -> bytes:
    return b"%x %x %x %x\n" % tuple(rng.getrandbits(48) for _ in range(4))


class GitServer:
    """`git daemon` on the loopback interface."""

    def __init__(self, base: Path) -> None:
        self._base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self._port}/{name}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve every repository below the base directory while the context lasts."""
        command = ["git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={self._port}"]
        process = start(
            [*command, f"--base-path={self._base}"], env=GIT_ENVIRONMENT, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._await(process)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.perf_counter() + 10
        while process.poll() is None and time.perf_counter() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.01)
        raise BenchError("git daemon did not start")
