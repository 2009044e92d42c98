"""`buildctl drain`, `resume`, `reload` and `shutdown`: one request each, and what the daemon says to it."""

from __future__ import annotations

import argparse

from buildd import protocol
from ctl.client import connect
from ctl.failure import OK, Gone
from ctl.output import say
from ctl.text import printable
from ctl.verbs import Verb


def _steer(args: argparse.Namespace, method: str, params: protocol.Params) -> int:
    with connect(args) as client:
        answer = client.call(method, params, protocol.Ok)
    say(printable(answer.message) or "done")
    return OK


def _drain(args: argparse.Namespace) -> int:
    return _steer(args, "daemon.drain", protocol.Empty())


def _resume(args: argparse.Namespace) -> int:
    return _steer(args, "daemon.resume", protocol.Empty())


def _reload(args: argparse.Namespace) -> int:
    return _steer(args, "daemon.reload", protocol.Empty())


def _shutdown(args: argparse.Namespace) -> int:
    try:
        return _steer(args, "daemon.shutdown", protocol.ShutdownParams(drain=args.drain))
    except Gone:  # it was faster than its answer
        say("stopped")
        return OK


def _none(parser: argparse.ArgumentParser) -> None:
    pass


def _shutdown_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--drain", action="store_true", help="let running builds finish first")


VERBS = {
    "drain": Verb(_drain, _none, "  buildctl drain && buildctl status"),
    "resume": Verb(_resume, _none, "  buildctl resume"),
    "reload": Verb(_reload, _none, "  buildctl reload"),
    "shutdown": Verb(_shutdown, _shutdown_arguments, "  buildctl shutdown --drain"),
}
