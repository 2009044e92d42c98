"""A published map, as questions see it: columns mapped from the index, definitions that are read one by one."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import msgspec

from buildd.model import MapTag
from buildd.repomap.sections import DamagedMap, Sections
from buildd.repomap.wire import TAGS_FILE

INDEX_FILE = "index"

_decode_tag = msgspec.json.Decoder(MapTag).decode


class Meta(msgspec.Struct, frozen=True):
    commit: str
    engine: str
    files: int
    definitions: int


class MapIndex:
    """Columns are memoryviews by `column`; whoever calculates wraps them in arrays. Raises DamagedMap, OSError."""

    def __init__(self, directory: str) -> None:
        self.sections = Sections(os.path.join(directory, INDEX_FILE))
        self._tags = os.open(os.path.join(directory, TAGS_FILE), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.meta = msgspec.msgpack.decode(self.sections["meta"], type=Meta)
        except msgspec.MsgspecError as error:
            raise DamagedMap(f"{directory}: {error}") from None

    def __enter__(self) -> MapIndex:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._tags)

    def column(self, name: str, format: str) -> memoryview[Any]:
        """`format` as in `struct`."""
        return self.sections[name].cast(format)  # type: ignore[call-overload,no-any-return]

    @cached_property
    def paths(self) -> list[str]:
        text = bytes(self.sections["paths"]).decode()
        return text.split("\0") if self.meta.files else []

    @cached_property
    def names(self) -> list[str]:
        text = bytes(self.sections["names"]).decode()
        return text.split("\0") if self.meta.definitions else []

    @cached_property
    def _offsets(self) -> memoryview[int]:
        return self.column("definition_offset", "Q")

    def tag(self, number: int) -> MapTag:
        """A definition by its number, which counts in the order of `tags.jsonl`."""
        start, end = self._offsets[number], self._offsets[number + 1]
        try:
            return _decode_tag(os.pread(self._tags, end - start, start))
        except msgspec.MsgspecError as error:
            raise DamagedMap(f"{TAGS_FILE} is not what was written: {error}") from None
