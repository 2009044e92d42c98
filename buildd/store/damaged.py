"""Damaged artifacts, kept for people to look at: `artifacts/.damaged/<output id>.<number>`.

Invariant: what comes here leaves its place in every case; when there is no room to keep it, it is removed.
"""

from __future__ import annotations

from pathlib import Path

from buildd.store.tree import remove_tree

KEPT = 10
"""Of more than these the oldest go."""


class Damaged:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        """Made when it is needed."""

    def take(self, artifact: Path) -> Path:
        """Rename an artifact's directory to here; where it is now. Raises OSError (FileNotFoundError: it is gone)."""
        self.directory.mkdir(exist_ok=True)
        earlier = self.kept()
        number = _number(earlier[-1]) + 1 if earlier else 1
        return artifact.rename(self.directory / f"{artifact.name}.{number}")

    def kept(self, output: str = "") -> list[Path]:
        """All that are kept, or those with this output id, the oldest first."""
        try:
            return sorted((path for path in self.directory.iterdir() if path.name.startswith(output)), key=_number)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def trim(self) -> None:
        """Remove the oldest, down to those that are kept. Raises OSError."""
        for path in self.kept()[:-KEPT]:
            remove_tree(path)


def _number(path: Path) -> int:
    number = path.name.rpartition(".")[2]
    return int(number) if number.isascii() and number.isdigit() else 0
