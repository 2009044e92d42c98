"""`buildctl top`: on a screen where there is one, else a snapshot per interval, as text or JSON Lines."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable

from buildd.protocol import DaemonStatus, Empty, ResourcesParams, ResourcesResult, RunStatusParams, RunView
from ctl.client import Client, connect
from ctl.failure import NOT_FOUND, OK, CtlError, Gone
from ctl.output import note, say, say_json, say_lines
from ctl.top.gauges import glyphs
from ctl.top.lines import View
from ctl.top.picture import snapshot
from ctl.top.scene import HISTORY, Scene
from ctl.verbs import Verb, seconds

INTERVAL_S = 1.0
LEAST_S = 0.2
PAPER_COLUMNS = 100
"""Width of snapshots that do not go to a terminal, unless COLUMNS says another."""


def _top(args: argparse.Namespace) -> int:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with connect(args) as client:
            if args.json:
                _repeat(client, args, lambda: _print_json(client, indent=args.once))
            elif args.once or not _has_screen():
                _repeat(client, args, _Paper(client).show)
            else:
                from ctl.top.live import show

                show(client, Scene(*_look(client, HISTORY), time.time()), args.interval)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return OK


def _has_screen() -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        from ctl.top.screen import usable
    except ImportError:  # a Python that was built without curses
        return False
    return usable()


def _repeat(client: Client, args: argparse.Namespace, show: Callable[[], None]) -> None:
    """Show something, once or at every interval. A daemon that is restarted meanwhile is waited for."""
    due = time.monotonic()
    while True:
        try:
            show()
        except Gone:
            if args.once:
                raise
            note("buildctl: the daemon went away; waiting for it to come back")
            if not client.reopen():
                raise
            continue
        if args.once:
            return
        sys.stdout.flush()
        due = max(due + args.interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def _look(client: Client, samples: int) -> tuple[DaemonStatus, ResourcesResult]:
    resources = client.call("daemon.resources", ResourcesParams(samples=samples), ResourcesResult)
    return client.call("daemon.status", Empty(), DaemonStatus), resources


def _print_json(client: Client, *, indent: bool) -> None:
    """One object with both answers as they came."""
    resources = client.raw("daemon.resources")
    value = {"at": time.time(), "status": client.raw("daemon.status"), "resources": resources}
    if indent:
        say_json(value)
    else:
        say(json.dumps(value))


class _Paper:
    """Prints snapshots, with an empty line between two."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._scene: Scene | None = None

    def show(self) -> None:
        now = time.time()
        if self._scene is None:
            self._scene = Scene(*_look(self._client, HISTORY), now)
        else:
            self._scene.take(*_look(self._client, self._scene.samples_wanted(now)), now)
            say()
        for run in self._scene.unknown_runs:
            self._ask_for(run, self._scene)
        columns = shutil.get_terminal_size(fallback=(PAPER_COLUMNS, 24)).columns
        say_lines(snapshot(self._scene, View(columns, glyphs(), os.cpu_count() or 1)))

    def _ask_for(self, run: str, scene: Scene) -> None:
        try:
            params = RunStatusParams(run=run, packages=False)
            scene.take_run(self._client.call("run.status", params, RunView))
        except CtlError as error:
            if error.code != NOT_FOUND:
                raise
            scene.forget_run(run)


def _interval(text: str) -> float:
    value = seconds(text)
    if value < LEAST_S:
        raise argparse.ArgumentTypeError(f"{text} is less than {LEAST_S:g}s, the shortest interval")
    return value


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        "-n",
        type=_interval,
        default=INTERVAL_S,
        metavar="DURATION",
        help=f"time between two looks (default: {INTERVAL_S:g}s)",
    )
    parser.add_argument("--once", action="store_true", help="print one snapshot as text, and end")
    parser.add_argument("--json", action="store_true", help="print JSON Lines; with --once, one object")


VERBS = {
    "top": Verb(
        _top,
        _arguments,
        "  buildctl top\n"
        "  buildctl top --interval 5s\n"
        "  buildctl top --once\n"
        "  buildctl top --json --interval 10s >> use.jsonl",
    )
}
