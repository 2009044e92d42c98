"""The journal through a reader that is killed and resumed: every number exactly once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Daemon, RecipeRepository, RpcError, booted, until

PACKAGES = 3400  # three events each, and those of the run


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with over 10,000 events: a package that fails, and thousands that are blocked by it."""
    repository = RecipeRepository(tmp_path_factory.mktemp("events") / "many")
    names = [f"p{i:04}" for i in range(PACKAGES)]
    repository.package("root", path=".", phases={"build": "exit 1"})
    repository.packages(names, depends=["root"]).commit()
    with booted() as daemon:
        for _ in range(3):
            view = daemon.build(repository)
            assert view.stats.blocked == PACKAGES
        yield daemon


def numbers_of(text: str) -> list[int]:
    """The numbers on all whole lines."""
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line)["number"] for line in whole.splitlines()]


def test_ten_thousand_events_reach_a_reader_that_is_killed_three_times(eventful: Daemon) -> None:
    last = eventful.call("events.poll", {"after": -1})["next"]
    assert last >= 10_000
    seen: list[int] = []
    for part in range(3):
        reader = eventful.buildctl_in_background("events", "--after", seen[-1] if seen else 0, "--json")
        try:
            assert reader.stdout is not None
            text = "".join(reader.stdout.readline() for _ in range(1500 + 700 * part))
            reader.send_signal(signal.SIGKILL)
            text += reader.stdout.read()  # what was in the pipe: a line may be cut
        finally:
            reader.kill()
            reader.communicate()
        seen += numbers_of(text)
        assert seen[-1] < last
    rest = eventful.buildctl("events", "--after", seen[-1], "--json")
    assert rest.returncode == 0, rest.stderr
    seen += numbers_of(rest.stdout)
    assert seen == list(range(1, last + 1))


def test_the_journal_tells_the_whole_story_of_a_run(eventful: Daemon, repository: RecipeRepository) -> None:
    repository.package("good", version="3").package("late", depends=["good"]).commit()
    view = eventful.build(repository)
    events = eventful.call("events.poll", {"after": 0, "run": view.id})["events"]
    states = [event["data"]["to"] for event in events if event["kind"] == "run_state"]
    assert states == ["initialized", "discovering", "planning", "building", "building", "packaging", "completed"]
    story = [(e["kind"], e["package"]) for e in events if e["package"] and e["kind"] != "package_phase"]
    assert story == [
        *(("package_started", "good"), ("package_completed", "good")),
        *(("package_started", "late"), ("package_completed", "late")),
    ]
    assert all(event["run"] == view.id for event in events)
    ended = events[-1]["data"]["stats"]
    assert (ended["total"], ended["success"]) == (2, 2)


def test_a_long_poll_answers_as_soon_as_there_is_an_event(eventful: Daemon, repository: RecipeRepository) -> None:
    after = eventful.call("events.poll", {"after": -1})["next"]
    follower = eventful.buildctl_in_background("events", "--follow", "--json", "--after", after)
    try:
        repository.package("one").commit()
        number = eventful.start(repository)
        eventful.wait(number)
        assert follower.stdout is not None
        lines: list[dict[str, Any]] = []
        while not lines or lines[-1]["data"].get("to") != "completed":
            lines.append(json.loads(follower.stdout.readline()))
        follower.send_signal(signal.SIGTERM)
        assert follower.wait(10) == 130
    finally:
        follower.kill()
        follower.communicate()
    assert [line["number"] for line in lines] == list(range(after + 1, after + 1 + len(lines)))


def test_a_number_that_is_not_there_yet_is_refused_and_not_answered_with_the_past(eventful: Daemon) -> None:
    last = eventful.call("events.poll", {"after": -1})["next"]
    with pytest.raises(RpcError) as caught:
        eventful.call("events.poll", {"after": last + 1000, "timeout": 0.1})
    assert caught.value.code == 4
    assert str(last) in caught.value.message


def test_events_that_are_no_longer_kept_are_an_error_and_no_gap(repository: RecipeRepository) -> None:
    repository.package("root", path=".", phases={"build": "exit 1"})
    repository.packages([f"p{i:04}" for i in range(5100)], depends=["root"]).commit()
    with booted(settings={"events.keep": 1000}) as daemon:
        for _ in range(2):
            daemon.build(repository)
        with pytest.raises(RpcError) as caught:
            until(lambda: not daemon.call("events.poll", {"after": 1}), "old events are dropped")
        assert caught.value.code == 4
        assert "no longer kept" in caught.value.message
        done = daemon.buildctl("events", "--after", "1", "--json")
        assert (done.returncode, done.stdout) == (4, "")
        assert "no longer kept" in done.stderr


def test_a_reader_whose_output_is_closed_ends_quietly(eventful: Daemon) -> None:
    reader = eventful.buildctl_in_background("events", "--after", "0", "--json")
    with reader:
        try:
            assert reader.stdout is not None
            assert reader.stderr is not None
            reader.stdout.readline()
            reader.stdout.close()
            assert reader.wait(20) == 0
            assert reader.stderr.read() == ""
        finally:
            reader.kill()
