"""Artifacts: complete under their name, or not there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import pytest

from buildd.errors import BuildFailure, InvalidInput, NotFound
from buildd.model import BuildRecord
from buildd.planner.keys import KeyParts
from buildd.store.artifacts import ArtifactStore, Manifest, Receipt, file_digest

MTIME = 315_532_800


def staged(path: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    path.mkdir(exist_ok=True)
    return path


def unchecked() -> None:
    pass


def add(store: ArtifactStore, tree: Path, created_at: float = 1.0) -> Manifest:
    return store.add(tree, created_at=created_at, mtime=MTIME, check=unchecked)


def temporaries(store: ArtifactStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.name.endswith(".tmp")]


def receipt(id: str, output: str) -> Receipt:
    return Receipt(
        repository="https://example.org/r",
        build=BuildRecord(
            id=id, run="r", package="jq", version="1", state="success", started_at=1.0, output_id=output, key="k"
        ),
        key_parts=KeyParts(
            name="jq", version="1", tree="0" * 40, sources=(), patches=(), phases={}, formats=(), environment="e",
            architecture="x86_64", dependencies={},
        ),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_an_output_is_taken_over_under_its_id_with_a_manifest(store: ArtifactStore, tmp_path: Path) -> None:
    manifest = add(store, staged(tmp_path / "dest", {"opt/a/bin/jq": "program", "opt/a/doc": "text"}))
    directory = store.directory(manifest.output_id)
    assert directory == store.root / manifest.output_id[:2] / manifest.output_id
    assert store.exists(manifest.output_id)
    assert store.manifest(manifest.output_id) == manifest
    assert manifest.bytes == len("programtext")
    assert [e.path for e in manifest.entries if e.kind == "file"] == ["opt/a/bin/jq", "opt/a/doc"]
    assert (store.tree(manifest.output_id) / "opt/a/bin/jq").read_text() == "program"
    assert store.listing(manifest.output_id).entries == manifest.entries
    assert temporaries(store) == []


def test_the_same_output_twice_is_one_artifact_and_the_first_one_stays(store: ArtifactStore, tmp_path: Path) -> None:
    first = add(store, staged(tmp_path / "one", {"a": "x"}), created_at=1.0)
    inode = (store.tree(first.output_id) / "a").stat().st_ino
    second = add(store, staged(tmp_path / "two", {"a": "x"}), created_at=2.0)
    assert second == first
    assert (store.tree(first.output_id) / "a").stat().st_ino == inode
    assert temporaries(store) == []


def test_another_content_is_another_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    one = add(store, staged(tmp_path / "one", {"a": "x"}))
    two = add(store, staged(tmp_path / "two", {"a": "y"}))
    three = add(store, staged(tmp_path / "three", {"b": "x"}))
    assert len({one.output_id, two.output_id, three.output_id}) == 3


def test_an_empty_output_is_an_artifact_too(store: ArtifactStore, tmp_path: Path) -> None:
    manifest = add(store, staged(tmp_path / "empty", {}))
    assert manifest.entries == ()
    assert store.tree(manifest.output_id).is_dir()


def test_many_builds_with_one_output_at_once_make_one_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    trees = [staged(tmp_path / str(n), {f"f{i}": "x" * 1000 for i in range(20)}) for n in range(8)]
    barrier = threading.Barrier(len(trees))
    results: list[Manifest] = []
    failures: list[BaseException] = []

    def work(tree: Path) -> None:
        barrier.wait()
        try:
            results.append(add(store, tree))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(tree,)) for tree in trees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({m.output_id for m in results}) == 1
    assert temporaries(store) == []
    assert len(os.listdir(store.root / results[0].output_id[:2])) == 1


def test_a_build_that_is_called_off_while_its_output_is_taken_leaves_nothing(
    store: ArtifactStore, tmp_path: Path
) -> None:
    class CalledOff(Exception):
        pass

    for after in range(1, 30):
        tree = staged(tmp_path / f"dest{after}", {f"d{n}/f": str(n) for n in range(5)})
        calls = 0

        def check(after: int = after) -> None:
            nonlocal calls
            calls += 1
            if calls >= after:
                raise CalledOff

        try:
            store.add(tree, created_at=1.0, mtime=MTIME, check=check)
        except CalledOff:
            assert temporaries(store) == []
            assert [p for p in store.root.rglob("*") if p.is_file()] == []
        else:
            assert after > 3, "it was called off at several points before"
            return
    pytest.fail("the check is called without end")


def test_an_output_that_cannot_be_kept_is_refused_and_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    tree = staged(tmp_path / "dest", {"a": "x"})
    os.mkfifo(tree / "pipe")
    with pytest.raises(BuildFailure, match="pipe is a fifo"):
        add(store, tree)
    assert list(store.root.rglob("*")) == []


def test_each_build_leaves_its_receipt_beside_the_output_it_made(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {"a": "x"})).output_id
    store.add_receipt(output, receipt("b1", output))
    store.add_receipt(output, receipt("b2", output))
    builds = store.directory(output) / "builds"
    assert sorted(os.listdir(builds)) == ["b1.json", "b2.json"]
    assert msgspec.json.decode((builds / "b1.json").read_bytes(), type=Receipt) == receipt("b1", output)


def test_what_an_interrupted_build_left_is_removed_and_the_rest_is_not(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {"a": "x"})).output_id
    stale = store.root / "ab" / f".{'ab' * 32}.0123.tmp"
    staged(stale / "tree", {"deep/f": "x"})
    assert not store.exists("ab" * 32)
    assert store.remove_temporaries() == 1
    assert not stale.exists()
    assert store.exists(output)
    assert store.remove_temporaries() == 0


def test_a_receipt_that_was_being_written_is_removed_as_well(store: ArtifactStore) -> None:
    half = store.root / ".b1.tmp"
    half.write_text("{")
    store.remove_temporaries()
    assert not half.exists()


@pytest.mark.parametrize("text", ["", "abc", "../../../etc/passwd", "AB" * 32, "g" * 64, "a" * 65])
def test_what_is_no_output_id_never_becomes_a_path(store: ArtifactStore, text: str) -> None:
    with pytest.raises(InvalidInput, match="is not an output id"):
        store.directory(text)


def test_an_unknown_output_is_not_found(store: ArtifactStore) -> None:
    assert not store.exists("ab" * 32)
    with pytest.raises(NotFound) as caught:
        store.manifest("ab" * 32)
    assert caught.value.hint


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
