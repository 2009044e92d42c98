"""Tools that read code: the map of a repository, definitions and references, structure, documents and files.

A map is made when somebody asks for it, and not before. What needs one therefore answers that it is being made, and
waits only as long as it is told to.
"""

from __future__ import annotations

import time
from typing import Annotated

from msgspec import Meta

from buildd import protocol
from ctl.mcp.fields import (
    POLL_S,
    Line,
    NextOffset,
    NextStep,
    Offset,
    Repo,
    Revision,
    Wait,
    after,
    extend,
)
from ctl.mcp.repositories import MapState, map_state
from ctl.mcp.tool import Answer, Arguments, Call, ToolError, tool
from ctl.target import absolute
from ctl.text import plural, size

MAX_FILE_BYTES = protocol.MAX_CHUNK_BYTES
_DOCUMENT_BYTES = 16_000


class CodeArguments(Arguments, frozen=True, kw_only=True):
    repo: Repo
    revision: Revision = ""


# --- the map ----------------------------------------------------------------------------------------------


class MapArguments(CodeArguments, frozen=True, kw_only=True):
    tokens: Annotated[
        int, Meta(ge=64, le=protocol.MAX_MAP_TOKENS, description="Budget of the text, which never takes more.")
    ] = protocol.DEFAULT_MAP_TOKENS
    focus: Annotated[
        tuple[str, ...], Meta(description="Paths of files that you work on: what they lean on comes first.")
    ] = ()
    mention: Annotated[
        tuple[str, ...], Meta(description="Identifiers, or parts of paths, that you have in mind: they weigh more.")
    ] = ()
    again: Annotated[bool, Meta(description="Make the map once more, also when there is one or the last failed.")] = (
        False
    )
    wait_seconds: Wait = 0.0


class MapAnswer(Answer, frozen=True, kw_only=True):
    """The map, or how far it is."""

    status: Annotated[
        str,
        Meta(description="accepted: this call began it. building: it was under way. complete: the text is the map."),
    ]
    repo_map: MapState
    text: Annotated[
        str, Meta(description="Files by rank, each with the lines that define something; empty until complete.")
    ] = ""
    tokens: Annotated[int, Meta(description="Estimated size of the text.")] = 0
    files: Annotated[int, Meta(description="In the text.")] = 0
    definitions: Annotated[int, Meta(description="In the text.")] = 0
    unknown: Annotated[
        tuple[str, ...], Meta(description="Of `focus`, files that are not there; of `mention`, names that nothing has.")
    ] = ()
    left_out: Annotated[dict[str, int], Meta(description="Files that were not looked into, by reason.")]
    next_step: NextStep = ""

    def as_text(self) -> str:
        if self.status != "complete":
            return f"{_how_far(self.repo_map)}\n{self.next_step}"
        head = f"map of commit {self.repo_map.commit}: {plural(self.files, 'file')}, about {self.tokens} tokens"
        unknown = f"\nunknown: {', '.join(self.unknown)}" if self.unknown else ""
        return f"{head}{unknown}\n{self.next_step}\n\n{self.text}"


@tool("Outline of a repository's code")
async def get_source_repo_map(call: Call, args: MapArguments) -> MapAnswer:
    """A ranked outline of a repository: the most significant files with the signatures of what they define, within a
    budget of tokens. Begin with it when you do not know the code. The first request for a commit begins to make the
    map and answers `accepted` or `building`: call again with `wait_seconds`. `focus` and `mention` rank the same map
    anew for your task, at once. Definitions elsewhere: search_definitions; all files: get_repo_structure."""
    begun = ""
    if args.again:
        request = protocol.MapRequestParams(repo=absolute(args.repo), revision=args.revision, again=True)
        begun = (await call.daemon.call("map.request", request, protocol.MapAnswer)).status
    deadline = time.monotonic() + args.wait_seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        params = protocol.MapGetParams(
            repo=absolute(args.repo),
            revision=args.revision,
            tokens=args.tokens,
            focus=args.focus,
            mention=args.mention,
            timeout=min(POLL_S, left),
        )
        found = await call.daemon.call("map.get", params, protocol.MapText, hold=POLL_S, patience=left)
        if found.repo_map_status.status != "building" or left <= 0:
            break
        await _tell(call, found.repo_map_status)
    _raise_if_failed(found.repo_map_status, args.repo)
    complete = found.repo_map_status.status == "complete"
    return MapAnswer(
        status="complete" if complete else begun or "building",
        repo_map=map_state(found.repo_map_status),
        text=found.text,
        tokens=found.tokens,
        files=found.files,
        definitions=found.definitions,
        unknown=found.unknown,
        left_out=found.repo_map_status.left_out,
        next_step="search_definitions finds any definition; get_repo_file_content reads a file."
        if complete
        else _poll("get_source_repo_map"),
    )


