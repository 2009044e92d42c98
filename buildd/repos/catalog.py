"""The repositories that are known: in memory for questions, in the records for the next start.

Pure bookkeeping without I/O of its own. Invariant: what is in memory was handed to the records in the same order.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import msgspec

from buildd.errors import InvalidInput, NotFound
from buildd.model import CloneStatus, Repository
from buildd.repos.records import RepositoryRecords
from buildd.repos.url import parse_url


class Catalog:
    """Repositories by normalised URL."""

    def __init__(self, records: RepositoryRecords, clock: Callable[[], float]) -> None:
        self._records = records
        self._clock = clock
        self._known: dict[str, Repository] = {}

    def load(self) -> None:
        self._known = {repository.url: repository for repository in self._records.all()}

    def get(self, url: str) -> Repository | None:
        return self._known.get(url)

    def all(self) -> list[Repository]:
        """Every repository, by name and URL."""
        return sorted(self._known.values(), key=lambda repository: (repository.name, repository.url))

    def save(self, repository: Repository) -> Repository:
        self._known[repository.url] = repository
        self._records.save(repository)
        return repository

    def remove(self, url: str) -> None:
        self._known.pop(url, None)
        self._records.remove(url)

    def touch(self, url: str) -> Repository:
        """Note that `url` is being used now."""
        return self.save(msgspec.structs.replace(self._known[url], last_access=self._clock()))

    def fail(self, url: str, error: str) -> None:
        """Note that there is no clone of `url`, and why."""
        repository = self._known[url]
        status = CloneStatus(
            status="failed",
            started_at=repository.clone_status.started_at,
            completed_at=self._clock(),
            error=error,
        )
        self.save(msgspec.structs.replace(repository, clone_status=status, bytes=0, fetched_at=None))

    def find(self, text: str, schemes: Sequence[str]) -> Repository:
        """The repository that `text`, a URL or a name, means. Raises NotFound or InvalidInput (ambiguous)."""
        if "/" in text or ":" in text:
            url = parse_url(text, schemes).normalized
            if url not in self._known:
                raise NotFound(f"the repository {url} is not known", hint="Clone it first.")
            return self._known[url]
        found = [repository for repository in self.all() if repository.name == text]
        if len(found) == 1:
            return found[0]
        if found:
            urls = ", ".join(repository.url for repository in found)
            raise InvalidInput(
                f"the name {text[:100]!r} means {len(found)} repositories: {urls}", hint="Give the URL of one."
            )
        names = difflib.get_close_matches(text, {repository.name for repository in self.all()})
        raise NotFound(
            f"no repository is called {text[:100]!r}",
            hint=f"Did you mean {', '.join(names)}?" if names else "Give its URL to have it cloned.",
        )
