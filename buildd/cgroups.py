"""The one door to cgroup v2: a group for each build, whose limits the kernel keeps.

systemd delegates a group to us (`Delegate=yes`). The kernel gives controllers only to the children of a group that
has no processes of its own, so the daemon moves into the leaf `daemon`, and each build gets `build-<id>` beside it.

A process that is in a group leaves it by moving to another one, for which it would have to see the file system of
cgroups: builds in a sandbox do not. So a group holds everything that its build started, whatever it did to hide.

Invariant: nothing outside of our own group is touched; a build's group is removed with all that is in it.
Semantics and file names: Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog
import trio
from msgspec import Struct

log = structlog.get_logger()

CONTROLLERS = ("cpu", "memory", "pids")
_LEAF = "daemon"
_BUILD = "build-"
_PERIOD_US = 100_000
_DAEMON_WEIGHT = "1000"
"""Of processor time; builds have 100 each, as the kernel gives it."""
_OPEN_S = 0.005
_REMOVE_WITHIN_S = 5.0
_ENTER = 'echo 0 >"$1/cgroup.procs" || exit 125; shift; exec "$@"'
"""Shell text that moves itself into a group and becomes the command: nothing is ever started outside of it."""


class GroupLimits(Struct, frozen=True, kw_only=True):
    """0 sets none."""

    memory: int = 0
    """Bytes, what the kernel holds for the group included."""
    cpu: float = 0.0
    """Processors."""
    pids: int = 0
    """Processes and threads."""


class Events(Struct, frozen=True, kw_only=True):
    """How often limits were hit."""

    oom_kills: int = 0
    """Processes that were killed for want of memory, the group's or the machine's."""
    limit_reached: int = 0
    """Times that the group itself had no more memory to give."""
    pids_refused: int = 0


class Cgroup:
    """The group of one build. Methods raise OSError only where they say so."""

    def __init__(self, directory: Path, controllers: frozenset[str]) -> None:
        self.directory = directory
        self.controllers = controllers

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in this group."""
        return ["/bin/sh", "-c", _ENTER, "buildd-cgroup", str(self.directory), *argv]

    def pids(self) -> list[int]:
        """Processes in the group, those of groups below it included."""
        return [pid for place in self._places() for pid in map(int, _read(place / "cgroup.procs").split()) if pid]

    def memory_bytes(self) -> int:
        """What is charged to the group now; 0 without the controller."""
        return _number(_read(self.directory / "memory.current"))

    def memory_peak_bytes(self) -> int:
        """The most that was ever charged; 0 where the kernel (before 5.19) does not say."""
        return _number(_read(self.directory / "memory.peak"))

    def cpu_s(self) -> float:
        """Processor time of everything that was ever in the group."""
        return _table(_read(self.directory / "cpu.stat")).get("usage_usec", 0) / 1e6

    def events(self) -> Events:
        memory = _table(_read(self.directory / "memory.events"))
        pids = _table(_read(self.directory / "pids.events"))
        return Events(
            oom_kills=memory.get("oom_kill", 0), limit_reached=memory.get("oom", 0), pids_refused=pids.get("max", 0)
        )

    def signal(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to all processes, those that are being forked included."""
        try:
            _write(self.directory / "cgroup.kill", "1")
        except FileNotFoundError:  # before kernel 5.14, or the group is gone
            self.signal(signal.SIGKILL)
        except OSError as error:
            log.warning("cannot kill a cgroup as one", group=str(self.directory), error=str(error))
            self.signal(signal.SIGKILL)

    async def remove(self) -> None:
        """Kill what is in the group, and remove it. Raises OSError when it stays."""
        deadline = time.monotonic() + _REMOVE_WITHIN_S
        while not self._removed():
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "the cgroup is still in use", str(self.directory))
            self.kill()
            await trio.sleep(_OPEN_S)

    def _removed(self) -> bool:
        for place in reversed(list(self._places())):
            try:
                place.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                return False
        return True

    def _places(self) -> Iterator[Path]:
        """The group and those below it, from the top down."""
        for folder, names, _ in os.walk(self.directory):
            yield Path(folder)
            names.sort()


class Cgroups:
    """The groups of builds below one that is ours alone."""

    def __init__(self, directory: Path, controllers: frozenset[str]) -> None:
        self.directory = directory
        self.controllers = controllers

    def make(self, build: str, limits: GroupLimits) -> Cgroup:
        """A group for a build, with its limits. Raises OSError, with nothing left behind."""
        group = Cgroup(self.directory / f"{_BUILD}{build}", self.controllers)
        os.mkdir(group.directory)
        try:
            for name, value in self._settings(group, limits):
                _write(group.directory / name, value)
        except OSError:
            group.directory.rmdir()
            raise
        return group

    def _settings(self, group: Cgroup, limits: GroupLimits) -> Iterator[tuple[str, str]]:
        if "memory" in self.controllers:
            yield "memory.oom.group", "1"
            if limits.memory:
                yield "memory.max", str(limits.memory)
                if os.path.exists(group.directory / "memory.swap.max"):
                    yield "memory.swap.max", "0"  # what does not fit into memory is over the limit
        if "pids" in self.controllers and limits.pids:
            yield "pids.max", str(limits.pids)
        if "cpu" in self.controllers and limits.cpu:
            yield "cpu.max", f"{max(1000, round(limits.cpu * _PERIOD_US))} {_PERIOD_US}"

    def builds(self) -> dict[str, Cgroup]:
        """The groups that exist, by the id of their build."""
        found = {}
        for name in os.listdir(self.directory):
            if name.startswith(_BUILD):
                found[name.removeprefix(_BUILD)] = Cgroup(self.directory / name, self.controllers)
        return found


def find() -> tuple[Path | None, str]:
    """The group that can be divided among builds; None, and why there is none."""
    directory = own_group()
    if directory is None:
        return None, "there is no cgroup v2 hierarchy"
    if directory.name == _LEAF and _is_ours(directory.parent):
        directory = directory.parent  # it is divided: by us, or by an earlier daemon
    if not os.access(directory / "cgroup.procs", os.W_OK) or not os.access(directory, os.W_OK):
        return None, f"the cgroup {directory} is not delegated to this user"
    if not _is_ours(directory):
        return None, f"the cgroup {directory} has other processes too, and is not delegated"
    return directory, ""


def take_over() -> tuple[Cgroups | None, str]:
    """Divide our own group: the daemon moves into a leaf of it, and builds get others. None, and why, where it cannot.

    Only where the group was delegated to us, or holds nobody else.
    """
    directory, trouble = find()
    if directory is None:
        return None, trouble
    try:
        return _settle(directory), ""
    except OSError as error:
        return None, f"the cgroup {directory} cannot be divided: {error.strerror}"


def _settle(directory: Path) -> Cgroups:
    leaf = directory / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in _read(directory / "cgroup.procs").split():
        with contextlib.suppress(ProcessLookupError):
            _write(leaf / "cgroup.procs", pid)
    available = controllers(directory)
    wanted = [name for name in CONTROLLERS if name in available]
    if wanted:
        _write(directory / "cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
    if "cpu" in wanted:
        _write(leaf / "cpu.weight", _DAEMON_WEIGHT)
    return Cgroups(directory, frozenset(_read(directory / "cgroup.subtree_control").split()))


def controllers(directory: Path) -> frozenset[str]:
    """Those that a group can give to the ones below it."""
    return frozenset(_read(directory / "cgroup.controllers").split())


def own_group() -> Path | None:
    """The directory of the cgroup v2 that this process is in; None without the hierarchy."""
    mounted = re.search(
        r"^\d+ \d+ \S+ (?P<root>\S+) (?P<point>\S+) .* - cgroup2 ", _read(Path("/proc/self/mountinfo")), re.MULTILINE
    )
    own = re.search(r"^0::(?P<path>/.*)$", _read(Path("/proc/self/cgroup")), re.MULTILINE)
    if mounted is None or own is None:
        return None
    root, path = mounted["root"].rstrip("/"), own["path"].removesuffix(" (deleted)")
    if root and not path.startswith(f"{root}/") and path != root:
        return None
    return Path(mounted["point"]) / path.removeprefix(root).lstrip("/")


def _is_ours(directory: Path) -> bool:
    """Whether the group was handed to us: systemd marks that, and else nobody but us is in it."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    if not os.path.exists(directory / "cgroup.type"):  # the root: all of the machine
        return False
    return set(map(int, _read(directory / "cgroup.procs").split())) <= {os.getpid()}


def _read(path: Path) -> str:
    """Empty when there is no such file, or no such group any more."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


def _table(text: str) -> dict[str, int]:
    """A file of lines `name number`."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
