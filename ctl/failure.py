"""What the client can end with: exit codes, and the one exception that carries them to `main`."""

from __future__ import annotations

OK = 0
FAILED = 1
"""Something that was asked for failed, such as a package of a run."""
USAGE = 2
NOT_FOUND = 3
REFUSED = 4
NOT_PERMITTED = 5
UNREACHABLE = 69
TIMED_OUT = 124
INTERRUPTED = 130


class CtlError(Exception):
    """An error for the person at the terminal: what happened and to what, what to do, and the exit code."""

    def __init__(self, message: str, *, hint: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


class Gone(CtlError):
    """The daemon closed the connection while an answer was outstanding."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"the daemon at {path} went away before it answered",
            hint="what it had accepted goes on when it is back; ask again then",
            code=UNREACHABLE,
        )


class NoSuchMethod(CtlError):
    """The daemon does not know the method: it is of an older version."""


def exit_code(error_code: int) -> int:
    """The exit code of a JSON-RPC error: the daemon's own codes are exit codes already, except `busy`."""
    if FAILED <= error_code <= NOT_PERMITTED:
        return error_code
    if error_code == 6:  # busy: the same request may succeed later
        return REFUSED
    return USAGE if error_code in (-32601, -32602) else FAILED
