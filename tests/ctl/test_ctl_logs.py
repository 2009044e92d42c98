"""`logs`: which build is meant, and that its bytes come as they are."""

from __future__ import annotations

import pytest
from ctl_peer import Background, Ctl, Peer, package

BUILD = "3f2a91c0-0000-4000-8000-000000000000"
OTHER = "4f2a91c0-0000-4000-8000-000000000000"
LINES = b"".join(b"\x1b[31mline %d\x1b[0m\n" % number for number in range(50_000))


def test_a_log_of_many_pieces_is_printed_as_it_is(peer: Peer, ctl: Ctl) -> None:
    run = peer.add_run(1)
    peer.add_build(BUILD, run, "a", log=LINES)
    done = ctl("logs", "3f2a")
    assert done.returncode == 0
    assert done.stdout.encode() == LINES
    assert len(peer.calls("build.log")) > 2


@pytest.mark.parametrize(("offset", "start"), [("0", 0), ("700", 700), ("-700", len(LINES) - 700)])
def test_a_log_is_printed_from_any_byte(peer: Peer, ctl: Ctl, offset: str, start: int) -> None:
    peer.add_build(BUILD, peer.add_run(1), "a", log=LINES)
    assert ctl("logs", BUILD, "--offset", offset).stdout.encode() == LINES[start:]


@pytest.mark.parametrize("count", [0, 1, 3, 20_000, 60_000])
def test_the_tail_is_so_many_lines(peer: Peer, ctl: Ctl, count: int) -> None:
    peer.add_build(BUILD, peer.add_run(1), "a", log=LINES)
    expected = LINES.splitlines(keepends=True)[-count:] if count else []
    assert ctl("logs", BUILD, "--tail", str(count)).stdout.encode() == b"".join(expected)


def test_a_line_longer_than_the_first_look_is_still_one_line(peer: Peer, ctl: Ctl) -> None:
    log = b"first\n" + b"x" * 300_000 + b"\nlast\n"
    peer.add_build(BUILD, peer.add_run(1), "a", log=log)
    assert ctl("logs", BUILD, "--tail", "2").stdout.encode() == log[6:]


def test_following_prints_until_the_build_ends(peer: Peer, background: Background) -> None:
    peer.add_build(BUILD, peer.add_run(1), "a", log=b"one\n", state="running")
    client = background("logs", BUILD, "-f", "--tail", "5")
    assert client.stdout is not None
    assert client.stdout.readline() == "one\n"
    peer.wait_for_call("build.log", 3)
    peer.logs[BUILD] = (b"one\ntwo\n", False)
    assert client.stdout.readline() == "two\n"
    peer.logs[BUILD] = (b"one\ntwo\nthree\n", True)
    assert client.communicate(timeout=10)[0] == "three\n"
    assert client.returncode == 0


def test_without_following_a_running_log_is_printed_as_far_as_it_is(peer: Peer, ctl: Ctl) -> None:
    peer.add_build(BUILD, peer.add_run(1), "a", log=b"one\n", state="running")
    assert ctl("logs", BUILD).stdout == "one\n"


def test_following_survives_a_restart_of_the_daemon(peer: Peer, background: Background) -> None:
    peer.add_build(BUILD, peer.add_run(1), "a", log=b"one\n", state="running")
    client = background("logs", BUILD, "-f")
    assert client.stdout is not None
    assert client.stdout.readline() == "one\n"
    peer.wait_for_call("build.log", 2)
    peer.stop()
    peer.logs[BUILD] = (b"one\ntwo\n", True)
    peer.start()
    data, words = client.communicate(timeout=10)
    assert data == "two\n"
    assert "waiting for it to come back" in words
    assert client.returncode == 0


def test_a_package_of_a_run_names_its_build(peer: Peer, ctl: Ctl) -> None:
    run = peer.add_run(
        1,
        packages=(
            package("a", "success", build_id=BUILD),
            package("b", "failed", build_id=OTHER),
            package("c", "skipped", message="CRC match"),
            package("d", "queued"),
        ),
    )
    peer.add_build(BUILD, run, "a", log=b"of a\n")
    peer.add_build(OTHER, run, "b", log=b"of b\n")
    assert ctl("logs", "1", "a").stdout == "of a\n"
    assert ctl("logs", "latest", "b").stdout == "of b\n"
    skipped = ctl("logs", "1", "c")
    assert (skipped.returncode, skipped.stderr) == (
        3,
        "buildctl: c was not built in run 1, it is skipped: CRC match\n",
    )
    queued = ctl("logs", "1", "d")
    assert queued.returncode == 3
    assert "-f waits for it" in queued.stderr
    assert "run 1 has no package e" in ctl("logs", "1", "e").stderr
    assert "build 3f2a is of a, not of b" in ctl("logs", "3f2a", "b").stderr


def test_a_run_alone_means_its_only_failure(peer: Peer, ctl: Ctl) -> None:
    run = peer.add_run(1, packages=(package("a", "success", build_id=BUILD), package("b", "failed", build_id=OTHER)))
    peer.add_build(OTHER, run, "b", log=b"of b\n")
    done = ctl("logs", "1")
    assert (done.stdout, done.stderr) == ("of b\n", "log of b 1.0\n")


def test_a_run_with_several_logs_asks_which(peer: Peer, ctl: Ctl) -> None:
    peer.add_run(1, packages=(package("a", "success", build_id=BUILD), package("b", "success", build_id=OTHER)))
    done = ctl("logs", "1")
    assert done.returncode == 2
    assert "with one of a b" in done.stderr
    peer.add_run(2)
    assert "has no log yet" in ctl("logs", "2").stderr


def test_following_a_queued_package_waits_for_its_start(peer: Peer, background: Background) -> None:
    run = peer.add_run(1, packages=(package("a", "queued"),))
    client = background("logs", "1", "a", "-f")
    peer.wait_for_call("events.poll", 2)
    peer.add_build(BUILD, run, "a", log=b"of a\n")
    peer.set_run(run, packages=(package("a", "running", build_id=BUILD),))
    peer.emit("package_started", run=run, package="a")
    assert client.communicate(timeout=10)[0] == "of a\n"
    assert client.returncode == 0
