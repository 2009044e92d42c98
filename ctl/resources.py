"""`buildctl status --resources`: what the machine, the daemon and each build use, and how that has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from buildd.protocol import BuildUse, ResourcesParams, ResourcesResult, Sample
from ctl.client import connect
from ctl.output import say_json, say_lines
from ctl.text import duration, plural, printable, size, table

if TYPE_CHECKING:
    import argparse

SAMPLES = 60
COLUMNS = 30
"""Characters of a trend."""
_BARS = "▁▂▃▄▅▆▇█"


def show(args: argparse.Namespace) -> int:
    with connect(args) as client:
        answer = client.call("daemon.resources", ResourcesParams(samples=SAMPLES), ResourcesResult)
    if args.json:
        say_json(answer)
    else:
        say_lines(readable(answer, time.time()))
    return 0


def readable(answer: ResourcesResult, now: float) -> list[str]:
    lines = _samples(answer.samples)
    memory = answer.memory
    if memory.baseline_bytes:
        warned = f", too much {plural(memory.warnings, 'time')}" if memory.warnings else ""
        lines.append(
            f"the daemon had {size(memory.baseline_bytes)} of memory when it had settled, "
            f"and {size(memory.peak_bytes)} at most{warned}"
        )
    if memory.profile:
        lines.append(f"profile of its memory: {printable(memory.profile)}")
    if answer.throttle.reason:
        throttle = answer.throttle
        lines.append(f"throttled to {throttle.workers} of {throttle.total} workers: {printable(throttle.reason)}")
    if answer.paused:
        lines.append(f"paused: {printable(answer.paused)}")
    return [*lines, "", *_builds(answer.builds, now)]


def _samples(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return ["there is no sample yet"]
    rows = [
        _row("load", [s.load_1m for s in samples], _decimal),
        _row("memory available", [s.memory_available_bytes for s in samples], size),
        _row("swap in use", [s.swap_used_bytes for s in samples], size),
        _row("disk free", [s.free_bytes for s in samples], size),
        _row("inodes free", [s.free_inodes for s in samples], _plain),
        _row("builds running", [s.busy for s in samples], _plain),
        _row("packages waiting", [s.queued for s in samples], _plain),
        _row("daemon: memory", [s.rss_bytes for s in samples], size),
        _row("daemon: open files", [s.open_files for s in samples], _plain),
        _row("daemon: threads", [s.threads for s in samples], _plain),
        _row("daemon: children", [s.children for s in samples], _plain),
    ]
    span = duration(samples[-1].at - samples[0].at)
    return table(("", "NOW", "LEAST", "MOST", f"LAST {span}"), rows, right=(1, 2, 3))


def _row(name: str, values: Sequence[float | None], show: Callable[[float | None], str]) -> tuple[str, ...]:
    known = [value for value in values if value is not None]
    return name, show(values[-1]), show(min(known, default=None)), show(max(known, default=None)), trend(known)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def trend(values: Sequence[float], columns: int = COLUMNS) -> str:
    """A bar for each value, from the least to the most; of more values than columns the most of each part."""
    if len(values) > columns:
        cuts = [len(values) * n // columns for n in range(columns + 1)]
        values = [max(values[a:b]) for a, b in pairwise(cuts)]
    low, high = min(values, default=0), max(values, default=0)
    if low == high:
        return _BARS[0] * len(values)
    return "".join(_BARS[int((value - low) / (high - low) * (len(_BARS) - 1) + 0.5)] for value in values)


def _builds(builds: Sequence[BuildUse], now: float) -> list[str]:
    if not builds:
        return ["no build is running"]
    rows = [
        (
            build.package,
            build.phase or "-",
            duration(now - build.started_at),
            duration(build.cpu_s),
            size(build.memory_bytes),
            size(build.disk_bytes),
            str(build.processes),
        )
        for build in builds
    ]
    return table(("PACKAGE", "PHASE", "TIME", "CPU", "MEMORY", "DISK", "PROCESSES"), rows, right=(2, 3, 4, 5, 6))
