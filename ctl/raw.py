"""`buildctl call` and `schema`: the protocol itself, for scripts and for writers of other clients."""

from __future__ import annotations

import argparse
import json
import sys

from ctl.client import QUICK_S, connect
from ctl.failure import OK, USAGE, CtlError
from ctl.output import say_json
from ctl.verbs import Verb


def _call(args: argparse.Namespace) -> int:
    text = sys.stdin.buffer.read() if args.params == "-" else args.params.encode(errors="surrogateescape")
    params = _parameters(text)
    held = params.get("timeout")
    with connect(args) as client:
        limit = held + QUICK_S if isinstance(held, int | float) and held > 0 else None
        say_json(client.raw(args.method, params, timeout=limit))
    return OK


def _parameters(text: bytes) -> dict[str, object]:
    try:
        params = json.loads(text)
    except ValueError as error:
        raise _no_object(str(error)) from None
    if not isinstance(params, dict):
        raise _no_object(f"it is {text.decode(errors='replace')[:40]!r}")
    return params


def _no_object(why: str) -> CtlError:
    return CtlError(
        f"the parameters are not a JSON object: {why}",
        hint="""write them like '{"limit": 5}', or - to read them from standard input""",
        code=USAGE,
    )


def _schema(args: argparse.Namespace) -> int:
    from buildd import protocol

    schema = protocol.schema()
    if args.method is not None:
        if args.method not in protocol.METHODS:
            raise CtlError(f"no such method: {args.method}", hint=f"methods: {' '.join(protocol.METHODS)}", code=USAGE)
        schema = {**schema, "methods": {args.method: schema["methods"][args.method]}}
    say_json(schema)
    return OK


def _call_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="such as run.list; `buildctl schema` has them all")
    parser.add_argument("params", metavar="JSON", nargs="?", default="{}", help="parameters, or - for standard input")


def _schema_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", nargs="?", help="only this method")


VERBS = {
    "call": Verb(
        _call,
        _call_arguments,
        "  buildctl call daemon.status\n"
        """  buildctl call run.list '{"limit": 5, "active": true}'\n"""
        """  echo '{"after": 0}' | buildctl call events.poll -""",
    ),
    "schema": Verb(_schema, _schema_arguments, "  buildctl schema > protocol.json\n  buildctl schema run.start"),
}
