"""Artifacts: complete under their name, or not there."""

from __future__ import annotations

import errno
import gc
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from harness import killed_before

from buildd.errors import BuildFailure, InvalidInput, NotFound, Refused
from buildd.model import BuildRecord
from buildd.planner.keys import Inputs, KeyParts
from buildd.publish.tarball import pack
from buildd.store import damaged
from buildd.store.artifacts import ArtifactStore, Manifest, ManifestHead, Receipt, file_digest
from buildd.store.pins import Pin

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
        inputs=Inputs(
            parts=KeyParts(
                name="jq", version="1", tree="0" * 40, sources=(), patches=(), phases={}, formats=(), environment="e",
                architecture="x86_64", dependencies={},
            ),
            outputs={}, environment={}, strategy="aggressive", repository="https://example.org/r", commit="1" * 40,
            root="2" * 40, path=".",
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


@pytest.mark.parametrize("what", ["receipt", "pin", "tarball"])
def test_what_was_being_written_for_an_artifact_when_the_daemon_was_killed_is_removed(
    store: ArtifactStore, tmp_path: Path, what: str
) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    writers: dict[str, Callable[[], object]] = {
        "receipt": lambda: store.add_receipt(output, receipt("b1", output)),
        "pin": lambda: store.pin(output, Pin(by="ann", at=3.0)),
        "tarball": lambda: pack(store, output, "jq", "1"),
    }
    before = sorted(store.root.rglob("*"))
    killed_before("os.rename", writers[what])
    assert len(temporaries(store)) == 1
    store.remove_temporaries()
    assert sorted(store.root.rglob("*")) == before


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


# --- receipts and manifests of all versions -------------------------------------------------------------------


def test_a_receipt_of_an_early_version_is_still_read(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {"a": "x"})).output_id
    old = msgspec.to_builtins(receipt("b1", output))
    old["key_parts"] = old.pop("inputs")["parts"]
    (store.directory(output) / "builds" / "b1.json").write_bytes(msgspec.json.encode(old))
    (found,) = store.receipts(output)
    assert (found.build.id, found.inputs) == ("b1", None)


def test_the_newest_receipts_come_first_and_unreadable_ones_not_at_all(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {"a": "x"})).output_id
    for n in range(30):
        store.add_receipt(output, receipt(f"b{n:02}", output))
        os.utime(store.directory(output) / "builds" / f"b{n:02}.json", (n, n))
    (store.directory(output) / "builds" / "b28.json").write_text("{")
    os.utime(store.directory(output) / "builds" / "b28.json", (28, 28))
    found = [r.build.id for r in store.receipts(output)]
    assert found[:3] == ["b29", "b27", "b26"]
    assert len(found) < 30, "an output that was made a thousand times is not read a thousand times"
    assert store.receipts("ab" * 32) == []


def test_the_head_of_a_manifest_is_read_without_its_entries_also_of_an_early_version(
    store: ArtifactStore, tmp_path: Path
) -> None:
    made = add(store, staged(tmp_path / "dest", {"a": "x", "d/b": "yy"}), created_at=5.0)
    head = ManifestHead(output_id=made.output_id, created_at=5.0, bytes=3, files=2)
    assert store.head(made.output_id) == head
    path = store.directory(made.output_id) / "manifest.json"
    old = msgspec.to_builtins(made)
    del old["files"]
    path.write_bytes(msgspec.json.encode(old))
    assert store.head(made.output_id) == head
    path.write_text("{")
    with pytest.raises(Refused, match="damaged"):
        store.head(made.output_id)


def test_artifacts_are_found_by_the_beginning_of_their_id(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {"a": "x"})).output_id
    (store.directory(output).parent / f".{output}.0123.tmp").mkdir()
    assert list(store.outputs()) == list(store.outputs(output[:8])) == [output]
    assert list(store.outputs(output[:2] + "zz")) == list(store.outputs("zz")) == []


