"""The harness of the end-to-end tests: the real daemon, real repositories, real servers, real processes.

Nothing here imports more of the daemon than `buildd.protocol` and `buildd.model`, as any client may: the tests
see what a user sees.
"""

from harness import rpc, zmtp
from harness.daemon import (
    BACKENDS,
    BUILDCTL,
    DEADLINE_S,
    ROOT,
    Daemon,
    a_home,
    booted,
    bwrap_trouble,
    named,
    needs_bwrap,
    states,
    unbooted,
)
from harness.processes import (
    alive,
    kill_all,
    killed_before,
    resident_bytes,
    until,
    with_command,
    with_cookie,
    with_environment,
)
from harness.repository import GitServer, RecipeRepository, git, served
from harness.rpc import RpcError, Silence
from harness.terminal import Terminal
from harness.web import WebServer
from harness.workspace import Workspace

__all__ = [
    "BACKENDS",
    "BUILDCTL",
    "DEADLINE_S",
    "ROOT",
    "Daemon",
    "GitServer",
    "RecipeRepository",
    "RpcError",
    "Silence",
    "Terminal",
    "WebServer",
    "Workspace",
    "a_home",
    "alive",
    "booted",
    "bwrap_trouble",
    "git",
    "kill_all",
    "killed_before",
    "named",
    "needs_bwrap",
    "resident_bytes",
    "rpc",
    "served",
    "states",
    "unbooted",
    "until",
    "with_command",
    "with_cookie",
    "with_environment",
    "zmtp",
]
