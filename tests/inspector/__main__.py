"""Try `buildctl mcp` with the official inspector of the Model Context Protocol, by its command line.

    make inspector

The inspector comes from npm and needs Node.js; so this is not one of the tests. It lists the tools, has the inspector
look for what is not portable in their schemas, and calls each of them on a daemon of its own: a repository served by
`git daemon` is cloned, read and built. Each line is a call and what it answered; the exit status is 1 when one answered
something else than it should.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harness import BUILDCTL, Daemon, RecipeRepository, booted, served

INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
WAIT = "wait_seconds=50"


class Expected(NamedTuple):
    """A call, and what its answer must have in it."""

    tool: str
    arguments: tuple[str, ...]
    says: str
    error: bool = False


class Inspector:
    def __init__(self, daemon: Daemon) -> None:
        self._environment = {**os.environ, **daemon.client_environment()}
        variables = daemon.client_environment() | {"PYTHONWARNINGS": "ignore"}
        options = [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
        self._command = ["npx", "--yes", INSPECTOR, "--cli", *options, *BUILDCTL, "mcp"]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def tools(self) -> list[dict[str, Any]]:
        done = self.run("--method", "tools/list", "--strict")
        sys.stderr.write(done.stderr)
        if done.returncode != 0:
            sys.exit(f"tools/list: exit status {done.returncode}\n{done.stdout[-2000:]}")
        tools: list[dict[str, Any]] = json.loads(done.stdout)["tools"]
        return tools

    def call(self, tool: str, *arguments: str) -> dict[str, Any]:
        given = [part for argument in arguments for part in ("--tool-arg", argument)]
        done = self.run("--method", "tools/call", "--tool-name", tool, *given)
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            sys.exit(f"{tool}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return answer


def calls(url: str) -> Iterator[Expected]:
    repo = f"repo={url}"
    yield Expected("get_daemon_status", (), '"state": "running"')
    yield Expected("get_repo_status", (repo,), "clone_repo", error=True)
    yield Expected("clone_repo", (repo,), "get_")
    yield Expected("get_clone_status", (repo, WAIT), '"status": "cloned"')
    yield Expected("list_repos", ("pattern=things",), url)
    yield Expected("get_repo_status", (repo,), '"clone_status": "cloned"')
    yield Expected("list_repository_branches", (repo,), '"name": "main"')
    yield Expected("refresh_repo", (repo,), '"status": "refreshed"')
    yield Expected("get_source_repo_map", (repo, WAIT), "def greet")
    yield Expected("get_source_repo_map", (repo, 'mention=["shout"]', "tokens=200"), "def shout")
    yield Expected("get_repo_structure", (repo,), "greeting.py")
    yield Expected("get_repo_critical_files", (repo,), "greeting.py")
    yield Expected("get_repo_documentation", (repo,), "# Things")
    yield Expected("get_repo_file_content", (repo, "path=src/greeting.py"), "def greet")
    yield Expected("get_repo_file_content", (repo, "path=src/none.py"), "get_repo_structure", error=True)
    yield Expected("search_definitions", (repo, "name=greet"), "src/greeting.py:1")
    yield Expected("find_references", (repo, "name=greet"), "src/main.py:")
    yield Expected("plan_build", (f'targets=["{url}"]', "why=true"), "never built")
    yield Expected("start_build", (f'targets=["{url}"]',), "get_build_status")
    yield Expected("get_build_status", (WAIT,), "run 1 failed: 2 packages = 1 success + 1 failed")
    yield Expected("get_build_log", ("package=good",), "all is well")
    yield Expected("get_build_log", (), "exit status 7")
    yield Expected("explain_build", ("package=good",), "up to date")
    yield Expected("list_builds", (), '"state": "failed"')
    yield Expected("cancel_build", ("run=1",), "already ended", error=True)
    yield Expected("start_build", (f'targets=["{url}//slow"]',), "run 2")
    yield Expected("cancel_build", ("run=2",), "get_build_status")
    yield Expected("get_build_status", ("run=2", WAIT), "run 2 cancelled")
    yield Expected("get_build_status", ("run=99",), "list_builds", error=True)
    yield Expected("list_repos", ("limit=5000",), "<= 200", error=True)
    yield Expected("delete_repo", (repo,), "removed")


def repository(place: Path) -> RecipeRepository:
    found = RecipeRepository(place)
    found.package("good", phases={"build": "echo all is well"})
    found.package("bad", phases={"build": "exit 7"})
    found.package("slow", phases={"build": "sleep 600"}, default=False)
    found.write("README.md", "# Things\n\nThey greet.\n")
    found.write("src/greeting.py", "def greet(name):\n    return shout(name)\n\n\ndef shout(text):\n    return text\n")
    found.write("src/main.py", "from greeting import greet\n\nprint(greet('you'))\n")
    found.commit()
    return found


def main() -> int:
    if shutil.which("npx") is None:
        sys.exit("npx is not installed: the inspector needs Node.js (Debian: apt-get install npm)")
    wrong = 0
    with tempfile.TemporaryDirectory() as place, served(Path(place)) as server, booted() as daemon:
        url = server.url(repository(Path(place, "things")))
        inspector = Inspector(daemon)
        tools = {tool["name"] for tool in inspector.tools()}
        print(f"tools/list: {len(tools)} tools, no schema that is not portable")
        for expected in calls(url):
            tools.discard(expected.tool)
            answer = inspector.call(expected.tool, *expected.arguments)
            text = "\n".join(content.get("text", "") for content in answer["content"])
            right = expected.says in text and answer.get("isError", False) == expected.error
            wrong += not right
            shown = " ".join(text.split())
            print(f"{'ok   ' if right else 'WRONG'} {expected.tool} {' '.join(expected.arguments)}: {shown[:200]}")
    if tools:
        print(f"not called: {', '.join(sorted(tools))}")
    return 1 if wrong or tools else 0


if __name__ == "__main__":
    sys.exit(main())
