"""`buildctl plan`, and the table of a target's packages for `list`: what a start would consider."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from buildd import protocol
from ctl.client import Client, connect
from ctl.failure import OK
from ctl.output import note, say, say_json, say_lines
from ctl.target import absolute
from ctl.text import plural, printable, table
from ctl.verbs import Verb


def _plan(args: argparse.Namespace) -> int:
    with connect(args) as client:
        if args.json:
            say_json(client.raw("run.plan", _params(args.targets, refresh=not args.no_refresh), timeout=None))
            return OK
        result = fetch_plan(client, args.targets, refresh=not args.no_refresh)
    say_lines(dot(result) if args.dot else waves(result))
    if not args.dot:
        note(f"{plural(len(result.packages), 'package')} in {plural(result.waves, 'wave')}")
    return OK


def _params(targets: Sequence[str], *, refresh: bool) -> protocol.PlanParams:
    return protocol.PlanParams(targets=tuple(absolute(target) for target in targets), refresh=refresh)


def fetch_plan(client: Client, targets: Sequence[str], *, refresh: bool) -> protocol.PlanResult:
    """The plan; may take as long as a clone does."""
    return client.call("run.plan", _params(targets, refresh=refresh), protocol.PlanResult, timeout=None)


def waves(plan: protocol.PlanResult) -> list[str]:
    """A paragraph per wave: the packages whose last dependency is in the wave before."""
    lines: list[str] = []
    by_wave: dict[int, list[protocol.PlannedPackage]] = {}
    for package in plan.packages:
        by_wave.setdefault(package.wave, []).append(package)
    for wave, packages in sorted(by_wave.items()):
        lines.append(f"wave {wave}")
        for package in packages:
            line = f"  {package.name} {package.version}"
            line += f"  <- {' '.join(package.depends)}" if package.depends else ""
            line += f"  (ignored: {package.ignore})" if package.ignore else ""
            lines.append(printable(line))
    return lines


def dot(plan: protocol.PlanResult) -> list[str]:
    """The plan as a Graphviz digraph: an edge from each package to what it depends on."""
    lines = ["digraph plan {", "  rankdir=LR;", "  node [shape=box];"]
    for package in plan.packages:
        style = ", style=dashed" if package.ignore else ""
        lines.append(f"  {_quoted(package.name)} [label={_quoted(f'{package.name} {package.version}')}{style}];")
    for package in plan.packages:
        lines += [f"  {_quoted(package.name)} -> {_quoted(name)};" for name in package.depends]
    lines.append("}")
    return lines


def _quoted(text: str) -> str:
    return '"' + printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def print_plan(plan: protocol.PlanResult) -> None:
    """The packages of a plan as a table."""
    rows = [(p.name, p.version, p.path, str(p.wave), p.ignore or " ".join(p.depends)) for p in plan.packages]
    say_lines(table(("PACKAGE", "VERSION", "PATH", "WAVE", "DEPENDS ON"), rows, right=(3,)))
    if not rows:
        say("no packages")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="REPO[@REV][//PACKAGE]")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--waves", action="store_true", help="print waves as text (default)")
    form.add_argument("--json", action="store_true", help="print the answer of run.plan")
    form.add_argument("--dot", action="store_true", help="print a Graphviz digraph")
    parser.add_argument("--no-refresh", action="store_true", help="plan from the clone as it is")


VERBS = {
    "plan": Verb(
        _plan,
        _arguments,
        "  buildctl plan .\n  buildctl plan . --dot | dot -Tsvg -o plan.svg\n  buildctl plan things//libthing --json",
    )
}
