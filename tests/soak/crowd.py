"""A hundred builds at once, each with processes of its own: do they all complete, and is the daemon there meanwhile?

A client in a process of its own asks for daemon.status every 20 ms while they start, run and end, round after round.
What makes the builds wait is a fifo: waiting costs no processor time, so that it is the daemon that is measured.
Another client asks a bare server that has the same answer at the same time, which is the machine's own share, and
before that while nothing of ours runs: where that takes long, others use the machine, and nothing can be said about the
daemon.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness import Daemon, RecipeRepository, until
from harness.census import Census, excess
from msgspec import Struct

from bench.client import Asking, Latency, bare_server
from soak.endurance import at_rest, back_at

INTERVAL_S = 0.02
MOST_P99_S = 0.1
MOST_IDLE_P99_S = 0.005
_IDLE_S = 5.0
_WITHIN_S = 180.0


class Crowd(Struct, frozen=True, kw_only=True):
    packages: int
    status: Latency
    """What daemon.status took, from before the builds start until after they have ended, in all rounds."""
    bare: Latency
    """What the bare server took at the same time."""
    idle: Latency
    """What the bare server took before, while nothing of ours ran."""
    most_processes: int
    """Most processes of builds that were seen at once."""
    baseline: Census
    final: Census

    def complaints(self) -> list[str]:
        found = excess(self.final, self.baseline)
        if self.status.p99 > MOST_P99_S and not self.disturbed:
            found.append(f"p99 of daemon.status is {self.status.p99 * 1e3:.0f} ms, over {MOST_P99_S * 1e3:.0f} ms")
        return found

    @property
    def disturbed(self) -> bool:
        """Whether others used the machine so much that the latency is not the daemon's."""
        return self.idle.p99 > MOST_IDLE_P99_S


def gather(daemon: Daemon, *, packages: int, rounds: int) -> Crowd:
    """Run `packages` at once, `rounds` times after one that does not count. All must complete."""
    gate = daemon.gates / "gate"
    os.mkfifo(gate)
    wait = f"read line < '{gate}' || true"
    repository = RecipeRepository(daemon.home / "sources" / "crowd")
    for number in range(packages):
        text = f"({wait}) & ({wait}) & {wait}\nwait"
        repository.package(f"p{number:03}", phases={"build": text, "stage": 'echo > "$DESTDIR/done"'})
    repository.commit()
    _round(daemon, repository, packages, gate)
    baseline = at_rest(daemon)
    with bare_server(daemon.home / "bare.sock", daemon.status()) as address:
        with Asking(address, interval=INTERVAL_S) as idle:
            time.sleep(_IDLE_S)
        with Asking(daemon.socket, interval=INTERVAL_S) as status, Asking(address, interval=INTERVAL_S) as bare:
            most = max(_round(daemon, repository, packages, gate) for _ in range(rounds))
    return Crowd(
        packages=packages,
        status=status.latency,
        bare=bare.latency,
        idle=idle.latency,
        most_processes=most,
        baseline=baseline,
        final=back_at(daemon, baseline),
    )


def _round(daemon: Daemon, repository: RecipeRepository, packages: int, gate: Path) -> int:
    """All packages once; the number of processes when all of them ran."""
    number = daemon.start(repository, force=True)
    until(lambda: daemon.status()["builds"]["running"] == packages, f"{packages} builds run", within=_WITHIN_S)
    processes = until(lambda: _processes(daemon, packages), "each build has its processes", within=_WITHIN_S)
    with _open(gate):
        view = daemon.wait(number, within=_WITHIN_S)
    assert (view.state, view.stats.success) == ("completed", packages), view.stats
    return processes


def _processes(daemon: Daemon, packages: int) -> int:
    """How many processes the builds have, once each has its three that wait; 0 before."""
    waiting = sum("read line" in command for command in map(_command, daemon.build_processes()))
    return waiting if waiting >= 3 * packages else 0


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


@contextmanager
def _open(gate: Path) -> Iterator[None]:
    """Let whoever reads the fifo read its end, now and as long as the block takes."""
    end = threading.Event()

    def let_through() -> None:
        while not end.wait(0.01):
            with suppress(OSError):  # ENXIO: nobody reads just now
                os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=let_through)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
