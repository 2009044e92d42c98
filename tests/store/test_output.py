"""Outputs: what they are, how they come into the store, and how they go away."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from buildd.errors import BuildFailure
from buildd.publish.tarball import write_tar_zst
from buildd.store import tree as tree_module
from buildd.store.listing import OutputEntry, OutputListing, output_id, scan
from buildd.store.output import compose_prefix, publish
from buildd.store.tree import remove_tree

MTIME = 315_532_800


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Without root's right to read everything, if the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    for path in [tmp_path, *list(tmp_path.parents)[:3]]:
        path.chmod(0o755)
    os.chown(tmp_path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


# --- scan and output_id ---


def test_a_listing_has_normal_modes_sizes_and_hashes_sorted_by_path(tmp_path: Path) -> None:
    root = make(tmp_path / "out", {"b/x": "hello", "a": "", "b-c": b"\0" * 200_000})
    (root / "b/x").chmod(0o4711)
    (root / "a").chmod(0o666)
    (root / "b/l").symlink_to("x")
    listing = scan(root)
    assert listing.entries == (
        OutputEntry(path="a", kind="file", mode=0o644, sha256=hashlib.sha256().hexdigest()),
        OutputEntry(path="b", kind="dir", mode=0o755),
        OutputEntry(
            path="b-c",
            kind="file",
            mode=0o644,
            size=200_000,
            sha256=hashlib.sha256(bytes(200_000)).hexdigest(),
        ),
        OutputEntry(path="b/l", kind="link", mode=0o777, target="x"),
        OutputEntry(path="b/x", kind="file", mode=0o755, size=5, sha256=hashlib.sha256(b"hello").hexdigest()),
    )
    assert listing.notes == ("b/x: the set-user-id and set-group-id bits are dropped",)
    assert listing.bytes == 200_005


def test_an_empty_output_has_an_id(tmp_path: Path) -> None:
    listing = scan(tmp_path)
    assert listing == OutputListing()
    assert output_id(listing) == hashlib.sha256(b"buildd output 1\0").hexdigest()


def test_links_are_kept_and_those_that_lead_out_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "out", {"usr/bin/x": ""})
    (root / "usr/bin/in").symlink_to("/usr/bin/x")
    (root / "usr/bin/up").symlink_to("../../usr/bin/x")
    (root / "usr/bin/out").symlink_to("../../../etc")
    (root / "usr/bin/python").symlink_to("/usr/bin/python3")
    (root / "dir").symlink_to("/")
    listing = scan(root)
    assert listing.notes == (
        "dir: the link leads out of the output, to /",
        "usr/bin/out: the link leads out of the output, to ../../../etc",
        "usr/bin/python: the link leads out of the output, to /usr/bin/python3",
    )
    assert len(listing.entries) == 8


def test_files_and_directories_without_any_mode_are_read(tmp_path: Path, unprivileged: None) -> None:
    root = make(tmp_path / "out", {"d/e/f": "x"})
    for name in ("d/e/f", "d/e", "d"):
        (root / name).chmod(0)
    listing = scan(root)
    assert [entry.path for entry in listing.entries] == ["d", "d/e", "d/e/f"]
    assert publish(root, tmp_path / "published", mtime=MTIME)
    assert output_id(scan(tmp_path / "published")) == output_id(listing)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("fifo", "d/x is a fifo"), ("socket", "d/x is a socket"), ("bytes", r"not UTF-8: d/\\xff"), ("deep", "deep")],
)
def test_what_an_output_cannot_hold_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    root = make(tmp_path / "o", {"d/f": ""})
    if kind == "fifo":
        os.mkfifo(root / "d/x")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(root / "d/x"))
    elif kind == "bytes":
        Path(os.fsdecode(os.fsencode(root / "d") + b"/\xff")).touch()
    else:
        (root / ("d/" * 201)).mkdir(parents=True)
    with pytest.raises(BuildFailure, match=message) as caught:
        scan(root)
    assert caught.value.reason == "phase_failed"


def test_a_scan_can_be_called_off(tmp_path: Path) -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path, check)


paths = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "é", "a b", "Z", "a\n"]), min_size=1, max_size=3).map(
        lambda p: "/".join([*p, "f"])
    ),
    st.binary(max_size=8),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(files=paths, seed=st.integers())
def test_the_output_id_does_not_depend_on_order_times_or_modes_beyond_execution(
    files: dict[str, bytes], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("ids")
    one = make(base / "one", dict(files))
    names = list(files)
    random.Random(seed).shuffle(names)
    two = make(base / "two", {name: files[name] for name in names})
    for path in two.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (seed % 10**9, seed % 10**9))
    listing = scan(one)
    assert output_id(listing) == output_id(scan(two))
    assert output_id(OutputListing(entries=listing.entries[::-1])) == output_id(listing)
    if files:
        (two / names[0]).chmod(0o700)
        assert output_id(listing) != output_id(scan(two))


def test_different_outputs_have_different_ids(tmp_path: Path) -> None:
    def entry(path: str, target: str = "", sha256: str = "") -> OutputEntry:
        return OutputEntry(path=path, kind="link", mode=0o777, target=target, sha256=sha256)

    listings = [
        (),
        (entry("a", target="b"),),
        (entry("ab", target=""),),
        (entry("a", sha256="b"),),
        (entry("a", target="b\0\nlink"),),
        (entry("a", target="b"), entry("c", target="d")),
    ]
    assert len({output_id(OutputListing(entries=entries)) for entries in listings}) == len(listings)


# --- publish ---


def status_of(root: Path) -> dict[str, tuple[int, float]]:
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.lstat().st_mode), path.lstat().st_mtime)
        for path in [root, *root.rglob("*")]
    }


def test_a_published_tree_is_read_only_with_one_time(tmp_path: Path) -> None:
    root = make(tmp_path / "out", {"bin/x": "#!", "share/doc": "words"})
    (root / "bin/x").chmod(0o6777)
    (root / "bin/l").symlink_to("x")
    before = output_id(scan(root))
    assert publish(root, tmp_path / "tree", mtime=MTIME)
    assert not root.exists()
    assert output_id(scan(tmp_path / "tree")) == before
    assert status_of(tmp_path / "tree") == {
        ".": (0o755, MTIME),
        "bin": (0o755, MTIME),
        "bin/l": (0o777, MTIME),
        "bin/x": (0o555, MTIME),
        "share": (0o755, MTIME),
        "share/doc": (0o444, MTIME),
    }


def test_an_empty_tree_is_published(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert publish(tmp_path / "out", tmp_path / "tree", mtime=MTIME)
    assert list(tmp_path.iterdir()) == [tmp_path / "tree"]


def test_what_is_published_already_stays_and_so_does_the_tree(tmp_path: Path) -> None:
    root = make(tmp_path / "out", {"x": "new"})
    make(tmp_path / "tree", {"x": "old"})
    assert not publish(root, tmp_path / "tree", mtime=MTIME)
    assert (tmp_path / "tree/x").read_text() == "old"
    assert (root / "x").read_text() == "new"


def test_a_file_with_a_name_outside_is_copied_and_one_with_two_inside_is_not(tmp_path: Path) -> None:
    root = make(tmp_path / "out", {"a": "shared", "d/c": "inside"})
    os.link(root / "a", tmp_path / "outside")
    os.link(root / "d/c", root / "e")
    (tmp_path / "outside").chmod(0o640)
    assert publish(root, tmp_path / "tree", mtime=MTIME)
    (tmp_path / "outside").write_text("changed")
    assert (tmp_path / "tree/a").read_text() == "shared"
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o640
    assert (tmp_path / "tree/d/c").samefile(tmp_path / "tree/e")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than tmp_path."""
    base = Path("/dev/shm")
    if not os.access(base, os.W_OK) or base.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system to write to")
    path = base / f"buildd-test-{os.getpid()}-{random.getrandbits(32):08x}"
    path.mkdir()
    yield path
    remove_tree(path)


