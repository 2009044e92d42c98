"""Verbs that have actions of their own, as `buildctl repo list` and `buildctl artifacts get`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping

from ctl.client import Client, connect

Actions = Mapping[str, tuple[Callable[[argparse.Namespace, Client], int], str]]
"""Name to what it does, returning the exit code, and its help."""


def run_action(actions: Actions, args: argparse.Namespace) -> int:
    action, _ = actions[args.action]
    with connect(args) as client:
        return action(args, client)


def action_parsers(parser: argparse.ArgumentParser, actions: Actions) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each action's name and its own parser, for the options of the action."""
    parsers = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (_, help_) in actions.items():
        yield (
            name,
            parsers.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.", allow_abbrev=False),
        )
