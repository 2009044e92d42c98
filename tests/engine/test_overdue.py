"""Builds that do not end when their time is over are named, once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from test_active import ZLIB, a_build, a_run

from buildd import config as configuration
from buildd.engine.active import ActiveBuild
from buildd.engine.overdue import Overdue
from buildd.model import Limits


class Watch:
    def __init__(self, limit: float | None = None, **settings: str) -> None:
        settings = {"monitor.stuck_after": "10s", "limits.timeout": "100s"} | {
            key.replace("__", "."): value for key, value in settings.items()
        }
        self.config = configuration.load(files=[], settings=[f"{k}={v}" for k, v in settings.items()], environ={})
        run, package = a_run()
        package.package = msgspec.structs.replace(ZLIB, limits=Limits(timeout=limit))
        self.active: list[ActiveBuild] = [a_build(run, package)]
        """One that began at 1."""
        self.active[0].began = 1.0
        self.events: list[tuple[str, str | None, dict[str, Any]]] = []
        self.overdue = Overdue(config=lambda: self.config, active=lambda: self.active, emit=self._emit)

    def _emit(
        self, kind: str, *, package: str | None = None, data: dict[str, Any] | None = None, **_: str | None
    ) -> None:
        self.events.append((kind, package, data or {}))


@pytest.mark.parametrize(("limit", "ends"), [(None, 111), (20, 31), (1000, 111)])
def test_a_build_is_reported_once_when_it_is_over_its_limit_by_more_than_the_margin(
    limit: float | None, ends: float
) -> None:
    watch = Watch(limit)
    watch.active[0].phase = "stage"
    for now in (2.0, ends - 1, ends):
        watch.overdue.check(now)
        assert watch.overdue.reasons == ()
    for now in (ends + 1, ends + 100):
        watch.overdue.check(now)
        (reason,) = watch.overdue.reasons
        assert "build b of zlib does not end" in reason
        assert "stage" in reason
    assert watch.events == [
        ("build_stuck", "zlib", {"phase": "stage", "limit_s": ends - 11, "over_s": 11.0}),
    ]
    watch.active.clear()
    watch.overdue.check(ends + 200)
    assert watch.overdue.reasons == (), "it has ended after all"


def test_a_build_that_hangs_before_its_first_phase_is_reported_too() -> None:
    watch = Watch()
    watch.overdue.check(1000.0)
    (reason,) = watch.overdue.reasons
    assert "before the first phase" in reason
    assert watch.events[0][2]["phase"] is None


def test_a_build_without_a_limit_may_take_for_ever() -> None:
    watch = Watch(limits__timeout="0")
    watch.overdue.check(10.0**9)
    assert watch.events == []
