"""What a killed daemon left behind, ended and removed before the next one starts (R8).

Processes are found by the cookie in their environment, whose first part is derived from the state directory:
two daemons with different state directories never touch each other's. Directories are removed only where
their name is one that a build has.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from pathlib import Path

import structlog
import trio

from buildd.execute.proctree import kill_until_gone, with_cookie
from buildd.store.tree import remove_tree

log = structlog.get_logger()

_BUILD_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KILL_WITHIN_S = 5.0
DAEMON_COOKIE = "BUILDD_DAEMON"


def house(state_dir: Path) -> str:
    """The part of the cookie that all daemons on this state directory share."""
    return hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]


def new_instance(state_dir: Path) -> str:
    """A cookie value for one daemon process."""
    return f"{house(state_dir)}-{uuid.uuid4().hex[:12]}"


async def sweep(state_dir: Path, work_dir: Path) -> None:
    """End stray processes of earlier daemons and remove their work directories."""
    prefix = house(state_dir) + "-"

    def find() -> list[int]:
        return with_cookie(lambda value: value.startswith(prefix), DAEMON_COOKIE)

    strays = find()
    if strays:
        survivors = await kill_until_gone(find, within=_KILL_WITHIN_S)
        log.warning("stray processes of an earlier daemon were killed", pids=strays, survivors=survivors)
    removed = 0
    found = [state_dir / "prefix"]  # of plain processes, which this daemon need not use
    for directory in (work_dir, state_dir / "prefixes"):
        names = os.listdir(directory) if directory.is_dir() else ()
        found += [directory / name for name in names if _BUILD_ID.fullmatch(name)]
    for path in found:
        try:
            removed += await trio.to_thread.run_sync(remove_tree, path) > 0
        except OSError as error:
            log.error("a work directory of an earlier daemon stays", path=str(path), error=str(error))
    if removed:
        log.info("work directories of an earlier daemon were removed", count=removed)
