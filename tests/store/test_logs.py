"""The logs of builds: from any offset, at any time."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from buildd.store.logs import Logs

BUILD = "01234567-89ab-4def-8000-000000000000"


def logged(directory: Path, content: bytes, build: str = BUILD) -> Logs:
    logs = Logs(directory / "logs")
    handle = logs.open(build)
    os.write(handle, content)
    os.close(handle)
    return logs


@pytest.mark.parametrize(
    ("offset", "limit", "start", "data"),
    [
        (0, 100, 0, b"0123456789"),
        (0, 4, 0, b"0123"),
        (4, 4, 4, b"4567"),
        (8, 4, 8, b"89"),
        (10, 4, 10, b""),
        (99, 4, 10, b""),
        (-3, 100, 7, b"789"),
        (-3, 2, 7, b"78"),
        (-99, 100, 0, b"0123456789"),
    ],
)
def test_a_log_is_read_from_any_offset(tmp_path: Path, offset: int, limit: int, start: int, data: bytes) -> None:
    assert logged(tmp_path, b"0123456789").read(BUILD, offset, limit) == (start, data)


def test_a_log_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "logs")
    assert logs.read(BUILD, 5, 10) == (0, b"")
    assert logs.size(BUILD) == 0
    assert logs.last_line(BUILD) == ""


def test_what_is_appended_comes_after_what_the_build_wrote(tmp_path: Path) -> None:
    logs = logged(tmp_path, b"one\n")
    logs.append(BUILD, "two\udcff\n")
    logs.append(BUILD, "three\n")
    assert logs.read(BUILD, 0, 100) == (0, b"one\ntwo\\udcff\nthree\n")


def test_a_log_that_is_opened_anew_is_not_cut(tmp_path: Path) -> None:
    logs = logged(tmp_path, b"one\n")
    os.close(logs.open(BUILD))
    assert logs.read(BUILD, 0, 100) == (0, b"one\n")


def test_no_directory_grows_without_bound(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "logs")
    for _ in range(600):
        os.close(logs.open(str(uuid.uuid4())))
    top = os.listdir(logs.directory)
    assert 150 < len(top) <= 256
    assert max(len(os.listdir(logs.directory / name)) for name in top) < 20


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", ""),
        (b"\n\n  \n", ""),
        (b"one\ntwo\n", "two"),
        (b"one\ntwo", "two"),
        (b"one\n\n   \n", "one"),
        (b"10%\r50%\r90%", "90%"),
        (b"10%\r50%\r", "50%"),
        (b"bell\x07 and nul\x00\n", "bell and nul"),
        (b"tab\tbed\n", "tabbed"),
        ("naïve ✓\n".encode(), "naïve ✓"),
        (b"cut \xe2\x9c", "cut �"),
        (b"x" * 10_000, "x" * 200),
        (b"start" + b" " * 5000 + b"end", "end"),
    ],
)
def test_the_last_line_is_the_last_with_anything_on_it(tmp_path: Path, content: bytes, line: str) -> None:
    assert logged(tmp_path, content).last_line(BUILD) == line


def test_the_last_line_has_no_remains_of_colours(tmp_path: Path) -> None:
    content = b"\x1b[1m\x1b[32m[ 50%] Building C object\x1b[0m\n"
    assert logged(tmp_path, content).last_line(BUILD) == "[ 50%] Building C object"


@given(content=st.binary(max_size=300))
def test_the_last_line_is_fit_for_a_terminal_whatever_the_build_writes(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp()
    build = str(uuid.uuid4())
    logs = logged(directory, content, build)
    assert logs.last_line(build).isprintable()
    logs.path(build).unlink()
