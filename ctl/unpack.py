"""Unpacking a fetched artifact. Imported by `artifacts get --extract` only: tarfile and zstandard take their time.

Invariant: nothing is written outside the directory that was named, whatever the archive says.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO

import zstandard

from ctl.failure import CtlError
from ctl.text import printable


def unpack(packed: BinaryIO, directory: Path) -> None:
    """Extract a .tar.zst below `directory`. Raises CtlError for members that would land elsewhere.

    tarfile's own filters would do, but Debian 12's Python has none, and the strict one refuses the absolute links
    that packages may well have: here links are written as they are, and never followed.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with zstandard.ZstdDecompressor().stream_reader(packed) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    _unpack_member(archive, member, directory)
    except (tarfile.TarError, zstandard.ZstdError, OSError) as error:
        raise CtlError(f"cannot extract to {directory}: {error}", hint="get the file and look at it by hand") from None


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    """Raises OSError for a member that leads out of `directory`, or is neither file, directory nor link."""
    target = _place(member.name, directory)
    if member.isdir():
        target.mkdir(exist_ok=True)
        return
    if target.is_symlink() or target.is_file():
        target.unlink()
    content = archive.extractfile(member) if member.isfile() else None
    if content is not None:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, member.mode & 0o755 | 0o200)
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(content, file)
    elif member.issym():
        target.symlink_to(member.linkname)
    else:
        raise OSError(f"{printable(member.name)} is neither a file nor a directory nor a link")


def _place(name: str, directory: Path) -> Path:
    """Where a member goes; the directories on the way are made, and none of them is a link."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise OSError(f"{printable(name)} leads out of it")
    for part in parts[:-1]:
        directory = directory / part
        if directory.is_symlink():
            raise OSError(f"{printable(name)} leads through a link")
        directory.mkdir(exist_ok=True)
    return directory / parts[-1]
