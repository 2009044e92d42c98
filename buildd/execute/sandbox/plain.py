"""The fallback: plain processes, for machines where no namespace can be made.

Builds run as the daemon's own user and see the whole machine and its network; what is promised all the same
is that they end. The daemon is their subreaper, each process carries a cookie in its environment, and a
warden (`buildd.execute.warden`) ends them when the daemon itself is killed.

Without mount namespaces $PREFIX must be one real directory for all builds: `SharedPrefix` links into it what
the running builds depend on, and lets a build wait while another one needs something else at the same path.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

import trio

from buildd.errors import BuildFailure
from buildd.execute.proctree import (
    adopted,
    become_subreaper,
    cookie_of,
    cookies,
    descendants,
    kill_until_gone,
    processes,
    reap_adopted,
    session_of,
    signal_all,
    started_at,
)
from buildd.execute.sandbox import Layout, Output, directory_below
from buildd.process import Process
from buildd.store.tree import remove_tree
from buildd.threads import Shared, in_thread


class PlainTree:
    """What descends from the driver, what carries the build's cookie, and orphans that nobody else can have left.

    An orphan without a cookie (`env -i setsid …`) is handed to the daemon, but whose it was cannot be told while
    several builds run: it goes with the last of them.
    """

    def __init__(self, process: Process, build: str, active: set[str], cookies: Shared[dict[int, str]]) -> None:
        """`active` holds the builds that have a tree; this one adds itself, and leaves with `kill`.

        `cookies` tells whose each process of the machine is.
        """
        self._process = process
        self._build = build
        self._active = active
        self._cookies = cookies
        active.add(build)

    def pids(self, most: int = sys.maxsize) -> list[int]:
        if self._process.poll() is not None:
            return []
        found = descendants(self._process.pid, most)
        for orphan in adopted():
            if len(found) >= most:
                break
            if session_of(orphan) == self._process.pid or cookie_of(orphan) == self._build:
                found += [orphan, *descendants(orphan, most - len(found))]
        return found

    def shm_bytes(self) -> int:
        return 0

    def terminate(self) -> None:
        signal_all([self._process.pid, *self.pids()], signal.SIGTERM)  # the driver too: no further phase

    async def kill(self, *, within: float) -> list[int]:
        self._signal_group(signal.SIGSTOP)  # nothing more comes while we look
        try:
            below = {pid: started_at(pid) for pid in self.pids()}
        except OSError:  # no descriptor is left to look; what carries the cookie is found later
            below = {}
        self._signal_group(signal.SIGKILL)
        await self._process.wait()
        self._active.discard(self._build)

        async def left() -> list[int]:
            still = [pid for pid, start in below.items() if start and started_at(pid) == start]
            return still + await self._left()

        return await kill_until_gone(left, within=within)

    def _signal_group(self, number: int) -> None:
        """Signal the driver and what has stayed in its process group, as one."""
        if self._process.poll() is None:  # else the number may be another's by now
            os.killpg(self._process.pid, number)

    async def _left(self) -> list[int]:
        reap_adopted()
        found = [pid for pid, build in (await self._cookies.get()).items() if build == self._build]
        if not self._active:
            found += [pid for orphan in adopted() for pid in (orphan, *descendants(orphan))]
        return found


class SharedPrefix:
    """Hard links of the outputs that running builds use, in one directory.

    Invariant: a path is there exactly while a build holds an output that has it, and all holders of a path
    agree on the output it comes from.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._holders: dict[str, int] = {}
        self._paths: dict[str, list[str]] = {}
        self._outputs: dict[str, Output] = {}
        self._changed = trio.Event()
        remove_tree(directory)
        directory.mkdir(parents=True)

    @asynccontextmanager
    async def hold(self, outputs: Sequence[Output]) -> AsyncIterator[None]:
        """Link `outputs` in for as long as the context lasts. Raises BuildFailure when they collide, or OSError."""
        paths = await in_thread(self._list, outputs)
        claims = _Claims()
        for output in outputs:
            other = claims.add(output, paths[output.output_id])
            if other is not None:
                raise BuildFailure(
                    "phase_failed",
                    f"{other[0].name} and {output.name} both have {other[1]}",
                    hint="two dependencies of one package cannot install the same path",
                )
        while self._conflict(outputs, paths):
            await self._changed.wait()
        held: list[Output] = []
        try:
            for output in outputs:
                held.append(output)
                self._acquire(output, paths[output.output_id])
            yield
        finally:
            for output in held:
                self._release(output.output_id)

    def _list(self, outputs: Sequence[Output]) -> dict[str, list[str]]:
        """The paths of each output below the prefix, by output id."""
        found = {}
        for output in outputs:
            root = directory_below(output, str(self.directory))
            found[output.output_id] = _files_below(root) if root is not None else []
        return found

    def _conflict(self, outputs: Sequence[Output], paths: dict[str, list[str]]) -> bool:
        """Whether a running build holds another output with one of these paths."""
        claims = _Claims()
        for output in self._outputs.values():
            claims.add(output, self._paths[output.output_id])
        return any(claims.add(output, paths[output.output_id]) is not None for output in outputs)

    def _acquire(self, output: Output, paths: list[str]) -> None:
        count = self._holders.get(output.output_id, 0)
        self._holders[output.output_id] = count + 1
        if count:
            return
        linked = self._paths.setdefault(output.output_id, [])
        self._outputs[output.output_id] = output
        source = directory_below(output, str(self.directory))
        for path in paths:
            assert source is not None
            target = self.directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source / path, target, follow_symlinks=False)
            linked.append(path)

    def _release(self, output_id: str) -> None:
        self._holders[output_id] -= 1
        if self._holders[output_id]:
            return
        del self._holders[output_id]
        self._outputs.pop(output_id, None)
        for path in self._paths.pop(output_id, ()):
            target = self.directory / path
            target.unlink(missing_ok=True)
            self._remove_empty(target.parent)
        self._changed.set()
        self._changed = trio.Event()

    def _remove_empty(self, directory: Path) -> None:
        """Remove a directory, and those above it, up to the prefix, as far as they are empty."""
        while directory != self.directory:
            try:
                directory.rmdir()
            except OSError:
                return
            directory = directory.parent


