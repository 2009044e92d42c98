"""Runs and builds in the database: the statements that write them and the queries that read them.

Statements are returned, not executed: the engine hands them to the journal, so that a record and the event
that reports it are one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from buildd.errors import InvalidInput, NotFound
from buildd.model import BuildRecord, Package, Stats
from buildd.planner.states import RunState, is_final
from buildd.protocol import RunPackage, StartParams
from buildd.store.database import Database, Statement

MEDIAN_OF = 5
"""Durations of the last so many successes make a package's expected duration."""


class RunRecord(Struct, frozen=True, kw_only=True):
    id: str
    number: int
    request: StartParams
    """What was asked for, without credentials."""
    requested_by: str
    created_at: float
    state: RunState
    started_at: float | None = None
    completed_at: float | None = None
    stats: Stats = Stats()
    waves: int = 0
    cancelled_by: str | None = None
    """Who asked to cancel it; a restart finishes the cancellation."""
    cancelled: dict[str, str] = {}
    """Packages that were cancelled one by one while queued, and why; they stay so after a restart."""
    failed_fast: str | None = None
    """Why the rest of a fail-fast run was given up."""


RESULTS_PER_PACKAGE = 64
"""Successes of one package that a new build is compared with; older ones are built again."""

_LATEST = """
    SELECT package, {columns} FROM (
        SELECT *, row_number() OVER (PARTITION BY package ORDER BY started_at DESC) AS age FROM builds
        WHERE package IN (SELECT value FROM json_each(?)) AND state = 'success' AND output_id IS NOT NULL
    ) WHERE age <= {count} ORDER BY started_at DESC
"""

_json = msgspec.json.Encoder().encode
_run_decoder = msgspec.json.Decoder(RunRecord)
_build_decoder = msgspec.json.Decoder(BuildRecord)
_plan_encode = msgspec.msgpack.Encoder().encode
_plan_decoder = msgspec.msgpack.Decoder(tuple[Package, ...])
_packages_decoder = msgspec.json.Decoder(tuple[RunPackage, ...])


# --- statements -------------------------------------------------------------------------------------------


def insert_run(run: RunRecord) -> Statement:
    return (
        "INSERT INTO runs (id, number, finished, record) VALUES (?, ?, 0, ?)",
        (run.id, run.number, _json(run)),
    )


def update_run(run: RunRecord) -> Statement:
    return ("UPDATE runs SET finished = ?, record = ? WHERE id = ?", (is_final(run.state), _json(run), run.id))


def save_plan(run: str, plan: Sequence[Package]) -> Statement:
    return ("UPDATE runs SET plan = ? WHERE id = ?", (_plan_encode(tuple(plan)), run))


def save_packages(run: str, packages: Sequence[RunPackage]) -> Statement:
    return ("UPDATE runs SET packages = ? WHERE id = ?", (_json(tuple(packages)), run))


def insert_build(build: BuildRecord, repository: str) -> Statement:
    return (
        "INSERT INTO builds (id, run, package, version, repository, state, started_at, key, record) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            build.id,
            build.run,
            build.package,
            build.version,
            repository,
            build.state,
            build.started_at,
            build.key,
            _json(build),
        ),
    )


def update_build(build: BuildRecord) -> Statement:
    duration = build.completed_at - build.started_at if build.completed_at is not None else None
    return (
        "UPDATE builds SET state = ?, duration_s = ?, output_id = ?, record = ? WHERE id = ?",
        (build.state, duration, build.output_id, _json(build), build.id),
    )


# --- queries ----------------------------------------------------------------------------------------------


class KnownResult(Struct, frozen=True, kw_only=True):
    """A success that an equal key may be answered with."""

    key: str
    output_id: str
    build: str


