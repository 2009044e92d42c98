"""`buildctl start`, `wait` and `cancel`: runs. Whatever happens to the client, the run goes on."""

from __future__ import annotations

import argparse
import signal
import sys

from buildd import protocol
from ctl.client import Client, connect
from ctl.failure import FAILED, INTERRUPTED, OK, TIMED_OUT, CtlError
from ctl.follow import Silent, View, follow, newest_event, run_view
from ctl.lines import Lines
from ctl.output import note, say, say_json
from ctl.summary import exit_code, print_summary
from ctl.target import absolute
from ctl.text import duration, printable
from ctl.verbs import Verb, seconds


def _start(args: argparse.Namespace) -> int:
    params = protocol.StartParams(
        targets=tuple(absolute(target) for target in args.targets),
        keep_going=not args.fail_fast,
        force=args.force,
        fetch_only=args.fetch_only,
        refresh=not args.no_refresh,
        priority=args.priority,
    )
    view = _view(args) if args.wait else Silent()
    with connect(args) as client:
        after = newest_event(client) if view.wants else 0
        try:
            started = client.call("run.start", params, protocol.StartResult)
        except KeyboardInterrupt:
            note("buildctl: interrupted before the daemon confirmed; `buildctl list` shows whether it started")
            return INTERRUPTED
        if args.wait:
            return _watch(client, started.id, started.number, after, view, args, timeout=None)
    if args.json:
        say_json(started)
    elif args.quiet:
        say(str(started.number))
    else:
        say(f"run {started.number} accepted ({started.id})")
        note(f"follow it: buildctl wait {started.number}   cancel it: buildctl cancel {started.number}")
    return OK


def _wait(args: argparse.Namespace) -> int:
    view = _view(args)
    with connect(args) as client:
        after = newest_event(client) if view.wants else 0
        run = client.call("run.status", protocol.RunStatusParams(run=args.run, packages=False), protocol.RunView)
        return _watch(client, run.id, run.number, after, view, args, timeout=args.wait_timeout)


def _cancel(args: argparse.Namespace) -> int:
    with connect(args) as client:
        params = protocol.CancelParams(run=args.run, package=args.package)
        say(printable(client.call("run.cancel", params, protocol.Ok).message) or "cancelled")
    return OK


def _view(args: argparse.Namespace) -> View:
    stream = sys.stderr if args.json else sys.stdout
    if args.quiet or (args.json and not stream.isatty()):
        return Silent()
    if not stream.isatty():
        return Lines(stream)
    from ctl.draw import Drawing, can_draw

    return Drawing(stream) if can_draw(stream) else Lines(stream)


def _watch(
    client: Client,
    run: str,
    number: int,
    after: int,
    view: View,
    args: argparse.Namespace,
    *,
    timeout: float | None,
) -> int:
    """Follow to the end and print it. Interrupts and closed pipes end the watching, never the run."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ended = follow(client, run, after, view, timeout=timeout)
        if ended is None:
            note(f"buildctl: run {number} has not ended within {duration(timeout)}; it goes on")
            if args.json:
                say_json(run_view(client, run))
            return TIMED_OUT
        if args.json:
            say_json(ended)
        else:
            print_summary(client, ended, quiet=args.quiet)
        sys.stdout.flush()
        return exit_code(ended)
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


def _start_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="REPO[@REV][//PACKAGE]; REPO is a URL, a path or a known name",
    )
    parser.add_argument("--wait", "-w", action="store_true", help="show progress; exit 1 when something fails")
    failing = parser.add_mutually_exclusive_group()
    failing.add_argument(
        "--keep-going", "-k", action="store_true", help="go on with what does not depend on a failure (default)"
    )
    failing.add_argument("--fail-fast", action="store_true", help="cancel the rest after the first failure")
    parser.add_argument("--force", "-f", action="store_true", help="build even what has a result already")
    parser.add_argument("--fetch-only", action="store_true", help="fetch and verify sources, build nothing")
    parser.add_argument("--no-refresh", action="store_true", help="plan from the clone as it is")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher goes first (default 0)")
    _output_arguments(parser)


def _wait_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="number, id, prefix of an id, or `latest`")
    parser.add_argument(
        "--timeout",
        dest="wait_timeout",
        type=seconds,
        metavar="DURATION",
        help="give up after this long, like 30s or 2h, with exit code 124; the run goes on",
    )
    _output_arguments(parser)


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one object instead of text")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress, and nothing but failures")


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="number, id, prefix of an id, or `latest`")
    parser.add_argument("package", metavar="PACKAGE", nargs="?", help="only this package, and what depends on it")


VERBS = {
    "start": Verb(
        _start,
        _start_arguments,
        "  buildctl start . --wait\n"
        "  buildctl start https://example.org/things.git@v1.2//libthing --fail-fast\n"
        "  number=$(buildctl start things --quiet) && buildctl wait $number",
    ),
    "wait": Verb(
        _wait,
        _wait_arguments,
        "  buildctl wait latest\n  buildctl wait 12 --timeout 30min --json",
        own_timeout=True,
    ),
    "cancel": Verb(_cancel, _cancel_arguments, "  buildctl cancel 12\n  buildctl cancel latest zlib"),
}
