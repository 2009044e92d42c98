"""The states of a run (B5). A state carries only what exists in it; `advance` is the only way to change one.

Invariant: no other transition than those in `_NEXT` happens, except `resumed`, which takes an unfinished run
back to its beginning after a restart.
"""

from __future__ import annotations

from msgspec import Struct


class _State(Struct, frozen=True, kw_only=True, tag_field="name"):
    pass


class Initialized(_State, frozen=True, kw_only=True, tag="initialized"):
    """Accepted and on disk."""


class Discovering(_State, frozen=True, kw_only=True, tag="discovering"):
    """Repositories are cloned or fetched, and packages looked for."""


class Planning(_State, frozen=True, kw_only=True, tag="planning"):
    """Dependencies are resolved and ordered."""


class Building(_State, frozen=True, kw_only=True, tag="building"):
    wave: int
    """Lowest wave that still has an unfinished package, from 1; 0 when there is nothing to build."""
    waves: int


class Packaging(_State, frozen=True, kw_only=True, tag="packaging"):
    """The packages that the recipes' `formats` ask for are collected."""


class CreatingRepository(_State, frozen=True, kw_only=True, tag="creating_repository"):
    """A package repository is published."""


class Completed(_State, frozen=True, kw_only=True, tag="completed"):
    pass


class Failed(_State, frozen=True, kw_only=True, tag="failed"):
    error: str
    hint: str = ""


class Cancelled(_State, frozen=True, kw_only=True, tag="cancelled"):
    reason: str


RunState = (
    Initialized | Discovering | Planning | Building | Packaging | CreatingRepository | Completed | Failed | Cancelled
)

_NEXT: dict[type, tuple[type, ...]] = {
    Initialized: (Discovering, Failed, Cancelled),
    Discovering: (Planning, Failed, Cancelled),
    Planning: (Building, Failed, Cancelled),
    Building: (Building, Packaging, Failed, Cancelled),
    Packaging: (CreatingRepository, Completed, Failed, Cancelled),
    CreatingRepository: (Completed, Failed, Cancelled),
    Completed: (),
    Failed: (),
    Cancelled: (),
}


class IllegalTransition(AssertionError):
    """A broken invariant: the engine asked for a transition that does not exist."""


def name_of(state: RunState) -> str:
    """The state's name in JSON, events and man pages."""
    return str(state.__struct_config__.tag)


def is_final(state: RunState) -> bool:
    return not _NEXT[type(state)]


def advance(current: RunState, following: RunState) -> RunState:
    """`following`, if the run may go there from `current`. Raises IllegalTransition."""
    if type(following) not in _NEXT[type(current)]:
        raise IllegalTransition(f"a run cannot go from {name_of(current)} to {name_of(following)}")
    return following


def resumed(current: RunState) -> RunState:
    """The state in which an unfinished run starts again after the daemon did. Raises IllegalTransition."""
    if is_final(current):
        raise IllegalTransition(f"a run that is {name_of(current)} cannot be resumed")
    return Initialized()
