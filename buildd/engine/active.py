"""A build that is running, and the runs that wait for it: those that want the same key share one build.

Invariant: the build goes on as long as one member is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from buildd.engine.progress import PackageRun
from buildd.execute.build import BuildControl
from buildd.model import BuildRecord
from buildd.planner.keys import Inputs

if TYPE_CHECKING:
    from buildd.engine.run import Run


class ActiveBuild:
    def __init__(self, build: BuildRecord, inputs: Inputs, run: Run, package: PackageRun, *, shareable: bool) -> None:
        self.build = build
        self.inputs = inputs
        self.control = BuildControl()
        self.members: list[tuple[Run, PackageRun]] = [(run, package)]
        """The first is the one whose run has the build's record."""
        self.phase: str | None = None
        self.began = time.monotonic()
        self._shareable = shareable

    def admits(self, run: Run, package: PackageRun) -> bool:
        """Whether a package of another run may wait for this build instead of having one of its own."""
        request = run.record.request
        return (
            self._shareable
            and self.control.why is None
            and not request.fetch_only
            and not run.forces(package.package.name)
        )

    def leave(self, run: Run, message: str, *, grace: Callable[[], float]) -> bool:
        """A run does not want the build any more: True when others do, else the build is cancelled."""
        others = [member for member in self.members if member[0] is not run]
        if others:
            self.members = others
            return True
        self.control.cancel("cancelled", message, grace=grace)
        return False
