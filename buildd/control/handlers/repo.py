"""repo.*: clones and what is known of them.

Invariant: what was answered is on record, and a `kill -9` does not undo it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from buildd.control.handlers.services import Services
from buildd.control.rights import may_control
from buildd.control.socket import Peer
from buildd.model import Repository
from buildd.protocol import (
    Branch,
    BranchList,
    CatParams,
    CloneParams,
    CloneResult,
    Documents,
    DocumentsParams,
    Empty,
    FileContent,
    Ok,
    RefreshParams,
    RefreshResult,
    RepoList,
    RepoParams,
    RevisionParams,
    Tree,
    TreeParams,
)
from buildd.repos import local
from buildd.repos.documents import documents
from buildd.repos.excerpt import excerpt
from buildd.repos.outline import outline
from buildd.repos.reading import View

T = TypeVar("T")


async def clone(services: Services, params: CloneParams, peer: Peer) -> CloneResult:
    answer = services.clones.request(params.repo, again=params.again)
    await services.database.flush()
    return CloneResult(status=answer.status, path=answer.path, message=answer.message)


async def status(services: Services, params: RepoParams, peer: Peer) -> Repository:
    return _with_map(services, services.clones.status(params.repo).repository)


async def list_all(services: Services, params: Empty, peer: Peer) -> RepoList:
    return RepoList(repositories=tuple(_with_map(services, repository) for repository in services.clones.list()))


async def refresh(services: Services, params: RefreshParams, peer: Peer) -> RefreshResult:
    done = await services.clones.refresh(params.repo, if_changed=params.if_changed)
    return RefreshResult(**msgspec.structs.asdict(_with_map(services, done.repository)), changed=done.changed)


async def cancel(services: Services, params: RepoParams, peer: Peer) -> Ok:
    services.clones.cancel(params.repo)
    return Ok(message="the transfer is being cancelled")


async def delete(services: Services, params: RepoParams, peer: Peer) -> Ok:
    url = services.clones.find(params.repo).url
    await services.maps.stop(url)
    await services.clones.delete(url)
    await services.maps.forget(url)
    await services.database.flush()
    return Ok(message="the clone and its record are removed")


def _with_map(services: Services, repository: Repository) -> Repository:
    return msgspec.structs.replace(repository, repo_map_status=services.maps.latest(repository.url))


async def branches(services: Services, params: RepoParams, peer: Peer) -> BranchList:
    found = await services.clones.branches(params.repo)
    return BranchList(branches=tuple(Branch(name=b.name, commit=b.commit, head=b.is_head) for b in found))


async def tree(services: Services, params: TreeParams, peer: Peer) -> Tree:
    return await _read(services, params, peer, partial(outline, params))


async def docs(services: Services, params: DocumentsParams, peer: Peer) -> Documents:
    return await _read(services, params, peer, partial(documents, params))


async def cat(services: Services, params: CatParams, peer: Peer) -> FileContent:
    return await _read(services, params, peer, partial(excerpt, params))


async def _read(services: Services, params: RevisionParams, peer: Peer, look: Callable[[View], T]) -> T:
    """A local repository needs no clone: it becomes known, if who asks may have it become so."""
    local_one = params.repo.startswith("/") and local.git_dir(Path(params.repo)) is not None
    if local_one and may_control(peer, services.config().control.group):
        services.clones.request(params.repo)
    return await services.reader.read(params, look)
