"""The id of what builds find around them: part of every key.

Of the host's root file system no digest can be had, so `aggressive` takes the system's release and
`conservative` its list of installed packages as well; both take the back end and the paths that builds see,
since outputs have those compiled in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from buildd.config import Config
from buildd.execute.sandbox import Sandbox

_RELEASE = Path("/etc/os-release")
_PACKAGES = Path("/var/lib/dpkg/status")


class EnvironmentId:
    """Call it for the id: SHA-256 in hexadecimal. It is made anew when the configuration or the files change."""

    def __init__(self, config: Callable[[], Config], sandbox: Sandbox) -> None:
        self._config = config
        self._sandbox = sandbox
        self._known: tuple[object, str] = (None, "")

    def __call__(self) -> str:
        config = self._config()
        files = [_RELEASE, _PACKAGES] if config.cache.strategy == "conservative" else [_RELEASE]
        state = (config.cache.strategy, config.sandbox.path, *map(_version, files))
        if state != self._known[0]:
            self._known = (state, self._make(config, files))
        return self._known[1]

    def _make(self, config: Config, files: Sequence[Path]) -> str:
        digest = hashlib.sha256()
        for path in files:
            try:
                digest.update(path.read_bytes())
            except OSError:
                digest.update(b"none")
        layout = self._sandbox.layout(Path("/work"))
        digest.update(f"{self._sandbox.name} {layout.prefix} {':'.join(config.sandbox.path)}".encode())
        return digest.hexdigest()


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
