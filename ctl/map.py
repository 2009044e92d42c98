"""`buildctl map`: outlines of repositories, and what is known of their definitions."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import msgspec

from buildd import protocol
from buildd.protocol import RepoMapStatus
from ctl.actions import Actions, action_parsers, run_action
from ctl.client import QUICK_S, Client
from ctl.failure import FAILED, INTERRUPTED, NOT_FOUND, OK, REFUSED, USAGE, CtlError
from ctl.output import note, say, say_bytes, say_json, say_lines
from ctl.repo import clone_and_wait
from ctl.target import is_address, repository_and_revision
from ctl.text import duration, moment, plural, printable, size, table
from ctl.verbs import Verb, connection_options

POLL_S = 1.0
"""How often the progress of a map is shown at least."""
_FILES: dict[str, Literal["tags.jsonl", "tags"]] = {"jsonl": "tags.jsonl", "ctags": "tags"}
_READER_S = 90.0
"""What an answer may take that a process gives which has to load a map first."""
T = TypeVar("T", protocol.MapText, protocol.RankedFiles)


def _get(args: argparse.Namespace, client: Client) -> int:
    repo, revision = repository_and_revision(args.repo)
    ranked_again = args.tokens is not None or args.focus or args.mention
    if args.format != "text" and ranked_again:
        raise CtlError(
            f"--format {args.format} has all definitions, whatever they are ranked for",
            hint="--tokens, --focus and --mention go with --format text",
            code=USAGE,
        )
    params = protocol.MapGetParams(
        repo=repo,
        revision=revision,
        tokens=protocol.DEFAULT_MAP_TOKENS if args.tokens is None else args.tokens,
        focus=tuple(args.focus),
        mention=tuple(args.mention),
        timeout=POLL_S,
    )
    try:
        if args.format == "text":
            found = await_map(client, repo, lambda: client.call("map.get", params, protocol.MapText, timeout=_READER_S))
            status = found.repo_map_status
        else:
            status = _await_status(client, repo, revision)
    except KeyboardInterrupt:
        note(f"\nbuildctl: interrupted; the map is made all the same. Stop it: buildctl map cancel {printable(repo)}")
        return INTERRUPTED
    if args.json:
        say_json(found if args.format == "text" else status)
        return OK if status.status == "complete" else FAILED
    if status.status != "complete":
        raise CtlError(f"no map of {status.repository} at {status.commit[:12]}: {status.error}")
    if args.format == "text":
        for name in found.unknown:
            note(f"buildctl: nothing is called {printable(name)}")
        say_bytes(found.text.encode())
    else:
        file = _FILES[args.format]
        _copy_file(client, protocol.MapReadParams(repo=repo, revision=status.commit, file=file))
    return OK


def await_map(client: Client, repo: str, ask: Callable[[], T]) -> T:
    """Ask until the map is made, showing how far that is. A repository at an address is cloned if need be."""
    shown = build = ""
    cloned = False
    while True:
        try:
            found = ask()
        except CtlError as error:
            if cloned or error.code not in (NOT_FOUND, REFUSED) or not is_address(repo):
                raise
            cloned = True
            clone_and_wait(client, repo)
            continue
        if found.repo_map_status.status != "building":
            if shown and sys.stderr.isatty():
                note("")
            return found
        if build not in ("", found.repo_map_status.build_id):  # asked for between two questions, it is begun again
            raise CtlError(
                f"the map of {found.repo_map_status.repository} could not be made",
                hint="it is tried again; `buildctl events` has the reason, `buildctl map status` how it is getting on",
            )
        build = found.repo_map_status.build_id
        shown = _show_progress(found.repo_map_status, shown)


def _await_status(client: Client, repo: str, revision: str) -> RepoMapStatus:
    """The status of a map when it is made."""
    files = protocol.FilesParams(repo=repo, revision=revision, limit=1, timeout=POLL_S)
    found = await_map(client, repo, lambda: client.call("repo.files", files, protocol.RankedFiles, timeout=_READER_S))
    return found.repo_map_status


def _show_progress(status: RepoMapStatus, shown: str) -> str:
    line = f"map of {printable(status.repository)}: {status.stage}"
    if status.total:
        line += f" {status.done} of {plural(status.total, 'file')}"
    if line != shown:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        elif status.stage and not shown.startswith(line.split(" of ")[0]):
            note(line)
    return line


def _copy_file(client: Client, params: protocol.MapReadParams) -> None:
    """Print a file of a map, however large it is."""
    while True:
        chunk = client.call("map.read", params, protocol.MapChunk)
        say_bytes(chunk.data)
        if chunk.finished:
            return
        if chunk.next_offset <= params.offset:
            raise CtlError(f"the daemon sends no more of {params.file} after {params.offset} bytes")
        params = msgspec.structs.replace(params, offset=chunk.next_offset)


def _status(args: argparse.Namespace, client: Client) -> int:
    if args.repo is None:
        if args.json:
            say_json(client.raw("map.list"))
            return OK
        maps = client.call("map.list", None, protocol.MapList).maps
        rows = [
            (m.repository, m.commit[:12], m.status, str(m.mapped), str(m.definitions), size(m.bytes), _when(m))
            for m in maps
        ]
        header = ("REPOSITORY", "COMMIT", "STATUS", "FILES", "DEFINITIONS", "SIZE", "MADE")
        say_lines(table(header, rows, right=(3, 4, 5)))
        return OK
    repo, revision = repository_and_revision(args.repo)
    params = protocol.RevisionParams(repo=repo, revision=revision)
    if args.json:
        say_json(client.raw("map.status", params))
        return OK
    say_lines(status_lines(client.call("map.status", params, RepoMapStatus)))
    return OK


def _when(status: RepoMapStatus) -> str:
    return moment(status.completed_at) if status.status != "building" else f"{status.stage} …"


def status_lines(status: RepoMapStatus) -> list[str]:
    """A map for reading."""
    lines = [
        f"{status.repository} {status.commit} {status.status}",
        f"  build        {status.build_id}",
        f"  started      {moment(status.started_at)}",
    ]
    if status.status == "building":
        of = f" {status.done} of {plural(status.total, 'file')}" if status.total else ""
        lines.append(f"  doing        {status.stage}{of} for {duration(time.time() - status.started_at)}")
        lines.append(f"  pid          {status.pid or '-'}")
    else:
        took = duration((status.completed_at or status.started_at) - status.started_at)
        lines.append(f"  completed    {moment(status.completed_at)}, after {took}")
    if status.status == "complete":
        lines += [
            f"  files        {status.files}, {status.mapped} mapped, {status.parsed} not known before",
            f"  definitions  {status.definitions}",
            f"  left out     {', '.join(f'{n} {why}' for why, n in sorted(status.left_out.items())) or 'nothing'}",
            f"  path         {status.output_path}, {size(status.bytes)}",
        ]
    if status.error:
        lines.append(f"  error        {status.error}")
    return [printable(line) for line in lines]


def _tags(args: argparse.Namespace, client: Client) -> int:
    repo, revision = repository_and_revision(args.repo)
    params = protocol.MapTagsParams(
        repo=repo,
        revision=revision,
        name=args.name,
        path=args.path,
        kind=args.kind,
        limit=args.limit,
        offset=args.offset,
    )
    if args.json:
        say_json(client.raw("map.tags", params, timeout=_READER_S))
        return OK
    found = client.call("map.tags", params, protocol.MapTags, timeout=_READER_S)
    say_lines(_definition_lines(found.tags))
    shown = args.offset + len(found.tags)
    if found.total > shown:
        note(f"{shown} of {plural(found.total, 'definition')}: name conditions, raise --limit, or go on at --offset")
    return OK


def _definition_lines(tags: Sequence[protocol.MapTag]) -> list[str]:
    return [printable(f"{t.path}:{t.line}: {t.signature or f'{t.kind} {t.name}'}") for t in tags]


def _refs(args: argparse.Namespace, client: Client) -> int:
    repo, revision = repository_and_revision(args.repo)
    params = protocol.MapRefsParams(repo=repo, revision=revision, name=args.name, limit=args.limit, offset=args.offset)
    if args.json:
        say_json(client.raw("map.refs", params, timeout=_READER_S))
        return OK
    found = client.call("map.refs", params, protocol.MapRefs, timeout=_READER_S)
    if not args.offset:
        say_lines(f"defined {line}" for line in _definition_lines(found.definitions))
    say_lines(printable(f"{ref.path}:{ref.line}: {ref.text}") for ref in found.refs)
    shown = args.offset + len(found.refs)
    if found.total > shown:
        note(f"{shown} of {plural(found.total, 'line')}: raise --limit, or go on at --offset")
    return OK


def print_files(args: argparse.Namespace, client: Client) -> int:
    """`buildctl repo files`: the most significant files."""
    repo, revision = repository_and_revision(args.repo)
    params = protocol.FilesParams(repo=repo, revision=revision, limit=args.limit, timeout=POLL_S)
    found = await_map(client, repo, lambda: client.call("repo.files", params, protocol.RankedFiles, timeout=_READER_S))
    if args.json:
        say_json(found)
        return OK if found.repo_map_status.status == "complete" else FAILED
    if found.repo_map_status.status != "complete":
        raise CtlError(f"no map of {found.repo_map_status.repository}: {found.repo_map_status.error}")
    rows = [
        (f"{100 * f.score:.2f} %", f.role, f.language or "-", str(f.lines), str(f.definitions), f.path)
        for f in found.files
    ]
    header = ("RANK", "ROLE", "LANGUAGE", "LINES", "DEFINITIONS", "PATH")
    say_lines(table(header, rows, right=(0, 3, 4)))
    if found.total > len(found.files):
        note(f"{len(found.files)} of {plural(found.total, 'file')}: raise --limit")
    return OK


def _cancel(args: argparse.Namespace, client: Client) -> int:
    repo, revision = repository_and_revision(args.repo)
    params = protocol.RevisionParams(repo=repo, revision=revision)
    say(printable(client.call("map.cancel", params, protocol.Ok, timeout=3 * QUICK_S).message))
    return OK


_ACTIONS: Actions = {
    "get": (_get, "print the map of a repository; what `buildctl map REPO` does"),
    "status": (_status, "all maps, or one"),
    "tags": (_tags, "definitions, best first"),
    "refs": (_refs, "where an identifier is defined and used"),
    "cancel": (_cancel, "stop making maps of a repository"),
}


def _prepare(argv: list[str]) -> list[str]:
    """What is no action is a repository to get the map of."""
    if argv and (argv[0] in _ACTIONS or argv[0] in ("-h", "--help")):
        return argv
    return ["get", *argv]


def _arguments(parser: argparse.ArgumentParser) -> None:
    for name, action in action_parsers(parser, _ACTIONS):
        optional = name == "status"
        action.add_argument(
            "repo",
            metavar="REPO[@REV]",
            nargs="?" if optional else None,
            help="URL, path or known name; a branch, tag or commit, else the default branch",
        )
        if name == "get":
            action.add_argument("--tokens", type=int, metavar="N", help="most tokens of the text (default 4096)")
            action.add_argument(
                "--focus",
                action="append",
                default=[],
                metavar="FILE",
                help="a file that is being worked on; repeatable",
            )
            action.add_argument(
                "--mention", action="append", default=[], metavar="NAME", help="a name that is thought of; repeatable"
            )
            action.add_argument(
                "--format", choices=("text", *_FILES), default="text", help="an outline (default), or all definitions"
            )
        if name == "refs":
            action.add_argument("name", metavar="NAME", help="an identifier")
        if name == "tags":
            action.add_argument("name", metavar="NAME", nargs="?", default="", help="a name, or a shell pattern")
            action.add_argument("--path", default="", metavar="PATH", help="a file, a directory, or a shell pattern")
            action.add_argument("--kind", default="", metavar="KIND", help="class, function, method …")
        if name in ("tags", "refs"):
            action.add_argument("--limit", "-n", type=int, default=100, metavar="N", help="at most N (default 100)")
            action.add_argument("--offset", type=int, default=0, metavar="N", help="leave out the first N")
        if name != "cancel":
            action.add_argument("--json", action="store_true", help="print the answer as one object")
        connection_options(action, nested=True)


VERBS = {
    "map": Verb(
        partial(run_action, _ACTIONS),
        _arguments,
        "  buildctl map .\n  buildctl map things@v1.2 --tokens 2000 --focus src/main.c --mention parse_url\n"
        "  buildctl map things --format ctags >tags\n  buildctl map tags things 'parse_*' --kind function\n"
        "  buildctl map refs things parse_url\n  buildctl map status",
        prepare=_prepare,
    )
}
