"""`buildctl why`: whether a package is built, and what exactly is the cause, down to the file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from buildd import protocol
from buildd.protocol import Cause, FileChange, PackageVerdict
from ctl.client import connect
from ctl.failure import OK, USAGE, CtlError
from ctl.output import note, paint, say_json, say_lines
from ctl.target import absolute
from ctl.text import plural, printable
from ctl.verbs import Verb

STRATEGIES = get_args(protocol.Strategy)
MAX_FILES = 50
"""Changed files that are shown; all of them are in the JSON."""
_MAX_NAMES = 4
_REASONS = {
    "never_built": "it was never built",
    "forced": "it was forced",
    "strategy": "the strategy none takes no earlier result",
    "artifact": "its artifact is gone",
    "source": "its source changed",
    "version": "its version changed",
    "recipe": "its recipe changed",
    "fetched": "what it fetches changed",
    "patches": "its patches changed",
    "formats": "its formats changed",
    "dependency": "what it depends on changed",
    "environment": "its environment changed",
    "architecture": "the architecture changed",
    "format": "keys have another meaning in this buildd",
}
_OUTRIGHT = ("never_built", "forced", "strategy", "artifact")
"""Causes that are no difference to an earlier build."""


def _why(args: argparse.Namespace) -> int:
    params = protocol.WhyParams(
        package=subject(args.package),
        run=args.run,
        worktree=args.worktree,
        strategy=args.strategy,
        refresh=args.refresh,
    )
    with connect(args) as client:
        if args.json:
            say_json(client.raw("package.why", params, timeout=None))
            return OK
        result = client.call("package.why", params, protocol.WhyResult, timeout=None)
    for text in result.notes:
        note(printable(text))
    say_lines(explanation(result, past=args.run is not None))
    return OK


def subject(text: str) -> str:
    """What to ask about: a name as it is, a target with its path made absolute.

    A bare name is never taken for a directory, whatever lies around. Raises CtlError for a path without a package.
    """
    if "//" in text:
        return absolute(text)
    if not text or text.startswith((".", "/", "~")):
        raise CtlError(
            f"{text!r} names no package", hint=f"write {text.rstrip('/') or 'REPO'}//NAME, or NAME", code=USAGE
        )
    return text


# --- in words ---------------------------------------------------------------------------------------------


def explanation(result: protocol.WhyResult, *, past: bool) -> list[str]:
    """A paragraph for the package, and one for each dependency that is behind it, down to the root."""
    pending = {} if past else {verdict.package: verdict for verdict in result.needed if verdict.state == "build"}
    lines = _paragraph(result.verdict, pending, past=past, asked=True)
    for verdict in reversed(result.needed):
        lines += ["", *_paragraph(verdict, pending, past=past, asked=False)]
    return lines


def _paragraph(verdict: PackageVerdict, pending: Mapping[str, PackageVerdict], *, past: bool, asked: bool) -> list[str]:
    headline = printable(f"{verdict.version} {_headline(verdict, pending, past=past, asked=asked)}")
    lines = [f"{paint(printable(verdict.package), 'bold')} {headline}"]
    for cause in verdict.causes:
        if cause.kind == "source":
            lines += _file_lines(cause)
        elif cause.kind not in _OUTRIGHT and cause.kind != "ignored":
            lines.append(f"  {printable(cause.message)}")
    return lines


def _headline(verdict: PackageVerdict, pending: Mapping[str, PackageVerdict], *, past: bool, asked: bool) -> str:
    """What follows name and version. `pending` are the dependencies that would be built."""
    build = f"build {verdict.build[:8]}{_ago(verdict.built_at)}" if verdict.build else "an earlier build"
    if verdict.state == "ignored":
        return f"{'was' if past else 'is'} ignored: {'; '.join(cause.message for cause in verdict.causes)}"
    if verdict.state == "up_to_date":
        if asked or not verdict.causes:
            return f"{'was' if past else 'is'} up to date: {build} had the same key"
        return f"has another output since {build}: {reasons(verdict.causes)}"
    causes = [cause for cause in verdict.causes if not _waits(cause, pending)]
    below = _below(verdict, pending)
    if not causes and below and all(_may_stay(pending[name], pending) for name in below):
        return f"would be built if the output of {_any_of(below)} is not what it was for {build}"
    causes = causes or list(verdict.causes)
    since = f" since {build}" if verdict.build and not _all_outright(causes) else ""
    return f"{'was' if past else 'would be'} built: {reasons(causes)}{since}"


def _waits(cause: Cause, pending: Mapping[str, PackageVerdict]) -> bool:
    """Whether nobody can know yet: what the dependency will be is compared with what it was."""
    return cause.kind == "dependency" and cause.new is None and cause.old is not None and cause.what in pending


def _may_stay(verdict: PackageVerdict, pending: Mapping[str, PackageVerdict]) -> bool:
    """Whether what a package brings along may be what it was: its own output, and those of its dependencies."""
    return all(_waits(cause, pending) for cause in verdict.causes if cause.kind == "dependency")


def _below(verdict: PackageVerdict, pending: Mapping[str, PackageVerdict]) -> list[str]:
    """The dependencies that would be built before it, direct ones first."""
    found: dict[str, None] = {}
    stack = [verdict]
    while stack:
        for cause in stack.pop(0).causes:
            if cause.kind == "dependency" and cause.what in pending and cause.what not in found:
                found[cause.what] = None
                stack.append(pending[cause.what])
    return list(found)


def _any_of(names: Sequence[str]) -> str:
    if len(names) > _MAX_NAMES:
        return f"any of {len(names)} dependencies"
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _all_outright(causes: Sequence[Cause]) -> bool:
    return all(cause.kind in _OUTRIGHT for cause in causes)


def reasons(causes: Sequence[Cause]) -> str:
    """`its source changed, and its recipe changed`."""
    found = [c.message if c.kind in _OUTRIGHT and c.message else _REASONS.get(c.kind, c.message) for c in causes]
    *most, last = dict.fromkeys(found) or ["for no reason that is known"]
    return f"{', '.join(most)} and {last}" if most else last


def _file_lines(cause: Cause) -> Iterator[str]:
    if not cause.files:
        yield f"  {printable(cause.message)}"
    rows = [(change.change, *_file_change(change)) for change in cause.files[:MAX_FILES]]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    for kind, path, detail in rows:
        yield f"  {kind.ljust(widths[0])}  {path.ljust(widths[1])}  {detail}".rstrip()
    if len(cause.files) > MAX_FILES:
        yield f"  … and {plural(len(cause.files) - MAX_FILES, 'file')} more: --json has them"


def _file_change(change: FileChange) -> tuple[str, str]:
    """The path, and what became of it."""
    path = printable(change.path)
    modes = f"{change.old_mode} -> {change.new_mode}" if change.old_mode != change.new_mode else ""
    old, new = (change.old_blob or "")[:7], (change.new_blob or "")[:7]
    if change.change == "renamed":
        return f"{printable(change.old_path or '')} -> {path}", modes
    if change.change == "mode":
        return path, modes
    if change.change == "modified":
        return path, f"{old} -> {new}" + (f"  {modes}" if modes else "")
    return path, old or new


def _ago(moment: float | None) -> str:
    """` (2 days ago)`."""
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f" ({plural(int(seconds // length), unit)} ago)"
    return " (just now)"


# --- arguments --------------------------------------------------------------------------------------------


def decision_options(parser: argparse.ArgumentParser) -> None:
    """The options that change what is up to date."""
    parser.add_argument("--worktree", action="store_true", help="take local repositories as their files are now")
    parser.add_argument(
        "--strategy", choices=STRATEGIES, metavar="STRATEGY", help=f"take earlier results by: {', '.join(STRATEGIES)}"
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", metavar="PACKAGE", help="NAME or NAME@VERSION, or REPO[@REV]//NAME")
    parser.add_argument("--run", metavar="RUN", help="explain what this run did")
    decision_options(parser)
    parser.add_argument("--refresh", action="store_true", help="fetch the repository first")
    parser.add_argument("--json", action="store_true", help="print the answer as one object")


VERBS = {
    "why": Verb(
        _why,
        _arguments,
        "  buildctl why zlib\n  buildctl why .//zlib --worktree\n  buildctl why zlib --run latest",
    )
}
