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
from ctl.why import decision_options


def _plan(args: argparse.Namespace) -> int:
    with connect(args) as client:
        if args.json:
            say_json(client.raw("run.plan", _params(args), timeout=None))
            return OK
        result = client.call("run.plan", _params(args), protocol.PlanResult, timeout=None)
    say_lines(dot(result) if args.dot else waves(result))
    if not args.dot:
        built = sum(p.verdict is not None and p.verdict.state == "build" for p in result.packages)
        more = f", {built} to be built" if args.why else ""
        note(f"{plural(len(result.packages), 'package')} in {plural(result.waves, 'wave')}{more}")
    return OK


def _params(args: argparse.Namespace) -> protocol.PlanParams:
    return protocol.PlanParams(
        targets=tuple(absolute(target) for target in args.targets),
        refresh=not args.no_refresh,
        worktree=args.worktree,
        strategy=args.strategy,
        why=args.why,
    )


def fetch_plan(client: Client, targets: Sequence[str], *, refresh: bool) -> protocol.PlanResult:
    """The plan; may take as long as a clone does."""
    params = protocol.PlanParams(targets=tuple(absolute(target) for target in targets), refresh=refresh)
    return client.call("run.plan", params, protocol.PlanResult, timeout=None)


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
            if package.ignore:
                line += f"  (ignored: {package.ignore})"
            elif package.verdict is not None:
                line += f"  ({_verdict(package.verdict)})"
            lines.append(printable(line))
    return lines


def _verdict(verdict: protocol.PackageVerdict) -> str:
    """Whether it would be built, and the first cause."""
    causes = [cause.message for cause in verdict.causes]
    if verdict.state == "up_to_date":
        return "up to date"
    more = f" and {len(causes) - 1} more" if len(causes) > 1 else ""
    return f"{verdict.state}: {causes[0]}{more}" if causes else verdict.state


def dot(plan: protocol.PlanResult) -> list[str]:
    """The plan as a Graphviz digraph: an edge from each package to what it depends on."""
    lines = ["digraph plan {", "  rankdir=LR;", "  node [shape=box];"]
    for package in plan.packages:
        built = package.verdict is not None and package.verdict.state == "build"
        style = ", style=dashed" if package.ignore else ", style=bold" if built else ""
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
    parser.add_argument("--why", action="store_true", help="say of each package whether it would be built, and why")
    decision_options(parser)
    parser.add_argument("--no-refresh", action="store_true", help="plan from the clone as it is")


VERBS = {
    "plan": Verb(
        _plan,
        _arguments,
        "  buildctl plan .\n  buildctl plan . --dot | dot -Tsvg -o plan.svg\n  buildctl plan . --why --worktree",
    )
}
