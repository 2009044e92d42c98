"""What was asked of the daemon, and what must be true of it whenever one looks.

A wish is a run that somebody asked for. One that was answered is in the database for good; one whose answer never
came may be there or not; one that was refused is not. Each that is there ends, and as its sources and what was done
to it say.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sqlite3
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from chaos_life import Told
from chaos_world import Expected, Place
from harness import Daemon

from buildd.model import BuildRecord
from buildd.protocol import RunView

GOOD = ("success", "skipped")
FINAL = ("completed", "failed", "cancelled")
DIED = "the daemon was killed while this was built"
KILLER_ATTEMPTS = 3


@dataclass
class Wish:
    """A run that was asked for. Its id is the priority of the request: that is how it is known again."""

    id: int
    place: Place
    commit: str
    expected: Expected
    options: dict[str, Any]
    again: bool = False
    """Whether it takes the place of another one."""
    number: int | None = None
    run: str | None = None
    answered: bool = False
    refused: bool = False
    """Whether it is known not to be there."""
    cancelled: bool = False
    """Whether somebody asked to cancel it or a package of it, whatever the answer was."""
    given_up: bool = False
    """Whether the answer was that all of it is being cancelled."""
    ended: bool = False

    def forces(self, package: str) -> bool:
        options = self.options
        return bool(options.get("force") or options.get("verify") or package in options.get("force_packages", ()))


@dataclass
class Records:
    """The database as it was on the disk while no daemon ran."""

    runs: dict[str, tuple[int, bool, dict[str, Any]]]
    """Number, whether it has ended, and record, by id."""
    builds: list[BuildRecord]
    events: list[Told]


@dataclass
class Ledger:
    daemon: Daemon
    wishes: dict[int, Wish] = field(default_factory=dict)
    collections: list[tuple[float, float]] = field(default_factory=list)
    """When artifacts may have been collected."""
    to_repeat: list[Wish] = field(default_factory=list)
    """Wishes to make in the place of those of which a package was set aside since the daemon died over it."""
    pinned: dict[str, str] = field(default_factory=dict)
    """Output ids of artifacts that are to be kept, and the packages by whose names they were pinned."""
    clones: set[str] = field(default_factory=set)
    """URLs of repositories that are to be known."""
    checked: Counter[str] = field(default_factory=Counter)
    """How often what was looked at, for people to read."""
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def wish(self, place: Place, which: int = -1, **options: Any) -> Wish:
        commit, expected = place.commits[which]
        return self._note(Wish(next(self._ids), place, commit, expected, options))

    def _note(self, wish: Wish) -> Wish:
        self.wishes[wish.id] = wish
        return wish

    def _repeat(self, wish: Wish) -> Wish:
        return self._note(Wish(next(self._ids), wish.place, wish.commit, wish.expected, wish.options, again=True))

    def open(self) -> list[Wish]:
        """Wishes that are known to be there, and not known to have ended."""
        return [wish for wish in self.wishes.values() if wish.number is not None and not wish.ended]

    # --- while no daemon runs -----------------------------------------------------------------------------

    def audit(self, told: Sequence[Told]) -> None:
        """Check the database and everything that is on record; learn which wishes are there."""
        records = self._read()
        self._audit_events(records, told)
        self._audit_wishes(records)
        self._audit_builds(records)
        self._audit_pins()
        self.checked["audits"] += 1
        self.checked["builds"] = len(records.builds)
        self.checked["events"] = len(records.events)

    def _read(self) -> Records:
        """By a copy, so that nothing of what a killed daemon left is changed by looking at it."""
        with tempfile.TemporaryDirectory(prefix="bd-audit-") as directory:
            copy = Path(directory, "buildd.db")
            for suffix in ("", "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(f"{self.daemon.state_dir}/buildd.db{suffix}", f"{copy}{suffix}")
            with contextlib.closing(sqlite3.connect(copy)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                if not connection.execute("SELECT name FROM sqlite_schema").fetchall():
                    return Records({}, [], [])  # the first life died before there was anything
                runs = connection.execute("SELECT id, number, finished, record FROM runs").fetchall()
                builds = connection.execute("SELECT record FROM builds ORDER BY started_at").fetchall()
                events = connection.execute(
                    "SELECT number, kind, run, build, package FROM events ORDER BY number"
                ).fetchall()
        return Records(
            {id: (number, bool(finished), json.loads(record)) for id, number, finished, record in runs},
            [msgspec.json.decode(record, type=BuildRecord) for (record,) in builds],
            events,
        )

    def _audit_events(self, records: Records, told: Sequence[Told]) -> None:
        numbers = [event[0] for event in records.events]
        assert numbers == list(range(1, len(numbers) + 1)), "events are missing"
        assert records.events[: len(told)] == list(told), "a reader was told what is not on record"
        states = {build.id: build.state for build in records.builds}
        for _, kind, _, build, package in records.events:
            if kind == "package_completed" and build is not None:
                assert states.get(build) == "success", f"{package} is told to be built, and its record says otherwise"

    def _audit_wishes(self, records: Records) -> None:
        found: set[int] = set()
        for id, (number, finished, record) in records.runs.items():
            wish = self.wishes[record["request"]["priority"]]
            assert wish.id not in found, f"run {number} is there twice"
            assert wish.number in (None, number)
            assert not wish.refused, f"run {number} was refused"
            assert finished or not wish.ended, f"run {number} had ended"
            found.add(wish.id)
            wish.number, wish.run = number, id
        for wish in list(self.wishes.values()):
            if wish.id not in found and not wish.refused:
                assert not wish.answered, f"run {wish.number} was accepted and is not there"
                wish.refused = True  # its request never got there, and must not turn up later
                if wish.again:
                    self.to_repeat.append(self._repeat(wish))

    def _audit_builds(self, records: Records) -> None:
        made: dict[tuple[str, str], list[BuildRecord]] = defaultdict(list)
        once: Counter[tuple[str, str, str]] = Counter()
        for build in records.builds:
            if build.state != "success":
                continue
            assert build.output_id is not None
            self._audit_artifact(build)
            once[build.run, build.package, build.key] += 1
            wish = self._wish_of(build)
            for earlier in made[build.package, build.key]:
                self._audit_again(wish, earlier, build)
            made[build.package, build.key].append(build)
        twice = {what: times for what, times in once.items() if times > 1}
        assert twice == {}, "a package has two successes of one key in one run"

    def _audit_pins(self) -> None:
        for output, name in self.pinned.items():
            artifact = self.daemon.state_dir / "artifacts" / output[:2] / output
            assert (artifact / "pin.json").exists(), f"the artifact of {name} was pinned"
            assert (artifact / "manifest.json").exists(), f"the artifact of {name} was pinned"

    def _wish_of(self, build: BuildRecord) -> Wish:
        return next(wish for wish in self.wishes.values() if wish.run == build.run)

    def _audit_artifact(self, build: BuildRecord) -> None:
        """The receipt is on disk before the record says success, and stays as long as the artifact.

        That may have been collected, and a later build have made another one.
        """
        assert build.artifact is not None
        assert build.completed_at is not None
        artifact = Path(build.artifact)
        if artifact.exists():
            made = json.loads((artifact / "manifest.json").read_bytes())["created_at"]
            receipt = artifact / "builds" / f"{build.id}.json"
            assert made > build.completed_at or receipt.exists(), f"{build.id} has no receipt"

    def _audit_again(self, wish: Wish, earlier: BuildRecord, build: BuildRecord) -> None:
        """A success that is on record is not built again, unless that was asked for or its artifact had gone."""
        assert earlier.completed_at is not None
        if wish.forces(build.package) or earlier.completed_at >= build.started_at:
            return
        gone = any(begun <= build.started_at and over >= earlier.completed_at for begun, over in self.collections)
        assert gone, f"{build.package} was built by {earlier.id}, and again by {build.id}"

    # --- while a daemon runs ------------------------------------------------------------------------------

    def settle(self, *, within: float = 120.0) -> None:
        """Wait for the end of all runs, and judge them."""
        deadline = time.monotonic() + within
        for wish in self.open():
            assert wish.number is not None
            self.judge(wish, self.daemon.wait(wish.number, within=max(1.0, deadline - time.monotonic())))

    def judge(self, wish: Wish, view: RunView) -> None:
        """What became of a run is what its sources, and what was done to it, say."""
        assert view.state in FINAL
        records = self.daemon.records(run=view.id)
        assert all(record.state != "running" for record in records), f"run {view.number} has ended"
        wish.ended = True
        self.checked[view.state] += 1
        assert view.state == "cancelled" or not wish.given_up, f"run {view.number} was cancelled, and it {view.state}"
        if not view.packages:  # it did not get as far as a plan
            self._judge_planless(wish, view)
            return
        states = {package.name: package.state for package in view.packages}
        set_aside = False
        for package in view.packages:
            below = [states[other] for other in wish.expected.needs[package.name]]
            planned = wish.expected.state(package.name)
            if package.state in GOOD:
                assert planned == "built"
                assert set(below) <= set(GOOD)
                self._judge_output(package.artifact, package.name, wish.expected.outputs[package.name])
            elif package.state == "failed":
                set_aside |= self._judge_failure(package.name, planned, str(package.message), records)
            elif package.state == "blocked":
                assert set(below) & {"failed", "blocked", "cancelled"}
            else:
                assert package.state == "cancelled"
                given_up = wish.options.get("keep_going") is False and "failed" in states.values()
                assert wish.cancelled or given_up, f"nobody cancelled {package.name} of run {view.number}"
        failed = "failed" in states.values()
        if view.state == "completed":
            assert set(states.values()) <= set(GOOD)
        elif view.state == "cancelled":
            assert wish.cancelled
        else:
            assert failed, f"run {view.number} failed: {view.error}"
        if set_aside and not wish.place.workspace.plain:  # a directory may be another one by now
            self.to_repeat.append(self._repeat(wish))

    def _judge_planless(self, wish: Wish, view: RunView) -> None:
        if view.state == "failed":
            assert wish.options.get("verify"), f"run {view.number} failed: {view.error}"
            assert "is not built from its present sources" in str(view.error)
        else:
            assert view.state == "cancelled"
            assert wish.cancelled

    def _judge_output(self, artifact: str | None, name: str, expected: str) -> None:
        """What was built is right, unless it was collected meanwhile."""
        assert artifact is not None
        for file in Path(artifact).glob(f"tree/**/share/{name}"):
            with contextlib.suppress(FileNotFoundError):
                assert file.read_text() == expected
                self.checked["outputs"] += 1

    def _judge_failure(self, name: str, planned: str, message: str, records: Sequence[BuildRecord]) -> bool:
        """It was to fail, or was set aside (True): then the daemon really died over it again and again."""
        if planned == "failed":
            return False
        died = sum(record.package == name and record.message == DIED for record in records)
        assert message.startswith("set aside:"), f"{name} failed: {message}"
        assert died >= KILLER_ATTEMPTS, f"{name} was set aside after {died} deaths"
        self.checked["set aside"] += 1
        return True
