"""Answers from a published map: the text, definitions, references, files.

Most questions need neither numpy nor git, whose imports take longer than the answers: they are imported where they are
needed.
"""

from __future__ import annotations

import fnmatch
import heapq
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from buildd.errors import NotFound
from buildd.model import MapRef, RankedFile
from buildd.repomap import roles
from buildd.repomap.index import MapIndex
from buildd.repomap.languages import NAMES
from buildd.repomap.outline import Line, outline
from buildd.repomap.records import KINDS
from buildd.repomap.wire import (
    Files,
    FilesRequest,
    Refs,
    RefsRequest,
    Tags,
    TagsRequest,
    Text,
    TextRequest,
)

if TYPE_CHECKING:
    from buildd.repomap.reranking import Reranked

_MAX_REF_TEXT = 200
_MAX_REF_BYTES = 64 << 20
"""Of a file that is read for its references; those of a map are smaller."""
_PATTERN = re.compile(r"[*?\[]")


def text(request: TextRequest) -> Text:
    with MapIndex(request.source.directory) as index:
        again = None
        if request.focus or request.mention:
            from buildd.repomap.reranking import rerank

            again = rerank(index, request.focus, request.mention)
        return ranked_text(index, request.tokens, again)


def ranked_text(index: MapIndex, tokens: int, again: Reranked | None = None) -> Text:
    order: Iterable[int] = index.column("definition_order", "I")
    file_score: Sequence[float] = index.column("file_score", "d")
    if again is not None:
        order, file_score = again.order, again.file_score
    file_of = index.column("definition_file", "I")
    outer_of = index.column("definition_outer", "i")
    mapped = index.column("mapped", "B")
    paths = index.paths

    def line_of(number: int) -> Line:
        tag = index.tag(number)
        depth, outer = 0, outer_of[number]
        while outer >= 0:
            depth, outer = depth + 1, outer_of[outer]
        return Line(number, tag.line, outer_of[number], depth, tag.signature)

    def best_first(files: Iterable[int]) -> list[int]:
        return sorted(files, key=lambda file: (-file_score[file], file))

    made = outline(
        order,
        tokens,
        line_of=line_of,
        file_of=file_of.__getitem__,
        path_of=lambda file: _in_one_line(paths[file]),
        best_first=best_first,
        rest=lambda: best_first(file for file in range(len(paths)) if mapped[file]),
    )
    return Text(
        text=made.text,
        tokens=made.tokens,
        files=made.files,
        definitions=made.definitions,
        unknown=again.unknown if again is not None else (),
    )


def _in_one_line(path: str) -> str:
    return path if path.isprintable() else path.encode("unicode_escape").decode()


def tags(request: TagsRequest) -> Tags:
    with MapIndex(request.source.directory) as index:
        wanted = _matching(index, request.name, request.path, request.kind)
        page = wanted[request.offset : request.offset + request.limit]
        return Tags(tags=tuple(map(index.tag, page)), total=len(wanted))


def _matching(index: MapIndex, name: str, path: str, kind: str) -> list[int]:
    """Numbers of definitions, best first."""
    order = index.column("definition_order", "I")
    tests: list[Callable[[int], bool]] = []
    if name:
        matches = _matcher(name)
        names = {number for number, known in enumerate(index.names) if matches(known)}
        name_of = index.column("definition_name", "I")
        tests.append(lambda number: name_of[number] in names)
    if path:
        files = _files_below(index.paths, path)
        file_of = index.column("definition_file", "I")
        tests.append(lambda number: file_of[number] in files)
    if kind:
        wanted = KINDS.index(kind) if kind in KINDS else -1
        kind_of = index.column("definition_kind", "B")
        tests.append(lambda number: kind_of[number] == wanted)
    found: Iterable[int] = order
    for test in tests:
        found = filter(test, found)
    return list(found)


def _matcher(pattern: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(pattern)).match if _PATTERN.search(pattern) else pattern.__eq__


def _files_below(paths: Sequence[str], path: str) -> set[int]:
    path = path.removeprefix("./").rstrip("/")
    if path in ("", "."):
        return set(range(len(paths)))
    matches = _matcher(path)
    prefix = path + "/"
    return {number for number, known in enumerate(paths) if known.startswith(prefix) or matches(known)}


def refs(request: RefsRequest) -> Refs:
    from buildd.repomap import lexer
    from buildd.repomap.contents import as_utf8
    from buildd.repomap.reranking import files_naming
    from buildd.repos.trees import GitStore

    with MapIndex(request.source.directory) as index:
        definitions = (
            _matching(index, request.name, "", "") if request.name and not _PATTERN.search(request.name) else []
        )
        files = files_naming(index, request.name)
        found: list[MapRef] = []
        total = 0
        ids, paths = index.sections["ids"], index.paths
        language = index.column("language", "B")
        name = request.name.encode()
        with GitStore(Path(request.source.repository)) as store, store.blobs() as read:
            for file in files:
                try:
                    data = read(bytes(ids[20 * file : 20 * file + 20]), _MAX_REF_BYTES)[1]
                except NotFound:
                    continue
                content = as_utf8(data) if data is not None else None
                if content is None:
                    continue
                numbers = lexer.lines_with(content, NAMES[language[file]], name)
                start = total
                total += len(numbers)
                if total > request.offset and len(found) < request.limit:
                    lines = content.split(b"\n")
                    for at, number in enumerate(numbers, start=start):
                        if at >= request.offset and len(found) < request.limit:
                            found.append(MapRef(path=paths[file], line=number, text=_shortened(lines[number - 1])))
        return Refs(definitions=tuple(map(index.tag, definitions[: request.limit])), refs=tuple(found), total=total)


def _shortened(line: bytes) -> str:
    text = " ".join(line.decode("utf-8", "replace").split())
    return text if len(text) <= _MAX_REF_TEXT else text[: _MAX_REF_TEXT - 1] + "…"


def files(request: FilesRequest) -> Files:
    with MapIndex(request.source.directory) as index:
        score, mapped = index.column("file_score", "d"), index.column("mapped", "B")
        known = [number for number in range(index.meta.files) if mapped[number]]
        best = heapq.nsmallest(request.limit, known, key=lambda number: (-score[number], number))
        language, role = index.column("language", "B"), index.column("role", "B")
        lines, size = index.column("lines", "I"), index.column("bytes", "Q")
        definitions = index.column("file_definitions", "I")
        return Files(
            files=tuple(
                RankedFile(
                    path=index.paths[number],
                    score=float(f"{score[number]:.6g}"),
                    language=NAMES[language[number]],
                    lines=lines[number],
                    bytes=size[number],
                    definitions=definitions[number],
                    role=roles.ROLES[role[number]],
                )
                for number in best
            ),
            total=len(known),
        )
