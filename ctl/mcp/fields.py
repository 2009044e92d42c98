"""Arguments that several tools take, and how values read in answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

from ctl.mcp.tool import Arguments

MAX_WAIT_S = 300.0
POLL_S = 1.0
"""Longest single wait for the daemon: so often progress is told, and a restart is noticed."""

Repo = Annotated[
    str,
    Meta(min_length=1, description="URL, absolute path, or the name of a known repository as list_repos gives it."),
]
Targets = Annotated[
    tuple[str, ...],
    Meta(
        min_length=1,
        description="What to build: REPO[@REV][//PACKAGE] each, REPO a URL, a path or a known name; without PACKAGE "
        "all that the repository builds by default. As in https://example.org/things.git@v1.2//libthing",
    ),
]
Run = Annotated[
    str, Meta(min_length=1, description="Number or id of a run, as start_build and list_builds give it, or latest.")
]
Revision = Annotated[
    str, Meta(description="Branch, tag, or full or unambiguous short commit id. Empty: the default branch.")
]
Wait = Annotated[
    float,
    Meta(
        ge=0,
        le=MAX_WAIT_S,
        description="Seconds to wait for the end before answering with the state so far; 0 answers at once. The wait "
        "ends early when the work does. Many clients give up on a call after 60 seconds: stay below that.",
    ),
]
LongAnswer = Annotated[
    float,
    Meta(
        ge=1,
        le=MAX_WAIT_S,
        description="Seconds to wait for the answer, which has to be found first, and for which a repository may have "
        "to be fetched. When that is not enough, the daemon goes on: ask again.",
    ),
]
Count = Annotated[int, Meta(ge=0)]
Line = Annotated[int, Meta(ge=1, description="From 1.")]
Offset = Annotated[int, Meta(ge=0, description="How many to skip: `next_offset` of the answer before.")]
NextOffset = Annotated[int | None, Meta(description="What to pass as `offset` for the next page; null on the last.")]
NextStep = Annotated[str, Meta(description="What to call next, where something follows.")]
Time = Annotated[str, Meta(description="UTC, as in 2026-01-31T12:00:00Z; empty when it has not happened.")]


class CodeArguments(Arguments, frozen=True, kw_only=True):
    repo: Repo
    revision: Revision = ""


T = TypeVar("T")
S = TypeVar("S", bound=Struct)


def moment(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def page(found: Sequence[T], offset: int, limit: int) -> tuple[tuple[T, ...], int | None]:
    """The piece of a list from `offset`, and where the next one begins."""
    end = offset + limit
    return tuple(found[offset:end]), end if end < len(found) else None


def following(offset: int, count: int, total: int) -> int | None:
    """Where the next page begins, behind one of `count` that begins at `offset`."""
    return offset + count if count and offset + count < total else None


def extend(kind: type[S], base: Struct, **more: object) -> S:
    """A struct of a kind that adds fields to that of `base`."""
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    return kind(**{**fields, **more})
