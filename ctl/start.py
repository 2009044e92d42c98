"""`buildctl start`, `wait` and `cancel`: runs. Whatever happens to the client, the run goes on."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from buildd import protocol
from ctl.client import Client, connect
from ctl.failure import FAILED, INTERRUPTED, OK, TIMED_OUT, CtlError
from ctl.follow import Silent, View, follow, newest_event, run_view
from ctl.lines import Lines
from ctl.output import note, say, say_json
from ctl.summary import EVENTFUL, MAX_ROWS, exit_code, print_summary
from ctl.target import absolute
from ctl.text import duration, printable
from ctl.verbs import Verb, seconds

AT_ONCE_S = 0.25
"""A run in which nothing has to be built ends sooner, and then one answer tells all."""


def _start(args: argparse.Namespace) -> int:
    params = protocol.StartParams(
        targets=tuple(absolute(target) for target in args.targets),
        keep_going=not args.fail_fast,
        force=args.force,
        fetch_only=args.fetch_only,
        refresh=not args.no_refresh,
        priority=args.priority,
        force_packages=tuple(args.force_package),
        strategy=args.strategy,
        max_retries=args.max_retries,
        worktree=args.worktree,
        wait=AT_ONCE_S if args.wait else 0.0,
    )
    with connect(args) as client:
        try:
            started = client.call("run.start", params, protocol.StartResult)
        except KeyboardInterrupt:
            note("buildctl: interrupted before the daemon confirmed; `buildctl list` shows whether it started")
            return INTERRUPTED
        if started.run is not None and started.run.stats.total > MAX_ROWS:  # it has ended: there is nothing to follow
            return _summarise(client, started.run, args)
        if args.wait:
            return watch(client, started, args, _summarise)
    if args.json:
        say_json(started)
    elif args.quiet:
        say(str(started.number))
    else:
        say(f"run {started.number} accepted ({started.id})")
        note(f"follow it: buildctl wait {started.number}   cancel it: buildctl cancel {started.number}")
    return OK


def _wait(args: argparse.Namespace) -> int:
    with connect(args) as client:
        after = newest_event(client)
        run = client.call("run.status", protocol.RunStatusParams(run=args.run, packages=False), protocol.RunView)
        found = protocol.StartResult(id=run.id, number=run.number, event=after)
        return watch(client, found, args, _summarise, timeout=args.wait_timeout)


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


def _summarise(client: Client, run: protocol.RunView, args: argparse.Namespace) -> int:
    """Print a run that has ended; of `run` only what is the same without its packages is looked at."""
    stats, shown = run.stats, run
    if args.json or stats.total <= MAX_ROWS:
        shown = run_view(client, run.id)
    elif stats.skipped + stats.ignored < stats.total:
        shown = run_view(client, run.id, states=EVENTFUL)
    if args.json:
        say_json(shown)
    else:
        print_summary(client, shown, quiet=args.quiet)
    return exit_code(shown)


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
    parser.add_argument(
        "--force-package",
        action="append",
        default=[],
        metavar="NAME",
        help="build this package even when it has a result already; may be repeated",
    )
    parser.add_argument(
        "--strategy",
        choices=("none", "conservative", "aggressive"),
        metavar="STRATEGY",
        help="which earlier results are used (default: as configured)",
    )
    parser.add_argument(
        "--max-retries",
        type=int,
        metavar="N",
        help="further attempts after failures that may pass (default: as configured)",
    )
    parser.add_argument(
        "--worktree",
        action="store_true",
        help="build local repositories as their files are now, uncommitted changes included",
    )
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
