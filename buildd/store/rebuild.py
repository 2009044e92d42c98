"""History outside of the database: the receipts that lie beside the artifacts.

From them come the successful builds whose output is still there, the package index (the latest of them for each
package, version and repository) and the checksums of sources. Runs and failed builds leave no receipts.

What lies there is not trusted: a receipt that cannot be read, or does not belong where it lies, is passed over,
counted and never fatal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from buildd.model import BuildRecord
from buildd.planner.keys import Inputs
from buildd.store.artifacts import Receipt
from buildd.store.sqlite import Statement

log = structlog.get_logger()

_decoder = msgspec.json.Decoder(Receipt)
_encode = msgspec.json.Encoder().encode


class Receipts:
    """The receipts of a state directory. Implements `buildd.store.renewal.History`."""

    def __init__(self, state_dir: Path) -> None:
        self._artifacts = state_dir / "artifacts"
        self._releases = state_dir / "releases"

    def exists(self) -> bool:
        return next(self._outputs(), None) is not None

    def last_run(self) -> int:
        """The highest number that a directory of released packages has."""
        names = (entry.name for entry in _entries(self._releases))
        return max((int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 12), default=0)

    def statements(self) -> Iterator[Statement]:
        """A few for each build that left a receipt."""
        taken = passed_over = 0
        for output in self._outputs():
            directory = os.path.join(self._artifacts, output[:2], output)
            for entry in _entries(os.path.join(directory, "builds")):
                if not entry.name.endswith(".json"):
                    continue
                found = _read(entry.path, output)
                if found is None:
                    passed_over += 1
                    continue
                taken += 1
                yield from _rows(found, directory)
        log.info("receipts were read", builds=taken, unreadable=passed_over)

    def _outputs(self) -> Iterator[str]:
        """Ids of the complete artifacts that are here."""
        for shard in _entries(self._artifacts):
            if len(shard.name) != 2:
                continue
            for entry in _entries(shard.path):
                complete = os.path.exists(os.path.join(entry.path, "manifest.json"))
                if entry.name.startswith(shard.name) and len(entry.name) == 64 and complete:
                    yield entry.name


def _entries(directory: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """What is in a directory; nothing if it cannot be read."""
    try:
        with os.scandir(directory) as found:
            yield from found
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("receipts cannot be read", path=os.fspath(directory), error=str(error))


def _read(path: str, output: str) -> Receipt | None:
    """The receipt in a file, if it is one of a build that made this output."""
    try:
        with open(path, "rb") as file:
            receipt = _decoder.decode(file.read())
    except (OSError, msgspec.DecodeError, ValueError):  # ValueError: numbers that Python cannot hold
        return None
    build = receipt.build
    belongs = os.path.basename(path) == f"{build.id}.json" and build.output_id == output
    return receipt if belongs and build.state == "success" and 0 <= (build.crc or 0) < 1 << 32 else None


def _rows(receipt: Receipt, directory: str) -> Iterator[Statement]:
    inputs = receipt.inputs
    tree = receipt.build.tree or (inputs.parts.tree if inputs is not None else "")
    crc = receipt.build.crc if receipt.build.crc is not None or inputs is None else inputs.crc
    build = msgspec.structs.replace(
        receipt.build, repository=receipt.build.repository or receipt.repository, tree=tree, crc=crc, artifact=directory
    )
    yield _build(build, inputs)
    yield _index(build)
    if tree and crc is not None:
        yield ("INSERT OR IGNORE INTO source_trees (tree, crc) VALUES (?, ?)", (tree, crc))


def _build(build: BuildRecord, inputs: Inputs | None) -> Statement:
    ended = build.completed_at
    return (
        "INSERT INTO builds (id, run, package, version, repository, state, started_at, duration_s, key, output_id, "
        "record, inputs) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET state = excluded.state, duration_s = excluded.duration_s, "
        "output_id = excluded.output_id, record = excluded.record WHERE state = 'running'",
        (
            build.id,
            build.run,
            build.package,
            build.version,
            build.repository,
            build.state,
            build.started_at,
            ended - build.started_at if ended is not None else None,
            build.key,
            build.output_id,
            _encode(build),
            _encode(inputs) if inputs is not None else None,
        ),
    )


def _index(build: BuildRecord) -> Statement:
    return (
        "INSERT INTO package_index (package, version, repository, build, key, output_id, tree, crc, built_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (package, version, repository) DO UPDATE SET build = excluded.build, key = excluded.key, "
        "output_id = excluded.output_id, tree = excluded.tree, crc = excluded.crc, built_at = excluded.built_at "
        "WHERE excluded.built_at > built_at",
        (
            build.package,
            build.version,
            build.repository,
            build.id,
            build.key,
            build.output_id,
            build.tree,
            build.crc,
            build.completed_at if build.completed_at is not None else build.started_at,
        ),
    )