def _poll(name: str) -> str:
    return f"Call {name} again with the same arguments and wait_seconds=30."


def _how_far(state: MapState) -> str:
    counted = f", {state.done} of {state.total} files" if state.total else ""
    return f"the map of commit {state.commit} is being made: {state.stage or 'begun'}{counted}"


async def _tell(call: Call, status: protocol.RepoMapStatus) -> None:
    await call.progress.tell(float(status.done), float(status.total) or None, _how_far(map_state(status)))


def _raise_if_failed(status: protocol.RepoMapStatus, repo: str) -> None:
    if status.status == "failed":
        raise ToolError(
            f"the map of {status.repository} at commit {status.commit} could not be made: {status.error}",
            f"Call get_source_repo_map with repo={repo} and again=true when the cause may be gone. get_repo_structure "
            "and get_repo_file_content need no map.",
        )


class CriticalArguments(CodeArguments, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=500)] = 30
    wait_seconds: Wait = 0.0


class CriticalAnswer(Answer, frozen=True, kw_only=True):
    """The most significant files, or how far the map is from which they are known."""

    status: Annotated[str, Meta(description="building or complete.")]
    repo_map: MapState
    files: tuple[protocol.RankedFile, ...]
    total: Annotated[int, Meta(description="Files in the map.")]
    next_step: NextStep = ""

    def as_text(self) -> str:
        if self.status != "complete":
            return f"{_how_far(self.repo_map)}\n{self.next_step}"
        head = (
            f"commit {self.repo_map.commit}: {len(self.files)} of {plural(self.total, 'file')}, most significant first"
        )
        rows = [
            f"{f.score:.4f}  {f.path}  ({', '.join(filter(None, (f.role, f.language)))}, {plural(f.lines, 'line')}, "
            f"{plural(f.definitions, 'definition')})"
            for f in self.files
        ]
        return "\n".join([head, *rows])


@tool("The most significant files")
async def get_repo_critical_files(call: Call, args: CriticalArguments) -> CriticalAnswer:
    """The files that most of the code leans on, most significant first, with language, size, number of definitions and
    role (source, test, vendored, generated, example, documentation, configuration). Needs the map, which is made when
    it is first asked for: `building` means to call again with `wait_seconds`."""
    deadline = time.monotonic() + args.wait_seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        params = protocol.FilesParams(
            repo=absolute(args.repo), revision=args.revision, limit=args.limit, timeout=min(POLL_S, left)
        )
        found = await call.daemon.call("repo.files", params, protocol.RankedFiles, hold=POLL_S, patience=left)
        if found.repo_map_status.status != "building" or left <= 0:
            break
        await _tell(call, found.repo_map_status)
    _raise_if_failed(found.repo_map_status, args.repo)
    complete = found.repo_map_status.status == "complete"
    return CriticalAnswer(
        status=found.repo_map_status.status,
        repo_map=map_state(found.repo_map_status),
        files=found.files,
        total=found.total,
        next_step="get_repo_file_content reads one." if complete else _poll("get_repo_critical_files"),
    )


# --- definitions and references ---------------------------------------------------------------------------


class DefinitionArguments(CodeArguments, frozen=True, kw_only=True):
    name: Annotated[str, Meta(description="Exact name, or a shell pattern such as parse_*. Empty: any.")] = ""
    path: Annotated[str, Meta(description="A file, a directory, or a shell pattern. Empty: anywhere.")] = ""
    kind: Annotated[str, Meta(description="class, function, method and so on. Empty: any.")] = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    offset: Offset = 0


class DefinitionPage(Answer, frozen=True, kw_only=True):
    """Definitions, best first."""

    definitions: tuple[protocol.MapTag, ...]
    total: Annotated[int, Meta(description="That fulfil the conditions.")]
    next_offset: NextOffset

    def as_text(self) -> str:
        more = f"; next offset {self.next_offset}" if self.next_offset is not None else ""
        return "\n".join([f"{plural(self.total, 'definition')}{more}", *map(_definition, self.definitions)])


def _definition(tag: protocol.MapTag) -> str:
    name = f"{tag.parent}.{tag.name}" if tag.parent else tag.name
    return f"{tag.path}:{tag.line}-{tag.end_line}: {tag.kind} {name}: {tag.signature}"


