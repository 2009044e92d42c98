"""Words that are not meant for what a repository calls the same, as far as the text itself tells.

Two kinds are told apart from plain words, by a prefix: members (in Go, where everything else with a dot before it was
imported), and what a text takes from the standard library of its language. Imports are found by eye, like references:
what an expression misses stays a plain word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

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
_GO_VERSION = re.compile(rb"/v\d+$")
_GO_AFFIX = re.compile(rb"^go-|[-.]go$|\.v\d+$")
"""What the last part of an import path has more than the name of the package, by custom."""
_GO_DOTTED = re.compile(rb"(?:\b([A-Za-z_]\w*+))?(?<!\.)\.\s*([A-Za-z_]\w*)")
_GO_FIELD = re.compile(rb"(?:^|[{,])[ \t]*([A-Za-z_]\w*)(?::(?!=)|[ \t]+(?=[\w*\[][^=\n]{0,200}+$))", re.MULTILINE)
"""Names of fields: in literals, and where they are declared; names of parameters look the same."""
_GO_VALUES = ("constant", "variable")
"""Their declarations, and cases, look as fields do."""
_RUST_STANDARD = frozenset((b"std", b"core", b"alloc"))
_RUST_USE = re.compile(rb"\buse\s+(?:::)?([^;]*+)")
_RUST_LEAF = re.compile(rb"\b([A-Za-z_]\w*+)(?!\s*::|\s+as\s)|\b(\w++)::\{\s*self\b")
_RUST_MODULE = re.compile(rb"\bmod\s+(\w+)")
_RUST_PATH = re.compile(rb"\b([a-z_]\w*+(?:::[a-z_]\w*+)*)::(\w+)")
_JVM_IMPORT = re.compile(rb"import\s+(?:static\s+)?([^\n;]+)")
_JVM_STANDARD = (b"java.", b"javax.", b"jdk.", b"kotlin.", b"scala.")
_JAVA_LANG = frozenset(
    b"""ArithmeticException AutoCloseable Boolean Byte CharSequence Character Class ClassCastException ClassLoader
    Cloneable Comparable Deprecated Double Exception Float FunctionalInterface IllegalArgumentException
    IllegalStateException IndexOutOfBoundsException Integer InterruptedException Iterable Long Math
    NullPointerException NumberFormatException Object Override Runnable
    RuntimeException SafeVarargs Short String StringBuffer StringBuilder SuppressWarnings System Thread ThreadLocal
    Throwable UnsupportedOperationException Void""".split()
)
"""What is much used of the package that every program has imported."""
_WORD = re.compile(rb"[A-Za-z_]\w*")


def spellings(name: bytes) -> tuple[bytes, ...]:
    """As what a name may be among the words of a text."""
    return tuple(prefix + name for prefix in _PREFIXES)


def qualify(words: dict[bytes, int], data: bytes, code: bytes, language: str, defined: Mapping[bytes, str]) -> None:
    """Give a prefix to some of the `words` of `code`, which is `data` without comments and strings.

    A word that is meant in several ways is there several times, each with its number of occurrences. `defined` has
    the names that the text itself gives to something, and the kinds of that.
    """
    if language == "go":
        found = _of_go(data, code, defined)
    elif language == "rust":
        found = _of_rust(words, code)
    elif language in ("java", "kotlin", "scala"):
        found = _of_jvm(words, code, defined)
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


def _of_go(data: bytes, code: bytes, defined: Mapping[bytes, str]) -> Counter[bytes]:
    standard: set[bytes] = set()
    other: set[bytes] = set()
    for some in _go_imports(data):
        for name, path in _GO_IMPORTED.findall(some):
            names = {name} if name else _go_names(path)
            (standard if path.partition(b"/")[0] in _GO_STANDARD else other).update(names)
    found = Counter(MEMBER + word for word in _GO_FIELD.findall(code) if defined.get(word) not in _GO_VALUES)
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


def _go_names(path: bytes) -> set[bytes]:
    """What the package at an import path may be called: mostly its last part."""
    last = _GO_VERSION.sub(b"", path).rpartition(b"/")[2]
    short = _GO_AFFIX.sub(b"", last)
    return {last, short, short.rpartition(b"-")[2], short.replace(b"-", b"_")}


def _of_rust(words: dict[bytes, int], code: bytes) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    standard: set[bytes] = set()
    other = set(_RUST_MODULE.findall(code))
    for tail in _RUST_USE.findall(code):
        named = {leaf or parent for leaf, parent in _RUST_LEAF.findall(tail)} - {b"self", b"as"}
        if tail.partition(b"::")[0] in _RUST_STANDARD:
            standard |= named
            found.update(STANDARD + word for word in _WORD.findall(tail))
        else:
            other |= named
    standard -= other
    known = _RUST_STANDARD | standard
    for path, word in _RUST_PATH.findall(_RUST_USE.sub(b" ", code)):
        if path.partition(b"::")[0] in known:
            found[STANDARD + word] += 1
    found.update({STANDARD + word: words.get(word, 0) - found[STANDARD + word] for word in standard})
    return found


def _of_jvm(words: dict[bytes, int], code: bytes, defined: Mapping[bytes, str]) -> Counter[bytes]:
    standard, other = set(_JAVA_LANG), set(defined)
    for tail in _JVM_IMPORT.findall(code):
        (standard if tail.startswith(_JVM_STANDARD) else other).update(_WORD.findall(tail))
    names = (word for word in standard - other if word in words and word[:1].isupper())
    return Counter({STANDARD + word: words[word] for word in names})
