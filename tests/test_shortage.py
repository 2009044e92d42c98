"""What the machine is short of, as the daemon's status shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from buildd import shortage


@pytest.fixture(autouse=True)
def _nothing_is_short() -> Iterator[None]:
    yield
    shortage.clear("threads")
    shortage.clear("processes")


def test_a_shortage_is_shown_with_what_to_do_until_it_has_passed() -> None:
    shortage.note("processes", "no process can be started (some reason)")
    (reason,) = shortage.reasons()
    assert reason.startswith("no process can be started (some reason); raise the limits of the daemon")
    shortage.clear("processes")
    assert shortage.reasons() == ()


def test_the_last_word_on_a_shortage_counts() -> None:
    shortage.note("threads", "first")
    shortage.note("threads", "second")
    shortage.note("processes", "third")
    assert [reason.partition(";")[0] for reason in shortage.reasons()] == ["second", "third"]


def test_what_nobody_has_met_for_a_while_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    shortage.note("processes", "none")
    later = time.monotonic() + shortage.REMEMBERED_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert shortage.reasons() == ()
