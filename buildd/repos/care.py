"""Clones are kept fresh and within their limits without anybody asking.

A repository that was used lately is refreshed more often than one that was not. When exactly is spread by its URL, so
that repositories which were cloned together are not refreshed together, now or after a restart. One is refreshed at a
time, never while somebody waits for a transfer, with a rest in between; where all are overdue, as after a week off,
they are taken up one after the other. What cannot be fetched is tried again later and later, and said once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import structlog
import trio

from buildd.config import Config, ReposConfig
from buildd.errors import BuilddError
from buildd.model import Repository
from buildd.repos.clones import Clones

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 60.0
"""Between looks at the limits, and at what is to be refreshed, at most."""
_BUSY_S = 2.0
"""Between looks while somebody waits for a transfer."""
_REST_S, _REST_COST = 0.2, 1.0
"""After a refresh none for so many seconds, and for so many times what it took."""
_SPREAD = 0.2
"""Part of an interval by which a refresh may come early."""
_FIRST_RETRY_S, _LAST_RETRY_S = 900.0, 86_400.0


class Failures(NamedTuple):
    """Of one repository, in a row."""

    times: int
    last_at: float


class Next(NamedTuple):
    """What is to be refreshed next."""

    at: float
    url: str


def due_at(repository: Repository, now: float, settings: ReposConfig, failures: Failures | None) -> float | None:
    """When a repository is to be refreshed, which may be in the past; None for never."""
    if repository.clone_status.status != "cloned" or repository.url.startswith("file://"):
        return None
    active = now - repository.last_access <= settings.active_within
    interval = float(settings.refresh_active if active else settings.refresh_inactive)
    if not interval:
        return None
    fetched = repository.fetched_at or repository.clone_status.completed_at or 0.0
    # a clock that was wrong must not put it off for ever
    due = min(fetched, now) + interval * (1 - _SPREAD * spread(repository.url))
    if failures is not None:
        patience = min(interval, _FIRST_RETRY_S) * 2 ** min(failures.times - 1, 32)
        due = max(due, min(failures.last_at, now) + min(patience, _LAST_RETRY_S))
    return due


def next_refresh(
    repositories: Iterable[Repository], now: float, settings: ReposConfig, failures: Mapping[str, Failures]
) -> Next | None:
    """The most overdue, or the first that will be due; None when nothing ever will."""
    dues = ((due_at(r, now, settings, failures.get(r.url)), r.url) for r in repositories)
    return min((Next(at, url) for at, url in dues if at is not None), default=None)


def spread(url: str) -> float:
    """A number in [0, 1) that is always the same for a URL."""
    return int.from_bytes(hashlib.sha256(url.encode()).digest()[:6]) / 2**48


class Caretaker:
    def __init__(self, clones: Clones, config: Callable[[], Config], clock: Callable[[], float] = time.time) -> None:
        self._clones = clones
        self._config = config
        self._clock = clock
        self._failures: dict[str, Failures] = {}

    async def run(self) -> None:
        """Care for the clones until cancelled."""
        while True:
            try:
                wait = await self._look()
            except Exception:
                log.exception("the clones cannot be cared for")
                wait = LOOK_EVERY_S
            await trio.sleep(wait)

    async def _look(self) -> float:
        """Do what is due, and say how long there is nothing to do."""
        await self._clones.make_room()
        settings = self._config().repos
        busy = {job.url for job in self._clones.active()}
        idle = [repository for repository in self._clones.list() if repository.url not in busy]
        found = next_refresh(idle, self._clock(), settings, self._failures)
        if found is not None and found.at <= self._clock():
            return _BUSY_S if self._clones.waiting else await self._refresh(found.url)
        intervals = [i for i in (settings.refresh_active, settings.refresh_inactive) if i]
        wait = min([LOOK_EVERY_S, *intervals])  # for what is cloned meanwhile
        return max(_REST_S, min(wait, found.at - self._clock()) if found is not None else wait)

    async def _refresh(self, url: str) -> float:
        """Refresh one, and say how long to rest then."""
        began = trio.current_time()
        before = self._failures.get(url)
        try:
            await self._clones.refresh_unasked(url)
        except BuilddError as error:
            past = before if before is not None else Failures(0, 0.0)
            self._failures[url] = Failures(past.times + 1, self._clock())
            known = {repository.url for repository in self._clones.list()}
            self._failures = {url: failures for url, failures in self._failures.items() if url in known}
            if before is None and url in known:
                log.warning("a repository cannot be refreshed", url=url, error=error.message, hint=error.hint)
        else:
            if self._failures.pop(url, None) is not None:
                log.info("a repository can be refreshed again", url=url)
        return max(_REST_S, _REST_COST * (trio.current_time() - began))
