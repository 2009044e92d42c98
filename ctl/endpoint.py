"""Where the daemon's socket is, and whether this user can connect to it.

A plain connect comes before any message: ZeroMQ would retry in silence where the kernel can say at once that
nobody listens (ECONNREFUSED) or that we may not (EACCES).
"""

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


def find(explicit: str | None) -> str:
    """Path of a socket that accepts connections. Raises CtlError that says what is wrong with each candidate."""
    named = explicit or os.environ.get("BUILDD_SOCKET")
    if named:
        path = os.path.abspath(os.path.expanduser(named.removeprefix("ipc://")))
        problem = check(path)
        if problem is not None:
            raise problem
        return path
    problems = []
    for path in filter(None, (user_socket(), SYSTEM_SOCKET)):
        problem = check(path)
        if problem is None:
            return path
        if problem.code == NOT_PERMITTED:
            raise problem
        problems.append((path, problem))
    for path, problem in problems:
        if os.path.lexists(path):
            raise problem  # a socket that refuses tells more than one that is not there
    tried = " or ".join(path for path, _ in problems)
    raise CtlError(f"daemon not reachable at {tried}: no such socket", hint=_START, code=UNREACHABLE)


_START = (
    "start it with `systemctl start buildd`, or `buildd` for one of your own; "
    "--socket PATH or BUILDD_SOCKET names another socket"
)


def check(path: str) -> CtlError | None:
    """What keeps us from connecting to `path`, or None."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        return CtlError(
            f"the socket path {path} has {len(os.fsencode(path))} bytes, more than the {MAX_PATH_BYTES} "
            "that the kernel takes",
            hint="set daemon.runtime_dir to a shorter path, or name the socket by a symbolic link",
            code=USAGE,
        )
    deadline = time.monotonic() + ACCEPT_S
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except BlockingIOError:  # the backlog is full: the daemon is there, and busy
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                return _unreachable(path, f"it accepts no connection for {ACCEPT_S:.0f} s", "is it stopped or stuck?")
            except (FileNotFoundError, NotADirectoryError):
                return _unreachable(path, "no such socket", _START)
            except ConnectionRefusedError:
                return _unreachable(path, "nobody listens there", _START)
            except PermissionError:
                return _not_permitted(path)
            except OSError as error:
                return _unreachable(path, error.strerror or str(error), _START)
            return None


def listens(path: str) -> bool:
    """Whether somebody takes connections at `path`, if not in this moment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # the backlog is full
            return True
        except OSError:
            return False
        return True


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
