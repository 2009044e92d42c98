"""The sampler: what it keeps, who gets it, and what it costs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio
from monitor_readings import machine

from buildd import config as configuration
from buildd.monitor import sampler as module
from buildd.monitor.readings import Machine, read_daemon, read_machine
from buildd.monitor.sampler import Reading, Sampler, least_bytes, least_inodes, watch
from buildd.monitor.space import Space

LIMIT_S = 20.0


class Sampling:
    def __init__(self, directory: Path, interval: str = "100ms") -> None:
        self.directory = directory
        self.config = configuration.load(files=[], settings=[f"monitor.interval={interval}"], environ={})
        self.seen: Machine | Exception = machine()
        self.failures = 0
        self.sampler = Sampler(
            config=lambda: self.config, directories=[directory], load=lambda: (2, 5), read=self._read
        )

    def _read(self) -> Machine:
        if isinstance(self.seen, Exception):
            self.failures += 1
            raise self.seen
        return self.seen


@pytest.fixture
def sampling(tmp_path: Path) -> Sampling:
    return Sampling(tmp_path)


def test_this_machine_and_process_can_be_read() -> None:
    seen, own = read_machine(), read_daemon()
    assert 0 < seen.memory_available_bytes <= seen.memory_total_bytes
    assert 0 <= seen.swap_used_bytes <= max(1, seen.swap_total_bytes)
    assert seen.load_1m >= 0
    assert seen.processors >= 1
    assert own.rss_bytes > 1 << 20
    assert own.open_files == len(os.listdir("/proc/self/fd")) - 1  # that of looking
    assert own.threads == len(os.listdir("/proc/self/task"))


async def test_samples_are_kept_oldest_first_and_no_more_than_so_many(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampling.sampler.newest(5) == []
    monkeypatch.setattr(module, "KEPT", 4)
    sampling = Sampling(sampling.directory)
    for n in range(6):
        sampling.seen = machine(load_1m=float(n))
        await sampling.sampler._sample()
    assert [sample.load_1m for sample in sampling.sampler.newest(100)] == [2.0, 3.0, 4.0, 5.0]
    assert [sample.load_1m for sample in sampling.sampler.newest(2)] == [4.0, 5.0]
    assert sampling.sampler.newest(0) == sampling.sampler.newest(-1) == []
    (last,) = sampling.sampler.newest(1)
    assert (last.busy, last.queued) == (2, 5)
    assert last.rss_bytes > 1 << 20
    assert last.free_bytes is not None
    assert abs(last.at - time.time()) < 60


async def test_there_is_a_sample_when_it_has_started_and_then_one_each_interval(
    sampling: Sampling, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(sampling.sampler.run)
        assert (await sampling.sampler.after(0)).number == 1
        began = trio.current_time()
        assert (await sampling.sampler.after(10)).number == 11
        assert trio.current_time() - began >= 10 * 0.1 - 1e-6
        nursery.cancel_scope.cancel()


async def test_a_new_interval_counts_at_once(tmp_path: Path) -> None:
    sampling = Sampling(tmp_path, "1h")
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(sampling.sampler.run)
            sampling.sampler.sample_soon()
            assert (await sampling.sampler.after(1)).number == 2
            nursery.cancel_scope.cancel()


async def test_a_watcher_that_is_slow_or_fails_holds_up_neither_samples_nor_others(sampling: Sampling) -> None:
    heard: list[int] = []
    failed: list[int] = []

    async def listen(reading: Reading) -> None:
        heard.append(reading.number)

    async def hang(reading: Reading) -> None:
        await trio.sleep_forever()

    async def fail(reading: Reading) -> None:
        failed.append(reading.number)
        raise ValueError("odd")

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(sampling.sampler.run)
            for look in (hang, fail, listen):
                nursery.start_soon(watch, sampling.sampler, look)
            await sampling.sampler.after(4)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert heard[:4] == failed[:4] == [1, 2, 3, 4]


async def test_sampling_goes_on_after_a_reading_that_failed(sampling: Sampling) -> None:
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            sampling.seen = OSError("no /proc today")
            await nursery.start(sampling.sampler.run)
            while sampling.failures < 3:
                await trio.sleep(0.01)
            assert sampling.sampler.newest(1) == []
            sampling.seen = machine()
            assert (await sampling.sampler.after(0)).number == 1
            nursery.cancel_scope.cancel()


def test_the_least_room_is_shown_and_nothing_that_is_not_known() -> None:
    roomy = Space(free_bytes=100, total_bytes=200, free_inodes=9, total_inodes=10)
    uncounted = Space(free_bytes=50, total_bytes=200)
    assert least_bytes([roomy, None, uncounted]) == 50
    assert least_inodes([roomy, None, uncounted]) == 9
    assert least_bytes([None]) is None
    assert least_inodes([uncounted]) is None


async def test_a_sample_costs_no_more_than_some_milliseconds(tmp_path: Path) -> None:
    config = configuration.load(files=[], environ={})
    sampler = Sampler(config=lambda: config, directories=[tmp_path], load=lambda: (0, 0))
    await sampler._sample()
    began = time.process_time()
    for _ in range(50):
        await sampler._sample()
    assert (time.process_time() - began) / 50 < 0.01, "it takes less than one here"
