"""Tools for AI clients: what a call makes of a daemon that refuses, is silent, or goes away."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from ctl_peer import Peer
from mcp import Client
from mcp.types import CallToolResult, TextContent

from buildd.errors import Busy, NotPermitted, Refused
from ctl.mcp.daemon import Daemon
from ctl.mcp.fields import following, moment, page
from ctl.mcp.server import make_server
from ctl.mcp.tool import Answer, Arguments, Call, Progress, Tool, tool
from ctl.mcp.tools import TOOLS


@asynccontextmanager
async def connected(peer: Peer, *, tools: Sequence[Tool] = TOOLS, answer_s: float = 10.0) -> AsyncIterator[Client]:
    """A client of tools that ask the peer, in this process."""
    failure: Exception | None = None
    async with Client(make_server(Daemon(peer.path, answer_s), tools)) as client:
        try:
            yield client
        except Exception as error:  # raised as it is, and not in a group of the client's
            failure = error
    if failure is not None:
        raise failure


async def error_of(client: Client, name: str, **arguments: object) -> str:
    result = await client.call_tool(name, arguments)
    assert result.is_error
    return text_of(result)


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def asked(peer: Peer, method: str) -> int:
    return sum(name == method for name, _ in peer.requests)


async def until_asked(peer: Peer, method: str) -> None:
    with trio.fail_after(10):
        while not asked(peer, method):
            await trio.sleep(0.01)


# --- refusals ---------------------------------------------------------------------------------------------


async def test_a_missing_right_is_told_with_the_advice_not_to_try_again(peer: Peer) -> None:
    peer.failures["repo.clone"] = NotPermitted("nobody may not control this daemon", hint="ask an administrator")
    async with connected(peer) as client:
        assert await error_of(client, "clone_repo", repo="https://example.org/x") == (
            "nobody may not control this daemon\n"
            "Ask an administrator. Do not try again: the user has to be given that right first. "
            "Tools that only look may work."
        )


async def test_hints_that_speak_of_commands_are_replaced_by_tools(peer: Peer) -> None:
    peer.failures["run.cancel"] = Refused("run 3 has already ended", hint="`buildctl show 3` tells how")
    peer.failures["run.list"] = Busy("too many requests", hint="ask again later")
    async with connected(peer) as client:
        assert await error_of(client, "cancel_build", run=3) == (
            "run 3 has already ended\nget_build_status with run=3 tells its state."
        )
        assert await error_of(client, "list_builds") == "too many requests\nAsk again later."


async def test_a_method_that_the_daemon_does_not_know_is_a_matter_of_its_version(peer: Peer) -> None:
    error = {"code": -32601, "message": "there is no method 'daemon.status'"}
    peer.raw_answers["daemon.status"] = json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode()
    async with connected(peer) as client:
        assert "older than this server" in await error_of(client, "get_daemon_status")


async def test_an_answer_that_is_not_understood_and_a_fault_of_a_tool_are_errors_too(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.raw_answers["daemon.status"] = b"what?"
    async with connected(peer, tools=(*TOOLS, faulty)) as client:
        assert "is not understood" in await error_of(client, "get_daemon_status")
        assert "internal error in faulty: ZeroDivisionError" in await error_of(client, "faulty")
    assert "ZeroDivisionError" in caplog.text


class NoArguments(Arguments, frozen=True, kw_only=True):
    pass


@tool("Fail")
async def faulty(call: Call, args: NoArguments) -> Answer:
    """It divides by nothing."""
    raise ZeroDivisionError


# --- a daemon that does not answer ------------------------------------------------------------------------


async def test_a_silent_daemon_is_waited_for_no_longer_than_is_set(peer: Peer) -> None:
    peer.silent.add("run.list")
    async with connected(peer, answer_s=0.2) as client:
        error = await error_of(client, "list_builds")
    assert "did not answer run.list within 0.2 s" in error
    assert "get_daemon_status" in error


async def test_a_question_is_asked_again_when_the_daemon_comes_back(peer: Peer) -> None:
    peer.silent.add("run.list")
    async with connected(peer) as client, trio.open_nursery() as nursery:
        answers: list[CallToolResult] = []

        async def ask() -> None:
            answers.append(await client.call_tool("list_builds", {}))

        nursery.start_soon(ask)
        await until_asked(peer, "run.list")
        await trio.to_thread.run_sync(peer.stop)
        peer.silent.clear()
        peer.start()
    assert not answers[0].is_error
    assert asked(peer, "run.list") == 2


async def test_a_start_is_not_asked_for_twice(peer: Peer) -> None:
    peer.silent.add("run.start")
    async with connected(peer) as client, trio.open_nursery() as nursery:
        errors: list[str] = []

        async def ask() -> None:
            errors.append(await error_of(client, "start_build", targets=["things"]))

        nursery.start_soon(ask)
        await until_asked(peer, "run.start")
        await trio.to_thread.run_sync(peer.stop)
        peer.start()
    assert "may or may not have accepted" in errors[0]
    assert "list_builds" in errors[0]
    assert asked(peer, "run.start") == 1


async def test_a_fetch_that_takes_longer_than_the_wait_goes_on(peer: Peer) -> None:
    peer.silent.add("repo.refresh")
    url = "https://example.org/things"
    async with connected(peer) as client:
        await client.call_tool("clone_repo", {"repo": url})
        result = await client.call_tool("refresh_repo", {"repo": url, "wait_seconds": 0})
    assert result.structured_content is not None
    assert result.structured_content["status"] == "fetching"
    assert asked(peer, "repo.refresh") == 1


async def test_an_answer_that_takes_long_is_waited_for_as_long_as_is_said(peer: Peer) -> None:
    peer.silent.add("run.plan")
    async with connected(peer) as client:
        error = await error_of(client, "plan_build", targets=["things"], wait_seconds=1)
    assert error.startswith("there is no answer after 1 s\nCall plan_build again")


# --- values -----------------------------------------------------------------------------------------------


async def test_progress_rises_whatever_is_told_and_repeats_nothing() -> None:
    told: list[tuple[float, Any, Any]] = []

    async def report(progress: float, total: float | None = None, message: str | None = None) -> None:
        told.append((progress, total, message))

    progress = Progress(report)
    for done, total, message in ((0, None, "a"), (0, None, "a"), (5, 9, "b"), (3, 9, "c"), (5, 9, "c"), (9, 9, "d")):
        await progress.tell(done, total, message)
    assert [message for _, _, message in told] == ["a", "b", "c", "d"]
    assert all(earlier[0] < later[0] for earlier, later in pairwise(told))
    assert all(total is None or done <= total for done, total, _ in told)


def test_pages_follow_one_another_without_gap_and_end() -> None:
    found, offset, pages = list(range(7)), 0, []
    while offset is not None:
        shown, offset = page(found, offset, 3)
        pages.append(shown)
    assert pages == [(0, 1, 2), (3, 4, 5), (6,)]
    assert page(found, 10, 3) == ((), None)
    assert [following(0, 3, 7), following(6, 1, 7), following(9, 0, 7)] == [3, None, None]


def test_times_are_utc() -> None:
    assert (moment(0), moment(None)) == ("1970-01-01T00:00:00Z", "")
