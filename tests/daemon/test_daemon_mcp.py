"""An AI client and the daemon: `buildctl mcp`, through the SDK's own client over standard input and output."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from daemon_mcp import Report, Session, connected, directly, text_of
from harness import BUILDCTL, Daemon, GitServer, RecipeRepository, Workspace, until
from jsonschema import Draft202012Validator

Boot = Callable[..., Daemon]
W5 = {
    "clone_repo",
    "get_clone_status",
    "list_repos",
    "refresh_repo",
    "delete_repo",
    "get_repo_status",
    "list_repository_branches",
    "get_source_repo_map",
    "get_repo_structure",
    "get_repo_critical_files",
    "get_repo_documentation",
    "get_repo_file_content",
    "start_build",
    "get_build_status",
    "cancel_build",
    "get_build_log",
}
LOOKING = {
    "get_clone_status",
    "list_repos",
    "get_repo_status",
    "list_repository_branches",
    "get_source_repo_map",
    "get_repo_structure",
    "get_repo_critical_files",
    "get_repo_documentation",
    "get_repo_file_content",
    "search_definitions",
    "find_references",
    "get_build_status",
    "get_build_log",
    "list_builds",
    "get_daemon_status",
}
LONG_S = 300
"""A wait that a test is not to see the end of."""


# --- what a client is told --------------------------------------------------------------------------------


async def test_tools_have_descriptions_schemas_and_hints(daemon: Daemon) -> None:
    async with connected(daemon) as session:
        tools = {tool.name: tool for tool in (await session.client.list_tools()).tools}
        assert session.client.instructions is not None
        assert "wait_seconds" in session.client.instructions
    assert tools.keys() >= W5
    for name, tool in tools.items():
        assert tool.description is not None
        assert len(tool.description) > 40, name
        Draft202012Validator.check_schema(tool.input_schema)
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert "$defs" not in tool.input_schema, "some clients cannot follow references in what they are to fill in"
        assert tool.output_schema is not None
        Draft202012Validator.check_schema(tool.output_schema)
        assert tool.output_schema["type"] == "object"
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint == (name in LOOKING), name
        assert tool.annotations.destructive_hint == (name in ("delete_repo", "cancel_build")), name
        assert tool.annotations.idempotent_hint == (name != "start_build"), name
        for argument, schema in tool.input_schema["properties"].items():
            bounded = "maximum" in schema or schema.get("type") not in ("integer", "number")
            assert bounded or argument in ("offset", "priority", "first_line"), f"{name}: {argument}"


async def test_a_server_that_only_looks_has_no_other_tools(daemon: Daemon) -> None:
    async with connected(daemon, "--read-only") as session:
        assert {tool.name for tool in (await session.client.list_tools()).tools} == LOOKING
        assert "only looks" in str(session.client.instructions)
        assert "there is no tool clone_repo" in await session.error("clone_repo", repo="x")


# --- repositories -----------------------------------------------------------------------------------------


async def test_a_repository_is_cloned_in_the_background_looked_at_refreshed_and_removed(
    daemon: Daemon, repository: RecipeRepository, git_server: GitServer
) -> None:
    first = repository.write("src/main.c", "int main(void) { return 0; }\n").commit()
    url = git_server.url(repository)
    async with connected(daemon) as session:
        begun = await session.answer("clone_repo", repo=url)
        assert begun["status"] in ("accepted", "cloned")  # it is a small one
        assert "get_clone_status" in begun["next_step"] or begun["repository"]["clone_status"] == "cloned"
        ended = await session.answer("get_clone_status", repo=url, wait_seconds=30)
        assert (ended["status"], ended["error"], ended["transfer"]) == ("cloned", "", None)
        assert Path(ended["path"]).is_dir()
        assert (await session.answer("clone_repo", repo=url, wait_seconds=30))["status"] == "cloned"

        listed = await session.answer("list_repos", pattern="workspace")
        assert [r["url"] for r in listed["repositories"]] == [url]
        assert (await session.answer("list_repos", pattern="else"))["total"] == 0
        branches = await session.answer("list_repository_branches", repo=url)
        assert branches["branches"] == [{"name": "main", "commit": first, "head": True}]

        second = repository.write("src/main.c", "int main(void) { return 1; }\n").commit()
        refreshed = await session.answer("refresh_repo", repo=url)
        assert (refreshed["status"], refreshed["changed"]) == ("refreshed", True)
        assert (await session.answer("refresh_repo", repo=url))["changed"] is False
        branches = await session.answer("list_repository_branches", repo=url)
        assert branches["branches"][0]["commit"] == second

        assert (await session.answer("get_repo_status", repo=url))["clone_status"] == "cloned"
        assert "removed" in (await session.answer("delete_repo", repo=url))["message"]
        assert not Path(ended["path"]).exists()
        assert "clone_repo" in await session.error("get_repo_status", repo=url)


async def test_lists_come_in_pages(daemon: Daemon, tmp_path: Path) -> None:
    for name in ("paged-a", "paged-b", "paged-c"):
        place = RecipeRepository(tmp_path / name)
        place.write("README", name).commit()
        daemon.call("repo.clone", {"repo": str(place)})
    async with directly(daemon) as session:
        first = await session.answer("list_repos", pattern="paged-?", limit=2)
        rest = await session.answer("list_repos", pattern="paged-?", limit=2, offset=first["next_offset"])
        names = [repository["name"] for page in (first, rest) for repository in page["repositories"]]
        assert names == ["paged-a", "paged-b", "paged-c"]
        assert (first["total"], rest["next_offset"]) == (3, None)


async def test_a_clone_that_fails_says_why_and_how_to_go_on(daemon: Daemon, git_server: GitServer) -> None:
    url = f"git://127.0.0.1:{git_server.port}/nothing"
    async with directly(daemon) as session:
        error = await session.error("clone_repo", repo=url, wait_seconds=30)
        assert url in error
        assert "again=true" in error
        status = await session.answer("get_clone_status", repo=url)
        assert status["status"] == "failed"
        assert status["error"] in error
        assert "clone_repo" in await session.error("list_repository_branches", repo=url)
        await session.answer("delete_repo", repo=url)


async def test_a_clone_tells_its_progress_and_waiting_for_it_is_bounded(boot: Boot, tmp_path: Path) -> None:
    daemon = boot()
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")  # it accepts nobody, so nothing ever comes
    url = f"git://127.0.0.1:{listener[0].socket.getsockname()[1]}/silent"
    async with directly(daemon) as session:
        reports: list[Report] = []
        answer = await session.answer("clone_repo", reports, repo=url, wait_seconds=1.5)
        assert answer["status"] == "accepted"
        assert answer["transfer"]["operation"] == "clone"
        assert "get_clone_status" in answer["next_step"]
        assert reports
        assert "clone" in str(reports[0][2])
        assert "it is being cloned" in (await session.error("list_repository_branches", repo=url)).lower()
        assert "refused" not in await session.text("get_clone_status", repo=url)
        daemon.call("repo.cancel", {"repo": url})
        ended = await session.answer("get_clone_status", repo=url, wait_seconds=LONG_S)
        assert ended["status"] == "failed"
    await listener[0].aclose()


# --- code -------------------------------------------------------------------------------------------------


@pytest.fixture
def things(repository: RecipeRepository) -> RecipeRepository:
    """Two files of code, one of which uses the other, and a document."""
    repository.write("README.md", "# Things\n\nThey greet.\n")
    repository.write(
        "src/greeting.py", "def greet(name):\n    return shout(name)\n\n\ndef shout(text):\n    return text\n"
    )
    repository.write("src/main.py", "from greeting import greet\n\n\ndef run():\n    greet('you')\n    greet('me')\n")
    repository.write("src/picture.png", b"\x89PNG\0\0")
    repository.commit()
    return repository


async def test_a_map_is_made_when_asked_for_and_answers_questions_also_in_the_older_protocol(
    daemon: Daemon, things: RecipeRepository, git_server: GitServer
) -> None:
    url = git_server.url(things)
    async with connected(daemon, mode="legacy") as session:
        assert "clone_repo" in await session.error("get_source_repo_map", repo=url)
        await session.answer("clone_repo", repo=url, wait_seconds=30)
        first = await session.answer("get_source_repo_map", repo=url)
        assert first["status"] in ("accepted", "building", "complete")
        assert first["status"] == "complete" or "wait_seconds" in first["next_step"]
        reports: list[Report] = []
        whole = await session.answer("get_source_repo_map", reports, repo=url, wait_seconds=50)
        assert (whole["status"], whole["repo_map"]["error"]) == ("complete", "")
        assert "def greet(name)" in whole["text"]
        assert whole["tokens"] <= 4096
        asked = await session.answer("get_source_repo_map", repo=url, mention=["run", "nothing_has_it"], tokens=64)
        assert "def run()" in asked["text"]
        assert asked["tokens"] <= 64
        assert asked["unknown"] == ["nothing_has_it"]

        files = await session.answer("get_repo_critical_files", repo=url)
        assert {file["path"] for file in files["files"][:2]} == {"src/greeting.py", "src/main.py"}
        assert files["files"][0]["role"] == "source"
        found = await session.answer("search_definitions", repo=url, name="*r*", kind="function", limit=1)
        assert (len(found["definitions"]), found["total"], found["next_offset"]) == (1, 2, 1)
        rest = await session.answer("search_definitions", repo=url, name="*r*", kind="function", offset=1)
        assert {d["name"] for d in found["definitions"] + rest["definitions"]} == {"greet", "run"}
        assert "src/greeting.py:1-2: function greet" in await session.text("search_definitions", repo=url, name="greet")
        used = await session.answer("find_references", repo=url, name="greet")
        assert [d["path"] for d in used["definitions"]] == ["src/greeting.py"]
        assert ("src/main.py", 5) in {(ref["path"], ref["line"]) for ref in used["references"]}
        assert (await session.answer("get_repo_status", repo=url))["repo_map"]["status"] == "complete"


async def test_what_needs_a_map_has_it_made_and_says_to_wait(daemon: Daemon, things: RecipeRepository) -> None:
    async with directly(daemon) as session:
        text = await session.text("search_definitions", repo=things, name="shout", wait_seconds=50)
        assert text.startswith("1 definition\nsrc/greeting.py:5-6: function shout")
        newer = things.write("src/more.py", "def more():\n    pass\n").commit()
        mapped = await session.answer("get_source_repo_map", repo=things, wait_seconds=50)
        assert mapped["repo_map"]["commit"] == newer
        things.write("src/more.py", "def more():\n    return 1\n").commit()
        result = await session.result("find_references", repo=things, name="more")
        if result.is_error:  # a map of three files may also be there already
            assert "is being made" in text_of(result)
            assert "Call find_references again" in text_of(result)
        assert "no-such-branch" in await session.error("get_source_repo_map", repo=things, revision="no-such-branch")


async def test_a_map_that_could_not_be_made_is_begun_again_only_on_request(
    boot: Boot, things: RecipeRepository
) -> None:
    daemon = boot(settings={"maps.timeout": "1ms"})
    async with directly(daemon) as session:
        error = await session.error("get_source_repo_map", repo=things, wait_seconds=50)
        assert "could not be made" in error
        assert "again=true" in error
        assert await session.error("get_source_repo_map", repo=things, wait_seconds=50) == error
        assert len([event for event in daemon.events() if event.kind == "map_started"]) == 1
        await session.error("get_source_repo_map", repo=things, again=True, wait_seconds=50)
        assert len([event for event in daemon.events() if event.kind == "map_started"]) == 2


async def test_structure_documents_and_files_are_read_at_a_revision(daemon: Daemon, things: RecipeRepository) -> None:
    async with directly(daemon) as session:
        tree = await session.answer("get_repo_structure", repo=things)
        assert (tree["files"], tree["truncated"]) == (4, False)
        assert [e["path"] for e in tree["entries"]] == [
            "src",
            "src/greeting.py",
            "src/main.py",
            "src/picture.png",
            "README.md",
        ]
        text = await session.text("get_repo_structure", repo=things, path="src", limit=1)
        assert "\ngreeting.py" in text
        assert "There are more entries" in text

        documents = await session.answer("get_repo_documentation", repo=things)
        assert [(d["path"], d["kind"], d["title"]) for d in documents["documents"]] == [
            ("README.md", "readme", "Things")
        ]
        assert documents["texts"][0]["text"] == "# Things\n\nThey greet.\n"
        assert (await session.answer("get_repo_documentation", repo=things, content_bytes=0))["texts"] == []

        piece = await session.answer("get_repo_file_content", repo=things, path="src/main.py", last_line=2)
        assert (piece["text"], piece["lines"], piece["next_line"]) == ("from greeting import greet\n\n", 6, None)
        piece = await session.answer("get_repo_file_content", repo=things, path="src/main.py", max_bytes=30)
        rest = await session.answer(
            "get_repo_file_content", repo=things, path="src/main.py", first_line=piece["next_line"]
        )
        assert piece["text"] + rest["text"] == (things.path / "src/main.py").read_text()
        assert rest["next_line"] is None
        assert "is binary" in await session.text("get_repo_file_content", repo=things, path="src/picture.png")

        things.write("src/main.py", "changed\n").commit()
        assert "changed" in await session.text("get_repo_file_content", repo=things, path="src/main.py")
        assert "greet" in await session.text(
            "get_repo_file_content", repo=things, path="src/main.py", revision=piece["commit"][:12]
        )
        missing = await session.error("get_repo_file_content", repo=things, path="src/mains.py")
        assert "main.py" in missing
        assert "get_repo_structure" in missing
        assert "list_repository_branches" in await session.error("get_repo_structure", repo=things, revision="nobranch")
        assert "is not below" in await session.error("get_repo_file_content", repo=things, path="../../etc/passwd")


# --- builds -----------------------------------------------------------------------------------------------


async def test_a_build_is_started_followed_and_read(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base", first=f"echo begun; {daemon.at_gate(workspace.mark)}; echo '\x1b[31mgoing on\x1b[0m'")
    workspace.compiled("broken", "base", code="error")
    workspace.compiled("top", "broken")
    workspace.commit()
    async with connected(daemon) as session:
        plan = await session.answer("plan_build", targets=[str(workspace)], why=True)
        assert [(p["name"], p["wave"], p["verdict"]) for p in plan["packages"]] == [
            ("base", 1, "build"),
            ("broken", 2, "build"),
            ("top", 3, "build"),
        ]
        started = await session.answer("start_build", targets=[str(workspace)])
        run = started["number"]
        assert (started["status"], started["finished"]) == ("accepted", False)
        await trio.to_thread.run_sync(lambda: daemon.until_running(run, 1, saying="begun"))

        reports: list[Report] = []
        status = await session.answer("get_build_status", reports, run=run, wait_seconds=1.2)
        assert (status["state"], status["stats"]["running"]) == ("building", 1)
        assert status["packages"][0]["name"] == "base"
        assert f"run={run}" in status["next_step"]
        assert reports[0][:2] == (0.001, 3.0)
        assert "1 running" in str(reports[0][2])

        log = await session.answer("get_build_log", run=run, package="base", offset=0)
        assert "begun" in log["text"]
        assert (log["state"], log["finished"]) == ("running", False)
        more: list[dict[str, Any]] = []

        async def read_on() -> None:
            arguments = {"build": log["build"], "offset": log["next_offset"], "wait_seconds": LONG_S}
            more.append(await session.answer("get_build_log", **arguments))

        server = _server(daemon)
        idle = _connections(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            await trio.to_thread.run_sync(_until_it_waits, server, idle)
            assert more == []
            daemon.open_gate(workspace.mark)
        assert "going on" in more[0]["text"]
        assert "\x1b" not in more[0]["text"]

        ended = await session.answer("get_build_status", run=run, wait_seconds=LONG_S)
        assert (ended["state"], ended["finished"]) == ("failed", True)
        assert [(p["name"], p["state"]) for p in ended["packages"]] == [
            ("broken", "failed"),
            ("top", "blocked"),
            ("base", "success"),
        ]
        assert ended["packages"][0]["reason"] == "phase_failed"
        one = await session.answer("get_build_status", run=run, states=["success"])
        assert [p["name"] for p in one["packages"]] == ["base"]
        failed = await session.text("get_build_log", run=run)  # of two logs, the one of what failed
        assert failed.startswith("log of broken 1.0")
        assert "phase build failed" in failed
        assert "was built" in await session.text("explain_build", package="base", run=run)
        assert (await session.answer("list_builds", limit=1))["runs"][0]["number"] == run


async def test_a_build_is_cancelled(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("held", first=f"echo begun; {daemon.at_gate('never')}").commit()
    async with directly(daemon) as session:
        run = (await session.answer("start_build", targets=[str(workspace)]))["number"]
        await trio.to_thread.run_sync(lambda: daemon.until_running(run, 1, saying="begun"))
        await session.answer("cancel_build", run=run)
        ended = await session.answer("get_build_status", run=run, wait_seconds=LONG_S)
        assert ended["state"] == "cancelled"
        assert "get_build_status" in await session.error("cancel_build", run=run)


async def test_giving_up_a_call_ends_the_waiting_and_not_the_build(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("held", first=f"echo begun; {daemon.at_gate(workspace.mark)}").commit()
    async with connected(daemon) as session:
        run = (await session.answer("start_build", targets=[str(workspace)]))["number"]
        await trio.to_thread.run_sync(lambda: daemon.until_running(run, 1, saying="begun"))
        server = _server(daemon)
        idle = _connections(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: session.answer("get_build_status", run=run, wait_seconds=LONG_S))
            await trio.to_thread.run_sync(_until_it_waits, server, idle)
            nursery.cancel_scope.cancel()
        for _ in range(3):  # longer than any single poll of a wait
            await trio.to_thread.run_sync(
                lambda: until(lambda: _connections(server) <= idle, "the wait has let go of the daemon")
            )
            await trio.sleep(0.5)
        assert daemon.run(run).state == "building"
        daemon.open_gate(workspace.mark)
        assert (await session.answer("get_build_status", run=run, wait_seconds=LONG_S))["state"] == "completed"


async def test_calls_that_wait_hold_up_no_others(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("held", first=f"echo begun; {daemon.at_gate(workspace.mark)}").commit()
    states: list[str] = []

    async def wait(session: Session, run: int) -> None:
        answer = await session.answer("get_build_status", run=run, wait_seconds=LONG_S)
        states.append(answer["state"])

    async with directly(daemon) as session:
        run = (await session.answer("start_build", targets=[str(workspace)]))["number"]
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(wait, session, run)
            for _ in range(3):
                assert (await session.answer("get_daemon_status"))["active_runs"] == 1
            assert states == []
            daemon.open_gate(workspace.mark)
    assert states == ["completed"] * 16


# --- errors -----------------------------------------------------------------------------------------------


async def test_an_unknown_repository_is_an_error_that_says_what_to_call(daemon: Daemon) -> None:
    async with directly(daemon) as session:
        for tool in ("get_repo_status", "list_repository_branches", "delete_repo", "refresh_repo"):
            error = await session.error(tool, repo="nobody-knows-it")
            assert "nobody-knows-it" in error
            assert "list_repos" in error
            assert "clone_repo" in error


async def test_near_names_and_urls_are_suggested(daemon: Daemon, tmp_path: Path) -> None:
    place = RecipeRepository(tmp_path / "flourishing")
    place.write("README", "x").commit()
    daemon.call("repo.clone", {"repo": str(place)})
    async with directly(daemon) as session:
        assert "flourishing?" in await session.error("get_repo_status", repo="florishing")
        assert f"Did you mean file://{place}?" in await session.error(
            "get_repo_status", repo=f"file://{tmp_path}/florishing"
        )


async def test_errors_say_what_is_wrong_and_name_a_tool_or_the_arguments(daemon: Daemon) -> None:
    async with directly(daemon) as session:
        assert "list_builds" in await session.error("get_build_status", run=999)
        assert "list_builds" in await session.error("get_build_log", run="999")
        assert "999" in await session.error("cancel_build", run=999)
        assert "build" in await session.error("get_build_log", build="ffffffff")
        assert "optional: revision, path" in await session.error("get_repo_structure")
        assert "unknown field `branch`" in await session.error("list_repos", branch="main")
        assert "<= 200" in await session.error("list_repos", limit=100000)
        assert "Did you mean start_build?" in await session.error("start_bild")
        unknown = await session.error("plan_build", targets=["nobody-knows-it"])
        assert "nobody-knows-it" in unknown
        run = await session.answer("start_build", targets=["nobody-knows-it"], wait_seconds=LONG_S)
        assert run["state"] == "failed"
        assert "nobody-knows-it" in run["error"]
        assert "list_repos" in run["next_step"]
        assert "list_repos" in unknown
        for text in (unknown, await session.error("explain_build", package="nothing")):
            assert "buildctl" not in text, "an AI has no shell on the daemon's machine"


async def test_what_models_send_for_texts_lists_and_nothing_is_understood(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    repository.package("one").commit()
    async with directly(daemon) as session:
        plan = await session.answer("plan_build", targets=str(repository), limit="5", wait_seconds=None)
        assert plan["total"] == 1


async def test_a_daemon_that_is_away_is_said_to_be_and_found_again(boot: Boot, workspace: Workspace) -> None:
    daemon = boot()
    workspace.compiled("held", first=daemon.at_gate()).commit()
    async with connected(daemon) as session:
        run = (await session.answer("start_build", targets=[str(workspace)]))["number"]
        async with trio.open_nursery() as nursery:
            ended: list[dict[str, Any]] = []

            async def wait() -> None:
                ended.append(await session.answer("get_build_status", run=run, wait_seconds=LONG_S))

            nursery.start_soon(wait)
            await trio.sleep(0.3)
            daemon.kill9()
            error = await session.error("list_builds")
            assert "not reachable" in error
            assert "get_daemon_status" in error
            await trio.to_thread.run_sync(daemon.boot)
            assert (await session.answer("get_daemon_status"))["state"] == "running"
            daemon.open_gate()
        assert ended[0]["state"] == "completed"


# --- the process ------------------------------------------------------------------------------------------


def _message(**fields: object) -> str:
    return json.dumps({"jsonrpc": "2.0", **fields}) + "\n"


_ABOUT = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
_HANDSHAKE = _message(id=0, method="initialize", params=_ABOUT) + _message(method="notifications/initialized")


def _call(tool: str, **arguments: object) -> str:
    return _message(id=1, method="tools/call", params={"name": tool, "arguments": arguments})


def _server(daemon: Daemon) -> int:
    """The pid of the one `buildctl mcp` of this daemon's clients."""
    (pid,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _cmdline(path)[1:4] == ["-m", "ctl", "mcp"]
        and f"BUILDD_SOCKET={daemon.socket}" in _environ(path.with_name("environ"))
    )
    return pid


