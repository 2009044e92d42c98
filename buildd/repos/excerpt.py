"""The text of a file of a commit, in pieces of whole lines that fit into an answer.

A line that does not fit alone is cut between two characters, and the answer says where to go on in it.
"""

from __future__ import annotations

import re
from itertools import islice

from buildd.errors import InvalidInput
from buildd.protocol import MAX_CHUNK_BYTES, CatParams, FileContent
from buildd.repos.reading import View

_MAX_FILE = 32 << 20
"""Bytes: libgit2 has a whole file in memory to show any of it."""
_BINARY_WITHIN = 8000
"""A zero byte before this one makes a file binary, as for git."""
_LONGEST_CHARACTER = 4


def excerpt(params: CatParams, view: View) -> FileContent:
    """The answer to `repo.cat`. Blocks. Raises NotFound, InvalidInput, Refused."""
    if params.first_line < 1 or params.offset < 0:
        raise InvalidInput("lines count from 1, and bytes of a line from 0")
    if params.last_line is not None and params.last_line < params.first_line:
        raise InvalidInput(f"line {params.last_line} is before line {params.first_line}")
    found = view.file(params.path)
    size = view.store.sizes([found.id])[0]
    if size > _MAX_FILE:
        raise InvalidInput(
            f"{found.path!r} has {size} bytes, more than the {_MAX_FILE} that are shown",
            hint="Look at it in a work tree, or with `git show` in the clone.",
        )
    data = view.store.read_blob(found.id, _MAX_FILE)
    binary = b"\0" in data[:_BINARY_WITHIN]
    if binary:
        data = b""
    start, end = _span(data, params)
    last = params.first_line - 1 + _count(data[start:end])
    cut = start < end < len(data) and data[end - 1 : end] != b"\n"
    lines = _count(data)
    return FileContent(
        commit=view.commit,
        path=found.path,
        bytes=size,
        lines=lines,
        first_line=params.first_line,
        last_line=last,
        text=data[start:end].decode("utf-8", "replace"),
        binary=binary,
        truncated=cut or last < lines,
        next_offset=params.offset + end - start if cut else 0,
    )


def _span(data: bytes, params: CatParams) -> tuple[int, int]:
    """Where in the data the piece is that was asked for and fits. Raises InvalidInput."""
    limit = max(_LONGEST_CHARACTER, min(params.limit, MAX_CHUNK_BYTES))
    line, following = (_start_of(data, params.first_line + n) for n in (0, 1))
    start = line + params.offset
    if params.offset and start >= following:
        raise InvalidInput(f"line {params.first_line} has only {following - line} bytes")
    end = len(data) if params.last_line is None else _start_of(data, params.last_line + 1)
    if end - start <= limit:
        return start, end
    whole = data.rfind(b"\n", start, start + limit) + 1
    return start, whole if whole > start else _between_characters(data, start + limit)


def _count(data: bytes) -> int:
    """Lines, the last of which may lack its end."""
    return data.count(b"\n") + bool(data and not data.endswith(b"\n"))


def _start_of(data: bytes, line: int) -> int:
    """Where a line begins; the end of the data when there is no such line."""
    if line == 1:
        return 0
    end = next(islice(re.finditer(b"\n", data), line - 2, None), None)
    return end.end() if end is not None else len(data)


def _between_characters(data: bytes, end: int) -> int:
    """`end`, or up to three bytes before it, so that no character of UTF-8 is split there."""
    for before in range(end, end - _LONGEST_CHARACTER, -1):
        if data[before] & 0xC0 != 0x80:
            return before
    return end  # not UTF-8 here
