"""Asking file systems for their space, those too that never answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from buildd.monitor import space
from buildd.monitor.space import Space, Spaces, in_units, space_of


def test_the_space_of_a_directory_is_that_of_its_file_system(tmp_path: Path) -> None:
    found = space_of(tmp_path)
    said = os.statvfs(tmp_path)
    assert found.total_bytes == said.f_blocks * said.f_frsize
    assert 0 < found.free_bytes <= found.total_bytes
    assert (found.total_inodes, found.device) == (said.f_files, tmp_path.stat().st_dev)


async def test_a_directory_that_is_gone_has_no_space(tmp_path: Path) -> None:
    found = await Spaces([tmp_path, tmp_path / "gone"]).look()
    assert found[tmp_path] is not None
    assert found[tmp_path / "gone"] is None


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, threading.Event, list[Path]]]:
    """A directory whose file system answers when the event is set, and the questions put to it."""
    answer, asked, directory = threading.Event(), [], tmp_path / "dead"

    def hang(path: Path) -> Space:
        asked.append(path)
        assert answer.wait(60)
        return Space(free_bytes=1, total_bytes=2)

    monkeypatch.setattr(space, "space_of", lambda path: hang(path) if path == directory else space_of(path))
    monkeypatch.setattr(space, "WITHIN_S", 0.05)
    yield directory, answer, asked
    answer.set()


async def test_a_file_system_that_does_not_answer_holds_nobody_and_is_not_asked_again(
    dead: tuple[Path, threading.Event, list[Path]], tmp_path: Path
) -> None:
    directory, answer, asked = dead
    spaces = Spaces([directory, tmp_path])
    with trio.fail_after(10):
        assert await spaces.look() == {directory: None, tmp_path: None}
        for _ in range(3):
            found = await spaces.look()
            assert found[directory] is None
            assert found[tmp_path] is not None, "those behind it are asked without it"
        assert asked == [directory], "one thread hangs, and not one more with each look"
        answer.set()
        while (await spaces.look())[directory] is None:
            await trio.sleep(0.01)


def test_sizes_read_well() -> None:
    assert [in_units(n) for n in (0, 1023, 1536, 3 << 20, 5 << 30, 7 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
        "7.0 TiB",
    ]