class _Claims:
    """Which output has which path, and which directories that makes."""

    def __init__(self) -> None:
        self._files: dict[str, Output] = {}
        self._directories: dict[str, Output] = {}

    def add(self, output: Output, paths: Sequence[str]) -> tuple[Output, str] | None:
        """Note an output's paths; the other output and the path of the first clash, None without one."""
        for path in paths:
            above = [str(parent) for parent in PurePosixPath(path).parents][:-1]
            claimed = [(self._files.get(p), p) for p in (path, *above)] + [(self._directories.get(path), path)]
            for other, where in claimed:
                if other is not None and other.output_id != output.output_id:
                    return other, where
            self._files[path] = output
            for directory in above:
                self._directories.setdefault(directory, output)
        return None


def _files_below(root: Path) -> list[str]:
    """Relative paths of all files and links below a directory; empty when there is none."""
    found: list[str] = []
    for directory, names, files in os.walk(root):
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        found.extend(os.path.relpath(os.path.join(directory, name), root) for name in (*files, *links))
    return found


class PlainSandbox:
    name = "plain"
    weaker: tuple[str, ...] = (
        "builds are plain processes: they see the whole machine, its network and each other, "
        "and run as the daemon's user",
    )
    contains = False
    counts_processes = False

    def __init__(self, *, state_dir: Path) -> None:
        become_subreaper()
        self._prefix = SharedPrefix(state_dir / "prefix")
        self._active: set[str] = set()
        self._cookies = Shared(lambda: cookies(processes()))

    def refresh(self) -> None:
        """Builds see the machine itself."""

    def elsewhere(self) -> PlainSandbox:
        return self  # each build sees the directory that it has on the host

    def layout(self, work: Path) -> Layout:
        return Layout(
            src=str(work / "src"),
            build=str(work / "build"),
            dest=str(work / "dest"),
            home=str(work / "home"),
            tmp=str(work / "tmp"),
            prefix=str(self._prefix.directory),
        )

    def argv(
        self, command: Sequence[str], *, work: Path, prefix: Path | None, network: bool, shm_bytes: int = 0
    ) -> list[str]:
        # the driver needs a working directory inside `work`, and Popen's cwd is the daemon's business
        return ["/usr/bin/env", "-C", str(work / "src"), *command]

    def tree(self, process: Process, build: str) -> PlainTree:
        return PlainTree(process, build, self._active, self._cookies)

    @asynccontextmanager
    async def prefix(self, build: str, outputs: Sequence[Output]) -> AsyncIterator[Path | None]:
        async with self._prefix.hold(outputs):
            yield self._prefix.directory


def warden_argv(instance: str) -> list[str]:
    """Command line of the process that ends the builds of a daemon that was killed; stdin is its life line."""
    return [sys.executable, "-I", "-S", str(Path(__file__).parent.parent / "warden.py"), instance]
