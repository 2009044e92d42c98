"""Revisions that outlive the daemon: what comes back is what was kept, and anything else is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import RecipeRepository, git, killed_before

from buildd.engine import discovery, keepsake
from buildd.engine.discovery import Discoveries
from buildd.engine.keepsake import Keepsakes


@pytest.fixture
def workspace(tmp_path: Path) -> RecipeRepository:
    repository = RecipeRepository(tmp_path / "workspace")
    repository.package("base", files={"a.c": "1"}).package("app", depends=["base"], phases={"build": "true"}).commit()
    return repository


def look(workspace: RecipeRepository, kept: Path) -> discovery.Revision:
    tree = git("rev-parse", "HEAD^{tree}", cwd=workspace.path)
    return Discoveries(Keepsakes(kept)).look(str(workspace), str(workspace), tree)


def without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the recipes were read again")

    monkeypatch.setattr(discovery, "discover", refuse)
    monkeypatch.setattr(discovery, "read_recipes", refuse)


def test_a_revision_of_an_earlier_life_is_not_looked_into_again(
    workspace: RecipeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(workspace, tmp_path / "kept")
    without_looking(monkeypatch)
    again = look(workspace, tmp_path / "kept")
    assert again.packages == first.packages
    assert list(again.files) == list(first.files)


def test_a_change_since_then_is_found_from_what_was_kept(
    workspace: RecipeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(workspace, tmp_path / "kept")
    workspace.write("base/a.c", "2")
    workspace.commit()
    without_looking(monkeypatch)
    again = look(workspace, tmp_path / "kept")
    assert again.packages["app"] == first.packages["app"]
    assert again.packages["base"].tree != first.packages["base"].tree


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_file_is_as_good_as_none(workspace: RecipeRepository, tmp_path: Path, damage: bytes | None) -> None:
    first = look(workspace, tmp_path / "kept")
    [file] = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    assert look(workspace, tmp_path / "kept").packages == first.packages


def test_what_other_code_has_kept_is_not_used(
    workspace: RecipeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(workspace, tmp_path / "kept")
    monkeypatch.setattr(keepsake, "_code", lambda: b"\0" * 32)
    assert Keepsakes(tmp_path / "kept").load(str(workspace), str(workspace)) is None


def test_a_directory_that_cannot_be_written_does_no_harm(workspace: RecipeRepository, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file is in the way")
    assert set(look(workspace, tmp_path / "kept").packages) == {"base", "app"}


def test_what_was_being_kept_when_the_daemon_was_killed_is_removed(tmp_path: Path) -> None:
    keepsakes = Keepsakes(tmp_path / "kept")
    keepsakes.save("/r", "/s", "0" * 40, {})
    killed_before("os.rename", lambda: keepsakes.save("/r", "/s", "1" * 40, {}))
    assert len(list((tmp_path / "kept").iterdir())) == 2
    Keepsakes(tmp_path / "kept").remove_leftovers()
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert keepsakes.load("/r", "/s") == ("0" * 40, {})


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    keepsakes = Keepsakes(tmp_path / "kept")
    for number in range(keepsake.KEPT + 3):
        keepsakes.save(f"/r{number}", "/s", "0" * 40, {})
    assert len(list((tmp_path / "kept").iterdir())) == keepsake.KEPT
    assert keepsakes.load(f"/r{keepsake.KEPT + 2}", "/s") == ("0" * 40, {})
