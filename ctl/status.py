"""`buildctl status`: the fast path. It reads the answer as plain JSON, without importing the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ctl.client import connect
from ctl.output import say_json, say_lines
from ctl.text import duration, plural, printable, size
from ctl.verbs import Verb

if TYPE_CHECKING:
    import argparse


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


def run(args: argparse.Namespace) -> int:
    if args.resources:
        from ctl.resources import show

        return show(args)
    with connect(args) as client:
        answer = client.raw("daemon.status")
    if args.json:
        say_json(answer)
    else:
        say_lines(readable(Section(msgspec.json.decode(answer))))
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