class RunStore:
    """Reads. Every method raises DatabaseError when the database cannot be read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next_number(self) -> int:
        last = self._database.read_now(lambda c: c.execute("SELECT max(number) FROM runs").fetchone()[0])
        return int(last or 0) + 1

    async def unfinished(self) -> list[RunRecord]:
        """Runs that a restart takes up again, oldest first."""
        rows = await self._database.read(
            lambda c: c.execute("SELECT record FROM runs WHERE finished = 0 ORDER BY number").fetchall()
        )
        return [_run_decoder.decode(row[0]) for row in rows]

    async def running_builds(self) -> list[BuildRecord]:
        rows = await self._database.read(
            lambda c: c.execute("SELECT record FROM builds WHERE state = 'running'").fetchall()
        )
        return [_build_decoder.decode(row[0]) for row in rows]

    async def plan(self, run: str) -> tuple[Package, ...] | None:
        """The packages that were planned for a run; None when it did not get that far."""
        row = await self._database.read(lambda c: c.execute("SELECT plan FROM runs WHERE id = ?", (run,)).fetchone())
        return _plan_decoder.decode(row[0]) if row and row[0] is not None else None

    async def find_run(self, text: str) -> tuple[RunRecord, tuple[RunPackage, ...]]:
        """The run that an id, a prefix, a number or `latest` names, and its packages once it has ended.

        Raises NotFound, or InvalidInput when several match.
        """
        rows: list[tuple[bytes, bytes | None]] = []
        for condition, parameters in _run_conditions(text):
            sql = f"SELECT record, packages FROM runs WHERE {condition} ORDER BY number DESC LIMIT 2"
            rows = await self._database.read(lambda c, s=sql, p=parameters: c.execute(s, p).fetchall())  # type: ignore[misc]
            if rows:
                break
        if not rows:
            raise NotFound(f"there is no run {text!r}", hint="`buildctl list` shows the latest")
        if len(rows) > 1 and text != "latest":
            raise InvalidInput(f"several runs begin with {text!r}", hint="give more of the id, or the number")
        record, packages = rows[0]
        return _run_decoder.decode(record), _packages_decoder.decode(packages) if packages is not None else ()

    async def runs(self, limit: int, *, active: bool) -> list[RunRecord]:
        condition = "WHERE finished = 0" if active else ""
        rows = await self._database.read(
            lambda c: c.execute(
                f"SELECT record FROM runs {condition} ORDER BY number DESC LIMIT ?", (limit,)
            ).fetchall()
        )
        return [_run_decoder.decode(row[0]) for row in rows]

    async def find_build(self, text: str) -> BuildRecord:
        """Raises NotFound, or InvalidInput when several builds begin with `text`."""
        if not text or not all(c in "0123456789abcdef-" for c in text):
            raise NotFound(f"there is no build {text!r}", hint="`buildctl history` shows the latest")
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT record FROM builds WHERE id >= ? AND id < ? LIMIT 2", (text, text + "g")
            ).fetchall()
        )
        if not rows:
            raise NotFound(f"there is no build {text!r}", hint="`buildctl history` shows the latest")
        if len(rows) > 1:
            raise InvalidInput(f"several builds begin with {text!r}", hint="give more of the id")
        return _build_decoder.decode(rows[0][0])

    async def builds(self, *, package: str | None, run: str | None, limit: int) -> list[BuildRecord]:
        """Newest first."""
        conditions, parameters = ["1"], []
        for column, value in (("package", package), ("run", run)):
            if value is not None:
                conditions.append(f"{column} = ?")
                parameters.append(value)
        rows = await self._database.read(
            lambda c: c.execute(
                f"SELECT record FROM builds WHERE {' AND '.join(conditions)} ORDER BY started_at DESC LIMIT ?",
                (*parameters, limit),
            ).fetchall()
        )
        return [_build_decoder.decode(row[0]) for row in rows]

    async def builds_of_run(self, run: str) -> list[BuildRecord]:
        """All builds of a run, oldest first."""
        rows = await self._database.read(
            lambda c: c.execute("SELECT record FROM builds WHERE run = ? ORDER BY started_at", (run,)).fetchall()
        )
        return [_build_decoder.decode(row[0]) for row in rows]

    async def history(self, names: Iterable[str]) -> dict[str, float]:
        """Median duration in seconds of each package's last successes; packages without one are left out."""
        found: dict[str, list[float]] = {}
        for name, duration in await self._database.read(
            lambda c: c.execute(_LATEST.format(columns="duration_s", count=MEDIAN_OF), (_json(list(names)),)).fetchall()
        ):
            found.setdefault(name, []).append(duration)
        return {name: median(durations) for name, durations in found.items()}

    async def known_results(
        self, names: Iterable[str], *, latest_only: bool, repositories: Iterable[str]
    ) -> dict[str, KnownResult]:
        """Successes of these packages by key; `latest_only` takes each one's last in its own repository."""
        homes = set(repositories)
        results: dict[str, KnownResult] = {}
        latest: set[tuple[str, str]] = set()
        for package, repository, key, output_id, build in await self._database.read(
            lambda c: c.execute(
                _LATEST.format(columns="repository, key, output_id, id", count=RESULTS_PER_PACKAGE),
                (_json(list(names)),),
            ).fetchall()
        ):
            if latest_only:
                if repository not in homes or (repository, package) in latest:
                    continue
                latest.add((repository, package))
            results.setdefault(key, KnownResult(key=key, output_id=output_id, build=build))
        return results

    async def builds_of_outputs(self, limit: int, package: str | None) -> list[BuildRecord]:
        """The newest successes that have an output, newest first."""
        condition = "AND package = ?" if package is not None else ""
        parameters: tuple[Any, ...] = (package,) if package is not None else ()
        rows = await self._database.read(
            lambda c: c.execute(
                f"SELECT record FROM builds WHERE state = 'success' AND output_id IS NOT NULL {condition} "
                "ORDER BY started_at DESC LIMIT ?",
                (*parameters, limit),
            ).fetchall()
        )
        return [_build_decoder.decode(row[0]) for row in rows]

    async def build_of_output(self, output: str) -> BuildRecord:
        """The newest success with this output. Raises NotFound."""
        row = await self._database.read(
            lambda c: c.execute(
                "SELECT record FROM builds WHERE state = 'success' AND output_id = ? ORDER BY started_at DESC LIMIT 1",
                (output,),
            ).fetchone()
        )
        if row is None:
            raise NotFound(f"no build made the output {output}", hint="`buildctl artifacts list` shows them")
        return _build_decoder.decode(row[0])

    async def outputs_like(self, prefix: str) -> list[str]:
        """Distinct output ids that begin with `prefix` (hexadecimal)."""
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT DISTINCT output_id FROM builds "
                "WHERE state = 'success' AND output_id >= ? AND output_id < ? LIMIT 3",
                (prefix, prefix + "g"),
            ).fetchall()
        )
        return [row[0] for row in rows]


def _run_conditions(text: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What `text` may mean, the likeliest first."""
    if text == "latest":
        yield "1", ()
    if text.isascii() and text.isdigit() and len(text) < 12:
        yield "number = ?", (int(text),)
    if text and all(c in "0123456789abcdef-" for c in text):
        yield "id >= ? AND id < ?", (text, text + "g")
