"""`buildctl repo tree`, `docs` and `cat`: the code of a repository, at any revision."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from buildd import protocol
from ctl.actions import Actions
from ctl.client import Client, plain
from ctl.failure import FAILED, OK, CtlError
from ctl.output import note, say, say_bytes, say_json, say_lines
from ctl.target import repository_and_revision
from ctl.text import plural, printable, size, table

_MARKS = {"directory": "/", "executable": "*", "link": "@", "submodule": " (submodule)"}
_LINES = re.compile(r"(\d*):(\d*)|(\d+)")


def _tree(args: argparse.Namespace, client: Client) -> int:
    repo, revision = repository_and_revision(args.repo)
    params = protocol.TreeParams(repo=repo, revision=revision, path=args.path, depth=args.depth, limit=args.limit)
    if args.json:
        say_json(client.raw("repo.tree", params, timeout=None))
        return OK
    tree = client.call("repo.tree", params, protocol.Tree, timeout=None)
    counts = f"{plural(tree.files, 'file')}, {tree.directories} directories, {size(tree.bytes)}"
    say(printable(f"{tree.path or '.'} at {tree.commit[:12]}: {counts}"))
    if tree.suffixes:
        say(printable("  ".join(f"{suffix} {count}" for suffix, count in tree.suffixes.items())))
    if not tree.entries:
        return OK
    top = tree.path.count("/") + 1 if tree.path else 0
    rows = [
        (
            "" if entry.type == "submodule" else size(entry.bytes),
            str(entry.files) if entry.type == "directory" else "",
            "  " * (entry.path.count("/") - top) + entry.path.rpartition("/")[2] + _MARKS.get(entry.type, ""),
        )
        for entry in tree.entries
    ]
    say_lines(table(("SIZE", "FILES", "NAME"), rows, right=(0, 1)))
    if tree.truncated:
        note("there is more: name a directory, or raise --limit")
    return OK


def _docs(args: argparse.Namespace, client: Client) -> int:
    repo, revision = repository_and_revision(args.repo)
    params = protocol.DocumentsParams(repo=repo, revision=revision, path=args.path, limit=args.limit)
    if args.json:
        say_json(client.raw("repo.docs", params, timeout=None))
        return OK
    found = client.call("repo.docs", params, protocol.Documents, timeout=None)
    rows = [(d.path, d.kind, size(d.bytes), d.title) for d in found.documents]
    say_lines(table(("PATH", "KIND", "SIZE", "TITLE"), rows, right=(2,)))
    if found.total > len(found.documents):
        note(f"{len(found.documents)} of {found.total} documents: name a directory, or raise --limit")
    return OK


def _cat(args: argparse.Namespace, client: Client) -> int:
    repo, revision = repository_and_revision(args.repo)
    first, last = args.lines
    params = protocol.CatParams(repo=repo, revision=revision, path=args.path, first_line=first, last_line=last)
    pages = _pages(client, params)
    if args.json:
        found = list(pages)
        whole = plain(found[-1])
        assert isinstance(whole, dict)
        say_json({**whole, "first_line": first, "text": "".join(page.text for page in found)})
        return OK
    for page in pages:
        if page.binary:
            note(f"buildctl: {printable(page.path)} is a binary file of {size(page.bytes)}")
            return FAILED
        if page.last_line < page.first_line and first > 1:
            note(f"{printable(page.path)} has {plural(page.lines, 'line')}")
        say_bytes(page.text.encode())
    return OK


def _pages(client: Client, params: protocol.CatParams) -> Iterator[protocol.FileContent]:
    """What was asked for, of one commit, in as many answers as it takes."""
    while True:
        page = client.call("repo.cat", params, protocol.FileContent, timeout=None)
        yield page
        done = params.last_line is not None and page.last_line >= params.last_line and not page.next_offset
        if done or not page.truncated:
            return
        if not page.text:
            raise CtlError(f"the daemon sends no more of {printable(page.path)} after line {page.last_line}")
        line = page.last_line if page.next_offset else page.last_line + 1
        params = protocol.CatParams(
            repo=params.repo,
            revision=page.commit,
            path=params.path,
            first_line=line,
            last_line=params.last_line,
            offset=page.next_offset,
        )


def _line_range(text: str) -> tuple[int, int | None]:
    """The type of `A:B`, `A:`, `:B` and `A`."""
    match = _LINES.fullmatch(text)
    if match is None or text == ":":
        raise argparse.ArgumentTypeError(f"{text!r} is no range of lines; write it like 10:20, 10: or :20")
    if match[3]:
        return int(match[3]), int(match[3])
    return int(match[1] or 1), int(match[2]) if match[2] else None


ACTIONS: Actions = {
    "tree": (_tree, "what a directory holds, with counts"),
    "docs": (_docs, "documentation files, what to read first is first"),
    "cat": (_cat, "the text of a file"),
}


def arguments(name: str, action: argparse.ArgumentParser) -> None:
    """Those of one of these actions, but for what all actions of `repo` have."""
    action.add_argument(
        "repo", metavar="REPO[@REV]", help="URL, path or known name; a branch, tag or commit, else the default branch"
    )
    if name == "cat":
        action.add_argument("path", metavar="PATH", help="a file")
        action.add_argument(
            "--lines", type=_line_range, default=(1, None), metavar="A:B", help="only these, counted from 1"
        )
        return
    action.add_argument("path", metavar="PATH", nargs="?", default="", help="only this directory")
    if name == "tree":
        action.add_argument("--depth", "-d", type=int, default=3, metavar="N", help="levels of directories (default 3)")
    limit = 1000 if name == "tree" else 100
    action.add_argument("--limit", "-n", type=int, default=limit, metavar="N", help=f"at most N (default {limit})")