# --- what vanishes --------------------------------------------------------------------------------------------


def settle() -> None:
    """Until what was listed before counts as settled: the clock of the file system is coarse."""
    time.sleep(0.06)


def test_an_artifact_that_is_removed_by_anybody_vanishes_once(store: ArtifactStore, tmp_path: Path) -> None:
    one = add(store, staged(tmp_path / "one", {"a": "1"})).output_id
    two = add(store, staged(tmp_path / "two", {"a": "2"})).output_id
    assert store.vanished() == set()
    settle()
    assert store.vanished() == set()
    store.directory(one).rename(tmp_path / "elsewhere")
    assert store.vanished() == {one}
    assert store.vanished() == set()
    store.directory(two).parent.rename(tmp_path / "all")
    assert store.vanished() == {two}
    assert not store.exists(one)
    assert not store.exists(two)


def test_an_artifact_that_comes_and_goes_between_two_looks_vanishes_too(store: ArtifactStore, tmp_path: Path) -> None:
    store.vanished()
    one = add(store, staged(tmp_path / "one", {"a": "1"})).output_id
    store.directory(one).parent.rename(tmp_path / "first")
    assert store.vanished() == {one}
    two = add(store, staged(tmp_path / "two", {"a": "1"})).output_id
    assert two == one
    store.directory(two).rename(tmp_path / "second")
    assert store.vanished() == {two}
    assert store.vanished() == set()


def test_a_removal_right_after_a_look_is_seen_although_the_clock_is_coarse(
    store: ArtifactStore, tmp_path: Path
) -> None:
    for n in range(50):
        output = add(store, staged(tmp_path / f"dest{n}", {"a": str(n)})).output_id
        assert store.vanished() == set()
        store.directory(output).rename(tmp_path / output)
        assert store.vanished() == {output}


def test_nothing_is_read_again_where_nothing_has_changed(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(20):
        add(store, staged(tmp_path / f"dest{n}", {"a": str(n)}))
    settle()
    store.vanished()
    read: list[object] = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (read.append(path), real(path))[1])
    store.vanished()
    assert read == []
    output = add(store, staged(tmp_path / "more", {"a": "more"})).output_id
    read.clear()
    store.vanished()
    assert read == [str(store.directory(output).parent)]


def test_what_is_only_built_and_replaced_does_not_vanish(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "one", {"a": "1"})).output_id
    store.vanished()
    (store.root / output[:2] / f".{output}.0.tmp").mkdir()
    assert store.vanished() == set()


# --- sound or damaged -----------------------------------------------------------------------------------------

