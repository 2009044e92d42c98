"""What the person at the keyboard has chosen, and what each key does. Knows neither terminal nor daemon.

Invariant: what is cancelled is the build that the question named, wherever the rows have moved meanwhile; and the
cursor stays on its build when they are sorted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ctl.top.scene import Row


class Order(NamedTuple):
    name: str
    key: Callable[[Row], tuple[object, ...]]


ORDERS = (
    Order("time", lambda row: (-row.elapsed_s,)),
    Order("cpu", lambda row: (-row.cpu,)),
    Order("memory", lambda row: (-row.use.memory_bytes,)),
    Order("disk", lambda row: (-row.use.disk_bytes,)),
    Order("procs", lambda row: (-row.use.processes,)),
    Order("package", lambda row: (row.use.package,)),
    Order("run", lambda row: (row.run is None, row.run or 0)),
    Order("phase", lambda row: (row.use.phase or "",)),
)
"""What `s` goes through. Of numbers the largest come first."""

KEYS = (
    ("q", "quit"),
    ("up, down, j, k", "choose a build; also page up, page down, home, end"),
    ("s", "sort by the next column"),
    ("c", "cancel the chosen build's package, after a question"),
    ("l", "show or hide the last line of output of each build"),
    ("p, space", "hold the picture, or let it go on"),
    ("?", "show or hide this"),
)


class Cancel(NamedTuple):
    """The wish to cancel a build's package."""

    row: Row


Wish = Literal["quit"] | Cancel


class Choices:
    def __init__(self) -> None:
        self.order = 0
        self.lines = False
        """Whether the last line of each build's output is shown."""
        self.held = False
        self.help = False
        self.question: Row | None = None
        """The build that would be cancelled by `y`."""
        self.notice = ""
        """What came of the last wish; until the next key."""
        self._chosen: str | None = None
        self._position = 0
        self._first = 0

    def arranged(self, rows: Sequence[Row]) -> list[Row]:
        """The rows in the chosen order; those that are equal in it by age."""
        key = ORDERS[self.order].key
        return sorted(rows, key=lambda row: (*key(row), row.use.started_at, row.use.build))

    def position(self, rows: Sequence[Row]) -> int:
        """Where the cursor is among the arranged rows: on its build, or where that was when it has ended."""
        for index, row in enumerate(rows):
            if row.use.build == self._chosen:
                self._position = index
                return index
        self._chosen = None
        self._position = max(0, min(self._position, len(rows) - 1))
        return self._position

    def scrolled(self, count: int, page: int) -> int:
        """The first of `count` rows to show, so that the cursor is on the page and rows move as little as can be."""
        lowest = min(self._position, max(0, count - page))
        self._first = max(self._position - page + 1, min(self._first, lowest), 0)
        return self._first

    def press(self, key: str, rows: Sequence[Row], page: int) -> Wish | None:
        """Take a key; `rows` are the scene's, `page` how many of them are on the screen."""
        self.notice = ""
        if self.question is not None:
            row, self.question = self.question, None
            return Cancel(row) if key in ("y", "Y") else None
        if key == "q":
            return "quit"
        if self.help:
            self.help = False
        elif key == "?":
            self.help = True
        elif key in ("p", " "):
            self.held = not self.held
        elif key == "l":
            self.lines = not self.lines
        elif key == "s":
            self.order = (self.order + 1) % len(ORDERS)
        elif key == "c":
            arranged = self.arranged(rows)
            if arranged:
                self.question = arranged[self.position(arranged)]
            else:
                self.notice = "no build is running"
        else:
            self._move(key, rows, page)
        return None

    def _move(self, key: str, rows: Sequence[Row], page: int) -> None:
        arranged = self.arranged(rows)
        here = self.position(arranged)
        there = {
            "up": here - 1,
            "k": here - 1,
            "down": here + 1,
            "j": here + 1,
            "page up": here - page,
            "page down": here + page,
            "home": 0,
            "end": len(arranged) - 1,
        }.get(key, here)
        if arranged:
            self._chosen = arranged[max(0, min(there, len(arranged) - 1))].use.build
