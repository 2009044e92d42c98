"""The tools for AI clients and a client of them, the SDK's own.

`connected` is what is used: `buildctl mcp` over standard input and output. `directly` is the same tools without the
second that it takes to start it, for tests of what they say.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from harness import BUILDCTL, Daemon, RecipeRepository
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent

from ctl.mcp.daemon import Daemon as McpDaemon
from ctl.mcp.server import make_server
from ctl.mcp.tools import TOOLS

Report = tuple[float, float | None, str | None]


class Session:
    """Calls of tools by a client that has connected."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def result(self, tool: str, reports: list[Report] | None = None, /, **arguments: object) -> CallToolResult:
        """What a tool answers. `reports` collects the progress that it tells."""

        async def collect(progress: float, total: float | None, message: str | None) -> None:
            assert reports is not None
            reports.append((progress, total, message))

        return await self.client.call_tool(
            tool, _arguments(arguments), progress_callback=None if reports is None else collect
        )

    async def answer(self, tool: str, reports: list[Report] | None = None, /, **arguments: object) -> dict[str, Any]:
        """The structured content of an answer; the client has compared it with the tool's schema."""
        result = await self.result(tool, reports, **arguments)
        assert not result.is_error, text_of(result)
        assert isinstance(result.structured_content, dict)
        return result.structured_content

    async def text(self, tool: str, /, **arguments: object) -> str:
        """What a model reads of an answer."""
        result = await self.result(tool, **arguments)
        assert not result.is_error, text_of(result)
        return text_of(result)

    async def error(self, tool: str, /, **arguments: object) -> str:
        """The text of an answer that says why not."""
        result = await self.result(tool, **arguments)
        assert result.is_error, text_of(result)
        assert result.structured_content is None
        return text_of(result)


def _arguments(given: dict[str, object]) -> dict[str, object]:
    return {name: str(value) if isinstance(value, RecipeRepository) else value for name, value in given.items()}


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


@asynccontextmanager
async def connected(daemon: Daemon, *options: str, mode: str = "auto") -> AsyncIterator[Session]:
    """A session with a `buildctl mcp` that has ended afterwards, and has said nothing beside the protocol."""
    parameters = StdioServerParameters(
        command=BUILDCTL[0],
        args=[*BUILDCTL[1:], "mcp", *options],
        env=daemon.client_environment(),
        cwd=str(daemon.home),
    )
    with tempfile.TemporaryFile("w+") as log:
        async with _session(Client(stdio_client(parameters, errlog=log), mode=mode)) as session:
            yield session
        log.seek(0)
        assert log.read() == ""


@asynccontextmanager
async def directly(daemon: Daemon) -> AsyncIterator[Session]:
    """A session with the tools in this process."""
    async with _session(Client(make_server(McpDaemon(str(daemon.socket)), TOOLS))) as session:
        yield session


@asynccontextmanager
async def _session(client: Client) -> AsyncIterator[Session]:
    failure: Exception | None = None
    async with client:
        try:
            yield Session(client)
        except Exception as error:  # raised as it is, and not in a group of the client's
            failure = error
    if failure is not None:
        raise failure
