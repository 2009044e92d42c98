"""Artifacts: content-addressed directories of what builds left behind.

`artifacts/ab/<output id>/` holds `tree/` (the staged files, read-only), `manifest.json` (every file with its
hash), `builds/<build id>.json` (a receipt for each build that made this output, from which the database can
be rebuilt) and, once asked for, packed forms of it.

Invariants: a directory under its final name is complete; a receipt is on disk before the database says
`success`; nothing here is ever changed in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from buildd.errors import InvalidInput, NotFound
from buildd.model import BuildRecord
from buildd.planner.keys import KeyParts
from buildd.store.listing import OutputEntry, OutputListing, output_id, scan
from buildd.store.output import publish
from buildd.store.tree import remove_tree, sync_directory

FORMAT = 1
_ID = re.compile(r"[0-9a-f]{64}")


class Manifest(Struct, frozen=True, kw_only=True):
    format: int = FORMAT
    output_id: str
    created_at: float
    bytes: int
    entries: tuple[OutputEntry, ...]


class Receipt(Struct, frozen=True, kw_only=True):
    """One build that made the output, with all that its database record says."""

    format: int = FORMAT
    repository: str
    build: BuildRecord
    key_parts: KeyParts


class ArtifactStore:
    """Everything below `directory`. All methods block on the disk: call them in worker threads."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        directory.mkdir(parents=True, exist_ok=True)

    def directory(self, output: str) -> Path:
        """Where the artifact with this output id is, or would be. Raises InvalidInput."""
        if not _ID.fullmatch(output):
            raise InvalidInput(f"{output!r} is not an output id", hint="64 hexadecimal digits")
        return self.root / output[:2] / output

    def tree(self, output: str) -> Path:
        return self.directory(output) / "tree"

    def exists(self, output: str) -> bool:
        return (self.directory(output) / "manifest.json").exists()

    def add(self, staged: Path, *, created_at: float, mtime: int, check: Callable[[], None]) -> Manifest:
        """Take over the tree at `staged`. Returns its manifest, the earlier one when the output is known.

        Raises BuildFailure for what an output cannot hold, OSError for the disk.
        """
        listing = scan(staged, check)
        output = output_id(listing)
        directory = self.directory(output)
        if self.exists(output):
            return self.manifest(output)
        manifest = Manifest(output_id=output, created_at=created_at, bytes=listing.bytes, entries=listing.entries)
        directory.parent.mkdir(exist_ok=True)
        temporary = directory.parent / f".{output}.{secrets.token_hex(4)}.tmp"
        temporary.mkdir()
        try:
            publish(staged, temporary / "tree", mtime=mtime, check=check)
            (temporary / "builds").mkdir()
            _write(temporary / "manifest.json", msgspec.json.encode(manifest))
            sync_directory(temporary)
            try:
                temporary.rename(directory)
            except OSError:
                if not self.exists(output):  # else another build was faster with the same output
                    raise
            sync_directory(directory.parent)
        finally:
            remove_tree(temporary)
        return manifest

    def add_receipt(self, output: str, receipt: Receipt) -> None:
        builds = self.directory(output) / "builds"
        final = builds / f"{receipt.build.id}.json"
        temporary = self.root / f".{receipt.build.id}.tmp"
        _write(temporary, msgspec.json.encode(receipt))
        temporary.rename(final)
        sync_directory(builds)

    def manifest(self, output: str) -> Manifest:
        """Raises NotFound."""
        path = self.directory(output) / "manifest.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise NotFound(f"there is no artifact {output}", hint="`buildctl artifacts list` shows them") from None

    def listing(self, output: str) -> OutputListing:
        return OutputListing(entries=self.manifest(output).entries)

    def packed(self, output: str, name: str) -> Path:
        """Where the packed form called `name` is, or would be."""
        return self.directory(output) / name

    def remove_temporaries(self) -> int:
        """Remove what interrupted builds left behind; the number of things removed."""
        count = 0
        for path in (*self.root.glob("??/.*.tmp"), *self.root.glob(".*.tmp")):
            remove_tree(path)
            count += 1
        return count


def _write(path: Path, content: bytes) -> None:
    """Write a new file and have it on disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        with contextlib.closing(os.fdopen(handle, "wb", closefd=False)) as file:
            file.write(content)
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
