"""Questions to the database about what was built: the index, fingerprints, failures, times, inputs (D8).

Reads only. Every method raises DatabaseError when the database cannot be read.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from msgspec import Struct

from buildd.errors import NotFound
from buildd.model import BuildRecord
from buildd.planner.changes import Listing
from buildd.planner.keys import Inputs
from buildd.protocol import DatabaseStats, Fingerprint, IndexEntry, PackageTime
from buildd.store.database import Database

_COLUMNS = "package, version, repository, build, key, output_id, tree, crc, built_at"
_SUCCESS = "state = 'success' AND output_id IS NOT NULL"
_TIMES = """
    WITH timed AS (
        SELECT package, duration_s,
               row_number() OVER (PARTITION BY package ORDER BY duration_s) AS place,
               count(*) OVER (PARTITION BY package) AS builds
        FROM builds WHERE state = 'success' AND duration_s IS NOT NULL
    )
    SELECT package, builds, sum(duration_s), avg(duration_s),
           avg(CASE WHEN place IN ((builds + 1) / 2, (builds + 2) / 2) THEN duration_s END) AS median_s
    FROM timed GROUP BY package ORDER BY median_s DESC, package LIMIT ?
"""
_ALL_TIMES = """
    WITH timed AS (
        SELECT duration_s, row_number() OVER (ORDER BY duration_s) AS place, count(*) OVER () AS builds
        FROM builds WHERE state = 'success' AND duration_s IS NOT NULL
    )
    SELECT total(duration_s), avg(duration_s),
           avg(CASE WHEN place IN ((builds + 1) / 2, (builds + 2) / 2) THEN duration_s END)
    FROM timed
"""
_RUNS = """
    SELECT json_extract(said, '$.state.name'), count(*), min(json_extract(said, '$.created_at')),
           total(json_extract(said, '$.stats.skipped')),
           total(json_extract(said, '$.stats.success')) + total(json_extract(said, '$.stats.failed'))
    FROM (SELECT CAST(record AS TEXT) AS said FROM runs) GROUP BY 1
