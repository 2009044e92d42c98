"""`python -m soak`: the long form, with its report, a table and a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from soak.crowd import Crowd, gather
from soak.endurance import MEASURED_AFTER, SETTINGS, Endurance, a_daemon, at_rest, endure, fill_journal
from soak.sampling import draw, write_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=(__doc__ or "").strip())
    parser.add_argument("--builds", type=int, default=1000)
    parser.add_argument("--clones", type=int, default=200)
    parser.add_argument("--packages", type=int, default=100, help="how many run at once; 0 leaves that out")
    parser.add_argument("--rounds", type=int, default=5, help="how often")
    parser.add_argument("--backend", choices=("bwrap", "plain"), help="the sandbox (default: the best one here)")
    parser.add_argument("--output", type=Path, default=Path(".buildd/soak"), metavar="DIR")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    if arguments.builds or arguments.clones:
        with a_daemon(SETTINGS, arguments.backend) as daemon:
            daemon.expect("clone failed")
            endurance = endure(
                daemon,
                builds=arguments.builds,
                clones=arguments.clones,
                rest=at_rest,
                warm_up=fill_journal,
                say=_say,
            )
        write_table(endurance.samples, arguments.output / "soak.csv")
        draw(endurance.samples, arguments.output / "soak.png")
        _report_endurance(endurance)
        _say(f"samples: {arguments.output / 'soak.csv'}, {arguments.output / 'soak.png'}")
        complaints += endurance.complaints()
    if arguments.packages:
        settings = {"workers.max_concurrent_builds": arguments.packages, "daemon.shutdown_grace": "0s"}
        with a_daemon(settings, arguments.backend) as daemon:
            crowd = gather(daemon, packages=arguments.packages, rounds=arguments.rounds)
        _report_crowd(crowd, arguments.rounds)
        complaints += crowd.complaints()
    for complaint in complaints:
        _say(f"FAILED: {complaint}")
    if not complaints:
        _say("nothing leaked")
    return 1 if complaints else 0


def _report_endurance(found: Endurance) -> None:
    _say(f"{found.builds} builds and {found.clones} clones in {found.seconds:.0f} s")
    _say("builds: " + ", ".join(f"{count} {end}" for end, count in found.ends.items()))
    before, after, peak = found.rss_then / 1e6, found.final.rss / 1e6, max(s.rss_mb for s in found.samples)
    _say(
        f"resident memory: {before:.1f} MB after {MEASURED_AFTER} operations, {after:.1f} MB at the end "
        f"({after / before - 1:+.1%}), {peak:.1f} MB at most"
    )


def _report_crowd(found: Crowd, rounds: int) -> None:
    _say(f"{found.packages} builds at once, with {found.most_processes} processes, {rounds} times:")
    for name, latency in (
        ("daemon.status", found.status),
        ("a bare server beside it", found.bare),
        ("a bare server before", found.idle),
    ):
        times = f"p50 {latency.p50 * 1e3:.1f} ms, p99 {latency.p99 * 1e3:.1f} ms, worst {latency.worst * 1e3:.1f} ms"
        _say(f"  {name}: {times} ({latency.requests} requests)")
    if found.disturbed:
        _say("  others use this machine: the latencies say nothing about the daemon")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
