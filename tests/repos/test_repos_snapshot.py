"""Plain directories and dirty work trees as git trees."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from harness import killed_before
from repos_servers import commit, git, make_repository

from buildd.errors import InvalidInput, NotFound, Refused
from buildd.repos import snapshot as module
from buildd.repos.cachedir import sweep
from buildd.repos.trees import GitStore, snapshot


def git_tree_of(directory: Path, tmp_path: Path) -> str:
    """What git itself makes of a directory."""
    index = tmp_path / "reference.git"
    if not index.exists():
        git("init", "-q", "--bare", index)
    git(f"--git-dir={index}", f"--work-tree={directory}", "add", "-A", ".", cwd=directory)
    return git(f"--git-dir={index}", "write-tree")


def paths(store: Path, tree: str) -> list[str]:
    return [entry.path for entry in GitStore(store).listing(tree)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    top = tmp_path / "plain"
    for name in ("a.c", "a/b.c", "a-b/c", "a0", "z/y/x"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "run").write_text("#!/bin/sh")
    (top / "run").chmod(0o700)
    (top / "link").symlink_to("a/b.c")
    (top / "empty").mkdir()
    return top


def test_the_tree_is_the_one_git_makes(plain: Path, tmp_path: Path) -> None:
    (plain / ".gitignore").write_text("*.o\n/build/\n")
    (plain / "a/.gitignore").write_text("!keep.o\nsecret\n")
    for name in ("x.o", "build/out", "a/keep.o", "a/y.o", "a/secret", "z/build/kept"):
        (plain / name).parent.mkdir(exist_ok=True)
        (plain / name).write_text("x")
    assert snapshot(plain, tmp_path / "s") == git_tree_of(plain, tmp_path)


def test_a_snapshot_can_be_checked_out(plain: Path, tmp_path: Path) -> None:
    tree = snapshot(plain, tmp_path / "s")
    GitStore(tmp_path / "s").checkout(tree, tmp_path / "out", 0)
    assert (tmp_path / "out/a/b.c").read_text() == "a/b.c"
    assert snapshot(tmp_path / "out", tmp_path / "s2") == tree


def test_an_empty_directory_is_the_empty_tree(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    assert snapshot(tmp_path / "e", tmp_path / "s") == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


@pytest.mark.parametrize("change", ["content", "mode", "new", "removed", "link", "same size and time"])
def test_every_change_is_noticed(plain: Path, tmp_path: Path, change: str) -> None:
    store = tmp_path / "s"
    before = snapshot(plain, store)
    if change == "content":
        (plain / "a.c").write_text("changed")
    elif change == "mode":
        (plain / "a.c").chmod(0o755)
    elif change == "new":
        (plain / "new").write_text("x")
    elif change == "removed":
        (plain / "a0").unlink()
    elif change == "link":
        (plain / "link").unlink()
        (plain / "link").symlink_to("a.c")
    else:
        info = (plain / "a.c").stat()
        (plain / "a.c").write_text("X.c")
        os.utime(plain / "a.c", ns=(info.st_atime_ns, info.st_mtime_ns))
    after = snapshot(plain, store)
    assert after != before
    assert after == git_tree_of(plain, tmp_path)


def test_an_unchanged_file_is_not_read_again(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_NS", 0)
    tree = snapshot(plain, tmp_path / "s")
    reads: list[bytes] = []
    real = module._Scan._read

    def counting(scan: module._Scan, path: bytes, rel: bytes) -> tuple[os.stat_result, bytes]:
        reads.append(rel)
        return real(scan, path, rel)

    monkeypatch.setattr(module._Scan, "_read", counting)
    assert snapshot(plain, tmp_path / "s") == tree
    assert reads == []
    (plain / "a.c").write_text("other")
    snapshot(plain, tmp_path / "s")
    assert reads == [b"a.c"]


def test_nested_repositories_are_content_without_their_git_directories(tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    make_repository(workspace / "src/one")
    make_repository(workspace / "src/two", {"two.c": "2"})
    tree = snapshot(workspace, tmp_path / "s")
    assert paths(tmp_path / "s", tree) == ["src/one/README", "src/two/two.c"]


def test_a_clean_work_tree_has_the_tree_of_its_commit(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "r", {"a": "1", ".gitignore": "*.gen\ntracked\n", "d/b": "2"})
    (repo / "tracked").mkdir()
    (repo / "tracked/in-spite.gen").write_text("x")
    git("add", "-f", "tracked/in-spite.gen", cwd=repo)
    commit(repo, {})
    (repo / "junk.gen").write_text("ignored")
    assert snapshot(repo, tmp_path / "s") == git("rev-parse", "HEAD^{tree}", cwd=repo)
    (repo / "a").write_text("dirty")
    assert snapshot(repo, tmp_path / "s") != git("rev-parse", "HEAD^{tree}", cwd=repo)
    assert git("status", "--porcelain", cwd=repo) == "M a"


def test_special_files_are_left_out_and_strange_names_kept(plain: Path, tmp_path: Path) -> None:
    os.mkfifo(plain / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(plain / "sock"))
    (plain / os.fsdecode(b"caf\xe9")).write_text("x")
    (plain / ".gitignore").write_text("nothing\n")
    found = paths(tmp_path / "s", snapshot(plain, tmp_path / "s"))
    assert os.fsdecode(b"caf\xe9") in found
    assert not {"pipe", "sock", "empty"} & set(found)


def test_a_directory_that_does_not_hold_still_is_reported(plain: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    ready = threading.Event()

    def disturb() -> None:
        n = 0
        while not stop.is_set():
            (plain / f"t{n % 50}").write_text("x")
            (plain / f"t{(n + 25) % 50}").unlink(missing_ok=True)
            n += 1
            if n == 100:
                ready.set()

    for number in range(300):
        (plain / f"f{number}").write_text("x" * number)
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        ready.wait(20)
        with pytest.raises(Refused, match="changes while it is read"):
            snapshot(plain, tmp_path / "s")
    finally:
        stop.set()
        thread.join()
    assert snapshot(plain, tmp_path / "s") == git_tree_of(plain, tmp_path)


def test_a_file_that_changes_once_is_read_again(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = module._Store.write, []

    def disturbing(store: module._Store, kind: object, data: bytes) -> bytes:
        if data == b"a.c" and not done:
            done.append(1)
            (plain / "a.c").write_text("newer content")
        return real(store, kind, data)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Store, "write", disturbing)
    tree = snapshot(plain, tmp_path / "s")
    assert done
    assert tree == git_tree_of(plain, tmp_path)


def test_a_store_that_a_power_loss_caught_writing_is_made_anew(plain: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    tree = snapshot(plain, store)
    id = GitStore(store).listing(tree)[0].id
    damaged = store / "objects" / id[:2] / id[2:]
    damaged.chmod(0o600)
    damaged.write_bytes(b"")
    (store / "buildd-writing").write_text("another boot")
    assert snapshot(plain, store) == tree
    assert len(GitStore(store).read_blob(id, 100)) > 0


def test_what_a_killed_snapshot_left_is_swept_away_and_the_next_one_is_right(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLE_NS", 0)
    store = tmp_path / "s"
    tree = snapshot(plain, store)
    (plain / "fresh").write_text("x")
    killed_before("os.rename", lambda: snapshot(plain, store))
    assert (store / "buildd-stat.tmp").exists()
    (store / "objects/tmp_object_git2_Ab3dE9").write_text("half")
    assert sweep(store) == 2
    assert not list(store.rglob("*tmp*"))
    assert snapshot(plain, store) != tree


def test_a_damaged_stat_cache_is_ignored(plain: Path, tmp_path: Path) -> None:
    tree = snapshot(plain, tmp_path / "s")
    (tmp_path / "s/buildd-stat").write_bytes(b"\xff garbage")
    assert snapshot(plain, tmp_path / "s") == tree


def test_large_files_do_not_pass_through_memory_at_once(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    (plain / "large").write_bytes(os.urandom(5000))
    assert snapshot(plain, tmp_path / "s") == git_tree_of(plain, tmp_path)


def test_what_cannot_be_a_source_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        snapshot(tmp_path / "nope", tmp_path / "s")
    with pytest.raises(InvalidInput):
        snapshot(plain / "a.c", tmp_path / "s")
    with pytest.raises(InvalidInput, match="inside"):
        snapshot(plain, plain / "store")
