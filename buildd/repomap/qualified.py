"""Words that are not meant for what a repository calls the same, as far as the text itself tells.

Two kinds are told apart from plain words, by a prefix: members (in Go, where everything else with a dot before it was
imported), and what a text takes from the standard library of its language. Imports are found by eye, like references:
what an expression misses stays a plain word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

MEMBER, STANDARD = b".", b"/"
_PREFIXES = (b"", MEMBER, STANDARD)

_GO_STANDARD = frozenset(
    b"""archive bufio builtin bytes cmp compress container context crypto database debug embed encoding errors expvar
    flag fmt go hash html image index io iter log maps math mime net os path plugin reflect regexp runtime slices sort
    strconv strings structs sync syscall testing text time unicode unique unsafe weak""".split()
)
"""First parts of import paths of the standard library, as of Go 1.24."""
_GO_IMPORT = re.compile(rb"^import[ \t]+(\()?", re.MULTILINE)
_GO_IMPORTED = re.compile(rb'(?:(?<![\w.])([\w.]++)[ \t]+)?["`]([^"`\n]+)["`]')
_GO_DOTTED = re.compile(rb"(?:\b([A-Za-z_]\w*+))?\.([A-Za-z_]\w*)")
_GO_FIELD = re.compile(rb"(?:^|[{,])[ \t]*([A-Za-z_]\w*)(?::(?!=)|[ \t]+[\w*\[])", re.MULTILINE)
"""Names of fields: in literals, and where they are declared; names of parameters look the same."""
_RUST_STANDARD = frozenset((b"std", b"core", b"alloc"))
_RUST_USE = re.compile(rb"use\s+(?:::)?(?:std|core|alloc)::([^;]*+)")
_RUST_RENAMED = re.compile(rb"\b(\w++)\s++as\s")
_RUST_PATH = re.compile(rb"\b([a-z_]\w*+(?:::[a-z_]\w*+)*)::(\w+)")
_JVM_IMPORT = re.compile(rb"import\s+(?:static\s+)?([^\n;]+)")
_JVM_STANDARD = (b"java.", b"javax.", b"jdk.", b"kotlin.", b"scala.")
_JAVA_LANG = frozenset(
    b"""ArithmeticException AutoCloseable Boolean Byte CharSequence Character Class ClassCastException ClassLoader
    Cloneable Comparable Deprecated Double Enum Error Exception Float FunctionalInterface IllegalArgumentException
    IllegalStateException IndexOutOfBoundsException Integer InterruptedException Iterable Long Math
    NullPointerException Number NumberFormatException Object Override Process Record Runnable Runtime
    RuntimeException SafeVarargs Short String StringBuffer StringBuilder SuppressWarnings System Thread ThreadLocal
    Throwable UnsupportedOperationException Void""".split()
)
"""What is much used of the package that every program has imported."""
_WORD = re.compile(rb"[A-Za-z_]\w*")


def spellings(name: bytes) -> tuple[bytes, ...]:
    """As what a name may be among the words of a text."""
    return tuple(prefix + name for prefix in _PREFIXES)


def qualify(words: dict[bytes, int], data: bytes, code: bytes, language: str) -> None:
    """Give a prefix to some of the `words` of `code`, which is `data` without comments and strings.

    A word that is meant in several ways is there several times, each with its number of occurrences.
    """
    if language == "go":
        found = _of_go(data, code)
    elif language == "rust":
        found = _of_rust(words, code)
    elif language in ("java", "kotlin", "scala"):
        found = _of_jvm(words, code)
    else:
        return
    known = frozenset(words)  # without keywords and what is too short
    for word, times in found.items():
        plain = word[1:]
        if plain in known:
            words[word] = times
            left = words.pop(plain, 0) - times
            if left > 0:
                words[plain] = left


def _of_go(data: bytes, code: bytes) -> Counter[bytes]:
    standard: set[bytes] = set()
    other: set[bytes] = set()
    for some in _go_imports(data):
        for name, path in _GO_IMPORTED.findall(some):
            first, last = path.partition(b"/")[0], path.rpartition(b"/")[2]
            (standard if first in _GO_STANDARD else other).add(name or last)
    found = Counter(MEMBER + word for word in _GO_FIELD.findall(code))
    for before, word in _GO_DOTTED.findall(code):
        if before in standard:
            found[STANDARD + word] += 1
        elif before not in other:
            found[MEMBER + word] += 1
    return found


def _go_imports(data: bytes) -> Iterator[bytes]:
    end = 0
    while (begun := _GO_IMPORT.search(data, end)) is not None:
        end = data.find(b"\n)" if begun[1] else b"\n", begun.end())
        if end < 0:
            end = len(data)
        yield data[begun.end() : end]


def _of_rust(words: dict[bytes, int], code: bytes) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    used: set[bytes] = set()
    for tail in _RUST_USE.findall(code):
        renamed = _RUST_RENAMED.findall(tail)
        found.update(STANDARD + word for word in renamed)
        used.update(set(_WORD.findall(tail)).difference(renamed, (b"self", b"as")))
    known = _RUST_STANDARD | used
    for path, word in _RUST_PATH.findall(code):
        if path.partition(b"::")[0] in known and word not in used:
            found[STANDARD + word] += 1
    found.update({STANDARD + word: words[word] for word in used if word in words})
    return found


def _of_jvm(words: dict[bytes, int], code: bytes) -> Counter[bytes]:
    standard, other = set(_JAVA_LANG), set[bytes]()
    for tail in _JVM_IMPORT.findall(code):
        (standard if tail.startswith(_JVM_STANDARD) else other).update(_WORD.findall(tail))
    names = (word for word in standard - other if word in words and word[:1].isupper())
    return Counter({STANDARD + word: words[word] for word in names})
