"""What a tool is: a coroutine from a struct of arguments to a struct that answers, with what a client is told of it.

Name, description and schemas come from the function and the two structs, so they cannot drift from what it does.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from ctl.mcp.daemon import Daemon


class Arguments(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the arguments of all tools."""


class Answer(Struct, frozen=True, kw_only=True):
    """Base of what all tools answer."""

    def as_json(self) -> Any:
        return msgspec.to_builtins(self)

    def as_text(self) -> str:
        """The same for reading; what is not laid out for that is JSON."""
        return json.dumps(self.as_json(), ensure_ascii=False)


class ToolError(Exception):
    """A tool cannot do what it was asked for: what happened, and what to call next."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class Report(Protocol):
    """Tells the client how far a call has come, where it wants to know."""

    async def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> None: ...


class Call(Struct, frozen=True):
    """What a tool has at hand while it runs."""

    daemon: Daemon
    progress: Progress


class Progress:
    """Reports that rise, as the protocol wants it, whatever is counted."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = 0.0
        self._message = ""

    async def tell(self, done: float, total: float | None, message: str) -> None:
        """Report `done` of `total`; nothing when neither it nor the message is news."""
        if done <= self._last and message == self._message:
            return
        self._last = max(done, self._last + 0.001)
        self._message = message
        await self._report(self._last, None if total is None else max(total, self._last), message)


Run = Callable[[Call, Any], Awaitable[Answer]]


class Tool(Struct, frozen=True, kw_only=True):
    name: str
    title: str
    description: str
    changes: bool
    """Whether it changes, begins or fetches something that a user may not have wanted; a map is none of these."""
    destructive: bool
    idempotent: bool
    open_world: bool
    """Whether it reaches beyond the machine."""
    arguments: type[Arguments]
    answer: type[Answer]
    run: Run

    def input_schema(self) -> dict[str, Any]:
        return _schema(self.arguments)

    def output_schema(self) -> dict[str, Any]:
        return _schema(self.answer)

    def understand(self, arguments: Mapping[str, Any]) -> Arguments:
        """The arguments as a struct. Raises ToolError that says what the tool takes."""
        fields = {field.name: field for field in msgspec.structs.fields(self.arguments)}
        given = {
            name: _lenient(value, fields[name].type) if name in fields else value
            for name, value in arguments.items()
            if value is not None  # the same as leaving it out
        }
        try:
            return msgspec.convert(given, self.arguments, strict=False)
        except msgspec.ValidationError as error:
            required = [name for name, field in fields.items() if field.required]
            others = [name for name, field in fields.items() if not field.required]
            takes = f"{', '.join(required) or 'nothing that is required'}; optional: {', '.join(others) or 'nothing'}"
            raise ToolError(
                f"the arguments of {self.name} are wrong: {error}", f"Call it again with what it takes: {takes}."
            ) from None


def tool(
    title: str,
    *,
    changes: bool = False,
    destructive: bool = False,
    idempotent: bool = True,
    open_world: bool = False,
) -> Callable[[Run], Tool]:
    """Make a tool of a coroutine: its docstring is what an AI reads."""

    def make(run: Run) -> Tool:
        hints = get_type_hints(run)
        return Tool(
            name=run.__name__,
            title=title,
            description=" ".join((run.__doc__ or "").split()),
            changes=changes,
            destructive=destructive,
            idempotent=idempotent,
            open_world=open_world,
            arguments=hints["args"],
            answer=hints["return"],
            run=run,
        )

    return make


def _lenient(value: object, kind: Any) -> object:
    """What models are known to send for a text, and for a list of one."""
    while hasattr(kind, "__metadata__"):
        kind = get_args(kind)[0]
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if get_origin(kind) is tuple and isinstance(value, str):
        return [value]
    return value


def _schema(kind: type[Struct]) -> dict[str, Any]:
    """JSON Schema (2020-12) with the object itself at the root, as MCP wants it."""
    _, components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    root = dict(components.pop(kind.__name__))
    if components:
        root["$defs"] = components
    return root
