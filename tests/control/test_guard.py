"""The guard of the control socket's memory."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from buildd.control.guard import shut_connections


def test_accepted_connections_are_shut_and_nothing_else_is_touched(tmp_path: Path) -> None:
    path, other = str(tmp_path / "control.sock"), str(tmp_path / "other.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as foreign:
        for server, name in ((listener, path), (foreign, other)):
            server.bind(name)
            server.listen()
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            one.connect(path)
            two.connect(other)
            with listener.accept()[0], foreign.accept()[0] as kept:
                before = len(os.listdir("/proc/self/fd"))
                assert shut_connections(Path(path)) == 1
                assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left open by it"
                one.settimeout(5)
                assert one.recv(1) == b""
                kept.send(b"x")
                two.settimeout(5)
                assert two.recv(1) == b"x"
            with socket.socket(socket.AF_UNIX) as again:
                again.connect(path)  # it still listens
