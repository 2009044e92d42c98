"""The cache key (D5): everything that can change a build's output, and nothing that cannot.

A key is the SHA-256 of the canonical JSON of its parts (sorted keys, no white space). The parts are stored
with the build, so that a difference can be named. Limits, priorities and worker counts are not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from buildd.model import Package

FORMAT = 1
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
    """Name of each direct and indirect dependency to the id of its output."""
    format: int = FORMAT


def key_parts(package: Package, *, environment: str, architecture: str, dependencies: Mapping[str, str]) -> KeyParts:
    """The parts of `package`'s key, given the output ids of the closure of its dependencies."""
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
