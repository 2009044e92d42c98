"""The soak in small: see the package's docstring."""

from __future__ import annotations

import pytest
from harness import BACKENDS

from soak.endurance import SETTINGS, a_daemon, endure, quiet
from soak.load import BUILDS, CLONES


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_of_builds_and_clones_whatever_their_end(backend: str) -> None:
    with a_daemon(SETTINGS, backend) as daemon:
        found = endure(daemon, builds=BUILDS, clones=CLONES, rest=quiet)
    assert found.complaints() == []
    assert found.builds == BUILDS
    assert {"success", "failed (phase_failed)", "failed (timeout)", "cancelled (cancelled)"} == found.ends.keys()
