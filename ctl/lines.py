"""The plain view of a run: one line per change, for logs and for terminals that cannot draw."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from buildd.protocol import Event
from ctl.follow import ENDINGS, Progress
from ctl.output import MARKS
from ctl.text import clock, duration, printable, size

CLONE_LINE_S = 5.0
"""Least time between two lines about one clone."""


def ending(event: Event, progress: Progress) -> tuple[str, str] | None:
    """State and text of the line for a package that came to its end; None for other events."""
    if event.package is None or event.kind not in ENDINGS:
        return None
    state = event.kind.removeprefix("package_")
    if state == "retry":
        again = f"attempt {event.data.get('attempt')} follows in {duration(event.data.get('delay_s'))}"
        why = [str(event.data[key]) for key in ("reason", "message") if event.data.get(key)]
        return state, printable(f"{progress.title(event.package)} {': '.join([again, *why])}")
    if state == "completed":
        state = str(event.data.get("state", "success"))
    text = f"{progress.title(event.package)} {state}"
    took = event.data.get("duration_s")
    if state in ("success", "failed") and isinstance(took, int | float):
        text += f" in {duration(took)}"
    told = [str(event.data[key]) for key in ("reason", "message") if event.data.get(key)]
    return state, printable(": ".join([text, *told]))


class Lines:
    """Prints to `stream`; flushes with every batch."""

    wants: tuple[str, ...] = ("events.poll", "daemon.status")

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._clones_shown: dict[str, float] = {}
        self._waiting_shown = ""

    def event(self, event: Event, progress: Progress) -> None:
        line = self._line(event, progress)
        if line:
            self._stream.write(f"[{clock(event.time)}] {line}\n")

    def _line(self, event: Event, progress: Progress) -> str | None:
        end = ending(event, progress)
        if end is not None:
            return f"{MARKS.get(end[0], ' ')} {end[1]}"
        if event.kind == "packages_skipped":
            return printable(f"{MARKS['skipped']} {event.data.get('count')} packages: {event.data.get('message')}")
        if event.kind == "run_state":
            return printable(f"run {progress.where()}")
        if event.package is not None and event.kind == "package_started":
            return printable(f"{progress.title(event.package)} build started")
        if event.package is not None and event.kind == "package_phase":
            return printable(f"{progress.title(event.package)} {event.data.get('phase', '')}")
        if event.kind.startswith("clone_") and event.kind != "clone_progress":
            error = f": {event.data['error']}" if event.data.get("error") else ""
            return printable(f"clone of {event.repository} {event.kind.removeprefix('clone_')}{error}")
        return None

    def draw(self, progress: Progress) -> None:
        now = time.monotonic()
        for clone in progress.clones:
            if now - self._clones_shown.get(clone.url, now - CLONE_LINE_S) < CLONE_LINE_S:
                continue
            self._clones_shown[clone.url] = now
            self._stream.write(
                f"[{clock(time.time())}] {clone.operation} of {printable(clone.url)} {clone.percent:.0f} %, "
                f"{size(clone.progress.received_bytes)}\n"
            )
        if progress.waiting and progress.waiting != self._waiting_shown:
            self._stream.write(f"[{clock(time.time())}] {printable(progress.waiting)}\n")
        self._waiting_shown = progress.waiting
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()
