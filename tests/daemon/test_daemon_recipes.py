"""Recipes from outside: each fault is a clear error, and the daemon is unharmed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Daemon, RecipeRepository, git, named, resident_bytes

GOOD = '[package.good]\nversion = "1"\n'


@pytest.fixture
def unharmed(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    """The module's daemon; it builds something good after each test."""
    yield daemon
    good = RecipeRepository(tmp_path / "good")
    good.package("good").commit()
    view = daemon.build(good)
    assert view.state == "completed"


def fails(daemon: Daemon, repository: object, *words: str, code: int = 2) -> None:
    """Both planning and building end with an error that has these words."""
    planned = daemon.buildctl("plan", repository)
    assert planned.returncode == code, planned
    assert planned.stdout == ""
    for word in words:
        assert word in planned.stderr
    view = daemon.build(repository)
    assert view.state == "failed"
    assert view.packages == ()
    said = f"{view.error}\n{view.hint}"
    for word in words:
        assert word in said
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("[package.a\n", ["buildd.toml is not valid TOML", "line 1"]),
        ("a = " + "[" * 5000, ["buildd.toml is not valid TOML"]),
        (b'[package.a]\nversion = "\xff\xfe"\n', ["buildd.toml is not UTF-8", "byte"]),
        (b"\0" * 100, ["buildd.toml"]),
        ("package = 3\n", ["buildd.toml", "[package.NAME]"]),
        ("[packages.a]\n", ["unknown key 'packages'", "[package.NAME]"]),
        ("[package]\na = 1\n", ["package a", "not a table"]),
        ('[package."../a"]\n', ["not a package name"]),
        ('[package."a\\u0000b"]\n', ["not a package name", "\\x00"]),
        ('[package."a\\u001b[2J"]\n', ["not a package name", "\\x1b"]),
        ('[package."a\\u202eb"]\n', ["not a package name", "\\u202e"]),
        ('[package."-rf"]\n', ["not a package name"]),
        ('[package.""]\n', ["not a package name"]),
        (f"[package.{'a' * 200}]\n", ["not a package name"]),
        ('[package.a]\nversion = "1; rm -rf /"\n', ["package a", "version"]),
        ("[package.a]\nversion = 1\n", ["package a", "version"]),
        ('[package.a]\nversin = "1"\n', ["unknown key versin", "did you mean version?"]),
        ('[package.a]\npath = "../outside"\n', ["package a", "../outside'", "inside the tree"]),
        ('[package.a]\npath = "/etc"\n', ["package a", "path '/etc'", "inside the tree"]),
        ('[package.a]\npath = "x/../../.."\n', ["package a", "inside the tree"]),
        ('[package.a]\npath = "a\\u0000b"\n', ["package a", "inside the tree"]),
        ('[package.a]\npath = "no/such/dir"\n', ["package a", "no/such/dir", "not a directory"]),
        ('[package.a]\npath = "buildd.toml"\n', ["package a", "not a directory"]),
        ('[package.a]\npatches = ["../../x.patch"]\n', ["package a", "patches"]),
        ('[package.a]\nsystem = "bazel"\n', ["unknown system 'bazel'", "cmake"]),
        ('[package.a]\nformats = ["rpm"]\n', ["unknown format 'rpm'", "tar"]),
        ('[package.a]\ntools = ["/bin/sh"]\n', ["package a", "/bin/sh"]),
        ('[package.a]\ndepends = ["a b"]\n', ["package a", "'a b'"]),
        ('[package.a]\ndepends = "b"\n', ["package a", "depends"]),
        ('[package.a.phases]\ncompile = "make"\n', ["unknown phase 'compile'", "configure"]),
        ('[package.a.phases]\nbuild = "a\\u0000b"\n', ["package a", "NUL"]),
        (f'[package.a.phases]\nbuild = "{"x" * 70_000}"\n', ["package a", "build", "bytes"]),
        ('[package.a.limits]\ntimeout = "soon"\n', ["package a", "soon"]),
        ('[package.a.limits]\nmemroy = "1GiB"\n', ["unknown key limits.memroy", "did you mean limits.memory?"]),
        ('[[package.a.source]]\nurl = "https://h/x.tar"\nsha256 = "abc"\n', ["package a", "sha256"]),
        (f'[[package.a.source]]\nurl = "https://h/.."\nsha256 = "{"0" * 64}"\n', ["package a", "file name"]),
        (
            f'[[package.a.source]]\nurl = "https://h/x"\nsha256 = "{"0" * 64}"\ninto = "../.."\n',
            ["package a", "into", "inside the tree"],
        ),
        ('[package.a]\ndepends = ["missing"]\n', ["package a depends on missing", "does not exist"]),
        ('[package.abcd]\n[package.a]\ndepends = ["abcde"]\n', ["did you mean abcd?"]),
        ('[package.a]\ndepends = ["a"]\n', ["cycle", "a"]),
        (
            '[package.a]\ndepends = ["b"]\n[package.b]\ndepends = ["c"]\n[package.c]\ndepends = ["a"]\n',
            ["cycle", "a", "b", "c"],
        ),
        ("[package.a]\n[package.a]\n", ["buildd.toml is not valid TOML"]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else "recipe",
)
def test_a_bad_recipe_is_an_error_that_says_what_and_where(
    unharmed: Daemon, repository: RecipeRepository, recipe: str | bytes, words: list[str]
) -> None:
    repository.write("buildd.toml", recipe).commit()
    fails(unharmed, repository, *words)


