"""`buildctl completion` and `version`: about the program itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ctl.failure import NOT_FOUND, OK, CtlError
from ctl.output import say, say_json
from ctl.section import Section
from ctl.text import printable
from ctl.verbs import Verb

SHELLS = ("bash", "zsh", "fish")


def _completion(args: argparse.Namespace) -> int:
    path = Path(__file__).parent / "completion" / f"buildctl.{args.shell}"
    try:
        sys.stdout.write(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CtlError(
            f"{path} is missing", hint="the installation of buildctl is not complete", code=NOT_FOUND
        ) from None
    return OK


def client_version() -> str:
    """`buildctl VERSION (protocol N)`."""
    import buildd.protocol

    return f"buildctl {buildd.__version__} (protocol {buildd.protocol.VERSION})"


def _version(args: argparse.Namespace) -> int:
    import buildd.protocol
    from ctl.client import connect

    daemon = path = problem = None
    try:
        with connect(args) as client:
            path = client.path
            daemon = Section(client.raw("daemon.status")).word("version")
    except CtlError as error:
        problem = error.message
    if args.json:
        say_json(
            {
                "client": buildd.__version__,
                "protocol": buildd.protocol.VERSION,
                "daemon": daemon,
                "socket": path,
                "problem": problem,
            }
        )
        return OK
    say(client_version())
    say(f"buildd {printable(daemon)} at {path}" if daemon else printable(problem or ""))
    return OK


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def _version_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one object")


VERBS = {
    "completion": Verb(
        _completion,
        _completion_arguments,
        "  buildctl completion bash > ~/.local/share/bash-completion/completions/buildctl\n"
        "  buildctl completion fish > ~/.config/fish/completions/buildctl.fish",
    ),
    "version": Verb(_version, _version_arguments, "  buildctl version --json"),
}
