"""Faults of the machine under a real daemon: system calls that fail while a test says so.

`faults.c` is compiled and preloaded into the daemon's process, and into nothing that it starts: builds and workers
get an environment of their own. Which calls fail, and how, is said in a file that both have mapped.

    with faulty() as (daemon, faults):
        with faults.failing(errno.EIO, "write fsync", "*/buildd.db*"):
            ...
        assert faults.hits  # or the test has shown nothing
"""

from __future__ import annotations

import atexit
import mmap
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from harness.daemon import Daemon, unbooted
from harness.processes import until

_SOURCE = Path(__file__).with_name("faults.c")
_FAULT = struct.Struct("@iii500s512s")
_ACTIVE = struct.Struct("@i")
_HITS_AT = 8


class Faults:
    def __init__(self, control: Path) -> None:
        control.write_bytes(bytes(_FAULT.size))
        self.environ = {"LD_PRELOAD": str(_library()), "FAULTS": str(control)}
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FAULT.size)

    @property
    def hits(self) -> int:
        """Calls that have failed."""
        return int(_ACTIVE.unpack_from(self._map, _HITS_AT)[0])

    @contextmanager
    def failing(self, error: int, calls: str, pattern: str = "*") -> Iterator[None]:
        """As long as the block takes, these calls fail with `error` where they have to do with a matching path.

        `calls` are of: open write fsync truncate mkdir rename pipe fork thread. Leaving the block fails the test
        when none has failed.
        """
        before = self.hits
        _FAULT.pack_into(self._map, 0, 0, error, before, f" {calls} ".encode(), pattern.encode())
        _ACTIVE.pack_into(self._map, 0, 1)
        try:
            yield
            until(lambda: self.hits > before, f"{calls} of {pattern} fails")
        finally:
            _ACTIVE.pack_into(self._map, 0, 0)

    def close(self) -> None:
        self._map.close()


@cache
def _library() -> Path:
    """The compiled faults.c. Skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("faults of the machine take a C compiler: gcc is not installed")
    directory = Path(tempfile.mkdtemp(prefix="bd-faults-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)
    library = directory / "faults.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


@contextmanager
def faulty(
    *, backend: str | None = None, settings: Mapping[str, object] | None = None
) -> Iterator[tuple[Daemon, Faults]]:
    """A booted daemon whose system calls can be made to fail."""
    with unbooted(backend=backend, settings=settings) as daemon:
        faults = Faults(daemon.home / "faults")
        daemon.environ.update(faults.environ)
        try:
            yield daemon.boot(), faults
        finally:
            faults.close()
