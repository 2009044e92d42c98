"""What a benchmark reports: samples, figures with their targets, and how both are written.

A ratio is taken repetition by repetition, each with the peer's run beside it, so that a machine that is slow for
a minute is slow for both; its median is held against the target. A bound on a value holds for the worst sample.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct


class Options(Struct, frozen=True, kw_only=True):
    """What every benchmark gets."""

    quick: bool
    """Small inputs and few repetitions: shows that the benchmark works, not what it measures."""
    disk: Path
    """An existing directory on a disk; benchmarks make temporary directories below it."""
    tmpfs: Path
    """One in memory."""

    def choose(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class Sample(Struct, frozen=True):
    """The values of some repetitions, in the order in which they were measured."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def worst(self) -> float:
        return max(self.values)

    def text(self, unit: str) -> str:
        """Median, and the spread when there is one: `4.21 s (4.05-4.60, n=5)`."""
        middle = f"{number(self.median)} {unit}".strip()
        if len(self.values) == 1:
            return middle
        return f"{middle} ({number(min(self.values))}-{number(max(self.values))}, n={len(self.values)})"


class Figure(Struct, frozen=True, kw_only=True):
    """One line of a report. A figure without a target is there to be read."""

    name: str
    unit: str
    ours: Sample
    peer: Sample | None = None
    """Measured in turns with `ours`."""
    most_ratio: float | None = None
    """Target: the median ratio to the peer is at most this."""
    most: float | None = None
    """Target: no value is above this."""

    def ratios(self) -> Sample | None:
        """`ours` over `peer`, repetition by repetition."""
        if self.peer is None:
            return None
        return Sample(tuple(a / b for a, b in zip(self.ours.values, self.peer.values, strict=True)))

    def met(self) -> bool | None:
        """Whether the targets are reached; None without one."""
        ratios = self.ratios()
        results = []
        if self.most_ratio is not None and ratios is not None:
            results.append(ratios.median <= self.most_ratio)
        if self.most is not None:
            results.append(self.ours.worst <= self.most)
        return all(results) if results else None

    def cells(self) -> tuple[str, ...]:
        """The line's cells, under `HEADINGS`."""
        ratios, met = self.ratios(), self.met()
        targets = []
        if self.most_ratio is not None:
            targets.append(f"≤ {number(self.most_ratio)} x")
        if self.most is not None:
            targets.append(f"≤ {number(self.most)} {self.unit}".strip())
        return (
            self.name,
            self.ours.text(self.unit),
            self.peer.text(self.unit) if self.peer is not None else "",
            ratios.text("x") if ratios is not None else "",
            ", ".join(targets),
            {True: "yes", False: "**no**", None: ""}[met],
        )


HEADINGS = ("figure", "buildd", "peer", "ratio", "target", "met")


class Report(Struct, frozen=True, kw_only=True):
    """What a benchmark found. `about` says what was run against what, `notes` what else should be known."""

    about: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def number(value: float) -> str:
    """Three significant digits, never in exponents."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of all values do not exceed. Raises ValueError for none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def table(figures: Sequence[Figure]) -> list[str]:
    """The figures as a Markdown table that reads well on a terminal too."""
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
