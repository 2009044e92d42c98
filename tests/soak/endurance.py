"""Many builds and clones in one daemon, and the proof that afterwards it holds what it held before.

The baseline is taken when what is bounded and kept has been filled (the newest events in memory, connections to the
database, spare work directories, caches of plans) by a round of everything, and the daemon is at rest. At the end it
is at rest again, and everything is compared: see `harness.census` for what, and how exactly. Resident memory may be a
tenth more than it was after the first hundred operations.

*At rest*: nothing is queued or running, the census equals the one before, and the number of threads has not changed
for longer than an idle worker thread lives.
"""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness import ROOT, Daemon, a_home, served, unbooted, until
from harness.census import Census, excess, take
from msgspec import Struct

from buildd.store.database import READERS
from buildd.store.journal import RECENT
from soak.load import Load, silent_server, sources_below
from soak.sampling import Sample, Sampler

MEASURED_AFTER = 100
"""Operations after which memory is measured."""
MOST_GROWTH = 1.10
SETTINGS: dict[str, object] = {
    "workers.max_concurrent_builds": 8,
    "workers.max_concurrent_clones": 4,
    "maps.automatic": "true",
    "repos.idle_timeout": "10min",
    "daemon.shutdown_grace": "0s",
    "sandbox.readonly_paths": "[]",  # so that work directories are used again
}
_IDLE_THREAD_S = 11.0
"""A worker thread without work ends after ten seconds."""
_REST_WITHIN_S = 90.0


class Endurance(Struct, frozen=True, kw_only=True):
    builds: int
    clones: int
    seconds: float
    baseline: Census
    final: Census
    rss_then: int
    """Bytes after the first MEASURED_AFTER operations, at rest."""
    samples: list[Sample]
    ends: dict[str, int]
    """Builds by how they ended."""

    def complaints(self) -> list[str]:
        found = excess(self.final, self.baseline)
        if self.final.rss > MOST_GROWTH * self.rss_then:
            found.append(f"resident memory grew from {self.rss_then / 1e6:.1f} MB to {self.final.rss / 1e6:.1f} MB")
        return found


def endure(
    daemon: Daemon,
    *,
    builds: int,
    clones: int,
    rest: Callable[[Daemon], Census],
    warm_up: Callable[[Daemon], None] = lambda daemon: None,
    say: Callable[[str], None] = lambda text: None,
) -> Endurance:
    """Run rounds until there were so many builds and clones, after one that does not count.

    `rest` is `at_rest`, or `quiet` where there is no time to wait for threads to end; `warm_up` fills what one round
    does not fill.
    """
    began = time.monotonic()
    with served(sources_below(daemon.home)) as server, silent_server() as silent:
        load = Load(daemon, server, silent)
        with Sampler(daemon, lambda: load.operations) as sampler:
            load.run()
            warm_up(daemon)
            baseline = rest(daemon)
            warmed_up, rss_then = load.operations, 0
            say(f"baseline after {warmed_up} operations: {_in_short(baseline)}")
            counted = load.builds, load.clones
            while load.builds - counted[0] < builds or load.clones - counted[1] < clones:
                load.run()
                if not rss_then and load.operations - warmed_up >= MEASURED_AFTER:
                    rss_then = rest(daemon).rss
                    say(f"{load.operations - warmed_up} operations: {rss_then / 1e6:.1f} MB")
            final = back_at(daemon, baseline)
            say(f"after {load.operations - warmed_up} operations: {_in_short(final)}")
    return Endurance(
        builds=load.builds - counted[0],
        clones=load.clones - counted[1],
        seconds=time.monotonic() - began,
        baseline=baseline,
        final=final,
        rss_then=rss_then or baseline.rss,
        samples=sampler.samples,
        ends=ends_of(daemon),
    )


def ends_of(daemon: Daemon) -> dict[str, int]:
    """All builds that the database knows, by state and reason."""
    sql = "SELECT state, json_extract(record, '$.reason'), count(*) FROM builds GROUP BY 1, 2 ORDER BY 1, 2"
    return {f"{state} ({reason})" if reason else state: count for state, reason, count in daemon.rows(sql)}


