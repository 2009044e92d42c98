"""How the daemon's earlier life on a state directory ended: by itself, killed, or together with the machine.

Only the lock on the state directory tells that an earlier daemon is gone; this tells why, for the records of what it
left unfinished.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

End = Literal["stopped", "killed", "machine down"]

_FILE = "life.json"


class _Life(Struct, frozen=True, kw_only=True):
    boot_id: str
    pid: int
    began_at: float
    """Seconds since the epoch."""


def boot_id() -> str:
    """The kernel's name for the time since it was started (random(4)); empty where /proc does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def begin(state_dir: Path) -> End:
    """Note that a life begins, and tell how the one before ended. Raises OSError when it cannot be noted."""
    path, now = state_dir / _FILE, boot_id()
    end: End = "stopped"
    with suppress(FileNotFoundError):
        try:
            before = msgspec.json.decode(path.read_bytes(), type=_Life)
            end = "killed" if before.boot_id == now else "machine down"
        except msgspec.MsgspecError:
            end = "machine down"  # it was being written: only that leaves half of such a file
    life = _Life(boot_id=now, pid=os.getpid(), began_at=time.time())
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(life))
    temporary.replace(path)
    return end


def end(state_dir: Path) -> None:
    """Note that this life ended by itself."""
    with suppress(OSError):
        (state_dir / _FILE).unlink(missing_ok=True)
