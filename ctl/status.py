"""`buildctl status`: the fast path. It reads the answer as plain JSON, without importing the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctl.client import connect
from ctl.output import say_json, say_lines
from ctl.section import Section
from ctl.text import duration, plural, size
from ctl.verbs import Verb

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    if args.resources:
        from ctl.resources import show

        return show(args)
    with connect(args) as client:
        answer = client.raw("daemon.status")
    if args.json:
        say_json(answer)
    else:
        say_lines(readable(Section(answer)))
    return 0


def readable(status: Section) -> list[str]:
    runs, builds, workers = status.section("runs"), status.section("builds"), status.section("workers")
    resources = status.section("resources")
    lines = [
        f"buildd {status.word('version')} {status.word('state')}, "
        f"pid {status.count('pid')}, up {duration(status.number('uptime_s'))}",
        f"  runs       {runs.count('active')} active, {runs.count('total')} in all",
        f"  builds     {builds.count('running')} running, {builds.count('queued')} queued; since the start "
        f"{builds.count('success')} succeeded, {builds.count('failed')} failed",
        f"  workers    {workers.count('busy')} of {workers.count('total')} busy",
        f"  sandbox    {status.word('sandbox')}",
        f"  resources  {size(resources.number('rss_bytes'))} of memory, "
        f"{plural(resources.count('open_files'), 'open file')}, {plural(resources.count('threads'), 'thread')}, "
        f"{resources.count('children')} child processes",
        f"  state in   {status.word('state_dir')}",
    ]
    throttle = status.section("throttle")
    if throttle.word("reason", ""):
        lines.append(f"  throttled  to {plural(throttle.count('workers'), 'worker')}: {throttle.word('reason')}")
    if status.word("paused", ""):
        lines.append(f"  paused     {status.word('paused')}")
    for clone in status.sections("clones"):
        progress = clone.section("progress")
        lines.append(
            f"  {clone.word('operation')}      {clone.word('url')}: {clone.number('percent'):.0f} %, "
            f"{progress.count('received_objects')} of {progress.count('total_objects')} objects, "
            f"{size(progress.number('received_bytes'))}"
        )
    for made in status.sections("maps"):
        of = f" {made.count('done')} of {plural(made.count('total'), 'file')}" if made.count("total") else ""
        lines.append(f"  map        {made.word('repository')}: {made.word('stage')}{of}")
    lines += [f"  note       {reason}" for reason in status.words("reasons")]
    return lines


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--resources", action="store_true", help="what the machine, the daemon and each build use")


VERBS = {
    "status": Verb(
        run,
        _arguments,
        "  buildctl status\n  buildctl status --json | jq .workers.busy\n  buildctl status --resources",
    )
}
