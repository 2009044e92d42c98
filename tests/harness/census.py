"""What a daemon holds at a moment, seen from outside: open files, threads, children, memory, and what lies around.

For proof that nothing leaks: `take` before and after, and `excess` names what is there that was not.

What is compared exactly: the link targets in /proc/PID/fd (so a pipe or socket that was exchanged for another one is
seen, not only a number that changed), the children with their command lines, zombies among them, and every path below
the daemon's directories that is not the record of something the database knows. Threads are compared by number, since
workers of the pool come and go.

What a build is meant to leave is no leak, and is accounted for one by one: the log of each build in the database, each
artifact that a build in the database made, with its receipts, each clone of a repository in the database, up to
`SPARES` empty work directories, up to `KEEPSAKES` files of recipes that were read, and the log of the database of what
maps know of files: a map process that is killed leaves it, and the next one takes it up.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from harness.daemon import Daemon
from harness.processes import command_line, resident_bytes, until

SPARES = 16
"""Empty work directories that may be kept for reuse."""
KEEPSAKES = 64
"""Files in which the recipes of a repository may be kept for the next start."""
_LISTENS = 0x10000
"""__SO_ACCEPTCON of the kernel."""


class Census(Struct, frozen=True, kw_only=True):
    descriptors: Counter[str]
    """Link targets of /proc/PID/fd."""
    threads: int
    children: Counter[str]
    """Command lines of all processes below the daemon; a zombie has none."""
    files: frozenset[str]
    """Paths that nothing accounts for."""
    rss: int

    def kinds(self) -> Counter[str]:
        """How many descriptors there are of each kind."""
        found: Counter[str] = Counter()
        for target, number in self.descriptors.items():
            found[kind_of(target)] += number
        return found


def kind_of(target: str) -> str:
    """`pipe:[123]`, `socket:[456]`, `anon_inode:[eventpoll]`, `/a/file` -> pipe, socket, eventpoll, file."""
    if target.startswith("anon_inode:"):
        return target.partition(":")[2].strip("[]")
    return target.partition(":")[0] if target.startswith(("pipe:", "socket:")) else "file"


def take(daemon: Daemon) -> Census:
    """What it holds once no client is connected."""
    pid = daemon.pid
    until(lambda: not _connections(daemon), "no client is connected")
    return Census(
        descriptors=Counter(descriptor_links(pid)),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        children=Counter(command_line(child) or "a zombie" for child in descendants(pid)),
        files=frozenset(unaccounted(daemon)),
        rss=resident_bytes(pid),
    )


def excess(now: Census, baseline: Census) -> list[str]:
    """What differs from the baseline, one line for each; more threads are, and fewer are not."""
    found = [f"descriptor more: {target} ({n})" for target, n in (now.descriptors - baseline.descriptors).items()]
    found += [f"descriptor less: {target} ({n})" for target, n in (baseline.descriptors - now.descriptors).items()]
    found += [f"child more: {command} ({n})" for command, n in (now.children - baseline.children).items()]
    found += [f"child less: {command} ({n})" for command, n in (baseline.children - now.children).items()]
    found += [f"left behind: {path}" for path in sorted(now.files - baseline.files)]
    found += [f"gone: {path}" for path in sorted(baseline.files - now.files)]
    if now.threads > baseline.threads:
        found.append(f"{now.threads} threads instead of {baseline.threads}")
    return found


def _connections(daemon: Daemon) -> list[str]:
    """Accepted connections of the control socket, as /proc/net/unix shows them."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    listening = f"{_LISTENS:08X}"
    return [line for line in lines if line.endswith(f" {daemon.socket}") and line.split()[3] != listening]


def descriptor_links(pid: int) -> Iterator[str]:
    """The link target of each open descriptor of a process."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile


def descendants(pid: int) -> Iterator[int]:
    """Every process below `pid`, zombies too."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        try:
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


# --- files ------------------------------------------------------------------------------------------------


def unaccounted(daemon: Daemon) -> Iterator[str]:
    """Paths below the daemon's home that are not the record of something that the database knows."""
    records = _Records(daemon)
    for top in ("state", "cache", "run", "tmp", "user"):
        for directory, names, files in os.walk(daemon.home / top):
            for name in (*names, *files):
                path = os.path.relpath(os.path.join(directory, name), daemon.home)
                if not records.account_for(path):
                    yield path


class _Records:
    """What the database says that there is."""

    def __init__(self, daemon: Daemon) -> None:
        found = daemon.rows("SELECT id, output_id FROM builds")
        self._builds = {build for build, _ in found}
        self._outputs = {output for _, output in found}
        repositories = [json.loads(record) for (record,) in daemon.rows("SELECT record FROM repositories")]
        cloned = [Path(r["path"]) for r in repositories if r["clone_status"]["status"] == "cloned"]
        self._clones = {path.name for path in cloned if path.parent == daemon.cache_dir / "repos"}
        maps = [json.loads(record) for (record,) in daemon.rows("SELECT record FROM maps")]
        self._maps = {Path(m["output_path"]) for m in maps if m["status"] == "complete"}
        self._spares: set[str] = set()
        self._keepsakes: set[str] = set()

    def account_for(self, path: str) -> bool:
        match = _RECORD.fullmatch(path)
        if match is None:
            return False
        build, output, clone, spare = match["log"] or match["receipt"], match["output"], match["clone"], match["spare"]
        if spare is not None:
            self._spares.add(spare)
        if match["keepsake"] is not None:
            self._keepsakes.add(match["keepsake"])
        return (
            (build is None or build in self._builds)
            and (output is None or output in self._outputs)
            and (clone is None or (clone in self._clones and _HALF_MADE.search(path) is None))
            and (match["mapped"] is None or match["mapped"] in {path.parent.name for path in self._maps})
            and (match["map"] is None or match["map"] in {path.name for path in self._maps})
            and len(self._spares) <= SPARES
            and len(self._keepsakes) <= KEEPSAKES
        )


_BUILD = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_RECORD = re.compile(
    rf"""
    state/logs/[0-9a-f]{{2}}(/(?P<log>{_BUILD})\.log)?
    | state/artifacts/[0-9a-f]{{2}}(/(?P<output>[0-9a-f]{{64}})(
        /manifest\.json | /pin\.json | /[^/.][^/]*\.tar\.zst | /tree(/.*)? | /builds(/(?P<receipt>{_BUILD})\.json)?
      )?)?
    | state/work/(?P<spare>\.spare-[0-9]+)(/(src|build|dest|home|tmp))?
    | cache/discoveries(/(?P<keepsake>[0-9a-f]+)\.revision)?
    | cache/repos/(?P<clone>[^/]+\.git)(/.*)?
    | cache/maps/blobs\.db-(wal|shm)
    | cache/maps/(?P<mapped>[^/]+\.git)(/(?P<map>[0-9a-f]{40})(/.*)?)?
    """,
    re.VERBOSE,
)
_HALF_MADE = re.compile(r"/(tmp_|\.tmp-)[^/]*$|\.lock$")
"""What an interrupted transfer leaves in a clone."""
