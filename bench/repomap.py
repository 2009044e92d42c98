"""Maps of repositories: `buildctl map` cold, warm, after a change and on a new branch, against aider's repo map.

Repositories and peer are the user's to bring: BUILDD_BENCH_REPOSITORIES names bare repositories with history, separated
by colons, and BUILDD_BENCH_AIDER a Python with the package aider-chat. Without the first a repository is generated,
without the second there is no peer.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

from bench.daemon import ROOT, BenchError, Daemon
from bench.figures import Figure, Options, Report, Sample
from bench.packages import git
from bench.results import show

TOKENS = 4096
COLD_TARGET, WARM_TARGET, MEMORY_TARGET = 1 / 10, 1 / 50, 1 / 5
MOST_GROWTH = 1.10
_PEER_S = 3600.0
_SAMPLE_S = 0.02
_SOURCES = (".java", ".py", ".go", ".rs", ".c")
_SETTLE_S = 2.0


class Peer(Struct, frozen=True, kw_only=True):
    seconds: float
    peak_bytes: int
    characters: int


class _Watch(threading.Thread):
    """The most memory that the descendants of a process had together: PSS, so that shared pages count once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self.most = max(self.most, sum(map(_pss, self._process.children(recursive=True))))

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self.join()


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def run(options: Options) -> Report:
    aider = os.environ.get("BUILDD_BENCH_AIDER")
    figures: list[Figure] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="buildd-bench-", dir=options.disk) as temporary:
        home = Path(temporary)
        named = [Path(path) for path in os.environ.get("BUILDD_BENCH_REPOSITORIES", "").split(":") if path]
        for source in named or [_generate(home / "generated", options.choose(2000, 50))]:
            figures += _measure(source, home / "run", options, aider, notes)
    return Report(
        about=f"The whole `buildctl map REPO --tokens {TOKENS}`, and the map alone of aider's RepoMap with an equal "
        "budget, by a process that has imported it, in a work tree of the same commit. Cold: nothing is known of the "
        "repository; all but the first are asked for by a second command, whose time is in it. Warm: the same again. "
        "One file changed: a new commit. New branch: one from fifty commits before. Memory is the most that the "
        "processes of another cold map had together, and of aider its process's most. The map of a commit was the "
        "same to the byte each time.",
        figures=tuple(figures),
        notes=tuple(notes),
    )


def _cold_map(daemon: Daemon, tree: Path, *, again: bool) -> tuple[float, str]:
    """Seconds of a map of which nothing is known, `again` after an earlier one; and the map."""
    for known in (daemon.directory / "cache" / "maps").glob("blobs.db*"):
        known.unlink()
    began = time.perf_counter()
    if again:
        daemon.ctl("call", "map.request", json.dumps({"repo": str(tree), "again": True}))
    text = daemon.ctl("map", str(tree), "--tokens", str(TOKENS))
    return time.perf_counter() - began, text


