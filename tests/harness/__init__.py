"""The harness of the end-to-end tests: the real daemon, real repositories, real servers, real processes.

Nothing here imports the daemon's rooms but `buildd.protocol` and `buildd.model`, which any client may: the
tests see what a user sees.
"""

from harness.daemon import BUILDCTL, DEADLINE_S, ROOT, Daemon, booted, bwrap_trouble
from harness.processes import alive, until, with_cookie, with_environment
from harness.repository import GitServer, RecipeRepository, git
from harness.rpc import RpcError, Silence, call

__all__ = [
    "BUILDCTL",
    "DEADLINE_S",
    "ROOT",
    "Daemon",
    "GitServer",
    "RecipeRepository",
    "RpcError",
    "Silence",
    "alive",
    "booted",
    "bwrap_trouble",
    "call",
    "git",
    "until",
    "with_cookie",
    "with_environment",
]
