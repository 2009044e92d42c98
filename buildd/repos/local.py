"""Local paths as repositories: used where they are, never copied, never written to.

A path is a git repository when it is a work tree's top directory or a bare repository itself; any other
directory is a plain one, whose content becomes a git tree through `buildd.repos.snapshot`.
"""

from __future__ import annotations

import os
from pathlib import Path

from buildd.errors import InvalidInput, NotFound


def git_dir(path: Path) -> Path | None:
    """The git directory of the repository at `path` itself, or None for a plain directory."""
    dotgit = path / ".git"
    if dotgit.is_dir():
        return dotgit
    if dotgit.is_file():  # a linked work tree or a submodule names its git directory in a file
        words = dotgit.read_text(encoding="utf-8", errors="surrogateescape").strip()
        if words.startswith("gitdir: "):
            target = Path(os.path.normpath(path / words.removeprefix("gitdir: ")))
            return target if target.is_dir() else None
        return None
    if (path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "refs").is_dir():
        return path
    return None


def check_directory(path: Path) -> None:
    """Raises NotFound or InvalidInput unless `path` is a directory that can be read."""
    if not path.exists():
        raise NotFound(f"there is no {path}", hint="A local repository is a directory on the daemon's machine.")
    if not path.is_dir():
        raise InvalidInput(f"{path} is not a directory", hint="Name a repository or a directory of sources.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise InvalidInput(f"the daemon may not read {path}", hint="Check its permissions.")
