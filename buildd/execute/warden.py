"""Ends the builds of a daemon that was killed, where no pid namespace does it.

Run as `python3 warden.py INSTANCE` with a pipe as standard input that only the daemon holds open: when it
closes, every process with `BUILDD_DAEMON=INSTANCE` in its environment is killed, until none is left. Imports
nothing but the standard library, so that it starts in milliseconds and stays small.
"""

from __future__ import annotations

import os
import signal
import sys
import time

LIMIT_S = 10.0


def _victims(wanted: bytes) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    entries = file.read().split(b"\0")
            except OSError:
                continue
            if wanted in entries:
                found.append(int(name))
    return found


def main(instance: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        victims = _victims(f"BUILDD_DAEMON={instance}".encode())
        if not victims:
            return
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass  # it went by itself
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1])
