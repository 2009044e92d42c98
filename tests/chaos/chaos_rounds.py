"""Rounds: the daemon is kept busy, struck at some moment, looked at while it is down, and started again.

What a round does follows from the seed and its number alone, and so does the moment, as far as moments can be the
same again: a failure names both.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chaos_leftovers as leftovers
from chaos_ledger import Ledger, Wish
from chaos_life import Life, Reader
from chaos_world import Place, World
from harness import Daemon, RpcError, Silence

MOST_OPEN = 3
"""Unfinished runs; more would only wait for each other."""
STOPS_WITHIN_S = 30.0
_EVENT_LIMIT_S = 1.5
_STEP_LIMIT_S = 2.0

Match = Callable[[dict[str, Any]], bool]
EVENTS: dict[str, Match] = {
    "a run is accepted": lambda e: e["kind"] == "run_state" and e["data"]["to"] == "initialized",
    "a run is planned": lambda e: e["kind"] == "run_state" and e["data"]["to"] == "building",
    "a run has ended": lambda e: e["kind"] == "run_state" and e["data"]["to"] in ("completed", "failed", "cancelled"),
    "a package is started": lambda e: e["kind"] == "package_started",
    "a phase begins": lambda e: e["kind"] == "package_phase",
    "a package is built": lambda e: e["kind"] == "package_completed",
    "artifacts are collected": lambda e: e["kind"] == "artifacts_collected",
    "a clone begins": lambda e: e["kind"] == "clone_started",
    "a clone goes on": lambda e: e["kind"] == "clone_progress",
    "a clone is there": lambda e: e["kind"] in ("clone_completed", "repo_refreshed"),
    "a map is begun": lambda e: e["kind"] == "map_started",
    "a map is there": lambda e: e["kind"] == "map_completed",
    "something is cancelled": lambda e: e["kind"] == "run_cancel_requested",
}


@dataclass(frozen=True)
class Strike:
    """How a life ends, and when."""

    how: str
    """`kill`, `term`, or `both`: SIGTERM, and SIGKILL while it stops."""
    event: str | None
    """Of EVENTS; without one the moment is counted from the beginning of the deeds."""
    nth: int
    """Which of these events of the life."""
    after: float
    """Seconds."""
    die_after: int
    """Steps after which the daemon is killed by itself; 0 for none."""
    patience: float
    """Seconds from SIGTERM to SIGKILL."""
    at_boot: tuple[float, ...]
    """The next boots are killed after so many seconds, one after the other."""

    def __str__(self) -> str:
        when = f"{self.after * 1000:.0f} ms after {f'{self.event} ({self.nth})' if self.event else 'the beginning'}"
        how = f"{self.how} {self.patience * 1000:.0f} ms later" if self.how == "both" else self.how
        steps = f", dies after {self.die_after} steps" if self.die_after else ""
        boots = "".join(f", boot killed after {seconds * 1000:.0f} ms" for seconds in self.at_boot)
        return f"{how} {when}{steps}{boots}"


def draw_strike(rng: random.Random) -> Strike:
    event = rng.choice(list(EVENTS)) if rng.random() < 0.55 else None
    return Strike(
        how=rng.choices(("kill", "term", "both"), (60, 20, 20))[0],
        event=event,
        nth=rng.choice((1, 1, 2, 3, 5)),
        after=rng.choice((0.0, 0.0, 0.001, 0.005, 0.02)) if event else rng.random() * rng.choice((0.1, 0.5, 1.5)),
        die_after=rng.randint(1, 500) if rng.random() < 0.25 else 0,
        patience=rng.random() * 0.4,
        at_boot=tuple(rng.random() * 1.2 for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2)))),
    )


class Deeds:
    """What clients ask for during one life, each in a thread of its own."""

    def __init__(
        self, world: World, ledger: Ledger, life: Life, rng: random.Random, *, names: list[str] | None = None
    ) -> None:
        """What is asked for is noted in `names`."""
        self._world, self._ledger, self._life, self._rng = world, ledger, life, rng
        self._pool = ThreadPoolExecutor(8)
        self._asked: list[Future[None]] = []
        self._names = names if names is not None else []

    def begin(self) -> None:
        """Draw what is to be done, on this thread, and have it done."""
        rng = self._rng
        while self._ledger.to_repeat:
            wish = self._ledger.to_repeat.pop()
            self._ask(f"start {wish.id} again", partial(self.start, wish))
        room = MOST_OPEN - len(self._ledger.open())
        for _ in range(min(room, rng.choice((1, 1, 2, 3)))):
            self._start()
        often = (self._clone, self._collect, self._collect, self._cancel, self._pin, self._verify, self._export)
        others = (self._refresh, self._check, self._clone_nothing, self._reload, self._map, self._map)
        for deed in rng.sample((*often, *others), rng.randint(1, 4)):
            deed()

    def join(self) -> None:
        """Wait for all answers, which come or never will, and raise what went wrong."""
        self._pool.shutdown(wait=True)
        for asked in self._asked:
            asked.result()

    def _ask(self, name: str, deed: Callable[[], None]) -> None:
        delay = self._rng.choice((0.0, 0.0, 0.05, 0.3)) * self._rng.random()
        self._names.append(name)

        def work() -> None:
            time.sleep(delay)
            try:
                deed()
            except Silence:
                pass  # it died before it answered

        self._asked.append(self._pool.submit(work))

    def _call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """The answer; None when it was refused, as it may be."""
        try:
            return self._life.call(method, params)
        except RpcError as error:
            if error.code < 0:  # of the protocol: a fault of the daemon, or of this
                raise
            return None

    # --- runs ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        rng, world = self._rng, self._world
        place = rng.choice((world.local, world.local, world.shared, world.shared, world.plain))
        which = -1 if place is world.plain or rng.random() < 0.7 else rng.randrange(len(place.commits))
        options: dict[str, Any] = {}
        kind = rng.random()
        if kind < 0.1:
            options["force"] = True
        elif kind < 0.25:
            options["force_packages"] = [rng.choice(place.parts).name]
        elif kind < 0.35 and place is not world.plain:
            options["verify"] = True
        elif kind < 0.45:
            options["keep_going"] = False
        wish = self._ledger.wish(place, which, **options)
        self._ask(f"start {wish.id} in {place.workspace.mark} {options or ''}".rstrip(), partial(self.start, wish))
        if rng.random() < 0.15:
            self._ask(f"cancel {wish.id}", lambda: self._cancel_wish(wish, None))

    def start(self, wish: Wish) -> None:
        target = wish.place.at(wish.commit)
        try:
            answer = self._life.call("run.start", {"targets": [target], "priority": wish.id, **wish.options})
        except RpcError as error:
            assert error.code == 4, error  # it stops
            wish.refused = True
            return
        wish.number, wish.run, wish.answered = answer["number"], answer["id"], True

    def _cancel(self) -> None:
        running = self._ledger.open()
        if running:
            wish = self._rng.choice(running)
            package = self._rng.choice((None, self._rng.choice(wish.place.parts).name))
            self._ask(f"cancel {package or ''} of {wish.id}", lambda: self._cancel_wish(wish, package))

    def _cancel_wish(self, wish: Wish, package: str | None) -> None:
        if wish.number is not None:
            wish.cancelled = True
            wanted = {"run": str(wish.number), **({"package": package} if package else {})}
            if self._call("run.cancel", wanted) is not None and package is None:
                wish.given_up = True

    # --- artifacts ----------------------------------------------------------------------------------------

    def _collect(self) -> None:
        limit = self._rng.choice((0, 1, 20_000, 200_000, 400_000))
        self._ask(f"collect down to {limit}", lambda: self.collect_down_to(limit))

    def collect_down_to(self, limit: int) -> None:
        begun = time.time()
        try:
            self._call("artifact.collect", {"max_bytes": limit})
        finally:
            self._ledger.collections.append((begun, time.time()))

    def _pin(self) -> None:
        name = self._rng.choice(self._world.local.parts).name
        method = self._rng.choice(("artifact.pin", "artifact.pin", "artifact.unpin"))
        self._ask(f"{method} {name}", lambda: self._change_pin(method, name))

    def _change_pin(self, method: str, name: str) -> None:
        pinned = self._ledger.pinned
        if method == "artifact.unpin":  # whether it gets there or not
            for output in [output for output, by in pinned.items() if by == name]:
                del pinned[output]
        answer = self._call(method, {"artifact": name})
        if answer is not None and method == "artifact.pin":
            pinned[answer["message"].split()[1]] = name

    def _export(self) -> None:
        name = self._rng.choice(self._world.shared.parts).name
        self._ask(f"export {name}", lambda: self._call("artifact.export", {"artifact": name}))

    def _verify(self) -> None:
        self._ask("verify artifacts", self._verify_artifacts)

    def _verify_artifacts(self) -> None:
        answer = self._call("artifact.verify")
        assert answer is None or answer["damaged"] == 0, answer

    # --- repositories and records -------------------------------------------------------------------------

    def _clone(self) -> None:
        url = self._world.heavy
        if self._rng.random() < 0.6:
            self._ask("delete and clone", lambda: self._clone_again(url))
        else:
            self._ask("clone", lambda: self._clone_it(url))

    def _clone_again(self, url: str) -> None:
        self._ledger.clones.discard(url)
        self._call("repo.delete", {"repo": url})
        self._clone_it(url)

    def _clone_it(self, url: str) -> None:
        if self._call("repo.clone", {"repo": url, "again": True}) is not None:
            self._ledger.clones.add(url)

    def _clone_nothing(self) -> None:
        self._ask("clone silence", lambda: self._clone_it(self._world.silent))

    def _reload(self) -> None:
        self._ask("reload", lambda: self._call("daemon.reload"))

    def _refresh(self) -> None:
        place: Place = self._world.shared
        self._ask("refresh", lambda: self._call("repo.refresh", {"repo": place.target}))

    def _map(self) -> None:
        place = self._rng.choice((self._world.local, self._world.shared))
        method, options = self._rng.choice(
            (("map.get", {}), ("map.get", {"timeout": 1}), ("map.request", {"again": True}))
        )
        self._ask(f"{method} {place.target}", lambda: self._call(method, {"repo": place.target, **options}))
        if self._rng.random() < 0.2:
            self._ask("cancel maps", lambda: self._call("map.cancel", {"repo": place.target}))

    def _check(self) -> None:
        self._ask("check the database", self._check_database)

    def _check_database(self) -> None:
        answer = self._call("db.verify")
        assert answer is None or answer["ok"], answer


class Chaos:
    """A world, a daemon, and what it went through."""

    def __init__(self, seed: int, world: World, daemon: Daemon, *, say: Callable[[str], None]) -> None:
        self.seed, self.world, self.daemon, self.say = seed, world, daemon, say
        self.ledger = Ledger(daemon)
        self.reader = Reader()
        self.counts: Counter[str] = Counter()
        self.slowest_stop = 0.0
        self._left: set[str] = set()
        """What the last life left of files."""

    def go(self, rounds: int) -> None:
        """All rounds, and what must be true at the end of them."""
        for number in range(1, rounds + 1):
            rng = random.Random(f"{self.seed}/{number}")
            strike = draw_strike(rng)
            deeds: list[str] = []
            try:
                self._round(rng, strike, deeds)
            except Exception as error:
                what = f"seed {self.seed}, round {number}: {strike}. Deeds: {'; '.join(deeds)}."
                self.say(f"{what}\n{error}\nWhat the daemon left is kept in {self._keep()}")
                raise AssertionError(f"{what}\n{error}") from error
            self.say(f"round {number}: {strike}; {len(deeds)} deeds, {len(self.ledger.open())} runs open")
        self._finish()

    def _keep(self) -> Path:
        """Copy the daemon's home to where pytest keeps it for a while."""
        kept = self.world.root / "home"
        subprocess.run(["cp", "-a", self.daemon.home, kept], check=False, capture_output=True)
        return kept

    def _round(self, rng: random.Random, strike: Strike, deeds: list[str]) -> None:
        self._change(rng)
        life = Life(self.daemon)
        steps = {"BUILDD_DIE_AFTER": str(strike.die_after)} if strike.die_after else None
        if life.begin(steps=steps) and self._has_come_up(life):
            if rng.random() < 0.3 and not strike.die_after:
                self._rest()
            self._live(life, rng, strike, deeds)
        self._after_death()
        for seconds in strike.at_boot:
            self._die_at_boot(seconds)

    def _has_come_up(self, life: Life) -> bool:
        """Whether the daemon is as it should be, unless it was to die so early that nobody can see that."""
        try:
            self._check_up()
        except Silence:
            if not life.is_over():
                raise
            return False
        return True

    def _change(self, rng: random.Random) -> None:
        for place in (self.world.local, self.world.shared):
            if rng.random() < 0.5:
                place.change(rng)
        if rng.random() < 0.5 and not any(wish.place is self.world.plain for wish in self.ledger.open()):
            self.world.plain.change(rng)

    def _live(self, life: Life, rng: random.Random, strike: Strike, deeds: list[str]) -> None:
        """A life, from the daemon's first answer to its end."""
        following = self.reader.follow(life)
        doing = Deeds(self.world, self.ledger, life, rng, names=deeds)
        try:
            doing.begin()
            self._strike(life, strike)
        finally:
            if not life.is_over():
                self.daemon.kill9()
            following.join()
            doing.join()

    def _strike(self, life: Life, strike: Strike) -> None:
        if strike.die_after:  # unless it does nothing for so long
            self._wait_for_end(life, _STEP_LIMIT_S)
        elif strike.event is not None and not self.reader.wait_for(
            EVENTS[strike.event], strike.nth, within=_EVENT_LIMIT_S
        ):
            self.counts["moments that did not come"] += 1
        else:
            time.sleep(strike.after)
        if life.is_over():
            self.counts["steps"] += 1
            return
        self.counts[strike.how] += 1
        if strike.how == "kill":
            self.daemon.kill9()
            return
        self.daemon.signal(signal.SIGTERM)
        begun = time.monotonic()
        if strike.how == "both" and not self._wait_for_end(life, strike.patience):
            self.daemon.kill9()
            return
        status = self.daemon.exit_status(within=STOPS_WITHIN_S)
        if strike.die_after and status == -signal.SIGKILL:  # its last step was one of its end
            self.counts["steps"] += 1
            return
        assert status == 0
        self.slowest_stop = max(self.slowest_stop, time.monotonic() - begun)
        assert leftovers.files(self.daemon) == set(), "an orderly end leaves nothing"
        assert leftovers.processes(self.daemon) == []

    def _wait_for_end(self, life: Life, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not life.is_over() and time.monotonic() < deadline:
            time.sleep(0.001)
        return life.is_over()

    # --- between two lives --------------------------------------------------------------------------------

    def _after_death(self) -> None:
        """Nothing runs any more, and the records are sound; what is left of files is for the next life to remove."""
        leftovers.gone(lambda: leftovers.processes(self.daemon), "processes")
        assert leftovers.mounts(self.daemon) == []
        self.ledger.audit(self.reader.told)
        self._left = leftovers.files(self.daemon)
        self.counts["left files"] += len(self._left)

    def _check_up(self) -> None:
        """Ready means that everything of the lives before was removed."""
        still = self._left & leftovers.files(self.daemon, up=True)
        still = {name for name in still if not name.startswith("state/prefix/")}  # builds that go on have it again
        assert still == set(), f"the next life did not remove {sorted(still)}"
        answer = self.daemon.call("db.verify")
        assert answer["ok"], answer
        assert answer["stale_builds"] == 0
        assert [m for m in self.daemon.call("map.list")["maps"] if m["status"] == "building"] == []
        known = {repository["url"] for repository in self.daemon.call("repo.list")["repositories"]}
        assert known >= self.ledger.clones

    def _die_at_boot(self, seconds: float) -> None:
        life = Life(self.daemon)
        life.begin(patience=seconds)
        if not life.is_over():
            self.daemon.kill9()
        self.counts["boots killed"] += 1
        self._after_death()

    def _rest(self) -> None:
        """Let everything end, in the middle of a life, and see that it has."""
        self.ledger.settle()
        for repository in self.daemon.call("repo.list")["repositories"]:
            try:
                self.daemon.call("repo.cancel", {"repo": repository["url"]})
            except RpcError:
                pass  # nothing is being cloned
            try:
                self.daemon.call("map.cancel", {"repo": repository["url"]})
            except RpcError:
                pass  # no map is being made
        self._check_idle()
        self.counts["rests"] += 1

    def _check_idle(self) -> None:
        leftovers.gone(lambda: leftovers.files(self.daemon, up=True), "files")
        leftovers.gone(lambda: leftovers.processes(self.daemon)[self._own :], "processes")
        assert leftovers.mounts(self.daemon) == []
        assert leftovers.control_groups(self.daemon) == []
        assert self.daemon.rows("SELECT id FROM builds WHERE state = 'running'") == []
        assert self.daemon.rows("SELECT id FROM runs WHERE finished = 0") == []

    @property
    def _own(self) -> int:
        """Processes of a daemon that has nothing to do: itself, and without a sandbox its warden."""
        return 2 if self.daemon.backend == "plain" else 1

    # --- the end ------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Every run ends; what was set aside can be built, and so can the present commits."""
        life = Life(self.daemon)
        assert life.begin()
        self._check_up()
        self._rest()
        deeds = Deeds(self.world, self.ledger, life, random.Random(0))
        self.ledger.to_repeat += [self.ledger.wish(p) for p in (self.world.local, self.world.shared, self.world.plain)]
        while self.ledger.to_repeat:
            deeds.start(self.ledger.to_repeat.pop())
            self.ledger.settle()
        deeds.join()
        self._check_idle()
        assert self.daemon.terminate() == 0
        assert leftovers.files(self.daemon) == set()
        assert leftovers.processes(self.daemon) == []
        self.ledger.audit(self.reader.told)
