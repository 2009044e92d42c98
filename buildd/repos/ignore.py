"""`.gitignore` as git means it, for walkers that go from the top down.

libgit2's own matcher drops a negated pattern that negates something of another file, so that `!keep.o` below a
top-level `*.o` has no effect there; leaving out a file that git would keep makes a build fail for no visible
reason. Paths are bytes. Patterns come from strangers: no pattern makes a regular expression that backtracks
over more than one star per path component, and those with many `**` are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_MAX_LENGTH = 2000
_MAX_DOUBLE_STARS = 4
_CLASSES = {
    b"alnum": rb"A-Za-z0-9",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    b"space": rb"\t-\r ",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}


class _Group(NamedTuple):
    """Neighbouring rules with the same answer; their order among themselves does not matter."""

    ignored: bool
    name: re.Pattern[bytes] | None
    path: re.Pattern[bytes] | None


class IgnoreFile:
    """The rules of one `.gitignore`, about paths relative to its directory."""

    def __init__(self, content: bytes) -> None:
        self._groups = list(reversed(list(_groups(content))))

    def match(self, path: bytes, is_directory: bool) -> bool | None:
        """True: ignored, False: kept in spite of earlier rules, None: not mentioned."""
        end = b"/" if is_directory else b""
        name = path.rpartition(b"/")[2] + end
        for group in self._groups:
            if (group.name is not None and group.name.fullmatch(name)) or (
                group.path is not None and group.path.fullmatch(path + end)
            ):
                return group.ignored
        return None


def _groups(content: bytes) -> Iterator[_Group]:
    ignored, names, paths = True, list[bytes](), list[bytes]()
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        rule = _rule(line.removesuffix(b"\r"))
        if rule is None:
            continue
        if rule[0] != ignored:
            yield _Group(ignored, _any_of(names), _any_of(paths))
            ignored, names, paths = rule[0], [], []
        (paths if rule[1] else names).append(rule[2])
    yield _Group(ignored, _any_of(names), _any_of(paths))


def _any_of(patterns: list[bytes]) -> re.Pattern[bytes] | None:
    return re.compile(b"|".join(b"(?:%s)" % p for p in patterns), re.DOTALL) if patterns else None


def _rule(line: bytes) -> tuple[bool, bool, bytes] | None:
    """(ignored, about the whole path, regular expression) of one line; None for none."""
    if line.startswith(b"#") or len(line) > _MAX_LENGTH:
        return None
    pattern = _trimmed(line)
    ignored = not pattern.startswith(b"!")
    pattern = pattern if ignored else pattern[1:]
    only_directories = pattern.endswith(b"/")
    pattern = pattern.removesuffix(b"/")
    whole = b"/" in pattern
    pattern = pattern.removeprefix(b"/")
    parts = pattern.split(b"/")
    if not pattern or parts.count(b"**") > _MAX_DOUBLE_STARS:
        return None
    expression = b""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == b"**" and whole:
            expression += b".*" if last else b"(?:.*/)?"
            continue
        translated = _component(part)
        if translated is None:
            return None
        expression += translated + (b"" if last else b"/")
    return ignored, whole, expression + (b"/" if only_directories else b"/?")


def _trimmed(line: bytes) -> bytes:
    """Without trailing spaces, but for one that a backslash protects."""
    end = len(line)
    while end and line[end - 1 : end] == b" ":
        backslashes = len(line[: end - 1]) - len(line[: end - 1].rstrip(b"\\"))
        if backslashes % 2:
            break
        end -= 1
    return line[:end]


def _component(part: bytes) -> bytes | None:
    """A regular expression for one path component; None when the pattern is malformed and matches nothing."""
    pieces: list[bytes] = [b""]  # split at stars
    position = 0
    while position < len(part):
        char = part[position : position + 1]
        position += 1
        if char == b"*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append(b"")
        elif char == b"?":
            pieces[-1] += b"[^/]"
        elif char == b"[":
            found = _bracket(part, position)
            if found is None:
                return None
            expression, position = found
            pieces[-1] += expression
        else:
            if char == b"\\":
                char = part[position : position + 1]
                position += 1
                if not char:
                    return None
            pieces[-1] += re.escape(char)
    if len(pieces) == 1:
        return pieces[0]
    # What follows a star is found at its first place for good: a later one can never help. Only the last star
    # has to look further, to reach the end.
    middle = b"".join(b"(?>[^/]*?%s)" % piece for piece in pieces[1:-1])
    return pieces[0] + middle + b"[^/]*" + pieces[-1]


def _bracket(part: bytes, position: int) -> tuple[bytes, int] | None:
    """The character class that begins before `position`, and where it ends; None when it is not closed."""
    negated = part[position : position + 1] in (b"!", b"^")
    position += negated
    first, members = True, b""
    while True:
        char = part[position : position + 1]
        if not char or (char == b"]" and not first):
            break
        first = False
        named = re.compile(rb"\[:([a-z]*):\]").match(part, position)
        if named:
            if named[1] not in _CLASSES:
                return None
            members += _CLASSES[named[1]]
            position = named.end()
            continue
        low, position = _member(part, position)
        if part[position : position + 1] == b"-" and part[position + 1 : position + 2] not in (b"", b"]"):
            high, position = _member(part, position + 1)
            if low <= high:
                members += b"\\x%02x-\\x%02x" % (low[0], high[0]) if low and high else b""
            continue
        members += b"\\x%02x" % low[0] if low else b""
    if not char:
        return None
    position += 1
    if negated:
        return b"[^/%s]" % members, position
    return (b"(?!/)[%s]" % members if members else b"(?!)"), position


def _member(part: bytes, position: int) -> tuple[bytes, int]:
    if part[position : position + 1] == b"\\":
        position += 1
    return part[position : position + 1], position + 1
