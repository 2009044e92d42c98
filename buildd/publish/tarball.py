"""Binary tarballs (P3): an output in one compressed file for people to unpack, kept beside the artifact.

Invariant: the bytes depend on the listing, the contents, the manifest, the prefix and the time that were given
(and on the version of the zstd library), so that two machines write the same file for the same output.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zstandard

from buildd.errors import BuildFailure
from buildd.store.artifacts import ArtifactStore
from buildd.store.listing import OutputEntry, OutputListing
from buildd.store.tree import CHUNK, sync_directory, uncancelled

MANIFEST = "manifest.json"
"""Name of the manifest in a tarball, directly below the prefix."""

_LEVEL = 10  # of 22: within some 3 % of the size of level 19, at about ten times its speed
_TYPES = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}


def tarball_name(name: str, version: str) -> str:
    return f"{name}-{version.replace(':', '_')}.tar.zst"


def pack(
    artifacts: ArtifactStore, output: str, name: str, version: str, *, check: Callable[[], None] = uncancelled
) -> Path:
    """The tarball of an artifact, written unless it is there already. Blocks; `check` may raise to end it.

    Everything in it is below the directory `NAME-VERSION`. Raises NotFound, BuildFailure or OSError.
    """
    target = artifacts.packed(output, tarball_name(name, version))
    if not target.exists():
        manifest = artifacts.manifest(output)
        write_tar_zst(
            artifacts.tree(output),
            artifacts.listing(output),
            target,
            prefix=f"{name}-{version}",
            mtime=0,
            manifest=msgspec.json.encode(manifest),
            temporary=artifacts.unfinished(output),
            check=check,
        )
    return target


def is_whole(path: Path) -> bool:
    """Whether a tarball is as it was written, by the checksum that zstd puts at its end. Raises OSError."""
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    with path.open("rb") as file:
        try:
            while data := file.read(CHUNK):
                if decompressor.eof:
                    return False
                decompressor.decompress(data)
        except zstandard.ZstdError:
            return False
    return decompressor.eof and not decompressor.unused_data


def write_tar_zst(
    tree: Path,
    listing: OutputListing,
    target: Path,
    *,
    prefix: str,
    mtime: int,
    temporary: Path,
    manifest: bytes | None = None,
    check: Callable[[], None] = uncancelled,
) -> None:
    """Write `target`: the manifest and everything in `listing` below the directory `prefix` (may be empty).

    It is written at `temporary` and replaces `target` by one rename after it is on the disk; nothing is left if it
    fails. Raises BuildFailure (`phase_failed`) if a file of `tree` is not what `listing` says, or OSError.
    """
    if manifest is not None and any(entry.path == MANIFEST for entry in listing.entries):
        raise BuildFailure(
            "phase_failed",
            f"the output holds a {MANIFEST}, which is where its own manifest goes",
            hint="let the stage phase install that file below a directory",
        )
    try:
        with temporary.open("xb") as raw:
            compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=0, write_checksum=True)
            with compressor.stream_writer(raw, closefd=False) as stream:
                with tarfile.open(mode="w|", fileobj=stream, format=tarfile.PAX_FORMAT) as archive:
                    _fill(archive, tree, listing, prefix.strip("/"), mtime, manifest, check)
            raw.flush()
            os.fsync(raw.fileno())
            os.fchmod(raw.fileno(), 0o644)
        os.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def _fill(
    archive: tarfile.TarFile,
    tree: Path,
    listing: OutputListing,
    prefix: str,
    mtime: int,
    manifest: bytes | None,
    check: Callable[[], None],
) -> None:
    above = ""
    for component in prefix.split("/") if prefix else ():
        above += component
        archive.addfile(_header(above, tarfile.DIRTYPE, 0o755, mtime))
        above += "/"
    if manifest is not None:
        header = _header(above + MANIFEST, tarfile.REGTYPE, 0o644, mtime)
        header.size = len(manifest)
        archive.addfile(header, io.BytesIO(manifest))
    for entry in sorted(listing.entries, key=lambda entry: entry.path):
        check()
        header = _header(above + entry.path, _TYPES[entry.kind], entry.mode, mtime)
        header.linkname = entry.target
        if entry.kind == "file":
            header.size = entry.size
            with _CheckedFile(tree, entry, check) as content:
                archive.addfile(header, content)
                content.finish()
        else:
            archive.addfile(header)


def _header(name: str, kind: bytes, mode: int, mtime: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # owner 0:0 without names
    header.type = kind
    header.mode = mode
    header.mtime = mtime
    return header


class _CheckedFile(io.RawIOBase):
    """Reads a file of the tree and holds it against its entry in the listing."""

    def __init__(self, tree: Path, entry: OutputEntry, check: Callable[[], None]) -> None:
        self._handle = os.open(tree / entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._entry = entry
        self._check = check
        self._digest = hashlib.sha256()
        self._left = entry.size

    def read(self, size: int = -1) -> bytes:
        """`size` bytes; fewer only where the file ends before it should, which is a BuildFailure."""
        self._check()
        data = os.read(self._handle, size)
        self._digest.update(data)
        self._left -= len(data)
        if len(data) < size:
            raise self._changed()
        return data

    def finish(self) -> None:
        if self._left or os.read(self._handle, 1) or self._digest.hexdigest() != self._entry.sha256:
            raise self._changed()

    def _changed(self) -> BuildFailure:
        return BuildFailure(
            "phase_failed",
            f"{self._entry.path} changed between the stage phase and the package phase",
            hint="build again; if it happens again, something writes to the output after the stage phase",
        )

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()
