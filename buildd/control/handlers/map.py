"""map.* and repo.files: maps of repositories, and what is answered from them."""

from __future__ import annotations

from buildd.control.handlers.services import Services
from buildd.control.socket import Peer
from buildd.errors import InvalidInput
from buildd.model import RepoMapStatus
from buildd.protocol import (
    MAX_CHUNK_BYTES,
    MAX_MAP_TOKENS,
    MAX_POLL_S,
    Empty,
    FilesParams,
    MapAnswer,
    MapChunk,
    MapGetParams,
    MapList,
    MapReadParams,
    MapRefs,
    MapRefsParams,
    MapRequestParams,
    MapTags,
    MapTagsParams,
    MapText,
    Ok,
    RankedFiles,
    RevisionParams,
)
from buildd.repomap import wire

_MOST = 1000
"""Tags, references or files in one answer."""


async def request(services: Services, params: MapRequestParams, peer: Peer) -> MapAnswer:
    status, begun = await services.maps.request(params.repo, params.revision, again=params.again)
    await services.database.flush()
    if begun:
        return MapAnswer(status="accepted", message="the map is being made", repo_map_status=status)
    if status.status == "building":
        return MapAnswer(status="building", message=f"being made: {status.stage}", repo_map_status=status)
    return MapAnswer(status="complete", message="there is one", repo_map_status=status)


async def status(services: Services, params: RevisionParams, peer: Peer) -> RepoMapStatus:
    return await services.maps.status(params.repo, params.revision)


async def list_all(services: Services, params: Empty, peer: Peer) -> MapList:
    return MapList(maps=tuple(services.maps.list()))


async def cancel(services: Services, params: RevisionParams, peer: Peer) -> Ok:
    count = await services.maps.cancel(params.repo, params.revision)
    await services.database.flush()
    return Ok(message=f"{count} being made {'was' if count == 1 else 'were'} stopped; nothing of it is left")


async def get(services: Services, params: MapGetParams, peer: Peer) -> MapText:
    if not 1 <= params.tokens <= MAX_MAP_TOKENS:
        raise InvalidInput(f"a map takes between 1 and {MAX_MAP_TOKENS} tokens, not {params.tokens}")
    made = await _made(services, params, params.timeout)
    if made.status != "complete":
        return MapText(repo_map_status=made)
    found = await services.maps.question(
        params.repo,
        made.commit,
        lambda source: wire.TextRequest(
            source=source, tokens=params.tokens, focus=params.focus, mention=params.mention
        ),
        wire.Text,
    )
    return MapText(
        repo_map_status=made,
        text=found.text,
        tokens=found.tokens,
        files=found.files,
        definitions=found.definitions,
        unknown=found.unknown,
    )


async def read(services: Services, params: MapReadParams, peer: Peer) -> MapChunk:
    limit = max(1, min(params.limit, MAX_CHUNK_BYTES))
    if params.offset < 0:
        raise InvalidInput(f"an offset is not negative: {params.offset}")
    data, size = await services.maps.read(params.repo, params.revision, params.file, params.offset, limit)
    end = params.offset + len(data)
    return MapChunk(data=data, next_offset=end, finished=end >= size)


async def tags(services: Services, params: MapTagsParams, peer: Peer) -> MapTags:
    _check_page(params.limit, params.offset)
    found = await services.maps.question(
        params.repo,
        params.revision,
        lambda source: wire.TagsRequest(
            source=source,
            name=params.name,
            path=params.path,
            kind=params.kind,
            limit=params.limit,
            offset=params.offset,
        ),
        wire.Tags,
    )
    return MapTags(tags=found.tags, total=found.total)


async def refs(services: Services, params: MapRefsParams, peer: Peer) -> MapRefs:
    _check_page(params.limit, params.offset)
    found = await services.maps.question(
        params.repo,
        params.revision,
        lambda source: wire.RefsRequest(source=source, name=params.name, limit=params.limit, offset=params.offset),
        wire.Refs,
    )
    return MapRefs(definitions=found.definitions, refs=found.refs, total=found.total)


async def files(services: Services, params: FilesParams, peer: Peer) -> RankedFiles:
    _check_page(params.limit, 0)
    made = await _made(services, params, params.timeout)
    if made.status != "complete":
        return RankedFiles(repo_map_status=made)
    found = await services.maps.question(
        params.repo, made.commit, lambda source: wire.FilesRequest(source=source, limit=params.limit), wire.Files
    )
    return RankedFiles(repo_map_status=made, files=found.files, total=found.total)


async def _made(services: Services, params: RevisionParams, timeout: float) -> RepoMapStatus:
    """The map, asked for when there is none, as it is at the end of the wait."""
    status, _ = await services.maps.request(params.repo, params.revision)
    if status.status == "building":
        status = await services.maps.wait(status, max(0.0, min(timeout, MAX_POLL_S)))
    return status


def _check_page(limit: int, offset: int) -> None:
    if not 1 <= limit <= _MOST:
        raise InvalidInput(f"limit is between 1 and {_MOST}, not {limit}")
    if offset < 0:
        raise InvalidInput(f"an offset is not negative: {offset}")
