"""What is above the table: the daemon, what is wrong, the machine, workers, clones, maps; what matters most first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest

from buildd.protocol import ActiveClone, RepoMapStatus, Sample
from ctl.text import cells, clock, duration, plural, size
from ctl.top.gauges import bar, curve, places
from ctl.top.lines import Line, Span, Style, View, padded, width_of
from ctl.top.scene import Scene

SIDE_BY_SIDE = 76
"""Columns from which the gauges stand beside the facts, and not above each other."""
WITH_BARS = 112
"""Columns from which they have a bar as well as a curve."""
LABEL, VALUE, BAR, CURVE, GAP_BETWEEN = 9, 20, 14, 40, 4
"""Columns of the parts of a gauge, of the curve at most, and between gauges and facts."""
NOTES, CLONES = 3, 3
"""How many of the daemon's notes, and of its clones, a screen shows."""
STATES: dict[str, Style] = {"running": "good", "degraded": "bad"}

Levels = tuple[float, float]
LOAD: Levels = (1.5, 3.0)
MEMORY: Levels = (0.8, 0.92)
SWAP: Levels = (0.1, 0.4)
"""From where load per processor, and the parts of memory and swap in use, are high, and very high."""


def overview(
    scene: Scene, view: View, *, trouble: str = "", held: bool = False, notes: int = NOTES, clones: int = CLONES
) -> list[Line]:
    lines = [_title(scene, view, trouble, held), *_alarms(scene, view, trouble), *_gauges(scene, view)]
    lines += [_clone(clone, view) for clone in scene.status.clones[:clones]]
    lines += [_map(status, view) for status in scene.status.maps[:clones]]
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
    gap = view.width - width_of((*left, more, *right))
    if gap >= 2:
        return (*left, more, Span(" " * gap), *right)
    return (*left, Span(" " * max(2, gap + cells(more.text))), *right)


def _alarms(scene: Scene, view: View, trouble: str) -> list[Line]:
    harmless = view.glyphs.harmless
    throttle = scene.resources.throttle
    found: list[Line] = []
    if trouble:
        found.append((Span(harmless(trouble), "bad"),))
    if scene.resources.paused:
        found.append((Span("paused: ", "bad"), Span(harmless(scene.resources.paused))))
    if throttle.workers < throttle.total:
        what = f"{throttle.workers} of {plural(throttle.total, 'worker')}; "
        found.append((Span("throttled: ", "warn"), Span(what + harmless(throttle.reason))))
    return found


def _gauges(scene: Scene, view: View) -> list[Line]:
    machine, facts = [], _facts(scene, view)
    side_by_side = view.width >= SIDE_BY_SIDE
    half = (view.width - GAP_BETWEEN) // 2 if side_by_side else view.width
    if scene.now is not None:
        machine = _machine(scene.now, list(scene.history), view, half)
    if side_by_side:
        pairs = zip_longest(machine, facts, fillvalue=())
        return [(*padded(gauge, half), Span(" " * GAP_BETWEEN), *fact) for gauge, fact in pairs]
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
    room = min(CURVE, width - width_of(tuple(spans)) - 1)
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


def _map(status: RepoMapStatus, view: View) -> Line:
    of = f" {status.done} of {plural(status.total, 'file')}" if status.total else ""
    return (_label("map"), Span(view.glyphs.harmless(f"{status.repository}  {status.stage}{of}")))


def _clone(clone: ActiveClone, view: View) -> Line:
    doing = "fetching" if clone.operation == "fetch" else "cloning"
    text = f"{clone.percent:.0f} %, {size(clone.progress.received_bytes)}  "
    return (_label(doing), Span(text), Span(view.glyphs.harmless(clone.url), "accent"))
