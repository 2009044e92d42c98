"""Worker threads on a machine that is short of them."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from buildd import shortage
from buildd.threads import Shared, in_thread

pytestmark = pytest.mark.trio


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, no thread can be started; idle ones of other tests are not there either."""
    again = threading.Event()
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if not again.is_set():
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr("trio._core._thread_cache.THREAD_CACHE._idle_workers", {})
    yield again
    shortage.clear("threads")


async def test_what_is_to_be_done_in_a_thread_waits_for_one_and_is_done_once(no_threads: threading.Event) -> None:
    done: list[str] = []
    limiter = trio.CapacityLimiter(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, done.append, "one")
        nursery.start_soon(lambda: in_thread(done.append, "two", limiter=limiter))
        while not shortage.reasons():
            await trio.sleep(0.01)
        assert done == []
        assert limiter.borrowed_tokens == 0
        (reason,) = shortage.reasons()
        assert "no worker thread can be started (can't start new thread)" in reason
        assert "TasksMax" in reason
        no_threads.set()
    assert sorted(done) == ["one", "two"]
    assert shortage.reasons() == ()


async def test_who_waits_for_a_thread_can_be_cancelled(no_threads: threading.Event) -> None:
    done: list[str] = []
    with trio.move_on_after(0.1) as scope:
        await in_thread(done.append, "never")
    assert scope.cancelled_caught
    no_threads.set()
    assert done == []


async def test_an_error_of_what_is_done_is_no_want_of_a_thread() -> None:
    def fail() -> None:
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start"):
        await in_thread(fail)
    assert shortage.reasons() == ()


async def test_the_result_is_that_of_the_function() -> None:
    assert await in_thread(divmod, 7, 2, abandon_on_cancel=True) == (3, 1)


async def test_what_is_shared_is_told_as_it_is_after_it_was_asked_for() -> None:
    now = 0
    looks: list[int] = []
    go_on = threading.Semaphore(0)

    def look() -> int:
        seen = now
        looks.append(seen)
        go_on.acquire()
        return seen

    shared = Shared(look)
    told: list[tuple[str, int]] = []

    async def ask(name: str) -> None:
        told.append((name, await shared.get()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first")
        while not looks:
            await trio.sleep(0.001)
        now = 1
        for name in ("second", "third"):  # the call that runs may have looked already
            nursery.start_soon(ask, name)
        await trio.testing.wait_all_tasks_blocked(0.01)
        go_on.release(2)
    assert looks == [0, 1]
    assert told[0] == ("first", 0)
    assert sorted(told[1:]) == [("second", 1), ("third", 1)]


async def test_who_waits_for_a_shared_call_that_fails_makes_one_of_its_own() -> None:
    calls = 0

    def look() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("not now")
        return "now"

    shared = Shared(look)
    told: list[str] = []

    async def ask() -> None:
        try:
            told.append(await shared.get())
        except OSError as error:
            told.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert sorted(told) == ["not now", "now", "now"]
    assert calls == 2
