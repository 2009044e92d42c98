"""How an earlier life of the daemon ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildd import life


def test_the_first_life_follows_no_other(tmp_path: Path) -> None:
    assert life.begin(tmp_path) == "stopped"


def test_a_life_that_ended_by_itself_was_not_killed(tmp_path: Path) -> None:
    life.begin(tmp_path)
    life.end(tmp_path)
    assert life.begin(tmp_path) == "stopped"
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_a_life_that_did_not_end_in_the_same_boot_was_killed(tmp_path: Path) -> None:
    life.begin(tmp_path)
    assert life.begin(tmp_path) == "killed"


def test_a_life_that_did_not_end_in_another_boot_ended_with_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.begin(tmp_path)
    monkeypatch.setattr(life, "boot_id", lambda: "another")
    assert life.begin(tmp_path) == "machine down"


@pytest.mark.parametrize("content", [b"", b"{", b'{"boot_id": 1}'])
def test_a_note_that_was_cut_off_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    life.begin(tmp_path)
    (tmp_path / "life.json").write_bytes(content)
    assert life.begin(tmp_path) == "machine down"
    life.end(tmp_path)
    life.end(tmp_path)
