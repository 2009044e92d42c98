"""What packages a revision has: however it is found out, the answer is that of a full look, on real git trees."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pygit2
import pytest
from harness import RecipeRepository, git
from hypothesis import given, settings, strategies as st

from buildd.engine import discovery
from buildd.engine.discovery import Discoveries, Revision, RevisionTree, differing
from buildd.engine.keepsake import Keepsakes
from buildd.errors import BuilddError, InvalidInput, NotFound
from buildd.model import Package
from buildd.recipes.native import Origin, discover, read_recipes
from buildd.repos.trees import GitStore

FILE, EXECUTABLE, LINK, SUBMODULE = 0o100644, 0o100755, 0o120000, 0o160000
HOME = "/home/of/recipes"


class Files:
    """Files by path in a real object store; writing one makes room for it, as an unpacked archive would."""

    def __init__(self, store: Path) -> None:
        pygit2.init_repository(os.fspath(store), bare=True)
        self._odb = pygit2.Repository(os.fspath(store)).odb
        self.content: dict[str, tuple[int, bytes]] = {}

    def write(self, path: str, data: bytes, mode: int = FILE) -> None:
        self.remove(path)
        for at, char in enumerate(path):
            if char == "/":
                self.content.pop(path[:at], None)
        self.content[path] = (mode, data)

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it."""
        for other in self.below(path):
            del self.content[other]

    def rename(self, old: str, new: str) -> None:
        if new == old or new.startswith(old + "/") or old.startswith(new + "/"):
            return
        moved = {new + path.removeprefix(old): self.content[path] for path in self.below(old)}
        self.remove(old)
        for path, (mode, data) in moved.items():
            self.write(path, data, mode)

    def below(self, path: str) -> list[str]:
        return [p for p in self.content if p == path or p.startswith(path + "/")]

    def tree(self) -> str:
        """The id of the tree with all files."""
        top: dict[str, Any] = {}
        for path, entry in self.content.items():
            *directories, name = path.split("/")
            at = top
            for directory in directories:
                at = at.setdefault(directory, {})
            at[name] = entry
        return self._tree(top).hex()

    def _tree(self, directory: dict[str, Any]) -> bytes:
        entries = []
        for name, entry in directory.items():
            raw = os.fsencode(name)
            if isinstance(entry, dict):
                entries.append((raw + b"/", b"40000 %s\0%s" % (raw, self._tree(entry))))
                continue
            mode, data = entry
            id = b"\1" * 20 if mode == SUBMODULE else bytes(self._odb.write(pygit2.enums.ObjectType.BLOB, data).raw)
            entries.append((raw, b"%o %s\0%s" % (mode, raw, id)))
        data = b"".join(line for _, line in sorted(entries))
        return bytes(self._odb.write(pygit2.enums.ObjectType.TREE, data).raw)


def remembering(cache: Path) -> Discoveries:
    return Discoveries(Keepsakes(cache / "discoveries"))


def full_look(store: Path, tree: str) -> dict[str, tuple[Package, ...]]:
    return discover(RevisionTree(GitStore(store), tree), Origin(repository=HOME, store=str(store)))


def equal_to_a_full_look(revision: Revision, store: Path) -> None:
    """Fail unless everything that a revision says is what a look without any memory gives."""
    files = full_look(store, revision.tree)
    expected = Revision(revision.tree, files)
    assert list(revision.files.items()) == list(files.items()), "the same packages in the same order"
    assert list(revision.packages.items()) == list(expected.packages.items())
    assert {place: sorted(f) for place, f in revision.by_path.items()} == {
        place: sorted(f) for place, f in expected.by_path.items()
    }


# --- any edits --------------------------------------------------------------------------------------------

Recipes = dict[str, dict[str, dict[str, str]]]
"""Directory to name to table."""
START: Recipes = {
    ".": {"one": {"path": "a", "version": "1"}, "two": {"path": "b/src"}, "all": {}},
    "a": {"three": {}, "four": {"path": "../b/src"}},
    "c/deep": {"five": {}, "six": {"path": "sub"}},
}
SOURCES = ("README", "a/f", "a.b/f", "b/src/f", "b/src/deep/g", "c/f", "c/deep/h", "c/deep/sub/i")


