"""What a directory of a commit holds: counts of everything below it, and a listing down to some depth.

A tree that is found at many places is looked at once, so a pack of a few kilobytes that unfolds into billions of files
costs a few kilobytes here as well. The listing is filled level by level: when there is no room for all of it, what is
left out lies deep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from buildd.errors import InvalidInput
from buildd.protocol import Tree, TreeEntry, TreeParams
from buildd.repos.reading import View, shown
from buildd.repos.trees import DIRECTORY, EXECUTABLE, FILE, LINK, SUBMODULE, Child

_MAX_ENTRIES = 1_000_000
"""Different ones that are counted for one answer."""
_MAX_LISTED = 10_000
_MAX_BYTES = 800_000
"""Of the listing as JSON."""
_ENTRY_BYTES = 80
"""Of a listed entry as JSON, without its path."""
_MOST = 2**53 - 1
"""The largest whole number that every reader of JSON understands."""
_SUFFIXES = 20
_MAX_SUFFIX = 16

_TYPES: dict[int, Literal["directory", "file", "executable", "link", "submodule"]] = {
    DIRECTORY: "directory",
    FILE: "file",
    EXECUTABLE: "executable",
    LINK: "link",
    SUBMODULE: "submodule",
}


class _Totals(NamedTuple):
    """Of a directory, with everything below it."""

    files: int
    directories: int
    bytes: int
    subtrees: tuple[str, ...]
    """Directories right in it, as often as they are."""


def outline(params: TreeParams, view: View) -> Tree:
    """The answer to `repo.tree`. Blocks. Raises NotFound, InvalidInput, Refused."""
    top = view.directory(params.path)
    survey = _Survey(view, top.id)
    depth, limit = max(0, params.depth), max(1, min(params.limit, _MAX_LISTED))
    entries, truncated = _listing(view, survey, top.path, top.id, depth, limit)
    totals = survey.totals[top.id]
    return Tree(
        commit=view.commit,
        path=top.path,
        files=totals.files,
        directories=totals.directories,
        bytes=totals.bytes,
        suffixes=survey.suffixes(),
        entries=entries,
        truncated=truncated,
    )


class _Survey:
    """Counts of a directory and of every directory below it."""

    def __init__(self, view: View, top: str) -> None:
        self.totals: dict[str, _Totals] = {}
        """By tree; a tree comes after all that are below it."""
        self._view = view
        self._top = top
        self._entries = 0
        self._suffixes: Counter[str] = Counter()
        pending: dict[str, tuple[int, int, tuple[str, ...]]] = {}
        stack = [top]
        while stack:
            tree = stack[-1]
            if tree in self.totals:
                stack.pop()
            elif tree in pending:  # all below it is known now
                self.totals[tree] = self._sum(*pending.pop(tree))
            else:
                pending[tree] = own = self._look(tree)
                stack.extend(own[2])

    def _look(self, tree: str) -> tuple[int, int, tuple[str, ...]]:
        """Files right in a tree, their bytes, and the directories in it."""
        self._view.check()
        children = self._view.store.children(tree)
        self._entries += len(children)
        if self._entries > _MAX_ENTRIES:
            raise InvalidInput(
                f"commit {self._view.commit[:12]} has more than {_MAX_ENTRIES} entries there",
                hint="Ask for a directory below.",
            )
        self._suffixes.update(_suffixes(children))
        files = [child.id for child in children if child.mode not in (DIRECTORY, SUBMODULE)]
        size = sum(self._view.store.sizes(files)) if files else 0
        return len(files), size, tuple(child.id for child in children if child.mode == DIRECTORY)

    def _sum(self, files: int, size: int, subtrees: tuple[str, ...]) -> _Totals:
        below = [self.totals[tree] for tree in subtrees]
        return _Totals(
            min(_MOST, files + sum(t.files for t in below)),
            min(_MOST, len(below) + sum(t.directories for t in below)),
            min(_MOST, size + sum(t.bytes for t in below)),
            subtrees,
        )

    def suffixes(self) -> dict[str, int]:
        """Number of files by suffix, most frequent first."""
        times: Counter[str] = Counter({self._top: 1})
        counts = Counter(self._suffixes)
        for tree in reversed(self.totals):
            for subtree in self.totals[tree].subtrees:
                times[subtree] = min(_MOST, times[subtree] + times[tree])
            if times[tree] > 1:  # it was counted once
                for suffix in _suffixes(self._view.store.children(tree)):
                    counts[suffix] = min(_MOST, counts[suffix] + times[tree] - 1)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return dict(ordered[:_SUFFIXES])


def _suffixes(children: Sequence[Child]) -> list[str]:
    """What the names of files end in, dot included; nothing for `Makefile` and `.profile`."""
    names = [child.name for child in children if child.mode in (FILE, EXECUTABLE)]
    parts = [name.rpartition(b".") for name in names]
    return [f".{shown(end)}" for stem, _, end in parts if stem.strip(b".") and 0 < len(end) <= _MAX_SUFFIX]


def _listing(
    view: View, survey: _Survey, path: str, tree: str, depth: int, limit: int
) -> tuple[tuple[TreeEntry, ...], bool]:
    """At most `limit` entries in the order in which they are shown, and whether there are more of them."""
    found: list[tuple[tuple[tuple[bool, bytes], ...], TreeEntry]] = []
    """With a key that puts what is in a directory right after it."""
    room = _MAX_BYTES
    full = False
    level: list[tuple[tuple[tuple[bool, bytes], ...], str, str]] = [((), path, tree)]
    for _ in range(depth):
        below: list[tuple[tuple[tuple[bool, bytes], ...], str, str]] = []
        for place, prefix, id in level:
            view.check()
            children = sorted(view.store.children(id), key=_rank)
            full = full or len(children) > limit - len(found)
            children = children[: limit - len(found)]
            for child, size in zip(children, _sizes(view, children), strict=True):
                name = f"{prefix}/{shown(child.name)}" if prefix else shown(child.name)
                room -= len(msgspec.json.encode(name)) + _ENTRY_BYTES
                if room < 0:
                    full = True
                    break
                key = (*place, _rank(child))
                found.append((key, _entry(child, name, size, survey)))
                if child.mode == DIRECTORY:
                    below.append((key, name, child.id))
            if full:
                break
        level = below
        if full or not level:
            break
    return tuple(entry for _, entry in sorted(found, key=lambda item: item[0])), full


def _rank(child: Child) -> tuple[bool, bytes]:
    return child.mode != DIRECTORY, child.name


def _sizes(view: View, children: Sequence[Child]) -> list[int]:
    """Bytes of each child; nothing for those that are no files."""
    sizes = iter(view.store.sizes(c.id for c in children if c.mode not in (DIRECTORY, SUBMODULE)))
    return [next(sizes) if child.mode not in (DIRECTORY, SUBMODULE) else 0 for child in children]


def _entry(child: Child, path: str, size: int, survey: _Survey) -> TreeEntry:
    files = 0 if child.mode == SUBMODULE else 1
    if child.mode == DIRECTORY:
        totals = survey.totals[child.id]
        files, size = totals.files, totals.bytes
    return TreeEntry(path=path, type=_TYPES[child.mode], files=files, bytes=size)
