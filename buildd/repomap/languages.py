"""The languages that are parsed, and how a file's language is told: by its name, by its first line, by what is in it.

A *hint* is what the name alone tells; it is part of the key under which a blob is known. `language_of` makes the
language out of it once the content is there. A language is "" for text of any other kind.
"""

from __future__ import annotations

import re

from msgspec import Struct


class Language(Struct, frozen=True, kw_only=True):
    name: str
    family: str
    """Languages of one family use each other's definitions."""
    suffixes: tuple[str, ...]
    file_names: tuple[str, ...] = ()
    interpreters: tuple[str, ...] = ()
    """Names of programs in the first line of scripts, without version."""


_ALL = (
    Language(
        name="python",
        family="python",
        suffixes=("py", "pyi", "pyw"),
        file_names=("SConstruct", "SConscript", "wscript"),
        interpreters=("python", "pypy"),
    ),
    Language(name="javascript", family="javascript", suffixes=("js", "mjs", "cjs", "jsx"), interpreters=("node",)),
    Language(
        name="typescript",
        family="javascript",
        suffixes=("ts", "mts", "cts"),
        interpreters=("deno", "bun", "ts-node", "tsx"),
    ),
    Language(name="tsx", family="javascript", suffixes=("tsx",)),
    Language(name="java", family="jvm", suffixes=("java",)),
    Language(name="kotlin", family="jvm", suffixes=("kt", "kts"), interpreters=("kotlin",)),
    Language(name="scala", family="jvm", suffixes=("scala", "sc", "sbt"), interpreters=("scala",)),
    Language(name="go", family="go", suffixes=("go",)),
    Language(name="rust", family="rust", suffixes=("rs",)),
    Language(name="c", family="c", suffixes=("c",)),
    Language(
        name="cpp",
        family="c",
        suffixes=(
            "cc",
            "cpp",
            "cxx",
            "c++",
            "C",
            "hh",
            "hpp",
            "hxx",
            "h++",
            "H",
            "ipp",
            "tpp",
            "inl",
            "ino",
            "cu",
            "cuh",
        ),
    ),
    Language(name="csharp", family="csharp", suffixes=("cs", "csx")),
    Language(
        name="ruby",
        family="ruby",
        suffixes=("rb", "rake", "gemspec", "ru", "podspec"),
        file_names=("Rakefile", "Gemfile", "Podfile", "Vagrantfile", "Guardfile"),
        interpreters=("ruby", "jruby"),
    ),
    Language(name="php", family="php", suffixes=("php", "phtml", "php5", "inc"), interpreters=("php",)),
    Language(name="swift", family="swift", suffixes=("swift",), interpreters=("swift",)),
    Language(name="lua", family="lua", suffixes=("lua", "rockspec"), interpreters=("lua", "luajit", "texlua")),
    Language(
        name="bash",
        family="shell",
        suffixes=("sh", "bash", "bats", "ebuild", "eclass"),
        file_names=("PKGBUILD", "APKBUILD", ".bashrc", ".profile", ".bash_profile"),
        interpreters=("sh", "bash", "dash", "ash", "ksh", "bats"),
    ),
)
LANGUAGES = {language.name: language for language in _ALL}
NUMBERS = {"": 0} | {language.name: number for number, language in enumerate(_ALL, start=1)}
NAMES = ("", *LANGUAGES)
FAMILIES = ("", *sorted({language.family for language in _ALL}))

HEADER, TEXT, UNKNOWN = "header", "text", "unknown"
"""Hints that are not languages: C or C++; text of another kind; no suffix, so a script perhaps."""

_BY_SUFFIX = {suffix: language.name for language in _ALL for suffix in language.suffixes} | {"h": HEADER}
_BY_NAME = {name: language.name for language in _ALL for name in language.file_names}
_BY_INTERPRETER = {name: language.name for language in _ALL for name in language.interpreters}
_SHEBANG = re.compile(rb"#![ \t]*(\S+)(?:[ \t]+([^\n]*))?")
_CPLUSPLUS = re.compile(
    rb"^[ \t]*(?:template[ \t]*<|namespace\b|using[ \t]+\w|class[ \t]+\w+[^;\n]*[{:\n]|public:|private:|protected:"
    rb"|#[ \t]*include[ \t]*<(?:c?[a-z_]+|boost/[^>]*)>)|\bconstexpr\b|\w::\w|\boperator[ \t]*[=+*<\[(-]",
    re.MULTILINE,
)


def hint_of(path: bytes) -> str:
    """What the name of a file tells about its language."""
    name = path.rpartition(b"/")[2].decode("ascii", "replace")
    if name in _BY_NAME:
        return _BY_NAME[name]
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem:
        return UNKNOWN
    return _BY_SUFFIX.get(suffix) or _BY_SUFFIX.get(suffix.lower()) or TEXT


def language_of(hint: str, data: bytes) -> str:
    """The language of a file with this content."""
    if hint == HEADER:
        return "cpp" if _CPLUSPLUS.search(data) else "c"
    if hint == TEXT:
        return ""
    if hint == UNKNOWN:
        return _script_language(data)
    if hint == "typescript" and data.lstrip()[:1] == b"<":  # a translation file of Qt
        return ""
    if hint == "php" and b"<?" not in data:  # .inc has many meanings
        return ""
    return hint


def _script_language(data: bytes) -> str:
    first = _SHEBANG.match(data[:300])
    if first is None:
        return ""
    words = [first[1], *(first[2] or b"").split()]
    if words[0].endswith(b"/env"):
        words = [word for word in words[1:] if not word.startswith(b"-") and b"=" not in word]
    program = words[0].rpartition(b"/")[2].decode("ascii", "replace") if words else ""
    return _BY_INTERPRETER.get(program) or _BY_INTERPRETER.get(program.rstrip("0123456789.-"), "")