class Repository:
    """A repository that is edited, and the one memory that follows it."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.files = Files(store)
        for path in SOURCES:
            self.files.write(path, b"")
        self.recipes: Recipes = {}
        for directory, packages in START.items():
            self.describe(directory, packages)
        self.discoveries = remembering(store.parent)
        self.good = dict(self.files.content), dict(self.recipes)
        self.last: Revision | None = None
        self.trees: list[str] = []

    # --- edits ------------------------------------------------------------------------------------------

    def describe(self, directory: str, packages: dict[str, dict[str, str]]) -> None:
        tables = (
            f"[package.{name}]\n" + "".join(f'{key} = "{value}"\n' for key, value in table.items())
            for name, table in packages.items()
        )
        self.recipes[directory] = packages
        self.files.write(self.recipe(directory), "".join(tables).encode())

    def recipe(self, directory: str) -> str:
        return f"{directory}/buildd.toml".removeprefix("./")

    def change_a_recipe(self, directory: str, name: str, key: str, value: str) -> None:
        packages = self.recipes.get(directory, {})
        self.describe(directory, {**packages, name: {**packages.get(name, {}), key: value}})

    def drop_a_package(self, directory: str, name: str) -> None:
        self.describe(directory, {n: t for n, t in self.recipes.get(directory, {}).items() if n != name})

    def turn_a_recipe_round(self, directory: str) -> None:
        self.describe(directory, dict(reversed(self.recipes.get(directory, {}).items())))

    def spoil_a_recipe(self, directory: str, text: bytes) -> None:
        self.files.write(self.recipe(directory), text)

    def move_a_recipe(self, directory: str, to: str) -> None:
        self.files.rename(self.recipe(directory), self.recipe(to))

    def make_a_recipe(self, directory: str, mode: int) -> None:
        path = self.recipe(directory)
        self.files.write(path, self.files.content.get(path, (0, b"f"))[1], mode)

    def write(self, path: str, data: bytes, mode: int) -> None:
        self.files.write(path, data, mode)

    def remove(self, path: str) -> None:
        self.files.remove(path)

    def rename(self, path: str, to: str) -> None:
        self.files.rename(path, to)

    # --- looks ------------------------------------------------------------------------------------------

    def look(self, tree: str) -> bool:
        """Compare with a full look; whether the tree has packages and no mistake."""
        self.trees.append(tree)
        try:
            full_look(self.store, tree)
        except BuilddError as expected:
            with pytest.raises(type(expected)) as caught:
                self.discoveries.look(HOME, str(self.store), tree)
            assert (caught.value.message, caught.value.hint) == (expected.message, expected.hint)
            return False
        remembered = any(known.tree == tree for known in self.discoveries._known.values())
        revision = self.discoveries.look(HOME, str(self.store), tree)
        equal_to_a_full_look(revision, self.store)
        assert self.discoveries.look(HOME, str(self.store), tree) is revision
        assert len(self.discoveries._known) <= discovery.KEPT_PER_STORE
        if self.last is not None:
            changed = revision.changed_since(self.last)
            assert (changed is None) == (revision.packages.keys() != self.last.packages.keys())
            assert changed is None or sorted(changed) == sorted(differing(self.last.packages, revision.packages))
        if not remembered and self.last is not None:
            for name, before in self.last.packages.items():
                now = revision.packages.get(name)
                assert now is before or now != before, "what is unchanged is the same object"
        self.last = revision
        return True

    def restart(self) -> None:
        """Another life of the daemon: all that is left is what it kept on disk."""
        self.discoveries = remembering(self.store.parent)
        self.last = None

    def look_at_what_is_there(self) -> None:
        """After a mistake the last good state is there again: nobody builds on a broken recipe."""
        if self.look(self.files.tree()):
            self.good = dict(self.files.content), dict(self.recipes)
        else:
            self.files.content, self.recipes = dict(self.good[0]), dict(self.good[1])


places = st.sampled_from([*START, "a.b", "b/src", "a/buildd.toml", "caf\udce9"])
names = st.sampled_from(["one", "two", "three", "four", "five", "six", "all", "new"])
files = st.sampled_from([*SOURCES, "b/src/new", "new/f", "caf\udce9/f"])
anything = st.sampled_from([*SOURCES, "a", "b", "b/src", "b/src/deep", "c", "c/deep", "c/deep/sub", "a/buildd.toml"])
modes = st.sampled_from([FILE, FILE, EXECUTABLE, LINK, SUBMODULE])
mistakes = st.sampled_from([b"[package", b"\xff", b"[package.one]\nvesion = 1\n", b"[package.one]\npath='no'\n", b""])


contents = st.sampled_from([b"1", b"2", b"3"])


def edit(call: Any, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(call), *arguments)


edits = st.one_of(
    edit(Repository.write, files, contents, st.just(FILE)),
    edit(Repository.write, files, contents, st.just(FILE)),
    edit(Repository.write, anything, contents, modes),
    edit(Repository.remove, anything),
    edit(Repository.rename, anything, anything),
    edit(Repository.change_a_recipe, places, names, st.just("version"), st.sampled_from(["1", "2"])),
    edit(
        Repository.change_a_recipe,
        places,
        names,
        st.just("path"),
        st.sampled_from([".", "a", "../a", "b/src", "deep", "no", "f"]),
    ),
    edit(Repository.drop_a_package, places, names),
    edit(Repository.turn_a_recipe_round, places),
    edit(Repository.spoil_a_recipe, places, mistakes),
    edit(Repository.move_a_recipe, places, places),
    edit(Repository.make_a_recipe, places, modes),
)


@given(st.lists(st.lists(edits, min_size=1, max_size=3) | st.integers(0, 9), min_size=1, max_size=8))
@settings(deadline=None, max_examples=150)
def test_after_any_edits_the_packages_are_those_of_a_full_look(rounds: list[list[tuple[Any, ...]] | int]) -> None:
    with tempfile.TemporaryDirectory() as home:
        repository = Repository(Path(home) / "store.git")
        repository.look_at_what_is_there()
        for turn in rounds:
            if turn == 0:
                repository.restart()
            elif isinstance(turn, int):  # as when a branch is built that was built before
                repository.look(repository.trees[turn % len(repository.trees)])
            else:
                for call, *arguments in turn:
                    call(repository, *arguments)
                repository.look_at_what_is_there()


# --- what is looked at, and what is not -------------------------------------------------------------------


class Looks:
    """A real git repository, and what of it was read."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = RecipeRepository(path)
        self.cache = path.parent
        self.discoveries = remembering(self.cache)
        self.read: list[str] = []
        self.full = 0

        def read(path: str, *arguments: Any) -> tuple[Package, ...]:
            self.read.append(path)
            return read_recipes(path, *arguments)

        def full(*arguments: Any) -> dict[str, tuple[Package, ...]]:
            self.full += 1
            return discover(*arguments)

        monkeypatch.setattr(discovery, "read_recipes", read)
        monkeypatch.setattr(discovery, "discover", full)

    def write(self, path: str, text: str) -> Looks:
        self.repository.write(path, text)
        return self

    def restart(self) -> None:
        self.discoveries = remembering(self.cache)

    def look(self) -> Revision:
        self.repository.commit()
        self.read, self.full = [], 0
        tree = git("rev-parse", "HEAD^{tree}", cwd=self.repository.path)
        return self.discoveries.look(HOME, str(self.repository), tree)


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks(tmp_path / "repository", monkeypatch)
    looks.write("a/buildd.toml", "[package.a]\n").write("b/buildd.toml", '[package.b]\n[package.c]\npath = "src"\n')
    return looks.write("b/src/f", "1").write("docs/f", "1")


