"""`buildctl mcp`: serve one AI client that has started this program.

It ends when the client closes its standard input. SIGINT and SIGTERM end it as the kernel ends any program: there is
nothing to clean up, for what was begun is the daemon's.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

from ctl.failure import OK, REFUSED, CtlError
from ctl.output import note
from ctl.verbs import Verb


def _mcp(args: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.environ["NO_COLOR"] = "1"  # what other verbs show in colours is read by a program here
    try:
        from ctl.mcp.server import serve
    except ImportError as error:
        raise CtlError(
            f"serving MCP takes the Python package mcp, version 2, which is not there: {error}",
            hint="install it where buildctl is: pip install 'buildd[mcp]'",
            code=REFUSED,
        ) from None
    from ctl.mcp.daemon import Daemon
    from ctl.mcp.tools import TOOLS

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="buildctl mcp: %(message)s")
    tools = [tool for tool in TOOLS if not (tool.changes and args.read_only)]
    if sys.stdin.isatty():
        note("buildctl mcp: this is for AI clients, which start it themselves; end it by Ctrl-D")
    serve(Daemon(args.socket, args.answer_timeout), tools)
    return OK


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--read-only", action="store_true", help="offer only tools that look: none that clones, builds, or removes"
    )


VERBS = {
    "mcp": Verb(
        _mcp,
        _arguments,
        "  buildctl mcp --read-only\n"
        "  claude mcp add buildd -- buildctl mcp\n"
        "  buildctl --socket /run/buildd/control.sock mcp",
    )
}
