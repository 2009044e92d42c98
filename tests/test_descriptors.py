"""Counting descriptors, and keeping some back."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from buildd import descriptors, shortage


@contextmanager
def limited(most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        shortage.clear("descriptors")


def test_open_descriptors_are_counted_exactly() -> None:
    before = descriptors.in_use()
    assert before == len(os.listdir("/proc/self/fd")) - 1
    handle = os.open("/dev/null", os.O_RDONLY)
    try:
        assert descriptors.in_use() == before + 1
    finally:
        os.close(handle)


def test_a_kernel_that_does_not_tell_the_number_is_asked_for_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    real = descriptors.in_use()
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0,) * 10))
    assert descriptors.in_use() == real


def test_three_quarters_are_for_builds_and_an_eighth_is_never_used() -> None:
    used = descriptors.in_use()
    with limited(used * 2):
        assert not descriptors.scarce()
        assert shortage.reasons() == ()
    with limited(used * 4 // 3 - 2):
        assert descriptors.scarce()
        assert not descriptors.all_but_gone()
        (reason,) = shortage.reasons()
        assert "file descriptors are in use, and no builds or clones are started" in reason
        assert "LimitNOFILE" in reason
    with limited(used * 8 // 7 - 3):
        assert descriptors.all_but_gone()


def test_when_none_is_left_to_look_with_all_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0,) * 10))
    handles: list[int] = []
    with limited(descriptors.in_use() + 20):
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    handles.append(os.open("/dev/null", os.O_RDONLY))
            assert descriptors.in_use() == descriptors.limit()
        finally:
            for handle in handles:
                os.close(handle)


@pytest.mark.trio
async def test_who_waits_for_descriptors_goes_on_when_there_are_some(autojump_clock: trio.testing.MockClock) -> None:
    done = trio.Event()

    async def wait() -> None:
        await descriptors.wait_for_some()
        done.set()

    async with trio.open_nursery() as nursery:
        with limited(descriptors.in_use() + 1):
            nursery.start_soon(wait)
            await trio.sleep(5)
            assert not done.is_set()
        await trio.sleep(1)
        assert done.is_set()
    assert shortage.reasons() == ()
