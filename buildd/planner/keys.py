"""The cache key (D5): everything that can change a build's output, and nothing that cannot.

A key is the SHA-256 of the canonical JSON of its parts (sorted keys, no white space). Limits, priorities and
worker counts are not in it. Of each direct dependency it has the closure id, the root of a Merkle tree over its
output and the closures of its own dependencies: equal ids mean equal outputs all the way down, and a package's
key costs no more than its direct dependencies, however deep the graph is.

`Inputs` is what is stored with a build, so that any difference can be named later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from buildd.model import Package

FORMAT = 2
"""Raised when the meaning of a key changes, so that no old result is taken for a new one."""


class SourceKey(Struct, frozen=True, kw_only=True):
    """What of a fetched source can change an output: not where it comes from."""

    filename: str
    sha256: str
    into: str
    strip: int | None
    extract: bool
    patches: tuple[str, ...]


class KeyParts(Struct, frozen=True, kw_only=True):
    name: str
    version: str
    tree: str
    """Git tree id of the source."""
    sources: tuple[SourceKey, ...]
    """In the recipe's order, in which they are extracted over one another."""
    patches: tuple[str, ...]
    phases: dict[str, str]
    formats: tuple[str, ...]
    environment: str
    """Id of the root file system and fixed paths the build sees."""
    architecture: str
    dependencies: dict[str, str]
    """Name of each direct dependency to its closure id."""
    format: int = FORMAT


class Inputs(Struct, frozen=True, kw_only=True):
    """Everything that decided a build: the parts of its key, and what they stand for."""

    parts: KeyParts
    outputs: dict[str, str]
    """Name of each dependency to the id of its output: all of them, or the direct ones of a very large closure."""
    environment: dict[str, str]
    """What `parts.environment` was made from, by name."""
    strategy: str
    repository: str
    commit: str | None
    """Commit the package was found in; None for a snapshot of a directory."""
    root: str
    """Git tree id of the whole revision."""
    path: str
    """Of the package's subtree in it."""
    crc: int | None = None
    """CRC-32 over the listing of the source."""


def key_parts(package: Package, *, environment: str, architecture: str, dependencies: Mapping[str, str]) -> KeyParts:
    """The parts of `package`'s key, given the closure ids of its direct dependencies."""
    return KeyParts(
        name=package.name,
        version=package.version,
        tree=package.tree,
        sources=tuple(
            SourceKey(
                filename=s.filename,
                sha256=s.sha256,
                into=s.into,
                strip=s.strip,
                extract=s.extract,
                patches=s.patches,
            )
            for s in package.sources
        ),
        patches=package.patches,
        phases=package.phases,
        formats=package.formats,
        environment=environment,
        architecture=architecture,
        dependencies=dict(dependencies),
    )


def key_of(parts: KeyParts) -> str:
    """SHA-256 of the parts, in hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def closure_id(output: str | None, dependencies: Mapping[str, str]) -> str:
    """What dependents see of a package: its output and, by name, the closure ids of what it depends on itself.

    SHA-256 in hexadecimal over the canonical JSON of both. `output` None is a package without one.
    """
    return hashlib.sha256(msgspec.json.encode([output, dependencies], order="deterministic")).hexdigest()
