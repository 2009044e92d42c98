"""The logs of builds: one file each, written by the build itself, readable at any time from any offset."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TAIL = 4096
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""Control sequences of terminals: CSI (colours), OSC (titles), and the short ones."""


class Logs:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, build: str) -> Path:
        """Where the log of a build is. Spread over 256 directories, so that none grows without bound."""
        return self.directory / build[:2] / f"{build}.log"

    def open(self, build: str) -> int:
        """A descriptor to write the log of a new build with. The caller closes it. Raises OSError."""
        path = self.path(build)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC  # not O_APPEND: splice(2) refuses it
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)
            return os.open(path, flags, 0o644)

    def append(self, build: str, text: str) -> None:
        """Add to the log of a build that no longer runs. Raises OSError."""
        with self.path(build).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)

    def size(self, build: str) -> int:
        try:
            return self.path(build).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, build: str, offset: int, limit: int) -> tuple[int, bytes]:
        """Up to `limit` bytes from `offset` (negative: from the end), and the offset they start at."""
        try:
            with self.path(build).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = max(0, size + offset) if offset < 0 else min(offset, size)
                file.seek(start)
                return start, file.read(limit)
        except FileNotFoundError:
            return 0, b""

    def last_line(self, build: str) -> str:
        """The last line with anything on it, without control characters."""
        _, tail = self.read(build, -_TAIL, _TAIL)
        for line in reversed(tail.decode(errors="replace").replace("\r", "\n").split("\n")):
            text = "".join(c for c in _ESCAPE.sub("", line) if c.isprintable()).strip()
            if text:
                return text[-200:]
        return ""
