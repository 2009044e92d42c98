"""Small drawings in text, for terminals with and without Unicode."""

from __future__ import annotations

import locale
from collections.abc import Sequence
from typing import NamedTuple

from ctl.text import clip, printable


class Glyphs(NamedTuple):
    """What things are drawn with."""

    levels: str
    """From nothing to all."""
    ends: tuple[str, str]
    """Around a bar."""
    full: str
    empty: str
    shut: str
    """A worker that may not take a build now."""
    ellipsis: str
    arrow: str
    """Before the chosen row, which not every terminal can show in reverse."""

    @property
    def ascii(self) -> bool:
        return self.ellipsis.isascii()

    def harmless(self, text: str) -> str:
        """Text of others as this terminal can show it."""
        text = printable(text)
        return text.encode("ascii", "backslashreplace").decode() if self.ascii else text

    def clip(self, text: str, width: int) -> str:
        return clip(text, width, self.ellipsis)


UNICODE = Glyphs(" ▁▂▃▄▅▆▇█", ("▕", "▏"), "█", "░", "·", "…", "▸")
ASCII = Glyphs(" .:-=+*#@", ("[", "]"), "#", ".", "x", "~", ">")


def glyphs() -> Glyphs:
    """What the character set of the locale has to draw with."""
    return UNICODE if locale.getencoding().lower().replace("-", "") == "utf8" else ASCII


def bar(fraction: float, width: int, glyphs: Glyphs) -> str:
    """A bar of `width` columns with its ends, filled to `fraction`; anything at all is at least one."""
    inside = max(1, width - 2)
    filled = min(inside, max(round(fraction * inside), fraction > 0))
    left, right = glyphs.ends
    return left + glyphs.full * filled + " " * (inside - filled) + right


def curve(values: Sequence[float], width: int, top: float, glyphs: Glyphs) -> str:
    """The last `width` values, the newest at the right, as levels between 0 and `top`; always `width` columns.

    What is not quite nothing is not shown as nothing.
    """
    shown = values[-width:] if width > 0 else ()
    steps = len(glyphs.levels) - 1
    levels = (min(steps, max(round(value / top * steps), value > 0)) if top > 0 else 0 for value in shown)
    return "".join(glyphs.levels[level] for level in levels).rjust(max(0, width))


def places(busy: int, allowed: int, total: int, width: int, glyphs: Glyphs) -> str:
    """Workers: those that build, those that may, those that may not now. One column each, or in proportion."""
    if total > width:
        busy, allowed = (-(-count * width // total) for count in (busy, allowed))
        total = width
    allowed = max(busy, allowed)
    return glyphs.full * busy + glyphs.empty * (allowed - busy) + glyphs.shut * max(0, total - allowed)