def test_a_changed_source_makes_its_packages_anew_and_no_recipe_is_read(looks: Looks) -> None:
    before = looks.look()
    assert looks.full == 1
    now = looks.write("b/src/f", "2").look()
    assert (looks.full, looks.read) == (0, [])
    assert now.packages["a"] is before.packages["a"]
    for name in ("b", "c"):
        path = now.packages[name].path
        assert now.packages[name].tree == git("rev-parse", f"HEAD:{path}", cwd=looks.repository.path)
        assert now.packages[name].tree != before.packages[name].tree
    elsewhere = looks.write("docs/f", "2").look()
    assert (looks.full, looks.read) == (0, [])
    assert all(elsewhere.packages[name] is now.packages[name] for name in "abc")


def test_a_changed_recipe_is_read_and_no_other(looks: Looks) -> None:
    before = looks.look()
    now = looks.write("b/buildd.toml", '[package.b]\n[package.c]\npath = "src"\nversion = "2"\n').look()
    assert (looks.full, looks.read) == (0, ["b/buildd.toml"])
    assert now.packages["a"] is before.packages["a"]
    assert now.packages["c"].version == "2"
    (looks.repository.path / "b/buildd.toml").unlink()
    assert list(looks.look().packages) == ["a"]
    assert (looks.full, looks.read) == (0, [])


