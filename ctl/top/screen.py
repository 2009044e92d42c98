"""The terminal, as long as `top` has it. The one door to curses.

Why curses: it knows what each terminal can do from its terminfo entry, decodes keys, sends only what has changed (which
counts over ssh), and its handler of SIGTSTP gives the terminal back to the shell and takes it again. All of that would
have to be written anew around rich, which draws well and reads nothing. It is in the standard library; where a Python
lacks it, or the terminal is none that it knows, there is no screen and `top` prints.

Invariant: whatever ends the `with` block, the terminal is afterwards as it was.
"""

from __future__ import annotations

import curses
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Self

from ctl.text import cells
from ctl.top.lines import Line, Style

ESCAPE_MS = 50
"""How long an escape may be the beginning of a key. A second, as ncurses has it, makes the Escape key useless."""
NEEDED = ("cup", "clear")
"""What a terminal must be able to do: to move its cursor and to clear itself."""
_KEYS = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    12: "redraw",  # Ctrl-L
}
_SEQUENCE = re.compile(r"\x1b(?:\[|O)([0-?]*[ -/]*[@-~])")
_SEQUENCES = {
    "A": "up",
    "B": "down",
    "5~": "page up",
    "6~": "page down",
    "H": "home",
    "F": "end",
    "1~": "home",
    "4~": "end",
}
"""What most terminals send after ESC [ or ESC O."""
_COLOURS: dict[Style, tuple[int, int]] = {
    "good": (curses.COLOR_GREEN, -1),
    "warn": (curses.COLOR_YELLOW, -1),
    "bad": (curses.COLOR_RED, -1),
    "accent": (curses.COLOR_CYAN, -1),
    "head": (curses.COLOR_BLACK, curses.COLOR_GREEN),
    "sorted": (curses.COLOR_BLACK, curses.COLOR_CYAN),
    "cursor": (curses.COLOR_BLACK, curses.COLOR_CYAN),
}
"""Foreground and background; -1 is the terminal's own."""
_ATTRIBUTES: dict[Style, int] = {
    "bold": curses.A_BOLD,
    "dim": curses.A_DIM,
    "warn": curses.A_BOLD,
    "bad": curses.A_BOLD,
    "head": curses.A_REVERSE,
    "sorted": curses.A_REVERSE | curses.A_BOLD,
    "cursor": curses.A_REVERSE,
}


class Lost(Exception):
    """There is nobody behind the terminal any more."""


def usable() -> bool:
    """Whether a screen can be made of the terminal there is."""
    try:
        curses.setupterm()
    except curses.error:  # it has no terminfo entry
        return False
    return all(curses.tigetstr(capability) for capability in NEEDED)


class Screen:
    """Use as a context manager. SIGTERM and SIGHUP raise KeyboardInterrupt in it."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            """Readable after a signal, such as that of another size."""
            stack.callback(os.close, self.wake)
            stack.callback(os.close, waker)
            stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(waker, warn_on_full_buffer=False))
            self._continued = False
            handlers = {
                signal.SIGTERM: signal.default_int_handler,
                signal.SIGHUP: signal.default_int_handler,
                signal.SIGCONT: self._go_on,
                signal.SIGWINCH: _do_nothing,  # but wake: a signal without a handler in Python does not
            }
            for number, handler in handlers.items():
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    stack.callback(signal.signal, number, signal.signal(number, handler))
            sys.stdout.flush()
            stack.callback(_give_back)
            self._window = curses.initscr()
            self._set_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        # a second Ctrl-C must not leave the terminal half restored
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._stack.close()
        signal.signal(signal.SIGINT, interrupt)

    def _set_up(self) -> None:
        curses.noecho()
        curses.cbreak()
        curses.set_escdelay(ESCAPE_MS)
        self._window.keypad(True)
        self._window.nodelay(True)
        try:
            curses.curs_set(0)
        except curses.error:
            pass  # this terminal cannot hide it
        self._styles = _styles()

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        self._continued = True

    # --- showing ----------------------------------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        """Lines and columns as they are now; what is drawn next must fit in."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            columns = lines = 0
        if columns > 0 and lines > 0 and curses.is_term_resized(lines, columns):
            curses.resizeterm(lines, columns)
        return self._window.getmaxyx()

    def draw(self, lines: Sequence[Line]) -> None:
        """Show these lines, and nothing else."""
        if self._continued:  # whoever had the terminal meanwhile may have left it in any state
            self._continued = False
            curses.reset_prog_mode()
            self.redraw()
        self._window.erase()
        for y, line in enumerate(lines):
            x = 0
            for text, style in line:
                try:
                    self._window.addstr(y, x, text, self._styles.get(style, curses.A_NORMAL))
                except curses.error:
                    pass  # it complains after the last column of the last line, where the cursor cannot go on
                x += cells(text)
        self._window.refresh()

    def redraw(self) -> None:
        """Draw next time as if nothing were there."""
        self._window.clearok(True)

    # --- reading ----------------------------------------------------------------------------------------

    def clear_wake(self) -> None:
        """Take what makes `wake` readable."""
        try:
            while os.read(self.wake, 512):
                pass
        except BlockingIOError:
            pass

    def pressed(self) -> list[str]:
        """The keys pressed since the last time, by name or as the character. Raises Lost at the end of input."""
        codes = self._read()
        if not codes and select.select([sys.stdin], [], [], 0)[0]:  # there is something, and it is no key
            codes = self._read()
            if not codes:
                raise Lost
        return named(codes)

    def _read(self) -> list[int]:
        codes = []
        while (code := self._window.getch()) != -1:
            codes.append(code)
        return codes


def named(codes: Sequence[int]) -> list[str]:
    """Names of keys, or their characters; nothing for those without a meaning here.

    Control sequences that curses has not decoded, since the terminal's entry does not have them, are decoded here or
    left out: their letters are not keys that somebody has pressed.
    """
    found, index = [], 0
    while index < len(codes):
        sequence = _SEQUENCE.match("".join(chr(code) if code < 128 else " " for code in codes[index : index + 32]))
        if sequence is not None:
            found.append(_SEQUENCES.get(sequence[1], ""))
            index += len(sequence[0])
        else:
            code = codes[index]
            found.append(_KEYS.get(code, chr(code) if code < 256 else ""))
            index += 1
    return [key for key in found if key]


def _give_back() -> None:
    try:
        curses.endwin()
    except curses.error:
        pass  # it was not taken yet, or is gone


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _styles() -> dict[Style, int]:
    styles = dict(_ATTRIBUTES)
    if os.environ.get("NO_COLOR") or not curses.has_colors():
        return styles
    try:
        curses.start_color()
        curses.use_default_colors()
    except curses.error:
        return styles
    for pair, (style, (foreground, background)) in enumerate(_COLOURS.items(), start=1):
        curses.init_pair(pair, foreground, background)
        styles[style] = curses.color_pair(pair)
    return styles