@tool("Find definitions")
async def search_definitions(call: Call, args: DefinitionArguments) -> DefinitionPage:
    """Where something is defined: classes, functions, methods and so on, by name, path and kind, most significant
    first, with file, lines and signature. Needs the map: when there is none yet, the error says how to get it."""
    params = protocol.MapTagsParams(
        repo=absolute(args.repo),
        revision=args.revision,
        name=args.name,
        path=args.path,
        kind=args.kind,
        limit=args.limit,
        offset=args.offset,
    )
    found = await call.daemon.call("map.tags", params, protocol.MapTags)
    return DefinitionPage(
        definitions=found.tags, total=found.total, next_offset=after(args.offset, len(found.tags), found.total)
    )


class ReferenceArguments(CodeArguments, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, description="An identifier, exactly.")]
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    offset: Offset = 0


class ReferencePage(Answer, frozen=True, kw_only=True):
    """Lines that name an identifier, and where it is defined."""

    definitions: tuple[protocol.MapTag, ...]
    references: tuple[protocol.MapRef, ...]
    total: Annotated[int, Meta(description="Of references.")]
    next_offset: NextOffset

    def as_text(self) -> str:
        more = f"; next offset {self.next_offset}" if self.next_offset is not None else ""
        return "\n".join(
            [
                "defined:" if self.definitions else "defined nowhere in this repository",
                *map(_definition, self.definitions),
                f"{plural(self.total, 'reference')}{more}",
                *(f"{ref.path}:{ref.line}: {ref.text}" for ref in self.references),
            ]
        )


@tool("Find references")
async def find_references(call: Call, args: ReferenceArguments) -> ReferencePage:
    """Every line of the code that names an identifier, outside comments and strings, and the definitions of it. By
    name, not by type: what shares the name is among them. Needs the map: when there is none yet, the error says how to
    get it."""
    params = protocol.MapRefsParams(
        repo=absolute(args.repo), revision=args.revision, name=args.name, limit=args.limit, offset=args.offset
    )
    found = await call.daemon.call("map.refs", params, protocol.MapRefs)
    return ReferencePage(
        definitions=found.definitions,
        references=found.refs,
        total=found.total,
        next_offset=after(args.offset, len(found.refs), found.total),
    )


# --- structure --------------------------------------------------------------------------------------------


class StructureArguments(CodeArguments, frozen=True, kw_only=True):
    path: Annotated[str, Meta(description="A directory; empty for the top.")] = ""
    depth: Annotated[int, Meta(ge=1, le=20, description="Levels of directories below it.")] = 2
    limit: Annotated[int, Meta(ge=1, le=2000, description="Most entries.")] = 300


class StructureAnswer(protocol.Tree, Answer, frozen=True, kw_only=True):
    """A directory of a commit: counts of everything below it, and its entries down to the depth."""

    next_step: NextStep = ""

    def as_text(self) -> str:
        where = self.path or "the top"
        below = f"{plural(self.files, 'file')} in {self.directories} directories, {size(self.bytes)}"
        suffixes = ", ".join(f"{suffix or 'none'} {count}" for suffix, count in self.suffixes.items())
        level = self.path.strip("/").count("/") + 1 if self.path.strip("/") else 0
        rows = [_entry(entry, level) for entry in self.entries]
        head = f"{where} at commit {self.commit}: {below}"
        return "\n".join([head, f"suffixes: {suffixes}", *rows, *([self.next_step] if self.next_step else [])])


def _entry(entry: protocol.TreeEntry, level: int) -> str:
    indent = "  " * (entry.path.count("/") - level)
    name = entry.path.rpartition("/")[2]
    match entry.type:
        case "directory":
            return f"{indent}{name}/  ({plural(entry.files, 'file')}, {size(entry.bytes)})"
        case "file":
            return f"{indent}{name}  ({size(entry.bytes)})"
        case _:
            return f"{indent}{name}  ({entry.type}, {size(entry.bytes)})"


@tool("Directories and files")
async def get_repo_structure(call: Call, args: StructureArguments) -> StructureAnswer:
    """The directory tree of a repository at a revision, with number and size of the files below each directory, and
    what the files' names end in. Needs no map. For more, ask for a directory with `path`, or for more `depth`."""
    params = protocol.TreeParams(
        repo=absolute(args.repo), revision=args.revision, path=args.path, depth=args.depth, limit=args.limit
    )
    found = await call.daemon.call("repo.tree", params, protocol.Tree)
    more = "There are more entries: ask for one of the directories with `path`, or with a larger `limit`."
    return extend(StructureAnswer, found, next_step=more if found.truncated else "")


# --- documents and files ----------------------------------------------------------------------------------


class DocumentArguments(CodeArguments, frozen=True, kw_only=True):
    path: Annotated[str, Meta(description="Only below this directory; empty for all.")] = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    content_bytes: Annotated[
        int,
        Meta(ge=0, le=MAX_FILE_BYTES, description="Bytes for the texts of the first documents; 0 only lists them."),
    ] = _DOCUMENT_BYTES


