"""The Unix socket that clients connect to: made here, not by libzmq, so that it has its rights before anybody can
connect, and stays open while nobody is accepted: clients then wait in the kernel's queue and are not turned away.
"""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path

import structlog

from buildd.errors import InvalidInput

log = structlog.get_logger()

_BACKLOG = 512
_PATH_LIMIT = 107  # of sockaddr_un, less the final NUL


def listen(path: Path, mode: int, group: str | None) -> int:
    """A descriptor that listens at `path`, with this mode, and this group where there is one and we may.

    Raises InvalidInput when the path is too long, or in use by a living daemon.
    """
    _make_way(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(path))
        _hand_over(path, mode, group)
        listener.listen(_BACKLOG)
        return listener.detach()


def _make_way(path: Path) -> None:
    """Prepare the place of the socket; remove what a killed daemon left. Raises InvalidInput."""
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise InvalidInput(
            f"the socket path {path} is longer than {_PATH_LIMIT} bytes",
            hint="set daemon.runtime_dir to a shorter directory",
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise InvalidInput(f"another daemon answers at {path}", hint="stop it, or set daemon.runtime_dir")


def _hand_over(path: Path, mode: int, group: str | None) -> None:
    """Give the socket its mode, and its group where there is one and we may."""
    os.chmod(path, mode)
    if group is None:
        return
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        log.info("the control group does not exist; root and the daemon's user control it", group=group)
    except PermissionError:
        log.info("the control socket keeps the daemon's own group", group=group)
