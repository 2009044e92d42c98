"""The packages of one run and their states: what may start, what is blocked, and counts that always add up.

Packages that are up to date from the beginning are not here one by one: the run's `Standing` has them. No I/O
and no clock; the engine calls it and acts on the answers.

Invariants: a package is `running` only when everything it depends on succeeded or was skipped; the counts by
state always sum to the number of packages (B6); a final state is never left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from buildd.engine.uptodate import Settled
from buildd.model import Package, PackageState, Stats
from buildd.planner.keys import KeyParts, closure_id

SKIPPED = "CRC match, skipped"
"""What people read of a package that is up to date."""
FINAL: frozenset[PackageState] = frozenset(("success", "failed", "skipped", "blocked", "ignored", "cancelled"))
_DONE: frozenset[PackageState] = frozenset(("success", "skipped"))
_LEGAL: dict[PackageState, frozenset[PackageState]] = {
    "queued": frozenset(("running", "skipped", "blocked", "ignored", "cancelled", "failed", "success")),
    "running": frozenset(("success", "failed", "cancelled", "queued")),
}


class PackageRun:
    """One package in one run."""

    __slots__ = (
        "answered_by",
        "artifact",
        "build_id",
        "checking",
        "closure",
        "depends",
        "duration_s",
        "key",
        "log_bytes",
        "message",
        "output_id",
        "package",
        "parts",
        "phase",
        "reason",
        "started_at",
        "state",
        "urgency",
        "waiting",
        "wave",
    )

    def __init__(self, package: Package, depends: Sequence[str], wave: int, urgency: float) -> None:
        self.package = package
        self.depends = depends
        self.wave = wave
        self.urgency = urgency
        self.waiting = 0
        """Dependencies that are not done."""
        self.state: PackageState = "queued"
        self.reason: str | None = None
        self.message: str | None = None
        self.phase: str | None = None
        self.started_at: float | None = None
        self.duration_s: float | None = None
        self.build_id: str | None = None
        self.output_id: str | None = None
        self.closure: str | None = None
        """Its closure id, once it is done."""
        self.answered_by: str | None = None
        """The earlier build whose result it was skipped for."""
        self.checking = False
        """Whether an artifact that would answer it is being verified."""
        self.key = ""
        self.parts: KeyParts | None = None
        """What `key` was made from; both are known once it is ready."""
        self.artifact: str | None = None
        self.log_bytes = 0


class Progress:
    def __init__(self, packages: Iterable[PackageRun], settled: Mapping[str, Settled] | None = None) -> None:
        """`packages` in topological order; what they depend on is among them or `settled`."""
        self.packages: dict[str, PackageRun] = {p.package.name: p for p in packages}
        self.settled: Mapping[str, Settled] = settled or {}
        """Packages that were up to date when the run began: skipped from the beginning."""
        self._dependents: dict[str, list[str]] = {name: [] for name in self.packages}
        for name, package in self.packages.items():
            for dependency in package.depends:
                if dependency in self.packages:
                    self._dependents[dependency].append(name)
                    package.waiting += 1
        self._counts: Counter[PackageState] = Counter({"queued": len(self.packages), "skipped": len(self.settled)})
        self._unfinished = Counter(p.wave for p in self.packages.values())
        self.waves = max(self._unfinished, default=0)
        self.changes = 0
        """Rises with every change of a package's state."""

    @property
    def total(self) -> int:
        return len(self.packages) + len(self.settled)

    def ready(self) -> list[str]:
        """Queued packages with all dependencies done."""
        return [name for name, p in self.packages.items() if p.state == "queued" and p.waiting == 0]

    @property
    def wave(self) -> int:
        """Lowest wave with an unfinished package; the last one when all are finished."""
        return min((w for w, count in self._unfinished.items() if count > 0), default=self.waves)

    @property
    def finished(self) -> bool:
        return self._counts["queued"] == 0 and self._counts["running"] == 0

    def in_state(self, *states: PackageState) -> list[PackageRun]:
        return [p for p in self.packages.values() if p.state in states]

    def needed(self, name: str) -> bool:
        """Whether anything that has not ended depends on a package."""
        return any(self.packages[d].state == "queued" for d in self._dependents[name])

    def closures(self, name: str) -> dict[str, str]:
        """The closure ids of a package's direct dependencies, once they are all done."""
        return {dependency: self.closure(dependency) for dependency in self.packages[name].depends}

    def closure(self, name: str) -> str:
        """The closure id of a package that is done."""
        package = self.packages.get(name)
        if package is None:
            return self.settled[name].closure
        if package.closure is None:
            assert package.state in _DONE
            assert package.parts is not None
            package.closure = closure_id(package.output_id, package.parts.dependencies)
        return package.closure

    def outputs(self, name: str) -> dict[str, str]:
        """Name to output id of everything that a package depends on, directly or not, once that is done."""
        found: dict[str, str] = {}
        seen: set[str] = set()
        stack = list(self.packages[name].depends)
        while stack:
            other = stack.pop()
            if other in seen:
                continue
            seen.add(other)
            package = self.packages.get(other)
            output = package.output_id if package is not None else self.settled[other].output_id
            stack.extend(package.depends if package is not None else self.settled[other].package.depends)
            if output is not None:
                found[other] = output
        return found

    def move(
        self, name: str, state: PackageState, *, reason: str | None = None, message: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Change a package's state: (packages that became ready, packages that are blocked or ignored for it).

        Raises AssertionError for an illegal change.
        """
        package = self.packages[name]
        self._set(package, state, reason, message)
        if state in _DONE:
            return self._release(name), []
        if state in FINAL:
            return [], self._give_up(name)
        return [], []

    def stats(self) -> Stats:
        counts: Mapping[PackageState, int] = self._counts
        stats = Stats(total=self.total, **{state: count for state, count in counts.items() if count})
        if sum(counts.values()) != stats.total:
            raise AssertionError(f"the counts {dict(counts)} do not add up to {stats.total}")
        return stats

    def _set(self, package: PackageRun, state: PackageState, reason: str | None, message: str | None) -> None:
        if state not in _LEGAL.get(package.state, ()):
            raise AssertionError(f"package {package.package.name} cannot go from {package.state} to {state}")
        if state == "running" and package.waiting:
            raise AssertionError(f"package {package.package.name} started before its dependencies were done")
        self.changes += 1
        self._counts[package.state] -= 1
        self._counts[state] += 1
        package.state, package.reason, package.message = state, reason, message
        if state in FINAL:
            self._unfinished[package.wave] -= 1

    def _release(self, name: str) -> list[str]:
        ready = []
        for dependent in self._dependents[name]:
            package = self.packages[dependent]
            package.waiting -= 1
            if package.waiting == 0 and package.state == "queued":
                ready.append(dependent)
        return ready

    def _give_up(self, name: str) -> list[str]:
        """End everything that waits for `name`, directly or not: ignored if it is, else blocked."""
        ended: list[str] = []
        cause = self.packages[name].state
        state: PackageState = "ignored" if cause == "ignored" else "blocked"
        stack = [name]
        while stack:
            for dependent in self._dependents[stack.pop()]:
                package = self.packages[dependent]
                if package.state == "queued":
                    self._set(package, state, "dependency", f"it needs {name}, which is {cause}")
                    ended.append(dependent)
                    stack.append(dependent)
        return ended
