"""Programs on a pseudo-terminal, read as a person reads them: a screen, not a stream.

    with Terminal(command, environ) as terminal:
        terminal.until("no build is running")
        terminal.press("q")
        assert terminal.exit_status() == 0

Invariant: every wait ends, and what was started is gone afterwards.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pyte

from harness.processes import kill_all, until, with_environment

T = TypeVar("T")
DEADLINE_S = 60.0
KEYS = {"up": "\x1bOA", "down": "\x1bOB", "page up": "\x1b[5~", "page down": "\x1b[6~", "end": "\x1b[4~"}
"""What a `screen` sends for them to a program that has asked for keys of its own."""
MARK = "BUILDD_TEST_TERMINAL"
"""In the environment of all that runs on a terminal: how what is left of it is found."""
_SWITCH = re.compile(r"(\x1b\[\?(?:1049|47)[hl])")


class Terminal:
    """A program with a terminal of its own, which controls it: it gets the signals of keys and of another size.

    pyte shows what a terminal of the kind `screen` would; of others it does not know all that they can do.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        columns: int = 80,
        lines: int = 24,
        kind: str = "screen",
        cwd: Path | None = None,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self._name = os.ttyname(self._slave)
        os.set_blocking(self._master, False)
        self._picture = pyte.Screen(columns, lines)
        self._stream = pyte.Stream(self._picture)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.output = ""
        """All that was written."""
        self._set_size(columns, lines)
        self.modes = self.settings()
        """How the terminal was set before the program began."""
        # the slave stays open here, so that its settings can be read after the program
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            env={**environ, "TERM": kind, MARK: self._name},
            cwd=cwd,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        kill_all(with_environment(lambda variables: variables.get(MARK) == self._name))
        self.process.wait(DEADLINE_S)
        self.hang_up()
        os.close(self._slave)

    # --- looking ----------------------------------------------------------------------------------------

    def settings(self) -> list[Any]:
        """What `stty` shows."""
        return termios.tcgetattr(self._slave)

    @property
    def shown(self) -> list[str]:
        """The lines on the screen, without trailing blanks."""
        return [line.rstrip() for line in self._picture.display]

    @property
    def text(self) -> str:
        return "\n".join(self.shown)

    @property
    def alternate(self) -> bool:
        """Whether the program has taken the whole screen and not yet given it back."""
        taken = _SWITCH.findall(self.output)
        return bool(taken) and taken[-1].endswith("h")

    @property
    def cursor_hidden(self) -> bool:
        return bool(self._picture.cursor.hidden)

    def styles_of(self, text: str) -> tuple[str, bool, bool]:
        """Colour, boldness and reversal of the first place where the screen shows `text`."""
        for y, line in enumerate(self._picture.display):
            if text in line:
                char = self._picture.buffer[y][line.index(text)]
                return char.fg, char.bold, char.reverse
        raise AssertionError(f"{text!r} is not on the screen:\n{self.text}")

    # --- acting -----------------------------------------------------------------------------------------

    def press(self, *keys: str) -> None:
        """Press keys, by name or as what they send."""
        for key in keys:
            os.write(self._master, KEYS.get(key, key).encode())

    def resize(self, columns: int, lines: int) -> None:
        self._picture.resize(lines, columns)
        self._set_size(columns, lines)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the line, as the end of an ssh connection does."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    # --- waiting ----------------------------------------------------------------------------------------

    def until(self, *texts: str, gone: Sequence[str] = (), within: float = DEADLINE_S) -> str:
        """The screen, once all of `texts` are on it and none of `gone`."""
        deadline = time.monotonic() + within
        while not (all(text in self.text for text in texts) and not any(text in self.text for text in gone)):
            assert time.monotonic() < deadline, f"no {texts} without {gone} in {within:g} s:\n{self.text}"
            assert self.process.poll() is None or self._readable(0.0), f"it has ended:\n{self.text}"
            self.read(0.1)
        return self.text

    def reading(self, look: Callable[[], T], what: str, *, within: float = DEADLINE_S) -> T:
        """The first true result of `look`, while what the program writes is read."""

        def read_and_look() -> T:
            self.read(0.1)
            return look()

        return until(read_and_look, what, within=within)

    def exit_status(self, within: float = DEADLINE_S) -> int:
        """Wait for the end of the program, reading what it writes."""
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it has not ended after {within:g} s:\n{self.text}"
            self.read(0.05)
        while self.read(0.0):
            pass
        return self.process.returncode

    def _readable(self, seconds: float) -> bool:
        lines = [self._master] if self._master >= 0 else []
        return bool(select.select(lines, [], [], seconds)[0])

    def read(self, seconds: float) -> bool:
        """Take what the program writes next, waiting so long for it; whether there was any."""
        if not self._readable(seconds):
            return False
        text = self._decoder.decode(os.read(self._master, 65536))
        self.output += text
        for part in _SWITCH.split(text):
            if _SWITCH.fullmatch(part):  # pyte has one screen only; the other one is empty here
                self._picture.erase_in_display(2)
                self._picture.cursor_position()
            self._stream.feed(part)
        return True