def _measure(source: Path, home: Path, options: Options, aider: str | None, notes: list[str]) -> list[Figure]:
    name = source.parent.name.rpartition("+")[2] if source.name == "repo" else source.name.removesuffix(".git")
    tree = home / name / "tree"
    git("clone", "-q", str(source), str(tree))
    files = len(_output(tree, "ls-files").splitlines())
    title = f"{name}, {files:,} files"
    cold: list[float] = []
    texts: set[str] = set()
    with Daemon(home / name / "daemon", settings={"maps.automatic": "false"}) as daemon:
        base = daemon.memory().rss
        for _ in range(options.choose(10, 2)):
            seconds, text = _cold_map(daemon, tree, again=bool(cold))
            cold.append(seconds)
            texts.add(text)
            time.sleep(_SETTLE_S)
            if len(cold) == 1:
                first = daemon.memory().rss
            show(f"  {title}: cold {seconds:.2f} s, daemon {daemon.memory().rss / 1e6:.1f} MB")
        grown = daemon.memory().rss
        with _Watch(daemon.pid) as watch:  # which takes time from what it watches
            texts.add(_cold_map(daemon, tree, again=True)[1])
        show(f"  {title}: processes of a cold map {watch.most / 1e6:.0f} MB")
        if len(texts) != 1:
            raise BenchError(f"{name}: {len(texts)} different maps of one commit")
        warm = [daemon.timed("map", str(tree), "--tokens", str(TOKENS)) for _ in range(options.choose(10, 2))]
        changed_file = _change(tree)
        changed = daemon.timed("map", str(tree), "--tokens", str(TOKENS))
        _branch(tree)
        branch = daemon.timed("map", f"{tree}@other", "--tokens", str(TOKENS))
        status = json.loads(daemon.ctl("map", "status", f"{tree}@other", "--json"))
    text = texts.pop()
    notes.append(
        f"{name}: {len(text):,} characters; the changed file is {changed_file}; on the new branch {status['parsed']} "
        f"of {status['files']} files were parsed; RSS of the daemon {base / 1e6:.1f} MB at first, {first / 1e6:.1f} MB "
        f"after one cold map, {grown / 1e6:.1f} MB after {len(cold)}."
    )
    figures = [
        Figure(name=f"{title}, cold", unit="s", ours=Sample(tuple(cold))),
        Figure(name=f"{title}, warm", unit="s", ours=Sample(tuple(warm))),
        Figure(name=f"{title}, one file changed", unit="s", ours=Sample((changed,))),
        Figure(name=f"{title}, new branch", unit="s", ours=Sample((branch,))),
        Figure(name=f"{title}, memory of a cold map", unit="MB", ours=Sample((watch.most / 1e6,))),
        Figure(
            name=f"{title}, daemon after {len(cold)} over after one",
            unit="x",
            ours=Sample((grown / first,)),
            most=MOST_GROWTH,
        ),
    ]
    if aider is None:
        return figures
    head = _output(tree, "rev-parse", "HEAD").strip()
    theirs_cold, theirs_warm = (_peer(aider, tree, f"{head}~1") for _ in range(2))  # what the daemon mapped first
    theirs_changed, theirs_branch = _peer(aider, tree, head), _peer(aider, tree, "other")
    show(f"  {title}: aider cold {theirs_cold.seconds:.1f} s, warm {theirs_warm.seconds:.1f} s")
    peers = [
        (sorted(cold)[len(cold) // 2], theirs_cold.seconds, COLD_TARGET),
        (sorted(warm)[len(warm) // 2], theirs_warm.seconds, WARM_TARGET),
        (changed, theirs_changed.seconds, None),
        (branch, theirs_branch.seconds, None),
        (watch.most / 1e6, theirs_cold.peak_bytes / 1e6, MEMORY_TARGET),
    ]
    against = [
        Figure(
            name=f"{figure.name}, aider",
            unit=figure.unit,
            ours=Sample((ours,)),
            peer=Sample((theirs,)),
            most_ratio=target,
        )
        for figure, (ours, theirs, target) in zip(figures, peers, strict=False)
    ]
    return [*figures, *against]


def _peer(python: str, tree: Path, revision: str) -> Peer:
    git("checkout", "-q", revision, cwd=tree)
    script = Path(__file__).parent / "peers" / "aider_map.py"
    ran = subprocess.run(
        [python, str(script), str(tree), str(TOKENS)], capture_output=True, text=True, timeout=_PEER_S, cwd=ROOT
    )
    if ran.returncode != 0:
        raise BenchError(f"aider's map of {tree} failed: {ran.stderr[-1000:]}")
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return Peer(**answer)


def _change(tree: Path) -> str:
    """Commit a change to the largest source file; its path."""
    names = [
        name for name in _output(tree, "ls-files").splitlines() if name.endswith((".java", ".py", ".go", ".rs", ".c"))
    ]
    name = max(names, key=lambda name: (tree / name).stat().st_size if (tree / name).is_file() else 0)
    with (tree / name).open("a") as file:
        file.write("\n// \n" if not name.endswith(".py") else "\n# \n")
    git("commit", "-q", "-a", "-m", "change", cwd=tree)
    return name


def _branch(tree: Path) -> None:
    """A branch from fifty commits before, or as many as there are."""
    count = min(50, len(_output(tree, "log", "--first-parent", "--format=%h", "-n", "51").splitlines()) - 1)
    git("branch", "other", f"HEAD~{count}", cwd=tree)


def _output(tree: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=True).stdout


def _generate(path: Path, files: int) -> Path:
    """A repository of so many Python files, each of which leans on others."""
    path.mkdir(parents=True)
    git("init", "-q", "-b", "main", str(path))
    for number in range(files):
        body = "".join(
            f"def work_{number}_{i}(value):\n    return work_{number * 7 % files}_{i}(value + {i})\n\n\n"
            for i in range(20)
        )
        (path / f"part{number % 40:02}").mkdir(exist_ok=True)
        (path / f"part{number % 40:02}" / f"module{number}.py").write_text(body)
    git("add", ".", cwd=path)
    for _ in range(2):
        git("commit", "-q", "--allow-empty", "-m", "work", cwd=path)
    return path
