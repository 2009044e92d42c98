"""One build for several runs: who may wait for it, and when it is stopped."""

from __future__ import annotations

from typing import Any

import pytest

from buildd.engine.active import ActiveBuild
from buildd.engine.progress import PackageRun, Progress
from buildd.engine.run import Run
from buildd.model import BuildRecord, Package
from buildd.planner.keys import Inputs, KeyParts
from buildd.planner.states import Initialized
from buildd.protocol import StartParams
from buildd.store.runs import RunRecord

ZLIB = Package(name="zlib", version="1", path=".", repository="/r", store="/s", tree="1" * 40)
INPUTS = Inputs(
    parts=KeyParts(
        name="zlib",
        version="1",
        tree="1" * 40,
        sources=(),
        patches=(),
        phases={},
        formats=(),
        environment="e",
        architecture="x86_64",
        dependencies={},
    ),
    outputs={},
    environment={},
    strategy="aggressive",
    repository="/r",
    commit=None,
    root="2" * 40,
    path=".",
)


def a_run(number: int = 1, **request: Any) -> tuple[Run, PackageRun]:
    """A run that wants zlib, and what becomes of zlib in it."""
    params = StartParams(targets=("/r",), **request)
    record = RunRecord(
        id=f"r{number}", number=number, request=params, requested_by="root", created_at=1.0, state=Initialized()
    )
    run = Run(record)
    package = PackageRun(ZLIB, (), 1, 1.0)
    run.progress = Progress([package])
    return run, package


def a_build(run: Run, package: PackageRun, *, shareable: bool = True) -> ActiveBuild:
    build = BuildRecord(id="b", run=run.id, package="zlib", version="1", state="running", started_at=1.0)
    return ActiveBuild(build, INPUTS, run, package, shareable=shareable)


def grace() -> float:
    return 0.0


def test_a_run_may_wait_for_the_build_of_another_one() -> None:
    assert a_build(*a_run()).admits(*a_run(2))


@pytest.mark.parametrize("wish", [{"force": True}, {"force_packages": ("zlib",)}, {"fetch_only": True}], ids=str)
def test_a_run_that_wants_a_build_of_its_own_has_one(wish: dict[str, Any]) -> None:
    assert not a_build(*a_run()).admits(*a_run(2, **wish))


def test_a_run_that_forces_something_else_may_wait() -> None:
    assert a_build(*a_run()).admits(*a_run(2, force_packages=("curl",)))


def test_a_run_that_verifies_a_package_builds_it_itself() -> None:
    run, package = a_run(2)
    run.verified = {"zlib": "0" * 64}
    assert not a_build(*a_run()).admits(run, package)


def test_nobody_waits_for_a_build_that_is_another_ones_own_or_is_being_stopped() -> None:
    assert not a_build(*a_run(), shareable=False).admits(*a_run(2))
    active = a_build(*a_run())
    active.control.cancel("cancelled", "by somebody", grace=grace)
    assert not active.admits(*a_run(2))


def test_a_build_goes_on_until_the_last_one_who_wants_it_leaves() -> None:
    runs = [a_run(number) for number in (1, 2, 3)]
    active = a_build(*runs[0])
    active.members += runs[1:]
    for run, _ in runs[:2]:  # the one that started it goes first
        assert active.leave(run, "cancelled by ann", grace=grace)
        assert active.control.why is None
        assert run not in [member for member, _ in active.members]
    assert not active.leave(runs[2][0], "cancelled by bob", grace=grace)
    assert active.control.why == ("cancelled", "cancelled by bob")
    assert active.control.scope.cancel_called
    assert active.members == [runs[2]], "it hears of the end"


def test_each_run_counts_a_shared_build_as_its_own() -> None:
    runs = [a_run(number) for number in (1, 2)]
    for run, package in runs:
        assert run.progress is not None
        run.progress.move("zlib", "running")
        package.output_id = "0" * 64
        run.progress.move("zlib", "success")
        stats = run.progress.stats()
        assert (stats.total, stats.success, stats.running) == (1, 1, 0)
        assert run.progress.finished
