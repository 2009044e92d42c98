"""Revisions that were looked into, kept in the cache directory: the first start after a restart is quick as well.

Invariant: what is loaded is what `discover` would give with this very code; a file that was written by another
version, is damaged or unreadable is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
import zstandard
from msgspec import Struct

from buildd import config, model
from buildd.model import Package
from buildd.recipes import native, presets

log = structlog.get_logger()

KEPT = 64
"""Files; the least recently written ones go first."""
_MAX_BYTES = 512 << 20
_SUFFIX = ".revision"


class _Kept(Struct, frozen=True):
    repository: str
    store: str
    tree: str
    files: dict[bytes, tuple[Package, ...]]
    """By path, which need not be UTF-8."""


class Keepsakes:
    """One revision for each repository and store, below `directory`. Thread-safe; blocks on the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._code = _code()

    def remove_leftovers(self) -> None:
        """Remove what a daemon that was killed was writing. Before anything is kept. Raises OSError."""
        for path in self._directory.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def load(self, repository: str, store: str) -> tuple[str, Mapping[str, tuple[Package, ...]]] | None:
        """Tree id and recipe files of the revision that was kept; None without one."""
        try:
            data = zstandard.decompress(self._path(repository, store).read_bytes(), max_output_size=_MAX_BYTES)
            if data[: len(self._code)] != self._code:
                return None
            kept = msgspec.msgpack.decode(memoryview(data)[len(self._code) :], type=_Kept)
        except (OSError, zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        if (kept.repository, kept.store) != (repository, store):
            return None
        return kept.tree, {os.fsdecode(path): packages for path, packages in kept.files.items()}

    def save(self, repository: str, store: str, tree: str, files: Mapping[str, tuple[Package, ...]]) -> None:
        """Keep a revision in place of the repository's last one; what cannot be kept is not."""
        path = self._path(repository, store)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        raw = {os.fsencode(path): packages for path, packages in files.items()}
        body = msgspec.msgpack.encode(_Kept(repository, store, tree, raw))
        try:
            with self._lock:  # two at once would prune the same files
                self._directory.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(zstandard.compress(self._code + body, 1))
                temporary.replace(path)
                self._prune()
        except OSError as error:
            log.warning("what was discovered is not kept for the next start", error=str(error))
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _prune(self) -> None:
        found = sorted(self._directory.glob(f"*{_SUFFIX}"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for path in found[KEPT:]:
            path.unlink(missing_ok=True)

    def _path(self, repository: str, store: str) -> Path:
        name = hashlib.sha256(os.fsencode(repository) + b"\0" + os.fsencode(store)).hexdigest()[:32]
        return self._directory / f"{name}{_SUFFIX}"


def _code() -> bytes:
    """SHA-256 over the code that makes packages of recipes: with other code they may be others."""
    digest = hashlib.sha256()
    for module in (native, presets, model, config):
        try:
            digest.update(inspect.getsource(module).encode())
        except OSError:
            digest.update(secrets.token_bytes(32))  # nothing to compare with: what is kept holds for this life only
    return digest.digest()
