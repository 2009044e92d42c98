"""What the processes of a session use, and whether a limit on it is hit: by cgroup where there is one, else by looking.

Where the kernel keeps a limit it also says when the limit was hit. Where it does not, the tree of processes is
sampled and the same limits give the same reasons; a build may exceed them until the next look.

Invariant: a look at a session takes a bounded time, however many processes it has.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from buildd.cgroups import Cgroup
from buildd.errors import FailureReason
from buildd.execute.proctree import uses
from buildd.execute.sandbox import Tree
from buildd.model import Resources
from buildd.process import Exit

Verdict = tuple[FailureReason, str]
"""Why a build is ended, and the words for it."""


class Bounds(Struct, frozen=True, kw_only=True):
    """Most memory in bytes, and most processes and threads; 0 is no limit."""

    memory: int = 0
    pids: int = 0


class Reading(Struct, frozen=True, kw_only=True):
    processes: int = 0
    """Processes and threads."""
    memory_bytes: int = 0
    cpu_s: float = 0.0
    largest_rss: int = 0
    """Bytes of the largest process."""


class Use:
    """What a build uses: as it was at the last look, and the most that was seen."""

    def __init__(self) -> None:
        self.processes = self.memory_bytes = self.disk_bytes = 0
        self.cpu_s = 0.0
        self.most = Resources()
        self._earlier_cpu_s = 0.0
        """Of sessions that have ended."""

    def note(self, now: Reading, disk_bytes: int) -> None:
        """What a look at a session found."""
        self.processes, self.memory_bytes, self.disk_bytes = now.processes, now.memory_bytes, disk_bytes
        self.cpu_s = max(self.cpu_s, self._earlier_cpu_s + now.cpu_s)
        self._keep(largest_rss=now.largest_rss, memory_bytes=now.memory_bytes)

    def ended(self, *, cpu_s: float, largest_rss: int, peak_memory_bytes: int = 0) -> None:
        """A session has ended, and that is what the kernel counted."""
        self.cpu_s = self._earlier_cpu_s = max(self.cpu_s, self._earlier_cpu_s + cpu_s)
        self._keep(largest_rss=largest_rss, memory_bytes=max(peak_memory_bytes, largest_rss))
        self.processes = self.memory_bytes = 0

    def _keep(self, *, largest_rss: int, memory_bytes: int) -> None:
        most = self.most
        self.most = Resources(
            cpu_s=round(self.cpu_s, 6),
            max_rss_bytes=max(most.max_rss_bytes, largest_rss),
            peak_memory_bytes=max(most.peak_memory_bytes, memory_bytes),
            peak_processes=max(most.peak_processes, self.processes),
            peak_disk_bytes=max(most.peak_disk_bytes, self.disk_bytes),
        )


class Meter(Protocol):
    def read(self) -> Reading:
        """What is used now."""

    def broken(self, now: Reading) -> Verdict | None:
        """The limit that is hit; None while all hold."""

    def ended(self, use: Use, exit: Exit) -> None:
        """Tell `use` what the session used, now that it has ended."""


class SampledMeter:
    """Looks at each process of the tree."""

    def __init__(self, tree: Tree, bounds: Bounds) -> None:
        self._tree = tree
        self._bounds = bounds
        self._most = bounds.pids or 100_000

    def read(self) -> Reading:
        found = uses(self._tree.pids(self._most))
        return Reading(
            processes=sum(use.threads for use in found),
            memory_bytes=sum(use.resident_bytes for use in found) + self._tree.shm_bytes(),
            cpu_s=sum(use.cpu_s for use in found),
            largest_rss=max((use.resident_bytes for use in found), default=0),
        )

    def broken(self, now: Reading) -> Verdict | None:
        bounds = self._bounds
        if bounds.memory and now.memory_bytes > bounds.memory:
            used = f"its processes used {now.memory_bytes} bytes of memory together"
            return "oom", f"{used}, over {bounds.memory} (limits.memory)"
        if bounds.pids and now.processes >= bounds.pids:
            return too_many_processes(bounds.pids)
        return None

    def ended(self, use: Use, exit: Exit) -> None:
        use.ended(cpu_s=exit.cpu_s, largest_rss=exit.max_rss_bytes)


class GroupMeter:
    """Asks the kernel. Controllers that the cgroup does not have are left to the sampler."""

    def __init__(self, group: Cgroup, tree: Tree, bounds: Bounds) -> None:
        self._group = group
        self._bounds = bounds
        self._earlier_cpu_s = group.cpu_s()
        """Of the build's sessions before this one."""
        kept = group.controllers
        self._sampled = SampledMeter(
            tree,
            Bounds(
                memory=0 if "memory" in kept else bounds.memory,
                pids=0 if "pids" in kept else bounds.pids,
            ),
        )
        self._counts_memory = "memory" in kept

    def read(self) -> Reading:
        sampled = self._sampled.read()
        memory = self._group.memory_bytes() if self._counts_memory else sampled.memory_bytes
        return Reading(
            processes=sampled.processes,
            memory_bytes=memory,
            cpu_s=self._group.cpu_s() - self._earlier_cpu_s,
            largest_rss=sampled.largest_rss,
        )

    def broken(self, now: Reading) -> Verdict | None:
        events, bounds = self._group.events(), self._bounds
        if events.oom_kills and events.limit_reached:
            return (
                "oom",
                f"it needed more memory than limits.memory, {bounds.memory} bytes; the kernel ended it",
            )
        if events.oom_kills:
            return "oom", "the machine ran out of memory, and the kernel ended it; no limit of its own was reached"
        if events.pids_refused:
            return too_many_processes(bounds.pids)
        return self._sampled.broken(now)

    def ended(self, use: Use, exit: Exit) -> None:
        use.ended(
            cpu_s=self._group.cpu_s() - self._earlier_cpu_s,
            largest_rss=exit.max_rss_bytes,
            peak_memory_bytes=self._group.memory_peak_bytes(),
        )


def too_many_processes(most: int) -> Verdict:
    return "pids_limit", f"it started as many processes and threads as limits.pids allows, {most}"
