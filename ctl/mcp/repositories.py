"""Tools for the clones that the daemon keeps."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Annotated

from msgspec import Meta

from buildd import protocol
from buildd.protocol import Repository
from ctl.mcp.fields import POLL_S, NextOffset, NextStep, Offset, Repo, Time, Wait, extend, moment, page
from ctl.mcp.tool import Answer, Arguments, Call, ToolError, tool
from ctl.mcp.waiting import newest_event, within
from ctl.target import absolute
from ctl.text import size

_ENDINGS = ("clone_completed", "clone_failed", "clone_cancelled", "repo_refreshed")
_LEAST_FETCH_S = 2.0
"""Long enough for the daemon to take the request; from then on the fetch goes on without us."""

CloneState = Annotated[str, Meta(description="not_started, cloning, cloned or failed.")]


# --- what is told of a repository -------------------------------------------------------------------------


class Transfer(Answer, frozen=True, kw_only=True):
    """A clone or fetch that is under way."""

    operation: Annotated[str, Meta(description="clone or fetch.")]
    percent: float
    received_objects: int
    total_objects: Annotated[int, Meta(description="0 until the server has told.")]
    received_bytes: int


class MapState(Answer, frozen=True, kw_only=True):
    """The map of a commit."""

    status: Annotated[str, Meta(description="building, complete or failed.")]
    commit: str
    stage: Annotated[str, Meta(description="While building: waiting, listing, parsing, ranking or writing.")]
    done: int
    total: Annotated[int, Meta(description="Files that are looked into.")]
    error: Annotated[str, Meta(description="Why it failed; empty otherwise.")]
    completed_at: Time


class RepositoryState(Answer, frozen=True, kw_only=True):
    """A repository and its clone."""

    name: Annotated[str, Meta(description="Short name; may be used as `repo` while it is the only one of that name.")]
    url: Annotated[str, Meta(description="Its identity; may always be used as `repo`.")]
    path: Annotated[str, Meta(description="Where the clone is on the daemon's machine.")]
    clone_status: CloneState
    error: Annotated[str, Meta(description="Why the last clone failed; empty otherwise.")]
    bytes: Annotated[int, Meta(description="Size of the clone on disk.")]
    last_access: Time
    fetched_at: Time
    repo_map: Annotated[MapState | None, Meta(description="The map that was asked for last.")] = None


class RepositoryAnswer(RepositoryState, frozen=True, kw_only=True):
    """A repository, its clone, and what is being transferred for it now."""

    transfer: Transfer | None = None
    next_step: NextStep = ""


def map_state(status: protocol.RepoMapStatus) -> MapState:
    return MapState(
        status=status.status,
        commit=status.commit,
        stage=status.stage,
        done=status.done,
        total=status.total,
        error=status.error or "",
        completed_at=moment(status.completed_at),
    )


def _state(found: Repository) -> RepositoryState:
    return RepositoryState(
        name=found.name,
        url=found.url,
        path=found.path,
        clone_status=found.clone_status.status,
        error=found.clone_status.error or "",
        bytes=found.bytes,
        last_access=moment(found.last_access),
        fetched_at=moment(found.fetched_at),
        repo_map=None if found.repo_map_status is None else map_state(found.repo_map_status),
    )


async def _look(call: Call, repo: str, patience: float = 0.0) -> tuple[Repository, Transfer | None]:
    """A repository and what is being transferred for it."""
    params = protocol.RepoParams(repo=absolute(repo))
    found = await call.daemon.call("repo.status", params, Repository, patience=patience)
    status = await call.daemon.call("daemon.status", None, protocol.DaemonStatus, patience=patience)
    for clone in status.clones:
        if clone.url == found.url:
            progress = clone.progress
            return found, Transfer(
                operation=clone.operation,
                percent=round(clone.percent, 1),
                received_objects=progress.received_objects,
                total_objects=progress.total_objects,
                received_bytes=progress.received_bytes,
            )
    return found, None


async def _until_transferred(call: Call, repo: str, seconds: float) -> tuple[Repository, Transfer | None]:
    """A repository when nothing is cloned or fetched for it any more, or as it is after so many seconds."""
    deadline = time.monotonic() + seconds
    after = await newest_event(call) if seconds else 0
    while True:
        found, transfer = await _look(call, repo, patience=max(0.0, deadline - time.monotonic()))
        left = deadline - time.monotonic()
        if (transfer is None and found.clone_status.status != "cloning") or left <= 0:
            return found, transfer
        await _tell(call, transfer)
        params = protocol.PollParams(after=after, timeout=min(POLL_S, left), kinds=_ENDINGS)
        answer = await call.daemon.call("events.poll", params, protocol.PollResult, hold=POLL_S, patience=left)
        after = answer.next


async def _tell(call: Call, transfer: Transfer | None) -> None:
    if transfer is not None:
        objects = f"{transfer.received_objects} of {transfer.total_objects or '?'} objects"
        message = f"{transfer.operation}: {objects}, {size(transfer.received_bytes)}"
        await call.progress.tell(transfer.percent, 100.0, message)


def _next_step(found: Repository, transfer: Transfer | None) -> str:
    match found.clone_status.status:
        case "cloning":
            return f"The clone goes on. Call get_clone_status with repo={found.url} and wait_seconds=30 until it ends."
        case "cloned" if transfer is not None:
            return f"It can be read, and is being fetched: get_clone_status with repo={found.url} tells when that ends."
        case "cloned":
            return f"Call get_source_repo_map or get_repo_structure with repo={found.url} to read it."
        case "failed":
            return f"Do what the error says, then call clone_repo with repo={found.url} and again=true."
        case _:
            return f"Call clone_repo with repo={found.url}."


# --- tools ------------------------------------------------------------------------------------------------


class CloneArguments(Arguments, frozen=True, kw_only=True):
    repo: Annotated[
        str,
        Meta(min_length=1, description="URL of a git repository (https, ssh, git), or the path of a local one."),
    ]
    again: Annotated[bool, Meta(description="Try once more when the last clone failed.")] = False
    wait_seconds: Wait = 0.0


class CloneAnswer(Answer, frozen=True, kw_only=True):
    """What became of the request."""

    status: Annotated[
        str,
        Meta(
            description="accepted: this call began the clone. cloning: it was under way already. cloned: it is there."
        ),
    ]
    path: Annotated[str, Meta(description="Where the clone is, or will be, on the daemon's machine.")]
    message: str
    repository: RepositoryState
    transfer: Transfer | None
    next_step: NextStep


@tool("Clone a repository", changes=True, open_world=True)
async def clone_repo(call: Call, args: CloneArguments) -> CloneAnswer:
    """Have a git repository cloned into the daemon's cache. Answers at once with `accepted` while the clone goes on in
    the background (poll get_clone_status), or waits up to `wait_seconds` for its end. Everybody who asks for one
    repository shares one clone; one that is there already is answered as `cloned`, without any traffic (refresh_repo
    fetches what is new). A local path is used in place."""
    params = protocol.CloneParams(repo=absolute(args.repo), again=args.again)
    answer = await call.daemon.call("repo.clone", params, protocol.CloneResult)
    if answer.status == "failed":
        raise ToolError(
            answer.message,  # without the URL as it was given: there may be a password in it
            "If the cause may be gone, call clone_repo again with again=true; otherwise correct the URL, or tell the "
            "user what the server said (credentials are configured for the daemon, never passed in a call).",
        )
    found, transfer = await _until_transferred(call, args.repo, args.wait_seconds)
    status, message = answer.status, answer.message
    if found.clone_status.status == "failed":
        raise ToolError(
            f"the clone of {found.url} failed: {found.clone_status.error}",
            "Correct the URL, or call clone_repo with again=true when the cause may be gone.",
        )
    if found.clone_status.status == "cloned" and status != "cloned":
        status, message = "cloned", "the clone is complete"
    return CloneAnswer(
        status=status,
        path=answer.path,
        message=message,
        repository=_state(found),
        transfer=transfer,
        next_step=_next_step(found, transfer),
    )


class RepoArguments(Arguments, frozen=True, kw_only=True):
    repo: Repo


class RepoWaitArguments(RepoArguments, frozen=True, kw_only=True):
    wait_seconds: Wait = 0.0


class CloneStatusAnswer(Answer, frozen=True, kw_only=True):
    """How a clone is coming along."""

    status: CloneState
    url: str
    path: str
    started_at: Time
    completed_at: Time
    error: Annotated[str, Meta(description="Why it failed; empty otherwise.")]
    transfer: Annotated[Transfer | None, Meta(description="Null when nothing is being cloned or fetched.")]
    next_step: NextStep


@tool("How a clone is coming along")
async def get_clone_status(call: Call, args: RepoWaitArguments) -> CloneStatusAnswer:
    """The state of a clone, with what has been received so far while it is cloned or fetched. With `wait_seconds` it
    waits for the end of that. A clone that failed is answered with its reason."""
    found, transfer = await _until_transferred(call, args.repo, args.wait_seconds)
    status = found.clone_status
    return CloneStatusAnswer(
        status=status.status,
        url=found.url,
        path=found.path,
        started_at=moment(status.started_at),
        completed_at=moment(status.completed_at),
        error=status.error or "",
        transfer=transfer,
        next_step=_next_step(found, transfer),
    )


@tool("All about one repository")
async def get_repo_status(call: Call, args: RepoArguments) -> RepositoryAnswer:
    """One repository: its clone, when it was fetched and used, its size, the state of its map, and what is being
    transferred for it now."""
    found, transfer = await _look(call, args.repo)
    return extend(RepositoryAnswer, _state(found), transfer=transfer, next_step=_next_step(found, transfer))


class ListReposArguments(Arguments, frozen=True, kw_only=True):
    pattern: Annotated[str, Meta(description="Only names or URLs with this in them; * and ? are wildcards.")] = ""
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    offset: Offset = 0


class RepoPage(Answer, frozen=True, kw_only=True):
    """Repositories, by name."""

    repositories: tuple[RepositoryState, ...]
    total: Annotated[int, Meta(description="That match.")]
    next_offset: NextOffset


@tool("List repositories")
async def list_repos(call: Call, args: ListReposArguments) -> RepoPage:
    """The repositories that the daemon knows, with the state of their clones and maps."""
    everything = (await call.daemon.call("repo.list", None, protocol.RepoList)).repositories
    found = [r for r in everything if _matches(args.pattern, r.name) or _matches(args.pattern, r.url)]
    shown, next_offset = page(found, args.offset, args.limit)
    return RepoPage(repositories=tuple(map(_state, shown)), total=len(found), next_offset=next_offset)


def _matches(pattern: str, text: str) -> bool:
    return fnmatchcase(text.lower(), f"*{pattern.lower()}*")


class RefreshArguments(RepoArguments, frozen=True, kw_only=True):
    wait_seconds: Wait = 30.0


class RefreshAnswer(Answer, frozen=True, kw_only=True):
    """What became of a fetch."""

    status: Annotated[str, Meta(description="refreshed: it is done. fetching: it goes on in the background.")]
    changed: Annotated[bool | None, Meta(description="Whether a branch or tag differs from before; null until done.")]
    repository: RepositoryState
    transfer: Transfer | None
    next_step: NextStep


@tool("Fetch what is new", changes=True, open_world=True)
async def refresh_repo(call: Call, args: RefreshArguments) -> RefreshAnswer:
    """Fetch a cloned repository from its server, so that branches and commits that are new there can be read and built.
    Waits up to `wait_seconds`; a fetch that takes longer goes on in the background."""
    params = protocol.RefreshParams(repo=absolute(args.repo), if_changed=True)

    async def tell() -> None:
        await _tell(call, (await _look(call, args.repo))[1])

    done = await within(
        max(args.wait_seconds, _LEAST_FETCH_S),
        lambda: call.daemon.call("repo.refresh", params, protocol.RefreshResult, hold=None),
        tell,
    )
    found, transfer = await _look(call, args.repo)
    return RefreshAnswer(
        status="fetching" if done is None else "refreshed",
        changed=None if done is None else done.changed,
        repository=_state(found),
        transfer=transfer,
        next_step=_next_step(found, transfer),
    )


class Done(Answer, frozen=True, kw_only=True):
    """What was done."""

    message: str


@tool("Remove a clone", changes=True, destructive=True)
async def delete_repo(call: Call, args: RepoArguments) -> Done:
    """Remove a repository's clone from the cache, and its record. Runs, builds and artifacts stay. Refused while it is
    used or being cloned. A local repository that is used in place is only forgotten, never touched."""
    params = protocol.RepoParams(repo=absolute(args.repo))
    return Done(message=(await call.daemon.call("repo.delete", params, protocol.Ok, hold=None)).message)


class BranchArguments(RepoArguments, frozen=True, kw_only=True):
    pattern: Annotated[str, Meta(description="Only names with this in them; * and ? are wildcards.")] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    offset: Offset = 0


class BranchPage(Answer, frozen=True, kw_only=True):
    """Branches and the commits that they are at; `head` marks the default branch."""

    branches: tuple[protocol.Branch, ...]
    total: Annotated[int, Meta(description="That match.")]
    next_offset: NextOffset


@tool("List branches")
async def list_repository_branches(call: Call, args: BranchArguments) -> BranchPage:
    """The branches of a cloned repository, the default one first, as they were when it was last fetched. Any of them,
    or a tag or commit, can be the `revision` of the tools that read code."""
    params = protocol.RepoParams(repo=absolute(args.repo))
    branches = (await call.daemon.call("repo.branches", params, protocol.BranchList)).branches
    found = sorted((b for b in branches if _matches(args.pattern, b.name)), key=lambda branch: not branch.head)
    shown, next_offset = page(found, args.offset, args.limit)
    return BranchPage(branches=shown, total=len(found), next_offset=next_offset)


TOOLS = (
    clone_repo,
    get_clone_status,
    list_repos,
    refresh_repo,
    delete_repo,
    get_repo_status,
    list_repository_branches,
)
