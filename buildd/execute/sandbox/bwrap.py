"""The default sandbox: bubblewrap, without privileges.

The build sees the system's /usr read-only, an allow-list of /etc (never keys, shadow or the daemon's own
files; see `Etc`), its own directory at /build, and its dependencies at $PREFIX. It has its own user, pid, ipc, uts and
network namespaces, uid 1000 with no capabilities, and no network outside the fetch phase. When bwrap or the
daemon dies, the kernel kills everything in the pid namespace.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path

import trio

from buildd.errors import BuildFailure
from buildd.execute.proctree import children, descendants, kill_until_gone, signal_all
from buildd.execute.sandbox import WORK_DIRECTORIES, Layout, Output, directory_below
from buildd.execute.sandbox.etc import Etc
from buildd.process import Process
from buildd.store import remains
from buildd.store.output import compose_prefix
from buildd.threads import in_thread

_ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "host.conf",
    "hosts",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "lsb-release",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "perl",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "rpc",
    "services",
    "sgml",
    "ssl/certs",
    "ssl/openssl.cnf",
    "xml",
)
_NETWORK_ETC = ("resolv.conf", "gai.conf")
_ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_USERS = "root:x:0:0:root:/:/usr/sbin/nologin\nbuild:x:1000:1000:build:/build/home:/bin/sh\nnobody:x:65534:65534::/:/\n"
_GROUPS = "root:x:0:\nbuild:x:1000:\nnogroup:x:65534:\n"

_ROOT, _OTHER_ROOT = "/build", "/rebuild"
"""Where builds find their directories, and where those do that verify earlier ones."""
_OWN = tuple(name for name in WORK_DIRECTORIES if name != "tmp")  # which is at /tmp


class BwrapTree:
    """bwrap outside, the driver as pid 1 of the namespace, and the build below it.

    The kernel ends a pid namespace with its pid 1, and lets nobody reap that before all others are gone: when
    bwrap has ended, nothing is left inside.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def pids(self, most: int = sys.maxsize) -> list[int]:
        return descendants(self._process.pid, most) if self._process.poll() is None else []

    def shm_bytes(self) -> int:
        for driver in children(self._process.pid) if self._process.poll() is None else ():
            try:
                found = os.statvfs(f"/proc/{driver}/root/dev/shm")
            except OSError:
                continue  # it is on its way out, or in
            return (found.f_blocks - found.f_bfree) * found.f_frsize
        return 0

    def terminate(self) -> None:
        signal_all(self.pids(), signal.SIGTERM)

    async def kill(self, *, within: float) -> list[int]:
        if self._process.poll() is not None:
            return []
        inside = children(self._process.pid)
        signal_all(inside, signal.SIGKILL)
        if inside:
            with trio.move_on_after(within / 2):
                await self._process.wait()
        if self._process.exit is None:
            self._process.kill()
            await self._process.wait()

        async def left() -> list[int]:
            return inside

        return await kill_until_gone(left, within=within / 2)


