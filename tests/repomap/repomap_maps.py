"""Repositories to map, and map processes started and asked as the daemon does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from harness.repository import GIT_ENV, git

import buildd
from buildd.repomap.wire import (
    BuildRequest,
    Built,
    Failure,
    Files,
    FilesRequest,
    Progress,
    Refs,
    RefsRequest,
    Reply,
    Source,
    Tags,
    TagsRequest,
    Text,
    TextRequest,
)

ROOT = str(Path(buildd.__file__).parent.parent)
ARGV = (
    sys.executable,
    "-I",
    "-c",
    "import sys; sys.path[:] = sys.argv[1:]; from buildd.repomap.worker import main; main()",
    ROOT,
    *sys.path,
)


def ask(request: msgspec.Struct, environ: Mapping[str, str] | None = None) -> list[Reply]:
    """Everything that a map process says to a request."""
    done = subprocess.run(
        ARGV,
        input=msgspec.json.encode(request),
        capture_output=True,
        timeout=120,
        env={**os.environ, **(environ or {})},
    )
    assert done.returncode == 0, done.stderr.decode()
    return [msgspec.json.decode(line, type=Reply) for line in done.stdout.splitlines()]


class Repository:
    """A git repository with files, and the maps of it."""

    def __init__(self, home: Path, name: str = "source", cache: Path | None = None) -> None:
        self.path = home / name
        self.home = home
        self.cache = cache or home / "cache" / "blobs.db"
        self._maps = 0
        self.path.mkdir(parents=True)
        git("init", "-q", "-b", "main", self.path)

    def write(self, files: Mapping[str, str | bytes]) -> Repository:
        for path, content in files.items():
            target = self.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def commit(self, files: Mapping[str, str | bytes] | None = None) -> str:
        self.write(files or {})
        git("add", "-A", "--force", cwd=self.path)
        git("commit", "-q", "--allow-empty", "-m", "work", cwd=self.path)
        return git("rev-parse", "HEAD", cwd=self.path)

    def request(self, output: Path, commit: str = "HEAD", **changes: Any) -> BuildRequest:
        settings: dict[str, Any] = {
            "parent_pid": os.getpid(),
            "repository": str(self.path),
            "commit": commit,
            "output": str(output),
            "cache": str(self.cache),
            "processes": 2,
            "tokens": 1024,
            "max_file_bytes": 1 << 20,
            "max_file_s": 10.0,
            "max_cache_bytes": 1 << 30,
        }
        return BuildRequest(**{**settings, **changes})

    def map(self, commit: str = "HEAD", *, environ: Mapping[str, str] | None = None, **changes: Any) -> Map:
        """Make a map, in a directory of its own."""
        self._maps += 1
        output = self.home / f"map-of-{self.path.name}-{self._maps}"
        output.mkdir()
        replies = ask(self.request(output, commit, **changes), environ)
        built = replies[-1]
        assert isinstance(built, Built), built
        assert all(isinstance(reply, Progress) for reply in replies[:-1])
        return Map(self, output, built, [reply for reply in replies if isinstance(reply, Progress)])


class Map:
    def __init__(self, repository: Repository, directory: Path, built: Built, progress: list[Progress]) -> None:
        self.repository = repository
        self.directory = directory
        self.built = built
        self.progress = progress

    @property
    def source(self) -> Source:
        return Source(
            parent_pid=os.getpid(),
            directory=str(self.directory),
            repository=str(self.repository.path),
            commit="HEAD",
        )

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.directory.iterdir())}

    def left_out(self) -> dict[str, str]:
        return {line["path"]: line["reason"] for line in self.lines("left_out.jsonl")}

    def text(self, tokens: int, **asked: Any) -> Text:
        return self._ask(TextRequest(source=self.source, tokens=tokens, **asked), Text)

    def tags(self, **asked: Any) -> Tags:
        return self._ask(TagsRequest(source=self.source, **asked), Tags)

    def refs(self, name: str, **asked: Any) -> Refs:
        return self._ask(RefsRequest(source=self.source, name=name, **asked), Refs)

    def files(self, **asked: Any) -> Files:
        return self._ask(FilesRequest(source=self.source, **asked), Files)

    def failure(self, request: msgspec.Struct) -> Failure:
        return self._ask(request, Failure)

    def _ask(self, request: msgspec.Struct, kind: type[Any]) -> Any:
        replies = ask(request)
        assert len(replies) == 1
        assert isinstance(replies[0], kind), replies[0]
        return replies[0]


__all__ = ["ARGV", "GIT_ENV", "Map", "Repository", "ask", "git"]
