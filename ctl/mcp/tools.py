"""All tools, in the order in which a client is told of them; and the one that asks for the daemon itself."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from buildd import protocol
from ctl.mcp import builds, logs, maps, plans, reading, repositories
from ctl.mcp.tool import Answer, Arguments, Call, tool


class NoArguments(Arguments, frozen=True, kw_only=True):
    pass


class DaemonAnswer(Answer, frozen=True, kw_only=True):
    """State and load of the daemon."""

    version: str
    state: Annotated[str, Meta(description="running, draining, stopping or degraded.")]
    reasons: Annotated[tuple[str, ...], Meta(description="Why, and what is weaker on this machine than it could be.")]
    paused: Annotated[str, Meta(description="Why no builds are started, for want of disk space; empty otherwise.")]
    sandbox: str
    uptime_seconds: float
    active_runs: int
    builds_queued: int
    builds_running: int
    workers: int
    clones: Annotated[int, Meta(description="Clones and fetches that run or wait.")]


@tool("State of the daemon")
async def get_daemon_status(call: Call, args: NoArguments) -> DaemonAnswer:
    """Whether the build daemon answers, what it does, and why it may be slow, paused or draining."""
    status = await call.daemon.call("daemon.status", None, protocol.DaemonStatus)
    return DaemonAnswer(
        version=status.version,
        state=status.state,
        reasons=(*status.reasons, *filter(None, [status.throttle.reason])),
        paused=status.paused,
        sandbox=status.sandbox,
        uptime_seconds=round(status.uptime_s, 1),
        active_runs=status.runs.active,
        builds_queued=status.builds.queued,
        builds_running=status.builds.running,
        workers=status.throttle.workers,
        clones=len(status.clones),
    )


TOOLS = (
    *repositories.TOOLS,
    *maps.TOOLS,
    *reading.TOOLS,
    *builds.TOOLS,
    *logs.TOOLS,
    *plans.TOOLS,
    get_daemon_status,
)
