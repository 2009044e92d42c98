"""Reading code: questions about one commit of a repository, answered in worker threads.

Whatever is in a repository, a question ends within a time limit, or as soon as nobody waits for it; few are worked on
at a time, for each keeps Python busy; and the repository is in use meanwhile, so that it stays where it is.

Names are shown as UTF-8, with U+FFFD for what is not. A path that was shown so is found again.
"""

from __future__ import annotations

import difflib
import posixpath
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import trio

from buildd.errors import BuilddError, InvalidInput, NotFound, Refused
from buildd.protocol import RevisionParams
from buildd.repos.clones import Clones
from buildd.repos.trees import DIRECTORY, LINK, SUBMODULE, Child, GitStore
from buildd.threads import in_thread

T = TypeVar("T")

_SIDE_BY_SIDE = 2
_TIME_LIMIT_S = 20.0
_MAX_TARGET = 4096
"""Bytes of what a link may name: PATH_MAX."""
_MAX_COMPARED = 2000
"""Names that are looked at for one that is like a missing one."""


class Found(NamedTuple):
    path: str
    """As it is shown; empty for the top."""
    mode: int
    id: str


class View:
    """One commit of an open repository."""

    def __init__(self, store: GitStore, revision: str, check: Callable[[], None]) -> None:
        """`check` raises when the answer is not wanted any more, or takes too long. Raises NotFound, InvalidInput."""
        self.store = store
        self.check = check
        self.commit = store.resolve(revision or None)

    def find(self, path: str) -> Found:
        """What is at `path`. Raises NotFound with near matches, InvalidInput."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts or path.startswith("/"):
            raise InvalidInput(f"the path {path[:200]!r} is not below the repository's top")
        here = Found("", DIRECTORY, self.store.subtree(self.commit, ""))
        for part in parts:
            if here.mode != DIRECTORY:
                raise self.unfit(here)
            self.check()
            children = self.store.children(here.id)
            child = _named(children, part)
            if child is None:
                where = f"{here.path!r} of " if here.path else ""
                raise NotFound(
                    f"there is no {part[:200]!r} in {where}commit {self.commit[:12]}", hint=_near(children, part)
                )
            here = Found(posixpath.join(here.path, shown(child.name)), child.mode, child.id)
        return here

    def directory(self, path: str) -> Found:
        """The directory at `path`, empty for the top. Raises NotFound, InvalidInput."""
        found = self.find(path)
        if found.mode != DIRECTORY:
            raise self.unfit(found)
        return found

    def file(self, path: str) -> Found:
        """The regular file at `path`. Raises NotFound, InvalidInput."""
        found = self.find(path)
        if found.mode in (DIRECTORY, LINK, SUBMODULE):
            raise self.unfit(found)
        return found

    def unfit(self, found: Found) -> BuilddError:
        """That this is something else than what was asked for."""
        path = found.path
        if found.mode == DIRECTORY:
            return InvalidInput(
                f"{path!r} is a directory" if path else "no file was named", hint="`buildctl repo tree` lists it."
            )
        if found.mode == SUBMODULE:
            return InvalidInput(
                f"{path!r} is a submodule: commit {found.id[:12]} of another repository",
                hint="Clone that repository; .gitmodules names it.",
            )
        if found.mode == LINK:
            target = shown(self.store.read_blob(found.id, _MAX_TARGET))
            meant = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            outside = meant.startswith(("/", "../")) or meant == ".."
            return InvalidInput(
                f"{path!r} is a link to {target!r}",
                hint="It leads out of the repository." if outside else f"Ask for {meant!r}.",
            )
        return InvalidInput(f"{path!r} is a file", hint="`buildctl repo cat` shows it.")


class Reader:
    def __init__(self, clones: Clones) -> None:
        self._clones = clones
        self._turns = trio.CapacityLimiter(_SIDE_BY_SIDE)

    async def read(self, params: RevisionParams, look: Callable[[View], T]) -> T:
        """What `look` finds in the commit that is meant. Raises what it does, NotFound, InvalidInput, Refused."""
        with self._clones.use(params.repo) as repository:
            work = partial(_read, Path(repository.path), params.revision, look)
            return await in_thread(work, limiter=self._turns)


def _read(path: Path, revision: str, look: Callable[[View], T]) -> T:
    """In a worker thread."""
    until = time.monotonic() + _TIME_LIMIT_S

    def check() -> None:
        trio.from_thread.check_cancelled()
        if time.monotonic() > until:
            raise Refused(
                f"the answer takes longer than {_TIME_LIMIT_S:g} s to find", hint="Ask for a directory below."
            )

    with GitStore(path) as store:
        return look(View(store, revision, check))


def shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _named(children: Sequence[Child], name: str) -> Child | None:
    wanted = name.encode("utf-8", "surrogateescape")
    exact = next((child for child in children if child.name == wanted), None)
    if exact is None and "\N{REPLACEMENT CHARACTER}" in name:
        return next((child for child in children if shown(child.name) == name), None)
    return exact


def _near(children: Sequence[Child], name: str) -> str:
    names = [shown(child.name) for child in children[:_MAX_COMPARED]]
    alike = [other for other in names if other.lower() == name.lower()]
    alike += [other for other in difflib.get_close_matches(name[:200], names, n=5) if other not in alike]
    return f"Did you mean {', '.join(alike)}?" if alike else "`buildctl repo tree` lists what there is."
