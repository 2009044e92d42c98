"""build.*: records and logs of builds."""

from __future__ import annotations

import trio

from buildd.control.handlers.run import lookup
from buildd.control.handlers.services import Services
from buildd.control.socket import Peer
from buildd.model import BuildRecord
from buildd.protocol import (
    MAX_CHUNK_BYTES,
    MAX_POLL_S,
    BuildList,
    BuildListParams,
    BuildParams,
    LogChunk,
    LogParams,
)
from buildd.threads import in_thread

_LOOK_AGAIN_S = 0.1  # a log grows without telling us: its writer is the build itself


async def show(services: Services, params: BuildParams, peer: Peer) -> BuildRecord:
    return await services.runs.find_build(params.build)


async def list_builds(services: Services, params: BuildListParams, peer: Peer) -> BuildList:
    run = params.run
    if run is not None:
        run = (await lookup(services, run))[0].id
    limit = max(1, min(params.limit, 1000))
    return BuildList(builds=tuple(await services.runs.builds(package=params.package, run=run, limit=limit)))


async def read_log(services: Services, params: LogParams, peer: Peer) -> LogChunk:
    record = await services.runs.find_build(params.build)
    limit = max(1, min(params.limit, MAX_CHUNK_BYTES))
    offset = params.offset
    deadline = trio.current_time() + max(0.0, min(params.timeout, MAX_POLL_S))
    while True:
        finished = record.state != "running"  # asked before reading: what comes after is not missed
        start, data = await in_thread(services.logs.read, record.id, offset, limit)
        if not finished or len(data) == limit:
            data = _whole_characters(data)
        if data or finished or trio.current_time() >= deadline:
            return LogChunk(
                build=record.id,
                offset=start,
                next_offset=start + len(data),
                text=data.decode(errors="replace"),
                finished=finished and start + len(data) >= services.logs.size(record.id),
            )
        await trio.sleep(_LOOK_AGAIN_S)
        record = await services.runs.find_build(record.id)


def _whole_characters(data: bytes) -> bytes:
    """`data` without a UTF-8 character that is cut off at its end; as it is when nothing would be left."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return data[:-back] or data if length > back else data
    return data
