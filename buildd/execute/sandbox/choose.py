"""Which sandbox this machine has: the configured one, or the strongest that works."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

import structlog
import trio

from buildd.config import Config
from buildd.errors import BuilddError
from buildd.execute.sandbox import WORK_DIRECTORIES, Sandbox
from buildd.execute.sandbox.bwrap import BwrapSandbox
from buildd.execute.sandbox.plain import PlainSandbox
from buildd.process import spawn
from buildd.store.tree import remove_tree

log = structlog.get_logger()

_PROBE_LIMIT_S = 10.0


class NoSandbox(BuilddError):
    """The configured sandbox does not work here."""


async def choose(config: Config) -> Sandbox:
    """The sandbox to use. Raises NoSandbox when the configured one does not work."""
    state_dir = Path(config.daemon.state_dir)
    if config.sandbox.backend == "plain":
        return PlainSandbox(state_dir=state_dir)
    program = shutil.which("bwrap")
    if program is None:
        trouble: str | None = "bwrap is not installed"
    else:
        sandbox = BwrapSandbox(
            program,
            prefix=config.sandbox.prefix,
            state_dir=state_dir,
            readonly_paths=config.sandbox.readonly_paths,
        )
        trouble = await probe(sandbox, Path(config.daemon.work_dir))
        if trouble is None:
            return sandbox
    hint = "install bubblewrap and allow unprivileged user namespaces; `buildctl doctor` says more"
    if config.sandbox.backend == "bwrap":
        raise NoSandbox(f"the sandbox bwrap does not work: {trouble}", hint=hint)
    log.warning("builds run without a sandbox", why=trouble, hint=hint)
    return PlainSandbox(state_dir=state_dir)


async def probe(sandbox: BwrapSandbox, work_dir: Path) -> str | None:
    """Run `true` inside, in a work directory like a build's; None when that works, else what was complained of."""
    work = work_dir / str(uuid.uuid4())  # a name that the next start removes, should this process be killed now
    try:
        for name in WORK_DIRECTORIES:
            (work / name).mkdir(parents=True)
        with tempfile.TemporaryFile() as output:
            argv = sandbox.argv(["/bin/sh", "-c", "true"], work=work, prefix=None, network=False)
            try:
                process = await spawn(argv, env={"PATH": os.defpath}, stdout=output, stderr=output)
            except OSError as error:
                return f"cannot start {argv[0]}: {error.strerror}"
            with process, trio.move_on_after(_PROBE_LIMIT_S):
                status = (await process.wait()).status
                output.seek(0)
                said = output.read(2000).decode(errors="replace").strip()
                return None if status == 0 else said or f"it ends with status {status}"
            return f"it did not end within {_PROBE_LIMIT_S:g} s"
    finally:
        remove_tree(work)
