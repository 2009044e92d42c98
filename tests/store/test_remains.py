"""What cannot be removed for a while goes later, without anybody asking again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildd.store import remains


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tree that cannot be opened, and so not be removed, as long as there is a file `trouble` beside it."""
    tree, trouble = tmp_path / "tree", tmp_path / "trouble"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").touch()
    trouble.touch()
    real = os.open

    def refuse(path: str, *arguments: int, **keys: int) -> int:
        if trouble.exists() and "tree" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *arguments, **keys)

    monkeypatch.setattr(os, "open", refuse)
    yield tree
    trouble.unlink(missing_ok=True)
    remains.remove_again()
    assert not remains.some()


def test_what_cannot_be_removed_is_said_and_is_removed_when_it_can_be(stuck: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        remains.remove(stuck)
    assert remains.some()
    remains.remove_again()
    assert stuck.exists()
    assert remains.some()
    (stuck.parent / "trouble").unlink()
    remains.remove_again()
    assert not stuck.exists()
    assert not remains.some()


def test_who_has_nothing_to_say_about_it_hears_nothing(stuck: Path) -> None:
    remains.discard(stuck)
    assert stuck.exists()
    assert remains.some()


def test_what_can_be_removed_is_and_nothing_remains(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    remains.discard(tmp_path / "tree")
    remains.discard(tmp_path / "never there")
    assert list(tmp_path.iterdir()) == []
    assert not remains.some()
