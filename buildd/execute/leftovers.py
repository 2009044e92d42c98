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
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import structlog
from msgspec import Struct

from buildd.cgroups import Cgroups
from buildd.execute.proctree import cookies, kill_until_gone, signal_all, with_cookie
from buildd.store.tree import remove_tree
from buildd.threads import in_thread

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


class Found(Struct, frozen=True, kw_only=True):
    """What is there, by the id of the build that it belongs to."""

    processes: dict[str, list[int]]
    directories: frozenset[str]
    cgroups: frozenset[str]


class Leftovers:
    """Everything that builds of daemons on one state directory may leave on the machine. Methods block."""

    def __init__(self, state_dir: Path, work_dir: Path, groups: Cgroups | None) -> None:
        self._house = house(state_dir) + "-"
        self._places = (work_dir, state_dir / "prefixes")
        self._shared_prefix = state_dir / "prefix"
        self._groups = groups

    def find(self) -> Found:
        processes: dict[str, list[int]] = {}
        for pid, build in cookies(self.pids()).items():
            processes.setdefault(build, []).append(pid)
        groups = self._groups.builds() if self._groups is not None else {}
        return Found(processes=processes, directories=frozenset(self.directories()), cgroups=frozenset(groups))

    def pids(self) -> list[int]:
        """The processes of all builds."""
        return with_cookie(lambda value: value.startswith(self._house), DAEMON_COOKIE)

    def directories(self) -> Iterator[str]:
        """The builds that have directories."""
        for place in self._places:
            yield from filter(_BUILD_ID.fullmatch, os.listdir(place) if place.is_dir() else ())

    def signal(self, builds: Collection[str], number: int) -> None:
        signal_all([pid for build, pids in self.find().processes.items() if build in builds for pid in pids], number)

    def remove_directories(self, build: str) -> None:
        for place in self._places:
            self._remove(place / build)

    def _remove(self, path: Path) -> None:
        try:
            remove_tree(path)
        except OSError as error:
            log.error("a directory of a build that has ended stays", path=str(path), error=str(error))

    async def remove_cgroup(self, build: str) -> None:
        group = self._groups.builds().get(build) if self._groups is not None else None
        if group is None:
            return
        try:
            await group.remove()
        except OSError as error:
            log.error("the cgroup of a build that has ended stays", path=str(group.directory), error=str(error))

    async def remove_all(self) -> None:
        """End all processes, and remove all that is there: before this daemon has builds of its own."""
        found = await in_thread(self.find)
        for build in found.cgroups:
            await self.remove_cgroup(build)
        strays = await in_thread(self.pids)
        if strays:
            survivors = await kill_until_gone(partial(in_thread, self.pids), within=_KILL_WITHIN_S)
            log.warning("stray processes of an earlier daemon were killed", pids=strays, survivors=survivors)
        for build in found.directories:
            await in_thread(self.remove_directories, build)
        await in_thread(self._remove, self._shared_prefix)  # of plain processes, which this daemon need not use
        if found.directories or found.cgroups:
            log.info(
                "what builds of an earlier daemon left was removed",
                directories=len(found.directories),
                cgroups=len(found.cgroups),
            )
