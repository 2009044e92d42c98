"""`buildctl events`: the journal, from any number, as text or JSON Lines.

Invariant: output is whole lines in order of their numbers, none twice and none left out, whenever the reader or
this process is ended; so the last complete line's number is where to go on.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from types import FrameType

from buildd import protocol
from buildd.protocol import Event
from ctl.client import QUICK_S, Client, connect, convert
from ctl.failure import INTERRUPTED, OK, Gone
from ctl.follow import newest_event
from ctl.output import note
from ctl.text import moment, printable
from ctl.verbs import Verb

POLL_S = 30.0


class _Interrupted(BaseException):
    """SIGINT or SIGTERM, between two lines."""


class _Signals:
    """Lets a signal interrupt waiting but not the writing of a line; a second one interrupts that too."""

    def __init__(self) -> None:
        self._writing = False
        self._pending = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._writing or self._pending:
            raise _Interrupted
        self._pending = True

    def write_line(self, line: bytes) -> None:
        self._writing = True
        try:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
        finally:
            self._writing = False
        if self._pending:
            raise _Interrupted


def _events(args: argparse.Namespace) -> int:
    after = args.after if args.after is not None else (-1 if args.follow else 0)
    signals = _Signals()
    try:
        with connect(args) as client:
            run = None
            if args.run is not None:
                params = protocol.RunStatusParams(run=args.run, packages=False)
                run = client.call("run.status", params, protocol.RunView).id
            _print(client, signals, args, after, run)
        return OK
    except _Interrupted:
        return INTERRUPTED


def _print(client: Client, signals: _Signals, args: argparse.Namespace, after: int, run: str | None) -> None:
    """Print page after page: until the event that was the newest at the beginning, or for ever."""
    newest = None if args.follow else newest_event(client)
    wait = POLL_S if args.follow else 0.0
    while newest is None or after < newest:
        params = protocol.PollParams(after=after, timeout=wait, run=run, kinds=tuple(args.kind))
        try:
            page = client.raw("events.poll", params, timeout=wait + QUICK_S)
        except Gone:
            if not args.follow:
                raise
            note("buildctl: the daemon went away; waiting for it to come back")
            if not client.reopen():
                raise
            continue
        for event in page["events"]:  # as JSON they are printed as they came, whatever is in them
            line = json.dumps(event, ensure_ascii=False, separators=(",", ":")) if args.json else _readable(event)
            signals.write_line(line.encode())
        if newest is not None and not page["events"] and page["next"] <= after:
            wait = 1.0  # it has more, and says nothing: give it time rather than ask in a circle
        after = page["next"]


def _readable(found: object) -> str:
    event = convert(found, Event, "events.poll")
    parts = [f"{event.number:>7}", moment(event.time), f"{event.kind:<18}"]
    parts += [f"run={event.run[:8]}"] if event.run else []
    parts += [f"build={event.build[:8]}"] if event.build else []
    parts += [event.package or "", event.repository or ""]
    for name, value in event.data.items():
        if value not in (None, "", [], {}):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            parts.append(f"{name}={text}")
    return printable("  ".join(part for part in parts if part))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--after",
        type=int,
        metavar="N",
        help="those after number N; 0 for all that are kept (default; with --follow: those to come)",
    )
    parser.add_argument("--follow", "-f", action="store_true", help="go on with those to come")
    parser.add_argument("--run", metavar="RUN", help="only those of a run")
    parser.add_argument("--kind", action="append", default=[], metavar="KIND", help="only this kind; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON Lines")


VERBS = {
    "events": Verb(
        _events,
        _arguments,
        "  buildctl events --follow\n"
        "  buildctl events --after 0 --json | jq -r .kind | sort | uniq -c\n"
        "  buildctl events -f --run latest --kind package_failed",
    )
}
