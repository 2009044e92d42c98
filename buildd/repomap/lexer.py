"""References by eye: which identifiers a text names outside its comments and strings, and how often.

A regular expression takes out comments and strings. What it looks for begins with a fixed set of characters, which the
expression engine finds in a tight loop; with possessive repetitions it takes time in proportion to the text, whatever
is in it. What is not terminated ends at the end of its line (strings) or of the text (comments, raw and triple-quoted
strings).

Words are bytes: UTF-8 beyond ASCII counts as letters, and what is no identifier after all is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from buildd.repomap import qualified

_BLOCK = rb"/\*[^*]*+(?:\*(?!/)[^*]*+)*+(?:\*/|\Z)"
_LINE = rb"//[^\n]*+"
_HASH = rb"\#[^\n]*+"
_DOUBLE = rb'"[^"\\\n]*+(?:\\(?s:.)[^"\\\n]*+)*+"?'
_SINGLE = _DOUBLE.replace(b'"', b"'")
_BACKTICK = rb"`[^`\\]*+(?:\\(?s:.)[^`\\]*+)*+(?:`|\\?\Z)"
_RAW_BACKTICK = rb"`[^`]*+(?:`|\Z)"
_TRIPLE_DOUBLE = rb'"""[^"\\]*+(?:(?:\\(?s:.)|"(?!""))[^"\\]*+)*+(?:"""|\\?\Z)'
_TRIPLE_SINGLE = _TRIPLE_DOUBLE.replace(b'"', b"'")
_TRIPLE_RAW = rb'"""[^"]*+(?:"(?!"")[^"]*+)*+(?:"""|\Z)'
_CHARACTER = rb"'(?:\\[^\n'][^'\n]{0,10}|\\'|[^'\\\n]{1,4})'"

_SKIPPED = {
    "python": (_TRIPLE_DOUBLE, _TRIPLE_SINGLE, _DOUBLE, _SINGLE, _HASH),
    "javascript": (_LINE, _BLOCK, _DOUBLE, _SINGLE, _BACKTICK),
    "java": (_LINE, _BLOCK, _TRIPLE_DOUBLE, _DOUBLE, _CHARACTER),
    "kotlin": (_LINE, _BLOCK, _TRIPLE_RAW, _DOUBLE, _CHARACTER),
    "scala": (_LINE, _BLOCK, _TRIPLE_RAW, _DOUBLE, _CHARACTER),
    "swift": (_LINE, _BLOCK, _TRIPLE_DOUBLE, rb'\#"[^"\n]*+(?:"(?!\#)[^"\n]*+)*+(?:"\#)?', _DOUBLE),
    "go": (_LINE, _BLOCK, _RAW_BACKTICK, _DOUBLE, _CHARACTER),
    "rust": (
        rb"\#!?\[[^\]\n]*+\]",  # attributes name what is derived and allowed, from outside nearly always
        _LINE,
        _BLOCK,
        rb'\#\#"[^"]*+(?:"(?!\#\#)[^"]*+)*+(?:"\#\#|\Z)',
        rb'\#"[^"]*+(?:"(?!\#)[^"]*+)*+(?:"\#|\Z)',
        rb'"[^"\\]*+(?:\\(?s:.)[^"\\]*+)*+(?:"|\\?\Z)',
        _CHARACTER,
    ),
    "c": (_LINE, _BLOCK, rb'R"([^(\s\\]{0,16})\((?s:.)*?(?:\)\1"|\Z)', _DOUBLE, _CHARACTER),
    "csharp": (_LINE, _BLOCK, _TRIPLE_RAW, rb'@\$?"[^"]*+(?:""[^"]*+)*+(?:"|\Z)', _DOUBLE, _CHARACTER),
    "ruby": (_HASH, _DOUBLE, _SINGLE, _RAW_BACKTICK, rb"=begin\b[^=]*+(?:=(?!end)[^=]*+)*+(?:=end|\Z)"),
    "php": (
        _LINE,
        _BLOCK,
        rb"\#(?!\[)[^\n]*+",
        rb'"[^"\\]*+(?:\\(?s:.)[^"\\]*+)*+(?:"|\\?\Z)',
        rb"'[^'\\]*+(?:\\(?s:.)[^'\\]*+)*+(?:'|\\?\Z)",
        rb"\?>[^<]*+(?:<(?!\?)[^<]*+)*+(?:<\?(?:php|=)?|\Z)",
    ),
    "lua": (
        rb"--\[(=*)\[(?s:.)*?(?:\]\1\]|\Z)",
        rb"--[^\n]*+",
        rb"\[\[[^\]]*+(?:\](?!\])[^\]]*+)*+(?:\]\]|\Z)",
        rb"\[=\[(?s:.)*?(?:\]=\]|\Z)",
        _DOUBLE,
        _SINGLE,
    ),
    # In double quotes a shell calls functions and names variables; # begins a comment at the start of a word only.
    "bash": (rb"'[^']*+(?:'|\Z)", rb"(?<![^\s;()])\#[^\n]*+", rb"\\(?s:.)"),
    "": (),
}
_SKIPPED |= {"typescript": _SKIPPED["javascript"], "tsx": _SKIPPED["javascript"], "cpp": _SKIPPED["c"]}