class DocumentText(Answer, frozen=True, kw_only=True):
    """The beginning of a document."""

    path: str
    text: str
    lines: Annotated[int, Meta(description="Of the whole file.")]
    next_line: Annotated[int | None, Meta(description="Where the rest begins; null when this is all.")]


class DocumentationAnswer(Answer, frozen=True, kw_only=True):
    """Documentation files, what a newcomer reads first is first, and the texts of the first ones."""

    commit: str
    documents: tuple[protocol.Document, ...]
    total: int
    texts: tuple[DocumentText, ...]
    next_step: NextStep = ""

    def as_text(self) -> str:
        rows = [f"{d.path}  ({d.kind}, {size(d.bytes)}){f'  {d.title}' if d.title else ''}" for d in self.documents]
        parts = [f"{len(rows)} of {plural(self.total, 'document')} at commit {self.commit}", *rows]
        for text in self.texts:
            rest = "" if text.next_line is None else f"\n(goes on at line {text.next_line} of {text.lines})"
            parts.append(f"\n--- {text.path}\n{text.text}{rest}")
        return "\n".join([*parts, *([self.next_step] if self.next_step else [])])


@tool("Documentation files")
async def get_repo_documentation(call: Call, args: DocumentArguments) -> DocumentationAnswer:
    """The documentation of a repository at a revision: readme, guides, changelog, license, manuals, with their titles,
    and the texts of the first ones as far as `content_bytes` goes. Needs no map."""
    params = protocol.DocumentsParams(
        repo=absolute(args.repo), revision=args.revision, path=args.path, limit=args.limit
    )
    found = await call.daemon.call("repo.docs", params, protocol.Documents)
    texts: list[DocumentText] = []
    room = args.content_bytes
    for document in found.documents:
        if room <= 0:
            break
        content = await _read(call, args.repo, found.commit, document.path, 1, None, room)
        if content.binary or not content.text:
            continue
        room -= len(content.text.encode())
        texts.append(
            DocumentText(path=content.path, text=content.text, lines=content.lines, next_line=_next_line(content))
        )
    return DocumentationAnswer(
        commit=found.commit,
        documents=found.documents,
        total=found.total,
        texts=tuple(texts),
        next_step="get_repo_file_content reads the others." if len(texts) < found.total else "",
    )


class ContentArguments(CodeArguments, frozen=True, kw_only=True):
    path: Annotated[str, Meta(min_length=1, description="From the top of the repository, as in src/main.py.")]
    first_line: Line = 1
    last_line: Annotated[Line | None, Meta(description="Included; without it, as much as fits into max_bytes.")] = None
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)] = 65_536


class ContentAnswer(protocol.FileContent, Answer, frozen=True, kw_only=True):
    """A piece of a file, by lines; `bytes` and `lines` are of the whole file."""

    next_line: Annotated[int | None, Meta(description="What to pass as first_line for the next piece.")] = None

    def as_text(self) -> str:
        if self.binary:
            return f"{self.path} at commit {self.commit} is binary: {size(self.bytes)}"
        more = "" if self.next_line is None else f"; goes on at line {self.next_line}"
        head = f"{self.path} at commit {self.commit}, lines {self.first_line}-{self.last_line} of {self.lines}{more}"
        return f"{head}\n\n{self.text}"


@tool("Contents of a file")
async def get_repo_file_content(call: Call, args: ContentArguments) -> ContentAnswer:
    """The text of a file at a revision, or some lines of it. A long file comes in pieces: `next_line` of one answer is
    the `first_line` of the next call. Binary files are only named. Needs no map."""
    found = await _read(call, args.repo, args.revision, args.path, args.first_line, args.last_line, args.max_bytes)
    wanted = args.last_line is None or found.last_line < args.last_line
    return extend(ContentAnswer, found, next_line=_next_line(found) if wanted else None)


async def _read(
    call: Call, repo: str, revision: str, path: str, first_line: int, last_line: int | None, limit: int
) -> protocol.FileContent:
    params = protocol.CatParams(
        repo=absolute(repo), revision=revision, path=path, first_line=first_line, last_line=last_line, limit=limit
    )
    return await call.daemon.call("repo.cat", params, protocol.FileContent)


def _next_line(content: protocol.FileContent) -> int | None:
    return content.last_line + 1 if content.truncated and content.last_line < content.lines else None


TOOLS = (
    get_source_repo_map,
    get_repo_structure,
    get_repo_critical_files,
    get_repo_documentation,
    get_repo_file_content,
    search_definitions,
    find_references,
)
