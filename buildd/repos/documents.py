"""The documentation of a commit: which files are for people, and in which order a newcomer reads them.

What is near the top comes first: the README before the guides, these before manual pages, the changelog and the
license. Documents of vendored code and of tests come last, whatever they are called. Directories that are equal are
looked into once.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec

from buildd.errors import InvalidInput
from buildd.protocol import Document, Documents, DocumentsParams
from buildd.repos import limits
from buildd.repos.reading import View, shown
from buildd.repos.titles import title_of
from buildd.repos.trees import DIRECTORY, EXECUTABLE, FILE

_MAX_LISTED = 1000
_MAX_BYTES = 800_000
"""Of the answer as JSON."""
_DOCUMENT_BYTES = 80
"""Of a document as JSON, without path and title."""
_MAX_READ = 1 << 20
"""A larger file is listed without its title."""

Kind = Literal["readme", "guide", "changelog", "license", "manual", "other"]

_ORDER: dict[Kind, int] = {"readme": 0, "guide": 1, "manual": 2, "changelog": 3, "license": 4, "other": 5}
_BY_STEM: dict[Kind, re.Pattern[str]] = {
    "readme": re.compile(r"read[-_.]?me([-_.].*)?"),
    "changelog": re.compile(r"change[-_]?log|changes|history|news|release[-_]?notes|releases?|whats[-_]?new"),
    "license": re.compile(r"(un)?licen[sc]e([-_.].*)?|copying([-_.].*)?|copyright|notice|patents"),
    "guide": re.compile(
        r"contribut(ing|e)|install(ation|ing)?|hacking|architecture|design|getting[-_]?started|quick[-_]?start"
        r"|introduction|overview|tutorial|usage|manual|guide|handbook|faq|security|code[-_]of[-_]conduct|conduct|support"
        r"|governance|maintainers|maintaining|authors|upgrad(e|ing)|migrati(on|ng)|building|develop(ment|ing)"
        r"|testing|style[-_]?guide|roadmap|releasing|todo|agents|claude|glossary|troubleshooting"
    ),
}
"""What the name says without its suffix, in small letters."""
_LICENSES = frozenset({"mit", "apache", "gpl", "lgpl", "agpl", "bsd", "mpl", "lesser", "lib", "runtime"})
"""Suffixes that say which of several licenses."""
_PROSE = frozenset({"md", "markdown", "mdx", "rst", "adoc", "asciidoc", "asc", "org", "textile", "rdoc", "pod", "texi"})
"""Suffixes of files that are for people wherever they lie."""
_PLAIN = frozenset({"txt", "text", "html", "htm", ""})
"""And of those that are only in a directory of documents, or by their name."""
_DOC_DIRECTORIES = frozenset({"doc", "docs", "documentation", "guide", "guides", "manual", "man", "wiki"})
_ASIDE = re.compile(
    r"vendor(ed)?|third[-_]?party|node_modules|external|extern|deps|tests?|testing|testdata|fixtures|specs?|__\w+__"
)
_MANUAL = re.compile(r"[A-Za-z_][\w+:@-]*\.[1-8][a-z]{0,4}(\.in)?|[A-Za-z_][\w.+:@-]*\.mdoc")
_FIRST = re.compile(
    r"index|introduction|overview|getting[-_]?started|quick[-_]?start|tutorial|install\w*|usage|manual|guide|handbook"
)
"""Guides that come before others."""


class _Candidate(NamedTuple):
    """In the order in which they are read."""

    aside: bool
    depth: int
    order: int
    later: bool
    length: int
    """Of the name: README.md before README.de.md."""
    path: str
    kind: Kind
    id: str


def documents(params: DocumentsParams, view: View) -> Documents:
    """The answer to `repo.docs`. Blocks. Raises NotFound, InvalidInput, Refused."""
    top = view.directory(params.path)
    total = 0

    def counted() -> Iterator[_Candidate]:
        nonlocal total
        for candidate in _candidates(view, top.path, top.id):
            total += 1
            yield candidate

    best = heapq.nsmallest(max(1, min(params.limit, _MAX_LISTED)), counted())
    found: list[Document] = []
    room = _MAX_BYTES
    for candidate, size in zip(best, view.store.sizes(c.id for c in best), strict=True):
        view.check()
        title = title_of(view.store.read_blob(candidate.id, _MAX_READ), candidate.path) if size <= _MAX_READ else ""
        room -= len(msgspec.json.encode((candidate.path, title))) + _DOCUMENT_BYTES
        if room < 0:
            break
        found.append(Document(path=candidate.path, kind=candidate.kind, title=title, bytes=size))
    return Documents(commit=view.commit, documents=tuple(found), total=total)


class _Folder(NamedTuple):
    path: str
    tree: str
    depth: int
    aside: bool
    in_docs: bool


def _candidates(view: View, path: str, tree: str) -> Iterator[_Candidate]:
    """Every document below a directory, in no particular order; of equal directories those of the first alone."""
    entries = 0
    seen: set[tuple[str, bool]] = set()
    waiting = deque([_Folder(path, tree, 0, False, _in_docs(path))])
    aside: deque[_Folder] = deque()
    while waiting or aside:
        folder = (waiting or aside).popleft()
        if (folder.tree, folder.in_docs) in seen or folder.depth > limits.MAX_DEPTH:
            continue
        seen.add((folder.tree, folder.in_docs))
        view.check()
        children = view.store.children(folder.tree)
        entries += len(children)
        if entries > limits.MAX_ENTRIES:
            raise InvalidInput(
                f"commit {view.commit[:12]} has more than {limits.MAX_ENTRIES} entries there",
                hint="Ask for a directory below.",
            )
        for child in children:
            if child.mode not in (DIRECTORY, FILE, EXECUTABLE):
                continue
            name = shown(child.name)
            place = f"{folder.path}/{name}" if folder.path else name
            if child.mode != DIRECTORY:
                kind = kind_of(name, in_docs=folder.in_docs)
                if kind is not None:
                    yield _candidate(folder, name, place, kind, child.id)
                continue
            word = name.lower()
            away = folder.aside or _ASIDE.fullmatch(word) is not None
            below = _Folder(place, child.id, folder.depth + 1, away, folder.in_docs or word in _DOC_DIRECTORIES)
            (aside if away else waiting).append(below)


def _candidate(folder: _Folder, name: str, path: str, kind: Kind, id: str) -> _Candidate:
    later = kind == "guide" and _FIRST.fullmatch(_split(name)[0]) is None
    return _Candidate(folder.aside, folder.depth, _ORDER[kind], later, len(name), path, kind, id)


def _in_docs(path: str) -> bool:
    return any(part.lower() in _DOC_DIRECTORIES for part in path.split("/"))


def kind_of(name: str, *, in_docs: bool) -> Kind | None:
    """What kind of document a file is by its name and whether it lies in a directory of documents; None for none."""
    stem, suffix = _split(name)
    if name.startswith("README") or name.lower() == "readme":
        return "readme"
    if suffix in _PROSE or suffix in _PLAIN or suffix in _LICENSES:
        for kind, pattern in _BY_STEM.items():
            # `install` may be a program, and `news.html` a page of what is built: only capitals or prose are meant
            if pattern.fullmatch(stem) and (suffix in _PROSE or suffix == "txt" or name[0].isupper()):
                return kind
    if _MANUAL.fullmatch(name):
        return "manual"
    if in_docs and (suffix in _PROSE or suffix in _PLAIN):
        return "guide"
    return "other" if suffix in _PROSE else None


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix in small letters."""
    stem, dot, suffix = name.lower().rpartition(".")
    return (stem, suffix) if dot and stem else (name.lower(), "")
