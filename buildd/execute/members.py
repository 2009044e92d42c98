"""Reading the members of tar and zip archives into a `Landing`, by the modules of the standard library.

Those trust what an archive says about itself in places (sizes of headers, its number of members, where it ends);
the files they are given here do not let them.

Invariant: an archive is read to its end, or the reason why it could not be is raised as ArchiveError.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

from buildd.execute.inflate import BROKEN, ByteStream
from buildd.execute.unpack import ArchiveError, Landing, printable

_CHUNK = 1 << 18
_HEADER = 1 << 16  # bytes of headers before one member of a tar: long names and attributes, held in memory
_GLOBAL_HEADERS = 1000
_DIRECTORY = 32 << 20  # bytes of a zip's central directory, which is held in memory as well
_LINK = 4096
_LABEL = b"V"  # of GNU tar: a name for the volume
_KINDS = {tarfile.CHRTYPE: "a character device", tarfile.BLKTYPE: "a block device", tarfile.FIFOTYPE: "a fifo"}
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}  # LZMA may ask for any memory
_UNIX = 3


# --- tar ----------------------------------------------------------------------------------------------------


_DIGITS = re.compile(rb"[0-9]{65}")  # on long runs, the patterns in tarfile take quadratic time


class ForwardFile:
    """A stream as tarfile wants it, `seek` and `tell` included, but forwards only and counted.

    tarfile reads headers whole, however large they say they are, and stops without a word at one it does not
    understand; `headers` and `ended` are there to notice.
    """

    def __init__(self, stream: ByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._position = 0
        self._headers: int | None = None
        self.last = b""

    def headers(self, limit: int | None) -> None:
        """From now on, headers of up to `limit` bytes are read; or, with None, the content of a member."""
        self._headers = limit

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise ArchiveError("a header has a size that makes no sense")
        while self._position < position:
            if not self._take(min(position - self._position, _CHUNK)):
                break
        return self._position

    def read(self, size: int) -> bytes:
        if size < 0 or (self._headers is not None and size > self._headers):
            raise ArchiveError("a header is too large")
        if self._headers is not None:
            self._headers -= size
        pieces = []
        while size > 0 and (piece := self._take(size)):
            pieces.append(piece)
            size -= len(piece)
        self.last = b"".join(pieces)
        if self._headers is not None and len(self.last) > tarfile.BLOCKSIZE and _DIGITS.search(self.last):
            raise ArchiveError("a header holds a number of more than 64 digits")
        return self.last

    def drain(self) -> None:
        """Read on to the end, where most formats have a checksum."""
        while self._take(_CHUNK):
            pass

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        if self._position > self._limit:
            raise ArchiveError(f"the decompressed archive is larger than {self._limit} bytes")
        return data


def read_tar(stream: ForwardFile, landing: Landing, ends: bool) -> None:
    """Put all members of a tar archive into `landing`. `ends`: a stream that breaks off raises one of BROKEN."""
    name = after = ""
    try:
        stream.headers(_HEADER)
        archive = tarfile.TarFile(fileobj=cast(BinaryIO, stream), mode="r")  # has what is used
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all; the stubs lack it
            name = member.name
            stream.headers(None)
            _tar_member(stream, archive, member, landing)
            name, after = "", name
            stream.headers(_HEADER)
    except ArchiveError as error:
        raise ArchiveError(f"{printable(name)}: {error}" if name else str(error)) from error
    except (tarfile.TarError, RecursionError, ValueError, OverflowError, *BROKEN) as error:
        if is_of_the_disk(error):
            raise
        where = f"in {printable(name)}" if name else f"after {printable(after)}" if after else "at its start"
        raise ArchiveError(f"the archive is damaged {where}: {text_of(error)}") from error
    if len(stream.last) == tarfile.BLOCKSIZE and not any(stream.last):
        try:
            stream.drain()
        except BROKEN as error:
            if is_of_the_disk(error):
                raise
            raise ArchiveError(f"the archive is damaged at its end: {text_of(error)}") from error
    elif stream.last or not ends:
        raise ArchiveError(f"the archive is damaged or breaks off after {printable(after)}")


def _tar_member(stream: ForwardFile, archive: tarfile.TarFile, member: tarfile.TarInfo, landing: Landing) -> None:
    if len(archive.pax_headers) > _GLOBAL_HEADERS:
        raise ArchiveError("there are too many global headers")
    if member.type == _LABEL:
        return
    if member.size < 0:
        raise ArchiveError("its size is negative")
    parts = landing.place(member.name)
    if parts is None:
        return
    if member.isdir():
        landing.directory(parts)
    elif member.issym():
        landing.symlink(parts, member.linkname)
    elif member.islnk():
        landing.hardlink(parts, member.linkname)
    elif member.isreg() and member.type in tarfile.SUPPORTED_TYPES:
        landing.file(parts, bool(member.mode & 0o111), _tar_content(archive, member))
    else:
        kind = _KINDS.get(member.type, f"of the unknown type {member.type!r}")
        raise ArchiveError(f"it is {kind}, and only files, directories and links are extracted")


def _tar_content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    content = archive.extractfile(member)
    if content is None:
        raise ArchiveError("it has no content")
    left = member.size
    while left:
        data = content.read(min(left, _CHUNK))
        if not data:
            raise ArchiveError("the archive breaks off within it")
        left -= len(data)
        yield data


# --- zip ----------------------------------------------------------------------------------------------------


class _GuardedFile:
    """The file of a zip archive; refuses to read a central directory that would not fit into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable
        self.close = file.close

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size if 0 <= size <= _DIRECTORY else _DIRECTORY + 1)
        if len(data) > _DIRECTORY:
            raise ArchiveError("its directory is too large")
        return data


