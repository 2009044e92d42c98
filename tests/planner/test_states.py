"""The states of a run: the table is requirement B5, and nothing else is possible."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from buildd.planner.states import (
    Building,
    Cancelled,
    Completed,
    CreatingRepository,
    Discovering,
    Failed,
    IllegalTransition,
    Initialized,
    Packaging,
    Planning,
    RunState,
    advance,
    is_final,
    name_of,
    resumed,
)

STATES: dict[str, RunState] = {
    "initialized": Initialized(),
    "discovering": Discovering(),
    "planning": Planning(),
    "building": Building(wave=1, waves=2),
    "packaging": Packaging(),
    "creating_repository": CreatingRepository(),
    "completed": Completed(),
    "failed": Failed(error="it broke", hint="mend it"),
    "cancelled": Cancelled(reason="cancelled by root"),
}
FINAL = {"completed", "failed", "cancelled"}
STEPS = {
    ("initialized", "discovering"),
    ("discovering", "planning"),
    ("planning", "building"),
    ("building", "building"),  # from wave to wave
    ("building", "packaging"),
    ("packaging", "creating_repository"),
    ("packaging", "completed"),  # a run that publishes no repository
    ("creating_repository", "completed"),
}
LEGAL = STEPS | {(name, end) for name in STATES.keys() - FINAL for end in ("failed", "cancelled")}
PAIRS = sorted(itertools.product(STATES, STATES))


def test_the_names_are_those_that_users_see() -> None:
    assert {name_of(state) for state in STATES.values()} == STATES.keys()
    assert all(name_of(state) == name for name, state in STATES.items())


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair in LEGAL])
def test_a_legal_transition_gives_the_new_state(before: str, after: str) -> None:
    assert advance(STATES[before], STATES[after]) is STATES[after]


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair not in LEGAL])
def test_an_illegal_transition_raises_and_names_both_states(before: str, after: str) -> None:
    with pytest.raises(IllegalTransition, match=f"{before} to {after}"):
        advance(STATES[before], STATES[after])


def test_only_the_three_ends_are_final() -> None:
    assert {name for name, state in STATES.items() if is_final(state)} == FINAL


@pytest.mark.parametrize("name", sorted(STATES))
def test_a_restart_takes_an_unfinished_run_back_to_its_beginning(name: str) -> None:
    if name in FINAL:
        with pytest.raises(IllegalTransition):
            resumed(STATES[name])
    else:
        assert resumed(STATES[name]) == Initialized()


@pytest.mark.parametrize("name", sorted(STATES))
def test_a_state_survives_being_stored(name: str) -> None:
    text = msgspec.json.encode(STATES[name])
    assert msgspec.json.decode(text)["name"] == name
    assert msgspec.json.decode(text, type=RunState) == STATES[name]
