"""Keeping clones fresh and within limits: what is decided, and what the owner of the clones makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st
from repos_servers import GitDaemon, HttpServer, commit, git, make_repository
from test_repos_clones import House, descendants, running, until

from buildd.config import Config, DaemonConfig, ReposConfig
from buildd.errors import Refused
from buildd.model import CloneProgress, CloneStatus, Repository
from buildd.repos.care import Caretaker, Failures, Next, due_at, next_refresh, spread
from buildd.repos.clones import ActiveClone, CloneFailed
from buildd.repos.eviction import surplus
from buildd.repos.references import References, read_references
from buildd.repos.trees import GitStore

NOW = 1_000_000_000.0
DAY = 86_400.0


def repository(
    name: str, *, used: float = 0.0, size: int = 10, fetched: float | None = 0.0, **keys: object
) -> Repository:
    """A clone, with ages in seconds."""
    return Repository(
        url=f"https://h/{name}",
        name=name,
        path=f"/c/{name}",
        last_access=NOW - used,
        clone_status=CloneStatus(status="cloned"),
        bytes=size,
        fetched_at=NOW - fetched if fetched is not None else None,
        **keys,  # type: ignore[arg-type]
    )


# --- what goes ----------------------------------------------------------------------------------------------


def gone(*repositories: Repository, kept: str = "", number: int = 0, size: int = 0, coming: int = 0) -> list[str]:
    decision = surplus(
        repositories,
        lambda url: url.removeprefix("https://h/") in kept.split(),
        max_repositories=number,
        max_bytes=size,
        coming=coming,
    )
    return [r.name for r in decision.victims]


def test_the_least_recently_used_go_first_until_the_limits_hold() -> None:
    clones = [repository("new", used=1), repository("old", used=9), repository("mid", used=5)]
    assert gone(*clones) == []
    assert gone(*clones, number=3) == []
    assert gone(*clones, number=2) == ["old"]
    assert gone(*clones, number=1) == ["old", "mid"]
    assert gone(*clones, size=25) == ["old"]
    assert gone(*clones, number=2, size=10) == ["old", "mid"]
    assert gone(*clones, number=3, coming=1) == ["old"]
    assert gone(*clones, number=1, coming=1) == ["old", "mid", "new"]


def test_what_must_stay_stays_and_the_next_goes_in_its_place() -> None:
    local = msgspec.structs.replace(repository("local", used=99, size=999), url="file:///local")
    failed = msgspec.structs.replace(repository("failed", used=99), clone_status=CloneStatus(status="failed"))
    clones = [local, failed, repository("old", used=9), repository("mid", used=5), repository("new", used=1)]
    assert gone(*clones, number=3, size=30) == []
    assert gone(*clones, number=2, kept="old") == ["mid"]
    assert gone(*clones, number=1, kept="old mid new") == []
    assert surplus(clones, lambda url: True, max_repositories=1, max_bytes=5).unmet == (
        "3 clones are kept, and repos.max_repositories allows 1; clones take 30 bytes, and repos.max_bytes allows 5"
    )


def test_the_last_used_stays_even_if_it_is_too_large_alone() -> None:
    decision = surplus([repository("big", size=100)], lambda url: False, max_repositories=0, max_bytes=50)
    assert decision.victims == ()
    assert "100 bytes" in decision.unmet


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100), st.booleans()), max_size=12),
    st.integers(0, 12),
    st.integers(0, 600),
    st.integers(0, 1),
)
def test_no_more_goes_than_must_and_nothing_that_is_kept(
    clones: list[tuple[int, int, bool]], number: int, size: int, coming: int
) -> None:
    known = [repository(f"r{i}", used=used, size=bytes) for i, (used, bytes, _) in enumerate(clones)]
    kept = {r.url for r, (_, _, held) in zip(known, clones, strict=True) if held}
    found = surplus(known, kept.__contains__, max_repositories=number, max_bytes=size, coming=coming)
    left = [r for r in known if r not in found.victims]

    def broken(repositories: list[Repository]) -> bool:
        return 0 < number < len(repositories) + coming or 0 < size < sum(r.bytes for r in repositories)

    assert not kept & {r.url for r in found.victims}
    assert bool(found.unmet) == broken(left)
    if found.victims:
        assert broken([*left, found.victims[-1]])
    if broken(left):
        last_used = {max(known, key=lambda r: (r.last_access, r.url)).url} if not coming else set()
        assert {r.url for r in left} <= kept | last_used


# --- when it is refreshed -----------------------------------------------------------------------------------

SETTINGS = ReposConfig()


def due(r: Repository, failures: Failures | None = None, settings: ReposConfig = SETTINGS) -> float | None:
    """Seconds until it is due."""
    found = due_at(r, NOW, settings, failures)
    return found - NOW if found is not None else None


def test_what_is_used_is_refreshed_daily_and_the_rest_weekly_each_a_little_earlier() -> None:
    part = 1 - 0.2 * spread("https://h/a")
    assert due(repository("a", used=13 * DAY)) == pytest.approx(DAY * part)
    assert due(repository("a", used=15 * DAY)) == pytest.approx(7 * DAY * part)
    assert due(repository("a", fetched=3 * DAY)) == pytest.approx(DAY * part - 3 * DAY)
    spreads = sorted(spread(f"https://h/{i}") for i in range(1000))
    assert all(abs(s - i / 1000) < 0.06 for i, s in enumerate(spreads))


def test_what_is_never_refreshed() -> None:
    never = msgspec.structs.replace(SETTINGS, refresh_inactive=0, refresh_active=0)
    assert due(repository("a", fetched=99 * DAY), settings=never) is None
    assert due(msgspec.structs.replace(repository("a"), url="file:///a")) is None
    for status in ("not_started", "cloning", "failed"):
        assert due(msgspec.structs.replace(repository("a"), clone_status=CloneStatus(status=status))) is None  # type: ignore[arg-type]


def test_a_clock_that_was_ahead_does_not_put_a_refresh_off() -> None:
    found = due(repository("a", fetched=-400 * DAY), Failures(1, NOW + 400 * DAY))
    assert found is not None
    assert found <= DAY


def test_failures_put_the_next_attempt_off_more_and_more() -> None:
    overdue = repository("a", fetched=9 * DAY)
    waits = [due(overdue, Failures(n, NOW)) for n in range(1, 10)]
    assert waits == [900, 1800, 3600, 7200, 14400, 28800, 57600, DAY, DAY]
    assert due(overdue, Failures(10**6, NOW)) == DAY
    often = msgspec.structs.replace(SETTINGS, refresh_active=1)
    assert due(overdue, Failures(1, NOW), often) == 1


def test_the_most_overdue_is_next() -> None:
    known = [repository("a", fetched=3 * DAY), repository("b", fetched=9 * DAY), repository("c")]
    found = next_refresh(known, NOW, SETTINGS, {})
    assert found is not None
    assert found.url == "https://h/b"
    assert next_refresh(known[2:], NOW, SETTINGS, {}) == Next(due_at(known[2], NOW, SETTINGS, None), "https://h/c")  # type: ignore[arg-type]
    assert next_refresh([], NOW, SETTINGS, {}) is None
    later = next_refresh(known, NOW, SETTINGS, {"https://h/b": Failures(1, NOW)})
    assert later is not None
    assert later.url == "https://h/a"


class Scheduled:
    """Stands for the clones: notes when each is refreshed, and takes as long as it is told to."""

    def __init__(self, repositories: list[Repository]) -> None:
        self.known = {r.url: r for r in repositories}
        self.waiting = 0
        self.side_by_side = 0
        self.refreshed: list[tuple[float, str]] = []
        self.failing: set[str] = set()
        self.transfers: list[ActiveClone] = []
        """That somebody asked for."""

    async def make_room(self) -> None:
        await trio.lowlevel.checkpoint()

    def active(self) -> Sequence[ActiveClone]:
        return self.transfers

    def list(self) -> Sequence[Repository]:
        return tuple(self.known.values())

    async def refresh_unasked(self, url: str) -> bool:
        assert not self.waiting
        assert url not in {job.url for job in self.transfers}
        self.side_by_side += 1
        assert self.side_by_side == 1
        self.refreshed.append((clock(), url))
        await trio.sleep(2)
        self.side_by_side -= 1
        if url in self.failing:
            raise CloneFailed("network", "gone")
        self.known[url] = msgspec.structs.replace(self.known[url], fetched_at=clock())
        return True


def clock() -> float:
    return NOW + trio.current_time()


def caretaker(clones: Scheduled) -> Caretaker:
    config = Config(
        daemon=DaemonConfig(state_dir="/s", cache_dir="/c", runtime_dir="/r", work_dir="/w"),
    )
    return Caretaker(clones, lambda: config, clock)  # type: ignore[arg-type]


async def test_hundreds_of_overdue_repositories_are_taken_up_one_after_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clones = Scheduled([repository(f"r{i}", fetched=30 * DAY) for i in range(200)])
    with trio.move_on_after(0.3 * DAY):
        await caretaker(clones).run()
    assert {url for _, url in clones.refreshed} == set(clones.known)
    times = [at - NOW for at, _ in clones.refreshed]
    assert len(times) == 200  # and none of them once more on the same day
    assert times[-1] - times[0] == pytest.approx(199 * 4)  # each with a rest as long as it took


async def test_nothing_is_refreshed_while_somebody_waits_for_a_transfer(autojump_clock: trio.testing.MockClock) -> None:
    clones = Scheduled([repository("a", fetched=9 * DAY)])
    clones.waiting = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caretaker(clones).run)
        await trio.sleep(1000)
        assert clones.refreshed == []
        clones.waiting = 0
        await trio.sleep(10)
        assert len(clones.refreshed) == 1
        nursery.cancel_scope.cancel()


async def test_a_repository_that_somebody_fetches_holds_up_no_other(autojump_clock: trio.testing.MockClock) -> None:
    clones = Scheduled([repository("a", fetched=9 * DAY), repository("b", fetched=8 * DAY)])
    progress = CloneProgress(received_objects=0, total_objects=0, indexed_objects=0, received_bytes=0)
    clones.transfers = [
        ActiveClone(url="https://h/a", operation="fetch", stage=None, started_at=NOW, waiters=1, progress=progress)
    ]
    with trio.move_on_after(600):
        await caretaker(clones).run()
    assert [url for _, url in clones.refreshed] == ["https://h/b"]


async def test_what_cannot_be_fetched_is_tried_later_and_later_and_said_once(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    clones = Scheduled([repository("a", fetched=9 * DAY)])
    clones.failing = {"https://h/a"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caretaker(clones).run)
        await trio.sleep(6 * DAY)
        assert 10 <= len(clones.refreshed) <= 15
        clones.failing.clear()
        await trio.sleep(1.1 * DAY)
        nursery.cancel_scope.cancel()
    said = capsys.readouterr().out
    assert said.count("cannot be refreshed") == 1
    assert said.count("can be refreshed again") == 1


# --- on real clones -----------------------------------------------------------------------------------------


@pytest.fixture(params=["git", "libgit2"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def web(tmp_path: Path, http_servers: Callable[[Path], HttpServer]) -> HttpServer:
    (tmp_path / "served").mkdir()
    return http_servers(tmp_path / "served")


def asked(web: HttpServer) -> int:
    """How often the references were asked for since the last time."""
    count = sum("info/refs" in request for request in web.requests)
    web.requests.clear()
    return count


async def test_a_refresh_if_changed_fetches_only_what_has_changed(
    tmp_path: Path, web: HttpServer, transport: str
) -> None:
    source = make_repository(tmp_path / "served/one")
    git("tag", "-a", "-m", "x", "v1", cwd=source)
    git("update-ref", "refs/pull/1/head", "HEAD", cwd=source)
    url = f"http://127.0.0.1:{web.port}/one"
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        cloned = await clones.ensure(url)
        asked(web)
        same = await clones.refresh(url, if_changed=True)
        assert not same.changed
        assert asked(web) == 1
        assert same.repository.bytes == cloned.bytes
        assert same.repository.fetched_at != cloned.fetched_at
        whole = await clones.refresh(url)
        assert not whole.changed
        assert asked(web) == (2 if transport == "git" else 1)

        for change in (
            lambda: commit(source, {"a": "1"}),
            lambda: git("tag", "-d", "v1", cwd=source),
            lambda: git("branch", "side/x", cwd=source),
            lambda: git("checkout", "-q", "side/x", cwd=source),  # HEAD names another branch
        ):
            change()
            assert (await clones.refresh(url, if_changed=True)).changed
            asked(web)
            assert not (await clones.refresh(url, if_changed=True)).changed
            assert asked(web) == 1
        assert [b.name for b in await clones.branches(url) if b.is_head] == ["side/x"]
        assert GitStore(Path(cloned.path)).resolve() == git("rev-parse", "HEAD", cwd=source)
    assert descendants() == []


async def test_a_refresh_of_what_is_not_cloned_clones_and_is_a_change(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path, max_repositories=1)
    told: list[str] = []
    async with running(house) as clones:
        clones.on_changed = lambda repository: told.append(repository.name)
        await clones.ensure(server.url("one"))
        assert told == ["one"]
        assert not (await clones.refresh("one", if_changed=True)).changed
        assert told == ["one"]
        clones.evictor.evict(0, 0)
        make_repository(server.root / "two")
        await clones.ensure(server.url("two"))
        assert clones.status("one").repository.clone_status.status == "not_started"
        assert (await clones.refresh("one", if_changed=True)).changed
        commit(server.root / "one", {"b": "2"})
        assert (await clones.refresh("one")).changed
    assert told == ["one", "two", "one", "one"]


async def test_the_least_recently_used_clone_makes_room_and_is_cloned_again_when_it_is_wanted(
    tmp_path: Path, server: GitDaemon
) -> None:
    for name in ("one", "two", "three"):
        make_repository(server.root / name)
    house = House(tmp_path, max_repositories=2)
    async with running(house) as clones:
        one = await clones.ensure(server.url("one"))
        await clones.ensure(server.url("two"))
        with clones.use("one"):
            pass
        await clones.ensure(server.url("three"))
        assert [Path(p).name.split("-")[0] for p in house.on_disk()] == ["one", "three"]
        evicted = clones.status("two").repository
        assert (evicted.clone_status.status, evicted.bytes, evicted.fetched_at) == ("not_started", 0, None)
        assert house.records.rows[evicted.url] == evicted
        with pytest.raises(Refused, match="not cloned"):
            await clones.branches("two")
        assert (await clones.ensure(server.url("two"))).clone_status.status == "cloned"
        assert clones.status("one").repository.clone_status.status == "not_started"
        assert clones.request(server.url("one")).status == "accepted"
        await until(lambda: not clones.active())
        assert Path(one.path).is_dir()
    assert [k for k, _, _ in house.events if k == "repo_evicted"] == ["repo_evicted"] * 3
    data = next(d for k, url, d in house.events if k == "repo_evicted")
    assert set(data) == {"path", "bytes", "last_access"}


async def test_a_clone_in_use_is_not_evicted_and_the_limit_is_said_to_be_broken(
    tmp_path: Path, server: GitDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        make_repository(server.root / name)
    local = make_repository(tmp_path / "local")
    house = House(tmp_path, max_repositories=1)
    async with running(house) as clones:
        await clones.ensure(str(local))
        await clones.ensure(server.url("one"))
        with clones.use("one"):
            await clones.ensure(server.url("two"))
            await until(lambda: clones.evictor.trouble)
            assert "2 clones are kept" in clones.evictor.trouble
            clones.evictor.needed = lambda url: url.endswith("/two")
            await clones.ensure(server.url("three"))
            await until(lambda: len(house.on_disk()) == 3)
            clones.evictor.needed = lambda url: False
        await until(lambda: len(house.on_disk()) == 1)  # once nobody holds one of them
        assert [Path(p).name.split("-")[0] for p in house.on_disk()] == ["three"]
        assert clones.evictor.trouble == ""
        assert clones.status(str(local)).repository.clone_status.status == "cloned"
        assert (local / "README").exists()
    assert capsys.readouterr().out.count("a limit of the clones cannot be kept") == 1


async def test_those_who_wait_for_clones_side_by_side_all_get_theirs_with_room_for_one(
    tmp_path: Path, server: GitDaemon
) -> None:
    names = [f"r{i}" for i in range(6)]
    for name in names:
        make_repository(server.root / name)
    house = House(tmp_path, max_repositories=1, max_concurrent=6)
    seen: list[str] = []
    async with running(house) as clones:

        async def want(name: str) -> None:
            repository = await clones.ensure(server.url(name))
            with clones.use(repository.url):
                assert Path(repository.path).is_dir()
                seen.append(name)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(want, name)
        await until(lambda: len(house.on_disk()) == 1)
    assert sorted(seen) == names


async def test_an_unasked_refresh_takes_no_slot_and_is_no_use(
    tmp_path: Path, server: GitDaemon, stuck_server: object
) -> None:
    source = make_repository(server.root / "one")
    house = House(tmp_path, max_concurrent=1)
    async with running(house) as clones:
        before = await clones.ensure(server.url("one"))
        clones.request(stuck_server.url())  # type: ignore[attr-defined]
        await until(lambda: [a for a in clones.active() if a.stage is not None])  # it has the only slot
        head = commit(source, {"new": "x"})
        assert await clones.refresh_unasked(before.url)
        after = clones.status("one").repository
        assert GitStore(Path(after.path)).resolve() == head
        assert after.last_access == before.last_access
        assert after.fetched_at is not None
        assert before.fetched_at is not None
        assert after.fetched_at > before.fetched_at
        assert not await clones.refresh_unasked(before.url)
        assert not await clones.refresh_unasked("git://h/unknown")
        clones.cancel(stuck_server.url())  # type: ignore[attr-defined]
        await until(lambda: not clones.active())


async def test_a_repository_that_is_being_refreshed_unasked_can_be_deleted(
    tmp_path: Path, server: GitDaemon, stuck_server: object
) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        one = await clones.ensure(server.url("one"))
        moved = msgspec.structs.replace(one, url=stuck_server.url("moved"), name="moved")  # type: ignore[attr-defined]
        clones._catalog.save(moved)
        async with trio.open_nursery() as nursery:

            async def refresh() -> None:
                with pytest.raises(CloneFailed, match="deleted"):
                    await clones.refresh_unasked(moved.url)

            nursery.start_soon(refresh)
            await until(lambda: [a for a in clones.active() if a.stage is not None])
            await clones.delete("moved")
        assert not Path(one.path).exists()


async def test_what_a_dead_daemon_had_evicted_is_found_again_or_cloned_again(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        one = await clones.ensure(server.url("one"))
    # the record was written, and the clone not yet renamed
    house.records.rows[one.url] = msgspec.structs.replace(one, clone_status=CloneStatus(), bytes=0, fetched_at=None)
    house.clones = house.make()
    async with running(house) as clones:
        assert clones.status("one").repository.clone_status.status == "cloned"
        assert (await clones.ensure(one.url)).path == one.path
    assert house.kinds().count("clone_started") == 1


def test_references_are_read_as_git_lists_them(tmp_path: Path) -> None:
    source = make_repository(tmp_path / "one")
    git("tag", "-a", "-m", "x", "v1", cwd=source)
    git("pack-refs", "--all", cwd=source)
    commit(source, {"b": "2"})
    git("branch", "a/b", cwd=source)
    git("update-ref", "refs/notes/x", "HEAD", cwd=source)
    found = read_references(str(source / ".git"))
    listed = dict(line.split()[::-1] for line in git("show-ref", cwd=source).splitlines())
    del listed["refs/notes/x"]
    assert found == References(head="refs/heads/main", ids=listed)
    assert not found.differ(References(head=None, ids=listed))
    assert found.differ(References(head="refs/heads/a/b", ids=listed))
    assert read_references(str(tmp_path / "nothing")) == References(head=None, ids={})
