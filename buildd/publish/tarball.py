"""Binary tarballs of artifacts (P3): `NAME-VERSION.tar.zst` with the manifest, kept beside the artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from buildd.store.artifacts import ArtifactStore
from buildd.execute.tarball import write_tar_zst
from buildd.execute.tree import uncancelled


def tarball_name(name: str, version: str) -> str:
    return f"{name}-{version.replace(':', '_')}.tar.zst"


def pack(
    artifacts: ArtifactStore, output: str, name: str, version: str, *, check: Callable[[], None] = uncancelled
) -> Path:
    """The tarball of an artifact, written unless it is there already. Blocks; `check` may raise to end it.

    Everything in it is below the directory `NAME-VERSION`. Raises NotFound, BuildFailure or OSError.
    """
    target = artifacts.packed(output, tarball_name(name, version))
    if not target.exists():
        manifest = artifacts.manifest(output)
        write_tar_zst(
            artifacts.tree(output),
            artifacts.listing(output),
            target,
            prefix=f"{name}-{version}",
            mtime=0,
            manifest=msgspec.json.encode(manifest),
            check=check,
        )
    return target
