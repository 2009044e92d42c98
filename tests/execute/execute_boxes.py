"""Real sandboxes for tests, and sessions in them."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from buildd.cgroups import Cgroup
from buildd.execute.limits import PhaseBounds, SessionLimits
from buildd.execute.meter import Use
from buildd.execute.proctree import COOKIE, with_cookie
from buildd.execute.sandbox import Output, Sandbox
from buildd.execute.sandbox.bwrap import BwrapSandbox
from buildd.execute.sandbox.plain import PlainSandbox
from buildd.execute.session import Command, Observer, SessionEnd, run_session
from buildd.model import Resources
from buildd.process import Spawner, spawn

PREFIX = "/opt/buildd"


@contextmanager
def no_subreaper_afterwards() -> Iterator[None]:
    """The plain sandbox makes its process a subreaper; other tests are not to inherit that."""
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


class Box:
    """A sandbox with one build in it. What the phases said is in `events` and `log`."""

    def __init__(self, backend: str, root: Path) -> None:
        self.backend = backend
        self.state = root / "state"
        self.state.mkdir()
        self.sandbox: Sandbox
        if backend == "bwrap":
            program = shutil.which("bwrap")
            assert program is not None
            self.sandbox = BwrapSandbox(program, prefix=PREFIX, state_dir=self.state)
        else:
            self.sandbox = PlainSandbox(state_dir=self.state)
        self.build = str(uuid.uuid4())
        self.work = root / "work"
        for name in ("src", "build", "dest", "home", "tmp"):
            (self.work / name).mkdir(parents=True)
        self.log_path = root / "log"
        self.events: list[tuple[str, ...] | tuple[str, str, int]] = []
        self.used: list[Resources] = []

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def processes(self) -> list[int]:
        """Living processes of the build, wherever they have gone."""
        return with_cookie(lambda build: build == self.build)

    async def run(
        self,
        *phases: tuple[str, str],
        timeout: float = 60.0,
        silence: float = 0,
        log: int = 0,
        memory: int = 0,
        bounds: dict[str, PhaseBounds] | None = None,
        network: bool = False,
        prefix: Path | None = None,
        env: dict[str, str] | None = None,
        grace: Callable[[], float] = lambda: 0.0,
        spawner: Spawner = spawn,
        sandbox: Sandbox | None = None,
        pids: int = 0,
        disk: int = 0,
        files: int = 0,
        open_files: int = 0,
        cpu: float = 0,
        group: Cgroup | None = None,
    ) -> SessionEnd:
        handle = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.lseek(handle, 0, os.SEEK_END)
        use = Use()
        try:
            return await run_session(
                [Command(phase=phase, text=text) for phase, text in phases],
                build=self.build,
                sandbox=sandbox or self.sandbox,
                spawner=spawner,
                disk_turn=trio.CapacityLimiter(1),
                work=self.work,
                prefix=prefix,
                network=network,
                env={"PATH": os.defpath, COOKIE: self.build, **(env or {})},
                log_file=handle,
                limits=SessionLimits(
                    deadline=time.monotonic() + timeout,
                    timeout=timeout,
                    silence=silence,
                    log=log,
                    memory=memory,
                    pids=pids,
                    disk=disk,
                    files=files,
                    open_files=open_files,
                    cpu=cpu,
                    phases=bounds or {},
                ),
                group=group,
                nice=0,
                use=use,
                observer=Observer(
                    lambda phase: self.events.append(("begin", phase)),
                    lambda phase, status: self.events.append(("end", phase, status)),
                    lambda: None,
                ),
                grace=grace,
            )
        finally:
            self.used.append(use.most)
            os.close(handle)


def output(root: Path, name: str, files: dict[str, str], *, prefix: str = PREFIX, id: str = "") -> Output:
    """A dependency that staged `files` (paths below the prefix)."""
    tree = root / f"artifact-{name}"
    tree.mkdir()
    for path, text in files.items():
        target = tree / prefix.lstrip("/") / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return Output(name=name, output_id=id or f"id of {name}", tree=tree)


def files_below(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()
    }
