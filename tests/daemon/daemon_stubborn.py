"""Builds that do not want to end: for the tests of everything that ends builds."""

from __future__ import annotations

from harness import Daemon, RecipeRepository

READY = "everyone ignores you"


def stubborn_text(daemon: Daemon, gate: str = "open") -> str:
    """A phase that ignores SIGTERM, with daemonised descendants that do too; it ends when the gate opens."""
    deaf = 'trap "" TERM INT HUP; while :; do sleep 1; done'
    return f"""\
trap '' TERM INT HUP
if [ ! -e '{daemon.gates / gate}' ]; then
  setsid sh -c '{deaf}' </dev/null >/dev/null 2>&1 &
  setsid sh -c 'setsid sh -c "trap \\"\\" TERM; sleep 600" & exit' </dev/null >/dev/null 2>&1 &
  sh -c '{deaf}' &
  sleep 0.05
fi
echo '{READY}'
{daemon.at_gate(gate)}
"""


def stubborn_packages(repository: RecipeRepository, daemon: Daemon, count: int, queued: int = 0) -> RecipeRepository:
    """`count` packages that are stubborn and `queued` that are not, the stubborn ones more urgent."""
    for i in range(count):
        repository.package(f"stubborn{i}", path=".", phases={"build": stubborn_text(daemon)})
    for i in range(queued):
        repository.package(f"quick{i}", path=".", depends=[f"stubborn{i % count}"], phases={"build": "true"})
    repository.commit()
    return repository
