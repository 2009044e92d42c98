"""events.poll: the journal, as a long poll."""

from __future__ import annotations

from buildd.control.handlers.run import lookup
from buildd.control.handlers.services import Services
from buildd.control.socket import Peer
from buildd.protocol import MAX_POLL_S, PollParams, PollResult


async def poll(services: Services, params: PollParams, peer: Peer) -> PollResult:
    run = params.run
    if run is not None:
        run = (await lookup(services, run))[0].id
    return await services.journal.poll(
        params.after,
        timeout=max(0.0, min(params.timeout, MAX_POLL_S)),
        limit=params.limit,
        run=run,
        kinds=params.kinds,
    )
