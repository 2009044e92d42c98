"""A power cut at any moment of a run: what was accepted is completed after the next boot, once, and nothing is left.

The moments are random, one in each tenth of the time that a run takes; BUILDD_VM_SEED repeats those that were printed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import RecipeRepository

from vm.guest import Guest, copied_in

CUTS = 10
SEED = os.environ.get("BUILDD_VM_SEED") or str(random.randrange(10**6))
PACKAGES: dict[str, list[str]] = {
    "base": [],
    "data": [],
    "lib": ["base"],
    "codec": ["base", "data"],
    "tool": ["lib"],
    "server": ["lib", "codec"],
    "client": ["lib"],
    "docs": ["data"],
}
"""What each needs."""
BUILD = "for i in 1 2 3; do echo step $i; sleep 1; done"
STAGE = """\
mkdir -p "$DESTDIR$PREFIX/share/{0}"
for i in 1 2 3 4 5 6 7 8; do
    yes "{0} $i $(cat src)" | head -c 400000 > "$DESTDIR$PREFIX/share/{0}/$i"
done
"""


class Prepared(NamedTuple):
    vm: Guest
    span: float
    """Seconds that a run took which nobody disturbed."""


def workspace(path: Path, mark: str) -> RecipeRepository:
    repository = RecipeRepository(path)
    for name, needs in PACKAGES.items():
        phases = {"build": BUILD, "stage": STAGE.format(name)}
        repository.package(name, depends=needs, phases=phases, files={"src": mark})
    repository.commit()
    return repository


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    with Guest() as vm:
        vm.boot()
        target = copied_in(vm, workspace(tmp_path_factory.mktemp("undisturbed") / "workspace", "undisturbed"))
        started = time.monotonic()
        assert vm.wait(vm.start(target), within=300).state == "completed"
        yield Prepared(vm, time.monotonic() - started)


@pytest.mark.parametrize("tenth", range(CUTS))
def test_an_accepted_run_survives_a_power_cut(prepared: Prepared, tmp_path: Path, tenth: int) -> None:
    vm = prepared.vm
    moment = prepared.span * (tenth + random.Random(f"{SEED} {tenth}").random()) / CUTS
    print(f"power cut {moment:.2f} s after the run was accepted, of {prepared.span:.0f} s (BUILDD_VM_SEED={SEED})")
    target = copied_in(vm, workspace(tmp_path / "workspace", f"{SEED} {tenth}"))
    number = vm.start(target)
    time.sleep(moment)

    vm.power_cut()
    vm.boot()

    print("\n".join(vm.query("SELECT package, state, key FROM builds ORDER BY started_at DESC LIMIT 16")))
    assert vm.query("PRAGMA integrity_check") == ["ok"]
    assert vm.run("ls /var/lib/buildd | grep corrupt", check=False).out == ""
    view = vm.wait(number, within=300)
    assert (view.state, view.stats.success, view.stats.total) == ("completed", len(PACKAGES), len(PACKAGES)), view
    successes = vm.query(
        "SELECT package, key, count(*) FROM builds JOIN runs ON builds.run = runs.id"
        f" WHERE runs.number = {number} AND builds.state = 'success' GROUP BY package, key"
    )
    assert sorted(line.split("|")[0] for line in successes) == sorted(PACKAGES), successes
    assert {line.split("|")[2] for line in successes} == {"1"}, successes
    verified = vm.call("artifact.verify")
    assert verified["damaged"] == 0, verified
    assert vm.leftovers() == ""
    assert vm.run("journalctl -b -p err -o cat --no-pager _SYSTEMD_UNIT=buildd.service", check=False).out == ""
    assert "EXT4-fs error" not in vm.run("journalctl -k -b --no-pager").out
