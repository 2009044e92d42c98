"""Runs and builds in the database: the statements that write them and the queries that read them.

Statements are returned, not executed: the engine hands them to the journal, so that a record and the event
that reports it are one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec
import zstandard
from msgspec import Struct

from buildd.errors import InvalidInput, NotFound
from buildd.model import BuildRecord, Stats
from buildd.planner.keys import Inputs
from buildd.planner.states import RunState, is_final
from buildd.protocol import RunPackage, StartParams
from buildd.store.database import Database
from buildd.store.sqlite import Connection, Statement, last_number

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
_STORED_FILES = 50_000
"""A source with more files is stored without its listing."""

_SUCCESSES = """
    SELECT {columns} FROM builds WHERE package = ? AND state = 'success' AND output_id IS NOT NULL
    ORDER BY started_at DESC LIMIT {count}
"""


class RosterEntry(NamedTuple):
    """A package that was up to date in a run."""

    package: str
    version: str
    output_id: str


_json = msgspec.json.Encoder().encode
_run_decoder = msgspec.json.Decoder(RunRecord)
_build_decoder = msgspec.json.Decoder(BuildRecord)
_roster_decoder = msgspec.msgpack.Decoder(list[tuple[str, str, bytes]])
_changes_decoder = msgspec.json.Decoder(dict[str, tuple[str, str] | None])
_packages_decoder = msgspec.json.Decoder(tuple[RunPackage, ...])


# --- statements -------------------------------------------------------------------------------------------


def insert_run(run: RunRecord) -> Statement:
    return (
        "INSERT INTO runs (id, number, finished, record) VALUES (?, ?, 0, ?)",
        (run.id, run.number, _json(run)),
    )


def update_run(run: RunRecord) -> Statement:
    """Write what a run is by now, also into a database that was begun anew since it was accepted."""
    return (
        "INSERT INTO runs (id, number, finished, record) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET finished = excluded.finished, record = excluded.record",
        (run.id, run.number, is_final(run.state), _json(run)),
    )


def save_places(run: str, places: Struct) -> Statement:
    """Keep where the sources of a run are, to go on with them after a restart."""
    return ("UPDATE runs SET places = ? WHERE id = ?", (_json(places), run))


def save_roster(roster: str, entries: Iterable[RosterEntry]) -> Statement:
    """Store a set of packages that were up to date under an id of its own."""
    body = msgspec.msgpack.encode([(e.package, e.version, bytes.fromhex(e.output_id)) for e in entries])
    return ("INSERT INTO rosters (id, body) VALUES (?, ?)", (roster, zstandard.compress(body, 3)))


def save_packages(
    run: str,
    packages: Sequence[RunPackage],
    roster: str | None = None,
    changes: Mapping[str, tuple[str, str] | None] | None = None,
) -> Statement:
    """Record what became of a run's packages, and which were up to date: those of a stored roster.

    `changes` give, by name, version and output id that differ from the roster's; None was not up to date.
    """
    return (
        "UPDATE runs SET packages = ?, roster = ?, roster_changes = ? WHERE id = ?",
        (_json(tuple(packages)), roster, _json(changes) if changes else None, run),
    )


def insert_build(build: BuildRecord, inputs: Inputs) -> Statement:
    return (
        "INSERT INTO builds (id, run, package, version, repository, state, started_at, key, record, inputs) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            build.id,
            build.run,
            build.package,
            build.version,
            build.repository,
            build.state,
            build.started_at,
            build.key,
            _json(build),
            _json(inputs),
        ),
    )


def save_source(tree: str, crc: int, files: Sequence[tuple[bytes, int, bytes]]) -> Statement:
    """Keep the listing of a source, `(path, mode, raw id)` of each file, so that a difference can be named later."""
    body = zstandard.compress(msgspec.msgpack.encode(files), 3) if len(files) <= _STORED_FILES else None
    return ("INSERT OR IGNORE INTO source_trees (tree, crc, files) VALUES (?, ?, ?)", (tree, crc, body))


def index_package(build: BuildRecord) -> Statement:
    """Make a success the latest of its package, version and repository: its fingerprint from now on."""
    return (
        "INSERT OR REPLACE INTO package_index "
        "(package, version, repository, build, key, output_id, tree, crc, built_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            build.package,
            build.version,
            build.repository,
            build.id,
            build.key,
            build.output_id,
            build.tree,
            build.crc,
            build.completed_at,
        ),
    )


def update_build(build: BuildRecord) -> Statement:
    """Write how a build has ended, also into a database that was begun anew since it started."""
    duration = build.completed_at - build.started_at if build.completed_at is not None else None
    return (
        "INSERT INTO builds "
        "(id, run, package, version, repository, state, started_at, duration_s, key, output_id, record) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
        "state = excluded.state, duration_s = excluded.duration_s, output_id = excluded.output_id, "
        "record = excluded.record",
        (
            build.id,
            build.run,
            build.package,
            build.version,
            build.repository,
            build.state,
            build.started_at,
            duration,
            build.key,
            build.output_id,
            _json(build),
        ),
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
        return self._database.read_now(lambda c: last_number(c, "runs")) + 1

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

    async def places(self, run: str) -> bytes | None:
        """What `save_places` kept for a run, as JSON; None when it did not get that far."""
        row = await self._database.read(lambda c: c.execute("SELECT places FROM runs WHERE id = ?", (run,)).fetchone())
        return row[0] if row else None

    async def roster(self, run: str) -> list[RosterEntry]:
        """The packages that were up to date when a run that has ended began, as far as they were recorded."""
        row = await self._database.read(
            lambda c: c.execute(
                "SELECT body, roster_changes FROM runs JOIN rosters ON rosters.id = runs.roster WHERE runs.id = ?",
                (run,),
            ).fetchone()
        )
        if row is None:
            return []
        body, changes = row
        entries = {
            name: (version, output.hex())
            for name, version, output in _roster_decoder.decode(zstandard.decompress(body))
        }
        for name, changed in (_changes_decoder.decode(changes) if changes is not None else {}).items():
            if changed is None:
                entries.pop(name, None)
            else:
                entries[name] = changed
        return [RosterEntry(name, *entry) for name, entry in entries.items()]

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

    async def outputs_of_run(self, run: str) -> frozenset[str]:
        """The output ids of a run's successful builds."""
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT DISTINCT output_id FROM builds WHERE run = ? AND state = 'success' AND output_id IS NOT NULL",
                (run,),
            ).fetchall()
        )
        return frozenset(row[0] for row in rows)

    async def history(self, names: Iterable[str]) -> dict[str, float]:
        """Median duration in seconds of each package's last successes; packages without one are left out."""
        sql = _SUCCESSES.format(columns="duration_s", count=MEDIAN_OF)

        def work(connection: Connection) -> dict[str, float]:
            found = ((name, [row[0] for row in connection.execute(sql, (name,))]) for name in names)
            return {name: median(durations) for name, durations in found if durations}

        return await self._database.read(work)

    async def crcs(self, trees: Iterable[str]) -> dict[str, int]:
        """The CRC of each of these sources whose listing is stored."""
        wanted = _json(list(trees)).decode()
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT tree, crc FROM source_trees WHERE tree IN (SELECT value FROM json_each(?))", (wanted,)
            ).fetchall()
        )
        return dict(rows)

    async def known_results(self, names: Mapping[str, str | None]) -> dict[str, KnownResult]:
        """Earlier successes by key, of these packages: any of them, or the last one in the repository that is named."""
        every = _SUCCESSES.format(columns="key, output_id, id", count=RESULTS_PER_PACKAGE)
        last = _SUCCESSES.format(columns="key, output_id, id", count=1).replace("WHERE", "WHERE repository = ? AND")

        def work(connection: Connection) -> dict[str, KnownResult]:
            results: dict[str, KnownResult] = {}
            for name, repository in names.items():
                rows = (
                    connection.execute(every, (name,))
                    if repository is None
                    else connection.execute(last, (repository, name))
                )
                for key, output, build in rows:
                    results.setdefault(key, KnownResult(key=key, output_id=output, build=build))
            return results

        return await self._database.read(work)

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
