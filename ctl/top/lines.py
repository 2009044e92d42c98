"""What pictures are made of: lines of styled text, and what they are drawn on."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ctl.text import cells
from ctl.top.gauges import Glyphs

Style = Literal["", "bold", "dim", "good", "warn", "bad", "accent", "head", "sorted", "cursor"]


class Span(NamedTuple):
    text: str
    style: Style = ""


Line = tuple[Span, ...]


class View(NamedTuple):
    """What is drawn on."""

    width: int
    glyphs: Glyphs
    processors: int
    """Of the machine, to measure its load by."""


def fitted(line: Line, view: View) -> Line:
    """The line, cut where the view ends."""
    spans, room = [], view.width
    for span in line:
        text = view.glyphs.clip(span.text, room)
        spans.append(Span(text, span.style))
        room -= cells(text)
    return tuple(spans)


def padded(line: Line, width: int) -> Line:
    """The line with blanks up to a width."""
    return (*line, Span(" " * max(0, width - width_of(line))))


def width_of(line: Line) -> int:
    return sum(cells(span.text) for span in line)
