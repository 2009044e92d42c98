"""The extract phase: tar archives (plain or compressed) and zip files; any other file is copied as it is.

The content decides what a file is, not its name; but a name that promises an archive which is not there is an
error. Archives are untrusted: what may land where is decided in `unpack`, and nothing reaches the destination
before the whole archive was read without a complaint.

Invariant: after an error or a cancel the destination is as it was before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from msgspec import Struct

from buildd.errors import BuildFailure
from buildd.execute.inflate import BROKEN, inflated
from buildd.execute.members import ForwardFile, read_tar, read_zip, text_of
from buildd.execute.unpack import ArchiveError, ExtractLimits, Landing, merge
from buildd.store.tree import DIRECTORY, remove_tree, uncancelled

__all__ = ["ExtractLimits", "Extracted", "copy_file", "extract", "source_directory"]

_CHUNK = 1 << 18
_NAMED = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip")
_WHOLE = (".jar", ".war", ".whl", ".egg", ".apk", ".epub", ".docx", ".xlsx", ".odt")
"""Files that happen to be zip archives, but are used as they are."""


class Extracted(Struct, frozen=True, kw_only=True):
    """What an extraction did, for the log."""

    members: int
    bytes: int


def source_directory(srcdir: Path, into: str) -> Path:
    """The directory below `srcdir` that a source with this `into` goes to, made if need be.

    The package's subtree is foreign as well: a component that is a link there would lead the extraction out of
    it. Raises BuildFailure (`phase_failed`) for that, and for an `into` that leads out by itself.
    """
    parts = [part for part in into.split("/") if part not in {"", "."}]
    if into.startswith("/") or ".." in parts:
        raise BuildFailure(
            "phase_failed",
            f"`into` of a source leads out of the package's directory: {into}",
            hint="give a path relative to that directory, without `..`",
        )
    path = srcdir
    for part in parts:
        path /= part
        try:
            path.mkdir(0o755, exist_ok=True)
            os.close(os.open(path, DIRECTORY))
        except (FileExistsError, NotADirectoryError):
            raise BuildFailure(
                "phase_failed",
                f"`into` of a source: {path.relative_to(srcdir)} is not a directory",
                hint="choose another directory, or remove the file or link of that name from the package",
            ) from None
    return path


def extract(
    archive: Path,
    dest: Path,
    *,
    filename: str,
    strip: int | None,
    limits: ExtractLimits,
    mtime: int,
    check: Callable[[], None] = uncancelled,
) -> Extracted:
    """Extract `archive`, which was published as `filename`, into the directory `dest`; see `source_directory`.

    `strip` is the number of leading components to drop from every name (members with fewer are left out); None
    drops one if that is a directory which all members share. A file that is no archive is copied. All times
    become `mtime`, seconds since the epoch. Blocks; `check` is called between chunks and may raise. Raises
    BuildFailure: `phase_failed` naming the archive and the member, or `disk_full`.
    """
    with _disk_trouble(filename, dest), archive.open("rb") as file:
        reader = _reader(file, filename, limits)
        if reader is None:
            reader, strip = partial(_copy, file, filename), 0
        return _unpack(reader, dest, filename, strip, limits, mtime, check)


def copy_file(
    file: Path,
    dest: Path,
    *,
    filename: str,
    limits: ExtractLimits,
    mtime: int,
    check: Callable[[], None] = uncancelled,
) -> Extracted:
    """Put a copy of `file` into the directory `dest` under the name `filename`; otherwise as `extract`."""
    with _disk_trouble(filename, dest), file.open("rb") as source:
        return _unpack(partial(_copy, source, filename), dest, filename, 0, limits, mtime, check)


def _copy(file: IO[bytes], filename: str, landing: Landing) -> None:
    """The reader of a file that is no archive."""
    file.seek(0)
    parts = landing.place(filename)
    if parts is None or len(parts) != 1:
        raise ArchiveError("its name is not a plain file name")
    landing.file(parts, False, iter(partial(file.read, _CHUNK), b""))


Reader = Callable[[Landing], None]
"""Puts every member of one archive into a landing."""


def _reader(file: IO[bytes], filename: str, limits: ExtractLimits) -> Reader | None:
    """How to read `file`; None if it is no archive."""
    named = filename.lower().endswith(_NAMED)
    start = file.read(4)
    file.seek(0)
    if start in {b"PK\x03\x04", b"PK\x05\x06"}:
        return None if filename.lower().endswith(_WHOLE) else lambda landing: read_zip(file, landing)
    stream, ends = inflated(file)
    try:
        block = stream.read(tarfile.BLOCKSIZE)
        while 0 < len(block) < tarfile.BLOCKSIZE and (more := stream.read(tarfile.BLOCKSIZE - len(block))):
            block += more
        is_tar = _is_tar_header(block)
    except BROKEN as error:
        if named:
            raise _failure(f"{filename} is damaged: {text_of(error)}") from error
        is_tar = False
    if is_tar:
        file.seek(0)
        stream, ends = inflated(file)
        return lambda landing: read_tar(ForwardFile(stream, limits.max_bytes), landing, ends)
    if named:
        raise _failure(f"{filename} is not the archive that its name promises")
    return None


def _is_tar_header(block: bytes) -> bool:
    if len(block) != tarfile.BLOCKSIZE:
        return False
    if not any(block):
        return True  # an empty archive
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unpack(
    reader: Reader,
    dest: Path,
    filename: str,
    strip: int | None,
    limits: ExtractLimits,
    mtime: int,
    check: Callable[[], None],
) -> Extracted:
    """Fill a staging directory beside what is in `dest`, and merge it in when all of it is well."""
    staging = dest / f".extract-{secrets.token_hex(8)}"
    staging.mkdir(0o700)
    try:
        with _opened(staging) as root:
            landing = Landing(root, limits, strip or 0, mtime, check)
            try:
                reader(landing)
                top = _common_top(staging) if strip is None else ""
                landing.check_links(1 if top else 0)
                if strip and landing.members and not any(staging.iterdir()):
                    raise ArchiveError(f"nothing is left of it after dropping {strip} leading components")
                landing.settle()
            except ArchiveError as error:
                raise _failure(f"{filename} cannot be extracted: {error}") from error
            finally:
                landing.close()
        with _opened(staging / top) as source, _opened(dest) as target:
            merge(source, target, mtime)
    finally:
        remove_tree(staging)
        os.utime(dest, (mtime, mtime))
    return Extracted(members=landing.members, bytes=landing.bytes)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    handle = os.open(directory, DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def _common_top(staging: Path) -> str:
    """The one directory that holds everything, or ""."""
    with os.scandir(staging) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    return found[0][0] if len(found) == 1 and found[0][1] else ""


# --- messages -----------------------------------------------------------------------------------------------


def _failure(message: str) -> BuildFailure:
    return BuildFailure(
        "phase_failed",
        message,
        hint="check the file at its url; with `extract = false` it is handed to the phases as it is",
    )


@contextlib.contextmanager
def _disk_trouble(filename: str, dest: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise BuildFailure(
            "disk_full" if full else "phase_failed",
            f"cannot extract {filename} to {dest}: {error.strerror or error}",
            hint="free some space" if full else "",
        ) from error
