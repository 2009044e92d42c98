"""The journal: numbers without gaps, polls that wait, and never a silent hole."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from buildd.errors import Refused
from buildd.model import Event
from buildd.protocol import MAX_EVENTS
from buildd.store import journal as journal_module
from buildd.store.database import Database, DatabaseError
from buildd.store.journal import Journal

pytestmark = pytest.mark.trio
LIMIT_S = 20.0


@asynccontextmanager
async def opened(path: Path, keep: int = 1_000_000) -> AsyncIterator[Journal]:
    database = Database(path)
    database.open()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            yield Journal(database, keep)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with opened(tmp_path / "b.db") as journal:
        yield journal


async def emit(journal: Journal, count: int, *, run: str | None = None, kind: str = "tick") -> None:
    commits = [journal.emit(kind, run=run) for _ in range(count)]
    for commit in commits:
        await commit.wait()


def numbers(events: tuple[Event, ...]) -> list[int]:
    return [event.number for event in events]


async def all_after(journal: Journal, after: int, *, timeout: float = 1.0, limit: int = MAX_EVENTS) -> list[int]:
    """What a reader who keeps asking sees."""
    seen: list[int] = []
    while True:
        result = await journal.poll(after, timeout=timeout if after < journal.last else 0, limit=limit)
        assert result.next >= after
        if not result.events:
            return seen
        seen += numbers(result.events)
        after = result.next


# --- numbers ----------------------------------------------------------------------------------------------


async def test_events_are_numbered_from_one_without_gaps_and_keep_what_they_carry(journal: Journal) -> None:
    await journal.emit("run_state", run="r1", data={"to": "planning"}).wait()
    await journal.emit("package_started", run="r1", build="b1", package="jq", repository="https://h/r").wait()
    result = await journal.poll(0, timeout=0)
    assert numbers(result.events) == [1, 2]
    assert result.next == 2
    first, second = result.events
    assert (first.kind, first.run, first.data) == ("run_state", "r1", {"to": "planning"})
    assert (second.build, second.package, second.repository, second.data) == ("b1", "jq", "https://h/r", {})


async def test_an_event_is_seen_only_once_it_is_on_disk(tmp_path: Path) -> None:
    database = Database(tmp_path / "b.db")
    database.open()
    journal = Journal(database, 1000)
    commit = journal.emit("early")
    assert journal.last == 0
    assert (await journal.poll(0, timeout=0)).events == ()
    async with trio.open_nursery() as nursery:
        await nursery.start(database.run)
        await commit.wait()
        assert numbers((await journal.poll(0, timeout=0)).events) == [1]
        assert database.read_now(lambda c: c.execute("SELECT count(*) FROM events").fetchone()) == (1,)
        nursery.cancel_scope.cancel()


async def test_the_event_and_the_record_it_reports_are_one_transaction(journal: Journal) -> None:
    insert = ("INSERT INTO repositories (url, record) VALUES (?, ?)", ("a", b"{}"))
    await journal.emit("one", statements=[insert]).wait()
    with pytest.raises(DatabaseError):
        await journal.emit("two", statements=[insert]).wait()
    database = journal._database
    assert database.read_now(lambda c: c.execute("SELECT count(*) FROM repositories").fetchone()) == (1,)
    kinds = database.read_now(lambda c: c.execute("SELECT kind FROM events").fetchall())
    assert kinds == [("one",), ("two",)], "what happened is told all the same, and no number is missing"


async def test_a_database_that_cannot_record_does_not_hold_events_back(journal: Journal) -> None:
    with pytest.raises(DatabaseError):
        await journal.emit("lost", statements=[("INSERT INTO nowhere VALUES (1)", ())]).wait()
    await journal.emit("kept").wait()
    assert [e.kind for e in (await journal.poll(0, timeout=0)).events] == ["lost", "kept"]


async def test_numbers_go_on_where_they_ended(tmp_path: Path) -> None:
    async with opened(tmp_path / "b.db") as journal:
        await emit(journal, 5)
    async with opened(tmp_path / "b.db") as journal:
        assert journal.last == 5
        await emit(journal, 2)
        assert await all_after(journal, 0) == [1, 2, 3, 4, 5, 6, 7]
        assert await all_after(journal, 5) == [6, 7]


@pytest.mark.parametrize("timeout", [0.0, 5.0])
async def test_a_poll_that_does_not_wait_still_reads_what_is_only_on_disk(tmp_path: Path, timeout: float) -> None:
    async with opened(tmp_path / "b.db") as journal:
        await emit(journal, 5)
    async with opened(tmp_path / "b.db") as journal:
        result = await journal.poll(2, timeout=timeout)
        assert numbers(result.events) == [3, 4, 5]
        assert result.next == 5


# --- waiting ----------------------------------------------------------------------------------------------


async def test_a_poll_waits_for_the_next_event_and_wakes_for_it(journal: Journal) -> None:
    await emit(journal, 1)
    results: list[list[int]] = []

    async def reader() -> None:
        results.append(numbers((await journal.poll(1, timeout=60)).events))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        assert results == []
        await emit(journal, 1)
    assert results == [[2]] * 10


async def test_minus_one_means_only_what_is_to_come(journal: Journal) -> None:
    await emit(journal, 3)
    empty = await journal.poll(-1, timeout=0)
    assert (empty.events, empty.next) == ((), 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emit, journal, 1)
        result = await journal.poll(-1, timeout=60)
    assert numbers(result.events) == [4]


async def test_a_poll_that_times_out_says_where_to_go_on(journal: Journal) -> None:
    await emit(journal, 3, run="r1")
    result = await journal.poll(1, timeout=0.01, run="other")
    assert (result.events, result.next) == ((), 3)
    assert (await journal.poll(3, timeout=0)).next == 3


async def test_a_poll_is_not_woken_by_what_it_does_not_ask_for(journal: Journal) -> None:
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            await emit(journal, 5, kind="noise")
            await emit(journal, 1, kind="signal")

        nursery.start_soon(write)
        result = await journal.poll(0, timeout=60, kinds=("signal",))
    assert numbers(result.events) == [6]
    assert result.next == 6


async def test_a_cancelled_poll_leaves_nothing_that_disturbs_the_others(journal: Journal) -> None:
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.01):
            await journal.poll(0, timeout=60)
        nursery.start_soon(emit, journal, 1)
        assert numbers((await journal.poll(0, timeout=60)).events) == [1]


# --- filters and limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reopened", [False, True], ids=["from-memory", "from-disk"])
async def test_filters_by_run_and_kind_and_pages_lose_nothing(tmp_path: Path, reopened: bool) -> None:
    async with opened(tmp_path / "b.db") as journal:
        for number in range(30):
            journal.emit("even" if number % 2 == 0 else "odd", run=f"r{number % 3}")
        await emit(journal, 1, kind="last")
        async with contextlib.AsyncExitStack() as stack:
            if reopened:
                journal = await stack.enter_async_context(opened(tmp_path / "b.db"))
            wanted = [n for n in range(1, 31) if (n - 1) % 3 == 1 and (n - 1) % 2 == 0]
            seen: list[int] = []
            after = 0
            while after < 31:
                result = await journal.poll(after, timeout=1, limit=2, run="r1", kinds=("even",))
                assert len(result.events) <= 2
                seen += numbers(result.events)
                after = result.next
                if not result.events:
                    break
            assert seen == wanted
            assert numbers((await journal.poll(0, timeout=1, kinds=("last", "odd"), limit=1000)).events)[-1] == 31
            assert numbers((await journal.poll(10, timeout=1, limit=3)).events) == [11, 12, 13]


async def test_no_answer_has_more_events_than_the_protocol_says(journal: Journal) -> None:
    await emit(journal, MAX_EVENTS + 10)
    assert len((await journal.poll(0, timeout=0, limit=10**9)).events) == MAX_EVENTS
    assert len((await journal.poll(0, timeout=0, limit=-5)).events) == 1
    assert await all_after(journal, 0, limit=7) == list(range(1, MAX_EVENTS + 11))


async def test_a_reader_who_falls_behind_the_memory_goes_on_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RECENT", 10)
    async with opened(tmp_path / "b.db") as journal:
        await emit(journal, 100)
        assert await all_after(journal, 0, limit=7) == list(range(1, 101))
        assert await all_after(journal, 88) == list(range(89, 101))
        assert await all_after(journal, 90) == list(range(91, 101))


# --- trimming ---------------------------------------------------------------------------------------------


async def test_old_events_are_dropped_and_asking_for_them_is_an_error_and_never_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "TRIM_EVERY", 50)
    monkeypatch.setattr(journal_module, "RECENT", 10)
    async with opened(tmp_path / "b.db", keep=20) as journal:
        await emit(journal, 100)
        database = journal._database
        (oldest, count) = database.read_now(lambda c: c.execute("SELECT min(number), count(*) FROM events").fetchone())
        assert 20 <= count <= 21
        with pytest.raises(Refused, match=f"events after 5 are no longer kept; the oldest is {oldest}") as caught:
            await journal.poll(5, timeout=0)
        assert "--after" in caught.value.hint
        with pytest.raises(Refused):
            await journal.poll(oldest - 2, timeout=0)
        assert await all_after(journal, oldest - 1) == list(range(oldest, 101))
        assert await all_after(journal, 0) == list(range(oldest, 101)), "0 asks for all that are kept"
    async with opened(tmp_path / "b.db", keep=20) as journal:
        with pytest.raises(Refused):
            await journal.poll(5, timeout=0)
        assert await all_after(journal, oldest - 1) == list(range(oldest, 101))


async def test_a_number_that_was_never_given_out_is_an_error_and_not_a_silent_jump(tmp_path: Path) -> None:
    # the journal was set aside and begins anew: a reader of the old one would lose what is in the new one
    async with opened(tmp_path / "b.db") as journal:
        await emit(journal, 10)
        with pytest.raises(Refused, match="500"):
            await journal.poll(500, timeout=0)
