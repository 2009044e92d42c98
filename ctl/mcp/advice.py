"""What to call next when the daemon refuses: an AI cannot run `buildctl`, which the daemon's own hints speak of.

What is the matter is asked of the daemon, not read from the words of its error.
"""

from __future__ import annotations

import difflib
import re

from buildd import protocol
from buildd.protocol import Repository
from ctl.failure import NOT_FOUND, NOT_PERMITTED, REFUSED, UNREACHABLE, CtlError, Gone, NoSuchMethod
from ctl.mcp.daemon import Daemon
from ctl.mcp.tool import Arguments
from ctl.target import absolute

_NEAR = 3


async def advice(daemon: Daemon, name: str, args: Arguments, error: CtlError) -> str:
    """What the caller of the tool `name` can do about `error`; never raises one of its own."""
    return " ".join(filter(None, [for_tools(error.hint), await _next_call(daemon, name, args, error)]))


def for_tools(hint: str) -> str:
    """The daemon's hint as a sentence, unless it speaks of a command."""
    if not hint or "buildctl" in hint:
        return ""
    return f"{hint[0].upper()}{hint[1:]}{'' if hint.endswith(('.', '?')) else '.'}"


async def _next_call(daemon: Daemon, name: str, args: Arguments, error: CtlError) -> str:
    if isinstance(error, NoSuchMethod):
        return (
            "The running daemon is older than this server and cannot do that: ask the user to update and restart it. "
            "get_daemon_status tells its version."
        )
    if error.code == UNREACHABLE:
        first = "It may be restarting" if isinstance(error, Gone) else "If it does not run, ask the user to start it"
        return f"{first}. Call get_daemon_status until it answers, then {name} again."
    if error.code == NOT_PERMITTED:
        return "Do not try again: the user has to be given that right first. Tools that only look may work."
    try:
        return await _by_state(daemon, name, args, error)
    except CtlError:  # what happened is said already
        return ""


async def _by_state(daemon: Daemon, name: str, args: Arguments, error: CtlError) -> str:
    repo = _argument(args, "repo")
    if repo:
        return await _about_repository(daemon, name, args, absolute(repo), error)
    run = _argument(args, "run")
    if error.code == NOT_FOUND and run:
        return "list_builds shows the runs there are, get_build_status the packages and builds of one."
    if error.code == REFUSED and run:
        return f"get_build_status with run={run} tells its state."
    if name in ("start_build", "plan_build", "explain_build"):
        return "list_repos shows known repositories; plan_build with a repository as target shows its packages."
    return ""


def _argument(args: Arguments, name: str) -> str:
    """The argument of that name; empty for a tool without it."""
    return str(getattr(args, name)) if name in args.__struct_fields__ else ""


async def _about_repository(daemon: Daemon, name: str, args: Arguments, repo: str, error: CtlError) -> str:
    try:
        found = await daemon.call("repo.status", protocol.RepoParams(repo=repo), Repository)
    except CtlError:
        known = (await daemon.call("repo.list", None, protocol.RepoList)).repositories
        names = difflib.get_close_matches(re.split("[/:]", repo)[-1], [repository.name for repository in known])
        near = [repository.url for repository in known if repository.name in names]
        meant = f"Did you mean {' or '.join(near[:_NEAR])}? " if near else ""
        return f"{meant}list_repos shows the repositories that are known; clone_repo with a URL adds one."
    status = found.clone_status.status
    if status == "cloning":
        return (
            f"It is being cloned: call get_clone_status with repo={found.url} and wait_seconds=30, then {name} again."
        )
    if status == "failed":
        return (
            f"Its last clone failed: {found.clone_status.error}. Call clone_repo with repo={found.url} and again=true "
            "once the cause may be gone."
        )
    if status == "not_started":
        return f"It is not cloned: call clone_repo with repo={found.url}, then {name} again."
    if name == "delete_repo":
        return "get_repo_status tells what is done with it; list_builds with active=true which runs may use it."
    if error.code == NOT_FOUND and _argument(args, "path"):
        return (
            f"get_repo_structure with repo={found.url} shows what is there, list_repository_branches the revisions; "
            "refresh_repo fetches newer ones."
        )
    if _argument(args, "revision"):
        return f"list_repository_branches with repo={found.url} shows the revisions; refresh_repo fetches newer ones."
    return f"get_repo_status with repo={found.url} tells its state."
