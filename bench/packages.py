"""Repositories of packages for benchmarks: with one recipe file for all of them, or of any files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

GIT_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@example.org",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
    "LC_ALL": "C.UTF-8",
}
"""Makes commits the same everywhere, whatever the user's configuration says."""
_OLD = 1_700_000_000
"""Seconds since the epoch, long before any index or output is written."""


class Recipe(Struct, frozen=True, kw_only=True):
    name: str
    phases: Mapping[str, str]
    depends: tuple[str, ...] = ()


def git(*arguments: str, cwd: Path | None = None, stdin: bytes | None = None) -> None:
    """Run git. Raises CalledProcessError."""
    subprocess.run(
        ["git", *arguments], cwd=cwd, env=GIT_ENVIRONMENT, input=stdin, stdout=subprocess.DEVNULL, check=True
    )


def recipe_lines(recipe: Recipe, *, path: str = ".") -> list[str]:
    """The package's lines of a buildd.toml; `path` is the directory of its source, seen from there."""
    return [
        f"[package.{json.dumps(recipe.name)}]",
        'version = "1"',
        f"path = {json.dumps(path)}",
        f"depends = {json.dumps(recipe.depends)}",
        f"[package.{json.dumps(recipe.name)}.phases]",
        *(f"{phase} = {json.dumps(text)}" for phase, text in recipe.phases.items()),
    ]


def write_repository(directory: Path, recipes: Iterable[Recipe]) -> Path:
    """A git repository at `directory` whose one commit holds the packages."""
    lines: list[str] = []
    directory.mkdir(parents=True)
    for recipe in recipes:
        source = directory / "packages" / recipe.name
        source.mkdir(parents=True)
        (source / "README").write_text(f"{recipe.name}\n")
        lines += recipe_lines(recipe, path=f"packages/{recipe.name}")
    (directory / "buildd.toml").write_text("\n".join(lines) + "\n")
    git("init", "--quiet", "--initial-branch=main", cwd=directory)
    git("add", "--all", cwd=directory)
    git("commit", "--quiet", "--message=packages", cwd=directory)
    return directory


def import_repository(directory: Path, files: Mapping[str, str]) -> Path:
    """A git repository at `directory` whose one commit holds `files`, packed as after a clone.

    The work tree is checked out with old times and the index knows them: git need not read a file to compare it.
    """
    git("init", "--quiet", "--initial-branch=main", str(directory))
    git("fast-import", "--quiet", "--done", cwd=directory, stdin=b"".join(_stream(files)))
    git("reset", "--quiet", "--hard", "main", cwd=directory)
    for path in files:
        os.utime(directory / path, (_OLD, _OLD))
    git("update-index", "--refresh", cwd=directory)
    return directory


def _stream(files: Mapping[str, str]) -> Iterator[bytes]:
    """The input of git fast-import."""
    yield b"commit refs/heads/main\ncommitter bench <bench@example.org> %d +0000\ndata 8\npackages\n" % _OLD
    for path, text in files.items():
        content = text.encode()
        yield b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(content), content)
    yield b"done\n"


def commit_file(repository: Path, path: str, text: str) -> None:
    """Change one file in the work tree, and commit that."""
    (repository / path).write_text(text)
    git("commit", "--quiet", "--message=change", "--", path, cwd=repository)
