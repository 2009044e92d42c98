"""Failures that may pass by themselves are tried again, after a delay that grows; others are final."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator

import pytest
from harness import Daemon, RpcError, WebServer, Workspace, booted, named, states, until
from harness.web import serving

from buildd.model import BuildRecord

Boot = Callable[..., Daemon]
SETTINGS = {
    "workers.max_concurrent_builds": 4,
    "retry.max_retries": 2,
    "retry.delay": "200ms",
    "retry.backoff": 3,
    "fetch.timeout": "1s",  # a build asks once: the server wants it to wait longer than that
}
FOREVER = {**SETTINGS, "retry.delay": "1h", "retry.max_delay": "1h"}


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    with booted(settings=SETTINGS) as daemon:
        yield daemon


@pytest.fixture
def web(workspace: Workspace) -> Iterator[WebServer]:
    with serving(workspace.mark.encode(), {"Retry-After": "30"}) as server:
        yield server


def fetching(workspace: Workspace, name: str, web: WebServer, *statuses: int, like: bytes | None = None) -> Workspace:
    """A package with a source from a server that answers like this; it should be `like` that, or what comes."""
    sha256 = hashlib.sha256(web.content if like is None else like).hexdigest()
    source = {"url": web.url(name, *statuses), "sha256": sha256, "extract": False}
    return workspace.package(name, source=[source], phases={"check": f"test -e {name}"})


def attempts(daemon: Daemon, number: int, package: str) -> list[BuildRecord]:
    return [record for record in daemon.records(run=number) if record.package == package]


def waits(daemon: Daemon, number: int, package: str) -> bool:
    """Whether a package waits for its next attempt."""
    found = [p for p in daemon.run(number).packages if p.name == package]
    return bool(found) and (found[0].state, found[0].reason) == ("queued", "fetch_failed")


def test_a_failure_that_may_pass_is_tried_again_with_growing_delays(
    daemon: Daemon, workspace: Workspace, web: WebServer
) -> None:
    fetching(workspace, "fetched", web, 503, 503, 200)
    workspace.compiled("other").package("above", depends=["fetched"]).commit()

    number = daemon.start(workspace)
    until(lambda: waits(daemon, number, "fetched"), "the first attempt has failed")
    assert "attempt 2 follows in 0.2 s: fetch_failed" in str(daemon.package(number, "fetched").message)
    assert states(daemon.run(number))["above"] == "queued"
    view = daemon.wait(number)

    assert (view.state, view.stats.success, view.stats.total) == ("completed", 3, 3)
    records = attempts(daemon, number, "fetched")
    assert [(r.attempt, r.state, r.reason, r.retried) for r in records] == [
        (1, "failed", "fetch_failed", True),
        (2, "failed", "fetch_failed", True),
        (3, "success", None, False),
    ]
    assert len({r.id for r in records}) == 3
    assert len({r.key for r in records}) == 1
    assert named(view, "fetched").build_id == records[2].id
    assert web.requests == ["/fetched"] * 3
    for (before, after), delay in zip(itertools.pairwise(records), (0.2, 0.6), strict=True):
        assert before.completed_at is not None
        assert delay <= after.started_at - before.completed_at < delay + 2
    retries = daemon.events(number, "package_retry")
    assert [(e.package, e.build, e.data["attempt"], e.data["delay_s"], e.data["reason"]) for e in retries] == [
        ("fetched", records[0].id, 2, 0.2, "fetch_failed"),
        ("fetched", records[1].id, 3, pytest.approx(0.6), "fetch_failed"),
    ]
    kinds = [e.kind for e in daemon.events(number) if e.package == "fetched" and e.kind != "package_phase"]
    again = ["package_started", "package_failed", "package_retry"]
    assert kinds == [*again, *again, "package_started", "package_completed"]
    assert "attempt 3" in daemon.log_of(view, "fetched")
    shown = daemon.buildctl("show", records[0].id, "--json")
    assert json.loads(shown.stdout)["retried"] is True


def test_the_last_attempt_decides(daemon: Daemon, workspace: Workspace, web: WebServer) -> None:
    fetching(workspace, "hopeless", web, 503)
    fetching(workspace, "impatient", web, 503, like=b"something else")
    workspace.package("above", depends=["hopeless"]).commit()

    numbers = [
        daemon.start(f"{workspace}//impatient", max_retries=0),
        daemon.start(f"{workspace}//above", max_retries=1),
    ]
    once, view = map(daemon.wait, numbers)

    assert (once.state, states(once)) == ("failed", {"impatient": "failed"})
    assert [(r.attempt, r.retried) for r in attempts(daemon, once.number, "impatient")] == [(1, False)]
    assert daemon.events(once.number, "package_retry") == []
    assert (view.state, states(view)) == ("failed", {"hopeless": "failed", "above": "blocked"})
    assert [(r.attempt, r.retried) for r in attempts(daemon, view.number, "hopeless")] == [(1, True), (2, False)]
    assert named(view, "hopeless").reason == "fetch_failed"


def test_what_is_not_there_and_what_fails_by_itself_is_final(
    daemon: Daemon, workspace: Workspace, web: WebServer
) -> None:
    fetching(workspace, "gone", web, 404)
    fetching(workspace, "altered", web, 200, like=b"something else")
    workspace.compiled("broken", code="error: no")
    workspace.package("slow", phases={"build": "sleep 60"}, limits={"timeout": "200ms"})
    workspace.commit()

    view = daemon.build(workspace)

    assert view.state == "failed"
    for name, reason in {
        "gone": "fetch_failed",
        "altered": "checksum_mismatch",
        "broken": "phase_failed",
        "slow": "timeout",
    }.items():
        assert (named(view, name).state, named(view, name).reason) == ("failed", reason)
        assert [(r.attempt, r.retried) for r in attempts(daemon, view.number, name)] == [(1, False)]
    assert daemon.events(view.number, "package_retry") == []


def test_a_negative_number_of_retries_is_refused(daemon: Daemon, workspace: Workspace) -> None:
    workspace.compiled("base").commit()
    with pytest.raises(RpcError) as caught:
        daemon.start(workspace, max_retries=-1)
    assert caught.value.code == 2
    assert "max_retries" in str(caught.value)
    done = daemon.buildctl("start", workspace, "--wait", "--max-retries", "0")
    assert done.returncode == 0, done.stderr


def test_packages_that_wait_for_another_attempt_are_cancelled_at_once(
    boot: Boot, workspace: Workspace, web: WebServer
) -> None:
    daemon = boot(settings=FOREVER)
    fetching(workspace, "one", web, 503)
    fetching(workspace, "two", web, 503, like=b"something else").commit()
    number = daemon.start(workspace)
    until(lambda: waits(daemon, number, "one") and waits(daemon, number, "two"), "the first attempts have failed")
    assert daemon.status()["builds"] == {"queued": 2, "running": 0, "success": 0, "failed": 2}

    daemon.call("run.cancel", {"run": str(number), "package": "one"})
    assert states(daemon.run(number)) == {"one": "cancelled", "two": "queued"}
    daemon.call("run.cancel", {"run": str(number)})

    view = daemon.wait(number, within=2)
    assert (view.state, states(view)) == ("cancelled", {"one": "cancelled", "two": "cancelled"})
    records = daemon.records(run=number)
    assert [(r.state, r.retried) for r in records] == [("failed", True)] * 2  # what was to follow did not
    assert daemon.terminate(within=5) == 0  # no hour's sleep holds it up


def test_a_package_that_waits_for_another_attempt_has_it_after_a_restart(
    boot: Boot, workspace: Workspace, web: WebServer
) -> None:
    daemon = boot(settings=FOREVER)
    fetching(workspace, "fetched", web, 503, 503, 200)
    workspace.package("above", depends=["fetched"]).commit()
    number = daemon.start(workspace)
    until(lambda: waits(daemon, number, "fetched"), "the first attempt has failed")
    daemon.kill9()
    daemon.boot()
    until(lambda: waits(daemon, number, "fetched"), "the second attempt has failed")
    daemon.restart()

    view = daemon.wait(number)

    assert (view.state, states(view)) == ("completed", {"fetched": "success", "above": "success"})
    records = attempts(daemon, number, "fetched")
    assert [(r.attempt, r.state, r.retried) for r in records] == [
        (1, "failed", True),
        (2, "failed", True),
        (3, "success", False),
    ]


def test_runs_that_share_a_build_share_its_attempts_and_count_their_own_retries(
    daemon: Daemon, workspace: Workspace, web: WebServer
) -> None:
    fetching(workspace, "fetched", web, 503, 503, 200).commit()
    first = daemon.start(workspace)
    until(lambda: web.requests, "the first attempt is under way")
    second, content = daemon.start(workspace), daemon.start(workspace, max_retries=0)

    views = [daemon.wait(number) for number in (first, second, content)]

    assert [view.state for view in views] == ["completed", "completed", "failed"]
    records = daemon.records(package="fetched")[-3:]
    assert [(r.attempt, r.state, r.retried) for r in records] == [
        (1, "failed", True),
        (2, "failed", True),
        (3, "success", False),
    ]
    assert {named(view, "fetched").build_id for view in views[:2]} <= {records[2].id, None}
    assert named(views[2], "fetched").build_id == records[0].id
    assert len(web.requests) == 3
    for view in views[:2]:
        assert [e.data["attempt"] for e in daemon.events(view.number, "package_retry")] == [2, 3]
    assert daemon.events(views[2].number, "package_retry") == []
