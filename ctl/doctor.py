"""`buildctl doctor`: can builds work here, and may this user start them? Says what to do where not."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from buildd.protocol import CheckResult, DoctorResult
from ctl.client import Client
from ctl.endpoint import find
from ctl.failure import FAILED, NOT_PERMITTED, OK, CtlError
from ctl.output import paint, say, say_json
from ctl.text import printable
from ctl.verbs import Verb

DOCTOR_S = 120.0
"""How long the daemon's checks may take; they start sandboxes and reach for the network."""
_NO_RUN = "00000000-0000-0000-0000-000000000000"


def _doctor(args: argparse.Namespace) -> int:
    checks: list[CheckResult] = []
    try:
        path, connection = find(args.socket)
        checks.append(CheckResult(name="socket", status="ok", message=f"the daemon is reachable at {path}"))
        with Client(path, connection, timeout=args.answer_timeout) as client:
            checks.append(_right_to_control(client))
            checks += client.call("daemon.doctor", None, DoctorResult, timeout=DOCTOR_S).checks
    except CtlError as error:
        checks.append(CheckResult(name="socket", status="error", message=error.message, hint=error.hint))
        checks += _without_daemon()
    if args.json:
        say_json(DoctorResult(checks=tuple(checks)))
    else:
        _print(checks)
    return FAILED if any(check.status == "error" for check in checks) else OK


def _right_to_control(client: Client) -> CheckResult:
    """Ask for something that takes the right to control and changes nothing: a run that is not there."""
    try:
        client.raw("run.cancel", {"run": _NO_RUN})
    except CtlError as error:
        if error.code == NOT_PERMITTED:
            return CheckResult(name="rights", status="warning", message=error.message, hint=error.hint)
    return CheckResult(name="rights", status="ok", message="you may start and cancel runs")


def _without_daemon() -> list[CheckResult]:
    """The checks of `buildd --check`, which needs no daemon."""
    beside = Path(sys.argv[0]).resolve().parent / "buildd"
    program = str(beside) if os.access(beside, os.X_OK) and beside.is_file() else shutil.which("buildd")
    if program is None:
        return [
            CheckResult(
                name="daemon",
                status="error",
                message="buildd is neither beside buildctl nor on the PATH",
                hint="install it: pip install buildd",
            )
        ]
    try:
        done = subprocess.run(
            [program, "--check", "--json"], stdin=subprocess.DEVNULL, capture_output=True, timeout=DOCTOR_S, check=False
        )
        return msgspec.json.decode(done.stdout, type=list[CheckResult])
    except (OSError, subprocess.TimeoutExpired) as error:
        return [CheckResult(name="daemon", status="error", message=f"{program} --check does not work: {error}")]
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip()[-500:] or f"exit code {done.returncode}"
        return [CheckResult(name="daemon", status="error", message=f"{program} --check failed: {said}")]


_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def _print(checks: list[CheckResult]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark, colour = _MARKS[check.status]
        say(f"{paint(mark, colour)} {printable(check.name):<{width}}  {printable(check.message)}")
        if check.hint and check.status != "ok":
            say(f"  {'':<{width}}  {printable(check.hint)}")
    errors = sum(check.status == "error" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    say(f"\n{len(checks)} checks: {errors} errors, {warnings} warnings")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print {checks: […]} as one object")


VERBS = {"doctor": Verb(_doctor, _arguments, "  buildctl doctor\n  buildctl doctor --json | jq '.checks[]|.name'")}
