"""The lines that show a scene. Pure: from what is known and chosen, in so many columns and rows, to styled text.

Invariants: no line is wider than asked for and there are no more than asked for; nothing that came from outside is in
one that did not pass `Glyphs.harmless`.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

from ctl.top.choices import KEYS, ORDERS, Choices
from ctl.top.lines import Line, Span, View, fitted
from ctl.top.overview import overview
from ctl.top.scene import Scene
from ctl.top.table import whole, window

LINES_OF_FEW = 6
"""Lines that the table gets before the overview does."""
TALL = 16
"""Lines from which one is spent on nothing."""


class Picture(NamedTuple):
    lines: list[Line]
    page: int
    """How many builds are on it."""


def picture(scene: Scene, choices: Choices, view: View, height: int, trouble: str = "") -> Picture:
    """A screen of `height` lines; the last one says what keys do. `trouble` is why what is shown may be old."""
    if height < 1 or view.width < 1:
        return Picture([], 1)
    room = height - 1
    rows = choices.arranged(scene.rows)
    above = overview(scene, view, trouble=trouble, held=choices.held)[: max(1, room - LINES_OF_FEW)]
    if height >= TALL:
        above.append(())
    below, page = _help(room - len(above)), 1
    if not choices.help:
        below, page = window(scene, rows, choices, view, room - len(above))
    lines = [*above, *below][:room]
    lines += [()] * (room - len(lines))
    return Picture([fitted(line, view) for line in (*lines, _footer(choices, view))], page)


def snapshot(scene: Scene, view: View) -> list[str]:
    """The same on paper: everything, without a cursor."""
    rows = Choices().arranged(scene.rows)
    lines = overview(scene, view, notes=len(scene.status.reasons), clones=len(scene.status.clones))
    lines += whole(scene, rows, view)
    return ["".join(span.text for span in fitted(line, view)).rstrip() for line in lines]


def _help(room: int) -> list[Line]:
    width = max(len(keys) for keys, _ in KEYS)
    lines: list[Line] = [(Span(f"  {keys.ljust(width)}  ", "bold"), Span(what)) for keys, what in KEYS]
    return lines[: max(0, room)]


def _footer(choices: Choices, view: View) -> Line:
    if choices.question is not None:
        row = choices.question
        run = "" if row.run is None else f" of run {row.run}"
        package = view.glyphs.harmless(row.use.package)
        return (Span("y", "head"), Span(f" cancels {package}{run}, any other key does not", "bold"))
    if choices.notice:
        return (Span(view.glyphs.harmless(choices.notice), "bold"),)
    order = ORDERS[choices.order].name
    hints = (
        ("q", "quit"),
        ("s", f"sort: {order}"),
        ("c", "cancel"),
        ("l", "output"),
        ("p", "go on" if choices.held else "hold"),
        ("?", "keys"),
    )
    return tuple(chain.from_iterable((Span(key, "bold"), Span(f" {what}  ", "dim")) for key, what in hints))
