"""`buildctl verify`: build what is up to date again, elsewhere and later, and compare."""

from __future__ import annotations

import argparse

from buildd import protocol
from ctl.client import Client, connect
from ctl.failure import FAILED, OK
from ctl.follow import run_view
from ctl.output import say, say_json
from ctl.summary import EVENTFUL
from ctl.text import printable
from ctl.verbs import Verb
from ctl.watch import watch
from ctl.why import subject


def _verify(args: argparse.Namespace) -> int:
    params = protocol.VerifyParams(package=subject(args.package), worktree=args.worktree)
    with connect(args) as client:
        started = client.call("package.verify", params, protocol.StartResult)
        return watch(client, started, args, _report)


def _report(client: Client, run: protocol.RunView, args: argparse.Namespace) -> int:
    shown = run_view(client, run.id, states=EVENTFUL)
    code = OK if shown.state == "completed" else FAILED
    if args.json:
        say_json(shown)
        return code
    for package in shown.packages:
        title = printable(f"{package.name} {package.version}")
        if package.state == "success":
            say(f"{title} is reproducible: built again elsewhere, it left the same behind")
        elif package.reason == "not_reproducible":
            say(f"{title} is not reproducible: {printable(package.message or '')}")
            say(f"  what it left this time: {printable(package.artifact or '')}")
        else:
            why = ": ".join(filter(None, (package.reason, package.message)))
            say(f"{title} could not be compared: it {package.state}{f': {printable(why)}' if why else ''}")
    if shown.error and not shown.packages:
        say(printable(shown.error))
        if shown.hint:
            say(f"  {printable(shown.hint)}")
    return code


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "package", metavar="PACKAGE", help="NAME[@VERSION] of a package that was built, or REPO[@REV]//NAME"
    )
    parser.add_argument("--worktree", action="store_true", help="take a local repository as its files are now")
    parser.add_argument("--quiet", "-q", action="store_true", help="print only the result")
    parser.add_argument("--json", action="store_true", help="print the run as one object")


VERBS = {
    "verify": Verb(
        _verify,
        _arguments,
        "  buildctl verify zlib\n  buildctl verify ./workspace//tally --json",
    )
}
