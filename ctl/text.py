"""How values read: durations, sizes, times, tables, and untrusted text made harmless. Pure functions."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

MAX_ROWS = 50
"""Rows of a run's table before packages without news are left out."""
STATES = ("success", "failed", "skipped", "blocked", "ignored", "cancelled", "queued", "running")
_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """Seconds of `30s`, `5min`, `1.5h` or `30`. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 5min or 2h")
    return float(match[1]) * factor


def duration(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m 05s`, `2h 07m`, `3d 04h`; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"


def size(count: float | None) -> str:
    """Bytes as `812 B`, `1.2 KiB`, `34 MiB`; a dash for None."""
    if count is None:
        return "-"
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1023.5:
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{count / 1024:.1f} TiB"


def clock(seconds: float) -> str:
    """Local time of day, `12:03:04`."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def moment(seconds: float | None) -> str:
    """Local date and time, `2024-05-01 12:03:04`; a dash for None."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def counts(stats: Mapping[str, int]) -> str:
    """`12 packages = 9 success + 2 failed + 1 blocked`, of numbers by state and their `total`."""
    parts = [f"{stats[state]} {state}" for state in STATES if stats.get(state)]
    return f"{plural(stats['total'], 'package')} = {' + '.join(parts)}" if parts else "no packages"


def printable(text: str, keep: str = "") -> str:
    """`text` with every character a terminal could act on or hide shown as an escape, but those in `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


_ESCAPE_SEQUENCE = (
    r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|$)"  # CSI: colours, cursor movement
    r"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC and other strings: titles, links
    r"|[ -/]*(?:[0-OQ-WYZ`-~]|$))"  # the short ones: character sets, keypad modes
)


def without_escapes(text: str) -> str:
    """`text` without what a terminal takes for colours, titles and movements."""
    return re.sub(_ESCAPE_SEQUENCE, "", text)


def screen_line(text: str) -> str:
    """What a line of output would leave on a screen: no escapes, what follows the last carriage return."""
    text = without_escapes(text).rstrip("\r\n")
    return printable(text.rpartition("\r")[2].replace("\t", "  ")).strip()


def cells(text: str) -> int:
    """How many columns of a terminal printable text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text
    )


def clip(text: str, width: int, ellipsis: str = "…") -> str:
    """Printable text in at most `width` columns, with an ellipsis where something was cut off."""
    if cells(text) <= width:
        return text
    room = width - cells(ellipsis)
    kept = text[: max(0, room)]
    while cells(kept) > room and kept:
        kept = kept[:-1]
    return kept + ellipsis if room >= 0 else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Aligned lines of untrusted cells, without trailing blanks. `right` are the columns of numbers."""
    cells = [tuple(header), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
