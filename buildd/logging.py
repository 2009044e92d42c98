"""The daemon's own log: JSON lines on standard error, a readable form when that is a terminal, entries when it is the
journal.

Every line carries what is bound in the context of its task: run, build, package, repository. An entry of the journal
has the same as fields: `BUILDD_RUN`, `BUILDD_BUILD`, `BUILDD_PACKAGE`, …
"""

from __future__ import annotations

import json
import logging
import sys
from functools import cache
from types import TracebackType
from typing import Any

import structlog

from buildd import journald

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PRIORITIES = {
    "debug": journald.DEBUG,
    "info": journald.INFO,
    "warning": journald.WARNING,
    "error": journald.ERROR,
    "critical": journald.CRITICAL,
}

_CONTEXT = ("run", "build", "package")
"""What is bound in a context; it comes in no order, and is said last."""


def set_up(level: str) -> None:
    """Configure structlog for the process. May be called again with another level."""
    if journald.is_stderr():
        # without local variables in tracebacks: a token may be among them
        formatted: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _to_entry]
        factory: Any = _JournalLogger
        sys.excepthook = _log_fault
    elif sys.stderr.isatty():
        console = structlog.dev.ConsoleRenderer(sort_keys=False, exception_formatter=structlog.dev.plain_traceback)
        formatted = [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False), console]
        factory = structlog.PrintLoggerFactory(sys.stderr)
    else:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        formatted = [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
        factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *formatted],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )


def say_last(*lines: str) -> None:
    """Tell people on standard error why the daemon does not run; in the journal it is an error."""
    prefix = f"<{journald.ERROR}>" if journald.is_stderr() else ""
    sys.stderr.write("".join(f"{prefix}{line}\n" for line in lines if line))


def _to_entry(_: object, __: str, event: structlog.typing.EventDict) -> tuple[tuple[dict[str, str]], dict[str, Any]]:
    """The fields of an entry. People see its message, so that has everything; programs ask for the fields."""
    level, message, fault = event.pop("level"), str(event.pop("event")), event.pop("exception", None)
    items = sorted(event.items(), key=lambda item: _CONTEXT.index(item[0]) if item[0] in _CONTEXT else -1)
    texts = {name: value if isinstance(value, str) else _as_json(value) for name, value in items}
    words = " ".join([message, *(f"{name}={_quoted(text)}" for name, text in texts.items())])
    return (
        {
            "MESSAGE": f"{words}\n{fault}" if fault else words,
            "PRIORITY": str(_PRIORITIES[level]),
            "SYSLOG_IDENTIFIER": "buildd",
            "BUILDD_EVENT": message,
            **{f"BUILDD_{name.upper()}": text for name, text in texts.items()},
        },
    ), {}


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _quoted(text: str) -> str:
    return text if text.isprintable() and " " not in text and text else _as_json(text)


class _JournalLogger:
    """What structlog hands the last processor's result to."""

    def __init__(self, *_: object) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = _journal().send


@cache
def _journal() -> journald.Journal:
    return journald.Journal(journald.ADDRESS)


def _log_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A fault that ends the daemon is one entry of the journal, not as many as its traceback has lines."""
    structlog.get_logger().critical("the daemon ends by a fault of its own", exc_info=(kind, error, trace))
