"""From the pipe that a session writes to, into the log file, without passing through Python's memory.

The session gets a pipe and not the file: who has the file's descriptor can open it anew, and truncate it
(`echo x >/dev/stderr` does). splice(2) moves the bytes inside the kernel.

Invariant: the log has every byte that was written before the session's last process ended, unless its limit
was reached or the disk was full, which `trouble` then says.
"""

from __future__ import annotations

import errno
import fcntl
import os

import trio

from buildd.errors import FailureReason

_PIPE_BYTES = 1 << 20
_PIECE = 1 << 20
LAST_BYTES = 4 << 20
"""More than a pipe holds: what there can be at the end."""
_GATHER_S = 0.02  # the pipe holds a megabyte: chatty builds wake us fifty times a second, not once a line


class OutputPump:
    """Use: make it, give `writer` to the child and close it here, run `run` beside, then `drain`."""

    def __init__(self, log_file: int, limit: int) -> None:
        """`log_file` is positioned at its end; `limit` is for its size in bytes, 0 for none. Raises OSError."""
        self._log_file = log_file
        self._limit = limit
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        try:
            fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # /proc/sys/fs/pipe-user-pages-soft is used up: the default size does too
        self.trouble: tuple[FailureReason, str] | None = None
        self.size = os.fstat(log_file).st_size

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.close_writer()
        os.close(self.reader)

    async def run(self) -> None:
        """Move what comes until the last writer has closed, or there is trouble."""
        while True:
            await trio.lowlevel.wait_readable(self.reader)
            if not self.drain(_PIECE):
                return
            await trio.sleep(_GATHER_S)

    def drain(self, budget: int) -> bool:
        """Move what is there now, at most about `budget` bytes; False when nothing will come any more."""
        stop_at = self.size + budget
        while self.trouble is None and self.size < stop_at:
            try:
                moved = self._move()
            except BlockingIOError:
                return True
            except OSError as error:
                reason: FailureReason = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "sandbox_failed"
                self.trouble = (reason, f"the log cannot be written: {error.strerror}")
                return False
            if moved == 0:
                return False
            self.size += moved
            if self._limit and self.size >= self._limit:
                self.trouble = ("log_limit", f"the log reached {self._limit} bytes (limits.log)")
        return self.trouble is None

    def _move(self) -> int:
        piece = min(_PIECE, max(1, self._limit - self.size)) if self._limit else _PIECE
        try:
            return os.splice(self.reader, self._log_file, piece, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        data = os.read(self.reader, min(piece, 65536))  # a file system that cannot be spliced to
        written = 0
        while written < len(data):
            written += os.write(self._log_file, data[written:])
        return written
