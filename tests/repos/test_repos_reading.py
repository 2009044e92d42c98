"""Reading code at a revision: trees with counts, documents, and the text of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from repos_servers import git, make_repository

from buildd.errors import InvalidInput, NotFound, Refused
from buildd.protocol import CatParams, Documents, DocumentsParams, FileContent, Tree, TreeParams
from buildd.repos.documents import documents, kind_of
from buildd.repos.excerpt import excerpt
from buildd.repos.outline import outline
from buildd.repos.reading import View
from buildd.repos.titles import title_of
from buildd.repos.trees import GitStore


@contextmanager
def viewed(path: Path, revision: str = "", check: Callable[[], None] = lambda: None) -> Iterator[View]:
    with GitStore(path) as store:
        yield View(store, revision, check)


def tree_of(repo: Path, revision: str = "", **params: object) -> Tree:
    with viewed(repo, revision) as view:
        return outline(msgspec.convert({"repo": "x", **params}, TreeParams), view)


def docs_of(repo: Path, **params: object) -> Documents:
    with viewed(repo) as view:
        return documents(msgspec.convert({"repo": "x", **params}, DocumentsParams), view)


def cat(path: Path, name: str, **params: object) -> FileContent:
    with viewed(path) as view:
        return excerpt(msgspec.convert({"repo": "x", "path": name, **params}, CatParams), view)


def hashed(path: Path, kind: str, data: bytes) -> str:
    return git("hash-object", "-w", "-t", kind, "--literally", "--stdin", cwd=path, stdin=data)


def tree_object(*entries: tuple[bytes, bytes, str]) -> bytes:
    return b"".join(mode + b" " + name + b"\0" + bytes.fromhex(id) for mode, name, id in entries)


def commit_tree(path: Path, tree: str) -> None:
    """Make the branch `main` a commit of a tree, whatever git thinks of it."""
    text = f"tree {tree}\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n\nx\n"
    git("update-ref", "refs/heads/main", hashed(path, "commit", text.encode()), cwd=path)


def bare(path: Path) -> Path:
    git("init", "-q", "--bare", "-b", "main", path)
    return path


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "things"
    files = {
        "README.md": "# Things\n\nText.\n",
        "Makefile": "all:\n",
        "src/main.c": "int main;\n",
        "src/lib/a.c": "a\n",
        "src/lib/a.h": "h\n",
        "src/lib/deep/x.c": "x\n",
        "zoo/b.py": "b = 1\n",
    }
    make_repository(path, files)
    (path / "run").write_text("#!/bin/sh\n")
    (path / "run").chmod(0o755)
    (path / "zoo/link").symlink_to("../src/main.c")
    (path / "zoo/away").symlink_to("../../etc/passwd")
    git("add", "-A", cwd=path)
    git("update-index", "--add", "--cacheinfo", f"160000,{'ab' * 20},sub", cwd=path)
    git("commit", "-q", "-m", "more", cwd=path)
    git("tag", "v1", cwd=path)
    (path / "late.txt").write_text("late\n")
    git("add", "late.txt", cwd=path)
    git("commit", "-q", "-m", "late", cwd=path)
    return path


# --- trees --------------------------------------------------------------------------------------------------


def test_a_tree_lists_directories_first_and_what_is_in_them_right_after_them(things: Path) -> None:
    tree = tree_of(things, "v1")
    assert [(e.path, e.type) for e in tree.entries] == [
        ("src", "directory"),
        ("src/lib", "directory"),
        ("src/lib/deep", "directory"),
        ("src/lib/a.c", "file"),
        ("src/lib/a.h", "file"),
        ("src/main.c", "file"),
        ("zoo", "directory"),
        ("zoo/away", "link"),
        ("zoo/b.py", "file"),
        ("zoo/link", "link"),
        ("Makefile", "file"),
        ("README.md", "file"),
        ("run", "executable"),
        ("sub", "submodule"),
    ]
    assert not tree.truncated


def test_counts_are_of_all_that_is_below(things: Path) -> None:
    tree = tree_of(things, "v1", depth=1)
    by_path = {e.path: e for e in tree.entries}
    assert (by_path["src"].files, by_path["src"].bytes) == (4, 16)
    assert (by_path["sub"].files, by_path["sub"].bytes) == (0, 0)
    assert (by_path["README.md"].files, by_path["README.md"].bytes) == (1, 16)
    assert (tree.files, tree.directories) == (10, 4)
    assert tree.bytes == sum(e.bytes for e in tree.entries)
    assert tree.suffixes == {".c": 3, ".h": 1, ".md": 1, ".py": 1}
    assert list(tree.suffixes) == [".c", ".h", ".md", ".py"]


def test_a_directory_of_a_tree_by_its_path(things: Path) -> None:
    tree = tree_of(things, path="./src//lib/")
    assert (tree.path, tree.files, tree.directories) == ("src/lib", 3, 1)
    assert [e.path for e in tree.entries] == ["src/lib/deep", "src/lib/deep/x.c", "src/lib/a.c", "src/lib/a.h"]


def test_the_default_is_the_head_of_the_default_branch_and_a_revision_may_be_short(things: Path) -> None:
    assert tree_of(things).files == 11
    assert tree_of(things, git("rev-parse", "v1", cwd=things)[:9]).files == 10
    with pytest.raises(NotFound) as caught:
        tree_of(things, "mian")
    assert "main" in caught.value.hint


def test_without_room_for_all_the_deep_entries_are_left_out(things: Path) -> None:
    tree = tree_of(things, "v1", limit=8)
    assert tree.truncated
    assert [e.path for e in tree.entries] == [
        *("src", "src/lib", "src/main.c", "zoo", "Makefile", "README.md", "run", "sub"),
    ]
    assert tree.files == 10
    assert tree_of(things, "v1", depth=0).entries == ()


def test_what_is_no_directory_says_what_it_is(things: Path) -> None:
    for path, says, hint in (
        ("README.md", "is a file", "repo cat"),
        ("README.md/x", "is a file", "repo cat"),
        ("sub", "submodule: commit abababababab", ".gitmodules"),
        ("zoo/link", "is a link to '../src/main.c'", "'src/main.c'"),
        ("zoo/away", "is a link to '../../etc/passwd'", "out of the repository"),
    ):
        with pytest.raises(InvalidInput, match=says) as caught:
            tree_of(things, path=path)
        assert hint in caught.value.hint
    for path in ("../etc", "/etc", "a/../../b"):
        with pytest.raises(InvalidInput, match="not below"):
            tree_of(things, path=path)
    with pytest.raises(NotFound, match="no 'scr' in commit") as missing:
        tree_of(things, path="scr")
    assert "src" in missing.value.hint
    with pytest.raises(NotFound, match="no 'LIB' in 'src' of commit") as missing:
        tree_of(things, path="src/LIB")
    assert "lib" in missing.value.hint


def test_a_bomb_of_shared_trees_is_counted_without_unfolding_it(tmp_path: Path) -> None:
    path = bare(tmp_path / "bomb")
    blob = hashed(path, "blob", b"boom\n")
    tree = hashed(path, "tree", tree_object(*((b"100644", b"f%d.c" % i, blob) for i in range(10))))
    for _ in range(30):
        tree = hashed(path, "tree", tree_object(*((b"40000", b"d%d" % i, tree) for i in range(10))))
    commit_tree(path, tree)
    found = tree_of(path, depth=100)
    assert found.files == found.bytes == found.directories == found.suffixes[".c"] == 2**53 - 1
    assert found.truncated
    assert len(found.entries) == 1000
    assert docs_of(path).total == 0


def test_a_chain_of_many_thousand_directories_is_no_trouble(tmp_path: Path) -> None:
    path = bare(tmp_path / "chain")
    blob = hashed(path, "blob", b"end\n")
    with GitStore(path) as store, store._borrow() as repository:
        tree = repository.create_blob(b"end\n")
        assert str(tree) == blob
        mode = 0o100644
        for _ in range(1500):
            builder = repository.TreeBuilder()
            builder.insert("d", tree, mode)
            tree, mode = builder.write(), 0o040000
    commit_tree(path, str(tree))
    found = tree_of(path, depth=1_000_000)
    assert (found.files, found.directories, found.bytes) == (1, 1499, 4)
    assert found.truncated  # for the length of the paths
    assert docs_of(path).total == 0


def test_nasty_names_are_shown_and_found(tmp_path: Path) -> None:
    path = bare(tmp_path / "nasty")
    blob = hashed(path, "blob", b"text\n")
    names = [b"\xff\xfe.c", b"a\nb", b"\x1b[31mred", b'quo"te', "ü".encode(), b"n" * 60_000]
    tree = hashed(path, "tree", tree_object(*sorted((b"100644", name, blob) for name in names)))
    commit_tree(path, tree)
    found = tree_of(path)
    shown = {e.path for e in found.entries}
    assert {"\ufffd\ufffd.c", "a\nb", "\x1b[31mred", 'quo"te', "ü", "n" * 60_000} == shown
    for name in shown:
        assert cat(path, name).text == "text\n"
    assert msgspec.json.decode(msgspec.json.encode(found), type=Tree) == found


def test_a_question_that_takes_too_long_ends(things: Path) -> None:
    def check() -> None:
        raise Refused("too long")

    for look in (
        lambda view: outline(TreeParams(repo="x"), view),
        lambda view: documents(DocumentsParams(repo="x"), view),
        lambda view: excerpt(CatParams(repo="x", path="src/main.c"), view),
    ):
        with viewed(things, check=check) as view, pytest.raises(Refused, match="too long"):
            look(view)


# --- files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts"
    git("init", "-q", "-b", "main", path)
    contents = {
        "lines": b"".join(b"line %d\n" % n for n in range(1, 1001)),
        "open": b"one\ntwo",
        "empty": b"",
        "binary": b"\x7fELF\0\1\2",
        "latin": b"caf\xe9\n",
        "long": "äöü€".encode() * 70_000 + b"\nsecond\n",
        "dos": b"a\r\nb\r\n",
    }
    for name, data in contents.items():
        (path / name).write_bytes(data)
    (path / "link").symlink_to("lines")
    git("add", "-A", cwd=path)
    git("commit", "-q", "-m", "x", cwd=path)
    return path


def test_a_file_is_shown_whole_with_its_size_and_lines(texts: Path) -> None:
    found = cat(texts, "open")
    assert (found.text, found.bytes, found.lines) == ("one\ntwo", 7, 2)
    assert (found.first_line, found.last_line, found.truncated, found.binary) == (1, 2, False, False)
    assert cat(texts, "dos").text == "a\r\nb\r\n"
    empty = cat(texts, "empty")
    assert (empty.text, empty.lines, empty.last_line, empty.truncated) == ("", 0, 0, False)


@pytest.mark.parametrize(
    ("first", "last", "text", "ends", "truncated"),
    [
        (3, 4, "line 3\nline 4\n", 4, True),
        (1, 1, "line 1\n", 1, True),
        (999, None, "line 999\nline 1000\n", 1000, False),
        (1000, 5000, "line 1000\n", 1000, False),
        (1001, None, "", 1000, False),
        (4000, 5000, "", 3999, False),
    ],
)
def test_a_range_of_lines(texts: Path, first: int, last: int | None, text: str, ends: int, truncated: bool) -> None:
    found = cat(texts, "lines", first_line=first, last_line=last)
    assert (found.text, found.last_line, found.truncated) == (text, ends, truncated)
    assert found.lines == 1000


@pytest.mark.parametrize(
    "params", [{"first_line": 0}, {"first_line": 3, "last_line": 2}, {"offset": -1}, {"offset": 9}]
)
def test_ranges_that_cannot_be_are_refused(texts: Path, params: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        cat(texts, "lines", **params)


def test_lines_are_whole_when_the_limit_cuts_a_file(texts: Path) -> None:
    found = cat(texts, "lines", limit=20)
    assert (found.text, found.last_line, found.truncated, found.next_offset) == ("line 1\nline 2\n", 2, True, 0)
    assert cat(texts, "lines", limit=14).text == "line 1\nline 2\n"


@pytest.mark.parametrize("limit", [0, 5, 1000, 10**9])
def test_a_line_that_is_too_long_comes_in_pieces_of_whole_characters(texts: Path, limit: int) -> None:
    line, offset, text, pages = 1, 0, "", 0
    while pages < 100:
        found = cat(texts, "long", first_line=line, offset=offset, limit=limit)
        assert len(found.text.encode()) <= min(max(limit, 4), 256 * 1024)
        text, pages = text + found.text, pages + 1
        if not found.truncated:
            break
        line = found.last_line if found.next_offset else found.last_line + 1
        offset = found.next_offset
    whole = "äöü€" * 70_000 + "\nsecond\n"
    assert whole.startswith(text)
    assert text == whole if limit == 10**9 else len(text) >= 100
    assert "\ufffd" not in text


def test_files_without_text(texts: Path) -> None:
    binary = cat(texts, "binary")
    assert (binary.binary, binary.text, binary.lines, binary.bytes, binary.truncated) == (True, "", 0, 7, False)
    latin = cat(texts, "latin")
    assert (latin.text, latin.binary, latin.bytes) == ("caf\ufffd\n", False, 5)
    with pytest.raises(InvalidInput, match="is a link to 'lines'"):
        cat(texts, "link")
    with pytest.raises(InvalidInput, match="no file was named"):
        cat(texts, "")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    git("init", "-q", "-b", "main", path)
    with open(path / "zeros", "wb") as file:
        os.truncate(file.fileno(), (32 << 20) + 1)
    git("-c", "core.compression=1", "add", "-A", cwd=path)
    git("commit", "-q", "-m", "x", cwd=path)
    with pytest.raises(InvalidInput, match="has 33554433 bytes, more than"):
        cat(path, "zeros")
    assert tree_of(path).bytes == (32 << 20) + 1


# --- documents ----------------------------------------------------------------------------------------------


def test_documents_come_in_the_order_in_which_a_newcomer_reads_them(tmp_path: Path) -> None:
    path = make_repository(
        tmp_path / "docs",
        dict.fromkeys(
            (
                *("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "README.de.md", "NOTES.md"),
                *("docs/index.rst", "docs/api.rst", "docs/notes.txt", "docs/logo.svg", "man/tool.1"),
                *("packages/a/README.md", "packages/a/a.py", "vendor/x/README.md", "tests/data/sample.md"),
                *("requirements.txt", "CMakeLists.txt", "lib/libx.so.1", "install", "src/license.c"),
            ),
            "text\n",
        ),
    )
    found = docs_of(path)
    assert [(d.path, d.kind) for d in found.documents] == [
        ("README.md", "readme"),
        ("README.de.md", "readme"),
        ("CONTRIBUTING.md", "guide"),
        ("CHANGELOG.md", "changelog"),
        ("LICENSE", "license"),
        ("NOTES.md", "other"),
        ("docs/index.rst", "guide"),
        ("docs/api.rst", "guide"),
        ("docs/notes.txt", "guide"),
        ("man/tool.1", "manual"),
        ("packages/a/README.md", "readme"),
        ("vendor/x/README.md", "readme"),
        ("tests/data/sample.md", "other"),
    ]
    assert found.total == 13
    few = docs_of(path, limit=2)
    assert (len(few.documents), few.total) == (2, 13)
    assert [d.path for d in docs_of(path, path="docs").documents] == [
        "docs/index.rst",
        "docs/api.rst",
        "docs/notes.txt",
    ]


@pytest.mark.parametrize(
    ("name", "in_docs", "kind"),
    [
        ("README", False, "readme"),
        ("readme.txt", False, "readme"),
        ("README.Debian", False, "readme"),
        ("COPYING.LESSER", False, "license"),
        ("LICENSE-MIT", False, "license"),
        ("NEWS", False, "changelog"),
        ("news.html", False, None),
        ("news.html", True, "guide"),
        ("git-log.1", False, "manual"),
        ("libz.so.1", False, None),
        ("build.log.1", False, None),
        ("a.txt", False, None),
        ("x.adoc", False, "other"),
        ("tool", False, None),
    ],
)
def test_kinds_of_documents(name: str, in_docs: bool, kind: str | None) -> None:
    assert kind_of(name, in_docs=in_docs) == kind


@pytest.mark.parametrize(
    ("path", "text", "title"),
    [
        ("a.md", "\ufeff# The *whole* `thing` #\n", "The whole thing"),
        ("a.md", "[![ci](x)](y)\n\nThing\n=====\n", "Thing"),
        ("a.md", "```\n# no\n```\n## Yes: [link](http://x)\n", "Yes: link"),
        ("a.md", "---\ntitle: 'In front'\n---\n# Later\n", "In front"),
        ("a.md", '<h1 align="center">\n  <img src="x"> Vim &amp; co\n</h1>\n', "Vim & co"),
        ("a.md", "![logo](x)\n\njust words\n", "just words"),
        ("a.md", "# snake_case_name\n", "snake_case_name"),
        ("a.rst", ".. _ref:\n\n=====\nTitle\n=====\n\ntext\n", "Title"),
        ("README", "buildd\n------\n", "buildd"),
        ("a.adoc", ":toc:\n= Handbook\n", "Handbook"),
        ("a.1", ".Dd May\n.Dt A 1\n.Sh NAME\n.Nm a\n.Nd does \\(em it\n", "a - does - it"),
        ("a.1", '.TH A 1\n.SH NAME\na, b \\- do "it"\n.SH SYNOPSIS\n', "a, b - do it"),
        ("a.html", "<html><head><title> A\n page </title>", "A page"),
        ("a.html", "<!-- License -->\n<script>x</script>\n<h3>Set &amp; go</h3>", "Set & go"),
        ("a.html", "words\n", ""),
        ("LICENSE", "\n\n   MIT License\n", "MIT License"),
        ("a.md", "", ""),
        ("a.md", "x" * 300, "x" * 199 + "…"),
        ("a.txt", "one\r\ntwo\r\n", "one"),
    ],
)
def test_titles_of_documents(path: str, text: str, title: str) -> None:
    assert title_of(text.encode(), path) == title


@pytest.mark.parametrize("suffix", ["md", "rst", "adoc", "html", "1", "txt"])
@pytest.mark.parametrize(
    "piece", ["[", "<h1", "<", "*", "_", "`", "# ", "<!--", "<script", ".SH NAME\n", "=\n", " ", "\\f", "<title"]
)
def test_no_document_takes_long_to_find_a_title_in(piece: str, suffix: str) -> None:
    text = (".TH A 1\n" if suffix == "1" else "") + piece * 100_000
    assert len(title_of(text.encode(), f"a.{suffix}")) <= 200
    assert title_of(b"a\0" + text.encode(), f"a.{suffix}") == ""
