"""Cloning from real servers: sharing, limits, failures, cancelling, crashes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import psutil
import pytest
import trio
import trio.testing
from repos_servers import GitDaemon, MemoryRecords, StuckServer, commit, free_port, git, make_repository

from buildd.errors import InvalidInput, NotFound, Refused
from buildd.model import CloneStatus, Repository
from buildd.process import Process, spawn
from buildd.repos.clones import CloneFailed, Clones, CloneSettings
from buildd.repos.trees import GitStore

Event = tuple[str, str, dict[str, object]]
SCHEMES = ("https", "http", "ssh", "git", "file")


class House:
    """A running `Clones` with everything around it."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.cache = root / "cache"
        self.records = MemoryRecords()
        self.events: list[Event] = []
        self.settings = msgspec.convert({"schemes": SCHEMES, **settings}, CloneSettings)
        self.spawned: list[Process] = []
        self.commands: list[object] = []
        """What was started, and with which environment."""
        self.clones = self.make()

    def make(self) -> Clones:
        return Clones(self.cache, self.settings, self.records, self._emit, spawner=self._spawn)

    def _emit(self, kind: str, url: str, data: dict[str, object]) -> None:
        self.events.append((kind, url, data))

    async def _spawn(self, *args: object, **kwargs: object) -> Process:
        process = await spawn(*args, **kwargs)  # type: ignore[arg-type]
        self.spawned.append(process)
        self.commands.append((args, kwargs))
        return process

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events if kind != "clone_progress"]

    def on_disk(self) -> list[str]:
        return sorted(str(p.relative_to(self.cache)) for p in self.cache.iterdir() if p.name != ".incoming") + sorted(
            f".incoming/{p.name}" for p in (self.cache / ".incoming").iterdir()
        )


@contextlib.asynccontextmanager
async def running(house: House) -> AsyncIterator[Clones]:
    async with trio.open_nursery() as nursery:
        await nursery.start(house.clones.run)
        yield house.clones
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


def descendants() -> list[str]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "daemon" not in child.cmdline():
                found.append(" ".join(child.cmdline()))
    return [line for line in found if line and "git daemon" not in line and "git-daemon" not in line]


