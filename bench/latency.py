"""How long daemon.status takes to answer: alone, with 50 clients, while 50 builds start, and while they run.

A bare ROUTER that sends an answer of the same size stands beside it: what it takes is the machine's own share, and
on a machine with few cores that is most of it while 50 sandboxes start.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.client import Asking, Latency, bare_server
from bench.daemon import BenchError, Daemon
from bench.figures import Figure, Options, Report, Sample
from bench.packages import Recipe, write_repository
from bench.results import show

BUILDS = 50
CLIENTS = 50
_PACE_S = 0.005
"""Between two requests of a client that only watches."""
_CHATTY = "while :; do echo a line of output of some length, as compilers write; sleep 0.5; done"


def run(options: Options) -> Report:
    rounds, seconds = options.choose(5, 1), options.choose(4, 1)
    loads: dict[str, Callable[[Path], Asking]] = {
        "alone": Asking,
        f"{CLIENTS} clients without a pause": lambda socket: Asking(socket, clients=CLIENTS),
        f"{CLIENTS} clients, 10 requests a second each": lambda socket: Asking(socket, clients=CLIENTS, interval=0.1),
    }
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        home = Path(temporary)
        settings = {"workers.max_concurrent_builds": BUILDS, "daemon.shutdown_grace": "0s"}
        with (
            Daemon(home / "daemon", settings=settings) as daemon,
            bare_server(home / "echo.sock", daemon.ask("status")) as echo,
        ):
            for name, asking in loads.items():
                pairs = [
                    (_during(asking(daemon.socket), seconds), _during(asking(echo), seconds)) for _ in range(rounds)
                ]
                figures += _figures(name, pairs)
                rates = [f"{latency.per_second:,.0f}" for latency in pairs[-1]]
                show(f"  {name}: {rates[0]} requests/s, bare {rates[1]}")
            figures += _while_building(home, daemon, echo, rounds, seconds)
    return Report(
        about=f"daemon.status as asked by DEALER sockets in another process, {rounds} rounds of {seconds} s; the peer "
        f"is a bare ROUTER that decodes the request and sends an answer of the same size. While builds start and run, "
        f"one client asks the daemon and one the peer, each every {_PACE_S * 1e3:g} ms at the same time.",
        figures=tuple(figures),
    )


def _while_building(home: Path, daemon: Daemon, echo: Path, rounds: int, seconds: float) -> list[Figure]:
    recipes = [Recipe(name=f"p{number:02}", phases={"build": _CHATTY}) for number in range(BUILDS)]
    repository = write_repository(home / "repository", recipes)
    starting: list[tuple[Latency, Latency]] = []
    running: list[tuple[Latency, Latency]] = []
    for _ in range(rounds):
        with Asking(daemon.socket, interval=_PACE_S) as ours, Asking(echo, interval=_PACE_S) as peer:
            number = daemon.ctl("start", str(repository), "--force", "--quiet").strip()
            _until(lambda: daemon.ask("status")["builds"]["running"] == BUILDS, f"{BUILDS} builds run")
        starting.append((ours.latency, peer.latency))
        with Asking(daemon.socket, interval=_PACE_S) as ours, Asking(echo, interval=_PACE_S) as peer:
            time.sleep(seconds)
        running.append((ours.latency, peer.latency))
        daemon.ctl("cancel", number)
        _until(lambda: daemon.ask("status")["runs"]["active"] == 0, "the run is cancelled")
    return [
        *_figures(f"while {BUILDS} builds start", starting, worst=True),
        *_figures(f"while {BUILDS} builds run", running, worst=True),
    ]


def _figures(name: str, pairs: list[tuple[Latency, Latency]], *, worst: bool = False) -> list[Figure]:
    """The percentiles of the daemon's and the peer's latencies, round by round, in milliseconds."""

    def sample(side: int, which: str) -> Sample:
        return Sample(tuple(getattr(pair[side], which) * 1e3 for pair in pairs))

    return [
        Figure(name=f"{name}, {which}", unit="ms", ours=sample(0, which), peer=sample(1, which))
        for which in ("p50", "p99", *(("worst",) if worst else ()))
    ]


def _during(asking: Asking, seconds: float) -> Latency:
    with asking:
        time.sleep(seconds)
    return asking.latency


def _until(condition: Callable[[], bool], what: str, limit: float = 60.0) -> None:
    deadline = time.perf_counter() + limit
    while not condition():
        if time.perf_counter() > deadline:
            raise BenchError(f"waited {limit:g} s in vain until {what}")
        time.sleep(0.1)
