"""Repositories with recipes, and a real git server for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from harness.processes import until

GIT_ENV = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "LC_ALL": "C.UTF-8",
}


def git(*arguments: str | os.PathLike[str], cwd: Path | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, env=GIT_ENV, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode().strip()


class RecipeRepository:
    """A directory with packages, described by one `buildd.toml`; a git repository unless `plain`."""

    def __init__(self, path: Path, *, plain: bool = False) -> None:
        self.path = path
        self.plain = plain
        self._recipes: dict[str, str] = {}
        path.mkdir(parents=True)
        if not plain:
            git("init", "-q", "-b", "main", path)

    def __str__(self) -> str:
        return str(self.path)

    def package(
        self,
        name: str,
        *,
        files: Mapping[str, str] | None = None,
        phases: Mapping[str, str] | None = None,
        limits: Mapping[str, Any] | None = None,
        path: str | None = None,
        **keys: Any,
    ) -> Self:
        """Describe (again) a package with a directory of its own, or of `path`."""
        if path is None:
            path = name
            self.write(f"{path}/README", f"{name}\n")
        for file, text in (files or {}).items():
            self.write(f"{path}/{file}", text)
        lines = [f"[package.{_toml(name)}]", f"path = {_toml(path)}"]
        lines += [f"{key} = {_toml(value)}" for key, value in keys.items()]
        for table, content in (("phases", phases), ("limits", limits)):
            if content:
                lines.append(f"[package.{_toml(name)}.{table}]")
                lines += [f"{key} = {_toml(value)}" for key, value in content.items()]
        self._recipes[name] = "\n".join(lines) + "\n"
        return self

    def packages(self, names: Iterable[str], **keys: Any) -> Self:
        """Many packages that share the whole tree."""
        for name in names:
            self.package(name, path=".", **keys)
        return self

    def write(self, name: str, content: str | bytes) -> Self:
        """Write a file as it is."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return self

    def save(self) -> Self:
        """Write the recipes without committing them."""
        if self._recipes:
            self.write("buildd.toml", "\n".join(self._recipes.values()))
        return self

    def commit(self, message: str = "a change") -> str:
        """Write the recipes, and commit everything; the commit's id (empty for a plain directory)."""
        self.save()
        if self.plain:
            return ""
        git("add", "-A", cwd=self.path)
        git("commit", "-q", "--allow-empty", "-m", message, cwd=self.path)
        return git("rev-parse", "HEAD", cwd=self.path)


def _toml(value: Any) -> str:
    """A value as TOML writes it: JSON does for what recipes hold."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


class GitServer:
    """`git daemon` on 127.0.0.1 over a directory of repositories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
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
        until(self._answers, "git daemon listens")

    def url(self, repository: RecipeRepository) -> str:
        return f"git://127.0.0.1:{self.port}/{repository.path.relative_to(self.root)}"

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "git daemon did not start"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def served(root: Path) -> Iterator[GitServer]:
    server = GitServer(root)
    try:
        yield server
    finally:
        server.close()
