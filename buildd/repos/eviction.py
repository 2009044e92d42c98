"""Which clones go when there are more, or larger ones, than the limits allow.

The least recently used goes first. What is in use never goes, nor what an unfinished run will need, nor a local path,
which is no copy; and the one that was used last stays even if it alone is larger than all may be: it would only be
cloned again. An evicted repository stays known, as one that was never cloned, and is cloned when it is next wanted.

Invariant: deciding and renaming are one step in the trio thread, so nobody finds a clone that is about to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from buildd.model import CloneStatus, Repository
from buildd.repos.cachedir import CacheDir
from buildd.repos.catalog import Catalog

log = structlog.get_logger(__name__)


class Surplus(NamedTuple):
    victims: tuple[Repository, ...]
    """In the order in which they go."""
    unmet: str
    """Which limit is broken even without them, and by how much; empty when none is."""


def surplus(
    repositories: Iterable[Repository],
    kept: Callable[[str], bool],
    *,
    max_repositories: int,
    max_bytes: int,
    coming: int = 0,
) -> Surplus:
    """What must go, with `coming` clones to come, whose size nobody knows. `kept` says which may not; 0 is no limit."""
    clones = [r for r in repositories if r.clone_status.status == "cloned" and not r.url.startswith("file://")]
    clones.sort(key=lambda r: (r.last_access, r.url))
    count, size = len(clones) + coming, sum(r.bytes for r in clones)
    victims: list[Repository] = []
    for repository in clones if coming else clones[:-1]:
        over = 0 < max_repositories < count or 0 < max_bytes < size
        if not over:
            break
        if not kept(repository.url):
            victims.append(repository)
            count -= 1
            size -= repository.bytes
    unmet = []
    if 0 < max_repositories < count:
        unmet.append(f"{count} clones are kept, and repos.max_repositories allows {max_repositories}")
    if 0 < max_bytes < size:
        unmet.append(f"clones take {size} bytes, and repos.max_bytes allows {max_bytes}")
    return Surplus(tuple(victims), "; ".join(unmet))


class Evictor:
    def __init__(
        self,
        catalog: Catalog,
        cache: CacheDir,
        emit: Callable[[str, str, dict[str, object]], None],
        in_use: Callable[[str], bool],
    ) -> None:
        """`in_use` says of a normalised URL that its clone must stay."""
        self._catalog = catalog
        self._cache = cache
        self._emit = emit
        self._in_use = in_use
        self.needed: Callable[[str], bool] = lambda url: False
        """Says of a normalised URL whether somebody will use its clone who does not hold it yet."""
        self.trouble = ""
        """Why a limit is not kept."""

    def evict(self, max_repositories: int, max_bytes: int, *, coming: int = 0) -> list[Path]:
        """Make room; what the caller must remove from the disk."""
        if not max_repositories and not max_bytes:
            self.trouble = ""
            return []
        decision = surplus(
            self._catalog.all(),
            lambda url: self._in_use(url) or self.needed(url),
            max_repositories=max_repositories,
            max_bytes=max_bytes,
            coming=coming,
        )
        gone: list[Path] = []
        for repository in decision.victims:
            try:
                gone.append(self._cache.set_aside(Path(repository.path)))
            except FileNotFoundError:
                pass  # somebody was faster; the record is still to be put right
            except OSError as error:
                log.error("a clone cannot be evicted", url=repository.url, error=str(error))
                continue
            self._forget(repository)
        self._complain(decision.unmet and f"{decision.unmet}: the others are in use, or were used last")
        return gone

    def _forget(self, repository: Repository) -> None:
        self._catalog.save(msgspec.structs.replace(repository, clone_status=CloneStatus(), bytes=0, fetched_at=None))
        data: dict[str, object] = {
            "path": repository.path,
            "bytes": repository.bytes,
            "last_access": repository.last_access,
        }
        self._emit("repo_evicted", repository.url, data)
        log.info("a clone was evicted", url=repository.url, bytes=repository.bytes)

    def _complain(self, trouble: str) -> None:
        if trouble and not self.trouble:
            log.warning("a limit of the clones cannot be kept", why=trouble)
        self.trouble = trouble
