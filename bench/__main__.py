"""`python -m bench`: runs benchmarks, prints their tables and keeps RESULTS.md."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.daemon import BenchError
from bench.figures import Options, Report, table
from bench.processes import catch_interrupts, end_all
from bench.results import facts, file_system, section, show, update

BENCHMARKS = ("dispatch", "status", "latency", "memory", "makespan", "noop", "clone", "cleanup", "repomap")
RESULTS = Path(__file__).parent / "RESULTS.md"
_TMPFS = Path("/dev/shm")


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if arguments.list:
        for name in BENCHMARKS:
            print(f"{name:10} {(load(name).__doc__ or '').partition(chr(10))[0]}")
        return 0
    results = arguments.results or (None if arguments.quick else RESULTS)
    catch_interrupts()
    try:
        return _in_directories(arguments, results)
    except KeyboardInterrupt:
        show("interrupted")
        return 130


def _in_directories(arguments: argparse.Namespace, results: Path | None) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=arguments.disk or default_disk()) as disk,
        tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=_TMPFS) as tmpfs,
    ):
        try:
            options = Options(quick=arguments.quick, disk=Path(disk), tmpfs=Path(tmpfs))
            return run(arguments.names or BENCHMARKS, options, results)
        finally:
            end_all()  # before the directories go, in which a daemon may still write


def run(names: Sequence[str], options: Options, results: Path | None) -> int:
    """Run the benchmarks one after the other; the exit code. `results` None keeps none."""
    failed = False
    for name in names:
        about = facts(options, sys.argv[1:])
        show(f"{name} …")
        began = time.perf_counter()
        try:
            report = _runner(name)(options)
        except (BenchError, subprocess.SubprocessError) as error:
            show(f"{name} failed: {error}")
            failed = True
            continue
        print(f"\n{name}: {report.about}\n", *table(report.figures), *report.notes, sep="\n", end="\n\n", flush=True)
        show(f"{name} took {time.perf_counter() - began:.0f} s")
        if results is not None:
            update(results, {name: section(name, report, about)}, BENCHMARKS)
    return 1 if failed else 0


def load(name: str) -> object:
    """The module of a benchmark."""
    return importlib.import_module(f"bench.{name}")


def _runner(name: str) -> Callable[[Options], Report]:
    run: Callable[[Options], Report] = load(name).run  # type: ignore[attr-defined]  # each of BENCHMARKS has one
    return run


def default_disk() -> Path:
    """A directory for temporary files that is not in memory, if there is one."""
    for candidate in (Path(tempfile.gettempdir()), Path("/var/tmp")):
        if file_system(candidate) not in ("tmpfs", "ramfs"):
            return candidate
    return Path(tempfile.gettempdir())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks; all of them by default.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--list", action="store_true", help="say what each benchmark measures, and stop")
    parser.add_argument("--quick", action="store_true", help="small inputs, few repetitions, results not kept")
    parser.add_argument("--disk", type=Path, metavar="DIR", help="where on a disk to work (default: the system's)")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help=f"keep results here (default: bench/{RESULTS.name})"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
