"""`artifacts`: what is fetched is whole and verified, or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest
import zstandard
from ctl_peer import Ctl, Peer, command

from buildd import protocol as p

OUTPUT = "ab" * 32
CONTENT = bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def export(peer: Peer) -> None:
    peer.exports[OUTPUT] = CONTENT


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return zstandard.compress(buffer.getvalue())


def test_artifacts_are_listed_and_shown(peer: Peer, ctl: Ctl) -> None:
    assert ctl("artifacts", "list").stdout.splitlines()[1].split()[:4] == ["abababababab", "5.0", "KiB", "2"]
    assert json.loads(ctl("artifacts", "list", "zlib", "-n", "5", "--json").stdout)["artifacts"][0]["files"] == 2
    assert peer.calls("artifact.list")[-1] == p.ArtifactListParams(package="zlib", limit=5)
    text = ctl("artifacts", "show", OUTPUT).stdout
    assert f"artifact {OUTPUT}\n" in text
    assert text.splitlines()[-1].split() == ["0755", "100", "cccccccccccc", "lib/libz.so"]
    assert ctl("artifacts", "show", "nothing").returncode == 3


def test_get_writes_the_file_under_its_own_name(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("artifacts", "get", OUTPUT)
    assert done.returncode == 0
    file = tmp_path / "zlib-1.3.1.tar.zst"
    assert file.read_bytes() == CONTENT
    assert done.stderr == f"zlib-1.3.1.tar.zst: 5.0 KiB, sha256 {hashlib.sha256(CONTENT).hexdigest()}\n"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_get_writes_to_a_file_a_directory_or_standard_output(
    ctl: Ctl, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    assert ctl("artifacts", "get", OUTPUT, "-o", "there").returncode == 0
    assert ctl("artifacts", "get", OUTPUT, "-o", "there/x").returncode == 0
    assert sorted(os.listdir(tmp_path / "there")) == ["x", "zlib-1.3.1.tar.zst"]
    piped = subprocess.run(
        command("artifacts", "get", OUTPUT, "-o", "-"), env=environment, capture_output=True, check=True
    )
    assert piped.stdout == CONTENT


def test_what_arrives_damaged_is_not_kept(peer: Peer, ctl: Ctl, tmp_path: Path) -> None:
    peer.damage_exports = True
    before = sorted(os.listdir(tmp_path))
    done = ctl("artifacts", "get", OUTPUT)
    assert done.returncode == 1
    assert "arrived damaged: sha256" in done.stderr
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["../evil", "", "/etc/passwd", ".."])
def test_a_name_that_leads_elsewhere_is_refused(peer: Peer, ctl: Ctl, name: str) -> None:
    export = p.ArtifactExport(output_id=OUTPUT, filename=name, bytes=1, sha256="0" * 64)
    peer.artifact_export = lambda params: export  # type: ignore[method-assign, assignment]
    done = ctl("artifacts", "get", OUTPUT)
    assert done.returncode == 1
    assert "which is no file name" in done.stderr


def test_get_extracts_into_a_new_directory(peer: Peer, ctl: Ctl, tmp_path: Path) -> None:
    peer.exports[OUTPUT] = packed((tarfile.TarInfo("bin/hello"), b"#!/bin/sh\n"))
    done = ctl("artifacts", "get", OUTPUT, "--extract", "a/prefix")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/prefix/bin/hello").read_bytes() == b"#!/bin/sh\n"


def test_a_member_outside_of_the_directory_is_refused(peer: Peer, ctl: Ctl, tmp_path: Path) -> None:
    peer.exports[OUTPUT] = packed((tarfile.TarInfo("../../evil"), b"x"))
    done = ctl("artifacts", "get", OUTPUT, "--extract", "prefix")
    assert done.returncode == 1
    assert "cannot extract to prefix" in done.stderr
    assert not (tmp_path.parent / "evil").exists()


def test_what_is_no_archive_is_an_error_in_words(ctl: Ctl) -> None:
    done = ctl("artifacts", "get", OUTPUT, "--extract", "prefix")
    assert done.returncode == 1
    assert "cannot extract to prefix" in done.stderr
    assert "Traceback" not in done.stderr


# --- kept, verified, collected --------------------------------------------------------------------------------


def answer(peer: Peer, method: str, result: object) -> None:
    """Let the daemon answer a method like this."""
    setattr(peer, method.replace(".", "_"), lambda params: result)


def test_the_list_tells_what_is_kept_and_when_it_was_used(peer: Peer, ctl: Ctl) -> None:
    base = p.Artifact(output_id=OUTPUT, path="/a", bytes=1, files=1, created_at=1.7e9, packages=("zlib@1",))
    replace = msgspec.structs.replace
    answer(
        peer,
        "artifact.list",
        p.ArtifactList(
            artifacts=(
                replace(base, pinned="ann: \x1b[31mred", in_use=True, last_used=1.8e9),
                replace(base, in_use=True),
                base,
            )
        ),
    )
    lines = ctl("artifacts", "list").stdout.splitlines()
    assert [re.split(" {2,}", line)[5] for line in lines[1:]] == ["pinned", "in use", "-"]
    assert "2027" in lines[1]
    answer(peer, "artifact.show", p.ArtifactDetail(artifact=replace(base, pinned="ann: \x1b[31mred"), listing=()))
    shown = ctl("artifacts", "show", OUTPUT).stdout
    assert "  pinned    ann: \\x1b[31mred\n" in shown
    assert "\x1b" not in shown


def test_verify_tells_of_damage_and_fails_for_it(peer: Peer, ctl: Ctl) -> None:
    sound = p.ArtifactVerdict(output_id="cd" * 32, packages=(), ok=True)
    damaged = p.ArtifactVerdict(
        output_id=OUTPUT, packages=("zlib@1",), ok=False, problems=("lib/z: it is missing",), kept="/state/kept.1"
    )
    answer(peer, "artifact.verify", p.ArtifactVerifyResult(artifacts=(sound,), damaged=0))
    done = ctl("artifacts", "verify", "zlib")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "1 artifact sound, 0 damaged\n")
    assert peer.calls("artifact.verify")[-1] == p.ArtifactVerifyParams(artifact="zlib")
    answer(peer, "artifact.verify", p.ArtifactVerifyResult(artifacts=(sound, damaged), damaged=1))
    done = ctl("artifacts", "verify")
    assert peer.calls("artifact.verify")[-1] == p.ArtifactVerifyParams()
    assert done.returncode == 1
    assert done.stdout == f"artifact {OUTPUT} zlib@1 is damaged\n  lib/z: it is missing\n"
    assert "kept as /state/kept.1" in done.stderr
    assert "1 artifact sound, 1 damaged" in done.stderr
    done = ctl("artifacts", "verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["damaged"]) == (1, 1)


def test_pin_and_unpin_say_what_the_daemon_did(peer: Peer, ctl: Ctl) -> None:
    answer(peer, "artifact.pin", p.Ok(message="kept"))
    answer(peer, "artifact.unpin", p.Ok(message="not kept"))
    assert ctl("artifacts", "pin", "zlib", "--note", "shipped").stdout == "kept\n"
    assert peer.calls("artifact.pin")[-1] == p.ArtifactPinParams(artifact="zlib", note="shipped")
    assert ctl("artifacts", "unpin", "zlib").stdout == "not kept\n"
    assert json.loads(ctl("artifacts", "pin", "zlib", "--json").stdout) == {"ok": True, "message": "kept"}


RESULT = p.CollectResult(
    dry_run=True,
    collected=(
        p.Collected(
            kind="artifact", id=OUTPUT, packages=("zlib@1",), bytes=5000, inodes=5, last_used=1.7e9, reason="size"
        ),
        p.Collected(kind="release", id="7", packages=(), bytes=4096, inodes=2, last_used=1.7e9, reason="age"),
    ),
    freed_bytes=9096,
    freed_inodes=7,
    artifacts=3,
    bytes=1 << 20,
    free_bytes=1 << 30,
    free_inodes=1000,
    unmet=(),
    failed=(),
)


def test_gc_tells_what_goes_and_why(peer: Peer, ctl: Ctl) -> None:
    answer(peer, "artifact.collect", RESULT)
    done = ctl("gc", "--dry-run", "--max-bytes", "1.5GiB", "--max-age", "30d", "--min-free-bytes", "10MB")
    assert done.returncode == 0, done.stderr
    assert peer.calls("artifact.collect")[-1] == p.CollectParams(
        dry_run=True, max_bytes=3 << 29, max_age=30 * 86400.0, min_free_bytes=10_000_000
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1][:3] == ["artifact", "abababababab", "4.9"]
    assert rows[1][-3:] == ["too", "much", "zlib@1"]
    assert rows[2][:2] == ["release", "7"]
    assert done.stderr == "8.9 KiB would be freed; 3 artifacts left, 1.0 MiB; 1.0 GiB free on the disk\n"
    answer(peer, "artifact.collect", msgspec.structs.replace(RESULT, dry_run=False, collected=(), freed_bytes=0))
    done = ctl("gc")
    assert (done.stdout, done.stderr.partition(";")[0]) == ("", "0 B freed")
    assert peer.calls("artifact.collect")[-1] == p.CollectParams()


def test_gc_fails_for_a_limit_that_is_not_kept(peer: Peer, ctl: Ctl) -> None:
    unmet = p.UnmetLimit(limit="max_bytes", wanted=1, reached=9, message="9 bytes, and all of it is pinned")
    answer(peer, "artifact.collect", msgspec.structs.replace(RESULT, unmet=(unmet,), failed=("artifact x: EIO",)))
    done = ctl("gc", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["unmet"][0]["reached"] == 9
    assert "a limit is not kept: 9 bytes, and all of it is pinned\n" in done.stderr
    assert "could not be removed: artifact x: EIO\n" in done.stderr


@pytest.mark.parametrize("size", ["much", "-1", "1PiB5", "9" * 30, ""])
def test_a_size_that_is_none_is_a_usage_error(ctl: Ctl, size: str) -> None:
    done = ctl("gc", f"--max-bytes={size}")
    assert done.returncode == 2
    assert "is not a size; write it like 512MiB or 2GiB" in done.stderr
