"""Sandboxes: how the commands of a build are kept apart from the machine (R1).

A back end answers two questions: where things are as the build sees them (`Layout`), and what command line
runs a command inside (`argv`). It also knows how to end everything that a session started (`Tree`).
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from buildd.errors import BuildFailure
from buildd.process import Process

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


WORK_DIRECTORIES = ("src", "build", "dest", "home", "tmp")
"""What a build's directory on the host holds."""


class Layout(Struct, frozen=True, kw_only=True):
    """Paths of a build as the build sees them."""

    src: str
    build: str
    dest: str
    home: str
    tmp: str
    prefix: str


class Output(Struct, frozen=True, kw_only=True):
    """What a dependency left behind."""

    name: str
    output_id: str
    tree: Path
    """Its staged tree, as `stage` left it below $DESTDIR."""


def directory_below(output: Output, prefix: str) -> Path | None:
    """The directory of an output that belongs at `prefix`; None when the output has nothing there.

    An output is foreign: a link on the way could lead anywhere on this machine. Raises BuildFailure for one.
    """
    path = output.tree
    if not path.is_dir():
        message = f"the artifact of {output.name} is gone: {output.output_id}"
        raise BuildFailure("sandbox_failed", message, transient=True)
    for part in prefix.strip("/").split("/"):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(mode):
            raise BuildFailure(
                "phase_failed", f"in the output of {output.name}, {path.name} of $PREFIX is no directory"
            )
    return path


class Tree(Protocol):
    """The processes of one session, from the outside."""

    def pids(self, most: int = sys.maxsize) -> list[int]:
        """The processes that belong to the build itself; when there are more than `most`, at least so many of them."""

    def shm_bytes(self) -> int:
        """Memory that the session's own /dev/shm takes; 0 where it has none."""

    def terminate(self) -> None:
        """SIGTERM to each of them."""

    async def kill(self, *, within: float) -> list[int]:
        """End all of them for good; the pids of those that survived `within` seconds (none, normally)."""


class Sandbox(Protocol):
    name: str
    weaker: tuple[str, ...]
    """What this back end does not protect from, in words for the administrator."""
    contains: bool
    """Whether a session that ended, and had no network, can have left no process, and no open file in other hands."""

    def layout(self, work: Path) -> Layout:
        """Where things are for a build whose directory on the host is `work`."""

    def refresh(self) -> None:
        """Show what has changed on the machine to the sessions that follow. Blocks. Raises OSError."""

    def elsewhere(self) -> Sandbox:
        """The same sandbox, in which builds see their directories at other paths: to verify earlier builds."""

    counts_processes: bool
    """Whether the limit of processes (RLIMIT_NPROC) counts those of a session alone, and not the user's."""

    def argv(
        self, command: Sequence[str], *, work: Path, prefix: Path | None, network: bool, shm_bytes: int = 0
    ) -> list[str]:
        """The command line that runs `command` inside.

        `prefix` is the host's directory to see at $PREFIX; `shm_bytes` bounds a /dev/shm of the session's own, 0 does
        not.
        """

    def tree(self, process: Process, build: str) -> Tree:
        """The processes of a session whose first process is `process`."""

    def prefix(self, build: str, outputs: Sequence[Output]) -> AbstractAsyncContextManager[Path | None]:
        """The outputs as one read-only prefix while the context lasts; None when there are none.

        Raises BuildFailure when two of them have the same path.
        """
