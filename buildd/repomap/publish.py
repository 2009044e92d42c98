"""Writes the directory of a map: the files for others to read, and the index that questions are answered from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from buildd.errors import encodable
from buildd.repomap import graph as graphs, languages, roles
from buildd.repomap.index import INDEX_FILE, MapIndex, Meta
from buildd.repomap.records import Record
from buildd.repomap.sections import pack
from buildd.repomap.wire import CTAGS_FILE, LEFT_OUT_FILE, TAGS_FILE, TEXT_FILE, BuildRequest, Progress, Text
from buildd.repos.trees import RawEntry
from buildd.store.tree import sync_directory

_encode = msgspec.json.Encoder().encode
_CTAGS_HEAD = (
    b"!_TAG_FILE_ENCODING\tutf-8\t//\n"
    b"!_TAG_FILE_FORMAT\t2\t/extended format/\n"
    b"!_TAG_FILE_SORTED\t1\t/0=unsorted, 1=sorted, 2=foldcase/\n"
    b"!_TAG_PROGRAM_NAME\tbuildd\t//\n"
)


class Published(NamedTuple):
    bytes: int
    """Of the directory."""
    definitions: int
    text: Text


def publish(
    request: BuildRequest,
    entries: Sequence[RawEntry],
    records: Sequence[Record | None],
    role: Sequence[int],
    left_out: dict[int, str],
    engine: str,
    report: Callable[[Progress], None],
) -> Published:
    """Fill the directory of `request` and make it durable. Raises OSError."""
    paths = [encodable(os.fsdecode(entry.path)) for entry in entries]
    of_language = [record.language if record is not None else "" for record in records]
    definitions, name_hash, names = graphs.definitions_of(
        records, [entry.path.rpartition(b"/")[0] for entry in entries]
    )
    family = graphs.family_numbers(of_language)
    roles_array = np.array(role, np.uint8)
    graph, others, other_count = graphs.graph_of(records, definitions, name_hash, family)
    teleport = np.array(
        [roles.teleport_of(entry.path, number) for entry, number in zip(entries, role, strict=True)], np.float64
    )
    teleport[sorted(left_out)] = 0.0
    scores = graphs.score(graph, definitions.file, definitions.owner, definitions.telling, roles_array, teleport)

    report(Progress(stage="writing"))
    score_texts = [b"%.6g" % value for value in scores.definitions.tolist()]
    counts = np.bincount(definitions.file, minlength=len(entries)) if entries else np.zeros(0, np.intp)
    offsets = _write_tags(request.output, paths, records, score_texts)
    _write_lines(request.output, CTAGS_FILE, _ctags(paths, records))
    _write_lines(
        request.output,
        LEFT_OUT_FILE,
        (_encode({"path": paths[number], "reason": reason}) + b"\n" for number, reason in left_out.items()),
    )
    order = np.lexsort((np.arange(len(scores.definitions)), -scores.definitions))
    mapped = np.array([record is not None for record in records], np.bool_)
    meta = Meta(commit=request.commit, engine=engine, files=len(entries), definitions=len(names) and len(score_texts))
    data = pack(
        {
            "meta": msgspec.msgpack.encode(meta),
            "paths": "\0".join(paths).encode(),
            "ids": b"".join(entry.id for entry in entries),
            "mapped": mapped,
            "role": roles_array,
            "language": np.array([languages.NUMBERS[language] for language in of_language], np.uint8),
            "family": family,
            "lines": np.array([record.lines if record is not None else 0 for record in records], np.uint32),
            "bytes": np.array([record.size if record is not None else 0 for record in records], np.uint64),
            "teleport": teleport,
            "file_score": scores.files,
            "file_definitions": counts.astype(np.uint32),
            "definition_file": definitions.file,
            "definition_kind": definitions.kind,
            "definition_outer": definitions.outer,
            "definition_owner": definitions.owner,
            "definition_name": definitions.name,
            "definition_telling": definitions.telling,
            "definition_score": scores.definitions,
            "definition_order": order.astype(np.uint32),
            "definition_offset": np.array(offsets, np.uint64),
            "names": "\0".join(names).encode("utf-8", "replace"),
            "name_hash": graph.name_hash,
            "node_name": graph.node_name,
            "node_any": graph.node_any,
            "node_weight": graph.node_weight,
            "pair_node": graph.pair_node,
            "pair_file": graph.pair_file,
            "pair_weight": graph.pair_weight,
            "edge_file": graph.edge_file,
            "edge_node": graph.edge_node,
            "edge_count": graph.edge_count,
            "edge_own": graph.edge_own,
            "own_pair": graph.own_pair,
            "any_pair": graph.any_pair,
            "base": graph.base,
            "other_words": others,
            "other_count": other_count,
        }
    )
    _write_lines(request.output, INDEX_FILE, [data])
    with MapIndex(request.output) as index:
        from buildd.repomap.questions import ranked_text

        text = ranked_text(index, request.tokens)
    _write_lines(request.output, TEXT_FILE, [text.text.encode()])
    return Published(_sync(request.output), len(score_texts), text)


def _write_tags(
    directory: str, paths: Sequence[str], records: Sequence[Record | None], scores: Sequence[bytes]
) -> list[int]:
    """Where each definition's line begins, and where the last one ends."""
    offsets = [0]
    position, number = 0, 0

    def lines() -> Iterator[bytes]:
        nonlocal position, number
        for path, record in zip(paths, records, strict=True):
            if record is None or not record.tags:
                continue
            head = b'{"path":' + _encode(path) + b","
            for members in record.tags:
                line = b'%s%s,"score":%s}\n' % (head, members, scores[number])
                number += 1
                position += len(line)
                offsets.append(position)
                yield line

    _write_lines(directory, TAGS_FILE, lines())
    return offsets


def _ctags(paths: Sequence[str], records: Sequence[Record | None]) -> Iterator[bytes]:
    lines = []
    for path, record in zip(paths, records, strict=True):
        if record is None or not record.names or not path.isprintable():
            continue
        encoded = path.encode()
        lines += [
            b"%s\t%s%s" % (name.encode("utf-8", "replace"), encoded, fields)
            for name, fields in zip(record.names, record.ctags, strict=True)
            if name.isprintable()
        ]
    lines.sort()
    yield _CTAGS_HEAD
    yield from lines


def _write_lines(directory: str, name: str, lines: Iterator[bytes] | Sequence[bytes]) -> None:
    with open(os.path.join(directory, name), "wb", buffering=1 << 20) as file:
        file.writelines(lines)


def _sync(directory: str) -> int:
    """Make everything durable; the size in bytes."""
    size = 0
    for name in sorted(os.listdir(directory)):
        fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            size += os.fstat(fd).st_size
        finally:
            os.close(fd)
    sync_directory(directory)
    return size
