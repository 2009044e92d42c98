"""Reading and checking out git trees, nasty ones included."""

from __future__ import annotations

import gc
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path

import pygit2
import pytest
from hypothesis import given, settings, strategies as st
from repos_servers import commit, git, make_repository

from buildd.errors import InvalidInput, NotFound
from buildd.repos.trees import Entry, GitStore, crc32, list_branches


def raw_tree(repository: Path, *entries: tuple[int, bytes, str]) -> str:
    """Write a tree object that git itself would refuse to make."""
    data = b"".join(b"%o %s\0%s" % (mode, name, bytes.fromhex(id)) for mode, name, id in entries)
    return str(pygit2.Repository(str(repository)).odb.write(pygit2.enums.ObjectType.TREE, data))


def blob(repository: Path, data: bytes) -> str:
    return git("hash-object", "-w", "--stdin", cwd=repository, stdin=data)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = make_repository(tmp_path / "repo", {"README": "hi\n", "lib/a.c": "int a;\n", "lib/x/Makefile": "all:\n"})
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    (path / "link").symlink_to("lib/a.c")
    commit(path, {"Makefile": "top:\n"})
    return path


def test_a_revision_is_a_branch_a_tag_an_id_or_head(repo: Path) -> None:
    first, last = git("rev-parse", "HEAD~1", cwd=repo), git("rev-parse", "HEAD", cwd=repo)
    git("branch", "topic/one", first, cwd=repo)
    git("tag", "-a", "-m", "x", "v1.0", first, cwd=repo)
    git("tag", "light", first, cwd=repo)
    store = GitStore(repo)
    assert store.resolve() == store.resolve("main") == store.resolve("refs/heads/main") == last
    for name in ("topic/one", "v1.0", "light", first, first[:8], first.upper()):
        assert store.resolve(name) == first
    assert store.commit_time(last) == 1_700_000_000


def test_a_raw_listing_is_the_listing_in_bytes(repo: Path) -> None:
    store = GitStore(repo)
    commit_id = store.resolve()
    listing = store.listing(store.subtree(commit_id))
    assert sorted(listing) == [
        Entry(os.fsdecode(path), mode, id.hex()) for path, mode, id in store.raw_listing(commit_id)
    ]
    assert {mode for _, mode, _ in store.raw_listing(commit_id)} == {0o100644, 0o100755, 0o120000}


def test_many_blobs_are_read_up_to_a_limit(repo: Path) -> None:
    store = GitStore(repo)
    ids = {entry.path: entry.id for entry in store.raw_listing(store.resolve())}
    with store.blobs() as read:
        assert read(ids[b"README"], 3) == (3, b"hi\n")
        assert read(ids[b"README"], 2) == (3, None)
        for id in (bytes(20), bytes.fromhex(store.resolve())):
            with pytest.raises(NotFound):
                read(id, 100)


def test_an_unknown_revision_names_near_matches(repo: Path) -> None:
    git("tag", "v1.0.1", cwd=repo)
    with pytest.raises(NotFound) as caught:
        GitStore(repo).resolve("v1.0")
    assert "v1.0.1" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        GitStore(repo).resolve("zzzzzzz")
    assert "main" in caught.value.hint


@pytest.mark.parametrize("rev", ["", "-x", "a\nb", "x" * 2000, "main@{yesterday}", "HEAD~1", "../HEAD", "a..b"])
def test_only_plain_names_are_revisions(repo: Path, rev: str) -> None:
    with pytest.raises((InvalidInput, NotFound)):
        GitStore(repo).resolve(rev)


def test_a_tag_that_leads_to_no_commit_says_so(repo: Path) -> None:
    git("tag", "tree-tag", "HEAD^{tree}", cwd=repo)
    with pytest.raises(InvalidInput, match="tree-tag"):
        GitStore(repo).resolve("tree-tag")


def test_an_empty_repository_and_an_unborn_head_are_told_apart(repo: Path, tmp_path: Path) -> None:
    git("init", "-q", "--bare", tmp_path / "empty.git")
    with pytest.raises(NotFound, match="no commits"):
        GitStore(tmp_path / "empty.git").resolve()
    git("symbolic-ref", "HEAD", "refs/heads/gone", cwd=repo)
    with pytest.raises(NotFound, match="gone") as caught:
        GitStore(repo).resolve()
    assert "main" in caught.value.hint


