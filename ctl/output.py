"""Where output goes: data to standard output, words to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable


def say(text: str = "") -> None:
    """A line of data, or of text that is the purpose of the verb."""
    sys.stdout.write(text + "\n")


def say_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(line + "\n" for line in lines))


def note(text: str) -> None:
    """A line of words: what happened, what to do."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_json(value: object) -> None:
    """One JSON object, or a struct as one: indented for a person, on one line for a program."""
    from ctl.client import plain

    text = json.dumps(plain(value), ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode() + b"\n")


def say_bytes(data: bytes) -> None:
    """What others wrote: as it is for a program, harmless for a terminal."""
    from ctl.text import printable

    if sys.stdout.isatty():
        data = printable(data.decode(errors="replace"), "\t\n").encode()
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def colourful() -> bool:
    """Whether standard output takes colours (see no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


_COLOURS = {"green": "32", "red": "31", "yellow": "33", "dim": "2", "bold": "1"}
STATE_COLOURS = {
    "success": "green",
    "completed": "green",
    "failed": "red",
    "blocked": "yellow",
    "cancelled": "yellow",
    "skipped": "dim",
    "ignored": "dim",
}
MARKS = {"success": "✓", "failed": "✗", "skipped": "=", "blocked": "-", "cancelled": "-", "ignored": "-"}


def paint(text: str, colour: str | None) -> str:
    if not colour or not colourful():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
