"""The one door to the MCP SDK: tools as it wants them, calls to answers, errors to answers too.

The SDK runs each call as a task of its own and cancels it when the client gives up on it. It claims the descriptors of
standard input and output, so that not even a stray print gets among its messages. Its end of input ends us: calls that
are still answered are cancelled.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

import anyio
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool as ToolDescription,
    ToolAnnotations,
)

from buildd import __version__
from ctl.failure import CtlError
from ctl.mcp.advice import advice
from ctl.mcp.daemon import Daemon
from ctl.mcp.tool import Call, Progress, Tool, ToolError

log = logging.getLogger(__name__)

_INSTRUCTIONS = """\
buildd clones git repositories, outlines their code, and builds the packages in them in sandboxes, incrementally.

To read a repository: clone_repo with its URL, get_clone_status until it is cloned; then get_source_repo_map (a ranked \
outline; begin with it), get_repo_structure, get_repo_critical_files, get_repo_documentation, search_definitions, \
find_references, get_repo_file_content. All take `revision`. refresh_repo fetches what is new.
To build: start_build with targets REPO[@REV][//PACKAGE], get_build_status until `finished`, get_build_log for a \
package that failed; cancel_build stops it. plan_build shows the packages of a repository, explain_build why one is \
built.

What takes long is answered at once and goes on in the background: call the status tool with wait_seconds (30 is good) \
instead of calling it in a loop. An error says what happened and which tool to call next. Lists come in pages: pass \
`next_offset` as `offset`."""
_ONLY_LOOKS = """

This server only looks: tools that clone, fetch, plan, build, cancel or remove are not offered."""


class _Adapter:
    """Answers the client's requests by `tools`."""

    def __init__(self, daemon: Daemon, tools: Sequence[Tool]) -> None:
        self._daemon = daemon
        self._tools = {tool.name: tool for tool in tools}

    async def list_tools(self, context: ServerRequestContext, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_description(tool) for tool in self._tools.values()])

    async def call_tool(self, context: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            near = difflib.get_close_matches(params.name, self._tools, n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            return _failure(f"there is no tool {params.name}", f"{meant}The tools are: {', '.join(self._tools)}.")
        call = Call(self._daemon, Progress(context.session.report_progress))
        try:
            args = tool.understand(params.arguments or {})
        except ToolError as error:
            return _failure(error.message, error.advice)
        try:
            answer = await tool.run(call, args)
        except ToolError as error:
            return _failure(error.message, error.advice)
        except CtlError as error:
            return _failure(error.message, await advice(self._daemon, tool.name, args, error))
        except Exception as error:
            log.exception("%s failed", tool.name)
            return _failure(
                f"internal error in {tool.name}: {type(error).__name__}: {error}",
                "This is a fault of the server: its log (standard error) has the details. Another tool may still work.",
            )
        return CallToolResult(
            content=[TextContent(type="text", text=answer.as_text())], structured_content=answer.as_json()
        )


def _description(tool: Tool) -> ToolDescription:
    return ToolDescription(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema(),
        output_schema=tool.output_schema(),
        annotations=ToolAnnotations(
            title=tool.title,
            read_only_hint=not tool.changes,
            destructive_hint=tool.destructive,
            idempotent_hint=tool.idempotent,
            open_world_hint=tool.open_world,
        ),
    )


def _failure(message: str, advice: str) -> CallToolResult:
    text = f"{message}\n{advice}" if advice else message
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


def make_server(daemon: Daemon, tools: Sequence[Tool]) -> Server[dict[str, Any]]:
    adapter = _Adapter(daemon, tools)
    return Server(
        "buildd",
        version=__version__,
        title="buildd",
        instructions=_INSTRUCTIONS + ("" if any(tool.changes for tool in tools) else _ONLY_LOOKS),
        on_list_tools=adapter.list_tools,
        on_call_tool=adapter.call_tool,
    )


def serve(daemon: Daemon, tools: Sequence[Tool]) -> None:
    """Serve one client on standard input and output, until it closes them."""
    server = make_server(daemon, tools)

    async def run() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    try:
        anyio.run(run)
    except* (BrokenPipeError, anyio.BrokenResourceError):
        pass  # the client has closed our output: it wants no more
