"""What comes after the last phase of a build: taking over the output, recording it, removing all that it held.

Builds of a second each, that leave few files or many. Closing the scope is what cleanliness costs, and is held against
the build's own time. The whole time from the end of the last phase until then is told as well: in it the output is
hashed, made durable and recorded, which is no cleaning up.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.daemon import BenchError, Daemon
from bench.figures import Figure, Options, Report, Sample, percentile
from bench.packages import Recipe, write_repository
from bench.results import show
from buildd.model import BuildRecord

BUILD_S = 1.0
LIMIT_PERCENT = 5.0
_CLOSED_WITHIN_S = 30.0
_FILES = {"few files": (20, 5), "many files": (500, 50)}
"""Files that a build leaves in $BUILDDIR, and in its output."""


class Cost(Struct, frozen=True, kw_only=True):
    """Seconds of one build."""

    phases: float
    """From its start to the end of its last phase."""
    after: float
    """From there until its scope is closed."""
    closing: float
    """What closing the scope took of that."""

    @property
    def cleanup(self) -> float:
        """Closing the scope, in percent of the build."""
        return 100 * self.closing / self.phases

    @property
    def tail(self) -> float:
        """All that comes after the last phase, in percent of the build."""
        return 100 * self.after / self.phases


def recipes(count: int, left: int, installed: int) -> list[Recipe]:
    """Independent packages that take `BUILD_S`, and leave so many files behind."""
    phases = {
        "build": f'cd "$BUILDDIR" && seq {left} | xargs -n 500 touch && sleep {BUILD_S}',
        "stage": f'mkdir -p "$DESTDIR$PREFIX/share/$BUILDD_PACKAGE" && cd "$DESTDIR$PREFIX/share/$BUILDD_PACKAGE" && '
        f'for n in $(seq {installed}); do echo "$n" >"$n"; done',
    }
    return [Recipe(name=f"p{number:03}", phases=phases) for number in range(1, count + 1)]


def run(options: Options) -> Report:
    packages = options.choose(40, 6)
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        for kind, (left, installed) in _FILES.items():
            home = Path(temporary) / kind.replace(" ", "-")
            repository = write_repository(home / "repository", recipes(packages, left, installed))
            costs[kind] = found = _measure(home / "daemon", repository, packages)
            show(f"  {kind}: {Sample(tuple(cost.cleanup for cost in found)).text('%')}")
    figures: list[Figure] = []
    for kind, found in costs.items():
        for what, shares, most in (
            ("closing the scope", [cost.cleanup for cost in found], LIMIT_PERCENT),
            ("all after the last phase", [cost.tail for cost in found], None),
        ):
            middle, high = percentile(shares, 0.5), percentile(shares, 0.95)
            figures += [
                Figure(name=f"{kind}: {what}, p50", unit="%", ours=Sample((middle,)), most=most),
                Figure(name=f"{kind}: {what}, p95", unit="%", ours=Sample((high,)), most=most),
            ]
        figures.append(
            Figure(name=f"{kind}: closing the scope", unit="ms", ours=Sample(tuple(c.closing * 1e3 for c in found)))
        )
    left = "; ".join(f"{kind}: {a} in $BUILDDIR, {b} in the output" for kind, (a, b) in _FILES.items())
    return Report(
        about=f"{packages} builds of {BUILD_S:g} s each on all cores, in percent of a build's time up to the end of "
        "its last phase: closing its scope, which releases and removes all that it held; and all that comes after that "
        "phase, with hashing the output, writing it to the disk and recording it.",
        figures=tuple(figures),
        notes=(f"Files that a build leaves: {left}.",),
    )


def _measure(directory: Path, repository: Path, packages: int) -> list[Cost]:
    with Daemon(directory, settings={"daemon.log_level": "debug"}) as daemon:
        daemon.ctl("start", str(repository), "--wait", "--quiet")
        daemon.check_run(packages)
        listed = json.loads(daemon.ctl("call", "build.list", json.dumps({"limit": packages})))["builds"]
        builds = msgspec.convert(listed, list[BuildRecord])
        deadline = time.monotonic() + _CLOSED_WITHIN_S
        while len(closed := read_closings(daemon.log)) < packages:
            if time.monotonic() > deadline:
                raise BenchError(f"only {len(closed)} of {packages} scopes are closed")
            time.sleep(0.1)
    return [cost_of(build, closed[build.id]) for build in builds]


def read_closings(log: Path) -> dict[str, Mapping[str, Any]]:
    """The line of the log that tells that a build's scope is closed, by build."""
    found: dict[str, Mapping[str, Any]] = {}
    for line in log.read_text().splitlines():
        if line.startswith("{") and line.endswith("}"):
            entry = json.loads(line)
            if entry["event"] == "scope closed" and entry["task"] == "build":
                found[entry["build"]] = entry
    return found


def cost_of(build: BuildRecord, closing: Mapping[str, Any]) -> Cost:
    ended = _end_of_phases(build)
    closed = datetime.fromisoformat(closing["timestamp"]).timestamp()
    return Cost(phases=ended - build.started_at, after=closed - ended, closing=closing["cleanup_ms"] / 1e3)


def _end_of_phases(build: BuildRecord) -> float:
    ends: Sequence[float] = [p.started_at + p.duration_s for p in build.phases if p.duration_s is not None]
    if not ends:
        raise BenchError(f"build {build.id} has no phases")
    return max(ends)