FILES = {"bin/jq": "program", "share/doc": "text", "share/other": "text"}


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Change one bit of a file, by its inode, as a disk or a stray program would."""
    mode, times = path.stat().st_mode, (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.chmod(0o644)
    with path.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    path.chmod(mode)
    if keep_time:
        os.utime(path, ns=times)


def longer(path: Path) -> None:
    writable(path).write_text("text and more")


def replaced_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("other")


def unreadable_manifest(path: Path) -> None:
    (path.parents[2] / "manifest.json").write_text('{"format": 1')


def another_manifest(path: Path) -> None:
    manifest = path.parents[2] / "manifest.json"
    manifest.write_text(manifest.read_text().replace("share/doc", "share/dok"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip, "share/doc: its SHA-256 is "),
    "a longer file": (longer, "share/doc: it has 13 bytes, not 4"),
    "a missing file": (Path.unlink, "share/doc: it is missing"),
    "a file too many": (lambda path: (path.parent / "new").touch(), "share/new: it is not in the manifest"),
    "another mode": (lambda path: path.chmod(0o555), "share/doc: its mode is 755, not 644"),
    "a link for a file": (replaced_by_a_link, "share/doc: it is a link, not a file"),
    "a fifo": (lambda path: os.mkfifo(path.parent / "pipe"), "share/pipe is a fifo"),
    "no manifest to read": (unreadable_manifest, "the manifest of artifact .* is damaged"),
    "another manifest": (another_manifest, "the listing in the manifest is not that of this output"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verification_names_what_is_wrong(store: ArtifactStore, tmp_path: Path, damage: str) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    assert store.verify(output) == []
    assert store.verify_on_use(output)
    act, said = DAMAGES[damage]
    act(store.tree(output) / "share/doc")
    (problem,) = store.verify(output)
    assert re.search(said, problem), problem
    assert not ArtifactStore(store.root).verify_on_use(output)
    assert not store.verify_on_use(output)


def test_a_whole_tree_that_is_missing_is_damage_and_an_unknown_artifact_is_not_found(
    store: ArtifactStore, tmp_path: Path
) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    store.tree(output).rename(tmp_path / "gone")
    assert "No such file" in store.verify(output)[0]
    assert not store.verify_on_use(output)
    with pytest.raises(NotFound):
        store.verify("ab" * 32)
    assert not store.verify_on_use("ab" * 32)


def test_many_problems_are_counted_and_not_all_told(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {f"f{n}": "x" for n in range(100)})).output_id
    for path in store.tree(output).iterdir():
        path.unlink()
    told = store.verify(output)
    assert len(told) == 21
    assert told[-1] == "and 80 more"


def test_a_shortage_of_the_daemon_is_not_damage(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id

    def exhausted(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("buildd.store.verify.scan", exhausted)
        with pytest.raises(OSError, match="Too many"):
            store.verify(output)
        with pytest.raises(OSError, match="Too many"):
            store.verify_on_use(output)
    assert store.verify_on_use(output)


def test_an_artifact_is_read_in_full_once_and_then_only_looked_at(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    read: list[str] = []
    real = ArtifactStore.listing
    monkeypatch.setattr(ArtifactStore, "listing", lambda self, output: (read.append(output), real(self, output))[1])
    fresh = ArtifactStore(store.root)
    assert store.verify_on_use(output)
    assert read == [], "what was hashed while it was taken over is known"
    assert fresh.verify_on_use(output)
    assert fresh.verify_on_use(output)
    assert read == [output]
    os.link(store.tree(output) / "bin/jq", tmp_path / "a dependent's prefix")
    assert fresh.verify_on_use(output)
    assert read == [output], "a hard link changes nothing"
    os.utime(store.tree(output) / "bin/jq")
    assert fresh.verify_on_use(output), "only the time was changed"
    assert read == [output] * 2


def test_a_bit_that_flips_without_a_trace_is_found_in_the_next_life(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    flip(store.tree(output) / "bin/jq", keep_time=True)
    assert not ArtifactStore(store.root).verify_on_use(output)


def test_a_damaged_artifact_is_set_aside_and_makes_room_for_the_same_output(
    store: ArtifactStore, tmp_path: Path
) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    flip(store.tree(output) / "bin/jq")
    place = store.set_aside(output)
    assert place is not None
    assert place.parent == store.root / ".damaged"
    assert place.name == f"{output}.1"
    assert (place / "tree/bin/jq").read_text() != "program"
    assert not store.exists(output)
    assert store.set_aside(output) is None
    assert add(store, staged(tmp_path / "again", FILES)).output_id == output
    assert (store.tree(output) / "bin/jq").read_text() == "program"
    assert store.verify(output) == []
    assert store.set_aside(output) is None, "what has come in its place is sound"
    assert store.exists(output)


def test_a_build_with_the_output_of_a_damaged_artifact_replaces_it(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    flip(store.tree(output) / "bin/jq")
    assert add(store, staged(tmp_path / "again", FILES)).output_id == output
    assert (store.tree(output) / "bin/jq").read_text() == "program"
    assert [path.name for path in store.damaged.kept()] == [f"{output}.1"]


def test_a_directory_without_a_manifest_is_in_nobodys_way(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    (store.directory(output) / "manifest.json").unlink()
    assert not store.exists(output)
    assert not store.verify_on_use(output)
    assert add(store, staged(tmp_path / "again", FILES)).output_id == output
    assert store.verify(output) == []


def test_the_last_few_damaged_artifacts_are_kept(store: ArtifactStore, tmp_path: Path) -> None:
    for n in range(damaged.KEPT + 3):
        output = add(store, staged(tmp_path / f"dest{n}", {"a": "x"})).output_id
        flip(store.tree(output) / "a")
        assert store.set_aside(output) is not None
    kept = [path.name.rpartition(".")[2] for path in store.damaged.kept()]
    assert kept == [str(n) for n in range(4, damaged.KEPT + 4)]


def test_a_damaged_artifact_goes_for_good_where_it_cannot_be_kept(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {"a": "x"})).output_id
    flip(store.tree(output) / "a")
    (store.root / ".damaged").write_text("in the way, as no space is")
    assert store.set_aside(output) is None
    assert not store.exists(output)
    assert temporaries(store) == []


def test_many_threads_verify_one_artifact_at_once(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", {f"f{n}": "x" * 5000 for n in range(50)})).output_id
    fresh = ArtifactStore(store.root)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(fresh.verify_on_use(output))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 8


# --- pins -----------------------------------------------------------------------------------------------------


def test_a_pin_lies_beside_the_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    assert store.pinned(output) is None
    store.pin(output, Pin(by="ann", at=3.0, note="release 7"))
    assert ArtifactStore(store.root).pinned(output) == Pin(by="ann", at=3.0, note="release 7")
    store.pin(output, Pin(by="bob", at=4.0))
    assert store.pinned(output) == Pin(by="bob", at=4.0)
    assert store.unpin(output)
    assert not store.unpin(output)
    assert store.pinned(output) is None
    with pytest.raises(NotFound):
        store.pin("ab" * 32, Pin(by="ann", at=3.0))


def test_a_pin_that_cannot_be_read_protects_all_the_same(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    (store.directory(output) / "pin.json").write_text("{")
    pin = store.pinned(output)
    assert pin is not None
    assert "cannot be read" in pin.note


def test_what_is_built_in_place_of_a_damaged_artifact_is_pinned_as_that_was(
    store: ArtifactStore, tmp_path: Path
) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    store.pin(output, Pin(by="ann", at=3.0))
    flip(store.tree(output) / "bin/jq")
    store.set_aside(output)
    add(store, staged(tmp_path / "again", FILES))
    assert store.pinned(output) == Pin(by="ann", at=3.0)
    store.unpin(output)
    flip(store.tree(output) / "bin/jq")
    add(store, staged(tmp_path / "third", FILES))
    assert store.pinned(output) is None


# --- going ----------------------------------------------------------------------------------------------------


def test_an_artifact_is_withdrawn_and_then_removed(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    gc.collect()
    assert not store.remove_withdrawn(output), "nobody withdrew it"
    assert store.holds.withdraw(output)
    assert not store.exists(output)
    assert store.directory(output).exists()
    assert store.remove_withdrawn(output)
    assert os.listdir(store.directory(output).parent) == []
    assert not store.remove_withdrawn(output)
    assert add(store, staged(tmp_path / "again", FILES)).output_id == output
    assert store.exists(output)


def test_an_artifact_that_is_just_being_removed_is_not_taken_for_damaged(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    gc.collect()
    assert store.holds.withdraw(output)
    assert not store.verify_on_use(output)
    with pytest.raises(NotFound):
        store.verify(output)
    assert store.set_aside(output) is None
    assert store.damaged.kept() == []
    assert store.remove_withdrawn(output)


def test_an_artifact_is_held_as_long_as_its_maker_has_the_manifest(store: ArtifactStore, tmp_path: Path) -> None:
    first = add(store, staged(tmp_path / "one", FILES))
    second = add(store, staged(tmp_path / "two", FILES))
    output = first.output_id
    assert not store.holds.withdraw(output)
    del first
    gc.collect()
    assert not store.holds.withdraw(output)
    del second
    gc.collect()
    assert store.holds.withdraw(output)


def test_a_build_that_failed_while_its_output_was_taken_holds_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(ArtifactStore(tmp_path / "other"), staged(tmp_path / "one", FILES)).output_id
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise RuntimeError("called off")

    with pytest.raises(RuntimeError):
        store.add(staged(tmp_path / "two", FILES), created_at=1.0, mtime=MTIME, check=check)
    gc.collect()
    assert store.holds.withdraw(output)


def test_holds_end_with_their_block_or_with_their_time(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    gc.collect()
    with store.holds.holding(output) as held:
        assert held
        assert not store.holds.withdraw(output)
    store.holds.keep_for(output, 0.05)
    assert not store.holds.withdraw(output)
    time.sleep(0.06)
    assert store.holds.withdraw(output)
    with store.holds.holding(output) as held:
        assert not held
    assert not store.holds.keep_for(output, 60)
    store.holds.restore(output)
    assert store.exists(output)


def test_a_build_that_makes_a_withdrawn_output_again_gets_a_new_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "one", FILES)).output_id
    marker = store.packed(output, "old")
    marker.touch()
    gc.collect()
    assert store.holds.withdraw(output)
    made = add(store, staged(tmp_path / "two", FILES))
    assert made.output_id == output
    assert store.exists(output)
    assert not marker.exists()
    assert not store.remove_withdrawn(output), "the collector comes too late"
    assert store.exists(output)


def test_an_artifact_that_was_pinned_in_the_last_moment_stays(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    gc.collect()
    store.pin(output, Pin(by="ann", at=1.0))
    assert store.holds.withdraw(output)
    assert not store.remove_withdrawn(output)
    assert store.exists(output)


def test_a_removal_that_the_disk_refuses_leaves_the_artifact_there(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    gc.collect()
    assert store.holds.withdraw(output)

    def refused(self: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(OSError, match="Read-only"):
            store.remove_withdrawn(output)
    assert store.exists(output)
    assert store.verify(output) == []


def test_builds_and_removals_of_one_output_at_once_never_lose_what_a_build_holds(
    store: ArtifactStore, tmp_path: Path
) -> None:
    output = add(store, staged(tmp_path / "first", FILES)).output_id
    gc.collect()
    done = threading.Event()
    removed = 0
    failures: list[BaseException] = []

    def collect() -> None:
        nonlocal removed
        while not done.is_set():
            if store.holds.withdraw(output):
                removed += store.remove_withdrawn(output)

    def build(name: str) -> None:
        try:
            for n in range(1000):
                if n > 40 and removed > 3:
                    return
                manifest = add(store, staged(tmp_path / f"{name}{n}", FILES))
                store.add_receipt(output, receipt(f"{name}{n}", output))
                assert store.exists(output)
                assert (store.tree(output) / "bin/jq").read_text() == "program"
                del manifest
                time.sleep(0.0005)  # nobody holds it for a moment
        except BaseException as error:
            failures.append(error)

    builders = [threading.Thread(target=build, args=(name,)) for name in "ab"]
    collector = threading.Thread(target=collect)
    for thread in (collector, *builders):
        thread.start()
    for thread in builders:
        thread.join()
    done.set()
    collector.join()
    assert failures == []
    assert removed > 3, "they never met"
    assert temporaries(store) == []


def test_use_is_noted_in_the_time_of_the_manifest(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, staged(tmp_path / "dest", FILES)).output_id
    path = store.directory(output) / "manifest.json"
    os.utime(path, (5, 5))
    before = time.time() - 1
    store.touch(["ab" * 32, output])
    assert path.stat().st_mtime >= before
    os.utime(path, (5, 5))
    add(store, staged(tmp_path / "again", FILES))
    assert path.stat().st_mtime >= before, "a build that made it again used it"
