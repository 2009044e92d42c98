"""Entries in systemd's journal, with a priority and fields: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/

Invariant: a journal that takes nothing does not hold up the daemon. An entry waits for it a second at most, and those
after a lost one not at all; how many were lost is said in the journal when it takes entries again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from array import array
from collections.abc import Mapping

ADDRESS = "/run/systemd/journal/socket"
DEBUG, INFO, WARNING, ERROR, CRITICAL = 7, 6, 4, 3, 2
"""Priorities, as syslog(3) numbers them."""
_PATIENCE_S = 1.0
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)


def is_stderr(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether our standard error leads to the journal, and that can be reached from here by its own protocol."""
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}" and os.path.exists(ADDRESS)


class Journal:
    """A connection to the journal."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._lost = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, fields: Mapping[str, str]) -> None:
        """Make an entry. Names are capital letters, digits and underscores, and begin with a letter."""
        entry = b"".join(_encoded(name, value) for name, value in fields.items())
        if not (self._sent(entry, 0.0) or (not self._lost and self._sent(entry, _PATIENCE_S))):
            self._lost += 1
        elif self._lost:
            lost, self._lost = self._lost, 0
            message = f"{lost} log entries were lost: the journal did not take them"
            self.send({"MESSAGE": message, "PRIORITY": str(WARNING)})

    def _sent(self, entry: bytes, patience: float) -> bool:
        self._socket.settimeout(patience)
        try:
            self._deliver(entry)
        except OSError:
            return False
        return True

    def _deliver(self, entry: bytes) -> None:
        try:
            self._socket.sendto(entry, self._address)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._deliver_large(entry)

    def _deliver_large(self, entry: bytes) -> None:
        """What is too large for a datagram goes in a file in memory that is sealed."""
        handle = os.memfd_create("log entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(handle, "wb") as file:
            file.write(entry)
            file.flush()
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file.fileno()]).tobytes())
            self._socket.sendmsg([b""], [rights], 0, self._address)


def _encoded(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