def test_a_tree_that_was_looked_into_is_not_looked_into_again(looks: Looks) -> None:
    first = looks.look()
    second = looks.write("docs/f", "2").look()
    assert looks.write("docs/f", "1").look() is first
    assert looks.write("docs/f", "2").look() is second
    assert (looks.full, looks.read) == (0, [])


def test_a_package_that_moves_is_followed_to_its_new_place(looks: Looks) -> None:
    looks.write("other/f", "1").look()
    looks.write("b/buildd.toml", '[package.b]\n[package.c]\npath = "../other"\n').look()
    moved = looks.look()
    now = looks.write("other/f", "2").look()
    assert (looks.full, looks.read) == (0, [])
    assert now.packages["c"].tree == git("rev-parse", "HEAD:other", cwd=looks.repository.path)
    assert now.packages["c"].tree != moved.packages["c"].tree
    same = looks.write("b/src/f", "2").look()
    assert same.packages["c"] is now.packages["c"]


def test_packages_that_share_a_directory_change_together(looks: Looks) -> None:
    looks.write("more/buildd.toml", '[package.d]\npath = "../b/src"\n[package.e]\npath = "../b/src"\n')
    before = looks.look()
    now = looks.write("b/src/f", "2").look()
    assert {name for name in now.packages if now.packages[name] is not before.packages[name]} == {"b", "c", "d", "e"}
    assert len({now.packages[name].tree for name in "cde"}) == 1
    assert looks.full == 0


def test_a_recipe_that_became_a_link_describes_nothing(looks: Looks) -> None:
    looks.look()
    recipe = looks.repository.path / "a/buildd.toml"
    recipe.rename(recipe.with_name("real.toml"))
    recipe.symlink_to("real.toml")
    assert list(looks.look().packages) == ["b", "c"]


def test_a_link_whose_text_is_a_recipe_describes_nothing(tmp_path: Path) -> None:
    files = Files(tmp_path / "store.git")
    files.write("buildd.toml", b"[package.a]\n")
    files.write("b/buildd.toml", b"[package.b]\n")
    discoveries = remembering(tmp_path)
    store = str(tmp_path / "store.git")
    assert list(discoveries.look(HOME, store, files.tree()).packages) == ["b", "a"]
    files.write("buildd.toml", b"[package.a]\n", LINK)
    assert list(discoveries.look(HOME, store, files.tree()).packages) == ["b"]


def test_a_directory_that_became_a_file_takes_its_packages_with_it_or_is_missed(looks: Looks) -> None:
    looks.write("a/buildd.toml", '[package.a]\npath = "../b/src"\n').look()
    for file in ("a/buildd.toml", "b/src/f"):
        (looks.repository.path / file).unlink()
    (looks.repository.path / "a").rmdir()
    looks.write("a", "a file").write("b/src/f", "2")
    assert list(looks.look().packages) == ["b", "c"]
    (looks.repository.path / "b/src/f").unlink()
    (looks.repository.path / "b/src").rmdir()
    with pytest.raises(InvalidInput, match=r"b/buildd.toml: package c: path 'src' is not a directory"):
        looks.write("b/src", "a file").look()


