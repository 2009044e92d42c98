"""Receipts beside artifacts: the history that a lost database is rebuilt from."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildd.model import BuildRecord, PhaseRecord
from buildd.planner.keys import Inputs, KeyParts
from buildd.store import sqlite
from buildd.store.artifacts import Receipt
from buildd.store.database import Database
from buildd.store.dbfile import apply
from buildd.store.rebuild import Receipts
from buildd.store.runs import insert_build, update_build

HOME = "https://example.org/r"


def inputs(name: str, *, tree: str = "12" * 20, crc: int | None = 7) -> Inputs:
    return Inputs(
        parts=KeyParts(
            name=name,
            version="1",
            tree=tree,
            sources=(),
            patches=(),
            phases={"build": "make"},
            formats=(),
            environment="e",
            architecture="x86_64",
            dependencies={},
        ),
        outputs={},
        environment={"sandbox": "bwrap"},
        strategy="aggressive",
        repository=HOME,
        commit="ab" * 20,
        root="cd" * 20,
        path=name,
        crc=crc,
    )


def record(id: str, package: str, output: str, *, at: float = 1000.0, **fields: Any) -> BuildRecord:
    return BuildRecord(
        **{
            "id": id,
            "run": "r1",
            "package": package,
            "version": "1",
            "state": "success",
            "started_at": at,
            "completed_at": at + 2.5,
            "key": f"key of {id}",
            "output_id": output,
            "artifact": f"/elsewhere/{output}",
            "phases": (PhaseRecord(name="build", started_at=at, duration_s=1.0, exit_status=0),),
            "repository": HOME,
            "tree": "12" * 20,
            "crc": 7,
            **fields,
        }
    )


def leave(state: Path, build: BuildRecord, *, known: Inputs | None = None, output: str = "") -> Path:
    """An artifact with the receipt of a build."""
    output = output or str(build.output_id)
    directory = state / "artifacts" / output[:2] / output
    (directory / "builds").mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").touch()
    receipt = directory / "builds" / f"{build.id}.json"
    receipt.write_bytes(msgspec.json.encode(Receipt(repository=HOME, build=build, inputs=known)))
    return receipt


def output(number: int) -> str:
    return f"{number:02x}" * 32


def rebuilt(state: Path) -> Database:
    """A database that is opened though it was missing."""
    database = Database(state / "buildd.db", Receipts(state))
    database.open()
    return database


def rows(database: Database, sql: str) -> list[Any]:
    return database.read_now(lambda c: c.execute(sql).fetchall())


def test_a_build_is_as_it_was_recorded(tmp_path: Path) -> None:
    build = record("b1", "jq", output(1))
    leave(tmp_path, build, known=inputs("jq"))
    database = rebuilt(tmp_path)
    (row,) = rows(database, "SELECT * FROM builds")

    other = Database(tmp_path / "other.db")
    other.open()
    connection = other._opened()._transactions.connection
    for sql, parameters in (
        insert_build(msgspec.structs.replace(build, state="running"), inputs("jq")),
        update_build(build),
    ):
        connection.execute(sql, parameters)
    (expected,) = rows(other, "SELECT * FROM builds")

    at = next(i for i, column in enumerate(row) if isinstance(column, bytes))
    assert row[:at] + row[at + 1 :] == expected[:at] + expected[at + 1 :]
    found = msgspec.json.decode(row[at], type=BuildRecord)
    artifact = str(tmp_path / "artifacts" / output(1)[:2] / output(1))
    assert found == msgspec.structs.replace(build, artifact=artifact), "where it is now, not where it was"
    assert database.renewal is not None
    assert database.renewal.rebuilt == 1


def test_the_index_has_the_latest_success_of_each_package_version_and_repository(tmp_path: Path) -> None:
    leave(tmp_path, record("new", "jq", output(2), at=300.0))
    leave(tmp_path, record("old", "jq", output(1), at=100.0))
    leave(tmp_path, record("middle", "jq", output(3), at=200.0))
    leave(tmp_path, record("two", "jq", output(3), at=50.0, version="2"))
    leave(tmp_path, record("there", "jq", output(1), at=10.0, repository="https://example.org/fork", tree="34" * 20))
    database = rebuilt(tmp_path)
    index = rows(database, "SELECT version, repository, build, key, output_id, tree, crc, built_at FROM package_index")
    assert sorted(index) == [
        ("1", "https://example.org/fork", "there", "key of there", output(1), "34" * 20, 7, 12.5),
        ("1", HOME, "new", "key of new", output(2), "12" * 20, 7, 302.5),
        ("2", HOME, "two", "key of two", output(3), "12" * 20, 7, 52.5),
    ]
    assert rows(database, "SELECT count(*) FROM builds") == [(5,)]


def test_checksums_of_sources_are_known_again(tmp_path: Path) -> None:
    leave(tmp_path, record("a", "a", output(1), tree="11" * 20, crc=5))
    leave(tmp_path, record("b", "b", output(2), tree="11" * 20, crc=5))
    leave(tmp_path, record("c", "c", output(3), tree="33" * 20, crc=None))
    leave(tmp_path, record("d", "d", output(4), tree="", crc=None), known=inputs("d", tree="44" * 20, crc=9))
    database = rebuilt(tmp_path)
    assert rows(database, "SELECT * FROM source_trees ORDER BY tree") == [("11" * 20, 5, None), ("44" * 20, 9, None)]
    assert rows(database, "SELECT tree, crc FROM package_index WHERE package = 'd'") == [("44" * 20, 9)]


def test_a_receipt_of_an_early_version_is_taken_without_inputs(tmp_path: Path) -> None:
    path = leave(tmp_path, record("b1", "jq", output(1)))
    receipt = json.loads(path.read_text())
    del receipt["inputs"]
    for later in ("repository", "tree", "crc", "retried"):
        receipt["build"].pop(later, None)
    receipt["key_parts"] = {"name": "jq", "anything": 1}
    path.write_text(json.dumps(receipt))
    database = rebuilt(tmp_path)
    assert rows(database, "SELECT id, repository, inputs FROM builds") == [("b1", HOME, None)]
    assert rows(database, "SELECT build, repository, tree, crc FROM package_index") == [("b1", HOME, "", None)]
    assert rows(database, "SELECT * FROM source_trees") == []


def test_what_is_no_receipt_of_that_output_is_passed_over(tmp_path: Path) -> None:
    builds = leave(tmp_path, record("good", "jq", output(1))).parent
    leave(tmp_path, record("failed", "jq", output(1), state="failed"))
    leave(tmp_path, record("elsewhere", "jq", output(2)), output=output(1))
    leave(tmp_path, record("renamed", "jq", output(1))).rename(builds / "other.json")
    leave(tmp_path, record("huge", "jq", output(1), crc=2**63))
    (builds / "half.json").write_text('{"format": 1, "build": {')
    (builds / "binary.json").write_bytes(os.urandom(1000))
    (builds / "empty.json").touch()
    (builds / "list.json").write_text("[1, 2]")
    (builds / "directory.json").mkdir()
    (builds / "link.json").symlink_to("/nowhere")
    (builds / "note.txt").write_text("hello")
    text = (builds / "good.json").read_text()
    (builds / "strange.json").write_text(text.replace('"id":"good"', '"id":"strange"').replace('"jq"', '"\\ud800"'))
    database = rebuilt(tmp_path)
    assert rows(database, "SELECT id FROM builds") == [("good",)]


def test_an_artifact_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    leave(tmp_path, record("whole", "jq", output(1)))
    path = leave(tmp_path, record("half", "jq", output(2)))
    (path.parents[1] / "manifest.json").unlink()
    (tmp_path / "artifacts" / "stray").touch()
    (tmp_path / "artifacts" / "zz").touch()
    database = rebuilt(tmp_path)
    assert rows(database, "SELECT id FROM builds") == [("whole",)]


@pytest.mark.parametrize("content", ["nothing", "empty", "half"])
def test_without_artifacts_there_is_no_history(tmp_path: Path, content: str) -> None:
    if content == "empty":
        (tmp_path / "artifacts").mkdir()
    elif content == "half":
        path = leave(tmp_path, record("half", "jq", output(2)))
        (path.parents[1] / "manifest.json").unlink()
    assert not Receipts(tmp_path).exists()
    assert rebuilt(tmp_path).renewal is None


def test_what_the_database_has_is_not_overwritten_but_for_what_says_running(tmp_path: Path) -> None:
    done, interrupted = record("done", "jq", output(1), at=500.0), record("lost", "vim", output(2))
    leave(tmp_path, msgspec.structs.replace(done, message="from the receipt"))
    leave(tmp_path, interrupted, known=inputs("vim"))
    database = Database(tmp_path / "buildd.db")
    database.open()
    connection = database._opened()._transactions.connection
    running = msgspec.structs.replace(interrupted, state="running", output_id=None, completed_at=None)
    for statement in (insert_build(done, inputs("jq")), update_build(done), insert_build(running, inputs("vim"))):
        connection.execute(*statement)
    apply(connection, Receipts(tmp_path).statements())
    found = {row[0]: row[1:] for row in rows(database, "SELECT id, state, output_id, duration_s, record FROM builds")}
    assert found["lost"][:3] == ("success", output(2), 2.5)
    assert msgspec.json.decode(found["done"][3], type=BuildRecord).message is None


def test_runs_are_numbered_above_what_is_known_of_them(tmp_path: Path) -> None:
    for n in range(3):
        leave(tmp_path, record(f"b{n}", "jq", output(1), run=f"run {n}"))
    database = rebuilt(tmp_path)
    assert database.read_now(lambda c: sqlite.last_number(c, "runs")) == 3

    (tmp_path / "buildd.db").unlink()
    for name in ("7", "12", ".13.tmp", "x", "1" * 40, "²"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    database = rebuilt(tmp_path)
    assert database.read_now(lambda c: sqlite.last_number(c, "runs")) == 12


def test_ten_thousand_receipts_take_seconds(tmp_path: Path) -> None:
    for n in range(2_000):
        id = f"{n:064x}"[::-1]
        leave(tmp_path, record(f"b{n}", f"p{n}", id, tree=f"{n:040x}"), known=inputs(f"p{n}", tree=f"{n:040x}"))
        for again in range(4):
            leave(tmp_path, record(f"b{n}-{again}", f"p{n}", id, at=float(again)), known=inputs(f"p{n}"))
    began = time.process_time()
    database = rebuilt(tmp_path)
    assert time.process_time() - began < 10
    with closing(sqlite.connect_reader(database.path)) as connection:
        assert connection.execute("SELECT count(*) FROM builds").fetchone() == (10_000,)
