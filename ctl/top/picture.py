"""The lines that show a scene. Pure: from what is known and chosen, in so many columns and rows, to styled text.

Invariants: no line is wider than asked for and there are no more than asked for; nothing that came from outside is in
one that did not pass `Glyphs.harmless`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Literal, NamedTuple

from buildd.protocol import ActiveClone, Sample
from ctl.text import cells, clock, duration, plural, screen_line, size
from ctl.top.choices import KEYS, ORDERS, Choices
from ctl.top.gauges import Glyphs, bar, curve, places
from ctl.top.scene import Row, Scene

Style = Literal["", "bold", "dim", "good", "warn", "bad", "accent", "head", "sorted", "cursor"]

SIDE_BY_SIDE = 76
"""Columns from which the gauges stand beside the facts, and not above each other."""
WITH_BARS = 112
"""Columns from which they have a bar as well as a curve."""
LABEL, VALUE, BAR, CURVE = 9, 20, 14, 40
"""Columns of the parts of a gauge; of the curve at most."""
LINES_OF_FEW = 6
"""Lines that the table gets before the upper part does."""
TALL = 16
"""Lines from which one is spent on nothing."""
NAME = 14
"""Columns for names, below which the table does without a column instead."""
NOTES, CLONES = 2, 3
"""How many of the daemon's notes, and of its clones, a screen shows."""
STATES: dict[str, Style] = {"running": "good", "degraded": "bad"}

Levels = tuple[float, float]
LOAD: Levels = (1.5, 3.0)
MEMORY: Levels = (0.8, 0.92)
SWAP: Levels = (0.1, 0.4)
"""From where load per processor, and the parts of memory and swap in use, are high, and very high."""


class Span(NamedTuple):
    text: str
    style: Style = ""


Line = tuple[Span, ...]


class Picture(NamedTuple):
    lines: list[Line]
    page: int
    """How many builds are on it."""


class View(NamedTuple):
    """What it is drawn on."""

    width: int
    glyphs: Glyphs
    processors: int
    """Of the machine, to measure its load by."""


def picture(scene: Scene, choices: Choices, view: View, height: int, trouble: str = "") -> Picture:
    """A screen of `height` lines; the last one says what keys do. `trouble` is why what is shown may be old."""
    if height < 1 or view.width < 1:
        return Picture([], 1)
    room = height - 1
    rows = choices.arranged(scene.rows)
    above = upper_part(scene, view, trouble=trouble, held=choices.held)[: max(1, room - LINES_OF_FEW)]
    if height >= TALL:
        above.append(())
    below, page = _help(room - len(above)), 1
    if not choices.help:
        below, page = _window(scene, rows, choices, view, room - len(above))
    lines = [*above, *below][:room]
    lines += [()] * (room - len(lines))
    return Picture([_fitted(line, view) for line in (*lines, _footer(choices, view))], page)


def snapshot(scene: Scene, view: View) -> list[str]:
    """The same on paper: everything, without a cursor."""
    rows = Choices().arranged(scene.rows)
    lines = upper_part(scene, view, notes=len(scene.status.reasons), clones=len(scene.status.clones))
    lines += [_header(view, None), *(_row(row, view) for row in rows)] if rows else [_nothing(scene, view)]
    return ["".join(span.text for span in _fitted(line, view)).rstrip() for line in lines]


def _fitted(line: Line, view: View) -> Line:
    spans, room = [], view.width
    for span in line:
        text = view.glyphs.clip(span.text, room)
        spans.append(Span(text, span.style))
        room -= cells(text)
    return tuple(spans)


def _padded(line: Line, width: int) -> Line:
    return (*line, Span(" " * max(0, width - _width(line))))


def _width(line: Line) -> int:
    return sum(cells(span.text) for span in line)


# --- above the table: what matters most comes first ------------------------------------------------------


def upper_part(
    scene: Scene, view: View, *, trouble: str = "", held: bool = False, notes: int = NOTES, clones: int = CLONES
) -> list[Line]:
    lines = [_title(scene, view, trouble, held), *_alarms(scene, view, trouble), *_gauges(scene, view)]
    lines += [_clone(clone, view) for clone in scene.status.clones[:clones]]
    reasons = scene.status.reasons
    lines += [(Span(view.glyphs.harmless(reason), "dim"),) for reason in reasons[:notes]]
    return lines


def _title(scene: Scene, view: View, trouble: str, held: bool) -> Line:
    status = scene.status
    state = view.glyphs.harmless(status.state)
    left = [
        Span(f"buildd {view.glyphs.harmless(status.version)}", "bold"),
        Span("  "),
        Span("no answer", "bad") if trouble else Span(state, STATES.get(state, "warn")),
    ]
    more = Span(f"  up {duration(status.uptime_s)}, pid {status.pid}")
    right = [Span(clock(scene.at), "dim")]
    if held:
        right = [Span(" held ", "head"), Span(" "), *right]
    gap = view.width - _width((*left, more, *right))
    if gap >= 2:
        return (*left, more, Span(" " * gap), *right)
    return (*left, Span(" " * max(2, gap + cells(more.text))), *right)