def test_a_name_that_comes_a_second_time_is_refused_in_the_words_of_a_full_look(looks: Looks) -> None:
    looks.look()
    looks.write("b/buildd.toml", "[package.b]\n[package.a]\n")
    with pytest.raises(InvalidInput, match=r"package a is defined twice: in a/buildd.toml and in b/buildd.toml"):
        looks.look()
    assert list(looks.write("b/buildd.toml", "[package.b]\n").look().packages) == ["a", "b"]


def test_a_name_may_move_from_one_recipe_to_another(looks: Looks) -> None:
    looks.look()
    looks.write("a/buildd.toml", "[package.b]\n").write("b/buildd.toml", "[package.a]\n")
    assert {name: package.path for name, package in looks.look().packages.items()} == {"a": "b", "b": "a"}
    assert looks.full == 0


def test_another_repository_at_the_same_place_is_looked_into_as_a_whole(looks: Looks, tmp_path: Path) -> None:
    looks.look()
    looks.repository.path.rename(tmp_path / "old")
    looks.repository = RecipeRepository(looks.repository.path)
    assert list(looks.write("new/buildd.toml", "[package.new]\n").look().packages) == ["new"]
    assert looks.full == 1


def test_a_tree_that_is_not_there_is_not_found(looks: Looks) -> None:
    looks.look()
    with pytest.raises(NotFound):
        looks.discoveries.look(HOME, str(looks.repository), "1" * 40)
    with pytest.raises(NotFound):
        looks.discoveries.look(HOME, str(looks.repository.path / "nowhere"), "1" * 40)


def test_repositories_with_the_same_objects_keep_apart(looks: Looks) -> None:
    one = looks.look()
    two = looks.discoveries.look("/another", str(looks.repository), one.tree)
    assert {package.repository for package in one.packages.values()} == {HOME}
    assert {package.repository for package in two.packages.values()} == {"/another"}


def test_no_more_than_so_many_packages_are_remembered(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "KEPT_PACKAGES", 7)
    tree = looks.look().tree
    for home in "xyz":
        looks.discoveries.look(home, str(looks.repository), tree)
    assert [home for home, _, _ in looks.discoveries._known] == ["y", "z"], "three packages each"
    monkeypatch.setattr(discovery, "KEPT_PACKAGES", 1)
    assert looks.discoveries.look("w", str(looks.repository), tree) is looks.discoveries.look(
        "w", str(looks.repository), tree
    ), "the last one stays however large it is"


def test_another_life_goes_on_from_the_revision_that_was_kept(looks: Looks) -> None:
    before = looks.look()
    looks.restart()
    assert looks.look().packages == before.packages
    assert (looks.full, looks.read) == (0, [])
    looks.restart()
    now = looks.write("b/src/f", "2").look()
    assert (looks.full, looks.read) == (0, [])
    assert now.packages["a"] == before.packages["a"]
    assert now.packages["c"].tree == git("rev-parse", "HEAD:b/src", cwd=looks.repository.path)


def test_many_threads_share_one_memory(looks: Looks, capsys: pytest.CaptureFixture[str]) -> None:
    trees = [looks.write("b/buildd.toml", f'[package.b]\nversion = "{n}"\n').look().tree for n in range(6)]
    wrong: list[object] = []

    def look(offset: int) -> None:
        for turn in range(20):
            tree = trees[(turn * 5 + offset) % len(trees)]
            home = "/one" if turn % 2 else f"/{offset}"
            try:
                revision = looks.discoveries.look(home, str(looks.repository), tree)
                assert revision.tree == tree
                assert revision.packages["b"].version == str(trees.index(tree))
                assert {package.repository for package in revision.packages.values()} == {home}
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=look, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert capsys.readouterr().out == "", "nothing was logged"
    assert not list((looks.cache / "discoveries").glob(".*")), "nothing half written is left"
