"""`buildctl list`, `show` and `history`: runs and builds, readable or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from buildd import protocol
from buildd.protocol import BuildRecord
from ctl.client import connect
from ctl.failure import OK
from ctl.output import STATE_COLOURS, paint, say, say_json, say_lines
from ctl.plan import fetch_plan, print_plan
from ctl.summary import artifact_sizes, print_packages, took
from ctl.text import counts, duration, moment, printable, size, table
from ctl.verbs import Verb


def _list(args: argparse.Namespace) -> int:
    with connect(args) as client:
        if args.target is not None:
            plan = fetch_plan(client, [args.target], refresh=False)
            if args.json:
                say_json(plan)
            else:
                print_plan(plan)
            return OK
        params = protocol.RunListParams(limit=args.limit, active=args.active)
        if args.json:
            say_json(client.raw("run.list", params))
            return OK
        runs = client.call("run.list", params, protocol.RunList).runs
    rows = [
        (
            str(run.number),
            run.id[:8],
            run.state,
            moment(run.created_at),
            run.requested_by,
            counts(msgspec.structs.asdict(run.stats)),
            " ".join(run.targets),
        )
        for run in runs
    ]
    say_lines(table(("RUN", "ID", "STATE", "CREATED", "BY", "PACKAGES", "TARGETS"), rows, right=(0,)))
    return OK


def _show(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = client.call("object.show", protocol.ShowParams(id=args.id), protocol.ShowResult)
        sizes = artifact_sizes(client, found.run) if found.run is not None and not args.json else {}
    if args.json:
        say_json(found.run if found.run is not None else found.build)
    elif found.run is not None:
        _print_run(found.run, sizes)
    elif found.build is not None:
        say_lines(build_lines(found.build))
    return OK


def _print_run(run: protocol.RunView, sizes: dict[str, int]) -> None:
    wave = f", wave {run.wave} of {run.waves}" if run.wave and run.waves else ""
    say(f"run {run.number} {paint(printable(run.state), STATE_COLOURS.get(run.state))}{wave}{took(run)}")
    facts = [
        ("id", run.id),
        ("targets", " ".join(run.targets)),
        ("by", run.requested_by),
        ("created", moment(run.created_at)),
        ("started", moment(run.started_at)),
        ("completed", moment(run.completed_at)),
        ("packages", counts(msgspec.structs.asdict(run.stats))),
        ("error", run.error or ""),
        ("hint", run.hint or ""),
    ]
    say_lines(f"  {name:<11}{printable(value)}" for name, value in facts if value)
    if run.packages:
        say()
        print_packages(run, sizes)


def build_lines(build: BuildRecord) -> list[str]:
    """A build record for reading."""
    facts = [
        ("id", build.id),
        ("run", build.run),
        ("attempt", str(build.attempt)),
        ("started", moment(build.started_at)),
        ("completed", moment(build.completed_at)),
        ("reason", build.reason or ""),
        ("message", build.message or ""),
        ("exit status", "" if build.exit_status is None else str(build.exit_status)),
        ("used", f"{duration(build.resources.cpu_s)} of CPU, {size(build.resources.max_rss_bytes)} of memory"),
        ("key", build.key),
        ("output", build.output_id or ""),
        ("artifact", build.artifact or ""),
        ("log", f"{build.log} ({size(build.log_bytes)})" if build.log else ""),
    ]
    state = paint(build.state, STATE_COLOURS.get(build.state))
    lines = [f"build of {printable(f'{build.package} {build.version}')} {state}"]
    lines += [f"  {name:<12} {printable(value)}" for name, value in facts if value]
    rows = [
        (
            phase.name,
            moment(phase.started_at),
            duration(phase.duration_s),
            "-" if phase.exit_status is None else str(phase.exit_status),
        )
        for phase in build.phases
    ]
    if rows:
        lines.append("")
        lines += ["  " + line for line in table(("PHASE", "STARTED", "TIME", "EXIT"), rows, right=(2, 3))]
    return lines


def _history(args: argparse.Namespace) -> int:
    params = protocol.BuildListParams(package=args.package, run=args.run, limit=args.limit)
    with connect(args) as client:
        if args.json:
            say_json(client.raw("build.list", params))
            return OK
        print_builds(client.call("build.list", params, protocol.BuildList).builds)
    return OK


def print_builds(builds: Sequence[BuildRecord]) -> None:
    """A table of builds."""
    rows = [
        (
            build.id[:8],
            build.package,
            build.version,
            build.state,
            build.reason or "-",
            moment(build.started_at),
            duration(None if build.completed_at is None else build.completed_at - build.started_at),
            size(build.resources.max_rss_bytes),
            (build.output_id or "-")[:12],
        )
        for build in builds
    ]
    header = ("BUILD", "PACKAGE", "VERSION", "STATE", "REASON", "STARTED", "TIME", "MEMORY", "OUTPUT")
    say_lines(table(header, rows, right=(6, 7)))


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", nargs="?", help="list the packages of this target instead")
    parser.add_argument("--active", action="store_true", help="only runs that have not ended")
    _limit(parser)


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="a run or a build: id, prefix, number of a run, or `latest`")
    parser.add_argument("--json", action="store_true", help="print the run or the build as one object")


def _history_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", metavar="PACKAGE", nargs="?", help="only builds of this package")
    parser.add_argument("--run", metavar="RUN", help="only builds of this run")
    _limit(parser)


def _limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", "-n", type=int, default=20, metavar="N", help="at most N (default 20)")
    parser.add_argument("--json", action="store_true", help="print the answer as one object")


VERBS = {
    "list": Verb(_list, _list_arguments, "  buildctl list --active\n  buildctl list ./workspace"),
    "show": Verb(_show, _show_arguments, "  buildctl show latest\n  buildctl show 3f2a91c0 --json"),
    "history": Verb(_history, _history_arguments, "  buildctl history zlib --limit 5\n  buildctl history --json"),
}
