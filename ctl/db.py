"""`buildctl db`: what the database knows of builds, whether it is sound, and how to empty it."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from buildd import protocol
from ctl.actions import Actions, action_parsers, run_action
from ctl.client import Client
from ctl.failure import FAILED, OK, REFUSED, USAGE, CtlError
from ctl.output import note, paint, say, say_json, say_lines
from ctl.show import print_builds
from ctl.text import duration, moment, plural, printable, size, table
from ctl.verbs import Verb, connection_options

_NAME = "NAME or NAME@VERSION"


def _history(args: argparse.Namespace, client: Client) -> int:
    params = protocol.BuildListParams(package=args.package, limit=args.limit)
    return _builds(args, client, "build.list", params)


def _failures(args: argparse.Namespace, client: Client) -> int:
    params = protocol.FailuresParams(package=args.package, limit=args.limit)
    return _builds(args, client, "db.failures", params)


def _builds(args: argparse.Namespace, client: Client, method: str, params: protocol.Params) -> int:
    if args.json:
        say_json(client.raw(method, params))
    else:
        print_builds(client.call(method, params, protocol.BuildList).builds)
    return OK


def _latest(args: argparse.Namespace, client: Client) -> int:
    params = protocol.IndexParams(package=args.package, limit=args.limit)
    if args.json:
        say_json(client.raw("db.latest", params))
        return OK
    entries = client.call("db.latest", params, protocol.IndexList).entries
    rows = [(e.package, e.version, e.build[:8], moment(e.built_at), e.output_id[:12], e.repository) for e in entries]
    say_lines(table(("PACKAGE", "VERSION", "BUILD", "BUILT", "OUTPUT", "REPOSITORY"), rows))
    return OK


def _fingerprint(args: argparse.Namespace, client: Client) -> int:
    params = protocol.FingerprintParams(package=args.package)
    if args.json:
        say_json(client.raw("db.fingerprint", params))
        return OK
    found = client.call("db.fingerprint", params, protocol.FingerprintList).fingerprints
    rows = [
        (
            f.package,
            f.version,
            f.tree or "-",
            "-" if f.crc is None else f"{f.crc:08x}",
            "-" if f.files is None else str(f.files),
            f.build[:8],
            moment(f.built_at),
            f.repository,
        )
        for f in found
    ]
    header = ("PACKAGE", "VERSION", "TREE", "CRC", "FILES", "BUILD", "BUILT", "REPOSITORY")
    say_lines(table(header, rows, right=(4,)))
    return OK


def _stats(args: argparse.Namespace, client: Client) -> int:
    params = protocol.DatabaseStatsParams(slowest=args.slowest)
    if args.json:
        say_json(client.raw("db.stats", params))
        return OK
    stats = client.call("db.stats", params, protocol.DatabaseStats)
    rate = "" if stats.hit_rate is None else f": {100 * stats.hit_rate:.1f} % hits"
    facts = [
        ("since", moment(stats.since)),
        ("packages", f"{stats.packages} with a success, {plural(stats.outputs, 'output')}"),
        ("runs", _by_state(stats.runs)),
        ("builds", _by_state(stats.builds)),
        ("cache", f"{plural(stats.hits, 'hit')}, {stats.misses} miss{'es' * (stats.misses != 1)}{rate}"),
        (
            "time built",
            f"{duration(stats.total_s)}; a build takes {duration(stats.mean_s)} on average, "
            f"{duration(stats.median_s)} at the median",
        ),
        ("artifacts", "-" if stats.artifacts is None else f"{stats.artifacts}, {size(stats.artifact_bytes)}"),
        ("database", size(stats.database_bytes)),
    ]
    say_lines(f"{name:<11} {printable(value)}" for name, value in facts)
    if stats.slowest:
        say()
        rows = [
            (t.package, str(t.builds), duration(t.median_s), duration(t.mean_s), duration(t.total_s))
            for t in stats.slowest
        ]
        say_lines(table(("SLOWEST", "BUILDS", "MEDIAN", "MEAN", "TOTAL"), rows, right=(1, 2, 3, 4)))
    return OK


def _by_state(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return f"{total} = {' + '.join(f'{count} {state}' for state, count in counts.items())}" if total else "none"


def _verify(args: argparse.Namespace, client: Client) -> int:
    check = client.call("db.verify", None, protocol.DatabaseCheck, timeout=None)
    if args.json:
        say_json(check)
        return OK if check.ok else FAILED
    for problem in check.problems:
        say(f"{paint('✗', 'red')} {printable(problem)}")
    if check.ok:
        say(f"{paint('✓', 'green')} the database is sound: {plural(check.builds, 'build')} on record")
    if check.missing_artifacts:
        say(
            f"  {plural(check.missing_artifacts, 'successful build')} without an artifact any more: "
            "what is wanted of them is built again"
        )
    return OK if check.ok else FAILED


def _reset(args: argparse.Namespace, client: Client) -> int:
    if not args.yes and not _confirmed():
        raise CtlError("the database was not reset", code=REFUSED)
    params = protocol.ResetParams(force=args.force)
    if args.json:
        say_json(client.raw("db.reset", params, timeout=None))
    else:
        say(client.call("db.reset", params, protocol.Ok, timeout=None).message)
    return OK


def _confirmed() -> bool:
    """Ask the person at the terminal. Raises CtlError when there is none."""
    if not sys.stdin.isatty():
        raise CtlError("nobody is there to confirm it", hint="--yes resets without asking", code=USAGE)
    note("This forgets all runs, builds and fingerprints; every package will be built again. Artifacts and logs stay.")
    sys.stderr.write("Type `reset` to go on: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() == "reset"


_ACTIONS: Actions = {
    "history": (_history, "builds of a package, newest first"),
    "latest": (_latest, "the latest success of each package, version and repository"),
    "failures": (_failures, "failed builds, newest first"),
    "fingerprint": (_fingerprint, "the source of a package's latest success"),
    "stats": (_stats, "counts, hit rate and times"),
    "verify": (_verify, "check the database and what it refers to"),
    "reset-db": (_reset, "forget everything that was built; artifacts stay"),
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    for name, action in action_parsers(parser, _ACTIONS):
        if name in ("history", "fingerprint"):
            action.add_argument("package", metavar="PACKAGE", help=_NAME if name == "fingerprint" else "its name")
        elif name in ("latest", "failures"):
            action.add_argument("package", metavar="PACKAGE", nargs="?", help=f"only those of this package: {_NAME}")
        if name in ("history", "latest", "failures"):
            default = 100 if name == "latest" else 20
            action.add_argument(
                "--limit", "-n", type=int, default=default, metavar="N", help=f"at most N (default {default})"
            )
        if name == "stats":
            action.add_argument(
                "--slowest", type=int, default=10, metavar="N", help="name the N slowest packages (default 10)"
            )
        if name == "reset-db":
            action.add_argument("--yes", "-y", action="store_true", help="do not ask")
            action.add_argument("--force", action="store_true", help="also while runs are active")
        action.add_argument("--json", action="store_true", help="print the answer as one object")
        connection_options(action, nested=True)


VERBS = {
    "db": Verb(
        partial(run_action, _ACTIONS),
        _arguments,
        "  buildctl db latest zlib\n"
        "  buildctl db failures -n 5\n"
        "  buildctl db stats --json\n"
        "  buildctl db reset-db --yes",
    )
}
