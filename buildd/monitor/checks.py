"""What builds need on this machine, checked: the daemon's half of `buildctl doctor`."""

from __future__ import annotations

import grp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from buildd import cgroups, descriptors
from buildd.config import Config
from buildd.monitor.space import space_of
from buildd.protocol import CheckResult

_LOW_BYTES = 5 << 30
_LOW_INODES = 100_000
_FEW_FILES = 4096
"""Below, one client with many connections may have those that are kept back before anybody looks."""
_FILES_OF_A_BUILD = 16
"""More than a build ever has open at once, with what is kept back of the limit."""


def machine_checks(config: Config, *, sandbox: str, weaker: tuple[str, ...]) -> tuple[CheckResult, ...]:
    """All checks, in the order in which a person wants them. Blocks shortly."""
    return tuple(_checks(config, sandbox, weaker))


def _checks(config: Config, sandbox: str, weaker: tuple[str, ...]) -> Iterator[CheckResult]:
    yield _sandbox(sandbox, weaker)
    yield _cgroups()
    for name in ("state_dir", "cache_dir", "work_dir"):
        yield _disk(name, Path(getattr(config.daemon, name)))
    yield _open_files(config)
    yield _socket_rights(config)
    yield _git(config)
    yield _tools(config)


def _sandbox(sandbox: str, weaker: tuple[str, ...]) -> CheckResult:
    if not weaker:
        return CheckResult(name="sandbox", status="ok", message=f"builds run in {sandbox}")
    return CheckResult(
        name="sandbox",
        status="warning",
        message=f"builds run in {sandbox}: {'; '.join(weaker)}",
        hint="install bubblewrap (Debian: apt-get install bubblewrap) and allow unprivileged user namespaces",
    )


def _cgroups() -> CheckResult:
    directory, trouble = cgroups.find()
    if directory is None:
        return CheckResult(
            name="cgroups",
            status="warning",
            message=f"{trouble}: limits of memory, processes and processors are watched by sampling",
            hint="run under systemd with Delegate=yes, and boot with systemd.unified_cgroup_hierarchy=1",
        )
    missing = sorted(set(cgroups.CONTROLLERS) - cgroups.controllers(directory))
    if missing:
        return CheckResult(
            name="cgroups",
            status="warning",
            message=f"{directory} has no controller {', '.join(missing)}: these limits are watched by sampling",
            hint="use cgroup v2 for all controllers: boot with systemd.unified_cgroup_hierarchy=1",
        )
    return CheckResult(name="cgroups", status="ok", message=f"{directory}: the kernel keeps the limits of builds")


def _disk(name: str, directory: Path) -> CheckResult:
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        return CheckResult(
            name=name, status="error", message=f"{existing} is not writable", hint=f"set daemon.{name}, or its owner"
        )
    space = space_of(existing)
    text = f"{directory}: {space.free_bytes / (1 << 30):.1f} GiB free"
    if space.free_bytes < _LOW_BYTES or (space.total_inodes and space.free_inodes < _LOW_INODES):
        return CheckResult(
            name=name,
            status="warning",
            message=f"{text}, {space.free_inodes} inodes",
            hint="make room, or choose another disk",
        )
    return CheckResult(name=name, status="ok", message=text)


def _open_files(config: Config) -> CheckResult:
    limit = descriptors.attainable()
    wanted = max(_FEW_FILES, _FILES_OF_A_BUILD * config.workers.max_concurrent_builds)
    text = f"the daemon may open {limit} files"
    if limit >= wanted:
        return CheckResult(name="open files", status="ok", message=text)
    return CheckResult(
        name="open files",
        status="warning",
        message=f"{text}, and should be able to open {wanted}: builds will wait for each other's",
        hint="raise its hard limit: LimitNOFILE= of the unit, or ulimit -Hn",
    )


def _socket_rights(config: Config) -> CheckResult:
    try:
        members = grp.getgrnam(config.control.group).gr_mem
    except KeyError:
        return CheckResult(
            name="control group",
            status="warning",
            message=f"there is no group {config.control.group}: only root and the daemon's user may control it",
            hint=f"groupadd --system {config.control.group}, or set control.group",
        )
    return CheckResult(
        name="control group", status="ok", message=f"{config.control.group}: {', '.join(members) or 'no members'}"
    )


def _git(config: Config) -> CheckResult:
    program = shutil.which("git")
    if program is not None:
        return CheckResult(name="git transport", status="ok", message=f"{program}, and libgit2")
    if config.repos.transport == "git":
        return CheckResult(
            name="git transport",
            status="error",
            message="git is not installed, and repos.transport asks for it",
            hint="apt-get install git, or repos.transport = auto",
        )
    return CheckResult(name="git transport", status="ok", message="libgit2 (git is not installed)")


def _tools(config: Config) -> CheckResult:
    path = ":".join((*config.sandbox.path, os.defpath, "/usr/local/bin"))
    missing = [tool for tool in ("cc", "make") if shutil.which(tool, path=path) is None]
    if missing:
        return CheckResult(
            name="build tools",
            status="warning",
            message=f"not found: {', '.join(missing)}",
            hint="apt-get install build-essential",
        )
    return CheckResult(name="build tools", status="ok", message="cc and make")
