"""What a run hands out: the packed packages of the run in one directory, with their checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from buildd.model import Package
from buildd.publish.tarball import tarball_name
from buildd.store.artifacts import ArtifactStore, file_digest
from buildd.store.tree import remove_tree, sync_directory, uncancelled, write_file


def collect_release(
    directory: Path,
    made: Sequence[tuple[Package, str]],
    artifacts: ArtifactStore,
    *,
    check: Callable[[], None] = uncancelled,
) -> int:
    """Link every packed package of the run into `directory` and write SHA256SUMS; the number of files.

    `made` are the packages with the ids of their outputs. Blocks; `check` may raise to end it. Raises OSError. The
    directory is made anew as a whole and appears, durable, by one rename.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    remove_tree(temporary)
    temporary.mkdir(parents=True)
    sums = []
    for package, output in made:
        check()
        if "tar" not in package.formats:
            continue
        name = tarball_name(package.name, package.version)
        source = artifacts.packed(output, name)
        if source.exists():
            os.link(source, temporary / name)
            sums.append(f"{file_digest(source)}  {name}\n")
    write_file(temporary / "SHA256SUMS", "".join(sorted(sums)).encode())
    sync_directory(temporary)
    remove_tree(directory)
    temporary.rename(directory)
    sync_directory(directory.parent)
    return len(sums)
