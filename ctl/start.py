"""`buildctl start`, `wait` and `cancel`: runs.

A start on thousands of packages in which nothing is to be built takes the daemon less time than this program takes to
be loaded: what only watching needs, the protocol's structs too, is imported when there is something to watch.
"""

from __future__ import annotations

import argparse

from ctl.client import connect
from ctl.failure import INTERRUPTED, OK
from ctl.output import STATE_COLOURS, note, paint, say, say_json
from ctl.section import Record, Section
from ctl.target import absolute
from ctl.text import MAX_ROWS, counts, duration
from ctl.verbs import Verb, seconds

AT_ONCE_S = 0.25
"""A run in which nothing has to be built ends sooner, and then one answer tells all."""
_STATES = ("total", "skipped", "ignored")


def _start(args: argparse.Namespace) -> int:
    params = {
        "targets": [absolute(target) for target in args.targets],
        "keep_going": not args.fail_fast,
        "force": args.force,
        "fetch_only": args.fetch_only,
        "refresh": not args.no_refresh,
        "priority": args.priority,
        "force_packages": args.force_package,
        "strategy": args.strategy,
        "max_retries": args.max_retries,
        "worktree": args.worktree,
        "wait": AT_ONCE_S if args.wait else 0.0,
    }
    with connect(args) as client:
        try:
            answer = client.raw("run.start", params)
        except KeyboardInterrupt:
            note("buildctl: interrupted before the daemon confirmed; `buildctl list` shows whether it started")
            return INTERRUPTED
        started = Section(answer)
        if args.wait:
            if not args.json and _is_uneventful(started.section("run")):
                return _say_uneventful(started.section("run"), quiet=args.quiet)
            if started.section("run").section("stats").count("total") > MAX_ROWS:  # its events are not told either
                from ctl.summary import summarise

                return summarise(client, Record(answer).run, args)
            from ctl.watch import watch_started

            return watch_started(client, answer, args)
    if args.json:
        say_json(answer)
    elif args.quiet:
        say(str(started.count("number")))
    else:
        say(f"run {started.count('number')} accepted ({started.word('id')})")
        note(
            f"follow it: buildctl wait {started.count('number')}   cancel it: buildctl cancel {started.count('number')}"
        )
    return OK


def _is_uneventful(run: Section) -> bool:
    """Whether a run has ended, too large to list its packages, with nothing to tell of any."""
    stats = run.section("stats")
    total, skipped, ignored = (stats.count(state) for state in _STATES)
    return run.word("state") == "completed" and total > MAX_ROWS and skipped + ignored == total


def _say_uneventful(run: Section, *, quiet: bool) -> int:
    if not quiet:
        stats = run.section("stats")
        took = duration(run.number("completed_at") - run.number("started_at"))
        state = paint("completed", STATE_COLOURS["completed"])
        said = counts({name: stats.count(name) for name in _STATES})
        say(f"run {run.count('number')} {state} in {took}: {said}")
    return OK


def _wait(args: argparse.Namespace) -> int:
    from ctl.watch import watch_run

    with connect(args) as client:
        return watch_run(client, args)


def _cancel(args: argparse.Namespace) -> int:
    with connect(args) as client:
        params = {"run": args.run, "package": args.package}
        say(Section(client.raw("run.cancel", params)).word("message") or "cancelled")
    return OK


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
