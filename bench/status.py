"""How fast `buildctl status` is: against a bare script that imports zmq and msgspec and asks the same once."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.daemon import BenchError, Daemon
from bench.figures import Figure, Options, Report, Sample

_PEER = Path(__file__).parent / "peers" / "roundtrip.py"


def run(options: Options) -> Report:
    rounds, each = options.choose(10, 2), options.choose(10, 3)
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        with Daemon(Path(temporary)) as daemon:
            commands = ([*daemon.client, "status"], [sys.executable, str(_PEER), str(daemon.socket)])
            with_hyperfine = shutil.which("hyperfine") is not None
            measure = _hyperfine if with_hyperfine else _alternate
            results = [measure(commands, each) for _ in range(rounds)]
    ours, peer = (Sample(tuple(result[side] for result in results)) for side in (0, 1))
    how = f"hyperfine, {each} runs of each in a round" if with_hyperfine else f"a loop, {each} pairs in a round"
    return Report(
        about="`buildctl status` against a bare pyzmq and msgspec script that makes one round trip to the same "
        f"daemon. A value is the median of a round; rounds alternate ({how}).",
        figures=(Figure(name="buildctl status", unit="ms", ours=ours, peer=peer, most_ratio=1.3),),
    )


def _hyperfine(commands: Sequence[Sequence[str]], each: int) -> list[float]:
    """Median milliseconds of each command, by hyperfine without a shell."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        options = ["--shell=none", "--warmup=1", f"--runs={each}", "--style=none", f"--export-json={file.name}"]
        ran = subprocess.run(
            ["hyperfine", *options, *map(shlex.join, commands)], capture_output=True, text=True, timeout=600
        )
        if ran.returncode != 0:
            raise BenchError(f"hyperfine failed: {ran.stderr[-1000:]}")
        return [result["median"] * 1e3 for result in json.loads(Path(file.name).read_bytes())["results"]]


def _alternate(commands: Sequence[Sequence[str]], each: int) -> list[float]:
    """The same by running them in turns."""
    taken: list[list[float]] = [[] for _ in commands]
    for _ in range(each + 1):
        for command, times in zip(commands, taken, strict=True):
            began = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60)
            times.append((time.perf_counter() - began) * 1e3)
    return [Sample(tuple(times[1:])).median for times in taken]
