"""What builds find around them: part of every key.

Of the host's root file system no digest can be had, so `aggressive` takes the system's release, and the other
strategies its list of installed packages as well; all take the back end and the paths that builds see, since
outputs have those compiled in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from buildd.config import Config
from buildd.execute.sandbox import Sandbox
from buildd.model import Strategy

_RELEASE = Path("/etc/os-release")
_PACKAGES = Path("/var/lib/dpkg/status")


class Environment(Struct, frozen=True, kw_only=True):
    id: str
    """SHA-256 in hexadecimal over the canonical JSON of `parts`."""
    parts: dict[str, str]
    """Name to value, or SHA-256 of a file's content: what `why` can name."""


class Environments:
    """The environment under each strategy, made anew when the configuration or the files change."""

    def __init__(self, config: Callable[[], Config], sandbox: Sandbox) -> None:
        self._config = config
        self._sandbox = sandbox
        self._known: dict[Strategy, tuple[object, Environment]] = {}

    def __call__(self, strategy: Strategy) -> Environment:
        path = self._config().sandbox.path
        files = {"os-release": _RELEASE}
        if strategy != "aggressive":
            files["installed packages"] = _PACKAGES
        state = (path, *map(_version, files.values()))
        known = self._known.get(strategy)
        if known is None or known[0] != state:
            parts = {name: _digest(file) for name, file in files.items()}
            parts["sandbox"] = self._sandbox.name
            parts["prefix"] = self._sandbox.layout(Path("/work")).prefix
            parts["path"] = ":".join(path)
            id = hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()
            known = self._known[strategy] = (state, Environment(id=id, parts=parts))
        return known[1]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "none"


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
