"""What a daemon leaves on the machine: files, processes, mounts and control groups that are not meant to stay.

For files there is no list of what temporary ones are called, which would miss the next that somebody adds, but one
of what is meant to stay: everything else is left over.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path

from harness import Daemon

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ARTIFACT = r"state/artifacts/[0-9a-f]{2}/[0-9a-f]{64}"
_STAYS = re.compile(
    "|".join(
        (
            r"state/(artifacts|logs|releases|work|prefixes|prefix|sandbox)",
            r"state/(lock|buildd\.db(-wal|-shm)?)",
            r"state/artifacts/([0-9a-f]{2}|\.damaged)",
            rf"{_ARTIFACT}(/(tree(/.*)?|builds(/{_UUID}\.json)?|manifest\.json|pin\.json|[^./][^/]*\.tar\.zst))?",
            rf"state/logs/[0-9a-f]{{2}}(/{_UUID}\.log)?",
            r"state/releases/[0-9]+(/[^./][^/]*)?",
            r"state/sandbox/etc(/.*)?",
            r"cache/(repos|repos/\.incoming|distfiles|snapshots|discoveries)",
            r"cache/repos/[^./][^/]*-[0-9a-f]{12}\.git(/.*)?",
            r"cache/snapshots/[0-9a-f]{24}\.git(/.*)?",
            r"cache/distfiles/[0-9a-f]{64}",
            r"cache/discoveries/[0-9a-f]{32}\.revision",
            r"cache/maps(/\.incoming|/blobs\.db(-wal|-shm|\.lock)?)?",
            r"cache/maps/[^./][^/]*-[0-9a-f]{12}\.git(/[0-9a-f]{40}(/[^./][^/]*)?)?",
            r"run/control\.sock",
        )
    )
)
_COOKIE = re.compile(rb"BUILDD_BUILD=([0-9a-f-]{36})")
_KEPT_WHILE_UP = re.compile(r"state/(life\.json|work/\.spare-[0-9]+(/(src|build|dest|home|tmp))?)")
_UNFINISHED_IN_GIT = re.compile(r"\.git/(.*/)?(tmp_[^/]*|\.tmp-[^/]*|[^/]*\.(lock|keep|new|tmp))")


def gone(find: Callable[[], Collection[str]], what: str, *, within: float = 5.0) -> None:
    """Wait until nothing is found any more; AssertionError that names what there still is."""
    deadline = time.monotonic() + within
    while found := find():
        assert time.monotonic() < deadline, f"{what} left after {within:g} s: {sorted(found)}"
        time.sleep(0.02)


def files(daemon: Daemon, *, up: bool = False) -> set[str]:
    """Paths of left over files and directories, seen from the home; `up` while the daemon runs."""
    found: set[str] = set()
    stack = [daemon.state_dir, daemon.cache_dir, daemon.runtime_dir]
    while stack:
        directory = stack.pop()
        try:
            entries = list(os.scandir(directory))
        except FileNotFoundError:
            continue
        for entry in entries:
            name = str(Path(entry.path).relative_to(daemon.home))
            stays = _STAYS.fullmatch(name) is not None and _UNFINISHED_IN_GIT.search(name) is None
            if not stays and not (up and _KEPT_WHILE_UP.fullmatch(name)):
                found.add(name)
            elif entry.is_dir(follow_symlinks=False):
                stack.append(Path(entry.path))
    return found


def processes(daemon: Daemon) -> list[str]:
    """Living processes that name the daemon's home or are of one of its builds: what they are."""
    home, builds = os.fsencode(daemon.home), daemon.build_ids()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            environment = Path("/proc", name, "environ").read_bytes()
            command = Path("/proc", name, "cmdline").read_bytes()
        except OSError:  # it went in this moment
            continue
        cookie = _COOKIE.search(environment)
        if home in environment or home in command or (cookie is not None and cookie[1].decode() in builds):
            found.append(f"{name}: {command[:200]!r}")
    return found


def mounts(daemon: Daemon) -> list[str]:
    """Mounts below the daemon's home, or of something there."""
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    return [line for line in lines if str(daemon.home) in line]


def control_groups(daemon: Daemon) -> list[str]:
    """Control groups that are named after one of the daemon's builds."""
    builds = daemon.build_ids()
    found = []
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            build = re.search(_UUID, name)
            if build is not None and build[0] in builds:
                found.append(os.path.join(directory, name))
    return found
