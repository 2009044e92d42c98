"""`buildctl start`, `wait` and `cancel`: runs.

A start on thousands of packages in which nothing is to be built takes the daemon less time than this program takes to
be loaded: what only watching needs is imported when something is watched.
"""

from __future__ import annotations

import argparse
import sys

from buildd import protocol
from ctl.client import Client, connect
from ctl.failure import INTERRUPTED, OK
from ctl.output import note, say, say_json
from ctl.summary import EVENTFUL, MAX_ROWS, exit_code, print_summary
from ctl.target import absolute
from ctl.text import printable
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
        if started.run is not None:  # it has ended: there is nothing to follow
            return _ended_at_once(client, started, started.run, args)
        if args.wait:
            from ctl.watch import watch

            return watch(client, started, args, _summarise)
    if args.json:
        say_json(started)
    elif args.quiet:
        say(str(started.number))
    else:
        say(f"run {started.number} accepted ({started.id})")
        note(f"follow it: buildctl wait {started.number}   cancel it: buildctl cancel {started.number}")
    return OK


def _ended_at_once(
    client: Client, started: protocol.StartResult, run: protocol.RunView, args: argparse.Namespace
) -> int:
    """Tell what happened in a run that had ended before anybody could follow it."""
    if run.stats.total <= MAX_ROWS:
        from ctl.watch import replay

        replay(client, started, args)
    code = _summarise(client, run, args)
    sys.stdout.flush()
    return code


def _wait(args: argparse.Namespace) -> int:
    from ctl.follow import newest_event
    from ctl.watch import watch

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


def _summarise(client: Client, run: protocol.RunView, args: argparse.Namespace) -> int:
    """Print a run that has ended; of `run` only what is the same without its packages is looked at."""
    from ctl.follow import run_view

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
