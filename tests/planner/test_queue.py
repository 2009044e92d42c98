"""The ready queue: what is built next."""

from __future__ import annotations

from hypothesis import given, strategies as st

from buildd.planner.queue import Ready, ReadyQueue

Entry = tuple[int, str, float, int]
entries = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from("abcd"), st.sampled_from([0.0, 1.5, 9.0]), st.integers(-1, 1)),
    unique_by=lambda e: (e[0], e[1]),
)


def drain(queue: ReadyQueue) -> list[Ready]:
    result = []
    while (ready := queue.pop()) is not None:
        result.append(ready)
    return result


@given(entries)
def test_the_longest_chain_goes_first_then_priority_then_the_older_run_then_the_name(pushed: list[Entry]) -> None:
    queue = ReadyQueue()
    for run, package, urgency, priority in pushed:
        queue.push(Ready(run, package), urgency=urgency, priority=priority)
    assert len(queue) == len(pushed)
    wanted = sorted(pushed, key=lambda e: (-e[2], -e[3], e[0], e[1]))
    assert drain(queue) == [Ready(run, package) for run, package, _, _ in wanted]
    assert len(queue) == 0


def test_what_comes_later_but_is_more_urgent_overtakes() -> None:
    queue = ReadyQueue()
    queue.push(Ready(1, "slow"), urgency=5, priority=0)
    queue.push(Ready(1, "tail"), urgency=1, priority=0)
    assert queue.pop() == Ready(1, "slow")
    queue.push(Ready(2, "chain"), urgency=60, priority=-5)
    assert drain(queue) == [Ready(2, "chain"), Ready(1, "tail")]


def test_an_empty_queue_has_nothing() -> None:
    assert ReadyQueue().pop() is None
