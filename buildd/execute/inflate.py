"""Compressed streams of unknown origin, read with bounded memory.

Invariant: a reader holds one chunk and what the format's window takes, never much more than `WINDOW`, whatever a
header claims.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Protocol, cast

import zstandard

if TYPE_CHECKING:
    from typing_extensions import Buffer  # known to type checkers; in the library from Python 3.12 on

WINDOW = 1 << 27
"""Bytes of history a stream may refer to; what `zstd` and `xz -9` use by default fits."""

_CHUNK = 1 << 16
_XZ_MEMORY = WINDOW + (1 << 24)


class ByteStream(Protocol):
    """All that is needed of a decompressed file."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


class _XzStream(io.RawIOBase):
    """lzma.LZMAFile, with a limit on memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = self._new()
        self._input = b""

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        while True:
            if self._decoder.eof and not self._next_stream():
                return 0
            if self._decoder.needs_input and not self._input:
                self._input = self._file.read(_CHUNK)
                if not self._input:
                    raise EOFError("the compressed data breaks off")
            data = self._decoder.decompress(self._input, len(view))
            self._input = b""
            if data:
                view[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bool:
        """Whether another stream follows; zero bytes between streams are padding."""
        rest = self._decoder.unused_data or b""
        while not rest.lstrip(b"\0"):
            rest = self._file.read(_CHUNK)
            if not rest:
                return False
        self._decoder = self._new()
        self._input = rest.lstrip(b"\0")
        return True


_MAGIC: tuple[tuple[bytes, Callable[[IO[bytes]], ByteStream]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    (b"BZh", lambda file: bz2.BZ2File(file)),
    (b"\xfd7zXZ\0", lambda file: io.BufferedReader(_XzStream(file), _CHUNK)),
    (b"\x28\xb5\x2f\xfd", lambda file: _zstd(file)),
)

BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
"""What reading a damaged stream raises (gzip and bz2 use OSError)."""


def _zstd(file: IO[bytes]) -> ByteStream:
    decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    return cast(ByteStream, decoder.stream_reader(file, read_across_frames=True))  # is one, but untyped as such


def inflated(file: IO[bytes]) -> tuple[ByteStream, bool]:
    """The decompressed content of `file`, by its first bytes, or `file` itself if it is not compressed.

    Also whether a stream that breaks off raises one of `BROKEN`; with zstd, and of course without compression,
    it just ends.
    """
    start = file.read(6)
    file.seek(0)
    for magic, opened in _MAGIC:
        if start.startswith(magic):
            return opened(file), magic != _MAGIC[-1][0]
    return file, False