_BEFORE = {"php": b"?>"}
"""What a text begins as if it stood before it."""
_ONLY_WORDS = re.sub(rb"[^A-Za-z0-9_\x80-\xff]", b" ", bytes(range(256)))
"""Translates whatever is not part of a word into a space."""
_SHORTEST = 2
_SHORTEST_IN_TEXT = 3
_DIGITS = frozenset(b"0123456789")

_C_WORDS = """auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while define
    include ifdef ifndef endif undef pragma elif defined NULL true false bool"""
_JAVA_WORDS = """abstract assert boolean break byte case catch char class const continue default do double else enum
    extends final finally float for goto if implements import instanceof int interface long native new package private
    protected public return short static strictfp super switch synchronized this throw throws transient try void
    volatile while true false null var record"""
_SCRIPT_WORDS = """await async break case catch class const continue debugger default delete do else export extends
    false finally for from function if import in instanceof let new null of return static super switch this throw true
    try typeof undefined var void while with yield"""
_KEYWORDS = {
    "python": """and as assert async await break class continue def del elif else except finally for from global if
        import in is lambda nonlocal not or pass raise return try while with yield True False None self cls""",
    "javascript": _SCRIPT_WORDS,
    "typescript": _SCRIPT_WORDS
    + """ abstract any as boolean declare enum implements interface is keyof module namespace
        never number private protected public readonly string type unknown""",
    "java": _JAVA_WORDS,
    "kotlin": """abstract annotation as break by catch class companion const constructor continue data do else enum
        false final finally for fun if import in init inline interface internal is lateinit null object open operator
        override package private protected public return sealed super suspend this throw true try typealias val var
        vararg when where while it""",
    "scala": """abstract case catch class def do else extends false final finally for forSome given if implicit import
        lazy match new null object override package private protected return sealed super then this throw trait try
        true type using val var while with yield""",
    "go": """break case chan const continue default defer else fallthrough for func go goto if import interface map
        package range return select struct switch type var nil true false iota err string int error bool byte len
        append make""",
    "rust": """as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod
        move mut pub ref return self Self static struct super trait true type unsafe use where while Some None Ok Err
        str u8 u16 u32 u64 usize i8 i16 i32 i64 isize bool""",
    "c": _C_WORDS,
    "cpp": _C_WORDS
    + """ alignas alignof and catch class co_await co_return co_yield concept consteval constexpr constinit
        const_cast decltype delete dynamic_cast explicit export final friend mutable namespace new noexcept not nullptr
        operator or override private protected public reinterpret_cast requires static_assert static_cast template this
        thread_local throw try typeid typename using virtual wchar_t std""",
    "csharp": """abstract as async await base bool break byte case catch char checked class const continue decimal
        default delegate do double else enum event explicit extern false finally fixed float for foreach get goto if
        implicit in int interface internal is lock long namespace new null object operator out override params partial
        private protected public readonly record ref return sbyte sealed set short sizeof static string struct switch
        this throw true try typeof uint ulong unchecked unsafe ushort using value var virtual void volatile where while
        yield""",
    "ruby": """alias and begin break case class def defined do else elsif end ensure false for if in module next nil not
        or redo rescue retry return self super then true undef unless until when while yield require require_relative
        attr_reader attr_accessor puts raise""",
    "php": """abstract and array as bool break callable case catch class clone const continue declare default do echo
        else elseif empty enum extends false final finally fn for foreach function global if implements include
        include_once instanceof insteadof int interface isset list match mixed namespace new null or print private
        protected public readonly require require_once return self static string switch this throw trait true try unset
        use var void while xor yield php""",
    "swift": """actor any as associatedtype async await break case catch class continue default defer deinit do else
        enum extension fallthrough false fileprivate final for func get guard if import in indirect init inout internal
        is lazy let mutating nil open operator override private protocol public repeat required rethrows return self
        Self set some static struct subscript super switch throw throws true try typealias var weak where while""",
    "lua": """and break do else elseif end false for function goto if in local nil not or repeat return self then true
        until while""",
    "bash": """case do done elif else esac fi for function if in local readonly export return select then until while
        declare set unset shift echo printf exit true false test eval exec source trap cd read""",
    "": "",
}
_KEYWORDS["tsx"] = _KEYWORDS["typescript"]


