"""What SQLite says when it cannot read or write, sorted by what can be done about it, and in words.

A *condition* passes: room is made, a lock is released, a file comes back. What met one is tried again. Anything
else is a fault of the data, which would fail again for ever. Errors are told apart by SQLite's result codes
(https://www.sqlite.org/rescode.html), which Python's exceptions carry as `sqlite_errorcode`.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Literal

Kind = Literal["full", "readonly", "locked", "io", "cannot_open", "memory", "damaged", "lost"]

_KINDS: dict[int, Kind] = {
    3: "readonly",  # SQLITE_PERM
    5: "locked",  # SQLITE_BUSY
    6: "locked",  # SQLITE_LOCKED
    7: "memory",  # SQLITE_NOMEM
    8: "readonly",  # SQLITE_READONLY
    10: "io",  # SQLITE_IOERR
    11: "damaged",  # SQLITE_CORRUPT
    13: "full",  # SQLITE_FULL
    14: "cannot_open",  # SQLITE_CANTOPEN
    15: "locked",  # SQLITE_PROTOCOL: another process holds up the write-ahead log
    26: "damaged",  # SQLITE_NOTADB
}
_CONSTRAINT = 19
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_WORDS: dict[Kind, tuple[str, str]] = {
    "full": ("no space is left in {directory}", "free disk space there"),
    "readonly": (
        "{path} cannot be written",
        "give the daemon's user the right to write it and its directory, or mount the file system read-write",
    ),
    "locked": ("another process has locked {path}", "`fuser {path}` names it: end it, or wait"),
    "io": ("{path} cannot be read or written", "the kernel's log (dmesg) may say why; look at the disk and at quotas"),
    "cannot_open": ("{path} cannot be opened", "look at the rights on it and its directory, and at the free space"),
    "memory": ("there is not enough memory for {path}", "free memory, or give the daemon more"),
    "damaged": ("{path} is damaged", "it is set aside, and a new one is made from the receipts beside the artifacts"),
    "lost": ("a new {path} is being made", "this passes by itself"),
}


class DamagedDatabase(Exception):
    """The file is there and is no database that can be used."""


class LostDatabase(Exception):
    """The file that was in use is not to be used any more, and there is no new one yet."""


def kind_of(error: BaseException) -> Kind | None:
    """Which condition an exception tells of; None for faults of the data."""
    if isinstance(error, DamagedDatabase):
        return "damaged"
    if isinstance(error, LostDatabase):
        return "lost"
    if isinstance(error, OSError):
        return "full" if error.errno in _NO_SPACE else "io"
    return _KINDS.get(_code(error))


def is_duplicate(error: BaseException) -> bool:
    """Whether a row could not be written because of one that is there already."""
    return _code(error) == _CONSTRAINT


def _code(error: BaseException) -> int:
    code = getattr(error, "sqlite_errorcode", 0)  # not there on errors that Python's module raises by itself
    return int(code) & 0xFF  # the rest of the bits says which of several ways it went


def in_words(error: BaseException, path: Path) -> tuple[str, str]:
    """What is wrong with the database at `path`, and what to do about it."""
    kind = kind_of(error)
    if kind is None:
        return str(error), "this is a fault of the daemon: please report it with its log"
    what, hint = _WORDS[kind]
    names = {"path": path, "directory": path.parent}
    return f"{what.format(**names)} ({error})", hint.format(**names)
