"""Exit codes, and what people read when something is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ctl_peer import Background, Ctl, Peer, command

from buildd.errors import Busy, InvalidInput, NotFound, NotPermitted, Refused
from ctl import endpoint
from ctl.client import Client
from ctl.failure import Gone, exit_code


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 5),
        (6, 4),
        (-32700, 1),
        (-32600, 1),
        (-32601, 2),
        (-32602, 2),
        (-32603, 1),
        (0, 1),
        (69, 1),
    ],
)
def test_error_codes_of_the_protocol_become_exit_codes(error: int, status: int) -> None:
    assert exit_code(error) == status


@pytest.mark.parametrize("kind", [InvalidInput, NotFound, Refused, NotPermitted, Busy])
def test_an_error_of_the_daemon_is_printed_with_its_hint(peer: Peer, ctl: Ctl, kind: type) -> None:
    peer.failures["run.list"] = kind("it is \x1b[2J so", hint="do that")
    done = ctl("list")
    assert done.returncode == {6: 4}.get(kind.code, kind.code)
    assert done.stdout == ""
    assert done.stderr == "buildctl: it is \\x1b[2J so\n  do that\n"


def test_no_socket_says_where_it_looked_and_how_to_start_the_daemon(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("status", env={"BUILDD_SOCKET": ""})
    if Path("/run/buildd/control.sock").exists():
        pytest.skip("a daemon of this machine answers")
    assert done.returncode == 69
    assert f"daemon not reachable at {tmp_path}/buildd/control.sock or /run/buildd/control.sock" in done.stderr
    assert "systemctl start buildd" in done.stderr


def test_a_socket_where_nobody_listens_is_unreachable(ctl: Ctl, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    done = ctl("status")
    assert done.returncode == 69
    assert f"daemon not reachable at {tmp_path}/s: nobody listens there" in done.stderr


def test_a_path_that_no_socket_can_have_is_named(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("--socket", "x" * 120, "status")
    assert done.returncode == 2
    assert f"has {len(str(tmp_path)) + 121} bytes, more than the 107" in done.stderr


AS_NOBODY = """
import grp, os, pwd, sys
from ctl.__main__ import run
if os.getuid() == 0:
    run(["status"])  # root may, and imports what nobody may not be able to read
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(run(["status"]))
"""


def test_a_socket_that_may_not_be_used_names_the_group_to_join(
    peer: Peer, environment: dict[str, str], tmp_path: Path
) -> None:
    os.chmod(tmp_path / "s", 0)
    if os.getuid() == 0:
        for directory in [tmp_path, *tmp_path.parents][:-2]:
            directory.chmod(directory.stat().st_mode | 0o011)
        os.chown(tmp_path / "s", 0, 4242)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    words = done.stderr.splitlines()
    assert words[0] == (
        f"buildctl: not permitted to connect to the daemon at {tmp_path}/s (socket {tmp_path}/s, mode 0000)"
    )
    assert "usermod -aG " in words[1]
    if os.getuid() == 0:
        assert "members of the group 4242" in words[1]


def test_the_socket_is_found_by_option_variable_and_user_directory(
    peer: Peer, ctl: Ctl, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "buildd").mkdir()
    (tmp_path / "buildd" / "control.sock").symlink_to(tmp_path / "s")
    nowhere = str(tmp_path / "nowhere")
    assert ctl("status", env={"BUILDD_SOCKET": ""}).returncode == 0
    assert ctl("status", env={"BUILDD_SOCKET": nowhere}).returncode == 69
    assert ctl("status", "--socket", f"{tmp_path}/s", env={"BUILDD_SOCKET": nowhere}).returncode == 0
    assert ctl("--socket=s", "status", env={"BUILDD_SOCKET": nowhere}).returncode == 0
    assert ctl("repo", "list", "--socket", "ipc://s", env={"BUILDD_SOCKET": nowhere}).returncode == 0
    assert ctl("--socket", "s", "repo", "list", env={"BUILDD_SOCKET": nowhere}).returncode == 0


def test_a_daemon_that_does_not_answer_is_given_up_after_the_timeout(peer: Peer, ctl: Ctl) -> None:
    peer.silent.add("daemon.status")
    done = ctl("status", "--timeout", "200ms")
    assert done.returncode == 69
    assert "did not answer daemon.status within 0.2 s" in done.stderr


def test_a_daemon_that_goes_away_before_it_answers_is_noticed_at_once(peer: Peer, background: Background) -> None:
    peer.silent.add("daemon.status")
    client = background("status")
    peer.wait_for_call("daemon.status")
    peer.stop()
    _, words = client.communicate(timeout=5)
    assert client.returncode == 69
    assert "went away before it answered" in words


def test_a_daemon_that_is_only_being_started_is_waited_for_as_long_as_asked(ctl: Ctl, listener: socket.socket) -> None:
    started = time.monotonic()
    done = ctl("status", "--timeout", "300ms")  # nobody takes the connection, as while systemd holds the socket
    assert done.returncode == 69
    assert "did not answer daemon.status within 0.3 s" in done.stderr
    assert time.monotonic() - started < 8


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that takes one connection at a time."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        listener.settimeout(10)
        yield listener


def test_a_daemon_that_dies_when_it_was_connected_to_is_noticed_at_once(
    tmp_path: Path, listener: socket.socket
) -> None:
    path = str(tmp_path / "s")
    connection = endpoint.connect(path)
    listener.accept()[0].close()
    begin = time.monotonic()
    with Client(path, connection) as client, pytest.raises(Gone):
        client.call("daemon.status", None, object)
    assert time.monotonic() - begin < 5


def test_what_answers_in_another_language_is_gone(tmp_path: Path, listener: socket.socket) -> None:
    path = str(tmp_path / "s")
    with Client(path, endpoint.connect(path)) as client:
        with listener.accept()[0] as other:
            other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(100))
            with pytest.raises(Gone):
                client.call("daemon.status", None, object)


def test_a_daemon_with_too_many_callers_at_once_is_waited_for(tmp_path: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / "s"))  # now its backlog is full
        later = threading.Timer(0.3, lambda: listener.accept()[0].close())
        later.start()
        endpoint.connect(str(tmp_path / "s")).close()
        later.join()


@pytest.mark.parametrize("answer", [b"{", b"[]", b'{"id": 1', b"\xff", b'{"result": {}, "id": "x"'])
def test_an_answer_that_is_no_answer_is_an_error_in_words(peer: Peer, ctl: Ctl, answer: bytes) -> None:
    peer.raw_answers["run.list"] = answer
    done = ctl("list")
    assert done.returncode == 1
    assert "is not understood" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_answer_of_another_version_names_the_method(peer: Peer, ctl: Ctl) -> None:
    peer.raw_answers["run.list"] = b'{"jsonrpc":"2.0","id":1,"result":{"runs":7}}'
    done = ctl("list")
    assert done.returncode == 1
    assert "answer to run.list is not understood" in done.stderr
    assert "buildctl version" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(peer: Peer, background: Background) -> None:
    for number in range(1, 2000):
        peer.add_run(number)
    client = background("list", "--limit", "2000")
    assert client.stdout is not None
    assert client.stderr is not None
    client.stdout.readline()
    client.stdout.close()
    assert client.stderr.read() == ""
    client.stderr.close()
    assert client.wait(10) == 0


def test_a_full_disk_under_the_output_is_an_error_in_words(peer: Peer, environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("status"), env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "buildctl: No space left on device\n"


def test_arguments_that_are_not_utf_8_are_wrong_usage(peer: Peer, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*command("start"), b"thing\xff"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "not valid UTF-8" in done.stderr


def test_a_request_larger_than_the_daemon_takes_is_not_sent(peer: Peer, ctl: Ctl) -> None:
    done = ctl("call", "run.start", "-", input='{"targets": ["' + "x" * (1 << 20) + '"]}')
    assert done.returncode == 2
    assert "more than the 1048576 that the daemon takes" in done.stderr
    assert peer.requests == []


def test_wrong_verbs_and_options_are_wrong_usage(ctl: Ctl) -> None:
    done = ctl("statsu")
    assert done.returncode == 2
    assert "did you mean `status`?" in done.stderr
    assert ctl("status", "--jsn").returncode == 2
    assert ctl("wait", "1", "--timeout", "soon").returncode == 2
    assert ctl("repo").returncode == 2
    nothing = ctl()
    assert nothing.returncode == 2
    assert "usage: buildctl" in nothing.stderr


def test_status_imports_neither_the_protocol_nor_what_is_heavy(peer: Peer, environment: dict[str, str]) -> None:
    program = (
        "import sys; from ctl.__main__ import run; run(['status']); "
        "heavy = ('buildd', 'rich', 'trio', 'pygit2', 'platformdirs', 'tempfile', 'zstandard'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
