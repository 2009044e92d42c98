"""`events`: every number once, in order, whatever happens to the reader."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from ctl_peer import Background, Ctl, Peer

from buildd import protocol as p


def test_all_events_are_printed_page_after_page(peer: Peer, ctl: Ctl) -> None:
    for number in range(2500):
        peer.emit("tick", data={"n": number})
    lines = ctl("events", "--after", "0", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1, 2501))
    assert ctl("events", "--json").stdout.splitlines() == lines
    assert ctl("events", "--after", "2498", "--json").stdout.splitlines() == lines[2498:]
    assert ctl("events", "--after", "2500").stdout == ""


def test_events_read_well_and_harmlessly(peer: Peer, ctl: Ctl) -> None:
    run = peer.add_run(3)
    peer.emit("package_failed", run=run, package="a\x1b", data={"reason": "oom", "n": 3, "nothing": None})
    line = ctl("events").stdout.strip()
    assert line.startswith("1  ")
    assert line.endswith("package_failed      run=00000003  a\\x1b  reason=oom  n=3")


def test_filters_go_to_the_daemon(peer: Peer, ctl: Ctl) -> None:
    run = peer.add_run(3)
    peer.emit("a")
    peer.emit("b", run=run)
    peer.emit("c", run=run)
    peer.emit("b")
    found = ctl("events", "--run", "3", "--kind", "b", "--kind", "x", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in found] == [2]
    assert peer.calls("events.poll")[-1] == p.PollParams(after=0, run=run, kinds=("b", "x"))


def test_following_starts_with_what_comes_and_flushes_each_line(peer: Peer, background: Background) -> None:
    peer.emit("old")
    client = background("events", "--follow", "--json")
    assert client.stdout is not None
    peer.wait_for_call("events.poll")
    for number in (2, 3):
        peer.emit("new")
        assert json.loads(client.stdout.readline())["number"] == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_following_cleanly(peer: Peer, background: Background, number: signal.Signals) -> None:
    client = background("events", "--follow", "--after", "0", "--json")
    peer.emit("one")
    assert client.stdout is not None
    assert client.stdout.readline().endswith("}\n")
    peer.wait_for_call("events.poll", 2)
    client.send_signal(number)
    assert client.communicate(timeout=10) == ("", "")
    assert client.returncode == 130


def test_a_reader_killed_and_resumed_sees_every_number_once(peer: Peer, background: Background) -> None:
    total = 3000
    for number in range(total):
        peer.emit("tick", data={"n": number, "filling": "x" * 50})
    seen: list[int] = []
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None):
        after = str(seen[-1] if seen else 0)
        client = background("events", "--after", after, "--json", stderr=subprocess.DEVNULL)
        assert client.stdout is not None
        if how is not None:
            for _ in range(500):
                seen.append(json.loads(client.stdout.readline())["number"])
            client.send_signal(how)
        rest = client.stdout.read()
        client.wait(20)
        if how is not signal.SIGKILL:
            assert rest == "" or rest.endswith("\n"), "whole lines only"
        seen += [json.loads(line)["number"] for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert seen == list(range(1, total + 1))


def test_following_goes_on_after_a_restart_without_gap(peer: Peer, background: Background) -> None:
    client = background("events", "--follow", "--after", "0", "--json")
    assert client.stdout is not None
    peer.emit("one")
    assert json.loads(client.stdout.readline())["number"] == 1
    peer.wait_for_call("events.poll", 2)
    peer.stop()
    peer.emit("two")
    peer.start()
    assert json.loads(client.stdout.readline())["number"] == 2


def test_a_journal_that_has_more_but_says_nothing_is_asked_with_patience(peer: Peer, ctl: Ctl) -> None:
    peer.emit("one")
    poll, calls = peer.events_poll, []

    def reluctant(params: p.PollParams) -> object:
        calls.append(params)
        if params.after == 0 and params.timeout == 0:
            return p.PollResult(events=(), next=0)
        return poll(params)

    peer.events_poll = reluctant  # type: ignore[method-assign, assignment]
    assert json.loads(ctl("events", "--json").stdout)["number"] == 1
    assert [params.timeout for params in calls] == [0.0, 0.0, 1.0]
