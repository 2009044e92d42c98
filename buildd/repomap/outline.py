"""The text of a map: files with their best definitions as signatures under what encloses them, never over a budget.

    src/shop/cart.py
      12 class Cart(Base):
      ⋮
      40   def add(self, item: Item) -> None

What a text costs is estimated without any tokenizer: four bytes or one word to a token, whichever gives more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+")
_BYTES_PER_TOKEN = 4
_MAX_LINE = 160
"""Characters of a signature."""
_MAX_FAILURES = 400
_GAP = "⋮"


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


def cost_of(text: str) -> Cost:
    return Cost(len(text.encode("utf-8", "surrogatepass")), len(_WORD.findall(text)))


def estimate(text: str) -> int:
    """Tokens of a text."""
    return cost_of(text).tokens


class _File:
    """What is shown of one file, in the order of lines, and what it costs."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[tuple[int, int, str]] = []  # line, number of the definition, text
        self.cost = cost_of(path + "\n")

    def added(self, new: Sequence[tuple[int, int, str]]) -> tuple[list[tuple[int, int, str]], Cost]:
        lines = sorted([*self.lines, *new])
        return lines, cost_of(_rendered(self.path, lines))


_GAP_LINE = f"{_GAP}\n"


def _rendered(path: str, lines: Iterable[tuple[int, int, str]]) -> str:
    parts = [path, "\n"]
    last = 0
    for line, _, text in lines:
        if line > last + 1:
            parts.append(_GAP_LINE)
        parts += [text, "\n"]
        last = line
    return "".join(parts)


def outline(
    order: Iterable[int],
    budget: int,
    *,
    line_of: Callable[[int], Line],
    file_of: Callable[[int], int],
    path_of: Callable[[int], str],
    file_order: Callable[[Iterable[int]], Iterable[int]],
    rest: Iterable[int],
) -> Outline:
    """As many of the definitions in `order` as `budget` tokens take; `rest` are files to name when room is left."""
    files: dict[int, _File] = {}
    shown: set[int] = set()
    total = Cost(0, 0)
    failures = 0
    for number in order:
        if number in shown:
            continue
        file = file_of(number)
        entry = files.get(file)
        if entry is None:
            entry = _File(path_of(file))
        new = [_shown(line) for line in _with_outer(number, line_of) if line.number not in shown]
        lines, cost = entry.added(new)
        before = entry.cost if file in files else Cost(0, 0)
        if (total + cost - before).tokens <= budget:
            total = total + cost - before
            entry.lines, entry.cost = lines, cost
            files[file] = entry
            shown.update(definition for _, definition, _ in new)
            failures = 0
        else:
            failures += 1
            if failures > _MAX_FAILURES or total.tokens >= budget - 2:
                break
    named: list[int] = []
    failures = 0
    for file in rest:
        if file in files:
            continue
        cost = cost_of(path_of(file) + "\n")
        if (total + cost).tokens <= budget:
            total = total + cost
            named.append(file)
        else:
            failures += 1
            if failures > _MAX_FAILURES:
                break
    text = "".join(_rendered(files[file].path, files[file].lines) for file in file_order(files))
    text += "".join(path_of(file) + "\n" for file in named)
    return Outline(text, total.tokens, len(files) + len(named), len(shown))


def _with_outer(number: int, line_of: Callable[[int], Line]) -> list[Line]:
    lines = [line_of(number)]
    while lines[-1].outer >= 0:
        lines.append(line_of(lines[-1].outer))
    return lines


def _shown(line: Line) -> tuple[int, int, str]:
    signature = line.signature
    if len(signature) > _MAX_LINE:
        signature = signature[: _MAX_LINE - 1].rstrip("… ") + "…"
    return line.line, line.number, f"{line.line:>4} {'  ' * line.depth}{signature}"
