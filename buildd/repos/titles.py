"""The title of a document: its first heading, in the markup that it is written in, or else its first line.

Pure functions over what authors wrote; whatever that is, a title is one line of moderate length. Some of the patterns
take quadratic time: they see short pieces only.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import pairwise

_MAX_TITLE = 200
_LOOKED_AT = 64 * 1024
"""Bytes; a heading that comes later is none."""
_MAX_LINES, _MAX_LINE = 2000, 500
_HEAD = 8192
"""Characters in which the title of an HTML page is, and what tells a manual page."""
_MARKUP = re.compile(r"!\[[^\]]*\]\([^)]*\)|<[^>]*>")
_LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_EMPHASIS = re.compile(r"(\*\*|__|`+|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w))")
_H1 = re.compile(r"<h1[^>]*>(.*?)</h1>", re.IGNORECASE | re.DOTALL)
_HEADING = re.compile(r"<h[1-4][^>]*>(.*?)</h", re.IGNORECASE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)|<script.*?(?:</script>|\Z)", re.IGNORECASE | re.DOTALL)
_HTML_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")
_MAN_PAGE = re.compile(r"^\.(?:Dd|TH|Sh|SH)\b", re.MULTILINE)
_NAME_LINES = 8
"""Of the section NAME of a page."""
_ROFF_ESCAPE = re.compile(r"\\(?:f(?:\[[^\]]*\]|\(..|.)|&|\||\^)")


def title_of(data: bytes, path: str) -> str:
    """The title of a document called `path`; empty when there is none, as in a binary file."""
    if b"\0" in data[:_LOOKED_AT]:
        return ""
    text = data[:_LOOKED_AT].decode("utf-8-sig", "replace").replace("\r\n", "\n")
    suffix = path.rpartition(".")[2].lower()
    found = _heading(text, suffix)
    if not found and suffix not in ("html", "htm"):
        found = next((words for line in _lines(text) if re.search(r"\w", words := _plain(line))), "")
    return _short(found)


def _heading(text: str, suffix: str) -> str:
    if suffix in ("md", "markdown", "mdx"):
        return _markdown(text)
    if suffix in ("adoc", "asciidoc", "asc"):
        return next((_plain(line[2:]) for line in _lines(text) if re.match(r"[=#] \S", line)), "")
    if suffix in ("html", "htm"):
        page = _COMMENT.sub("", text[:_HEAD])
        match = _HTML_TITLE.search(page) or _HEADING.search(page)
        return html.unescape(_MARKUP.sub("", match[1])) if match else ""
    if _MAN_PAGE.search(text[:_HEAD]):
        return _manual(text)
    return _underlined(text)


def _lines(text: str) -> list[str]:
    return [line[:_MAX_LINE].rstrip() for line in text.split("\n")[:_MAX_LINES]]


def _markdown(text: str) -> str:
    lines = _lines(text)
    if lines[0].strip() == "---" and "---" in (line.strip() for line in lines[1:]):
        end = next(i for i, line in enumerate(lines) if i and line.strip() == "---")
        named = (re.match(r"title:\s*[\"']?(.*?)[\"']?\s*$", line) for line in lines[1:end])
        title = next((match[1] for match in named if match), "")
        if title:
            return title
        lines = lines[end + 1 :]
    lines = list(_unfenced(lines))
    for i, line in enumerate(lines):
        below = lines[i + 1] if i + 1 < len(lines) else ""
        heading = re.match(r" {0,3}#{1,6}\s+(.*?)(\s+#+)?$", line)
        if heading is not None:
            title = _plain(heading[1])
        elif line.strip() and re.fullmatch(r" {0,3}(=+|-{2,})\s*", below):
            title = _plain(line)
        else:
            opened = re.match(r"\s*<h1[^>]*>", line, re.IGNORECASE)
            match = _H1.search("\n".join(lines[i : i + 20])) if opened else None
            title = _plain(html.unescape(match[1])) if match else ""
        if title:
            return title
    return ""


def _unfenced(lines: list[str]) -> Iterator[str]:
    """The lines that are not in a block of code."""
    fence = ""
    for line in lines:
        mark = line.lstrip()[:3]
        if fence:
            fence = "" if mark == fence else fence
        elif mark in ("```", "~~~"):
            fence = mark
        else:
            yield line


def _underlined(text: str) -> str:
    """As in reStructuredText: a line with a line of one kind of mark below it that is about as long."""
    lines = _lines(text)
    for line, below in pairwise(lines):
        words = line.strip()
        if _UNDERLINE.fullmatch(below) and words and not _UNDERLINE.fullmatch(line) and not words.startswith(".."):
            return _plain(words) if len(below) >= len(words) - 2 else ""
    return ""


def _manual(text: str) -> str:
    """`NAME - DESCRIPTION` of a page in mdoc or man."""
    lines = _lines(text)
    described = next((line[4:] for line in lines if line.startswith(".Nd ")), "")
    if described:
        name = next((line.split()[1] for line in lines if re.match(r"\.Nm +\S", line)), "")
        return f"{name} - {_roff(described)}" if name else _roff(described)
    start = next((i + 1 for i, line in enumerate(lines) if re.fullmatch(r"\.S[Hh] +\"?NAME\"?", line)), len(lines))
    words: list[str] = []
    for line in lines[start : start + _NAME_LINES]:
        if re.match(r"\.S[Hh]", line):
            break
        if not line.startswith(('.\\"', "'")):
            words.append(re.sub(r"^\.\w+ *", "", line))
    return re.sub(r" -+ ", " - ", " ".join(_roff(" ".join(words)).split()))


def _roff(text: str) -> str:
    plain = _ROFF_ESCAPE.sub("", text)
    for escape, character in (("\\-", "-"), ("\\(em", "-"), ("\\(en", "-"), ("\\e", "\\")):
        plain = plain.replace(escape, character)
    return plain.replace('"', "").strip()


def _plain(text: str) -> str:
    """A line without inline markup."""
    return _EMPHASIS.sub("", _LINK.sub(r"\1", _MARKUP.sub("", text))).strip(" #\t")


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _MAX_TITLE else words[: _MAX_TITLE - 1] + "…"