def test_a_tree_on_another_file_system_is_copied(tmp_path: Path, elsewhere: Path) -> None:
    root = make(elsewhere / "out", {"bin/x": "#!", "big": os.urandom(3_000_000)})
    (root / "bin/x").chmod(0o755)
    (root / "l").symlink_to("/nowhere")
    before = output_id(scan(root))
    assert publish(root, tmp_path / "tree", mtime=MTIME)
    assert not root.exists()
    assert output_id(scan(tmp_path / "tree")) == before
    assert {mtime for _, mtime in status_of(tmp_path / "tree").values()} == {MTIME}
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]

    compose_prefix([("p", tmp_path / "tree")], elsewhere / "prefix")
    assert output_id(scan(elsewhere / "prefix")) == before


def test_a_failed_publish_leaves_nothing_at_or_beside_the_destination(tmp_path: Path, elsewhere: Path) -> None:
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 7:  # while the second file is copied
            raise KeyboardInterrupt

    root = make(elsewhere / "out", {"a": "x", "b": "x", "c": "x", "d": "x"})
    (tmp_path / "store").mkdir()
    with pytest.raises(KeyboardInterrupt):
        publish(root, tmp_path / "store/tree", mtime=MTIME, check=check)
    assert list((tmp_path / "store").iterdir()) == []


# --- compose_prefix ---


