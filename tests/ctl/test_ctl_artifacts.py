"""`artifacts`: what is fetched is whole and verified, or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

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
