"""Runs that want the same key at the same time share one build, and each of them may leave it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, Workspace, named, states, until

Boot = Callable[..., Daemon]
HERE = "here"


def waiting(daemon: Daemon, workspace: Workspace, *, then: str = "") -> Workspace:
    """A package that waits for a gate in its build, and one above it."""
    workspace.compiled("shared", first=f"echo {HERE}; {daemon.at_gate(workspace.mark)}; {then}")
    workspace.compiled("above", "shared").commit()
    return workspace


def started_twice(daemon: Daemon, workspace: Workspace, **options: object) -> tuple[int, int, str]:
    """Two runs of a workspace that wait in one build: their numbers, and the build."""
    first = daemon.start(workspace)
    (package,) = daemon.until_running(first, 1, saying=HERE)
    second = daemon.start(workspace, **options)
    return first, second, joined(daemon, second, package.build_id)


def joined(daemon: Daemon, number: int, build: str | None) -> str:
    """The build, once a run takes part in it."""
    assert build is not None
    until(lambda: states(daemon.run(number)).get("shared") == "running", f"run {number} takes part")
    assert daemon.package(number, "shared").build_id == build
    return build


def test_two_runs_that_want_one_key_share_one_build(
    boot: Boot, backend: str, workspace: Workspace, tmp_path: Path
) -> None:
    daemon = boot(backend=backend, settings={"workers.max_concurrent_builds": 1})  # to take part takes no worker
    first, second, build = started_twice(daemon, waiting(daemon, workspace))
    elsewhere = Workspace(tmp_path / "elsewhere", mark=workspace.mark)
    third = daemon.start(waiting(daemon, elsewhere))
    joined(daemon, third, build)
    assert daemon.status()["workers"] == {"busy": 1, "total": 1}
    assert [daemon.package(number, "shared").phase for number in (first, second, third)] == ["build"] * 3
    packages = daemon.call("run.status", {"run": str(second), "live": True})["packages"]
    assert [p["last_line"] for p in packages if p["name"] == "shared"] == [HERE]

    daemon.open_gate(workspace.mark)

    views = [daemon.wait(number) for number in (first, second, third)]
    assert [view.state for view in views] == ["completed"] * 3
    assert {named(view, "shared").build_id for view in views} == {build}
    assert len({named(view, "shared").artifact for view in views}) == 1
    assert [states(view)["shared"] for view in views] == ["success"] * 3
    assert len({named(view, "above").artifact for view in views}) == 1
    (record,) = daemon.records(package="shared")
    assert (record.id, record.run, record.state, record.attempt) == (build, views[0].id, "success", 1)
    assert len(daemon.records(package="above")) == 1
    for view in views:
        events = [e for e in daemon.events(view.number) if e.package == "shared"]
        started, *phases, ended = [e for e in events if e.build is not None]
        assert {e.build for e in events} == {build}
        assert (started.kind, ended.kind) == ("package_started", "package_completed")
        assert started.data.get("shared_with") == (None if view is views[0] else views[0].id)
        assert ended.data["output_id"] == record.output_id
        assert all(e.kind == "package_phase" for e in phases)


def test_what_another_run_has_built_meanwhile_is_not_built_again(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").compiled("top", "base", first=f"echo {HERE}; {daemon.at_gate(workspace.mark)}").commit()
    first = daemon.start(workspace)
    daemon.until_running(first, 1, saying=HERE)
    workspace.compiled("base", first=f"echo {HERE}; {daemon.at_gate(workspace.mark + '-base')}").commit()
    second = daemon.start(workspace)
    daemon.until_running(second, 1, saying=HERE)  # a new recipe of the base, whose output will be the same

    daemon.open_gate(workspace.mark)
    view = daemon.wait(first)
    daemon.open_gate(workspace.mark + "-base")

    assert states(daemon.wait(second)) == {"base": "success", "top": "skipped"}
    assert named(daemon.run(second), "top").artifact == named(view, "top").artifact


@pytest.mark.parametrize("by", ["run", "package"])
@pytest.mark.parametrize("leaver", ["owner", "other"])
def test_a_run_that_leaves_does_not_stop_the_build_for_the_other(
    daemon: Daemon, workspace: Workspace, leaver: str, by: str
) -> None:
    first, second, build = started_twice(daemon, waiting(daemon, workspace))
    leaving, staying = (first, second) if leaver == "owner" else (second, first)

    daemon.call("run.cancel", {"run": str(leaving)} | ({"package": "shared"} if by == "package" else {}))

    view = daemon.wait(leaving, within=5)
    assert view.state == "cancelled"
    assert states(view) == {"shared": "cancelled", "above": "cancelled" if by == "run" else "blocked"}
    assert [e.kind for e in daemon.events(leaving) if e.package == "shared"][-1] == "package_cancelled"
    assert daemon.package(staying, "shared").state == "running"
    assert daemon.record(build).state == "running"
    assert daemon.status()["workers"]["busy"] == 1
    daemon.open_gate(workspace.mark)
    view = daemon.wait(staying)
    assert (view.state, states(view)) == ("completed", {"shared": "success", "above": "success"})
    assert named(view, "shared").build_id == build
    assert daemon.record(build).state == "success"
    assert daemon.run(leaving).state == "cancelled"


def test_a_build_that_every_run_has_left_is_cancelled(daemon: Daemon, workspace: Workspace) -> None:
    first, second, build = started_twice(daemon, waiting(daemon, workspace))
    for number in (first, second):
        daemon.call("run.cancel", {"run": str(number)})
    assert [daemon.wait(number, within=5).state for number in (first, second)] == ["cancelled"] * 2
    assert daemon.record(build).state == "cancelled"
    assert daemon.build_processes() == []
    daemon.open_gate(workspace.mark)
    assert daemon.build(workspace).stats.success == 2  # one that was cancelled answers nothing


def test_a_run_does_not_join_a_build_that_is_being_cancelled(daemon: Daemon, workspace: Workspace) -> None:
    deaf = "trap '' TERM; " + daemon.at_gate(f"{workspace.mark}-never")
    gate = daemon.gates / workspace.mark
    workspace.compiled("shared", first=f"echo {HERE}; if [ ! -e '{gate}' ]; then {deaf}; fi").commit()
    first = daemon.start(workspace)
    daemon.until_running(first, 1, saying=HERE)
    daemon.call("run.cancel", {"run": str(first)})  # it takes a second: the build does not listen
    daemon.open_gate(workspace.mark)
    view = daemon.build(workspace)
    assert view.state == "completed"
    assert named(view, "shared").build_id != named(daemon.wait(first), "shared").build_id


def test_a_shared_build_that_fails_fails_every_run(daemon: Daemon, workspace: Workspace) -> None:
    first, second, build = started_twice(daemon, waiting(daemon, workspace, then="echo oh no; exit 3"))
    daemon.open_gate(workspace.mark)
    for number in (first, second):
        view = daemon.wait(number)
        assert (view.state, states(view)) == ("failed", {"shared": "failed", "above": "blocked"})
        package = named(view, "shared")
        assert (package.build_id, package.reason) == (build, "phase_failed")
        (failed,) = daemon.events(number, "package_failed")
        assert failed.build == build
    assert [r.id for r in daemon.records(package="shared") if r.key == daemon.record(build).key] == [build]


def test_a_forced_run_shares_with_nobody(daemon: Daemon, workspace: Workspace) -> None:
    number = daemon.start(waiting(daemon, workspace))
    daemon.until_running(number, 1, saying=HERE)
    others = [daemon.start(workspace, force=True), daemon.start(workspace, force_packages=["shared"])]
    builds = {daemon.until_running(other, 1, saying=HERE)[0].build_id for other in (number, *others)}
    assert len(builds) == 3
    daemon.open_gate(workspace.mark)
    for other in (number, *others):
        view = daemon.wait(other)
        assert view.state == "completed"
        assert named(view, "shared").build_id in builds
        assert daemon.record(named(view, "shared").build_id).run == view.id


def test_a_run_does_not_share_what_another_forces(daemon: Daemon, workspace: Workspace) -> None:
    first = daemon.start(waiting(daemon, workspace), force=True)
    (forced,) = daemon.until_running(first, 1, saying=HERE)
    second = daemon.start(workspace)
    (own,) = daemon.until_running(second, 1, saying=HERE)
    assert own.build_id != forced.build_id
    daemon.open_gate(workspace.mark)
    assert [daemon.wait(number).state for number in (first, second)] == ["completed"] * 2


def test_a_fail_fast_run_leaves_a_shared_build_to_the_other(daemon: Daemon, workspace: Workspace) -> None:
    first = daemon.start(waiting(daemon, workspace))
    (package,) = daemon.until_running(first, 1, saying=HERE)
    failure = f"{daemon.at_gate(workspace.mark + '-failure')}; exit 1"
    workspace.compiled("bad", first=failure).commit()
    second = daemon.start(workspace, keep_going=False)
    build = joined(daemon, second, package.build_id)

    daemon.open_gate(workspace.mark + "-failure")

    view = daemon.wait(second, within=10)
    assert (view.state, states(view)) == ("failed", {"bad": "failed", "shared": "cancelled", "above": "cancelled"})
    assert daemon.package(first, "shared").state == "running"
    daemon.open_gate(workspace.mark)
    view = daemon.wait(first)
    assert (view.state, named(view, "shared").build_id) == ("completed", build)


def test_a_shared_failure_ends_the_fail_fast_run_and_not_the_other(daemon: Daemon, workspace: Workspace) -> None:
    waiting(daemon, workspace, then="exit 1")
    workspace.compiled("free", first=daemon.at_gate(workspace.mark + "-free")).commit()
    first, second, _ = started_twice(daemon, workspace, keep_going=False)
    until(lambda: daemon.run(second).stats.running == 2, "both packages are shared")
    daemon.open_gate(workspace.mark)

    view = daemon.wait(second, within=10)
    assert (view.state, states(view)) == ("failed", {"shared": "failed", "above": "blocked", "free": "cancelled"})
    assert daemon.package(first, "free").state == "running"
    daemon.open_gate(workspace.mark + "-free")
    view = daemon.wait(first)
    assert (view.state, states(view)) == ("failed", {"shared": "failed", "above": "blocked", "free": "success"})


@pytest.mark.parametrize("end", ["kill -9", "stop"])
def test_runs_that_shared_a_build_complete_after_a_restart(boot: Boot, workspace: Workspace, end: str) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 2})
    first, second, build = started_twice(daemon, waiting(daemon, workspace))
    if end == "stop":
        assert daemon.terminate() == 0
    else:
        daemon.kill9()

    daemon.boot()  # with the gate closed: they wait together once more
    assert daemon.record(build).reason == "interrupted"
    (package,) = daemon.until_running(first, 1, saying=HERE)
    again = joined(daemon, second, package.build_id)
    assert again != build
    daemon.open_gate(workspace.mark)

    for number in (first, second):
        view = daemon.wait(number)
        assert (view.state, states(view)) == ("completed", {"shared": "success", "above": "success"})
        assert named(view, "shared").build_id == again
    assert {(r.id, r.state) for r in daemon.records(package="shared")} == {
        (build, "failed" if end == "kill -9" else "cancelled"),
        (again, "success"),
    }


def test_the_run_that_stays_completes_after_kill_9_when_the_owner_has_left(boot: Boot, workspace: Workspace) -> None:
    daemon = boot(settings={"workers.max_concurrent_builds": 2})
    first, second, build = started_twice(daemon, waiting(daemon, workspace))
    daemon.call("run.cancel", {"run": str(first)})
    assert daemon.wait(first, within=5).state == "cancelled"
    daemon.kill9()
    daemon.open_gate(workspace.mark)
    daemon.boot()

    view = daemon.wait(second)
    assert view.state == "completed"
    assert daemon.record(build).reason == "interrupted"
    assert daemon.record(named(view, "shared").build_id).run == view.id
    assert daemon.run(first).state == "cancelled"
