"""A file of named sections, each with a checksum: read by mapping it, so that a question touches what it needs.

Layout: magic, length of the head (uint32), the head (MessagePack: name to place, length and CRC-32), sections aligned
to eight bytes. In the byte order of the machine, for it is read where it was written.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

_MAGIC = b"buildd map 1 " + sys.byteorder[:1].encode() + b"\n\0"
_HEAD = struct.Struct("=I")
_ALIGNMENT = 8


class DamagedMap(Exception):
    """A published directory is not what was published."""


class _Place(msgspec.Struct, array_like=True):
    start: int
    """From the end of the head."""
    length: int
    crc: int


def pack(sections: Mapping[str, Any]) -> bytes:
    """`sections` are bytes or contiguous arrays."""
    places: dict[str, _Place] = {}
    parts: list[bytes] = []
    position = 0
    for name, content in sections.items():
        data = memoryview(content).cast("B") if len(content) else memoryview(b"")
        places[name] = _Place(position, data.nbytes, zlib.crc32(data))
        gap = -data.nbytes % _ALIGNMENT
        parts += [data, bytes(gap)]  # type: ignore[list-item]
        position += data.nbytes + gap
    head = msgspec.msgpack.encode(places)
    start = len(_MAGIC) + _HEAD.size + len(head)
    return b"".join([_MAGIC, _HEAD.pack(len(head)), head, bytes(-start % _ALIGNMENT), *parts])


class Sections:
    """Raises DamagedMap from whatever finds it, OSError from the beginning."""

    def __init__(self, path: str) -> None:
        self._path = path
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < len(_MAGIC) + _HEAD.size:
                raise DamagedMap(f"{path} is cut short")
            self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if self._data[: len(_MAGIC)] != _MAGIC:
            raise DamagedMap(f"{path} is no index of a map")
        start = len(_MAGIC) + _HEAD.size
        end = start + _HEAD.unpack_from(self._data, len(_MAGIC))[0]
        try:
            self._places = msgspec.msgpack.decode(self._data[start:end], type=dict[str, _Place])
        except msgspec.MsgspecError as error:
            raise DamagedMap(f"{path}: {error}") from None
        self._base = end + -end % _ALIGNMENT
        size = max((place.start + place.length for place in self._places.values()), default=0)
        if len(self._data) < self._base + size:
            raise DamagedMap(f"{path} is cut short")

    def __getitem__(self, name: str) -> memoryview:
        place = self._places.get(name)
        if place is None:
            raise DamagedMap(f"{self._path} has no section {name}")
        start = self._base + place.start
        data = self._data[start : start + place.length]
        if len(data) != place.length or zlib.crc32(data) != place.crc:
            raise DamagedMap(f"{self._path}: section {name} is damaged")
        return data