"""

_build_decoder = msgspec.json.Decoder(BuildRecord)
_inputs_decoder = msgspec.json.Decoder(Inputs)
_files_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, int, bytes]])


class Success(Struct, frozen=True, kw_only=True):
    """A successful build that left an output."""

    build: BuildRecord
    inputs: Inputs | None
    """What decided it; None for one of an early version of buildd."""


class Queries:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- the index ----------------------------------------------------------------------------------------

    async def latest(self, package: str | None, limit: int) -> list[IndexEntry]:
        """The latest successes of `NAME` or `NAME@VERSION`, or of all packages; newest first."""
        condition, parameters = _named(package)
        sql = f"SELECT {_COLUMNS} FROM package_index WHERE {condition} ORDER BY built_at DESC, package LIMIT ?"
        rows = await self._rows(sql, (*parameters, limit))
        return [IndexEntry(**dict(zip(IndexEntry.__struct_fields__, row, strict=True))) for row in rows]

    async def fingerprints(self, package: str) -> list[Fingerprint]:
        """The sources of the latest successes of `NAME` or `NAME@VERSION`, newest first. Raises NotFound."""
        entries = await self.latest(package, 1000)
        if not entries:
            raise NotFound(f"{package} was never built with success", hint="`buildctl db latest` shows what was")
        found = []
        for entry in entries:
            files = await self.listing(entry.tree)
            found.append(
                Fingerprint(
                    package=entry.package,
                    version=entry.version,
                    repository=entry.repository,
                    tree=entry.tree,
                    crc=entry.crc,
                    files=len(files) if files is not None else None,
                    build=entry.build,
                    built_at=entry.built_at,
                )
            )
        return found

    async def listing(self, tree: str) -> Listing | None:
        """The files of a source that was fingerprinted; None when they are not kept."""
        rows = await self._rows("SELECT files FROM source_trees WHERE tree = ?", (tree,))
        if not rows or rows[0][0] is None:
            return None
        try:
            files = _files_decoder.decode(zstandard.ZstdDecompressor().decompress(rows[0][0]))
        except (zstandard.ZstdError, msgspec.MsgspecError):
            return None  # as good as not kept: it only serves to name what changed
        return [(os.fsdecode(path), mode, id.hex()) for path, mode, id in files]

    # --- builds -------------------------------------------------------------------------------------------

    async def failures(self, package: str | None, limit: int, *, before: float | None = None) -> list[BuildRecord]:
        """Failed builds, those that started before a time; newest first."""
        condition, parameters = _named(package)
        if before is not None:
            condition, parameters = f"{condition} AND started_at < ?", (*parameters, before)
        sql = f"SELECT record FROM builds WHERE state = 'failed' AND {condition} ORDER BY started_at DESC LIMIT ?"
        return [_build_decoder.decode(row[0]) for row in await self._rows(sql, (*parameters, limit))]

    async def started_at(self, builds: Collection[str]) -> dict[str, float]:
        """When each of these builds started; those that are not on record are left out."""
        sql = "SELECT id, started_at FROM builds WHERE id IN (SELECT value FROM json_each(?))"
        return dict(await self._rows(sql, (msgspec.json.encode(list(builds)).decode(),)))

    async def names(self) -> set[str]:
        """All packages that were ever built, with or without success."""
        return {row[0] for row in await self._rows("SELECT DISTINCT package FROM builds")}

    async def inputs_of(self, build: str) -> Inputs | None:
        """What decided a build; None when that is not on record."""
        rows = await self._rows("SELECT inputs FROM builds WHERE id = ?", (build,))
        return _inputs_decoder.decode(rows[0][0]) if rows and rows[0][0] is not None else None

    async def last_success(
        self, package: str, *, repository: str, before: float | None = None, elsewhere: bool = True
    ) -> Success | None:
        """The last success of a package that started before a time: in this repository, or else in any other."""
        limits: list[tuple[str, Any]] = [("package = ?", package)]
        if before is not None:
            limits.append(("started_at < ?", before))
        if not elsewhere:
            limits.append(("repository = ?", repository))
        return await self._success(limits, ("repository = ? DESC, started_at DESC", repository))

    async def last_with_key(self, key: str) -> Success | None:
        """The last success that had this key."""
        return await self._success([("key = ?", key)], ("started_at DESC",))

    async def first_with_output(self, package: str, output: str, *, after: float) -> Success | None:
        """The first success of a package after a time that left this output."""
        limits = [("package = ?", package), ("output_id = ?", output), ("started_at > ?", after)]
        return await self._success(limits, ("started_at",))

    async def last_with_output(self, package: str, output: str, *, before: float) -> Success | None:
        """The last success of a package before a time that left this output."""
        limits = [("package = ?", package), ("output_id = ?", output), ("started_at < ?", before)]
        return await self._success(limits, ("started_at DESC",))

    async def _success(self, limits: list[tuple[str, Any]], order: tuple[str, *tuple[Any, ...]]) -> Success | None:
        where = " AND ".join([_SUCCESS, *(condition for condition, _ in limits)])
        rows = await self._rows(
            "SELECT record, inputs FROM builds WHERE id = "
            f"(SELECT id FROM builds WHERE {where} ORDER BY {order[0]} LIMIT 1)",
            (*(value for _, value in limits), *order[1:]),
        )
        if not rows:
            return None
        record, inputs = rows[0]
        return Success(
            build=_build_decoder.decode(record), inputs=_inputs_decoder.decode(inputs) if inputs is not None else None
        )

    # --- all of it ----------------------------------------------------------------------------------------

    async def statistics(self, slowest: int) -> DatabaseStats:
        """Counts, hit rate and times over everything on record, and the slowest packages; nothing of the artifacts."""
        packages, outputs = (
            await self._rows(
                "SELECT (SELECT count(DISTINCT package) FROM package_index), "
                f"(SELECT count(DISTINCT output_id) FROM builds WHERE {_SUCCESS})"
            )
        )[0]
        runs = await self._rows(_RUNS)
        builds = await self._rows("SELECT state, count(*) FROM builds GROUP BY state ORDER BY state")
        total, mean, median = (await self._rows(_ALL_TIMES))[0]
        times = await self._rows(_TIMES, (slowest,))
        ended = [row for row in runs if row[0] in ("completed", "failed", "cancelled")]
        hits, misses = (int(sum(row[column] for row in ended)) for column in (3, 4))
        return DatabaseStats(
            since=min((row[2] for row in runs), default=None),
            packages=packages,
            runs={row[0]: row[1] for row in runs},
            builds=dict(builds),
            hits=hits,
            misses=misses,
            hit_rate=round(hits / (hits + misses), 4) if hits + misses else None,
            total_s=total,
            mean_s=mean,
            median_s=median,
            slowest=tuple(
                PackageTime(package=package, builds=count, total_s=total_s, mean_s=mean_s, median_s=median_s)
                for package, count, total_s, mean_s, median_s in times
            ),
            outputs=outputs,
            artifacts=None,
            artifact_bytes=None,
            database_bytes=sum(_size(Path(f"{self._database.path}{suffix}")) for suffix in ("", "-wal")),
        )

    async def outputs(self) -> dict[str, int]:
        """Every output on record, and the number of builds that left it."""
        return dict(await self._rows(f"SELECT output_id, count(*) FROM builds WHERE {_SUCCESS} GROUP BY output_id"))

    async def running(self) -> set[str]:
        """Ids of the builds that are on record as running."""
        return {row[0] for row in await self._rows("SELECT id FROM builds WHERE state = 'running'")}

    async def count(self) -> int:
        """Number of builds on record."""
        return int((await self._rows("SELECT count(*) FROM builds"))[0][0])

    async def _rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        return await self._database.read(lambda c: c.execute(sql, parameters).fetchall())


def split_version(text: str) -> tuple[str, str | None]:
    """Name and version of `NAME[@VERSION]`."""
    name, at, version = text.partition("@")
    return name, version if at else None


def _named(package: str | None) -> tuple[str, tuple[Any, ...]]:
    """The condition for builds of `NAME[@VERSION]`."""
    if package is None:
        return "1", ()
    name, version = split_version(package)
    return ("package = ?", (name,)) if version is None else ("package = ? AND version = ?", (name, version))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
