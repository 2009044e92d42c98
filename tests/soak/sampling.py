"""Samples of a daemon, taken from outside once a second, and kept as a table."""

from __future__ import annotations

import csv
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from harness import Daemon, resident_bytes
from harness.census import descendants, descriptor_links, kind_of
from msgspec import Struct

INTERVAL_S = 1.0
_KINDS = ("file", "pipe", "socket", "eventpoll", "eventfd", "pidfd")


class Sample(Struct, frozen=True, kw_only=True):
    seconds: float
    """Since sampling began."""
    operations: int
    rss_mb: float
    descriptors: dict[str, int]
    """By kind."""
    threads: int
    children: int
    paths: int
    """Files and directories that builds and clones have for themselves: all of them temporary."""


class Sampler:
    """Takes samples in a thread for as long as the context lasts."""

    def __init__(self, daemon: Daemon, operations: Callable[[], int]) -> None:
        self._daemon, self._operations = daemon, operations
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.samples.append(self._take())
            except FileNotFoundError:
                return  # the daemon is gone
            self._end.wait(INTERVAL_S)

    def _take(self) -> Sample:
        pid = self._daemon.pid
        kinds = dict.fromkeys(_KINDS, 0)
        for target in descriptor_links(pid):
            kinds[kind_of(target)] = kinds.get(kind_of(target), 0) + 1
        return Sample(
            seconds=time.monotonic() - self._began,
            operations=self._operations(),
            rss_mb=resident_bytes(pid) / 1e6,
            descriptors=kinds,
            threads=len(os.listdir(f"/proc/{pid}/task")),
            children=len(list(descendants(pid))),
            paths=sum(map(_count, self._temporary())),
        )

    def _temporary(self) -> list[Path]:
        daemon = self._daemon
        return [daemon.work_dir, daemon.state_dir / "prefixes", daemon.cache_dir / "repos", daemon.home / "tmp"]


def _count(directory: Path) -> int:
    return len(os.listdir(directory)) if directory.is_dir() else 0


def write_table(samples: list[Sample], path: Path) -> None:
    kinds = sorted({kind for sample in samples for kind in sample.descriptors})
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["seconds", "operations", "rss_mb", "threads", "children", "paths", *kinds])
        for s in samples:
            counts = [s.descriptors.get(kind, 0) for kind in kinds]
            table.writerow(
                [f"{s.seconds:.1f}", s.operations, f"{s.rss_mb:.2f}", s.threads, s.children, s.paths, *counts]
            )


def draw(samples: list[Sample], path: Path) -> None:
    """A picture of the samples over time. Takes matplotlib, which the extra `soak` brings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds = [s.seconds for s in samples]
    figure, (memory, files, others) = pyplot.subplots(3, 1, sharex=True, figsize=(10, 9), layout="constrained")
    memory.plot(seconds, [s.rss_mb for s in samples], label="resident memory, MB", color="tab:red")
    memory.set_ylim(bottom=0)
    progress = memory.twinx()
    progress.plot(seconds, [s.operations for s in samples], label="operations begun", color="tab:grey", linestyle=":")
    kinds = sorted({kind for s in samples for kind in s.descriptors})
    files.stackplot(seconds, [[s.descriptors.get(kind, 0) for s in samples] for kind in kinds], labels=kinds)
    for name in ("threads", "children", "paths"):
        label = "temporary paths" if name == "paths" else name
        others.plot(seconds, [getattr(s, name) for s in samples], label=label)
    for axes, title in ((memory, "memory"), (files, "open files by kind"), (others, "threads, processes, paths")):
        axes.set_title(title)
        axes.legend(loc="upper left")
    progress.legend(loc="lower right")
    others.set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
