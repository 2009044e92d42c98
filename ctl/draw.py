"""The live view of a run on a terminal: a bar over everything, a line per running package.

What has ended scrolls away above as one line each. Nothing runs in the background: a picture is drawn when the
follower says so. All text from outside passes `screen_line` or `printable`, and none is read as markup.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from buildd.protocol import Event
from ctl.follow import Progress, Running
from ctl.lines import ending
from ctl.output import MARKS, STATE_COLOURS
from ctl.text import duration, printable, screen_line, size

NARROW = 60
"""Columns below which there is no room for the last line of output."""


class Drawing:
    """Draws on the terminal behind `stream`. The cursor and the screen are as before after `close`."""

    wants: tuple[str, ...] = ("events.poll", "run.status", "daemon.status")

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)
        self._progress = Progress()
        self._finished: list[Text] = []
        self._live: Live | None = None

    def event(self, event: Event, progress: Progress) -> None:
        end = ending(event, progress)
        if end is not None:
            state, text = end
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(f"{MARKS.get(state, ' ')} ", style=STATE_COLOURS.get(state, ""))
            line.append(text)
            self._finished.append(line)

    def draw(self, progress: Progress) -> None:
        self._progress = progress
        if self._live is None:
            self._live = Live(get_renderable=self._picture, console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        if self._finished:
            # one write for all of them: printing above the picture draws it again each time
            self._console.print(Group(*self._finished))
            self._finished.clear()
        self._live.refresh()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self) -> RenderableType:
        progress, width = self._progress, self._console.width
        room = max(1, self._console.height - 4 - len(progress.clones))
        running = sorted(progress.running.values(), key=lambda package: package.started_at)
        parts: list[RenderableType] = [_overall(progress, width)]
        parts += [_clone_line(clone.url, clone.percent, clone.progress.received_bytes) for clone in progress.clones]
        if progress.waiting:
            parts.append(Text(f"  {printable(progress.waiting)}", style="yellow", no_wrap=True, overflow="ellipsis"))
        if running:
            parts.append(_running_table(running[:room], progress, width))
        if len(running) > room:
            parts.append(Text(f"  … and {len(running) - room} more running", style="dim"))
        return Group(*parts)


def _overall(progress: Progress, width: int) -> RenderableType:
    stats = progress.stats
    done = stats.total - stats.queued - stats.running
    counts = Text(f"{done}/{stats.total}" if stats.total else "", no_wrap=True, overflow="ellipsis")
    for state in ("running", "failed", "blocked", "skipped", "cancelled"):
        count = int(getattr(stats, state))
        if count:
            counts.append(f"  {count} {state}", style=STATE_COLOURS.get(state, ""))
    counts.append(f"  {printable(progress.where())}  {duration(time.time() - progress.started_at)}", style="dim")
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=max(8, min(30, width // 4)))
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=stats.total or None, completed=done, pulse=stats.total == 0)
    grid.add_row(bar, counts)
    return grid


def _clone_line(url: str, percent: float, received: int) -> Text:
    text = f"  cloning {printable(url)}  {percent:.0f} %  {size(received)}"
    return Text(text, no_wrap=True, overflow="ellipsis")


def _running_table(running: list[Running], progress: Progress, width: int) -> Table:
    grid = Table.grid(padding=(0, 1), expand=width >= NARROW)
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, width // 3))
    grid.add_column(no_wrap=True, overflow="ellipsis", min_width=9, style="cyan")
    grid.add_column(no_wrap=True, justify="right", min_width=6)
    if width >= NARROW:
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1, style="dim")
    now = time.time()
    for package in running:
        cells = [
            Text("  " + printable(progress.title(package.name))),
            Text(printable(package.phase)),
            Text(duration(now - package.started_at)),
        ]
        if width >= NARROW:
            cells.append(Text(screen_line(package.last_line)))
        grid.add_row(*cells)
    return grid


def can_draw(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can move its cursor."""
    console = Console(file=stream)
    return console.is_terminal and not console.is_dumb_terminal