def test_a_prefix_is_the_union_of_outputs_by_hard_links(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"bin/a": "a", "share/x/1": "1"})
    two = make(tmp_path / "two", {"bin/b": "b", "share/x/2": "2"})
    (two / "bin/l").symlink_to("b")
    compose_prefix([("one", one), ("two", two), ("none", make(tmp_path / "e", {}))], tmp_path / "p", mtime=MTIME)
    found = sorted(str(path.relative_to(tmp_path / "p")) for path in (tmp_path / "p").rglob("*"))
    assert found == ["bin", "bin/a", "bin/b", "bin/l", "share", "share/x", "share/x/1", "share/x/2"]
    assert (tmp_path / "p/bin/a").samefile(one / "bin/a")
    assert os.readlink(tmp_path / "p/bin/l") == "b"
    times = status_of(tmp_path / "p")
    assert {times[name][1] for name in (".", "bin", "bin/l", "share", "share/x")} == {MTIME}


@pytest.mark.parametrize(("first", "second"), [("file", "file"), ("file", "dir"), ("dir", "link"), ("link", "dir")])
def test_a_path_of_two_packages_is_an_error_that_names_both(first: str, second: str, tmp_path: Path) -> None:
    outputs = [("zero", make(tmp_path / "zero", {"d/other": ""}))]
    for name, kind in (("one", first), ("two", second)):
        root = make(tmp_path / name, {"d/same/f": ""} if kind == "dir" else {"d/f" + name: ""})
        if kind == "file":
            (root / "d/same").write_text("equal")
        elif kind == "link":
            (root / "d/same").symlink_to("f")
        outputs.append((name, root))
    with pytest.raises(BuildFailure, match="the packages one and two both install d/same") as caught:
        compose_prefix(outputs, tmp_path / "p")
    assert caught.value.reason == "phase_failed"


# --- remove_tree ---


def test_removing_counts_entries_and_nothing_is_no_error(tmp_path: Path) -> None:
    root = make(tmp_path / "t", {"a/b/c": "", "d": ""})
    (root / "l").symlink_to(tmp_path)
    assert remove_tree(root) == 6
    assert remove_tree(root) == 0
    assert remove_tree(make(tmp_path, {"file": ""}) / "file") == 1


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    kept = make(tmp_path / "kept", {"x": ""})
    root = make(tmp_path / "t", {})
    (root / "l").symlink_to(kept)
    remove_tree(root)
    (tmp_path / "l").symlink_to(kept)
    assert remove_tree(tmp_path / "l") == 1
    assert (kept / "x").exists()


def test_modes_do_not_keep_a_tree(tmp_path: Path, unprivileged: None) -> None:
    root = make(tmp_path / "t", {"a/b/c": "", "a/r/x": ""})
    (root / "a/r/x").chmod(0)
    (root / "a/r").chmod(0o500)
    (root / "a/b").chmod(0)
    (root / "a").chmod(0)
    root.chmod(0)
    assert remove_tree(root) == 6
    assert not root.exists()


def test_immutable_and_append_only_files_and_directories_are_removed(tmp_path: Path) -> None:
    root = make(tmp_path / "t", {"a/fixed": "", "a/grows": "", "b/c/x": "", "locked/y": ""})
    sealed = {"+i": ["a/fixed", "b/c", "locked"], "+a": ["a/grows", "b"]}
    if shutil.which("chattr") is None:
        pytest.skip("chattr is not installed")
    (root / "locked").chmod(0)
    for flag, names in sealed.items():
        for name in names:
            done = subprocess.run(["chattr", flag, root / name], capture_output=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"flags cannot be set here: {done.stderr.decode().strip()}")
    assert remove_tree(root) == 9
    assert not root.exists()


def test_a_tree_deeper_than_any_path_can_say_is_removed(tmp_path: Path) -> None:
    top = handle = os.open(make(tmp_path / "t", {}), os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d" * 50, dir_fd=handle)
        inner = os.open("d" * 50, os.O_RDONLY, dir_fd=handle)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        if handle != top:
            os.close(handle)
        handle = inner
    os.close(handle)
    os.close(top)
    before = len(os.listdir("/proc/self/fd"))
    assert remove_tree(tmp_path / "t") == 801
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_removed_is_named_and_the_rest_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "t", {"a/stuck": "", "a/x": "", "b/x": ""})
    real = os.unlink

    def unlink(path: str | Path, *, dir_fd: int | None = None) -> None:
        if path == "stuck":
            raise PermissionError(1, "Operation not permitted")
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr("buildd.store.tree.os.unlink", unlink)
    with pytest.raises(OSError, match="cannot remove: Operation not permitted") as caught:
        remove_tree(root)
    assert caught.value.filename == str(root / "a/stuck")
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == ["a", "a/stuck"]


