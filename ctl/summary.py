"""The end of a run in words: a table of its packages, counts that add up, and why what failed did so.

Runs are structs of the protocol here, or what reads like them: a start that is over soon does not load those.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from ctl.client import Client
from ctl.failure import CtlError
from ctl.output import MARKS, STATE_COLOURS, paint, say, say_json, say_lines
from ctl.text import MAX_ROWS, STATES, clip, counts, duration, printable, screen_line, size, table

if TYPE_CHECKING:
    from buildd import protocol

LOG_LINES = 15
MAX_FAILURES = 10
"""Failures shown with their log; the others are in the table."""
LONG_BYTES = 16 * 1024
"""Enough of a log's end to hold its last lines."""
EVENTFUL: tuple[protocol.PackageState, ...] = ("success", "failed", "blocked", "cancelled")
"""States of packages that the summary of a large run asks for."""
UNEVENTFUL = ("success", "skipped", "ignored")


def summarise(client: Client, run: protocol.RunView, args: argparse.Namespace) -> int:
    """Print a run that has ended; `run` may be without its packages, or have only those in `EVENTFUL` states."""
    stats, shown = run.stats, run
    if args.json:
        answer = client.raw("run.status", {"run": run.id})
        say_json(answer)
        return exit_code(run)
    if stats.total <= MAX_ROWS:
        shown = client.read("run.status", {"run": run.id})
    elif len(run.packages) != sum(getattr(stats, state) for state in EVENTFUL):
        shown = client.read("run.status", {"run": run.id, "states": EVENTFUL})
    print_summary(client, shown, quiet=args.quiet)
    sys.stdout.flush()
    return exit_code(shown)


def exit_code(run: protocol.RunView) -> int:
    """0 for a completed run in which everything that was asked for is built, else 1."""
    return 0 if run.state == "completed" and not run.stats.failed and not run.stats.blocked else 1


def took(run: protocol.RunView) -> str:
    if run.started_at is None or run.completed_at is None:
        return ""
    return f" in {duration(run.completed_at - run.started_at)}"


def ending(run: protocol.RunView) -> str:
    """`run 7 completed in 1.2s: 3 packages = 3 success`."""
    state = paint(run.state, STATE_COLOURS.get(run.state))
    stats = {name: getattr(run.stats, name) for name in ("total", *STATES)}
    return f"run {run.number} {state}{took(run)}: {counts(stats)}"


def print_summary(client: Client, run: protocol.RunView, *, quiet: bool = False) -> None:
    """What a person wants to know when a run has ended. `quiet` leaves out all but failures."""
    if not quiet and run.packages:
        say()
        print_packages(run, artifact_sizes(client, run), limit=MAX_ROWS)
        say()
    failed = [package for package in run.packages if package.state == "failed"]
    for package in failed[:MAX_FAILURES]:
        print_failure(client, package)
    if len(failed) > MAX_FAILURES:
        say(f"… and {len(failed) - MAX_FAILURES} more failed: buildctl show {run.number}\n")
    if run.error:
        say(f"{paint('✗', 'red')} {printable(run.error)}")
        if run.hint:
            say(f"  {printable(run.hint)}")
    if quiet and exit_code(run) == 0:
        return
    say(ending(run))
    if not quiet and run.stats.total <= MAX_ROWS:
        _print_places(client, run)


def print_packages(
    run: protocol.RunView, artifact_sizes: dict[str, int] | None = None, limit: int | None = None
) -> None:
    """The table of packages; with `limit`, a longer one leaves out those without news."""
    sizes = artifact_sizes or {}
    shown = run.packages
    if limit is not None and len(shown) > limit:
        shown = tuple(package for package in shown if package.state not in UNEVENTFUL)
    total = max(run.stats.total, len(run.packages))
    rows = [
        (
            package.name,
            package.version,
            package.state,
            duration(package.duration_s),
            size(sizes.get(package.artifact or "")),
            size(package.log_bytes) if package.build_id else "-",
            (package.build_id or "-")[:8],
        )
        for package in shown
    ]
    header = ("PACKAGE", "VERSION", "STATE", "TIME", "SIZE", "LOG", "BUILD")
    lines = table(header, rows, right=(3, 4, 5))
    width = 1 << 30
    if sys.stdout.isatty():
        import shutil  # with half a dozen compression formats

        width = shutil.get_terminal_size().columns - 2
    if rows or not run.packages:
        say("  " + paint(clip(lines[0], width), "bold"))
    for package, line in zip(shown, lines[1:], strict=True):
        mark = paint(MARKS.get(package.state, " "), STATE_COLOURS.get(package.state))
        say(f"{mark} {clip(line, width)}")
        if package.message and package.state in ("blocked", "ignored"):
            say(f"    {clip(printable(package.message), width)}")
    if len(shown) < total:
        say(f"  {total - len(shown)} more without trouble: buildctl show {run.number}")


def print_failure(client: Client, package: protocol.RunPackage) -> None:
    """Reason, message, the end of the log, and the command that prints all of it."""
    what = ": ".join(filter(None, (package.reason, package.message))) or "failed"
    say(f"{paint('✗', 'red')} {paint(printable(f'{package.name} {package.version}'), 'bold')} {printable(what)}")
    if package.build_id is None:
        say()
        return
    say_lines(f"    | {line}" for line in log_end(client, package.build_id))
    say(f"  the whole log: buildctl logs {package.build_id[:8]}\n")


def log_end(client: Client, build: str) -> list[str]:
    """The last lines of a log, fit for a screen; why not, where it cannot be read."""
    try:
        chunk = client.read("build.log", {"build": build, "offset": -LONG_BYTES})
    except CtlError as error:
        return [f"(the log cannot be read: {error.message})"]
    lines = chunk.text.splitlines()
    return [screen_line(line) for line in lines[-LOG_LINES:]]


def artifact_sizes(client: Client, run: protocol.RunView) -> dict[str, int]:
    """Bytes by output id and by path of the newest artifacts; a table is as good without."""
    made = sum(package.artifact is not None for package in run.packages)
    if not made:
        return {}
    # of a large run only what it built is here, and that is the newest
    limit = made if run.stats.total > MAX_ROWS else max(100, 2 * made)
    try:
        found = client.read("artifact.list", {"limit": limit}).artifacts
    except CtlError:
        return {}
    return {name: artifact.bytes for artifact in found for name in (artifact.output_id, artifact.path)}


def _print_places(client: Client, run: protocol.RunView) -> None:
    made = [package for package in run.packages if package.artifact]
    built = next((package for package in run.packages if package.build_id), None)
    if not made and built is None:
        return
    state_dir = client.read("daemon.status").state_dir
    if made:
        where = _below(state_dir, made[-1].artifact or "")
        say(f"artifacts: {where}buildctl artifacts get {printable(made[-1].name)}")
    if built is not None and built.build_id is not None:
        log = client.read("build.show", {"build": built.build_id}).log
        say(f"logs: {_below(state_dir, log)}buildctl logs {run.number} {printable(built.name)}")


def _below(state_dir: str, path: str) -> str:
    """`DIRECTORY, ` for the directory of `state_dir` that holds `path`; nothing when it lies elsewhere."""
    if not path.startswith(f"{state_dir}/"):
        return ""
    kind = os.path.relpath(path, state_dir).partition("/")[0]
    return f"{printable(os.path.join(state_dir, kind))}, or "
