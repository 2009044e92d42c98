"""Answers read as plain JSON, for verbs that are done before the protocol's structs would be loaded."""

from __future__ import annotations

from typing import Any

from ctl.failure import CtlError
from ctl.text import printable


class Record:
    """A JSON object with its members as attributes, and those in it too: what a struct of the protocol is to readers.

    Raises CtlError for a member that is not there.
    """

    def __init__(self, members: dict[str, Any]) -> None:
        self.__dict__.update((name, _readable(value)) for name, value in members.items())

    def __getattr__(self, name: str) -> Any:
        raise CtlError(
            f"the daemon's answer is not understood: it has no {name}",
            hint="client and daemon may be of different versions: `buildctl version` shows both",
        )


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    if isinstance(value, list):
        return tuple(map(_readable, value))
    return value


class Section:
    """A JSON object of the answer, read by name and type; what is missing or odd reads as nothing."""

    def __init__(self, value: object) -> None:
        self._fields = value if isinstance(value, dict) else {}

    def section(self, name: str) -> Section:
        return Section(self._fields.get(name))

    def sections(self, name: str) -> list[Section]:
        value = self._fields.get(name)
        return [Section(item) for item in value] if isinstance(value, list) else []

    def words(self, name: str) -> list[str]:
        value = self._fields.get(name)
        return [printable(item) for item in value if isinstance(item, str)] if isinstance(value, list) else []

    def word(self, name: str, missing: str = "?") -> str:
        value = self._fields.get(name)
        return printable(value) if isinstance(value, str) else missing

    def number(self, name: str) -> float:
        value = self._fields.get(name)
        return value if isinstance(value, int | float) else 0

    def count(self, name: str) -> int:
        return int(self.number(name))
