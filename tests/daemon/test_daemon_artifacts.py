"""What builds leave behind: content-addressed, packed on request, handed out in pieces."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from harness import Daemon, RecipeRepository, RpcError, named

Boot = Callable[..., Daemon]
STAGE = """\
mkdir -p "$DESTDIR$PREFIX/bin" "$DESTDIR$PREFIX/share/empty"
printf '#!/bin/sh\\necho it runs\\n' > "$DESTDIR$PREFIX/bin/tool"
chmod 755 "$DESTDIR$PREFIX/bin/tool"
ln -s tool "$DESTDIR$PREFIX/bin/alias"
head -c 700000 /dev/urandom > "$DESTDIR$PREFIX/share/noise"
"""


def members(packed: bytes) -> dict[str, tarfile.TarInfo]:
    content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name.removeprefix("./"): member for member in archive}


def test_an_artifact_is_exported_read_in_pieces_and_verified(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("tool", version="1.5", phases={"stage": STAGE}).commit()
    view = daemon.build(repository)
    record = daemon.record(named(view, "tool").build_id)
    assert record.output_id is not None

    export = daemon.call("artifact.export", {"artifact": "tool@1.5"})

    assert export["output_id"] == record.output_id
    packed, pieces = b"", 0
    while True:
        place = {"output_id": export["output_id"], "filename": export["filename"], "offset": len(packed)}
        chunk = daemon.call("artifact.read", place)
        packed += base64.b64decode(chunk["data"])
        pieces += 1
        assert chunk["next_offset"] == len(packed)
        if chunk["finished"]:
            break
    assert pieces > 2
    assert len(packed) == export["bytes"]
    assert hashlib.sha256(packed).hexdigest() == export["sha256"]
    inside = members(packed)
    tool = next(member for name, member in inside.items() if name.endswith("bin/tool"))
    assert tool.mode & 0o777 == 0o755
    assert (tool.uid, tool.gid) == (0, 0)
    assert any(name.endswith("bin/alias") and member.issym() for name, member in inside.items())
    assert len({member.mtime for member in inside.values()}) == 1

    shown = daemon.call("artifact.show", {"artifact": record.output_id[:12]})
    listed = {entry["path"]: entry for entry in shown["listing"]}
    noise = next(entry for path, entry in listed.items() if path.endswith("share/noise"))
    assert noise["size"] == 700_000
    manifest = json.loads((Path(str(record.artifact)) / "manifest.json").read_text())
    assert manifest["output_id"] == record.output_id


def test_artifacts_get_writes_and_extracts(daemon: Daemon, repository: RecipeRepository, tmp_path: Path) -> None:
    repository.package("tool", version="2", phases={"stage": STAGE}).commit()
    daemon.build(repository)

    done = daemon.buildctl("artifacts", "get", "tool@2", "-o", tmp_path / "tool.tar.zst")
    assert done.returncode == 0, done.stderr
    assert any(name.endswith("bin/tool") for name in members((tmp_path / "tool.tar.zst").read_bytes()))
    done = daemon.buildctl("artifacts", "get", "tool@2", "--extract", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (tool,) = (tmp_path / "out").rglob("bin/tool")
    assert tool.stat().st_mode & 0o111
    listed = daemon.buildctl("artifacts", "list", "--json")
    assert "tool@2" in listed.stdout
    assert daemon.buildctl("artifacts", "get", "tool@3").returncode == 3


def test_the_tar_format_makes_a_release_with_sums(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    repository.package("tool", version="3", formats=["tar"], phases={"stage": STAGE})
    repository.package("unpacked", phases={"stage": STAGE}).commit()

    number = daemon.start(repository)
    assert daemon.wait(number).state == "completed"

    release = daemon.state_dir / "releases" / str(number)
    files = sorted(path.name for path in release.iterdir())
    assert len(files) == 2
    assert files[0] == "SHA256SUMS"
    assert files[1].startswith("tool-3") or files[1].startswith("tool_3") or "tool" in files[1]
    packed = (release / files[1]).read_bytes()
    assert (release / "SHA256SUMS").read_text() == f"{hashlib.sha256(packed).hexdigest()}  {files[1]}\n"
    assert any(name.endswith("bin/tool") for name in members(packed))
    again = daemon.start(repository)
    assert daemon.wait(again).stats.skipped == 2
    assert (daemon.state_dir / "releases" / str(again) / files[1]).read_bytes() == packed


def test_the_same_content_is_one_artifact_whoever_built_it(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    stage = 'mkdir -p "$DESTDIR$PREFIX"; echo same > "$DESTDIR$PREFIX/file"; sleep 0.$(date +%N | cut -c1)'
    repository.package("one", version="1", phases={"stage": stage})
    repository.package("two", version="2", phases={"stage": stage + "; true"}).commit()
    view = daemon.build(repository)
    assert named(view, "one").artifact == named(view, "two").artifact
    (artifact,) = daemon.call("artifact.list")["artifacts"]
    assert set(artifact["packages"]) == {"one@1", "two@2"}


def test_an_artifact_that_was_removed_by_hand_is_built_again(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    repository.package("tool", phases={"stage": STAGE}).commit()
    view = daemon.build(repository)
    shutil.rmtree(str(named(view, "tool").artifact))
    again = daemon.build(repository)
    assert named(again, "tool").state == "success"


def test_a_failed_build_leaves_no_artifact(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot()
    repository.package("bad", phases={"stage": STAGE, "package": "exit 1"}).commit()
    view = daemon.build(repository)
    assert named(view, "bad").artifact is None
    assert daemon.call("artifact.list")["artifacts"] == []
    assert list((daemon.state_dir / "artifacts").rglob("manifest.json")) == []
    with pytest.raises(RpcError) as caught:
        daemon.call("artifact.export", {"artifact": str(named(view, "bad").build_id)})
    assert caught.value.code == 3
