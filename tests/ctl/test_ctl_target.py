"""What the daemon is told when a person types a target."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctl.failure import USAGE, CtlError
from ctl.target import absolute, repository_and_revision


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "things").mkdir()
    (tmp_path / "odd@name").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (".", "{}"),
        ("./", "{}"),
        ("./things", "{}/things"),
        ("things", "{}/things"),
        ("./things/../things", "{}/things"),
        ("./missing", "{}/missing"),
        (".@main", "{}@main"),
        (".//zlib", "{}//zlib"),
        (".//things//zlib", "{}/things//zlib"),
        ("./things//zlib", "{}/things//zlib"),
        (".@main//zlib", "{}@main//zlib"),
        ("things@v1.2//zlib", "{}/things@v1.2//zlib"),
        (".@feature/x//zlib", "{}@feature/x//zlib"),
        (".@HEAD@{1}", "{}@HEAD@{{1}}"),
        ("./odd@name", "{}/odd@name"),
        ("./odd@name@main//a", "{}/odd@name@main//a"),
        ("./missing@v1", "{}/missing@v1"),
        ("~", "{}/home"),
        ("~/things@main", "{}/home/things@main"),
    ],
)
def test_local_paths_become_absolute(typed: str, sent: str, here: Path) -> None:
    assert absolute(typed) == sent.format(here)


@pytest.mark.parametrize(
    "target",
    [
        "zlib",
        "zlib@v1.3",
        "zlib@v1.3//contrib",
        "file",
        "https://example.org/things.git@main//zlib",
        "file:///srv/git/things",
        "git+ssh://git@example.org/x",
        "git@example.org:team/things.git",
        "git@example.org:things.git@v1//zlib",
        "example.org:things//zlib",
    ],
)
def test_urls_and_names_are_sent_as_typed(target: str) -> None:
    assert absolute(target) == target


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("/srv/things", "/srv/things"),
        ("//srv/things//zlib", "/srv/things//zlib"),
        ("/srv/things@main//zlib", "/srv/things@main//zlib"),
        ("/", "/"),
    ],
)
def test_absolute_paths_keep_revision_and_package(typed: str, sent: str) -> None:
    assert absolute(typed) == sent


@pytest.mark.parametrize("target", ["", "  "])
def test_an_empty_target_is_wrong_usage(target: str) -> None:
    with pytest.raises(CtlError, match="empty") as caught:
        absolute(target)
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    ("typed", "repo", "revision"),
    [
        ("zlib", "zlib", ""),
        ("zlib@v1.3", "zlib", "v1.3"),
        ("zlib@feature/x@2", "zlib", "feature/x@2"),
        ("https://example.org/things.git", "https://example.org/things.git", ""),
        ("https://example.org/things.git@main", "https://example.org/things.git", "main"),
        ("ssh://git@example.org/things@v1", "ssh://git@example.org/things", "v1"),
        ("ssh://git@example.org", "ssh://git@example.org", ""),
        ("git@example.org:team/things.git", "git@example.org:team/things.git", ""),
        ("git@example.org:things.git@v1", "git@example.org:things.git", "v1"),
        ("./things@v1", "{}/things", "v1"),
        ("odd@name@v1", "{}/odd@name", "v1"),
        ("/srv/things@main", "/srv/things", "main"),
    ],
)
def test_a_repository_is_told_from_its_revision(typed: str, repo: str, revision: str, here: Path) -> None:
    assert repository_and_revision(typed) == (repo.format(here), revision)


def test_an_empty_revision_is_wrong_usage() -> None:
    with pytest.raises(CtlError, match="ends in @"):
        repository_and_revision("zlib@")
