"""RESULTS.md: one section for each benchmark, each with the machine and the command it was measured with.

A section is replaced as a whole when its benchmark runs; the others stay as they are.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from bench.figures import Options, Report, table

_HEAD = """\
# Results of the benchmarks

Written by `python -m bench`, which replaces the section of each benchmark that it runs. Values are medians, in
parentheses the smallest, the largest and the number of repetitions; ratios are taken between repetitions that
stood side by side. What each benchmark does is in its module.
"""
_PACKAGES = ("trio", "pyzmq", "msgspec", "pygit2", "rich")
_PROGRAMS = (("bwrap", "--version"), ("git", "--version"), ("hyperfine", "--version"))


def section(name: str, report: Report, facts: Sequence[str]) -> str:
    """The section of one benchmark, heading included."""
    parts = [f"## {name}", report.about, "\n".join(table(report.figures))]
    if report.notes:
        parts.append("\n".join(f"- {note}" for note in report.notes))
    parts.append("\n".join(facts))
    return "\n\n".join(parts) + "\n"


def update(path: Path, sections: Mapping[str, str], order: Sequence[str]) -> None:
    """Put the sections into the file at `path`, in `order`; sections that are there and not given stay."""
    kept: dict[str, str] = {}
    if path.exists():
        for part in path.read_text().split("\n## ")[1:]:
            title = part.partition("\n")[0].strip()
            kept[title] = "## " + part.rstrip("\n") + "\n"
    kept |= sections
    names = [name for name in order if name in kept]
    temporary = path.with_name(path.name + ".new")
    temporary.write_text("\n".join([_HEAD, *(kept[name] for name in names)]))
    os.replace(temporary, path)


def facts(options: Options, arguments: Sequence[str]) -> list[str]:
    """What the numbers depend on: when, with what command, on which machine, with which software."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    programs = [line for program in _PROGRAMS if (line := _first_line(program))]
    memory = psutil.virtual_memory().total / (1 << 30)
    load = os.getloadavg()[0]
    return [
        f"Measured {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())} by "
        f"`{shlex.join(['python', '-m', 'bench', *arguments])}`; load average before {load:.2f}.",
        f"{_cores()} cores ({_cpu()}), {memory:.0f} GiB of memory; {platform.system()} {platform.release()} "
        f"{platform.machine()}; disk: {file_system(options.disk)}, memory: {file_system(options.tmpfs)}.",
        f"Python {platform.python_version()}; {', '.join(versions)}; {', '.join(programs)}.",
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # a kernel without it has other ways to say the same, and none of them matters here
    return platform.machine()


def file_system(path: Path) -> str:
    """The type of the file system that `path` is on, like `ext4`."""
    target = os.path.realpath(path)
    mounts = [p for p in psutil.disk_partitions(all=True) if _is_below(target, p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else "unknown"


def _is_below(path: str, mountpoint: str) -> bool:
    return os.path.commonpath((path, mountpoint)) == mountpoint


def _first_line(command: Sequence[str]) -> str:
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=10)
    except OSError:
        return ""
    return ran.stdout.partition("\n")[0].replace(" version", "")


def show(text: str) -> None:
    """Progress for whoever watches; the tables go to standard output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
