"""What the machine allows: written by those who watch it, asked by who starts builds.

Each part has one writer: the throttle writes `throttle`, the guard of disk space writes `paused`.
"""

from __future__ import annotations

import msgspec

from buildd.protocol import Throttle


class Gate:
    def __init__(self, total: int) -> None:
        """`total` is how many builds are configured."""
        self.throttle = Throttle(workers=total, total=total)
        self.paused = ""
        """Why no builds may be started; empty when they may."""

    def allowed(self, total: int) -> Throttle:
        """The throttle, when by now so many builds are configured."""
        if not self.throttle.reason:
            return Throttle(workers=total, total=total)
        return msgspec.structs.replace(self.throttle, workers=min(self.throttle.workers, total), total=total)

    def admits(self, busy: int, total: int) -> bool:
        """Whether one more build may start beside `busy` ones, when `total` are configured."""
        return not self.paused and busy < self.allowed(total).workers
