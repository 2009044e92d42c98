"""What handlers work on: made once by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from msgspec import Struct

from buildd.config import Config
from buildd.engine.collector import Collector
from buildd.engine.engine import Engine
from buildd.engine.explain import Explainer
from buildd.engine.overdue import Overdue
from buildd.monitor.gate import Gate
from buildd.monitor.memory import MemoryGuard
from buildd.monitor.sampler import Sampler
from buildd.protocol import CheckResult
from buildd.repomap.maps import Maps
from buildd.repos.clones import Clones
from buildd.repos.reading import Reader
from buildd.store.artifacts import ArtifactStore
from buildd.store.database import Database
from buildd.store.journal import Journal
from buildd.store.logs import Logs
from buildd.store.queries import Queries
from buildd.store.runs import RunStore


class Watchers(NamedTuple):
    """Who watches, as far as their findings can be asked for."""

    gate: Gate
    sampler: Sampler
    memory: MemoryGuard
    overdue: Overdue


class Services(Struct, frozen=True, kw_only=True):
    config: Callable[[], Config]
    engine: Engine
    clones: Clones
    maps: Maps
    reader: Reader
    journal: Journal
    database: Database
    runs: RunStore
    queries: Queries
    explainer: Explainer
    artifacts: ArtifactStore
    collector: Collector
    logs: Logs
    watchers: Watchers
    started_at: float
    """On time.monotonic()'s clock."""
    sandbox_name: str
    weaker: tuple[str, ...]
    control_counts: Callable[[], tuple[int, int]]
    """Requests and drops of the control socket."""
    reload: Callable[[], str]
    """Read the configuration again; says what changed."""
    shutdown: Callable[[bool], None]
    """Stop the daemon; True lets running builds finish first."""
    checks: Callable[[], Awaitable[tuple[CheckResult, ...]]]
