"""Files that are made to hurt: no crash, no hang, each within its limits, and the others are mapped all the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from repomap_maps import Repository, git
from repomap_samples import SAMPLES

from buildd.repomap import examine, parsers
from buildd.repomap.contents import sort_out
from buildd.repomap.records import Record, Task

SUFFIXES = {language: name.rpartition(".")[2] for language, (name, _, _) in SAMPLES.items()}
NESTED = ("(", "{", "[", "<", "if (", "f(", "{ if x {", "class A {\n", "`${", "#{", "[[", "case x in\n", "def f(", "((")
UNFINISHED = (
    '"',
    "'",
    "`",
    "/*",
    '"""',
    "'''",
    "<<EOF\n",
    "<<-'X'\n",
    'R"x(',
    "%w(",
    "--[[",
    "#if 1\n",
    '@"',
    "<?php ",
    'r#"',
)


def corpus() -> Iterator[tuple[str, bytes]]:
    for language, (_, text, _) in SAMPLES.items():
        suffix = SUFFIXES[language]
        data = text.encode()
        deep = NESTED[sum(language.encode()) % len(NESTED)].encode()
        yield f"{language}/deep.{suffix}", b"\n".join([deep * 20] * 5000)
        yield f"{language}/round.{suffix}", b"\n".join([b"(" * 100] * 100 + [b")" * 100] * 100)
        yield f"{language}/unfinished.{suffix}", b"".join(data + end.encode() + b"\n" for end in UNFINISHED)
        yield f"{language}/openings.{suffix}", b"\n".join([end.encode() for end in UNFINISHED] * 200)
        yield f"{language}/halves.{suffix}", b"\n".join(data[:at] for at in range(0, len(data), 23))
        yield f"{language}/latin.{suffix}", data + b"\n\xff\xfe\xe9 = \xc3(\n" + data
        yield f"{language}/late_nul.{suffix}", data * 20 + b" " * 8000 + b"\n\0\0\n" + data


def test_a_corpus_of_nasty_files_in_every_language_is_mapped(repository: Repository) -> None:
    files = dict(corpus())
    repository.commit({**files, "fine.py": "def all_is_well(): pass\n", "line.js": b"a(" * (5 << 20)})
    began = time.monotonic()
    made = repository.map(max_file_s=0.2)
    left_out = made.left_out()
    assert left_out.pop("line.js") == "too_large"
    assert set(left_out.values()) <= {"timeout", "binary"}
    assert time.monotonic() - began < 60 + 0.5 * len(left_out)
    assert made.tags(name="all_is_well").total == 1
    assert made.built.mapped == len(files) + 1 - len(left_out)
    again = repository.map(max_file_s=0.2)
    assert again.built.parsed == 0  # what was given up is not tried again
    assert again.content() == made.content()


