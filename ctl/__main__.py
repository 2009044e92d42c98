"""The entry point of `buildctl`: the one place where errors become words and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ctl.failure import FAILED, INTERRUPTED, OK, CtlError


def run(argv: Sequence[str]) -> int:
    """Do what `argv` says; the exit code. Prints every error that can be expected to standard error."""
    if sys.stdout is None:  # started with a closed standard output
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    # names in other encodings than the terminal's must not end the program
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from ctl.verbs import parse

        verb, args = parse(argv)
        code = verb.run(args)
        sys.stdout.flush()
        return code
    except CtlError as error:
        _flush()
        _complain(error.message, error.hint)
        return error.code
    except KeyboardInterrupt:
        _flush()
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        _abandon_stdout()
        return OK
    except OSError as error:
        _abandon_stdout()
        what = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        _complain(str(what or error), "")
        return FAILED
    except Exception as error:
        if os.environ.get("BUILDCTL_DEBUG"):
            raise
        _abandon_stdout()
        _complain(
            f"internal error: {type(error).__name__}: {error}",
            "this is a fault of buildctl; BUILDCTL_DEBUG=1 shows where it is",
        )
        return FAILED


def _complain(message: str, hint: str) -> None:
    from ctl.text import printable

    if sys.stderr is None:
        return
    sys.stderr.write(f"buildctl: {printable(message, keep=chr(10))}\n")
    if hint:
        sys.stderr.write(f"  {printable(hint, keep=chr(10))}\n")


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _abandon_stdout()


def _abandon_stdout() -> None:
    """Let the interpreter flush into nothing at exit instead of failing again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        sys.stdout.flush()
    except OSError:
        pass  # nothing can be written anyway


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
