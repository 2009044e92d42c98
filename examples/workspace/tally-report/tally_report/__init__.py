"""Turns the output of tally (`COUNT<tab>WORD` lines) into a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Row(NamedTuple):
    word: str
    count: int


def parse(lines: Iterable[str]) -> Iterator[Row]:
    """The rows of tally's output. Raises ValueError naming the line that is not one."""
    for number, line in enumerate(lines, start=1):
        count, tab, word = line.rstrip("\n").partition("\t")
        if not (tab and word and count.isdigit()):
            raise ValueError(f"line {number} is not COUNT<tab>WORD: {line.rstrip()!r}")
        yield Row(word, int(count))


def render(rows: Iterable[Row]) -> str:
    """A Markdown table with each word's share of the words shown; empty input gives a sentence instead."""
    kept = list(rows)
    if not kept:
        return "No words.\n"
    total = sum(row.count for row in kept)
    lines = ["| word | count | share |", "|---|--:|--:|"]
    lines += [f"| {row.word} | {row.count} | {row.count / total:.1%} |" for row in kept]
    return "\n".join(lines) + "\n"
