"""What systemd's journal is told, by its own protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildd import journald

ROOT = Path(__file__).resolve().parents[1]


class Listener:
    """Receives as journald does."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        for descriptor in descriptors:
            with open(descriptor, "rb") as file:
                assert data == b""
                file.seek(0)
                data = file.read()
        return parsed(data)


def parsed(data: bytes) -> dict[str, str]:
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length :]
            assert data[:1] == b"\n"
            data = data[1:]
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "journal")
    with listener.socket:
        yield listener


@pytest.fixture
def journal(listener: Listener) -> Iterator[journald.Journal]:
    journal = journald.Journal(listener.address)
    yield journal
    journal.close()


@pytest.mark.parametrize("text", ["plain", "two\nlines", "a=b", "", "läuft", "x" * 3_000_000], ids=len)
def test_fields_arrive_as_they_were(listener: Listener, journal: journald.Journal, text: str) -> None:
    entry = {"MESSAGE": text, "PRIORITY": "6", "BUILDD_RUN": "r1"}
    journal.send(entry)
    assert listener.entry() == entry


def test_what_is_no_text_is_replaced(listener: Listener, journal: journald.Journal) -> None:
    journal.send({"MESSAGE": os.fsdecode(b"na\xffme")})
    assert listener.entry() == {"MESSAGE": "na?me"}


def test_a_journal_that_takes_nothing_holds_nobody_up_and_hears_how_much_was_lost(
    listener: Listener, journal: journald.Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journald, "_PATIENCE_S", 0.01)
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(500):
        journal.send({"MESSAGE": str(number), "FILL": "x" * 10_000})
    received = []
    listener.socket.settimeout(0.1)
    with pytest.raises(TimeoutError):
        while True:
            received.append(listener.entry()["MESSAGE"])
    assert received == [str(number) for number in range(len(received))]

    journal.send({"MESSAGE": "after"})

    assert listener.entry()["MESSAGE"] == "after"
    told = listener.entry()
    assert told["MESSAGE"].startswith(f"{500 - len(received)} log entries were lost")
    assert told["PRIORITY"] == "4"


def test_a_journal_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    journal = journald.Journal(str(tmp_path / "gone"))
    journal.send({"MESSAGE": "lost"})
    journal.close()


_PROGRAM = """
import os, sys
from buildd import journald, logging
journald.ADDRESS = sys.argv[1]
stderr = os.fstat(2)
os.environ["JOURNAL_STREAM"] = sys.argv[2] or f"{stderr.st_dev}:{stderr.st_ino}"
logging.set_up("info")
import structlog
log = structlog.get_logger()
structlog.contextvars.bind_contextvars(run="r1", build="b1", package="vim")
log.debug("too fine")
log.warning("it is so", size=3, where="a place", ok=True)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("that failed")
logging.say_last("the end", "", "  a hint")
raise SystemError("a fault")
"""


def run_program(listener: Listener, stream: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, listener.address, stream],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    return done.stderr


def test_the_log_of_a_service_has_priorities_and_fields(listener: Listener) -> None:
    assert run_program(listener, "") == "<3>the end\n<3>  a hint\n"
    context = {"BUILDD_RUN": "r1", "BUILDD_BUILD": "b1", "BUILDD_PACKAGE": "vim"}
    assert listener.entry() == {
        "MESSAGE": 'it is so size=3 where="a place" ok=true run=r1 build=b1 package=vim',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "buildd",
        "BUILDD_EVENT": "it is so",
        **context,
        "BUILDD_SIZE": "3",
        "BUILDD_WHERE": "a place",
        "BUILDD_OK": "true",
    }
    failed = listener.entry()
    assert (failed["PRIORITY"], failed["BUILDD_EVENT"]) == ("3", "that failed")
    lines = failed["MESSAGE"].splitlines()
    assert lines[0] == "that failed run=r1 build=b1 package=vim"
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert failed.items() >= context.items()
    fault = listener.entry()
    assert fault["PRIORITY"] == "2"
    assert fault["MESSAGE"].endswith("SystemError: a fault")


def test_elsewhere_the_log_is_lines_of_json(listener: Listener) -> None:
    said = run_program(listener, "1:1")
    assert said.startswith("{")
    assert '"event": "it is so"' in said
    assert "\nthe end\n  a hint\n" in said
