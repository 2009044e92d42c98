"""The tool for logs of builds."""

from __future__ import annotations

import time
from typing import Annotated

from msgspec import Meta

from buildd import protocol
from buildd.protocol import RunView
from ctl.mcp.fields import POLL_S, Count, NextStep, Run, Wait
from ctl.mcp.tool import Answer, Arguments, Call, ToolError, tool
from ctl.text import without_escapes


class LogArguments(Arguments, frozen=True, kw_only=True):
    build: Annotated[str, Meta(description="Id of a build. Without it, `run` and `package` name one.")] = ""
    run: Run = "latest"
    package: Annotated[
        str, Meta(description="Name of a package of the run; may be left out when one was built, or one failed.")
    ] = ""
    offset: Annotated[
        Count | None,
        Meta(description="Byte to start at, as `next_offset` of an earlier answer; without it, the end."),
    ] = None
    max_bytes: Annotated[int, Meta(ge=1, le=protocol.MAX_CHUNK_BYTES)] = 16_384
    wait_seconds: Wait = 0.0


class LogAnswer(Answer, frozen=True, kw_only=True):
    """A piece of the log of a build."""

    build: str
    package: str
    version: str
    state: Annotated[str, Meta(description="running, success, failed or cancelled.")]
    message: Annotated[str, Meta(description="Why it failed; empty otherwise.")]
    offset: Annotated[int, Meta(description="Byte where the text begins.")]
    next_offset: Annotated[int, Meta(description="What to pass as `offset` for what follows.")]
    finished: Annotated[bool, Meta(description="True when the build has ended and nothing follows.")]
    text: str
    next_step: NextStep

    def as_text(self) -> str:
        head = f"log of {self.package} {self.version}, build {self.build}, {self.state}"
        why = f"\n{self.message}" if self.message else ""
        return f"{head}, bytes {self.offset} to {self.next_offset}{why}\n{self.next_step}\n\n{self.text}"


@tool("Log of a build")
async def get_build_log(call: Call, args: LogArguments) -> LogAnswer:
    """The output of the build of one package: its end, or a piece from `offset`. While it is being built,
    `wait_seconds` waits for output after `offset`, so calls with `next_offset` follow the log."""
    record = await _find_build(call, args)
    offset = -args.max_bytes if args.offset is None else args.offset
    deadline = time.monotonic() + args.wait_seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        params = protocol.LogParams(
            build=record.id, offset=offset, limit=args.max_bytes, timeout=min(POLL_S, left) if offset >= 0 else 0.0
        )
        chunk = await call.daemon.call("build.log", params, protocol.LogChunk, hold=POLL_S, patience=left)
        if chunk.text or chunk.finished or left <= 0:
            break
        offset = chunk.next_offset
        await call.progress.tell(float(chunk.next_offset), None, f"{record.package}: waiting for output")
    if record.state == "running":
        record = await call.daemon.call("build.show", protocol.BuildParams(build=record.id), protocol.BuildRecord)
    return LogAnswer(
        build=record.id,
        package=record.package,
        version=record.version,
        state=record.state,
        message=record.message or "",
        offset=chunk.offset,
        next_offset=chunk.next_offset,
        finished=chunk.finished,
        text=without_escapes(chunk.text),
        next_step=_next_piece(chunk, record.log_bytes),
    )


def _next_piece(chunk: protocol.LogChunk, log_bytes: int) -> str:
    again = f"Call get_build_log with build={chunk.build}"
    if chunk.finished:
        return f"{again} and offset=0 for its beginning." if chunk.offset else "This is all of it."
    return f"{again} and offset={chunk.next_offset} for what follows, with wait_seconds while it is being built."


async def _find_build(call: Call, args: LogArguments) -> protocol.BuildRecord:
    """The build that the arguments mean. Raises ToolError when that is none, or several."""
    if args.build:
        return await call.daemon.call("build.show", protocol.BuildParams(build=args.build), protocol.BuildRecord)
    view = await call.daemon.call("run.status", protocol.RunStatusParams(run=args.run), RunView)
    named = [package for package in view.packages if not args.package or package.name == args.package]
    if args.package and not named:
        raise ToolError(
            f"run {view.number} has no package {args.package}",
            f"get_build_status with run={view.number} shows those it has."
            if view.packages
            else f"It has none yet: call get_build_status with run={view.number} and wait_seconds=10 first.",
        )
    built = [package for package in named if package.build_id]
    failed = [package for package in built if package.state == "failed"]
    for choice in (built, failed):
        if len(choice) == 1:
            params = protocol.BuildParams(build=choice[0].build_id or "")
            return await call.daemon.call("build.show", params, protocol.BuildRecord)
    if not built:
        what = f"{args.package} in run {view.number}" if args.package else f"run {view.number}"
        states = ", ".join(dict.fromkeys(f"{package.name} {package.state}" for package in named[:10]))
        raise ToolError(
            f"there is no log of {what}: nothing of it was built{f' ({states})' if states else ''}",
            f"get_build_status with run={view.number} tells why, or when it will be. list_builds shows other runs.",
        )
    names = ", ".join(package.name for package in (failed or built)[:20])
    raise ToolError(f"run {view.number} has {len(built)} logs", f"Say which package you mean: {names}.")


TOOLS = (get_build_log,)
