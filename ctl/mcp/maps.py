"""Tools that answer from the map of a repository: the outline, significant files, definitions and references.

A map is made when somebody asks for it first. What needs one answers at once that it is being made, and waits only as
long as it is told to.
"""

from __future__ import annotations

import time
from typing import Annotated

from msgspec import Meta

from buildd import protocol
from buildd.protocol import RepoMapStatus
from ctl.failure import NOT_FOUND, CtlError
from ctl.mcp.fields import POLL_S, CodeArguments, NextOffset, NextStep, Offset, Wait, following
from ctl.mcp.repositories import MapState, map_state
from ctl.mcp.tool import Answer, Call, ToolError, tool
from ctl.mcp.waiting import newest_event
from ctl.target import absolute
from ctl.text import plural

_ENDINGS = ("map_completed", "map_failed")


# --- making one -------------------------------------------------------------------------------------------


async def _map(call: Call, args: CodeArguments, seconds: float, *, again: bool = False) -> tuple[RepoMapStatus, bool]:
    """The state of a map that is complete or being made, waited for so many seconds; and whether this call began it.

    Raises ToolError when it could not be made: that is begun again only when somebody says so.
    """
    deadline = time.monotonic() + seconds
    after = await newest_event(call) if seconds else 0
    # without a revision the daemon may answer for the commit that was mapped last, which need not be the newest
    status, begun = await _status(call, args.repo, args.revision or "HEAD"), False
    if status is None or again:
        request = protocol.MapRequestParams(repo=absolute(args.repo), revision=args.revision, again=again)
        answer = await call.daemon.call("map.request", request, protocol.MapAnswer)
        status, begun = answer.repo_map_status, answer.status == "accepted"
    while status is not None and status.status == "building" and (left := deadline - time.monotonic()) > 0:
        await call.progress.tell(float(status.done), float(status.total) or None, _how_far(map_state(status)))
        params = protocol.PollParams(after=after, timeout=min(POLL_S, left), kinds=_ENDINGS)
        after = (await call.daemon.call("events.poll", params, protocol.PollResult, hold=POLL_S, patience=left)).next
        status = await _status(call, args.repo, status.commit, patience=left)
    if status is None:
        raise ToolError("the map is gone again: it was removed meanwhile", "Call get_source_repo_map for another one.")
    if status.status == "failed":
        raise ToolError(
            f"the map of {status.repository} at commit {status.commit} could not be made: {status.error}",
            f"Call get_source_repo_map with repo={status.repository}, the same revision and again=true when the cause "
            "may be gone. get_repo_structure and get_repo_file_content need no map.",
        )
    return status, begun


async def _status(call: Call, repo: str, revision: str, patience: float = 0.0) -> RepoMapStatus | None:
    """The state of a map; None when there is none, or of what is not even known."""
    params = protocol.RevisionParams(repo=absolute(repo), revision=revision)
    try:
        return await call.daemon.call("map.status", params, RepoMapStatus, patience=patience)
    except CtlError as error:
        if error.code != NOT_FOUND:
            raise
        return None


async def _complete(call: Call, args: CodeArguments, seconds: float, name: str) -> str:
    """The commit of a complete map, for the tool `name`. Raises ToolError when it is not complete by then."""
    status, _ = await _map(call, args, seconds)
    if status.status != "complete":
        raise ToolError(f"{name} takes the map, and {_how_far(map_state(status))}", _poll(name))
    return status.commit


def _poll(name: str) -> str:
    return f"Call {name} again with the same arguments and wait_seconds=30."


def _how_far(state: MapState) -> str:
    counted = f", {state.done} of {state.total} files" if state.total else ""
    return f"the map of commit {state.commit} is being made: {state.stage or 'begun'}{counted}"


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
    status, begun = await _map(call, args, args.wait_seconds, again=args.again)
    text = protocol.MapText(repo_map_status=status)
    if status.status == "complete":
        params = protocol.MapGetParams(
            repo=absolute(args.repo),
            revision=status.commit,
            tokens=args.tokens,
            focus=args.focus,
            mention=args.mention,
        )
        text = await call.daemon.call("map.get", params, protocol.MapText, hold=None)
    complete = text.repo_map_status.status == "complete"
    return MapAnswer(
        status="complete" if complete else "accepted" if begun else "building",
        repo_map=map_state(text.repo_map_status),
        text=text.text,
        tokens=text.tokens,
        files=text.files,
        definitions=text.definitions,
        unknown=text.unknown,
        left_out=text.repo_map_status.left_out,
        next_step="search_definitions finds any definition; get_repo_file_content reads a file."
        if complete
        else _poll("get_source_repo_map"),
    )


class CriticalArguments(CodeArguments, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=500)] = 30
    wait_seconds: Wait = 0.0


class CriticalAnswer(Answer, frozen=True, kw_only=True):
    """The most significant files, or how far the map is from which they are known."""

    status: Annotated[str, Meta(description="accepted, building or complete.")]
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
    status, begun = await _map(call, args, args.wait_seconds)
    found = protocol.RankedFiles(repo_map_status=status)
    if status.status == "complete":
        params = protocol.FilesParams(repo=absolute(args.repo), revision=status.commit, limit=args.limit)
        found = await call.daemon.call("repo.files", params, protocol.RankedFiles, hold=None)
    complete = found.repo_map_status.status == "complete"
    return CriticalAnswer(
        status="complete" if complete else "accepted" if begun else "building",
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
    wait_seconds: Wait = 0.0


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
    first, with file, lines and signature. Needs the map, which is made when it is first asked for: `wait_seconds`
    waits for it."""
    commit = await _complete(call, args, args.wait_seconds, "search_definitions")
    params = protocol.MapTagsParams(
        repo=absolute(args.repo),
        revision=commit,
        name=args.name,
        path=args.path,
        kind=args.kind,
        limit=args.limit,
        offset=args.offset,
    )
    found = await call.daemon.call("map.tags", params, protocol.MapTags, hold=None)
    return DefinitionPage(
        definitions=found.tags, total=found.total, next_offset=following(args.offset, len(found.tags), found.total)
    )


class ReferenceArguments(CodeArguments, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, description="An identifier, exactly.")]
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    offset: Offset = 0
    wait_seconds: Wait = 0.0


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
    name, not by type: what shares the name is among them. Needs the map, which is made when it is first asked for:
    `wait_seconds` waits for it."""
    commit = await _complete(call, args, args.wait_seconds, "find_references")
    params = protocol.MapRefsParams(
        repo=absolute(args.repo), revision=commit, name=args.name, limit=args.limit, offset=args.offset
    )
    found = await call.daemon.call("map.refs", params, protocol.MapRefs, hold=None)
    return ReferencePage(
        definitions=found.definitions,
        references=found.refs,
        total=found.total,
        next_offset=following(args.offset, len(found.refs), found.total),
    )


TOOLS = (get_source_repo_map, get_repo_critical_files, search_definitions, find_references)