@pytest.fixture(params=["git", "libgit2"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_clone_has_all_branches_and_tags_and_the_default_branch(
    tmp_path: Path, server: GitDaemon, transport: str
) -> None:
    source = make_repository(server.root / "one", {"a": "1"}, branch="trunk")
    git("branch", "side/b", cwd=source)
    git("tag", "-a", "-m", "x", "v1", cwd=source)
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        repository = await clones.ensure(server.url("one"))
        assert repository.clone_status.status == "cloned"
        assert repository.bytes > 100
        assert {b.name: b.is_head for b in await clones.branches("one")} == {"side/b": False, "trunk": True}
        store = GitStore(Path(repository.path))
        assert store.resolve("v1") == store.resolve() == git("rev-parse", "HEAD", cwd=source)
        assert house.on_disk() == [Path(repository.path).name]
    assert house.kinds() == ["clone_started", "clone_completed"]
    assert house.records.rows[repository.url].clone_status.status == "cloned"


async def test_a_request_is_answered_at_once_at_every_stage(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    url = server.url("one")
    async with running(house) as clones:
        first = clones.request(url)
        assert first.status == "accepted"
        assert clones.request(url).status == "cloning"
        assert clones.status(url).active is not None
        assert len(clones.active()) == 1
        await until(lambda: not clones.active())
        again = clones.request(url)
        assert (again.status, again.path) == ("cloned", first.path)
        assert Path(first.path).is_dir()
        missing = server.url("missing")
        assert clones.request(missing).status == "accepted"
        await until(lambda: not clones.active())
        failed = clones.request(missing)
        assert failed.status == "failed"
        assert "not exported" in failed.message or "no such repository" in failed.message.lower()
        assert clones.request(missing, again=True).status == "accepted"


async def test_all_who_want_one_repository_share_one_clone(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    got: list[Repository] = []

    async with running(house) as clones:

        async def want() -> None:
            got.append(await clones.ensure(server.url("one")))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(want)
    assert len(got) == 20
    assert len(house.spawned) == 1
    assert {r.path for r in got} == {got[0].path}


async def test_a_refresh_brings_what_was_pushed_and_removes_what_is_gone(
    tmp_path: Path, server: GitDaemon, transport: str
) -> None:
    source = make_repository(server.root / "one", branch="old")
    git("branch", "d", cwd=source)
    git("tag", "t", cwd=source)
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        repository = await clones.ensure(server.url("one"))
        git("branch", "-D", "d", cwd=source)
        git("branch", "d/e", cwd=source)  # where a file `d` was, a directory must be now
        git("tag", "-d", "t", cwd=source)
        git("branch", "-m", "old", "new", cwd=source)
        git("commit", "-q", "--amend", "-m", "rewritten", cwd=source)
        head = git("rev-parse", "HEAD", cwd=source)
        assert (await clones.ensure(server.url("one"))).fetched_at == repository.fetched_at
        refreshed = await clones.ensure(server.url("one"), refresh=True)
        assert refreshed.fetched_at != repository.fetched_at
        assert {b.name: b.is_head for b in await clones.branches("one")} == {"d/e": False, "new": True}
        store = GitStore(Path(repository.path))
        assert store.resolve() == head
        with pytest.raises(NotFound):
            store.resolve("t")
        await clones.ensure(server.url("one"), refresh=True)
    assert house.kinds()[2:] == ["clone_started", "repo_refreshed", "clone_started", "repo_refreshed"]
    assert [d["changed"] for k, _, d in house.events if k == "repo_refreshed"] == [True, False]


async def test_a_refresh_during_a_fetch_sees_what_was_pushed_before_it(tmp_path: Path, server: GitDaemon) -> None:
    source = make_repository(server.root / "one")
    house = House(tmp_path)
    url = server.url("one")
    async with running(house) as clones:
        await clones.ensure(url)
        async with trio.open_nursery() as nursery:

            async def late() -> None:
                await until(lambda: [a for a in clones.active() if a.stage is not None])
                head = commit(source, {"new": "x"})
                repository = await clones.ensure(url, refresh=True)
                assert GitStore(Path(repository.path)).resolve() == head

            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            await clones.ensure(url, refresh=True)


async def test_an_empty_repository_is_cloned_and_filled_by_a_refresh(
    tmp_path: Path, server: GitDaemon, transport: str
) -> None:
    git("init", "-q", "-b", "trunk", server.root / "one")
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        repository = await clones.ensure(server.url("one"))
        assert await clones.branches("one") == []
        head = commit(server.root / "one", {"a": "1"})
        await clones.ensure(server.url("one"), refresh=True)
        assert GitStore(Path(repository.path)).resolve() == head


async def test_a_head_that_names_no_branch_does_not_stop_a_clone(
    tmp_path: Path, server: GitDaemon, transport: str
) -> None:
    source = make_repository(server.root / "one")
    git("symbolic-ref", "HEAD", "refs/heads/unborn", cwd=source)
    detached = make_repository(server.root / "two")
    git("checkout", "-q", "--detach", cwd=detached)
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        one = await clones.ensure(server.url("one"))
        two = await clones.ensure(server.url("two"))
        assert GitStore(Path(one.path)).resolve("main") == git("rev-parse", "main", cwd=source)
        with pytest.raises(NotFound, match="HEAD"):
            GitStore(Path(one.path)).resolve()
        assert GitStore(Path(two.path)).resolve() == git("rev-parse", "HEAD", cwd=detached)


async def test_a_missing_repository_fails_with_the_reason_and_leaves_nothing(
    tmp_path: Path, server: GitDaemon, transport: str
) -> None:
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        with pytest.raises(CloneFailed) as caught:
            await clones.ensure(server.url("missing"))
        assert caught.value.kind == "not_found"
        assert caught.value.hint
        assert house.on_disk() == []
        status = clones.status(server.url("missing")).repository.clone_status
        assert status.status == "failed"
        assert status.error == caught.value.message
        make_repository(server.root / "missing")
        assert (await clones.ensure(server.url("missing"))).clone_status.status == "cloned"
    assert house.kinds() == ["clone_started", "clone_failed", "clone_started", "clone_completed"]


async def test_a_server_that_is_not_there_is_a_network_failure(tmp_path: Path, transport: str) -> None:
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        with pytest.raises(CloneFailed) as caught:
            await clones.ensure(f"git://127.0.0.1:{free_port()}/x")
        assert caught.value.kind == "network"


async def test_a_silent_server_is_given_up_after_the_idle_timeout(
    tmp_path: Path, stuck_server: StuckServer, transport: str
) -> None:
    house = House(tmp_path, transport=transport, idle_timeout_s=2)
    async with running(house) as clones:
        with trio.fail_after(10), pytest.raises(CloneFailed, match=r"nothing for 2 s"):
            await clones.ensure(stuck_server.url())
        assert stuck_server.accepted.is_set()
        assert house.on_disk() == []
        assert descendants() == []


async def test_the_total_time_is_limited_as_well(tmp_path: Path, stuck_server: StuckServer) -> None:
    house = House(tmp_path, total_timeout_s=0.5)
    async with running(house) as clones:
        with trio.fail_after(10), pytest.raises(CloneFailed, match=r"longer than 0\.5 s"):
            await clones.ensure(stuck_server.url())
        assert house.on_disk() == []


async def test_cancelling_takes_less_than_a_second_whatever_the_server_does(
    tmp_path: Path, stuck_server: StuckServer, transport: str
) -> None:
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        clones.request(stuck_server.url())
        await until(stuck_server.accepted.is_set)
        with trio.fail_after(1):
            clones.cancel(stuck_server.url())
            while clones.active():
                await trio.sleep(0.005)
        assert descendants() == []
        assert house.on_disk() == []
        assert "cancelled" in clones.request(stuck_server.url()).message
        with pytest.raises(NotFound):
            clones.cancel(stuck_server.url())


async def test_a_clone_ends_with_its_last_waiter_and_not_before(tmp_path: Path, stuck_server: StuckServer) -> None:
    house = House(tmp_path)
    async with running(house) as clones:
        scopes = [trio.CancelScope(), trio.CancelScope()]

        async def want(scope: trio.CancelScope) -> None:
            with scope:
                await clones.ensure(stuck_server.url())

        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(want, scope)
            await until(stuck_server.accepted.is_set)
            scopes[0].cancel()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert clones.active()[0].waiters == 1
            scopes[1].cancel()
        await until(lambda: not clones.active(), 1)
        assert house.on_disk() == []
        assert descendants() == []


async def test_a_requested_clone_outlives_its_waiters(tmp_path: Path, stuck_server: StuckServer) -> None:
    house = House(tmp_path)
    async with running(house) as clones:
        clones.request(stuck_server.url())
        with trio.move_on_after(0.2):
            await clones.ensure(stuck_server.url())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(clones.active()) == 1


async def test_who_comes_while_a_clone_is_being_given_up_gets_a_new_one(
    tmp_path: Path, server: GitDaemon, stuck_server: StuckServer
) -> None:
    house = House(tmp_path)
    async with running(house) as clones:
        clones.request(stuck_server.url())
        await until(stuck_server.accepted.is_set)
        clones.cancel(stuck_server.url())
        assert clones.request(stuck_server.url(), again=True).status in ("accepted", "cloning")
        await until(lambda: len(house.spawned) == 2)
        assert len(clones.active()) == 1


async def test_clones_wait_for_a_slot_and_are_counted(
    tmp_path: Path, server: GitDaemon, stuck_server: StuckServer
) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path, max_concurrent=2)
    async with running(house) as clones:
        for name in ("x", "y"):
            clones.request(stuck_server.url(name))
        await until(lambda: len(stuck_server.clients) == 2)
        clones.request(server.url("one"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (len(clones.active()), clones.waiting) == (3, 1)
        assert "slot" in clones.request(server.url("one")).message
        clones.cancel(stuck_server.url("x"))
        await until(lambda: clones.find("one").clone_status.status == "cloned")
        assert clones.waiting == 0


async def test_a_killed_worker_is_a_failure_that_says_so(tmp_path: Path, stuck_server: StuckServer) -> None:
    house = House(tmp_path, transport="git")
    async with running(house) as clones:

        async def kill() -> None:
            await until(stuck_server.accepted.is_set)
            os.kill(house.spawned[0].pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with trio.fail_after(5), pytest.raises(CloneFailed, match="status -9"):
                await clones.ensure(stuck_server.url())
        # The git that the worker had started is gone as well.
        assert descendants() == []
        assert house.on_disk() == []


async def test_ending_kills_what_runs_and_leaves_nothing(
    tmp_path: Path, stuck_server: StuckServer, transport: str
) -> None:
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        clones.request(stuck_server.url())
        await until(stuck_server.accepted.is_set)
    assert descendants() == []
    assert house.on_disk() == []
    [repository] = house.records.all()
    assert repository.clone_status.status == "failed"
    assert "interrupted" in (repository.clone_status.error or "")
    with pytest.raises(Refused):
        house.clones.request(stuck_server.url())


async def test_after_a_crash_leftovers_are_gone_and_records_tell(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        whole = await clones.ensure(server.url("one"))
    (house.cache / ".incoming/abc/objects").mkdir(parents=True)
    (house.cache / ".incoming/abc/objects/half").write_text("x")
    interrupted = msgspec.structs.replace(
        whole, url="git://h/x", name="x", path=str(house.cache / "x"), clone_status=CloneStatus(status="cloning")
    )
    vanished = msgspec.structs.replace(whole, url="git://h/y", name="y", path=str(house.cache / "y"))
    house.records.save(interrupted)
    house.records.save(vanished)
    lock, half = Path(whole.path) / "packed-refs.lock", Path(whole.path) / "objects/pack/tmp_pack_abc"
    lock.write_text("")
    half.write_text("x")
    foreign = house.cache / "notes.txt"
    foreign.write_text("not ours")
    house.clones = house.make()
    async with running(house) as clones:
        assert house.on_disk() == sorted(["notes.txt", Path(whole.path).name])
        assert not lock.exists()
        assert not half.exists()
        assert "interrupted" in clones.request("git://h/x").message
        assert "vanished" in clones.request("git://h/y").message
        assert clones.request(server.url("one")).status == "cloned"
        assert house.events[-1][:2] == ("clone_failed", "git://h/x")
        await clones.ensure(server.url("one"), refresh=True)


async def test_a_clone_that_was_in_place_and_not_on_record_when_the_daemon_was_killed_is_there(
    tmp_path: Path, server: GitDaemon
) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        whole = await clones.ensure(server.url("one"))
    house.records.save(msgspec.structs.replace(whole, clone_status=CloneStatus(status="cloning")))
    house.events.clear()
    house.clones = house.make()
    async with running(house) as clones:
        assert clones.request(server.url("one")).status == "cloned"
        assert house.kinds() == ["clone_completed"]


async def test_a_fetch_that_was_killed_while_it_wrote_stops_no_later_one_and_leaves_nothing(
    tmp_path: Path, server: GitDaemon, transport: str
) -> None:
    source = make_repository(server.root / "one")
    git("branch", "topic", cwd=source)
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        path = Path((await clones.ensure(server.url("one"))).path)
    before = set(path.rglob("*"))
    names = ("packed-refs.new", "packed-refs.lock", "refs/heads/main.lock", "HEAD.lock")
    half = (
        "objects/pack/tmp_idx_abc",
        "objects/pack/pack-0123.keep",
        "objects/pack/pack_git2_Ab3dE9",
        "objects/tmp_obj_1",
    )
    for name in (*names, *half):
        (path / name).write_text("")
    git("branch", "-D", "topic", cwd=source)
    house.clones = house.make()
    async with running(house) as clones:
        assert set(path.rglob("*")) == before
        await clones.ensure(server.url("one"), refresh=True)
        assert [branch.name for branch in await clones.branches("one")] == ["main"]


async def test_clones_without_records_are_adopted_or_removed(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        whole = await clones.ensure(server.url("one"))
    strange = house.cache / "strange-0123456789ab.git"
    strange.mkdir()
    (strange / "buildd-origin").write_text("git://elsewhere/strange\n")
    house.records = MemoryRecords()
    house.clones = house.make()
    async with running(house) as clones:
        assert [r.url for r in clones.list()] == [whole.url]
        assert clones.request(server.url("one")).status == "cloned"
        assert house.on_disk() == [Path(whole.path).name]
        assert house.records.rows[whole.url].bytes == whole.bytes


async def test_a_failed_refresh_keeps_the_clone(tmp_path: Path, server: GitDaemon, transport: str) -> None:
    source = make_repository(server.root / "one")
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        repository = await clones.ensure(server.url("one"))
        source.rename(server.root / "moved")
        with pytest.raises(CloneFailed):
            await clones.ensure(server.url("one"), refresh=True)
        assert clones.find("one").clone_status.status == "cloned"
        assert GitStore(Path(repository.path)).resolve()
    assert house.kinds()[-1] == "clone_failed"


async def test_delete_removes_and_is_refused_while_in_use(
    tmp_path: Path, server: GitDaemon, stuck_server: StuckServer
) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        repository = await clones.ensure(server.url("one"))
        with clones.use(repository.url) as used:
            assert used.last_access >= repository.last_access
            assert clones.in_use(repository.url)
            assert clones.status("one").users == 1
            with pytest.raises(Refused, match="in use"):
                await clones.delete("one")
        clones.request(stuck_server.url())
        with pytest.raises(Refused, match="being cloned"):
            await clones.delete(stuck_server.url())
        with pytest.raises(Refused, match="not cloned"), clones.use(stuck_server.url()):
            pass
        await clones.delete("one")
        assert not Path(repository.path).exists()
        assert repository.url not in house.records.rows
        with pytest.raises(NotFound):
            clones.status("one")
    assert "repo_deleted" in house.kinds()


async def test_names_find_repositories_and_ambiguous_ones_name_the_candidates(
    tmp_path: Path, server: GitDaemon
) -> None:
    for name in ("a/lib", "b/lib", "tool"):
        make_repository(server.root / name)
    house = House(tmp_path)
    async with running(house) as clones:
        for name in ("a/lib", "b/lib", "tool"):
            await clones.ensure(server.url(name))
        assert clones.find("tool").url == clones.find(server.url("tool")).url
        with pytest.raises(InvalidInput) as caught:
            clones.find("lib")
        assert server.url("a/lib") in caught.value.message
        assert server.url("b/lib") in caught.value.message
        with pytest.raises(NotFound) as missing:
            clones.find("tol")
        assert "tool" in missing.value.hint
        assert [r.name for r in clones.list()] == ["lib", "lib", "tool"]


async def test_local_paths_are_used_in_place(tmp_path: Path) -> None:
    source = make_repository(tmp_path / "src" / "mine")
    (tmp_path / "plain").mkdir()
    house = House(tmp_path)
    async with running(house) as clones:
        repository = await clones.ensure(f"file://{source}", refresh=True)
        assert repository.path == str(source)
        assert clones.request(str(tmp_path / "plain")).status == "cloned"
        assert [b.name for b in await clones.branches("mine")] == ["main"]
        assert await clones.branches("plain") == []
        await clones.delete("mine")
        assert source.is_dir()
        assert house.on_disk() == []
        with pytest.raises(NotFound):
            clones.request("/nonexistent/path")
        with pytest.raises(InvalidInput):
            await clones.ensure(str(source / "README"))
    assert house.spawned == []


async def test_a_scheme_that_the_configuration_does_not_allow_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path, schemes=["https"])
    async with running(house) as clones:
        with pytest.raises(InvalidInput, match="https"):
            clones.request("git://127.0.0.1/x")
        with pytest.raises(InvalidInput, match="https"):
            await clones.ensure(str(tmp_path))


async def test_progress_is_live_and_becomes_events(tmp_path: Path, server: GitDaemon, transport: str) -> None:
    source = make_repository(server.root / "one", {f"f{n}": f"{n}\n" * 50 for n in range(400)})
    count = int(git("rev-list", "--objects", "--all", "--count", cwd=source))
    house = House(tmp_path, transport=transport)
    async with running(house) as clones:
        await clones.ensure(server.url("one"))
    progress = [data for kind, _, data in house.events if kind == "clone_progress"]
    assert progress[0]["stage"] == "connecting"
    assert {"received_objects", "total_objects", "indexed_objects", "received_bytes", "percent"} <= set(progress[0])
    seen = []
    clones = house.make()
    clones._progress = lambda job, p: seen.append(p)  # type: ignore[method-assign, assignment]
    async with trio.open_nursery() as nursery:
        await nursery.start(clones.run)
        await clones.delete("one")
        await clones.ensure(server.url("one"))
        nursery.cancel_scope.cancel()
    assert seen[-1].stage == "finishing"
    assert seen[-1].received_objects == seen[-1].total_objects == count


async def test_clones_failures_and_deletions_leave_no_descriptors_behind(tmp_path: Path, server: GitDaemon) -> None:
    make_repository(server.root / "one")
    house = House(tmp_path)
    async with running(house) as clones:
        await clones.ensure(server.url("one"))
        await clones.delete("one")
        before = psutil.Process().num_fds()
        for _ in range(6):
            await clones.ensure(server.url("one"))
            with pytest.raises(CloneFailed):
                await clones.ensure(server.url("missing"))
            await clones.delete("one")
        assert psutil.Process().num_fds() <= before


async def test_fewer_slots_take_effect_at_once(tmp_path: Path, stuck_server: StuckServer) -> None:
    house = House(tmp_path)
    async with running(house) as clones:
        clones.reconfigure(msgspec.structs.replace(house.settings, max_concurrent=1))
        for name in ("x", "y"):
            clones.request(stuck_server.url(name))
        await until(lambda: stuck_server.clients)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert clones.waiting == 1


async def test_a_worker_that_cannot_be_started_for_want_of_files_leaves_none_open_and_says_what_to_do(
    tmp_path: Path, server: GitDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(server.root / "one", {"a": "1"})
    real, left = os.pipe, 1

    def one_pipe() -> tuple[int, int]:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real()

    house = House(tmp_path)
    async with running(house) as clones:
        before = set(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pipe", one_pipe)
            with pytest.raises(CloneFailed, match=r"cannot start a clone worker.*Too many open files") as caught:
                await clones.ensure(server.url("one"))
        assert "buildctl status" in caught.value.hint
        assert set(os.listdir("/proc/self/fd")) == before
        assert house.on_disk() == []
        assert (await clones.ensure(server.url("one"))).clone_status.status == "cloned"