def _alarms(scene: Scene, view: View, trouble: str) -> list[Line]:
    harmless = view.glyphs.harmless
    throttle, memory = scene.resources.throttle, scene.resources.memory
    found: list[Line] = []
    if trouble:
        found.append((Span(harmless(trouble), "bad"),))
    if scene.resources.paused:
        found.append((Span("paused: ", "bad"), Span(harmless(scene.resources.paused))))
    if throttle.workers < throttle.total:
        what = f"{throttle.workers} of {plural(throttle.total, 'worker')}; "
        found.append((Span("throttled: ", "warn"), Span(what + harmless(throttle.reason))))
    if memory.warnings:
        what = f"{plural(memory.warnings, 'warning')}, at most {size(memory.peak_bytes)} of memory"
        profile = f"; {harmless(memory.profile)}" if memory.profile else ""
        found.append((Span("the daemon grows: ", "warn"), Span(what + profile)))
    return found


def _gauges(scene: Scene, view: View) -> list[Line]:
    machine, facts = [], _facts(scene, view)
    side_by_side = view.width >= SIDE_BY_SIDE
    half = (view.width - 2) // 2 if side_by_side else view.width
    if scene.now is not None:
        machine = _machine(scene.now, list(scene.history), view, half)
    if side_by_side:
        pairs = zip_longest(machine, facts, fillvalue=())
        return [(*_padded(gauge, half), Span("  "), *fact) for gauge, fact in pairs]
    return list(chain.from_iterable(filter(None, pair) for pair in zip_longest(facts, machine, fillvalue=())))


def _facts(scene: Scene, view: View) -> list[Line]:
    status, now = scene.status, scene.now
    throttle = scene.resources.throttle
    seats = places(status.workers.busy, throttle.workers, throttle.total, 12, view.glyphs)
    facts: list[Line] = [
        (_label("workers"), Span(seats, "good"), Span(f" {status.workers.busy} of {throttle.workers} busy")),
        (_label("queue"), Span(f"{plural(status.builds.queued, 'package')}, {plural(status.runs.active, 'run')}")),
        (_label("done"), Span(f"{status.builds.success} built, {status.builds.failed} failed")),
    ]
    if now is not None:
        use = f"{size(now.rss_bytes)}, {plural(now.open_files, 'file')}, {plural(now.threads, 'thread')}"
        children = f", {now.children} child processes" if view.width >= WITH_BARS else ""
        facts.append((_label("daemon"), Span(use + children)))
    return facts


def _machine(now: Sample, history: Sequence[Sample], view: View, width: int) -> list[Line]:
    load, processors = now.load_1m, view.processors
    loads = [sample.load_1m for sample in history]
    lines = [
        _gauge(
            "load",
            f"{load:.2f} on {plural(processors, 'cpu')}",
            _severity(load / processors, LOAD),
            view,
            width,
            part=load / processors,
            values=loads,
            top=max(*loads, processors),
        )
    ]
    used = [sample.memory_total_bytes - sample.memory_available_bytes for sample in history]
    lines.append(_share("memory", used, now.memory_total_bytes, MEMORY, view, width))
    free = [sample.free_bytes or 0 for sample in history]
    inodes = "" if now.free_inodes is None else f", {_short(now.free_inodes)} inodes"
    text = "not known" if now.free_bytes is None else f"{size(now.free_bytes)}{inodes}"
    lines.append(_gauge("free disk", text, "", view, width, values=free, top=max(free)))
    if now.swap_total_bytes:
        swapped = [sample.swap_used_bytes for sample in history]
        lines.append(_share("swap", swapped, now.swap_total_bytes, SWAP, view, width))
    else:
        lines.append((_label("swap"), Span("none")))
    return lines


def _share(label: str, used: Sequence[int], total: int, levels: Levels, view: View, width: int) -> Line:
    part = used[-1] / total if total else 0.0
    text = f"{size(used[-1])} of {size(total)}"
    return _gauge(label, text, _severity(part, levels), view, width, part=part, values=used, top=total)


def _gauge(
    label: str,
    text: str,
    style: Style,
    view: View,
    width: int,
    *,
    part: float | None = None,
    values: Sequence[float],
    top: float,
) -> Line:
    """Label, value, a bar where there is much room, and a curve where there is some."""
    spans = [_label(label), Span(text.ljust(VALUE), style)]
    if view.width >= WITH_BARS and part is not None:
        spans.append(Span(bar(part, BAR, view.glyphs), style or "good"))
    elif view.width >= WITH_BARS:
        spans.append(Span(" " * BAR))
    room = min(CURVE, width - _width(tuple(spans)) - 1)
    if room >= 5:
        spans += [Span(" "), Span(curve(values, room, top, view.glyphs), style or "good")]
    return tuple(spans)


def _severity(value: float, levels: Levels) -> Style:
    return "bad" if value >= levels[1] else "warn" if value >= levels[0] else ""


def _label(text: str) -> Span:
    return Span(text.ljust(LABEL) + " ", "dim")


def _short(count: int) -> str:
    """A count in at most four characters or so: `950`, `12k`, `3.4M`."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 999_500 else f"{count / 1e6:.1f}M"


def _clone(clone: ActiveClone, view: View) -> Line:
    doing = "fetching" if clone.operation == "fetch" else "cloning"
    text = f"{clone.percent:.0f} %, {size(clone.progress.received_bytes)}  "
    return (_label(doing), Span(text), Span(view.glyphs.harmless(clone.url), "accent"))


# --- the table -------------------------------------------------------------------------------------------


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
GAP = 2


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


def _window(scene: Scene, rows: Sequence[Row], choices: Choices, view: View, room: int) -> tuple[list[Line], int]:
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


# --- the rest --------------------------------------------------------------------------------------------


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