class BwrapSandbox:
    name = "bwrap"
    weaker: tuple[str, ...] = ()
    counts_processes = True  # in its user namespace, since kernel 5.14

    def __init__(self, program: str, *, prefix: str, state_dir: Path, readonly_paths: Sequence[str] = ()) -> None:
        """`program` is the path of bwrap; `state_dir` takes the composed prefixes, beside the artifacts."""
        self._prefix = prefix
        self._root = _ROOT
        self._below = lru_cache(maxsize=10_000)(partial(directory_below, prefix=prefix))
        """What is there of an output does not change, and a build may need hundreds."""
        self._prefixes = state_dir / "prefixes"
        self._prefixes.mkdir(parents=True, exist_ok=True)
        self._etc = Etc(
            state_dir / "sandbox" / "etc",
            _ETC,
            own={"passwd": _USERS, "group": _GROUPS},
            bound=[*_NETWORK_ETC, *(path.removeprefix("/etc/") for path in readonly_paths if path.startswith("/etc/"))],
        )
        self._base = [
            program,
            "--die-with-parent",
            "--unshare-user",
            "--uid",
            "1000",
            "--gid",
            "1000",
            "--unshare-pid",
            "--as-pid-1",
            "--unshare-ipc",
            "--unshare-uts",
            "--hostname",
            "buildd",
            "--ro-bind",
            "/usr",
            "/usr",
        ]
        for name in _ROOT_LINKS:
            path = Path("/") / name
            if path.is_symlink():
                self._base += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                self._base += ["--ro-bind", str(path), str(path)]
        self._base += ["--ro-bind", str(self._etc.directory), "/etc"]
        self._base += ["--proc", "/proc", "--dev", "/dev", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]
        # what fills /dev/shm is counted, and nothing else in /dev can be filled
        self._shm = ["--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
        self.contains = not readonly_paths  # a socket in one of them takes descriptors
        self._further = _binds(readonly_paths)
        self._further_targets = self._further[2::3]

    def refresh(self) -> None:
        self._etc.refresh()

    def elsewhere(self) -> BwrapSandbox:
        other = copy.copy(self)
        other._root = _OTHER_ROOT
        return other

    def layout(self, work: Path) -> Layout:
        root = self._root
        return Layout(
            src=f"{root}/src",
            build=f"{root}/build",
            dest=f"{root}/dest",
            home=f"{root}/home",
            tmp="/tmp",
            prefix=self._prefix,
        )

    def argv(
        self, command: Sequence[str], *, work: Path, prefix: Path | None, network: bool, shm_bytes: int = 0
    ) -> list[str]:
        self._check_mount_points(work)
        dependencies = ["--ro-bind", str(prefix), self._prefix] if prefix is not None else ["--dir", self._prefix]
        return [
            *self._base,
            *(("--size", str(shm_bytes)) if shm_bytes else ()),
            *self._shm,
            *(part for name, path in self._etc.binds.items() for part in ("--ro-bind", path, f"/etc/{name}")),
            *(_binds(f"/etc/{name}" for name in _NETWORK_ETC) if network else ("--unshare-net",)),
            *dependencies,
            # each by itself, below a directory that is not the build's: none can be renamed, or be replaced by a link
            *(part for name in _OWN for part in ("--bind", f"{work}/{name}", f"{self._root}/{name}")),
            "--bind",
            f"{work}/tmp",
            "/tmp",
            *self._further,  # after /tmp, since some may be below it
            "--remount-ro",
            "/",
            "--chdir",
            f"{self._root}/src",
            "--",
            *command,
        ]

    def _check_mount_points(self, work: Path) -> None:
        """bwrap makes the mount points of `readonly_paths` below /tmp and /build, in directories that an earlier
        session could write: through a link there it would make them elsewhere. Raises BuildFailure for one."""
        inside = {"/tmp": work / "tmp", **{f"{self._root}/{name}": work / name for name in _OWN}}
        for target in self._further_targets:
            for mount, directory in inside.items():
                if not target.startswith(f"{mount}/"):
                    continue
                for part in target.removeprefix(f"{mount}/").split("/"):
                    directory = directory / part
                    if directory.is_symlink():
                        raise BuildFailure("sandbox_failed", f"the build put a link in the way of {target}")

    def tree(self, process: Process, build: str) -> BwrapTree:
        return BwrapTree(process)

    @asynccontextmanager
    async def prefix(self, build: str, outputs: Sequence[Output]) -> AsyncIterator[Path | None]:
        below = [(output.name, self._below(output)) for output in outputs]
        trees = [(name, path) for name, path in below if path is not None]
        if len(trees) <= 1:
            yield trees[0][1] if trees else None
            return
        directory = self._prefixes / build
        try:
            await in_thread(partial(compose_prefix, trees, directory, check=trio.from_thread.check_cancelled))
            yield directory
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await in_thread(remains.remove, directory, abandon_on_cancel=True)


def _binds(paths: Iterable[str]) -> list[str]:
    """--ro-bind for each path that exists, symbolic links resolved on the outside."""
    result: list[str] = []
    for path in paths:
        if os.path.exists(path):
            result += ["--ro-bind", os.path.realpath(path), path]
    return result
