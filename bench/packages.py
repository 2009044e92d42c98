"""Repositories of packages for benchmarks: one recipe file, and a directory with a file for each package."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
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


class Recipe(Struct, frozen=True, kw_only=True):
    name: str
    phases: Mapping[str, str]
    depends: tuple[str, ...] = ()


def git(*arguments: str, cwd: Path | None = None, stdin: bytes | None = None) -> None:
    """Run git. Raises CalledProcessError."""
    subprocess.run(
        ["git", *arguments], cwd=cwd, env=GIT_ENVIRONMENT, input=stdin, stdout=subprocess.DEVNULL, check=True
    )


def write_repository(directory: Path, recipes: Iterable[Recipe]) -> Path:
    """A git repository at `directory` whose one commit holds the packages."""
    lines: list[str] = []
    directory.mkdir(parents=True)
    for recipe in recipes:
        source = directory / "packages" / recipe.name
        source.mkdir(parents=True)
        (source / "README").write_text(f"{recipe.name}\n")
        lines += [
            f"[package.{json.dumps(recipe.name)}]",
            'version = "1"',
            f'path = "packages/{recipe.name}"',
            f"depends = {json.dumps(recipe.depends)}",
            f"[package.{json.dumps(recipe.name)}.phases]",
            *(f"{phase} = {json.dumps(text)}" for phase, text in recipe.phases.items()),
        ]
    (directory / "buildd.toml").write_text("\n".join(lines) + "\n")
    git("init", "--quiet", "--initial-branch=main", cwd=directory)
    git("add", "--all", cwd=directory)
    git("commit", "--quiet", "--message=packages", cwd=directory)
    return directory