def test_two_packages_of_one_name_in_two_files_are_named_with_both(
    unharmed: Daemon, repository: RecipeRepository
) -> None:
    repository.write("one/buildd.toml", GOOD).write("two/buildd.toml", GOOD).commit()
    fails(unharmed, repository, "package good is defined twice", "one/buildd.toml", "two/buildd.toml")


def test_packages_of_one_name_from_two_repositories_cannot_be_in_one_run(unharmed: Daemon, tmp_path: Path) -> None:
    for name in ("one", "two"):
        RecipeRepository(tmp_path / name).write("buildd.toml", GOOD).write("file", name).commit()
    done = unharmed.buildctl("plan", tmp_path / "one", tmp_path / "two")
    assert done.returncode == 2
    assert "package good is defined twice" in done.stderr
    assert str(tmp_path / "one") in done.stderr
    assert str(tmp_path / "two") in done.stderr


def test_a_recipe_of_five_megabytes_is_refused(unharmed: Daemon, repository: RecipeRepository) -> None:
    repository.write("buildd.toml", GOOD + "#" * (5 << 20)).commit()
    fails(unharmed, repository, "buildd.toml")


def test_a_recipe_that_is_a_symbolic_link_reads_nothing_from_outside(
    unharmed: Daemon, repository: RecipeRepository, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.toml"
    secret.write_text("[package.stolen]\n")
    (repository.path / "buildd.toml").symlink_to(secret)
    repository.write("README", "x").commit()
    done = unharmed.buildctl("plan", repository)
    assert done.returncode in (2, 3)
    assert "stolen" not in done.stdout + done.stderr


def test_a_path_that_is_a_symbolic_link_out_of_the_tree_is_refused(
    unharmed: Daemon, repository: RecipeRepository
) -> None:
    (repository.path / "etc").symlink_to("/etc")
    repository.package("a", path="etc").commit()
    fails(unharmed, repository, "package a", "not a directory")


def test_a_symbolic_link_out_of_the_source_tree_fails_the_build_and_is_named(
    unharmed: Daemon, repository: RecipeRepository
) -> None:
    for name, target in (("absolute", "/etc/shadow"), ("climbing", "sub/../../../../etc/shadow")):
        repository.package(name, phases={"build": "cat away"}).commit()
        (repository.path / name / "away").symlink_to(target)
    repository.commit()
    view = unharmed.build(repository)
    for package, target in zip(view.packages, ("/etc/shadow", "../etc/shadow"), strict=True):
        assert package.state == "failed"
        assert "away" in str(package.message)
        assert target in str(package.message)
        assert "root:" not in unharmed.build_log(package.build_id)


def test_symbolic_links_inside_a_source_tree_stay_links(unharmed: Daemon, repository: RecipeRepository) -> None:
    repository.package("a", files={"sub/file": "text\n"}, phases={"build": "readlink near; cat near"}).commit()
    (repository.path / "a" / "near").symlink_to("sub/file")
    repository.commit()
    view = unharmed.build(repository)
    lines = unharmed.log_of(view, "a").splitlines()
    assert lines[lines.index("==> build") + 1 :][:2] == ["sub/file", "text"]


def test_ten_thousand_packages_are_planned_in_waves(unharmed: Daemon, repository: RecipeRepository) -> None:
    for i in range(10_000):
        depends = [f"p{i - 100}"] if i >= 100 else []
        repository.package(f"p{i}", path=".", depends=depends)
    repository.commit()
    before = resident_bytes(unharmed.pid)

    done = unharmed.buildctl("plan", repository, "--json")

    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert len(plan["packages"]) == 10_000
    assert plan["waves"] == 100
    assert {p["name"]: p["wave"] for p in plan["packages"]}["p9999"] == 100
    assert resident_bytes(unharmed.pid) - before < 256 << 20


def test_a_chain_of_a_thousand_dependencies_is_no_deep_recursion(
    unharmed: Daemon, repository: RecipeRepository
) -> None:
    repository.package("p0", path=".", phases={"build": "exit 1"})
    for i in range(1, 3000):
        repository.package(f"p{i}", path=".", depends=[f"p{i - 1}"])
    repository.commit()
    view = unharmed.build(repository)
    assert (view.stats.failed, view.stats.blocked) == (1, 2999)
    assert named(view, "p2999").state == "blocked"


def test_an_unknown_package_exits_3_and_says_which_was_meant(unharmed: Daemon, repository: RecipeRepository) -> None:
    repository.package("libtally").package("other").commit()
    done = unharmed.buildctl("start", f"{repository}//libtaly", "--wait")
    assert "did you mean libtally?" in done.stderr + done.stdout
    assert done.returncode == 1  # the run was accepted, and failed
    planned = unharmed.buildctl("plan", f"{repository}//libtaly")
    assert planned.returncode == 3
    assert "did you mean libtally?" in planned.stderr


def test_a_repository_without_packages_or_commits_or_at_all_is_not_found(
    unharmed: Daemon, repository: RecipeRepository, tmp_path: Path
) -> None:
    assert unharmed.buildctl("plan", repository).returncode == 3  # no commit
    repository.write("README", "x").commit()
    done = unharmed.buildctl("plan", repository)
    assert done.returncode == 3
    assert "buildd.toml" in done.stderr
    assert unharmed.buildctl("plan", tmp_path / "nowhere").returncode == 3
    unknown = unharmed.buildctl("plan", "no-such-repository")
    assert unknown.returncode == 3
    assert "no-such-repository" in unknown.stderr


def test_a_damaged_repository_is_an_error_and_no_more(unharmed: Daemon, repository: RecipeRepository) -> None:
    repository.package("a").commit()
    tree = git("rev-parse", "HEAD^{tree}", cwd=repository.path)
    path = repository.path / ".git" / "objects" / tree[:2] / tree[2:]
    path.chmod(0o644)
    path.write_bytes(b"garbage")
    done = unharmed.buildctl("plan", repository)
    assert done.returncode in (1, 2, 3)
    assert "Traceback" not in done.stderr
    assert str(repository) in done.stderr
    assert unharmed.build(repository).state == "failed"