@cache
def _skipped(language: str) -> re.Pattern[bytes] | None:
    alternatives = _SKIPPED[language]
    return re.compile(b"|".join(alternatives)) if alternatives else None


@cache
def _keywords(language: str) -> frozenset[bytes]:
    return frozenset(_KEYWORDS[language].encode().split())


def references(data: bytes, language: str, defined: Mapping[bytes, str] = MappingProxyType({})) -> dict[bytes, int]:
    """How often each identifier occurs outside comments and strings; in plain text, each word.

    Those that are not meant for what is plainly called so have a prefix (`buildd.repomap.qualified`); `defined` has the
    names of what the text defines, and their kinds.
    """
    skipped = _skipped(language)
    code = data if skipped is None else skipped.sub(b" ", _BEFORE.get(language, b"") + data)
    shortest, keywords = _SHORTEST if language else _SHORTEST_IN_TEXT, _keywords(language)
    words = {
        word: count
        for word, count in Counter(code.translate(_ONLY_WORDS).split()).items()
        if len(word) >= shortest
        and word not in keywords
        and word[0] not in _DIGITS
        and (word.isascii() or _is_identifier(word))
    }
    qualified.qualify(words, data, code, language, defined)
    return words


def lines_with(data: bytes, language: str, name: bytes) -> list[int]:
    """Numbers, from 1, of the lines that name an identifier outside comments and strings."""
    if name not in data:
        return []
    skipped = _skipped(language)
    code = data if skipped is None else skipped.sub(_only_newlines, _BEFORE.get(language, b"") + data)
    word = re.compile(rb"(?<![A-Za-z0-9_\x80-\xff])" + re.escape(name) + rb"(?![A-Za-z0-9_\x80-\xff])")
    found: list[int] = []
    line, position = 1, 0
    for match in word.finditer(code):
        line += code.count(b"\n", position, match.start())
        position = match.start()
        if not found or found[-1] != line:
            found.append(line)
    return found


def _only_newlines(match: re.Match[bytes]) -> bytes:
    return b"\n" * match[0].count(b"\n") or b" "


def _is_identifier(word: bytes) -> bool:
    try:
        return word.decode().isidentifier()
    except UnicodeDecodeError:
        return False
