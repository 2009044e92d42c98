"""The table of running builds, as many columns and rows of it as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ctl.text import cells, duration, screen_line, size
from ctl.top.choices import ORDERS, Choices
from ctl.top.lines import Line, Span, Style, View
from ctl.top.scene import Row, Scene

NAME = 14
"""Columns for names, below which the table does without a column instead."""
GAP = 2


class Column(NamedTuple):
    title: str
    order: str
    """Name of the order that sorts by it."""
    width: int
    text: Callable[[Row], str]
    rank: int
    """The highest goes first where there is no room for all."""
    right: bool = True


COLUMNS = (
    Column("RUN", "run", 5, lambda row: "-" if row.run is None else str(row.run), 5),
    Column("PHASE", "phase", 9, lambda row: row.use.phase or "-", 4, right=False),
    Column("TIME", "time", 7, lambda row: duration(row.elapsed_s), 1),
    Column("CPU%", "cpu", 5, lambda row: f"{row.cpu * 100:.0f}", 2),
    Column("MEMORY", "memory", 8, lambda row: size(row.use.memory_bytes), 3),
    Column("DISK", "disk", 8, lambda row: size(row.use.disk_bytes), 6),
    Column("PROCS", "procs", 5, lambda row: str(row.use.processes), 7),
)
"""Right of the package's name."""


def _columns(view: View) -> list[Column]:
    """Those that there is room for."""
    shown = list(COLUMNS)
    while shown and _name_width(shown, view) < NAME:
        shown.remove(max(shown, key=lambda column: column.rank))
    return shown


def _name_width(columns: Sequence[Column], view: View) -> int:
    return view.width - 2 - sum(column.width + GAP for column in columns)


def _header(view: View, order: str | None) -> Line:
    columns = _columns(view)
    name = Span("  " + _cell("PACKAGE", _name_width(columns, view), view), "head")
    cells_ = [(_aligned(column.title, column, view), column.order) for column in columns]
    return (name, *(Span(text, "sorted" if named == order else "head") for text, named in cells_))


def _row(row: Row, view: View, *, chosen: bool = False) -> Line:
    columns = _columns(view)
    harmless = view.glyphs.harmless
    mark = f"{view.glyphs.arrow} " if chosen else "  "
    spans = [Span(mark + _cell(harmless(row.use.package), _name_width(columns, view), view))]
    for column in columns:
        style: Style = "accent" if column.order == "phase" else ""
        spans.append(Span(_aligned(harmless(column.text(row)), column, view), style))
    return tuple(Span(span.text, "cursor") for span in spans) if chosen else tuple(spans)


def _aligned(text: str, column: Column, view: View) -> str:
    return " " * GAP + _cell(text, column.width, view, right=column.right)


def _cell(text: str, width: int, view: View, *, right: bool = False) -> str:
    text = view.glyphs.clip(text, width)
    space = " " * (width - cells(text))
    return space + text if right else text + space


def _last_line(row: Row, view: View) -> Line:
    return (Span("    " + view.glyphs.harmless(screen_line(row.line)), "dim"),)


def _nothing(scene: Scene, view: View) -> Line:
    if scene.status.builds.queued and not scene.resources.paused:
        return (Span("  no build is running yet", "dim"),)
    return (Span("  no build is running", "dim"),)


def whole(scene: Scene, rows: Sequence[Row], view: View) -> list[Line]:
    """All of it."""
    return [_header(view, None), *(_row(row, view) for row in rows)] if rows else [_nothing(scene, view)]


def window(scene: Scene, rows: Sequence[Row], choices: Choices, view: View, room: int) -> tuple[list[Line], int]:
    """The part of the table that is around the cursor, and how many builds that are."""
    if not rows:
        return [_nothing(scene, view)], 1
    per_build = 2 if choices.lines else 1
    page = max(1, (room - 1) // per_build)
    rest = len(rows) > page
    if rest:
        page = max(1, (room - 2) // per_build)
    here = choices.position(rows)
    first = choices.scrolled(len(rows), page)
    lines = [_header(view, ORDERS[choices.order].name)]
    for index, row in enumerate(rows[first : first + page], start=first):
        lines.append(_row(row, view, chosen=index == here))
        if choices.lines:
            lines.append(_last_line(row, view))
    if rest:
        lines.append((Span(f"  {first + 1} to {min(len(rows), first + page)} of {len(rows)} builds", "dim"),))
    return lines, page
