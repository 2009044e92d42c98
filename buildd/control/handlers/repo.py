"""repo.*: clones and what is known of them.

Invariant: what was answered is on record, and a `kill -9` does not undo it.
"""

from __future__ import annotations

from buildd.control.handlers.services import Services
from buildd.control.socket import Peer
from buildd.model import Repository
from buildd.protocol import Branch, BranchList, CloneParams, CloneResult, Empty, Ok, RepoList, RepoParams


async def clone(services: Services, params: CloneParams, peer: Peer) -> CloneResult:
    answer = services.clones.request(params.repo, again=params.again)
    await services.database.flush()
    return CloneResult(status=answer.status, path=answer.path, message=answer.message)


async def status(services: Services, params: RepoParams, peer: Peer) -> Repository:
    return services.clones.status(params.repo).repository


async def list_all(services: Services, params: Empty, peer: Peer) -> RepoList:
    return RepoList(repositories=tuple(services.clones.list()))


async def refresh(services: Services, params: RepoParams, peer: Peer) -> Repository:
    return await services.clones.ensure(services.clones.find(params.repo).url, refresh=True)


async def cancel(services: Services, params: RepoParams, peer: Peer) -> Ok:
    services.clones.cancel(params.repo)
    return Ok(message="the transfer is being cancelled")


async def delete(services: Services, params: RepoParams, peer: Peer) -> Ok:
    await services.clones.delete(params.repo)
    await services.database.flush()
    return Ok(message="the clone and its record are removed")


async def branches(services: Services, params: RepoParams, peer: Peer) -> BranchList:
    found = await services.clones.branches(params.repo)
    return BranchList(branches=tuple(Branch(name=b.name, commit=b.commit, head=b.is_head) for b in found))
