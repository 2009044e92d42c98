"""The daemon is killed and stopped at random moments while it is busy: nothing is lost, built twice or left behind.

The long form is `make chaos`, with ROUNDS and SEED; here are a few rounds of another seed each time.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest
from chaos_rounds import Chaos
from chaos_world import a_world
from harness import BACKENDS, unbooted

FULL = "BUILDD_CHAOS_ROUNDS" in os.environ
"""Whether this is the long form."""
ROUNDS = int(os.environ.get("BUILDD_CHAOS_ROUNDS") or 4)
SEED = int(os.environ.get("BUILDD_CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
SHARE = {"bwrap": 0.8, "plain": 0.2}
SETTINGS = {
    "workers.max_concurrent_builds": 4,
    "daemon.shutdown_grace": "0.5s",
    "retry.delay": "0.1s",
    "cache.min_free_bytes": 0,
    "cache.min_free_inodes": 0,
    "sandbox.readonly_paths": "[]",  # so that work directories are kept for other builds
}


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_lost_or_built_twice_or_left_behind_whenever_the_daemon_dies(backend: str, tmp_path: Path) -> None:
    rounds = max(1, round(ROUNDS * SHARE[backend]))
    _say(f"chaos in {backend}: make chaos SEED={SEED} ROUNDS={ROUNDS}")
    with a_world(tmp_path) as world, unbooted(backend=backend, settings=SETTINGS) as daemon:
        chaos = Chaos(SEED, world, daemon, say=_say)
        chaos.go(rounds)
        _say(f"{rounds} rounds: {dict(chaos.counts)}; {dict(chaos.ledger.checked)}")
        _say(f"the slowest orderly stop took {chaos.slowest_stop:.2f} s")
