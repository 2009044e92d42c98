"""`buildctl gc`: remove artifacts that the limits do not allow, or say which would go."""

from __future__ import annotations

import argparse
import re

from buildd import protocol
from ctl.client import connect
from ctl.failure import FAILED, OK
from ctl.output import note, say_json, say_lines
from ctl.text import moment, plural, printable, size, table
from ctl.verbs import Verb, seconds

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_REASONS = {"age": "too old", "size": "too much", "free_space": "disk full", "free_inodes": "no inodes"}


def _gc(args: argparse.Namespace) -> int:
    params = protocol.CollectParams(
        dry_run=args.dry_run,
        max_bytes=args.max_bytes,
        max_age=args.max_age,
        min_free_bytes=args.min_free_bytes,
        min_free_inodes=args.min_free_inodes,
    )
    with connect(args) as client:
        result = client.call("artifact.collect", params, protocol.CollectResult, timeout=None)
    if args.json:
        say_json(result)
    else:
        _print(result)
    for limit in result.unmet:
        note(f"a limit is not kept: {limit.message}")
    for what in result.failed:
        note(f"could not be removed: {printable(what)}")
    return FAILED if result.unmet or result.failed else OK


def _print(result: protocol.CollectResult) -> None:
    rows = [
        (
            item.kind,
            item.id[:12] if item.kind == "artifact" else item.id,
            size(item.bytes),
            moment(item.last_used),
            _REASONS[item.reason],
            " ".join(item.packages),
        )
        for item in result.collected
    ]
    if rows:
        say_lines(table(("WHAT", "ID", "SIZE", "LAST USED", "WHY", "PACKAGES"), rows, right=(2,)))
    said = "would be freed" if result.dry_run else "freed"
    note(
        f"{size(result.freed_bytes)} {said}; {plural(result.artifacts, 'artifact')} left, "
        f"{size(result.bytes)}; {size(result.free_bytes)} free on the disk"
    )


def parse_size(text: str) -> int:
    """The type of size arguments: bytes of `512MiB`, `2GiB`, `10MB` or `4096`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) * factor >= 2**62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it like 512MiB or 2GiB")
    return int(float(match[1]) * factor)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    group = parser.add_argument_group("limits for this once (0 for none), instead of the configuration's")
    group.add_argument("--max-bytes", type=parse_size, metavar="SIZE", help="what artifacts and releases may take")
    group.add_argument("--max-age", type=seconds, metavar="DURATION", help="how long they may lie unused")
    group.add_argument("--min-free-bytes", type=parse_size, metavar="SIZE", help="free space that the disk must have")
    group.add_argument("--min-free-inodes", type=int, metavar="N", help="free inodes that it must have")
    parser.add_argument("--json", action="store_true", help="print the answer as one object")


VERBS = {
    "gc": Verb(
        _gc,
        _arguments,
        "  buildctl gc --dry-run\n  buildctl gc --max-bytes 20GiB\n  buildctl gc --max-age 30d --json",
    )
}
