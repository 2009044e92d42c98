"""The text of a map: files with their best definitions as signatures under what encloses them, never over a budget.

    src/shop/cart.py
      12 class Cart(Base):
      ⋮
      40   def add(self, item: Item) -> None

What a text costs is estimated without any tokenizer: four bytes or one word to a token, whichever gives more.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import NamedTuple

_WORD = re.compile(r"\w+")
_BYTES_PER_TOKEN = 4
_MAX_LINE = 160
"""Characters of a signature."""
_MAX_DEPTH = 12
"""Levels that are shown above a definition."""
_MAX_FAILURES = 200
_NEGLIGIBLE = 4
"""Tokens that no definition fits into."""
_GAP_LINE = "⋮\n"


class Line(NamedTuple):
    """A definition as it is shown."""

    number: int
    """Of the definition."""
    line: int
    outer: int
    """Number of the definition that it is in, -1 for none."""
    depth: int
    signature: str


class Outline(NamedTuple):
    text: str
    tokens: int
    files: int
    definitions: int


class Cost(NamedTuple):
    bytes: int
    words: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.bytes + other.bytes, self.words + other.words)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.bytes - other.bytes, self.words - other.words)

    @property
    def tokens(self) -> int:
        return max(-(-self.bytes // _BYTES_PER_TOKEN), self.words)


_NOTHING = Cost(0, 0)


def cost_of(text: str) -> Cost:
    return Cost(len(text.encode("utf-8", "surrogatepass")), len(_WORD.findall(text)))


def estimate(text: str) -> int:
    """Tokens of a text."""
    return cost_of(text).tokens


class _File:
    """What is shown of one file, in the order of lines, and what it costs."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[_Shown] = []
        self.cost = cost_of(path + "\n")

    def more(self, new: Iterable[_Shown]) -> Cost:
        """What these would add."""
        added = Cost(0, 0)
        lines = self.lines
        for shown in new:
            if lines is self.lines:
                lines = self.lines.copy()
            at = bisect_left(lines, shown)
            before = lines[at - 1].line if at else 0
            after = lines[at].line if at < len(lines) else None
            gaps = _gap(before, shown.line) - (0 if after is None else _gap(before, after) - _gap(shown.line, after))
            added += Cost(len(_GAP_LINE.encode()) * gaps, 0) + shown.cost
            lines.insert(at, shown)
        return added

    def add(self, new: Iterable[_Shown]) -> None:
        for shown in new:
            insort(self.lines, shown)

    def text(self) -> str:
        parts = [self.path, "\n"]
        last = 0
        for shown in self.lines:
            parts += [_GAP_LINE * _gap(last, shown.line), shown.text, "\n"]
            last = shown.line
        return "".join(parts)


class _Shown(NamedTuple):
    line: int
    number: int
    """Of the definition."""
    text: str
    cost: Cost


def _gap(before: int, line: int) -> int:
    return 1 if line > before + 1 else 0


def outline(
    order: Iterable[int],
    budget: int,
    *,
    line_of: Callable[[int], Line],
    file_of: Callable[[int], int],
    path_of: Callable[[int], str],
    best_first: Callable[[Iterable[int]], Iterable[int]],
    rest: Callable[[], Iterable[int]],
) -> Outline:
    """As many of the definitions in `order` as `budget` tokens take.

    Where they all find room, or none does, files of `rest` are named as well: they have none.
    """
    files: dict[int, _File] = {}
    shown: set[int] = set()
    total = Cost(0, 0)
    failures = 0
    for number in order:
        if number in shown:
            continue
        file = file_of(number)
        known = files.get(file)
        entry = known or _File(path_of(file))
        new = [_shown(line) for line in _with_outer(number, line_of) if line.number not in shown]
        cost = entry.more(new) + (entry.cost if known is None else _NOTHING)
        if (total + cost).tokens <= budget:
            total += cost
            entry.add(new)
            files[file] = entry
            shown.update(one.number for one in new)
        else:
            failures += 1
            if failures > _MAX_FAILURES or total.tokens >= budget - _NEGLIGIBLE:
                break
    text = "".join(files[file].text() for file in best_first(files))
    named = 0
    if not failures or not shown:
        for file in rest():
            cost = cost_of(path_of(file) + "\n")
            if file not in files and (total + cost).tokens <= budget:
                total += cost
                named += 1
                text += path_of(file) + "\n"
    return Outline(text, total.tokens, len(files) + named, len(shown))


def _with_outer(number: int, line_of: Callable[[int], Line]) -> list[Line]:
    lines = [line_of(number)]
    while lines[-1].outer >= 0 and len(lines) < _MAX_DEPTH:
        lines.append(line_of(lines[-1].outer))
    return lines


def _shown(line: Line) -> _Shown:
    signature = line.signature
    if len(signature) > _MAX_LINE:
        signature = signature[: _MAX_LINE - 1].rstrip("… ") + "…"
    text = f"{line.line:>4} {'  ' * min(line.depth, _MAX_DEPTH)}{signature}"
    return _Shown(line.line, line.number, text, cost_of(text + "\n"))
