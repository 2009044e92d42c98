"""What changed between two listings of a source, file by file.

Pure. Invariant: the changes are exact, so that the old listing with them applied is the new one.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Literal

from buildd.protocol import FileChange

Listing = Sequence[tuple[str, int, str]]
"""The files of a source: path (as `os.fsdecode` gives it), git's mode, git's id in hexadecimal."""

_Entry = tuple[int, str]
_FORMAT_BITS = 0o170000


def file_changes(old: Listing, new: Listing) -> tuple[FileChange, ...]:
    """What turns one listing into the other, sorted by the bytes of the (new) path.

    A file whose content was elsewhere before, and is there no more, is renamed.
    """
    before = {path: (mode, id) for path, mode, id in old}
    after = {path: (mode, id) for path, mode, id in new}
    gone = {path: entry for path, entry in before.items() if path not in after}
    come = {path: entry for path, entry in after.items() if path not in before}
    moved = _renames(gone, come)
    changes = [
        _change("modified" if before[path][1] != after[path][1] else "mode", path, before[path], after[path])
        for path in before.keys() & after.keys()
        if before[path] != after[path]
    ]
    changes += [
        _change("renamed", path, before[moved[path]], entry, moved[path])
        if path in moved
        else _change("added", path, None, entry)
        for path, entry in come.items()
    ]
    left = gone.keys() - moved.values()
    changes += [_change("removed", path, gone[path], None) for path in left]
    return tuple(sorted(changes, key=lambda change: os.fsencode(change.path)))


def _change(
    change: Literal["added", "removed", "modified", "mode", "renamed"],
    path: str,
    old: _Entry | None,
    new: _Entry | None,
    old_path: str | None = None,
) -> FileChange:
    return FileChange(
        path=path,
        change=change,
        old_path=old_path,
        old_blob=old[1] if old is not None else None,
        new_blob=new[1] if new is not None else None,
        old_mode=f"{old[0]:06o}" if old is not None else None,
        new_mode=f"{new[0]:06o}" if new is not None else None,
    )


def _renames(gone: Mapping[str, _Entry], come: Mapping[str, _Entry]) -> dict[str, str]:
    """New path to old path. Of several files with one content, equal names are paired first, then as they sort."""
    by_name: dict[tuple[int, str, str], deque[str]] = defaultdict(deque)
    by_content: dict[tuple[int, str], deque[str]] = defaultdict(deque)
    for path in sorted(gone, key=os.fsencode):
        by_name[*_content(gone[path]), _name(path)].append(path)
    moved: dict[str, str] = {}
    rest: list[str] = []
    for path in sorted(come, key=os.fsencode):
        namesakes = by_name.get((*_content(come[path]), _name(path)))
        if namesakes:
            moved[path] = namesakes.popleft()
        else:
            rest.append(path)
    for path in sorted((path for paths in by_name.values() for path in paths), key=os.fsencode):
        by_content[_content(gone[path])].append(path)
    for path in rest:
        candidates = by_content.get(_content(come[path]))
        if candidates:
            moved[path] = candidates.popleft()
    return moved


def _content(entry: _Entry) -> tuple[int, str]:
    """A link with the same blob as a file is something else."""
    return entry[0] & _FORMAT_BITS, entry[1]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
