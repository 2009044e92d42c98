"""What systemd gives us and wants to hear."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from buildd import systemd

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_assignments_arrive_as_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"buildd-test-{os.getpid()}-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{address}" if abstract else address)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{address}" if abstract else address)
        systemd.notify("READY=1", "STATUS=läuft")
        assert listener.recv(1000) == "READY=1\nSTATUS=läuft".encode()


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "x" * 300)
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("500000", "own", 0.5),
        ("30000000", "1", None),
        (None, None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_is_asked_for_by_its_variables(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert systemd.watchdog_interval() == seconds


_PROGRAM = """
import os, socket, sys
from buildd import systemd
kinds = sys.argv[1].split(",")
made = []
for kind in kinds:
    if kind == "unix":
        s = socket.socket(socket.AF_UNIX); s.bind(""); s.listen()
        made.append(os.dup(s.fileno()))
    elif kind == "inet":
        s = socket.socket(socket.AF_INET)
        made.append(os.dup(s.fileno()))
    elif kind == "datagram":
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.append(os.dup(s.fileno()))
    elif kind == "file":
        made.append(os.open("/dev/null", os.O_RDONLY))
    else:
        made.append(-1)
high = [os.dup2(fd, 100 + n) if fd >= 0 else -1 for n, fd in enumerate(made)]
for n, fd in enumerate(high):
    if fd >= 0:
        os.dup2(fd, 3 + n)
    else:
        try: os.close(3 + n)
        except OSError: pass
environ = {"LISTEN_PID": sys.argv[2] or str(os.getpid()), "LISTEN_FDS": sys.argv[3], "LISTEN_FDNAMES": "x", "A": "b"}
before = len(os.listdir("/proc/self/fd"))
found = systemd.adopted_socket(environ)
assert environ == {"A": "b"}, environ
assert len(os.listdir("/proc/self/fd")) == before, "descriptors leak"
assert found is None or not os.get_inheritable(found)
print(found)
"""


@pytest.mark.parametrize(
    ("kinds", "pid", "count", "found"),
    [
        ("unix", "", "1", "3"),
        ("inet,unix", "", "2", "4"),
        ("datagram,file,unix", "", "3", "5"),
        ("inet", "", "1", "None"),
        ("unix", "1", "1", "None"),
        ("unix", "", "0", "None"),
        ("unix", "", "", "None"),
        ("unix", "", "many", "None"),
        ("unix", "", "²", "None"),
        ("closed,unix", "", "2", "4"),
    ],
)
def test_the_listening_unix_socket_is_found_among_what_systemd_passed(
    kinds: str, pid: str, count: str, found: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, kinds, pid, count],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == found


def test_a_process_that_systemd_did_not_start_adopts_nothing() -> None:
    assert systemd.adopted_socket({}) is None