def read_zip(file: IO[bytes], landing: Landing) -> None:
    """Put all members of a zip archive into `landing`."""
    name = ""
    try:
        with zipfile.ZipFile(_GuardedFile(file)) as archive:
            for member in archive.infolist():
                name = member.orig_filename
                _zip_member(archive, member, landing)
    except ArchiveError as error:
        raise ArchiveError(f"{printable(name)}: {error}" if name else str(error)) from error
    except (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, struct.error, *BROKEN) as error:
        if is_of_the_disk(error):
            raise
        where = f"{printable(name)} in it is damaged" if name else "it is damaged"
        raise ArchiveError(f"{where}: {text_of(error)}") from error


def _zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, landing: Landing) -> None:
    parts = landing.place(member.orig_filename)
    if parts is None:
        return
    if member.flag_bits & 1:
        raise ArchiveError("it is encrypted")
    if member.compress_type not in _ZIP_METHODS:
        raise ArchiveError(f"it is compressed by method {member.compress_type}, which is not supported")
    mode = member.external_attr >> 16 if member.create_system == _UNIX else 0
    kind = stat.S_IFMT(mode)
    if member.orig_filename.endswith("/") or kind == stat.S_IFDIR:
        landing.directory(parts)
    elif kind == stat.S_IFLNK:
        with archive.open(member) as content:
            target = content.read(_LINK + 1)
        if len(target) > _LINK:
            raise ArchiveError("the target of the link is too long")
        landing.symlink(parts, os.fsdecode(target))
    elif kind in {0, stat.S_IFREG}:
        with archive.open(member) as content:
            landing.file(parts, bool(mode & 0o111), iter(lambda: content.read(_CHUNK), b""))
    else:
        raise ArchiveError("it is a device, a fifo or a socket, and only files, directories and links are extracted")


# --- errors of libraries ---


def is_of_the_disk(error: BaseException) -> bool:
    """Whether it is the system that failed, and not the archive: only that gives a number."""
    return isinstance(error, OSError) and error.errno is not None


def text_of(error: BaseException) -> str:
    """The text of an exception of a library; some quote what they found, so it is made printable and short."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(error))
    return text.encode("ascii", "replace").decode()[:200] or type(error).__name__
