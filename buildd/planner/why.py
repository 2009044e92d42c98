"""Why a package is built again (D7): what differs between the inputs of two builds, named part by part.

Pure. Invariant: equal parts of a key have no causes, and different ones at least one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from buildd.errors import encodable
from buildd.model import PHASES
from buildd.planner.keys import Inputs, SourceKey
from buildd.protocol import Cause, CauseKind, FileChange

_EXCERPT = 60
"""Characters of a command in a message; `old` and `new` of the cause have all of it."""
_CHANGES: dict[str, str] = {
    "modified": "modified",
    "added": "added",
    "removed": "removed",
    "renamed": "renamed",
    "mode": "with another mode",
}
_DIGEST = re.compile(r"[0-9a-f]{40,64}")


def differences(
    old: Inputs, new: Inputs, files: Sequence[FileChange] | None = None, *, pending: Collection[str] = ()
) -> tuple[Cause, ...]:
    """The causes for a build with `new` when the last one had `old`, the most useful first.

    `files` are the changes between the two sources; None when they are not known. `pending` are direct
    dependencies that are to be built: `new` cannot say yet what they will be.
    """
    causes = [
        *_source(old.parts.tree, new.parts.tree, files),
        *_changed("version", "", old.parts.version, new.parts.version, "version"),
        *_changed("recipe", "name", old.parts.name, new.parts.name, "name"),
        *_phases(old.parts.phases, new.parts.phases),
        *_fetched(old.parts.sources, new.parts.sources),
        *_lists("patches", old.parts.patches, new.parts.patches),
        *_lists("formats", old.parts.formats, new.parts.formats),
        *_dependencies(old, new, pending),
        *_environment(old, new),
        *_changed("architecture", "", old.parts.architecture, new.parts.architecture, "architecture"),
        *_changed("format", "", str(old.parts.format), str(new.parts.format), "meaning of keys in this buildd"),
    ]
    return tuple(causes)


def _changed(kind: CauseKind, what: str, old: str, new: str, name: str) -> Iterator[Cause]:
    if old != new:
        yield Cause(kind=kind, what=what, old=old, new=new, message=f"{name}: {old} -> {new}")


# --- the source -------------------------------------------------------------------------------------------


def _source(old: str, new: str, files: Sequence[FileChange] | None) -> Iterator[Cause]:
    if old == new:
        return
    if files is None:
        message = f"source: tree {short(old)} -> {short(new)}; the files of the earlier one are no longer known"
    elif not files:
        message = f"source: tree {short(old)} -> {short(new)}, with the same files"
    else:
        counts: Counter[str] = Counter(change.change for change in files)
        message = "source: " + ", ".join(f"{counts[how]} {word}" for how, word in _CHANGES.items() if counts[how])
    yield Cause(kind="source", old=old, new=new, message=message, files=tuple(map(_encodable, files or ())))


def _encodable(change: FileChange) -> FileChange:
    """File names need not be UTF-8, and JSON has to be."""
    old_path = encodable(change.old_path) if change.old_path is not None else None
    return msgspec.structs.replace(change, path=encodable(change.path), old_path=old_path)


# --- the recipe -------------------------------------------------------------------------------------------


def _phases(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Cause]:
    order = {phase: number for number, phase in enumerate(PHASES)}
    for phase in sorted(old.keys() | new.keys(), key=lambda phase: (order.get(phase, len(order)), phase)):
        before, after = old.get(phase), new.get(phase)
        if before != after:
            message = f"phase {phase}: {_text_change(before, after)}"
            yield Cause(kind="recipe", what=phase, old=before, new=after, message=message)


def _text_change(old: str | None, new: str | None) -> str:
    """The first lines that differ, and how many more do."""
    before, after = (old or "").splitlines(), (new or "").splitlines()
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    before, after = before[start : len(before) - end], after[start : len(after) - end]
    more = max(len(before), len(after)) - 1
    rest = f" and {more} more line{'s' * (more > 1)}" if more > 0 else ""
    if old is None or (new is not None and not before):
        return f"added {_quoted(after[0])}{rest}" if after else "added" if old is None else "white space"
    if new is None or not after:
        return f"removed {_quoted(before[0])}{rest}" if before else "removed"
    return "{} -> {}{}".format(*_excerpts(before[0], after[0]), rest)


def _excerpts(old: str, new: str) -> tuple[str, str]:
    """Both texts from shortly before where they begin to differ."""
    start = 0
    if max(len(old), len(new)) > _EXCERPT:
        start = max(0, _common(old, new) - _EXCERPT // 3)
    return _quoted(old, start), _quoted(new, start)


def _quoted(text: str, start: int = 0) -> str:
    cut = text[start : start + _EXCERPT]
    return f"`{'…' * (start > 0)}{cut}{'…' * (len(text) > start + _EXCERPT)}`"


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many elements the two begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _fetched(old: Sequence[SourceKey], new: Sequence[SourceKey]) -> Iterator[Cause]:
    if old == new:
        return
    before, after = _by_filename(old), _by_filename(new)
    removed = [source for place, source in before.items() if place not in after]
    added = [source for place, source in after.items() if place not in before]
    found = [cause for place in after if place in before for cause in _source_changes(before[place], after[place])]
    if len(added) == len(removed):
        found += [_fetched_cause(o, n, f"{o.filename} is replaced by") for o, n in zip(removed, added, strict=True)]
    else:
        found += [_fetched_cause(None, source, "now also") for source in added]
        found += [_fetched_cause(source, None, "no longer") for source in removed]
    if not found:
        one, other = (", ".join(s.filename for s in sources) for sources in (old, new))
        found.append(Cause(kind="fetched", what="order", old=one, new=other, message=f"fetched: {one} -> {other}"))
    yield from found


def _by_filename(sources: Sequence[SourceKey]) -> dict[tuple[str, int], SourceKey]:
    """Of several with one name, each has a number."""
    count: Counter[str] = Counter()
    found = {}
    for source in sources:
        found[source.filename, count[source.filename]] = source
        count[source.filename] += 1
    return found


def _fetched_cause(old: SourceKey | None, new: SourceKey | None, how: str) -> Cause:
    name = (new or old).filename  # type: ignore[union-attr]  # one of them is there
    return Cause(
        kind="fetched",
        what=name,
        old=old.sha256 if old else None,
        new=new.sha256 if new else None,
        message=f"fetched: {how} {name}",
    )


def _source_changes(old: SourceKey, new: SourceKey) -> Iterator[Cause]:
    if old.sha256 != new.sha256:
        message = f"fetched {new.filename}: sha256 {short(old.sha256)} -> {short(new.sha256)}"
        yield Cause(kind="fetched", what=new.filename, old=old.sha256, new=new.sha256, message=message)
    for name in ("into", "strip", "extract", "patches"):
        before, after = (_shown(getattr(source, name)) for source in (old, new))
        if getattr(old, name) != getattr(new, name):
            message = f"fetched {new.filename}: {name} {before} -> {after}"
            yield Cause(
                kind="fetched", what=new.filename, old=f"{name}={before}", new=f"{name}={after}", message=message
            )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "auto" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _lists(kind: Literal["patches", "formats"], old: Sequence[str], new: Sequence[str]) -> Iterator[Cause]:
    if old == new:
        return
    added, removed = Counter(new) - Counter(old), Counter(old) - Counter(new)
    said = [f"added {name}" for name in added.elements()] + [f"removed {name}" for name in removed.elements()]
    one, other = ", ".join(old), ", ".join(new)
    yield Cause(kind=kind, old=one, new=other, message=f"{kind}: " + (", ".join(said) or f"order {one} -> {other}"))


# --- what the build finds around it -----------------------------------------------------------------------


def _dependencies(old: Inputs, new: Inputs, pending: Collection[str]) -> Iterator[Cause]:
    before, after = old.parts.dependencies, new.parts.dependencies
    for name in sorted(before.keys() | after.keys() | set(pending)):
        if name in pending:
            how = "would be built" if name in before else "new, and would be built"
            yield _dependency(name, old.outputs.get(name), None, how)
        elif name not in before:
            yield _dependency(name, None, new.outputs.get(name), "new")
        elif name not in after:
            yield _dependency(name, old.outputs.get(name), None, "no longer one")
    changed = [name for name in before.keys() & after.keys() - set(pending) if before[name] != after[name]]
    if not changed and not pending:
        return
    named = list(_output_changes(old, new, changed, how=""))
    direct = before.keys() | after.keys() | set(pending)
    one, other = old.outputs.keys() - direct, new.outputs.keys() - direct
    if pending:  # what those lead to is not known yet
        one = other = one & other
    if one and other:  # of a very large closure only the direct ones are kept
        named += _output_changes(old, new, one | other, how=" of an indirect one")
    yield from named
    if not named:
        for name in sorted(changed):
            message = f"dependency {name}: the same output, but what it depends on itself is not the same"
            yield Cause(kind="dependency", what=name, old=before[name], new=after[name], message=message)


def _output_changes(old: Inputs, new: Inputs, names: Iterable[str], *, how: str) -> Iterator[Cause]:
    for name in sorted(names):
        before, after = old.outputs.get(name), new.outputs.get(name)
        if before != after:
            yield _dependency(name, before, after, f"output{how} {short(before)} -> {short(after)}")


def _dependency(name: str, old: str | None, new: str | None, how: str) -> Cause:
    return Cause(kind="dependency", what=name, old=old, new=new, message=f"dependency {name}: {how}")


def _environment(old: Inputs, new: Inputs) -> Iterator[Cause]:
    if old.parts.environment == new.parts.environment:
        return
    found = False
    for name in sorted(old.environment.keys() | new.environment.keys()):
        before, after = old.environment.get(name), new.environment.get(name)
        if before == after:
            continue
        found = True
        how = f"{short(before)} -> {short(after)}"
        if before is None or after is None:
            how = f"{'counts' if before is None else 'does not count'} under the strategy {new.strategy}"
        yield Cause(kind="environment", what=name, old=before, new=after, message=f"environment, {name}: {how}")
    if not found:
        one, other = old.parts.environment, new.parts.environment
        yield Cause(kind="environment", old=one, new=other, message=f"environment: {short(one)} -> {short(other)}")


def short(value: str | None) -> str:
    """A hash by its first digits, anything else as it is."""
    if value is None:
        return "none"
    return value[:8] if _DIGEST.fullmatch(value) else value or "empty"