def test_what_is_no_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a git repository"):
        GitStore(tmp_path)
    (tmp_path / ".git").mkdir()
    with pytest.raises(NotFound, match="cannot open"):
        GitStore(tmp_path)


def test_a_linked_work_tree_is_opened(repo: Path, tmp_path: Path) -> None:
    git("worktree", "add", "-q", "-b", "side", tmp_path / "side", cwd=repo)
    commit(tmp_path / "side", {"new": "x"})
    assert GitStore(tmp_path / "side").resolve() == git("rev-parse", "side", cwd=repo)


def test_a_repository_of_another_owner_is_read(repo: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    for folder, _, names in os.walk(repo):
        for name in [folder, *(os.path.join(folder, n) for n in names)]:
            os.chown(name, 12345, 12345, follow_symlinks=False)
    assert len(GitStore(repo).resolve()) == 40


def test_a_branch_pushed_later_is_seen_by_an_open_store(repo: Path) -> None:
    store = GitStore(repo)
    store.resolve()
    new = commit(repo, {"later": "x"})
    git("gc", "-q", cwd=repo)
    assert store.resolve() == new
    assert "later" in [entry.path for entry in store.listing(store.subtree(new))]


def test_branches_are_listed_with_the_default_one(repo: Path) -> None:
    git("branch", "b2", cwd=repo)
    assert [(b.name, b.is_head) for b in list_branches(repo)] == [("b2", False), ("main", True)]
    assert list_branches(repo / "lib") == []


def test_subtree_ids_are_those_of_git(repo: Path) -> None:
    store, head = GitStore(repo), git("rev-parse", "HEAD", cwd=repo)
    for path in ("", "lib", "lib/x", "./lib//x/"):
        assert store.subtree(head, path) == git("rev-parse", f"HEAD:{path.strip('./').replace('//', '/')}", cwd=repo)
    for path in ("nope", "README", "lib/a.c/x"):
        with pytest.raises(NotFound, match="commit"):
            store.subtree(head, path)
    for path in ("../x", "lib/../..", "/lib"):
        with pytest.raises(InvalidInput):
            store.subtree(head, path)


def test_files_are_found_by_name_and_read_with_a_limit(repo: Path) -> None:
    store = GitStore(repo)
    head = store.resolve()
    found = dict(store.find_files(store.subtree(head), "Makefile"))
    assert sorted(found) == ["Makefile", "lib/x/Makefile"]
    assert store.read_blob(found["Makefile"], 100) == b"top:\n"
    assert store.find_blob(head, "lib/x/Makefile").id == found["lib/x/Makefile"]
    with pytest.raises(InvalidInput, match="5 bytes"):
        store.read_blob(found["Makefile"], 4)
    with pytest.raises(NotFound):
        store.read_blob("0" * 40, 4)
    with pytest.raises(NotFound):
        store.read_blob(store.subtree(head), 400)
    with pytest.raises(InvalidInput):
        store.read_blob("nonsense", 4)


def test_the_listing_is_that_of_git(repo: Path) -> None:
    store = GitStore(repo)
    expected = [
        Entry(path, int(mode, 8), id)
        for line in git("ls-tree", "-r", "HEAD", cwd=repo).splitlines()
        for (mode, _, id), path in [(line.split("\t")[0].split(), line.split("\t")[1])]
    ]
    assert store.listing(store.subtree(store.resolve())) == expected


# --- what differs between two trees -----------------------------------------------------------------------

DIRECTORY, FILE, EXECUTABLE, LINK, SUBMODULE = 0o040000, 0o100644, 0o100755, 0o120000, 0o160000

Leaf = tuple[int, bytes]
"""Mode, and content or, of a submodule, what its id is made from."""
Content = Mapping[bytes, "Leaf | Content"]


class Odb:
    """Trees of any shape, written as raw objects."""

    def __init__(self, path: Path) -> None:
        pygit2.init_repository(os.fspath(path), bare=True)
        self._odb = pygit2.Repository(os.fspath(path)).odb
        self.store = GitStore(path)

    def tree(self, content: Content, directory_mode: bytes = b"40000") -> str:
        entries = []
        for name, entry in content.items():
            if isinstance(entry, Mapping):
                mode, id, order = directory_mode, bytes.fromhex(self.tree(entry, directory_mode)), name + b"/"
            elif entry[0] == SUBMODULE:
                mode, id, order = b"160000", zlib.crc32(entry[1]).to_bytes(20, "big"), name
            else:
                mode, order = b"%o" % entry[0], name
                id = bytes(self._odb.write(pygit2.enums.ObjectType.BLOB, entry[1]).raw)
            entries.append((order, b"%s %s\0%s" % (mode, name, id)))
        return self.raw(b"".join(data for _, data in sorted(entries)))

    def raw(self, data: bytes) -> str:
        return str(self._odb.write(pygit2.enums.ObjectType.TREE, data))

    def differing(self, old: str, new: str) -> dict[str, Entry | None]:
        """What two full listings say."""
        before, after = ({e.path: e for e in self.store.listing(tree)} for tree in (old, new))
        gone: dict[str, Entry | None] = dict.fromkeys(before.keys() - after.keys())
        return gone | {path: entry for path, entry in after.items() if before.get(path) != entry}


@pytest.fixture(scope="module")
def odb(tmp_path_factory: pytest.TempPathFactory) -> Odb:
    return Odb(tmp_path_factory.mktemp("odb") / "raw.git")


tree_names = st.sampled_from([b"a", b"b", b"c.d", b"c", b"\xff", b" 4\n0"])
leaves = st.tuples(
    st.sampled_from([FILE, EXECUTABLE, LINK, SUBMODULE, 0o100664]), st.sampled_from([b"", b"x", b"40000 d\0"])
)
contents = st.dictionaries(
    tree_names,
    st.recursive(leaves, lambda inner: st.dictionaries(tree_names, inner, max_size=4), max_leaves=12),
    max_size=5,
)


@given(contents, contents)
@settings(deadline=None)
def test_the_changed_files_are_those_that_differ_in_the_listings(odb: Odb, old: Content, new: Content) -> None:
    before, after = odb.tree(old), odb.tree(new)
    assert odb.store.changed_files(before, after) == odb.differing(before, after)
    assert odb.store.changed_files(after, before) == odb.differing(after, before)
    assert odb.store.changed_files(before, before) == {}


@given(contents, contents)
@settings(deadline=None, max_examples=30)
def test_modes_as_only_other_tools_write_them_make_no_difference(odb: Odb, old: Content, new: Content) -> None:
    for old_mode, new_mode in ((b"040000", b"040000"), (b"40000", b"040000"), (b"040755", b"40000")):
        before, after = odb.tree(old, old_mode), odb.tree(new, new_mode)
        assert odb.store.changed_files(before, after) == odb.differing(before, after)


@pytest.mark.parametrize("mode", [b"0100644", b"100664", b"100700", b"120777", b"160001", b"0", b"777"])
def test_the_mode_of_a_changed_file_is_that_of_the_listing(odb: Odb, mode: bytes) -> None:
    tree = odb.raw(mode + b" name\0" + b"\1" * 20)
    empty = odb.raw(b"")
    assert odb.store.changed_files(empty, tree) == {entry.path: entry for entry in odb.store.listing(tree)}
    assert odb.store.changed_files(tree, empty) == {"name": None}


def test_equal_directories_are_not_entered(odb: Odb, monkeypatch: pytest.MonkeyPatch) -> None:
    same: dict[bytes, Leaf] = {b"%d" % number: (FILE, b"x") for number in range(50)}
    old = odb.tree({b"changing": {b"f": (FILE, b"1"), b"same": same}, b"same": {b"deep": same}})
    new = odb.tree({b"changing": {b"f": (FILE, b"2"), b"same": same}, b"same": {b"deep": same}})
    monkeypatch.setattr("buildd.repos.limits.MAX_ENTRIES", 10)
    assert odb.store.changed_files(old, new).keys() == {"changing/f"}


def test_trees_that_are_not_there_cannot_be_compared(odb: Odb) -> None:
    tree = odb.tree({b"a": (FILE, b"x")})
    (blob_id,) = (entry.id for entry in odb.store.listing(tree))
    for wrong in ("0" * 40, blob_id):
        with pytest.raises(NotFound):
            odb.store.changed_files(tree, wrong)
        with pytest.raises(NotFound):
            odb.store.changed_files(wrong, tree)
    with pytest.raises(InvalidInput):
        odb.store.changed_files(tree, "nonsense")


def bomb(odb: Odb, leaf: Content, *, depth: int = 12) -> str:
    tree = odb.tree(leaf)
    for _ in range(depth):
        tree = odb.raw(b"".join(b"40000 %d\0%s" % (n, bytes.fromhex(tree)) for n in range(10)))
    return tree


@pytest.mark.parametrize("leaf", [{b"f": (FILE, b"x")}, {}], ids=["files", "directories only"])
def test_the_comparison_with_a_tree_that_unfolds_without_end_is_refused(
    odb: Odb, leaf: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildd.repos.limits.MAX_ENTRIES", 5000)
    wide = odb.raw(b"".join(b"40000 %04d\0%s" % (n, bytes.fromhex(bomb(odb, leaf, depth=3))) for n in range(2000)))
    deep, other = bomb(odb, leaf), bomb(odb, {b"g": (FILE, b"y")})
    small = odb.tree({b"0": {b"0": {b"f": (FILE, b"z")}}})
    for one, two in ((small, deep), (small, wide), (deep, other)):
        for old, new in ((one, two), (two, one)):
            with pytest.raises(InvalidInput, match="entries"):
                odb.store.changed_files(old, new)


def test_the_comparison_with_a_bottomless_tree_is_refused(odb: Odb) -> None:
    trees = []
    for text in (b"x", b"y"):
        tree = odb.tree({b"f": (FILE, text)})
        for _ in range(140):
            tree = odb.raw(b"40000 d\0" + bytes.fromhex(tree))
        trees.append(tree)
    for old, new in ((odb.tree({}), trees[0]), tuple(trees)):
        with pytest.raises(InvalidInput, match="nested"):
            odb.store.changed_files(old, new)


# --- fingerprints and checkouts ---------------------------------------------------------------------------


def test_the_crc_depends_on_path_mode_and_content_but_not_on_order() -> None:
    a, b = Entry("a", 0o100644, "1" * 40), Entry("b", 0o100755, "2" * 40)
    assert crc32([a, b]) == crc32([b, a])
    assert crc32([a]) == zlib.crc32(b"100644 " + b"1" * 40 + b" a\0")
    variants = [[a, b], [a], [a._replace(path="c"), b], [a._replace(mode=0o100755), b], [a._replace(id="3" * 40), b]]
    assert len({crc32(v) for v in variants}) == len(variants)
    assert crc32([]) == 0


def test_a_checkout_has_content_modes_links_and_one_time(repo: Path, tmp_path: Path) -> None:
    git("update-index", "--add", "--cacheinfo", "160000," + "1" * 40 + ",sub", cwd=repo)
    git("commit", "-q", "-m", "sub", cwd=repo)
    store, dest = GitStore(repo), tmp_path / "out"
    old = os.umask(0o077)
    try:
        size = store.checkout(store.subtree(store.resolve()), dest, 1234567890)
    finally:
        os.umask(old)
    assert (dest / "lib/a.c").read_text() == "int a;\n"
    assert size == sum(len(p.read_bytes()) for p in dest.rglob("*") if p.is_file() and not p.is_symlink())
    assert [(dest / n).stat().st_mode & 0o777 for n in ("README", "run.sh")] == [0o644, 0o755]
    assert os.readlink(dest / "link") == "lib/a.c"
    assert list((dest / "sub").iterdir()) == []
    assert {p.lstat().st_mtime_ns for p in [dest, *dest.rglob("*")]} == {1234567890_000_000_000}


@pytest.mark.parametrize("name", [b"..", b".", b".git", b".GIT", b".git.", b"git~1", b"a/b", b""])
def test_a_name_that_could_leave_the_tree_is_never_written(repo: Path, tmp_path: Path, name: bytes) -> None:
    store = GitStore(repo)
    tree = raw_tree(repo, (0o100644, name, blob(repo, b"evil")))
    (tmp_path / "out").mkdir()
    with pytest.raises((InvalidInput, NotFound)):
        store.checkout(tree, tmp_path / "out/deep", 0)
    assert not list((tmp_path / "out").glob("deep/*"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) in ([], ["deep"])


@pytest.mark.parametrize(
    "target", [b"/etc/passwd", b"..", b"../x", b"sub/../../x", b"", b"dir/inner/../x", b"up/../x", b"x" * 5000]
)
def test_a_link_out_of_the_tree_is_an_error_that_names_it(repo: Path, tmp_path: Path, target: bytes) -> None:
    # `dir/inner` is a link to the top: behind it, `..` is outside although the text stays inside.
    inner = raw_tree(repo, (0o120000, b"inner", blob(repo, b"..")))
    tree = raw_tree(
        repo,
        (0o040000, b"dir", inner),
        (0o120000, b"escape", blob(repo, target)),
        (0o120000, b"up", blob(repo, b"dir")),
    )
    with pytest.raises(InvalidInput, match="escape"):
        GitStore(repo).checkout(tree, tmp_path / "out", 0)


@pytest.mark.parametrize("target", [b"dir", b"dir/../file", b"./dir/./x", b"dangling", b"dir/inner"])
def test_a_link_inside_the_tree_is_kept(repo: Path, tmp_path: Path, target: bytes) -> None:
    inner = raw_tree(repo, (0o120000, b"inner", blob(repo, b"..")))
    tree = raw_tree(repo, (0o040000, b"dir", inner), (0o120000, b"link", blob(repo, target)))
    GitStore(repo).checkout(tree, tmp_path / "out", 0)
    assert os.readlink(os.fsencode(tmp_path / "out/link")) == target


def test_nothing_is_written_through_a_link(repo: Path, tmp_path: Path) -> None:
    tree = raw_tree(
        repo,
        (0o120000, b"a", blob(repo, b"b")),
        (0o040000, b"a", raw_tree(repo, (0o100644, b"f", blob(repo, b"x")))),
    )
    with pytest.raises(OSError, match="exists"):
        GitStore(repo).checkout(tree, tmp_path / "out", 0)


def test_names_that_are_not_utf8_keep_their_bytes(repo: Path, tmp_path: Path) -> None:
    names = [b"caf\xe9", b"new\nline", "ünï".encode(), b"-rf", b" ", b"a\\b", b"\x01"]
    tree = raw_tree(repo, *((0o100644, name, blob(repo, name)) for name in sorted(names)))
    store = GitStore(repo)
    assert sorted(os.fsencode(e.path) for e in store.listing(tree)) == sorted(names)
    store.checkout(tree, tmp_path / "out", 0)
    assert all((tmp_path / "out" / os.fsdecode(name)).read_bytes() == name for name in names)
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(names)


def test_a_bottomless_tree_is_refused(repo: Path, tmp_path: Path) -> None:
    tree = raw_tree(repo, (0o100644, b"f", blob(repo, b"x")))
    for _ in range(140):
        tree = raw_tree(repo, (0o040000, b"d", tree))
    with pytest.raises(InvalidInput, match="nested"):
        GitStore(repo).listing(tree)
    with pytest.raises(InvalidInput, match="nested"):
        GitStore(repo).checkout(tree, tmp_path / "out", 0)


def test_a_tree_that_unfolds_without_end_is_refused(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = raw_tree(repo, (0o100644, b"f", blob(repo, b"x")))
    for _ in range(12):
        tree = raw_tree(repo, *((0o040000, b"%d" % n, tree) for n in range(10)))
    monkeypatch.setattr("buildd.repos.limits.MAX_ENTRIES", 5000)
    with pytest.raises(InvalidInput, match="more than 5000"):
        GitStore(repo).listing(tree)
    with pytest.raises(InvalidInput, match="more than 5000"):
        GitStore(repo).checkout(tree, tmp_path / "out", 0)


def test_many_threads_read_one_store(repo: Path) -> None:
    store = GitStore(repo)
    tree = store.subtree(store.resolve())
    expected, wrong = store.listing(tree), []

    def read() -> None:
        for _ in range(30):
            if store.listing(tree) != expected or store.read_blob(expected[0].id, 100) == b"":
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    store.close()


def test_a_store_that_is_closed_has_none_of_the_repositorys_files_open(repo: Path) -> None:
    git("repack", "-adq", cwd=repo)

    def opened() -> list[str]:
        links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]
        return [link for link in links if link.startswith(str(repo))]

    def _is_open(name: str) -> bool:
        return os.path.lexists(f"/proc/self/fd/{name}")

    gc.disable()
    try:
        with GitStore(repo) as store:
            assert store.listing(store.subtree(store.resolve(), ""))
            assert opened()
        assert opened() == []
    finally:
        gc.enable()