def test_entries_that_vanish_or_appear_meanwhile_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "t", {"a/x": "", "a/y": "", "gone/z": ""})
    real = os.unlink
    added = False

    def unlink(path: str | Path, *, dir_fd: int | None = None) -> None:
        nonlocal added
        real(path, dir_fd=dir_fd)
        if path == "x" and not added:
            added = True
            os.close(os.open("late", os.O_CREAT | os.O_WRONLY, dir_fd=dir_fd))
            if (root / "gone").exists():
                (root / "gone").rename(tmp_path / "moved")
            if (root / "a/y").exists():
                real(root / "a/y")

    monkeypatch.setattr("buildd.store.tree.os.unlink", unlink)
    remove_tree(root)
    assert added
    assert not root.exists()


nodes = st.recursive(
    st.sampled_from([b"file", b"link", b"fifo"]),
    lambda children: st.tuples(
        st.sampled_from([0, 0o500, 0o755]), st.dictionaries(st.sampled_from("abcde"), children, max_size=4)
    ),
    max_leaves=20,
)
Node = bytes | tuple[int, dict[str, "Node"]]


def grow(path: Path, node: Node) -> int:
    if isinstance(node, tuple):
        path.mkdir()
        count = 1 + sum(grow(path / name, child) for name, child in node[1].items())
        path.chmod(node[0])
        return count
    if node == b"file":
        path.touch(0)
    elif node == b"link":
        path.symlink_to("/")
    else:
        os.mkfifo(path)
    return 1


@settings(max_examples=40, deadline=None)
@given(node=nodes, levels=st.integers(2, 4))
def test_any_tree_is_removed_entirely_with_few_open_directories(
    node: Node, levels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("trees")
    count = grow(base / "t", node)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "_LEVELS", levels)
        assert remove_tree(base / "t") == count
    assert list(base.iterdir()) == []


# --- write_tar_zst ---


def _write(tree: Path, listing: OutputListing, target: Path, *, prefix: str, manifest: bytes | None = None) -> None:
    temporary = target.with_name("unfinished")
    write_tar_zst(tree, listing, target, prefix=prefix, mtime=MTIME, temporary=temporary, manifest=manifest)
    assert not temporary.exists()


def unpacked(path: Path) -> list[tarfile.TarInfo]:
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        with tarfile.open(mode="r|", fileobj=stream) as archive:
            return list(archive)


def test_a_tarball_holds_the_listing_and_the_manifest_and_is_the_same_each_time(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", {"bin/x": "#!", "é" * 90: "long", "big": bytes(range(256)) * 10_000})
    (tree / "bin/x").chmod(0o755)
    (tree / "bin/l").symlink_to("x")
    listing = scan(tree)
    _write(tree, listing, tmp_path / "1.tar.zst", prefix="p-1.0/", manifest=b"{}")
    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    _write(tree, listing, tmp_path / "2.tar.zst", prefix="p-1.0", manifest=b"{}")
    assert (tmp_path / "1.tar.zst").read_bytes() == (tmp_path / "2.tar.zst").read_bytes()
    members = unpacked(tmp_path / "1.tar.zst")
    assert [member.name for member in members] == [
        "p-1.0",
        "p-1.0/manifest.json",
        "p-1.0/big",
        "p-1.0/bin",
        "p-1.0/bin/l",
        "p-1.0/bin/x",
        "p-1.0/" + "é" * 90,
    ]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", MTIME)}
    assert [m.mode for m in members] == [0o755, 0o644, 0o644, 0o755, 0o777, 0o755, 0o644]


def test_a_tarball_is_what_tar_unpacks(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", {"a/b": "x"})
    _write(tree, scan(tree), tmp_path / "t.tar.zst", prefix="")
    (tmp_path / "to").mkdir()
    plain = tmp_path / "t.tar"
    with (tmp_path / "t.tar.zst").open("rb") as source, plain.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    subprocess.run(["tar", "xf", plain, "-C", tmp_path / "to"], check=True, timeout=30)
    assert output_id(scan(tmp_path / "to")) == output_id(scan(tree))


@pytest.mark.parametrize("content", ["short", "replaced", "original and more"])
def test_a_file_that_changed_since_the_listing_is_an_error(content: str, tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", {"f": "original"})
    listing = scan(tree)
    (tree / "f").write_text(content)
    (tmp_path / "t.tar.zst").write_text("older")
    with pytest.raises(BuildFailure, match="f changed between the stage phase"):
        _write(tree, listing, tmp_path / "t.tar.zst", prefix="p")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar.zst", "tree"]
    assert (tmp_path / "t.tar.zst").read_text() == "older"


def test_an_output_cannot_replace_its_own_manifest(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", {"manifest.json": "mine"})
    with pytest.raises(BuildFailure, match=r"the output holds a manifest\.json"):
        _write(tree, scan(tree), tmp_path / "t.tar.zst", prefix="p", manifest=b"{}")
    _write(tree, scan(tree), tmp_path / "t.tar.zst", prefix="p")
