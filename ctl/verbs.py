"""The table of verbs and the reading of argv.

Only the module of the verb that was asked for is imported, and only its parser is built: with all of them a
`buildctl status` would spend more time on argparse than on the daemon.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ctl.failure import USAGE, CtlError
from ctl.text import parse_seconds


class Verb(NamedTuple):
    """What a verb's module says about it."""

    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None]
    examples: str
    own_timeout: bool = False
    """True where --timeout bounds something else than the wait for an answer."""
    prepare: Callable[[list[str]], list[str]] = list
    """Changes what stands after the verb, before it is read."""


MODULES = {
    "status": ("ctl.status", "state and load of the daemon"),
    "top": ("ctl.top.verb", "watch workers, builds and what they use"),
    "start": ("ctl.start", "build targets"),
    "cancel": ("ctl.start", "cancel a run or one package of it"),
    "wait": ("ctl.start", "wait until a run ends"),
    "logs": ("ctl.logs", "print or follow the log of a build"),
    "events": ("ctl.events", "print or follow the event journal"),
    "plan": ("ctl.plan", "what a start of these targets would build, in waves"),
    "why": ("ctl.why", "why a package is, or would be, built or not"),
    "verify": ("ctl.verify", "build a package again elsewhere and compare what it leaves"),
    "list": ("ctl.show", "recent runs, or the packages of a target"),
    "show": ("ctl.show", "a run or a build in full"),
    "history": ("ctl.show", "builds, newest first"),
    "repo": ("ctl.repo", "clones: clone, status, list, refresh, branches, cancel, delete, tree, docs, cat"),
    "map": ("ctl.map", "outline of a repository under a token budget; its definitions and references"),
    "artifacts": ("ctl.artifacts", "what builds left behind: list, show, get, verify, pin, unpin"),
    "gc": ("ctl.collect", "remove artifacts that the limits do not allow"),
    "db": ("ctl.db", "what is on record: history, latest, failures, fingerprint, stats, verify, reset-db"),
    "mcp": ("ctl.mcp.verb", "serve an AI client on standard input and output"),
    "drain": ("ctl.steer", "start no more builds"),
    "resume": ("ctl.steer", "undo drain"),
    "reload": ("ctl.steer", "read the configuration again"),
    "shutdown": ("ctl.steer", "stop the daemon"),
    "doctor": ("ctl.doctor", "check what builds need here, and say what to do"),
    "call": ("ctl.raw", "call a method of the protocol"),
    "schema": ("ctl.raw", "print the protocol as JSON Schema"),
    "completion": ("ctl.shell", "print the completion for bash, zsh or fish"),
    "version": ("ctl.shell", "versions of client and daemon"),
}

_VALUED = ("--socket", "--timeout")
"""Options that may stand before the verb and take a value."""


def parse(argv: Sequence[str]) -> tuple[Verb, argparse.Namespace]:
    """The verb and its arguments. Raises SystemExit after --help and on wrong usage, as argparse does."""
    before, name, after = _split(argv)
    if name is None:
        _without_verb(before)
        raise SystemExit(USAGE)
    if name not in MODULES:
        raise CtlError(f"no such verb: {name}", hint=_suggestion(name), code=USAGE)
    module = importlib.import_module(MODULES[name][0])
    verb: Verb = module.VERBS[name]
    parser = argparse.ArgumentParser(
        prog=f"buildctl {name}",
        description=f"{MODULES[name][1][0].upper()}{MODULES[name][1][1:]}.",
        epilog=f"examples:\n{verb.examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.arguments(parser)
    connection_options(parser, own_timeout=verb.own_timeout)
    return verb, parser.parse_args([*before, *verb.prepare(after)])


def connection_options(parser: argparse.ArgumentParser, *, own_timeout: bool = False, nested: bool = False) -> None:
    """--socket and --timeout. `nested` for the parsers of actions, which must not undo what stands before."""
    default = argparse.SUPPRESS if nested else None
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--socket",
        metavar="PATH",
        default=default,
        help="the daemon's socket (else: $BUILDD_SOCKET, your own daemon's, the system's)",
    )
    if own_timeout:
        parser.set_defaults(answer_timeout=None)
        return
    group.add_argument(
        "--timeout",
        dest="answer_timeout",
        type=seconds,
        metavar="DURATION",
        default=default,
        help="how long one answer may take, like 30s or 5min",
    )


def seconds(text: str) -> float:
    """The type of duration arguments."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Options before the verb, the verb, the rest."""
    i = 0
    while i < len(argv) and argv[i].startswith("-"):
        i += 2 if argv[i] in _VALUED else 1
    if i >= len(argv):
        return list(argv), None, []
    if argv[i] == "help" and len(argv) > i + 1:  # `buildctl help VERB`
        return [], argv[i + 1], ["--help"]
    if argv[i] == "help":
        return ["--help"], None, []
    return list(argv[:i]), argv[i], list(argv[i + 1 :])


def _without_verb(options: Sequence[str]) -> None:
    if "-h" in options or "--help" in options:
        sys.stdout.write(overview())
        raise SystemExit(0)
    if "--version" in options or "-V" in options:
        from ctl.shell import client_version

        sys.stdout.write(client_version() + "\n")
        raise SystemExit(0)
    sys.stderr.write(overview())


def overview() -> str:
    lines = ["usage: buildctl [--socket PATH] [--timeout DURATION] VERB …", "", "Control the build daemon buildd.", ""]
    lines += [f"  {name:<11} {help_}" for name, (_, help_) in MODULES.items()]
    lines += [
        "",
        "`buildctl VERB --help` explains a verb with examples; buildctl(1) explains all of it.",
        "exit codes: 0 ok, 1 something failed to build, 2 usage, 3 not found, 4 refused, 5 not permitted,",
        "            69 daemon not reachable, 124 wait timed out, 130 interrupted",
    ]
    return "\n".join(lines) + "\n"


def _suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, MODULES, n=1)
    return (f"did you mean `{near[0]}`? " if near else "") + f"verbs: {' '.join(MODULES)}"
