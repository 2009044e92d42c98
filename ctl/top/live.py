"""`top` on a screen: keys and answers change what is chosen and known, and that is drawn."""

from __future__ import annotations

import os
import sys

from ctl.client import Client
from ctl.top.choices import Choices
from ctl.top.gauges import glyphs
from ctl.top.lines import View
from ctl.top.picture import picture
from ctl.top.scene import Scene
from ctl.top.screen import Lost, Screen
from ctl.top.talk import Talk


def show(client: Client, scene: Scene, interval: float) -> None:
    """Until somebody presses `q`, or nobody is there any more. Afterwards the terminal is as it was."""
    with Screen() as screen:
        try:
            _Loop(client, scene, interval, screen).run()
        except Lost:
            pass


class _Loop:
    def __init__(self, client: Client, scene: Scene, interval: float, screen: Screen) -> None:
        self._scene = scene
        self._screen = screen
        self._choices = Choices()
        self._talk = Talk(client, scene, interval, self._say)
        self._glyphs = glyphs()
        self._processors = os.cpu_count() or 1
        self._page = 1

    def _say(self, text: str) -> None:
        self._choices.notice = text

    def run(self) -> None:
        choices, talk = self._choices, self._talk
        talk.begin()
        while True:
            self._draw()
            if talk.wait((sys.stdin.fileno(), self._screen.wake), held=choices.held):
                self._screen.clear_wake()
                for key in self._screen.pressed():
                    if not self._press(key):
                        return
            talk.attend(held=choices.held, lines=choices.lines)

    def _draw(self) -> None:
        lines, columns = self._screen.size()
        view = View(columns, self._glyphs, self._processors)
        shown = picture(self._scene, self._choices, view, lines, self._talk.trouble())
        self._page = shown.page
        self._screen.draw(shown.lines)

    def _press(self, key: str) -> bool:
        """Do what a key wants; whether to go on."""
        if key == "redraw":
            self._screen.redraw()
            return True
        wish = self._choices.press(key, self._scene.rows, self._page)
        if wish == "quit":
            return False
        if wish is not None:
            self._talk.cancel(wish.row)
        return True
