"""Targets: `REPO[@REV][//PACKAGE]`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from buildd.engine.targets import MAX_TARGET, Target, is_url, parse_target
from buildd.errors import InvalidInput

TABLE = [
    # text, repo, revision, package, local
    ("jq", "jq", None, None, False),
    ("jq@v1.7", "jq", "v1.7", None, False),
    ("jq//libjq", "jq", None, "libjq", False),
    ("jq@main//libjq", "jq", "main", "libjq", False),
    ("jq@feature/new", "jq", "feature/new", None, False),
    ("jq@a@b", "jq", "a@b", None, False),
    ("https://h/r", "https://h/r", None, None, False),
    ("https://h/r.git@v1", "https://h/r.git", "v1", None, False),
    ("https://h/r//p", "https://h/r", None, "p", False),
    ("https://h/a/b.git@v1//p", "https://h/a/b.git", "v1", "p", False),
    ("https://user:pass@h:8443/r@v1//p", "https://user:pass@h:8443/r", "v1", "p", False),
    ("https://h/r@feature/x//p", "https://h/r", "feature/x", "p", False),
    ("https://h//p", "https://h", None, "p", False),
    ("ssh://git@h:22/r@v1", "ssh://git@h:22/r", "v1", None, False),
    ("git://127.0.0.1:9418/ws", "git://127.0.0.1:9418/ws", None, None, False),
    ("git+ssh://h/r", "git+ssh://h/r", None, None, False),
    ("file:///srv/r", "file:///srv/r", None, None, False),
    ("file:///srv/r@v1//p", "file:///srv/r", "v1", "p", False),
    ("git@h:a/b.git", "git@h:a/b.git", None, None, False),
    ("git@h:a/b.git@v1", "git@h:a/b.git", "v1", None, False),
    ("git@h:a/b.git@v1//p", "git@h:a/b.git", "v1", "p", False),
    ("git@h:/abs/b.git//p", "git@h:/abs/b.git", None, "p", False),
    ("/no/such/r", "/no/such/r", None, None, True),
    ("/no/such/r@v1", "/no/such/r", "v1", None, True),
    ("/no/such/r//p", "/no/such/r", None, "p", True),
    ("/no/such/r@v1//p", "/no/such/r", "v1", "p", True),
    ("/no/such/user@host/r@v1", "/no/such/user@host/r", "v1", None, True),
    ("/", "/", None, None, True),
]


@pytest.mark.parametrize(("text", "repo", "revision", "package", "local"), TABLE, ids=[row[0] for row in TABLE])
def test_a_target_is_taken_apart(text: str, repo: str, revision: str | None, package: str | None, local: bool) -> None:
    assert parse_target(text) == Target(repo=repo, revision=revision, package=package, local=local)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "@v1",
        "//p",
        "jq@",
        "jq//",
        "jq@//p",
        "/no/such@",
        "https://h/r@",
        "https://h/r//",
        "a\nb",
        "a\0b",
        "\x1b[2J",
        "\udcff",
    ],
)
def test_what_cannot_be_a_target_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_target(text)
    assert "REPO" in caught.value.hint
    assert caught.value.message.isprintable()


def test_an_endless_target_is_refused_and_not_repeated() -> None:
    parse_target("x" * MAX_TARGET)
    with pytest.raises(InvalidInput) as caught:
        parse_target("x" * (MAX_TARGET + 1))
    assert len(caught.value.message) < 200


def test_an_existing_directory_with_an_at_sign_is_taken_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "work@home"
    directory.mkdir()
    assert parse_target(str(directory)) == Target(repo=str(directory), revision=None, package=None, local=True)
    assert parse_target(f"{directory}@v1//p") == Target(repo=str(directory), revision="v1", package="p", local=True)


@pytest.mark.parametrize(("repo", "url"), [(row[1], "://" in row[1] or "git@" in row[1]) for row in TABLE])
def test_urls_are_told_from_names_and_paths(repo: str, url: bool) -> None:
    assert is_url(repo) == url


word = st.text("abcXYZ019._-", min_size=1, max_size=8)
path = st.lists(word, min_size=1, max_size=3).map("/".join)
repos = st.one_of(
    word,
    path.map(lambda p: f"/nonexistent-root/{p}"),
    st.builds(
        lambda scheme, user, host, p: f"{scheme}://{user}{host}/{p}",
        st.sampled_from(["https", "ssh", "git", "http"]),
        st.sampled_from(["", "git@", "user:pw@"]),
        word,
        path,
    ),
    st.builds(lambda host, p: f"git@{host}:{p}", word, path),
)


@given(repos, st.none() | path, st.none() | word)
def test_what_is_put_together_is_taken_apart_again(repo: str, revision: str | None, package: str | None) -> None:
    text = repo + (f"@{revision}" if revision else "") + (f"//{package}" if package else "")
    assert parse_target(text) == Target(repo=repo, revision=revision, package=package, local=repo.startswith("/"))


@given(st.text(max_size=40) | st.text("a/@:.\\", max_size=12))
def test_any_text_is_a_target_or_invalid_input(text: str) -> None:
    try:
        target = parse_target(text)
    except InvalidInput:
        return
    assert target.repo
    assert target.revision != ""
    assert target.package != ""
