"""What the daemon holds in memory: idle, and after 500 builds."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.daemon import Daemon
from bench.dispatch import PACKAGES, recipes
from bench.figures import Figure, Options, Report, Sample
from bench.packages import write_repository
from bench.results import show

_SETTLE_S = 5.0
_LIMIT_MB = 60.0


def run(options: Options) -> Report:
    repetitions, packages = options.choose(3, 1), options.choose(PACKAGES, 50)
    settle = _SETTLE_S if not options.quick else 1.0
    kinds = ("idle, RSS", "idle, PSS", f"after {packages} builds, RSS", f"after {packages} builds, PSS")
    values: dict[str, list[float]] = {kind: [] for kind in kinds}
    starts: list[float] = []
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        home = Path(temporary)
        repository = write_repository(home / "repository", recipes(packages))
        for repetition in range(repetitions):
            with Daemon(home / f"daemon{repetition}") as daemon:
                starts.append(daemon.started_in_s)
                time.sleep(settle)
                idle = daemon.memory()
                daemon.ctl("start", str(repository), "--wait", "--quiet")
                daemon.check_run(packages)
                time.sleep(settle)
                after = daemon.memory()
            for kind, value in zip(kinds, (idle.rss, idle.pss, after.rss, after.pss), strict=True):
                values[kind].append(value / 1e6)
            show(f"  {repetition + 1}/{repetitions} idle {idle.rss / 1e6:.1f} MB, after {after.rss / 1e6:.1f} MB")
    figures = [
        Figure(
            name=kind,
            unit="MB",
            ours=Sample(tuple(values[kind])),
            most=_LIMIT_MB if kind == "idle, RSS" else None,
        )
        for kind in kinds
    ]
    figures.append(Figure(name="start until ready", unit="s", ours=Sample(tuple(starts))))
    in_mib = ", ".join(f"{kind} {Sample(tuple(values[kind])).median * 1e6 / (1 << 20):.1f} MiB" for kind in kinds)
    return Report(
        about=f"Memory of the daemon's process {settle:g} s after its start and {settle:g} s after {packages} builds "
        "(1 MB = 1,000,000 bytes).",
        figures=tuple(figures),
        notes=(f"The medians in MiB: {in_mib}.",),
    )
