"""The id of what builds find around them: part of every key.

Of the host's root file system no digest can be had, so `aggressive` takes the system's release and
`conservative` its list of installed packages as well; both take the back end and the paths that builds see,
since outputs have those compiled in.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from buildd.config import Config
from buildd.execute.sandbox import Sandbox

_RELEASE = Path("/etc/os-release")
_PACKAGES = Path("/var/lib/dpkg/status")


def environment_id(config: Config, sandbox: Sandbox) -> str:
    """SHA-256 in hexadecimal. Blocks for reading two files."""
    digest = hashlib.sha256()
    files = [_RELEASE, _PACKAGES] if config.cache.strategy == "conservative" else [_RELEASE]
    for path in files:
        try:
            digest.update(path.read_bytes())
        except OSError:
            digest.update(b"none")
    layout = sandbox.layout(Path("/work"))
    digest.update(f"{sandbox.name} {layout.prefix} {':'.join(config.sandbox.path)}".encode())
    return digest.hexdigest()
