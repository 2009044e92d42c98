"""Where the daemon's socket is, and what to tell a user who cannot connect to it."""

from __future__ import annotations

import os
import socket
import stat
import time

from ctl.failure import NOT_PERMITTED, UNREACHABLE, USAGE, CtlError

SYSTEM_SOCKET = "/run/buildd/control.sock"
MAX_PATH_BYTES = 107
"""sun_path of sockaddr_un holds 108 bytes and ends with a NUL."""
ACCEPT_S = 5.0
"""How long a full backlog of the daemon is given to drain."""


def user_socket() -> str | None:
    """The socket of this user's own daemon, or None when its directory belongs to somebody else."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.isdir(base):
        import tempfile

        base = f"{tempfile.gettempdir()}/runtime-{os.getuid()}"
        # anyone may create that name in a shared directory, and answer there in the daemon's place
        try:
            if os.lstat(base).st_uid != os.getuid():
                return None
        except OSError:
            pass  # not there: named in the error all the same
    return f"{base}/buildd/control.sock"


def find(explicit: str | None) -> tuple[str, socket.socket]:
    """Path of the daemon's socket, and a connection to it.

    Raises CtlError that says what is wrong with each candidate.
    """
    named = explicit or os.environ.get("BUILDD_SOCKET")
    if named:
        path = os.path.abspath(os.path.expanduser(named.removeprefix("ipc://")))
        return path, connect(path)
    problems: list[tuple[str, CtlError]] = []
    for path in filter(None, (user_socket(), SYSTEM_SOCKET)):
        try:
            return path, connect(path)
        except CtlError as error:
            if error.code == NOT_PERMITTED:
                raise
            problems.append((path, error))
    for path, problem in problems:
        if os.path.lexists(path):
            raise problem  # a socket that refuses tells more than one that is not there
    tried = " or ".join(path for path, _ in problems)
    raise CtlError(f"daemon not reachable at {tried}: no such socket", hint=_START, code=UNREACHABLE)


_START = (
    "start it with `systemctl start buildd`, or `buildd` for one of your own; "
    "--socket PATH or BUILDD_SOCKET names another socket"
)


def connect(path: str) -> socket.socket:
    """A connection to the socket at `path`. Raises CtlError."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise CtlError(
            f"the socket path {path} has {len(os.fsencode(path))} bytes, more than the {MAX_PATH_BYTES} "
            "that the kernel takes",
            hint="set daemon.runtime_dir to a shorter path, or name the socket by a symbolic link",
            code=USAGE,
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(connection, path)
    except CtlError:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, path: str) -> None:
    connection.setblocking(False)
    deadline = time.monotonic() + ACCEPT_S
    while True:
        try:
            return connection.connect(path)
        except BlockingIOError:  # the backlog is full: the daemon is there, and busy
            if time.monotonic() >= deadline:
                why = f"it accepts no connection for {ACCEPT_S:.0f} s"
                raise _unreachable(path, why, "is it stopped or stuck?") from None
            time.sleep(0.02)
        except (FileNotFoundError, NotADirectoryError):
            raise _unreachable(path, "no such socket", _START) from None
        except ConnectionRefusedError:
            raise _unreachable(path, "nobody listens there", _START) from None
        except PermissionError:
            raise _not_permitted(path) from None
        except OSError as error:
            raise _unreachable(path, error.strerror or str(error), _START) from None


def _unreachable(path: str, why: str, hint: str) -> CtlError:
    return CtlError(f"daemon not reachable at {path}: {why}", hint=hint, code=UNREACHABLE)


def _not_permitted(path: str) -> CtlError:
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    obstacle, gid = _obstacle(path)
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    hint = (
        f"it is for members of the group {group}: `usermod -aG {group} {user}` as root, then log in again"
        if gid != 0
        else "its group is root: let the administrator set control.group and start the daemon again"
    )
    return CtlError(f"not permitted to connect to the daemon at {path} ({obstacle})", hint=hint, code=NOT_PERMITTED)


def _obstacle(path: str) -> tuple[str, int]:
    """What refuses, with its group: the socket, or the first directory on the way that cannot be passed."""
    where = path
    while True:
        try:
            found = os.stat(where)
        except PermissionError:
            where = os.path.dirname(where)
            continue
        except OSError:
            return f"{where} cannot be read", 0
        kind = "directory" if stat.S_ISDIR(found.st_mode) else "socket"
        return f"{kind} {where}, mode {stat.S_IMODE(found.st_mode):04o}", found.st_gid
