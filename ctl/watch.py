"""Watching a run to its end, as `start --wait`, `wait` and `verify` do. Whatever happens here, the run goes on."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from buildd import protocol
from ctl.client import Client, convert
from ctl.failure import FAILED, INTERRUPTED, TIMED_OUT, CtlError
from ctl.follow import Silent, View, follow, newest_event, replay, run_view
from ctl.lines import Lines
from ctl.output import note, say_json
from ctl.summary import summarise
from ctl.text import duration


def watch_started(client: Client, answer: object, args: argparse.Namespace) -> int:
    """Watch the run that `run.start` answered with; one that has ended already is told about."""
    started = convert(answer, protocol.StartResult, "run.start")
    if started.run is None:
        return watch(client, started, args, summarise)
    replay(client, started.id, started.event, _view(args))
    return summarise(client, started.run, args)


def watch_run(client: Client, args: argparse.Namespace) -> int:
    """Watch the run that `args.run` names."""
    after = newest_event(client)
    run = client.call("run.status", protocol.RunStatusParams(run=args.run, packages=False), protocol.RunView)
    found = protocol.StartResult(id=run.id, number=run.number, event=after)
    return watch(client, found, args, summarise, timeout=args.wait_timeout)


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
