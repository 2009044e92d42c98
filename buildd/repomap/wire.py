"""What daemon and map process say to each other: one request on stdin, JSON lines back on stdout.

A map is made by `BuildRequest` in a process of its own, which fills an empty directory; the daemon publishes that by a
rename. Questions are answered from a published directory, each by a process of its own too: loading a large map takes
memory that goes with it. The last line is the answer, or `Failure`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from buildd.model import MapRef, MapTag, RankedFile

Stage = Literal["listing", "parsing", "ranking", "writing"]
FailureClass = Literal["not_found", "invalid", "disk_full", "damaged", "other"]
"""`not_found` and `invalid` are faults of the question, `damaged` one of the published directory."""

MAX_LINE = 16 << 20
MAX_TEXT = 128 * 1024
"""Characters of a text that comes with its map."""


class BuildRequest(Struct, frozen=True, kw_only=True, tag="build"):
    """Map a commit."""

    parent_pid: int
    """The daemon; the process ends when that is not its parent (any more)."""
    repository: str
    """Path of a bare repository or of a work tree."""
    commit: str
    output: str
    """An empty directory, to be filled and made durable."""
    cache: str
    """Database of what is known of blobs; made when it is not there."""
    processes: int
    """That parse side by side."""
    tokens: int
    """Budget of the `map.txt` that is written."""
    max_file_bytes: int
    """Larger files are left out."""
    max_file_s: float
    """Files that take longer to parse are left out."""
    max_cache_bytes: int


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    stage: Stage
    done: int = 0
    total: int = 0
    """Files, of `parsing`."""


class Built(Struct, frozen=True, kw_only=True, tag="built"):
    files: int
    """In the commit."""
    mapped: int
    """Files that were looked into."""
    parsed: int
    """Files that no earlier map knew of, those that were left out included."""
    definitions: int
    left_out: dict[str, int]
    """Number of files that were left out, by reason; each is in `left_out.jsonl`."""
    bytes: int
    """Of the published directory."""
    engine: str
    """Version of what made it: another one makes another map of the same commit."""
    text: Text | None
    """What `map.txt` has: the answer to a question for as many tokens, without a focus. None if it is long."""


class Source(Struct, frozen=True, kw_only=True):
    """A published map and the repository that it is of."""

    parent_pid: int
    directory: str
    repository: str
    commit: str


class TextRequest(Struct, frozen=True, kw_only=True, tag="text"):
    """The ranked outline under a budget, ranked again for what is asked."""

    source: Source
    tokens: int
    focus: tuple[str, ...] = ()
    """Paths of files that the reader works on."""
    mention: tuple[str, ...] = ()
    """Identifiers, or parts of paths, that the reader has in mind."""


class Text(Struct, frozen=True, kw_only=True, tag="text"):
    text: str
    tokens: int
    """Estimated, never more than asked for."""
    files: int
    """In the text."""
    definitions: int
    unknown: tuple[str, ...] = ()
    """Focus files that are not in the commit, and mentioned names that nothing has."""


class TagsRequest(Struct, frozen=True, kw_only=True, tag="tags"):
    """Definitions, best first. Empty conditions let everything through."""

    source: Source
    name: str = ""
    """Exact, or a shell pattern."""
    path: str = ""
    """A file, a directory, or a shell pattern."""
    kind: str = ""
    limit: int = 100
    offset: int = 0


class Tags(Struct, frozen=True, kw_only=True, tag="tags"):
    tags: tuple[MapTag, ...]
    total: int
    """That fulfil the conditions."""


class RefsRequest(Struct, frozen=True, kw_only=True, tag="refs"):
    """Lines that name an identifier, outside comments and strings, in the files that lean on it most first."""

    source: Source
    name: str
    limit: int = 100
    offset: int = 0


class Refs(Struct, frozen=True, kw_only=True, tag="refs"):
    definitions: tuple[MapTag, ...]
    refs: tuple[MapRef, ...]
    total: int


class FilesRequest(Struct, frozen=True, kw_only=True, tag="files"):
    """Files by significance."""

    source: Source
    limit: int = 50


class Files(Struct, frozen=True, kw_only=True, tag="files"):
    files: tuple[RankedFile, ...]
    total: int


class Failure(Struct, frozen=True, kw_only=True, tag="failure"):
    kind: FailureClass
    message: str


Request = BuildRequest | TextRequest | TagsRequest | RefsRequest | FilesRequest
Answer = Built | Text | Tags | Refs | Files
Reply = Progress | Answer | Failure

TAGS_FILE, CTAGS_FILE, LEFT_OUT_FILE, TEXT_FILE = "tags.jsonl", "tags", "left_out.jsonl", "map.txt"
"""What a published directory has for others to read, beside what belongs to the map process alone."""
