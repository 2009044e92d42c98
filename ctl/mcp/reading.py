"""Tools that read the directories, documents and files of a commit. They need no map."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from buildd import protocol
from ctl.mcp.fields import CodeArguments, Line, NextStep, extend
from ctl.mcp.tool import Answer, Call, tool
from ctl.target import absolute
from ctl.text import plural, size

MAX_FILE_BYTES = protocol.MAX_CHUNK_BYTES
_DOCUMENT_BYTES = 16_000


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


TOOLS = (get_repo_structure, get_repo_documentation, get_repo_file_content)
