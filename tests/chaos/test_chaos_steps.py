"""The daemon is killed at each place in its code where it is about to change something on the disk.

A life in which everything happens once is played while its steps are noted (`steps/sitecustomize.py`). Then, with a
new daemon for each, it is played until the daemon dies at one of them. Every window between two steps is one of
these: what was done before is done, and what was to follow is not.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import chaos_leftovers as leftovers
import pytest
from chaos_ledger import Ledger
from chaos_life import Life, Reader
from chaos_rounds import Deeds
from chaos_world import Place, World, a_world
from harness import BACKENDS, Daemon, RecipeRepository, RpcError, Silence, unbooted, until
from test_chaos_rounds import FULL, ROUNDS, SEED, SETTINGS, SHARE

STEPS = ROUNDS // 3
"""How many places are tried; the long form has most of them."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with a_world(tmp_path_factory.mktemp("steps")) as found:
        yield found


class Play:
    """A life of a new daemon in which everything happens once."""

    def __init__(self, daemon: Daemon, world: World) -> None:
        self.daemon, self.world = daemon, world
        self.ledger, self.reader = Ledger(daemon), Reader()

    def run(self, steps: dict[str, str]) -> None:
        """Play it to the end, or until the daemon dies."""
        life = Life(self.daemon)
        if not life.begin(steps=steps):
            return
        following = self.reader.follow(life)
        deeds = Deeds(self.world, self.ledger, life, random.Random(0))
        try:
            self._act(life, deeds)
        except Silence:
            until(life.is_over, "a daemon that is silent is dead", within=5)
        finally:
            following.join()
            deeds.join()

    def _act(self, life: Life, deeds: Deeds) -> None:
        def ask(method: str, **params: object) -> None:
            try:
                life.call(method, params)
            except RpcError as error:
                assert error.code == 4, error  # a rebuilt artifact may be another's dependency just now

        def build(place: Place, **options: object) -> None:
            wish = self.ledger.wish(place, **options)
            deeds.start(wish)
            while not life.call("run.wait", {"run": str(wish.number), "timeout": 5})["finished"]:
                pass

        quick, plain = self.world.quick, self.world.plain
        build(quick)
        ask("artifact.pin", artifact="q1")
        ask("artifact.export", artifact="q2")
        build(plain)
        ask("artifact.unpin", artifact="q1")
        deeds.collect_down_to(1)
        build(quick, force_packages=["q0"])
        ask("repo.delete", repo=quick.target)
        self.daemon.signal(signal.SIGTERM)
        self.daemon.exit_status(within=30)


def _audit_and_go_on(play: Play) -> None:
    """Nothing runs, nothing is lost; the next life removes what is left, and everything ends well."""
    daemon = play.daemon
    leftovers.gone(lambda: leftovers.processes(daemon), "processes")
    if (daemon.state_dir / "buildd.db").exists():
        play.ledger.audit(play.reader.told)
    left = leftovers.files(daemon)
    life = Life(daemon)
    assert life.begin()
    still = left & leftovers.files(daemon, up=True)
    assert still == set(), f"the next life did not remove {sorted(still)}"
    assert daemon.call("db.verify")["ok"]
    play.ledger.settle()
    for place in (play.world.quick, play.world.plain):
        wish = play.ledger.wish(place)
        Deeds(play.world, play.ledger, life, random.Random(0)).start(wish)
        assert wish.number is not None
        assert daemon.wait(wish.number).state == "completed"
    assert daemon.terminate() == 0
    assert leftovers.files(daemon) == set()
    play.ledger.audit([])


@pytest.mark.parametrize("backend", BACKENDS if FULL else BACKENDS[:1])
def test_nothing_is_lost_or_left_behind_at_whichever_step_the_daemon_dies(
    backend: str, world: World, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    notes = tmp_path / "steps"
    with unbooted(backend=backend, settings=SETTINGS) as daemon:
        Play(daemon, world).run({"BUILDD_STEPS": str(notes)})
        assert daemon.process is not None
        assert daemon.process.returncode == 0
    steps = Counter(notes.read_text().splitlines())
    count = max(1, round(STEPS * SHARE[backend]))
    chosen = sorted(steps) if len(steps) <= count else rng.sample(sorted(steps), count)
    missed = []
    for number, step in enumerate(chosen, start=1):
        nth = rng.choice((1, rng.randint(1, steps[step])))
        with unbooted(backend=backend, settings=SETTINGS) as daemon:
            play = Play(daemon, world)
            play.run({"BUILDD_DIE_AT": f"{nth} {step}"})
            assert daemon.process is not None
            died = daemon.process.returncode == -signal.SIGKILL
            if not died:
                missed.append(step)
            try:
                _audit_and_go_on(play)
            except AssertionError as error:
                raise AssertionError(f"seed {SEED}: killed at the {nth}. {step}\n{error}") from error
        sys.stdout.write(
            f"{time.strftime('%H:%M:%S')} {number}/{len(chosen)} {nth}. {step}{'' if died else ' (not met)'}\n"
        )
        sys.stdout.flush()
    assert len(missed) <= len(chosen) // 4, f"these steps were not met: {missed}"


@pytest.mark.skipif(not FULL, reason="make chaos has it; tests/store/test_lost.py has the same of the files alone")
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_run_outlives_a_reset_of_the_database_in_which_the_daemon_dies(nth: int, tmp_path: Path) -> None:
    """The new file is complete; the old log and the old file go aside; the new one is put in place."""
    repository = RecipeRepository(tmp_path / "r")
    with unbooted(settings=SETTINGS) as daemon:
        daemon.settings["sandbox.readonly_paths"] = f'["{daemon.gates}"]'
        repository.package("one", phases={"build": f"echo here; {daemon.at_gate()}"}).commit()
        life = Life(daemon)
        assert life.begin(steps={"BUILDD_DIE_AT": f"{nth} os.rename buildd/store/dbfile.py"})
        number = daemon.start(repository)
        daemon.until_running(number, 1, saying="here")
        with pytest.raises(Silence):
            life.call("db.reset", {"force": True})
        until(life.is_over, "it is dead", within=5)
        daemon.open_gate()
        daemon.boot()
        assert daemon.wait(number).state == "completed"
        assert daemon.call("db.verify")["ok"]