@pytest.mark.parametrize("language", SAMPLES)
@given(data=st.data())
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_texts_that_were_tampered_with_have_records(language: str, data: st.DataObject) -> None:
    text = bytearray(SAMPLES[language][1].encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        match data.draw(st.sampled_from(["cut", "insert", "repeat", "end"])):
            case "cut":
                del text[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                text[at:at] = data.draw(st.binary(max_size=12) | st.sampled_from([end.encode() for end in UNFINISHED]))
            case "repeat":
                text[at:at] = text[max(0, at - 30) : at] * data.draw(st.integers(1, 20))
            case _:
                del text[at:]
    record = examine.examine(bytes(text), language)
    if record.reason:
        assert record.reason == "binary"
        return
    count = len(record.names)
    assert len(record.kinds) == len(record.weights) == len(record.tags) == len(record.ctags) == count
    assert len(record.places) == 12 * count
    assert len(record.hashes) == 8 * count
    lines = bytes(text).count(b"\n") + 1
    places = memoryview(record.places).cast("i").tolist()
    for number in range(count):
        first, last, outer = places[3 * number : 3 * number + 3]
        assert 1 <= first <= last <= max(lines, record.lines)
        assert -1 <= outer < number


def tasks_of(repository: Repository, names: list[str]) -> list[Task]:
    return [(bytes.fromhex(git("rev-parse", f"HEAD:{name}", cwd=repository.path)), "python") for name in names]


class Parsing:
    """`parse` in this process, with parsers that may be told to misbehave on some blobs."""

    def __init__(self, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = repository
        self.monkeypatch = monkeypatch
        self.answers: dict[Task, Record] = {}

    def run(self, tasks: list[Task], *, max_file_s: float = 10.0, processes: int = 2) -> None:
        import msgspec

        def take(task: Task, answer: bytes | Record) -> None:
            assert task not in self.answers
            self.answers[task] = answer if isinstance(answer, Record) else msgspec.msgpack.decode(answer, type=Record)

        parsers.parse(
            tasks,
            repository=str(self.repository.path),
            max_file_bytes=1 << 20,
            max_file_s=max_file_s,
            processes=processes,
            take=take,
        )

    def misbehave(self, on: bytes, what: object) -> None:
        original = examine.examine

        def examining(data: bytes, hint: str) -> Record:
            if on in data:
                what()  # type: ignore[operator]
            return original(data, hint)

        self.monkeypatch.setattr(examine, "examine", examining)


@pytest.fixture
def parsing(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Parsing:
    repository.commit({f"f{number}.py": f"def f{number}(): pass\n" for number in range(100)})
    return Parsing(repository, monkeypatch)


def names(parsing: Parsing, tasks: list[Task]) -> list[str]:
    return ["".join(parsing.answers[task].names) or parsing.answers[task].reason for task in tasks]


def test_a_file_that_is_never_finished_is_given_up_and_the_others_are_not(parsing: Parsing) -> None:
    tasks = tasks_of(parsing.repository, [f"f{number}.py" for number in range(100)])

    def loop() -> None:
        while True:
            pass

    parsing.misbehave(b"f50(", loop)
    began = time.monotonic()
    parsing.run(tasks, max_file_s=0.3)
    assert time.monotonic() - began < 20
    assert names(parsing, tasks) == [f"f{number}" if number != 50 else "timeout" for number in range(100)]


def test_a_file_that_its_parsers_die_of_is_given_up(parsing: Parsing) -> None:
    tasks = tasks_of(parsing.repository, [f"f{number}.py" for number in range(100)])
    parsing.misbehave(b"f7(", lambda: os.kill(os.getpid(), signal.SIGKILL))
    parsing.run(tasks)
    assert names(parsing, tasks) == [f"f{number}" if number != 7 else "crashed" for number in range(100)]


def test_a_parser_that_is_killed_once_costs_nothing_but_time(parsing: Parsing, tmp_path: Path) -> None:
    tasks = tasks_of(parsing.repository, [f"f{number}.py" for number in range(100)])
    mark = tmp_path / "once"

    def once() -> None:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    parsing.misbehave(b"f7(", once)
    parsing.run(tasks, processes=3)
    assert names(parsing, tasks) == [f"f{number}" for number in range(100)]


def test_a_parser_that_takes_too_much_memory_dies_alone(parsing: Parsing) -> None:
    tasks = tasks_of(parsing.repository, [f"f{number}.py" for number in range(30)])
    parsing.monkeypatch.setattr(parsers, "_MAX_MEMORY", 200 << 20)

    def grow() -> None:
        bytearray(1 << 30)

    parsing.misbehave(b"f7(", grow)
    parsing.run(tasks)
    assert names(parsing, tasks) == [f"f{number}" if number != 7 else "crashed" for number in range(30)]


def test_a_parser_that_grew_is_replaced(parsing: Parsing) -> None:
    tasks = tasks_of(parsing.repository, [f"f{number}.py" for number in range(100)])
    parsing.monkeypatch.setattr(parsers, "_RECYCLE_BYTES", -(1 << 40))
    parsing.run(tasks, processes=1)
    assert names(parsing, tasks) == [f"f{number}" for number in range(100)]


def test_a_blob_that_is_not_there_is_missing(parsing: Parsing) -> None:
    parsing.run([(bytes(20), "python")])
    assert parsing.answers[(bytes(20), "python")].reason == "missing"


def test_a_text_of_one_line_is_minified_only_when_it_is_long() -> None:
    assert sort_out(b"x" * 5000) == "minified"
    assert sort_out(b"x" * 500) is None
