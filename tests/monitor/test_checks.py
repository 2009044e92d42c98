"""The checks that `buildctl doctor` shows."""

from __future__ import annotations

import pytest

from buildd import descriptors
from buildd.config import load
from buildd.monitor.checks import machine_checks
from buildd.protocol import CheckResult


def open_files(builds: int) -> CheckResult:
    config = load(files=[], settings=[f"workers.max_concurrent_builds={builds}"], environ={"HOME": "/tmp"})
    found = {check.name: check for check in machine_checks(config, sandbox="bwrap", weaker=())}
    return found["open files"]


def test_a_limit_of_open_files_that_is_too_low_for_the_builds_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "attainable", lambda: 5000)
    check = open_files(8)
    assert (check.status, check.message) == ("ok", "the daemon may open 5000 files")
    check = open_files(1000)
    assert check.status == "warning"
    assert "may open 5000 files, and should be able to open 16000" in check.message
    assert "LimitNOFILE" in check.hint
    monkeypatch.setattr(descriptors, "attainable", lambda: 1024)
    assert "should be able to open 4096" in open_files(2).message
