"""The command `buildd`: arguments, logging, and trio.run. The only place from which the process exits."""

from __future__ import annotations

import sys

# structlog imports rich where it finds it: 6 MB of resident memory for tracebacks that nobody here sees
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None is how an import is told that there is none

import argparse
import faulthandler
import json
import os
import threading
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from buildd import __version__, config, heap, logging
from buildd.app import Daemon
from buildd.errors import BuilddError, InvalidInput
from buildd.execute.sandbox.choose import choose
from buildd.monitor.checks import machine_checks
from buildd.protocol import CheckResult

EXIT_CANNOT_START = 1
EXIT_OUT_OF_TIME = 75


def main() -> None:
    """Parse the command line and run the daemon until it is asked to stop."""
    faulthandler.enable()  # systemd's watchdog sends SIGABRT: what was everybody doing?
    arguments = _parser().parse_args()
    files = [Path(arguments.config)] if arguments.config else None
    load = partial(config.load, files=files, settings=arguments.set)
    failure: BuilddError | None = None
    status = 0
    try:
        settings = load()
        if arguments.print_config:
            sys.stdout.write(json.dumps(msgspec.to_builtins(settings, enc_hook=_plain), indent=2) + "\n")
        else:
            logging.set_up(settings.daemon.log_level)
            heap.few_arenas()
            if arguments.check:
                status = trio.run(_check, settings, arguments.json)
            else:
                trio.run(Daemon(load, _limit_life).run)
    except* BuilddError as group:  # nurseries wrap what goes through them
        failure = _first(group)
    if failure is not None:
        logging.say_last(f"buildd: {failure.message}", f"  {failure.hint}" if failure.hint else "")
        status = 2 if failure.code == InvalidInput.code else EXIT_CANNOT_START
    sys.exit(status)


def _first(group: BaseExceptionGroup[BuilddError]) -> BuilddError:
    """A leaf of the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BuilddError)
    return error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="buildd", description="Clone, map, plan and build git repositories, and keep a record of it."
    )
    parser.add_argument("--config", metavar="FILE", help="read this configuration and no other")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override one key; may be repeated"
    )
    parser.add_argument("--check", action="store_true", help="check this machine for what builds need, and exit")
    parser.add_argument("--json", action="store_true", help="with --check: print JSON")
    parser.add_argument("--print-config", action="store_true", help="print the configuration in use, and exit")
    parser.add_argument("--version", action="version", version=f"buildd {__version__}")
    return parser


async def _check(settings: config.Config, as_json: bool) -> int:
    try:
        sandbox = await choose(settings)
        checks = machine_checks(settings, sandbox=sandbox.name, weaker=sandbox.weaker)
    except BuilddError as error:
        checks = (CheckResult(name="sandbox", status="error", message=error.message, hint=error.hint),)
    if as_json:
        sys.stdout.write(msgspec.json.encode(checks).decode() + "\n")
    else:
        for check in checks:
            hint = f"\n         {check.hint}" if check.hint else ""
            sys.stdout.write(f"{check.status:8} {check.name}: {check.message}{hint}\n")
    return 1 if any(check.status == "error" for check in checks) else 0


def _plain(value: object) -> object:
    return float(value) if isinstance(value, float) else int(value) if isinstance(value, int) else str(value)


def _limit_life(seconds: float) -> None:
    """End the process after `seconds` whatever it is doing: the promise of daemon.shutdown_limit."""

    def end() -> None:
        structlog.get_logger().error("the shutdown took too long; giving up what is left to the next start")
        os._exit(EXIT_OUT_OF_TIME)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
