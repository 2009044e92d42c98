"""From a blob's bytes to its record: sort out, tell the language, find definitions and references."""

from __future__ import annotations

import gc
import os
import re
import struct
from array import array
from collections.abc import Callable
from pathlib import Path

import msgspec

from buildd.errors import NotFound
from buildd.repomap import contents, languages, lexer, tagger
from buildd.repomap.qualified import MEMBER
from buildd.repomap.records import KIND_NUMBERS, TYPES, Record, Task, word_hash
from buildd.repos.trees import GitStore

FRAME = struct.Struct("=I")

_MAX_COUNT = 0xFFFF
_WORD_STARTS = re.compile(r"[a-z0-9][A-Z]|[A-Za-z0-9]_+[A-Za-z0-9]")
_LONG = 8
_TYPE_WEIGHT = 28
_MAX_HASHES = 1 << 15


class _Hashes(dict[bytes, int]):
    """Of words that were seen lately: most words occur in many files."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _MAX_HASHES:
            self.clear()
        hash = self[word] = word_hash(word)
        return hash


_hashes = _Hashes()


def examine(data: bytes, hint: str) -> Record:
    size = len(data)
    reason = contents.sort_out(data)
    text = contents.as_utf8(data) if reason is None else None
    if text is None:
        return Record(size, reason or "binary")
    language = languages.language_of(hint, text)
    found = tagger.definitions(text, language) if language else []
    defined = {definition.name.encode("utf-8", "replace"): definition.kind for definition in found}
    counts = lexer.references(text, language, defined)
    by_hash = dict(zip(map(_hashes.__getitem__, counts), counts.values(), strict=True))
    words = sorted(by_hash)
    return Record(
        size=size,
        language=language,
        lines=contents.count_lines(text),
        generated=contents.says_generated(text),
        words=array("Q", words).tobytes(),
        counts=_half_words([by_hash[word] for word in words]),
        names=tuple(definition.name for definition in found),
        hashes=array("Q", [_hashes[_named(definition, language)] for definition in found]).tobytes(),
        owners=_owners(found),
        weights=bytes(weight_of(definition, language) for definition in found),
        kinds=bytes(KIND_NUMBERS[definition.kind] for definition in found),
        places=array("i", [place for one in found for place in (one.line, one.end_line, one.enclosing)]).tobytes(),
        tags=tuple(map(tagger.tag_members, found)),
        ctags=tuple(
            tagger.ctags_fields(definition, found[definition.enclosing] if definition.enclosing >= 0 else None)
            for definition in found
        ),
    )


def _named(definition: tagger.Definition, language: str) -> bytes:
    """The word by which others name it."""
    name = definition.name.encode("utf-8", "replace")
    return MEMBER + name if language == "go" and definition.kind == "method" else name


def _owners(found: list[tagger.Definition]) -> bytes:
    owners = array("Q")
    for definition in found:
        owner = ""
        if definition.enclosing < 0:
            owner = definition.parent.rpartition(".")[2]
        elif found[definition.enclosing].kind == "implementation":
            owner = found[definition.enclosing].name
        owners.append(_hashes[owner.encode("utf-8", "replace")] if owner else 0)
    return owners.tobytes()


def _half_words(counts: list[int]) -> bytes:
    try:
        return array("H", counts).tobytes()
    except OverflowError:  # hardly ever
        return array("H", [min(count, _MAX_COUNT) for count in counts]).tobytes()


def weight_of(definition: tagger.Definition, language: str) -> int:
    """How much it tells that a text has this name, in sixteenths.

    Long names of several words hardly occur by chance; short ones do, and private ones are no concern of other files.
    """
    name, weight = definition.name, 16
    if len(name) >= _LONG and _WORD_STARTS.search(name):
        weight = 40
    elif len(name) >= _LONG:
        weight = 24
    elif len(name) <= 3:
        weight = 6
    if definition.kind in TYPES:
        weight = max(weight, _TYPE_WEIGHT)
    if name.startswith(("_", "#")):
        weight //= 4
    elif (language == "go" and name[:1].islower()) or definition.signature.startswith("private "):
        weight //= 2
    return weight


def serve(repository: str, max_file_bytes: int, requests: int, replies: int) -> None:
    """Answer batches of tasks on one descriptor by records on the other, until there are no more."""
    gc.freeze()
    gc.disable()  # nothing here makes cycles
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Task])
    with GitStore(Path(repository)) as store, store.blobs() as read, open(requests, "rb") as batches:
        while header := batches.read(FRAME.size):
            for id, hint in decoder.decode(batches.read(FRAME.unpack(header)[0])):
                record = _record(read, id, hint, max_file_bytes)
                data = encoder.encode(record)
                _write(replies, FRAME.pack(len(data)) + data)


def _record(read: Callable[[bytes, int], tuple[int, bytes | None]], id: bytes, hint: str, limit: int) -> Record:
    try:
        size, data = read(id, limit)
    except NotFound:
        return Record(0, "missing")
    return Record(size, "too_large") if data is None else examine(data, hint)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
