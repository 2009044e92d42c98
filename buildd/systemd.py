"""What systemd gives us and wants to hear: sd_notify(3), the watchdog, and sockets it opened.

Without systemd every function does nothing, or says that there is nothing.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping

_FIRST_FD = 3


def notify(*assignments: str) -> None:
    """Send `READY=1`, `STATUS=…` and the like. Failure to send is systemd's problem, not ours."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(assignments).encode(), address)
    except OSError:
        return


def watchdog_interval() -> float | None:
    """Seconds within which systemd wants to hear `WATCHDOG=1`; None when it does not watch this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return None


def adopted_socket(environ: MutableMapping[str, str] = os.environ) -> int | None:
    """The listening Unix socket that systemd opened for us, as sd_listen_fds(3) describes; None without one.

    The variables are removed, so that no child takes the socket for its own.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return None
    for descriptor in range(_FIRST_FD, _FIRST_FD + int(count)):
        try:
            os.set_inheritable(descriptor, False)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as candidate:
                if candidate.family == socket.AF_UNIX and candidate.type == socket.SOCK_STREAM:
                    return descriptor
        except OSError:
            continue
    return None
