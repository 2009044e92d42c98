"""`buildctl logs`: a build's log as it is, from any place, followed until the build ends."""

from __future__ import annotations

import argparse
import sys

from buildd import protocol
from ctl.client import QUICK_S, Client, connect
from ctl.failure import NOT_FOUND, OK, USAGE, CtlError, Gone
from ctl.follow import newest_event, run_view
from ctl.output import note
from ctl.text import printable
from ctl.verbs import Verb

POLL_S = 30.0
FIRST_TAIL = 64 * 1024
"""Bytes before the end that are searched for the lines of --tail at first."""
ENDED = ("completed", "failed", "cancelled")


def _logs(args: argparse.Namespace) -> int:
    with connect(args) as client:
        build = _find_build(client, args.id, args.package, follow=args.follow)
        if args.tail is not None:
            offset = _print_tail(client, build, args.tail)
        else:
            offset = _resolve(client, build, args.offset)
        _print_from(client, build, offset, follow=args.follow)
    return OK


def _find_build(client: Client, name: str, package: str | None, *, follow: bool) -> str:
    """The id of the build that the arguments name."""
    found = client.call("object.show", protocol.ShowParams(id=name), protocol.ShowResult)
    if found.build is not None:
        if package is not None and package != found.build.package:
            raise CtlError(
                f"build {name} is of {found.build.package}, not of {package}",
                hint="give a run and a package, or a build alone",
                code=USAGE,
            )
        return found.build.id
    if found.run is None:
        raise CtlError(f"{name} is neither a run nor a build", code=NOT_FOUND)
    if package is not None:
        return _build_of(client, found.run.id, found.run.number, package, follow=follow)
    return _only_build(run_view(client, found.run.id))


def _only_build(run: protocol.RunView) -> str:
    """The build that a run without a package can mean: its only one, or the only one that failed."""
    built = [package for package in run.packages if package.build_id is not None]
    failed = [package for package in built if package.state == "failed"]
    for choice in (built, failed):
        if len(choice) == 1 and choice[0].build_id is not None:
            note(f"log of {printable(choice[0].name)} {printable(choice[0].version)}")
            return choice[0].build_id
    if not built:
        raise CtlError(f"run {run.number} has no log yet", hint="nothing of it was built", code=NOT_FOUND)
    names = [package.name for package in (failed or built)]
    some = " ".join(names[:10]) + (" …" if len(names) > 10 else "")
    raise CtlError(
        f"run {run.number} has {len(built)} logs",
        hint=f"name the package: buildctl logs {run.number} PACKAGE, with one of {some}",
        code=USAGE,
    )


def _build_of(client: Client, run: str, number: int, name: str, *, follow: bool) -> str:
    """The build of a package in a run; when following, waits until there is one."""
    while True:
        after = newest_event(client) if follow else 0
        view = run_view(client, run)
        package = next((package for package in view.packages if package.name == name), None)
        if package is not None and package.build_id is not None:
            return package.build_id
        if package is not None and package.state != "queued":
            why = f": {package.message}" if package.message else ""
            raise CtlError(f"{name} was not built in run {number}, it is {package.state}{why}", code=NOT_FOUND)
        planned = bool(view.packages) or view.state in ENDED
        if package is None and planned:
            raise CtlError(
                f"run {number} has no package {name}", hint=f"buildctl show {number} lists them", code=NOT_FOUND
            )
        if not follow:
            raise CtlError(
                f"{name} has not started in run {number}", hint="-f waits for it and follows", code=NOT_FOUND
            )
        params = protocol.PollParams(after=after, run=run, timeout=POLL_S)
        client.call("events.poll", params, protocol.PollResult, timeout=POLL_S + QUICK_S)


def _chunk(client: Client, build: str, offset: int, wait: float = 0.0) -> protocol.LogChunk:
    params = protocol.LogParams(build=build, offset=offset, timeout=wait)
    return client.call("build.log", params, protocol.LogChunk, timeout=wait + QUICK_S)


def _resolve(client: Client, build: str, offset: int) -> int:
    """A negative offset as one from the start, so that a reconnect does not move it."""
    return offset if offset >= 0 else _chunk(client, build, offset).offset


def _print_from(client: Client, build: str, offset: int, *, follow: bool) -> None:
    while True:
        try:
            chunk = _chunk(client, build, offset, POLL_S if follow else 0.0)
        except Gone:
            if not follow:
                raise
            note("buildctl: the daemon went away; waiting for it to come back")
            if not client.reopen():
                raise
            continue
        if chunk.text:
            _write(chunk.text)
        advanced = chunk.next_offset > offset
        offset = max(offset, chunk.next_offset)
        if chunk.finished or (not follow and not advanced):
            return


def _print_tail(client: Client, build: str, lines: int) -> int:
    """Print the last `lines` lines there are now; the offset where to go on."""
    span = FIRST_TAIL
    while True:
        text, start, end = _read_end(client, build, span)
        tail = text.splitlines(keepends=True)
        if start == 0 or len(tail) > lines:  # more than asked for: the first may be cut
            _write("".join(tail[-lines:]) if lines else "")
            return end
        span *= 4


def _read_end(client: Client, build: str, span: int) -> tuple[str, int, int]:
    """The last `span` bytes: text, where it starts, where it ends."""
    chunk = _chunk(client, build, -span)
    start, texts = chunk.offset, [chunk.text]
    while chunk.text and not chunk.finished:
        chunk = _chunk(client, build, chunk.next_offset)
        texts.append(chunk.text)
    return "".join(texts), start, chunk.next_offset


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _tail(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError
    return count


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="BUILD|RUN", help="a build, or a run: id, prefix, number or `latest`")
    parser.add_argument("package", metavar="PACKAGE", nargs="?", help="the package of the run")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the build ends")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--offset", type=int, default=0, metavar="N", help="start at byte N; negative counts from the end"
    )
    where.add_argument("--tail", "-n", type=_tail, metavar="N", help="start N lines before the end")


VERBS = {
    "logs": Verb(
        _logs,
        _arguments,
        "  buildctl logs 3f2a91c0\n  buildctl logs latest zlib -f\n  buildctl logs 12 zlib --tail 50",
    )
}
