"""`db`: each action asks what it should, and prints it for people and for programs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import Any

import pytest
from ctl_peer import Ctl, Peer, command

from buildd import protocol as p
from buildd.errors import NotFound, Refused

BUILD = "3fa2b1c0-0000-4000-8000-000000000000"
ENTRY = p.IndexEntry(
    package="zlib",
    version="1.3.1",
    repository="/srv/things",
    build=BUILD,
    key="k" * 64,
    output_id="ab" * 32,
    tree="c" * 40,
    crc=0xBEEF,
    built_at=1.7e9,
)
STATS = p.DatabaseStats(
    since=1.7e9,
    packages=2,
    runs={"completed": 3, "failed": 1},
    builds={"failed": 1, "success": 5},
    hits=3,
    misses=5,
    hit_rate=0.375,
    total_s=3700.0,
    mean_s=740.0,
    median_s=60.0,
    slowest=(p.PackageTime(package="zlib", builds=2, total_s=130.0, mean_s=65.0, median_s=65.0),),
    outputs=4,
    artifacts=3,
    artifact_bytes=2048,
    database_bytes=4096,
)


def check(*problems: str, missing: int = 0) -> p.DatabaseCheck:
    return p.DatabaseCheck(
        ok=not problems, problems=problems, builds=6, missing_artifacts=missing, stale_builds=len(problems)
    )


@pytest.fixture(autouse=True)
def database(peer: Peer) -> None:
    answers: dict[str, Any] = {
        "db_latest": p.IndexList(entries=(ENTRY,)),
        "db_fingerprint": p.FingerprintList(
            fingerprints=(
                p.Fingerprint(
                    package="zlib",
                    version="1.3.1",
                    repository="/srv/things",
                    tree="c" * 40,
                    crc=0xBEEF,
                    files=12,
                    build=BUILD,
                    built_at=1.7e9,
                ),
            )
        ),
        "db_stats": STATS,
        "db_verify": check(),
        "db_reset": p.Ok(message="the database is empty"),
    }
    for name, answer in answers.items():
        setattr(peer, name, lambda params, answer=answer: answer)
    peer.add_build(BUILD, "r", "zlib", state="failed", reason="timeout")
    peer.db_failures = lambda params: p.BuildList(builds=tuple(peer.builds.values()))  # type: ignore[attr-defined]


def test_history_and_failures_are_tables_of_builds(peer: Peer, ctl: Ctl) -> None:
    for args in (("history", "zlib", "-n", "3"), ("failures", "zlib", "-n", "3"), ("failures",)):
        done = ctl("db", *args)
        assert done.returncode == 0
        header, row = done.stdout.splitlines()
        assert header.split()[:4] == ["BUILD", "PACKAGE", "VERSION", "STATE"]
        assert row.split()[:5] == ["3fa2b1c0", "zlib", "1.0", "failed", "timeout"]
    assert peer.calls("build.list") == [p.BuildListParams(package="zlib", limit=3)]
    assert peer.calls("db.failures") == [p.FailuresParams(package="zlib", limit=3), p.FailuresParams()]
    assert json.loads(ctl("db", "failures", "--json").stdout)["builds"][0]["id"] == BUILD
    assert json.loads(ctl("db", "history", "zlib", "--json").stdout)["builds"][0]["reason"] == "timeout"
    assert ctl("db", "history").returncode == 2


def test_the_latest_successes_are_listed(peer: Peer, ctl: Ctl) -> None:
    header, row = ctl("db", "latest").stdout.splitlines()
    assert header.split() == ["PACKAGE", "VERSION", "BUILD", "BUILT", "OUTPUT", "REPOSITORY"]
    assert row.split()[:3] == ["zlib", "1.3.1", "3fa2b1c0"]
    assert row.endswith("/srv/things")
    assert json.loads(ctl("db", "latest", "zlib@1.3.1", "-n", "5", "--json").stdout)["entries"][0]["crc"] == 0xBEEF
    assert peer.calls("db.latest") == [p.IndexParams(), p.IndexParams(package="zlib@1.3.1", limit=5)]
    peer.failures["db.latest"] = NotFound("x was never built with success")
    assert ctl("db", "latest", "x").returncode == 3


def test_a_fingerprint_shows_tree_and_crc(peer: Peer, ctl: Ctl) -> None:
    _, row = ctl("db", "fingerprint", "zlib").stdout.splitlines()
    assert row.split()[:6] == ["zlib", "1.3.1", "c" * 40, "0000beef", "12", "3fa2b1c0"]
    assert json.loads(ctl("db", "fingerprint", "zlib", "--json").stdout)["fingerprints"][0]["files"] == 12
    assert peer.calls("db.fingerprint") == [p.FingerprintParams(package="zlib")] * 2


def test_a_fingerprint_without_a_listing_or_crc_has_dashes(peer: Peer, ctl: Ctl) -> None:
    bare = p.Fingerprint(
        package="z", version="1", repository="/r", tree="", crc=None, files=None, build=BUILD, built_at=1.7e9
    )
    peer.db_fingerprint = lambda params: p.FingerprintList(fingerprints=(bare,))  # type: ignore[attr-defined]
    assert ctl("db", "fingerprint", "z").stdout.splitlines()[1].split()[:5] == ["z", "1", "-", "-", "-"]


def test_stats_read_well(peer: Peer, ctl: Ctl) -> None:
    text = ctl("db", "stats", "--slowest", "1").stdout
    assert "packages    2 with a success, 4 outputs\n" in text
    assert "runs        4 = 3 completed + 1 failed\n" in text
    assert "builds      6 = 1 failed + 5 success\n" in text
    assert "cache       3 hits, 5 misses: 37.5 % hits\n" in text
    assert "time built  1h 01m; a build takes 12m 20s on average, 1m 00s at the median\n" in text
    assert "artifacts   3, 2.0 KiB\n" in text
    assert "database    4.0 KiB\n" in text
    assert text.splitlines()[-1].split() == ["zlib", "2", "1m", "05s", "1m", "05s", "2m", "10s"]
    assert peer.calls("db.stats") == [p.DatabaseStatsParams(slowest=1)]
    assert json.loads(ctl("db", "stats", "--json").stdout)["hit_rate"] == 0.375


def test_stats_of_an_empty_database_divide_by_nothing(peer: Peer, ctl: Ctl) -> None:
    empty = p.DatabaseStats(
        since=None, packages=0, runs={}, builds={}, hits=0, misses=0, hit_rate=None, total_s=0.0, mean_s=None,
        median_s=None, slowest=(), outputs=0, artifacts=None, artifact_bytes=None, database_bytes=0,
    )  # fmt: skip
    peer.db_stats = lambda params: empty  # type: ignore[attr-defined]
    text = ctl("db", "stats").stdout
    assert "runs        none\n" in text
    assert "cache       0 hits, 0 misses\n" in text


def test_a_sound_database_is_said_to_be_so(peer: Peer, ctl: Ctl) -> None:
    done = ctl("db", "verify")
    assert (done.returncode, done.stdout) == (0, "✓ the database is sound: 6 builds on record\n")
    peer.db_verify = lambda params: check(missing=1)  # type: ignore[attr-defined]
    done = ctl("db", "verify")
    assert done.returncode == 0
    assert "1 successful build without an artifact" in done.stdout


def test_every_problem_is_named_and_the_exit_code_says_so(peer: Peer, ctl: Ctl) -> None:
    peer.db_verify = lambda params: check("row 7 missing from index\x07")  # type: ignore[attr-defined]
    done = ctl("db", "verify")
    assert (done.returncode, done.stdout) == (1, "✗ row 7 missing from index\\x07\n")
    done = ctl("db", "verify", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False


def test_a_reset_needs_a_yes(peer: Peer, ctl: Ctl) -> None:
    done = ctl("db", "reset-db", stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert peer.calls("db.reset") == []
    assert ctl("db", "reset-db", "--yes").stdout == "the database is empty\n"
    assert json.loads(ctl("db", "reset-db", "-y", "--force", "--json").stdout)["ok"] is True
    assert peer.calls("db.reset") == [p.ResetParams(), p.ResetParams(force=True)]
    peer.failures["db.reset"] = Refused("1 run is active", hint="wait")
    assert ctl("db", "reset-db", "--yes").returncode == 4


@pytest.mark.parametrize(("typed", "code"), [(b"reset\n", 0), (b"yes\n", 4), (b"\n", 4)])
def test_a_person_is_asked_and_has_to_type_the_word(
    peer: Peer, environment: dict[str, str], typed: bytes, code: int
) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, typed)
        done = subprocess.run(
            command("db", "reset-db"), env=environment, stdin=theirs, capture_output=True, timeout=60, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == code
    assert b"every package will be built again" in done.stderr
    assert len(peer.calls("db.reset")) == (code == 0)
