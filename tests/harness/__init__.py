"""The harness of the end-to-end tests: the real daemon, real repositories, real servers, real processes.

Nothing here imports more of the daemon than `buildd.protocol` and `buildd.model`, as any client may: the tests
see what a user sees.
"""

from harness.daemon import (
    BUILDCTL,
    DEADLINE_S,
    ROOT,
    Daemon,
    a_home,
    booted,
    bwrap_trouble,
    named,
    spawned,
    unbooted,
)
from harness.processes import alive, command_line, resident_bytes, until, with_cookie, with_environment
from harness.repository import GitServer, RecipeRepository, git, served
from harness.rpc import RpcError, Silence

__all__ = [
    "BUILDCTL",
    "DEADLINE_S",
    "ROOT",
    "Daemon",
    "GitServer",
    "RecipeRepository",
    "RpcError",
    "Silence",
    "a_home",
    "alive",
    "booted",
    "bwrap_trouble",
    "command_line",
    "git",
    "named",
    "resident_bytes",
    "served",
    "spawned",
    "unbooted",
    "until",
    "with_cookie",
    "with_environment",
]
