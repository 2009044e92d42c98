"""Cloning 100 MB of history: `buildctl repo clone --wait` against `git clone --bare` from the same git daemon.

Wall times are taken without anybody watching. In further clones a client asks for the status all the time, for
the latency of the daemon while it clones; what a bare server needs during git's clone is the machine's own share.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.client import Asking, Latency, bare_server
from bench.daemon import BenchError, Daemon
from bench.figures import Figure, Options, Report, Sample
from bench.history import GitServer, write_history
from bench.packages import GIT_ENVIRONMENT
from bench.results import show

_PACE_S = 0.002


def run(options: Options) -> Report:
    repetitions, watched = options.choose(5, 1), options.choose(5, 1)
    size = options.choose(100_000_000, 5_000_000)
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        home = Path(temporary)
        packed = write_history(home / "served" / "history.git", size)
        show(f"  the repository has {packed / 1e6:.1f} MB of packs")
        server = GitServer(home / "served")
        url = server.url("history.git")
        ours: list[float] = []
        peer: list[float] = []
        watched_ours: list[Latency] = []
        watched_peer: list[Latency] = []
        with (
            server.serving(),
            Daemon(home / "daemon") as daemon,
            bare_server(home / "echo.sock", daemon.ask("status")) as echo,
        ):
            _git_clone(url, home / "warm-up.git")
            time.sleep(2)
            before = daemon.memory().rss / 1e6
            for repetition in range(repetitions):
                peer.append(_git_clone(url, home / "peer.git"))
                ours.append(_clone(daemon, url))
                show(f"  {repetition + 1}/{repetitions} {ours[-1]:.2f} s, git {peer[-1]:.2f} s")
            for _ in range(watched):
                with Asking(echo, interval=_PACE_S) as asking:
                    _git_clone(url, home / "peer.git")
                watched_peer.append(asking.latency)
                with Asking(daemon.socket, interval=_PACE_S) as asking:
                    _clone(daemon, url)
                watched_ours.append(asking.latency)
            time.sleep(2)
            after = daemon.memory().rss / 1e6
    return Report(
        about=f"A repository with {packed / 1e6:.0f} MB of packed history from `git daemon` on the loopback interface: "
        "the whole `buildctl repo clone --wait` against `git clone --bare`, in turns; then clones while a client asks "
        f"for the status every {_PACE_S * 1e3:g} ms; its peer is a bare ROUTER asked during git's clone.",
        figures=(
            Figure(name="clone", unit="s", ours=Sample(tuple(ours)), peer=Sample(tuple(peer)), most_ratio=1.1),
            *(_meanwhile(which, watched_ours, watched_peer) for which in ("p50", "p99", "worst")),
            Figure(name="memory of the daemon before", unit="MB", ours=Sample((before,))),
            Figure(name="memory of the daemon afterwards", unit="MB", ours=Sample((after,))),
        ),
        notes=("Two thirds of the history are incompressible blobs, the rest chains of text deltas; see history.py.",),
    )


def _meanwhile(which: str, ours: list[Latency], peer: list[Latency]) -> Figure:
    """One of the latencies while a clone goes on, in milliseconds."""
    samples = [Sample(tuple(getattr(latency, which) * 1e3 for latency in side)) for side in (ours, peer)]
    most = 50.0 if which == "worst" else None
    return Figure(name=f"status meanwhile, {which}", unit="ms", ours=samples[0], peer=samples[1], most=most)


def _clone(daemon: Daemon, url: str) -> float:
    """Seconds of a clone; it is deleted again."""
    took = daemon.timed("repo", "clone", url, "--wait", "--again")
    status = daemon.ask("repo", "status", url)["clone_status"]["status"]
    if status != "cloned":
        raise BenchError(f"the clone ended as {status}")
    daemon.ctl("repo", "delete", url)
    return took


def _git_clone(url: str, path: Path) -> float:
    """Seconds of git's own clone; it is deleted again."""
    began = time.perf_counter()
    subprocess.run(["git", "clone", "--quiet", "--bare", url, str(path)], env=GIT_ENVIRONMENT, check=True, timeout=600)
    took = time.perf_counter() - began
    shutil.rmtree(path)
    return took
