"""Watching a run to its end, as `start --wait`, `wait` and `verify` do. Whatever happens here, the run goes on."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from buildd import protocol
from ctl.client import Client
from ctl.failure import FAILED, INTERRUPTED, TIMED_OUT, CtlError
from ctl.follow import Silent, View, follow, replay as show_events, run_view
from ctl.lines import Lines
from ctl.output import note, say_json
from ctl.text import duration


def replay(client: Client, started: protocol.StartResult, args: argparse.Namespace) -> None:
    """Show the events of a run that has ended already."""
    show_events(client, started.id, started.event, _view(args))


def _view(args: argparse.Namespace) -> View:
    stream = sys.stderr if args.json else sys.stdout
    if args.quiet or (args.json and not stream.isatty()):
        return Silent()
    if not stream.isatty():
        return Lines(stream)
    from ctl.draw import Drawing, can_draw

    return Drawing(stream) if can_draw(stream) else Lines(stream)


def watch(
    client: Client,
    started: protocol.StartResult,
    args: argparse.Namespace,
    finish: Callable[[Client, protocol.RunView, argparse.Namespace], int],
    *,
    timeout: float | None = None,
) -> int:
    """Follow a run to its end, then `finish`. Interrupts and closed pipes end the watching, never the run."""
    run, number = started.id, started.number
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ended = follow(client, run, started.event, _view(args), timeout=timeout)
        if ended is None:
            note(f"buildctl: run {number} has not ended within {duration(timeout)}; it goes on")
            if args.json:
                say_json(run_view(client, run))
            return TIMED_OUT
        code = finish(client, ended, args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        note(
            f"\nbuildctl: interrupted; run {number} goes on.\n"
            f"  follow it: buildctl wait {number}   cancel it: buildctl cancel {number}"
        )
        return INTERRUPTED
    except BrokenPipeError:
        # not the clean end that it is for `logs`: nobody would learn how the run ended
        raise CtlError(
            f"nobody reads the output any more; run {number} goes on",
            hint=f"buildctl wait {number} follows it",
            code=FAILED,
        ) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