def _cmdline(path: Path) -> list[str]:
    try:
        return path.read_text().split("\0")
    except OSError:
        return []


def _environ(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split("\0")
    except OSError:
        return []


def _connections(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(_link(path).startswith("socket:") for path in Path(f"/proc/{pid}/fd").iterdir())


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # closed meanwhile
        return ""


def _until_it_waits(pid: int, idle: int) -> None:
    """Wait until a server asks the daemon something; `idle` is how many sockets it has when it does not."""
    until(lambda: _connections(pid) > idle, "the call waits")


@pytest.mark.parametrize("ending", ["end of input", signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_also_while_a_call_waits(
    daemon: Daemon, workspace: Workspace, ending: signal.Signals | str
) -> None:
    workspace.compiled("held", first=f"echo begun; {daemon.at_gate(workspace.mark)}").commit()
    run = daemon.start(workspace)
    daemon.until_running(run, 1, saying="begun")
    process = daemon.buildctl_in_background("mcp", stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_HANDSHAKE)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 0
        idle = _connections(process.pid)
        process.stdin.write(_call("get_build_status", run=str(run), wait_seconds=LONG_S))
        process.stdin.flush()
        _until_it_waits(process.pid, idle)
        if isinstance(ending, str):
            process.stdin.close()
        else:
            process.send_signal(ending)
        status = process.wait(timeout=5)
        assert status == (0 if isinstance(ending, str) else -ending)
        for line in process.stdout:
            assert json.loads(line)["jsonrpc"] == "2.0"
        assert daemon.run(run).state == "building"
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        daemon.open_gate(workspace.mark)
        daemon.wait(run)


def test_without_the_sdk_it_says_what_to_install(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "mcp").mkdir()
    (tmp_path / "mcp" / "__init__.py").write_text("raise ImportError('no module is named mcp')")
    environment = daemon.client_environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = subprocess.run(
        [*BUILDCTL, "mcp"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert "pip install 'buildd[mcp]'" in done.stderr