def at_rest(daemon: Daemon) -> Census:
    """What the daemon holds once it is at rest."""
    last = quiet(daemon)
    since = time.monotonic()

    def settled() -> Census | None:
        nonlocal last, since
        now = quiet(daemon)
        if excess(now, last) or now.threads != last.threads:
            last, since = now, time.monotonic()
        return now if time.monotonic() - since > _IDLE_THREAD_S else None

    found = until(settled, "the daemon is at rest", within=_REST_WITHIN_S)
    assert found is not None
    return found


def back_at(daemon: Daemon, baseline: Census, *, within: float = _REST_WITHIN_S) -> Census:
    """What the daemon holds once that is the baseline again, or what it held last when it never was."""
    deadline = time.monotonic() + within
    while True:
        now = quiet(daemon)
        if not excess(now, baseline) or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def quiet(daemon: Daemon) -> Census:
    """A census while nothing runs, with all the connections to the database that are kept."""
    until(lambda: _is_idle(daemon), "nothing runs", within=_REST_WITHIN_S)
    fill_pool(daemon)
    return take(daemon)


def _is_idle(daemon: Daemon) -> bool:
    status = daemon.status()
    return not (status["runs"]["active"] or status["builds"]["running"] or status["clones"] or status["maps"])


def fill_journal(daemon: Daemon) -> None:
    """Have the daemon keep as many events in memory as it ever does."""
    while int(daemon.call("events.poll", {"after": -1})["next"]) < RECENT:
        for _ in range(100):
            daemon.call("daemon.drain")
            daemon.call("daemon.resume")


def fill_pool(daemon: Daemon) -> None:
    """Have the daemon open all the connections to its database that it keeps: they are opened on demand."""
    database = str(daemon.state_dir / "buildd.db")

    def filled() -> bool:
        if take(daemon).descriptors[database] >= READERS + 1:
            return True
        with concurrent.futures.ThreadPoolExecutor(4 * READERS) as pool:
            list(pool.map(lambda _: daemon.call("build.list", {"limit": 1000}), range(4 * READERS)))
        return False

    until(filled, "the pool of database connections is full")


def _in_short(census: Census) -> str:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(census.kinds().items()))
    files, children = sum(census.descriptors.values()), sum(census.children.values())
    return f"{census.rss / 1e6:.1f} MB, {files} descriptors ({kinds}), {census.threads} threads, {children} children"


@contextmanager
def a_daemon(settings: Mapping[str, object], backend: str | None = None) -> Iterator[Daemon]:
    """A booted daemon whose temporary files go below its home, where the census sees them.

    Where we may make mounts they are all of its /tmp; else those of programs that heed TMPDIR.
    """
    with a_home("/var/tmp") as home:
        tmp = home / "tmp"
        tmp.mkdir(mode=0o1777)
        prefix = _with_own_tmp(tmp)
        environ = {"TMPDIR": "/tmp" if prefix else str(tmp)}
        with unbooted(backend=backend, settings=settings, environ=environ, home=home) as daemon:
            yield daemon.boot(*prefix)


def _with_own_tmp(tmp: Path) -> list[str]:
    """A command that runs another one with `tmp` as its /tmp; none where we may not make mounts."""
    steps = []
    for program in {ROOT, Path(sys.prefix), Path(sys.base_prefix)}:
        if program.is_relative_to("/tmp"):  # what is run there must be there
            (tmp / program.relative_to("/tmp")).mkdir(parents=True, exist_ok=True)
            steps.append(f"mount --bind {program} {tmp / program.relative_to('/tmp')}")
    steps += [f"mount --rbind {tmp} /tmp", 'exec "$@"']
    command = ["unshare", "--mount", "sh", "-c", " && ".join(steps), "sh"]
    tried = subprocess.run([*command, "true"], stderr=subprocess.DEVNULL, check=False)
    return command if tried.returncode == 0 else []
