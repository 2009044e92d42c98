"""Definitions of a text by tree-sitter: name, kind, place, what encloses it, signature.

One query per language (`queries/`), which captures nodes that define something and their names; everything else is
common. Nothing here is cautious about time or memory: grammars bring C code of their own that may loop, so this runs in
processes that are killed when it does (`buildd.repomap.parsers`).
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from operator import itemgetter
from typing import NamedTuple

import msgspec
from tree_sitter import Language, Node, Parser, Query, QueryCursor

from buildd.repomap.queries import query_text
from buildd.repomap.records import TYPES

_BINDINGS = "tree_sitter_language_pack.bindings"
_MAX_NAME = 200
_MAX_SIGNATURE = 240
_LOOK_BYTES = 1000
_PREFIXES = {
    ("go", "type_spec"): "type ",
    ("go", "type_alias"): "type ",
    ("go", "const_spec"): "const ",
    ("go", "var_spec"): "var ",
    ("php", "const_element"): "const ",
}
"""What stands before several of a kind."""
_VALUES = ("variable", "constant", "property", "macro", "type")
_BODIES = ("function_body", "class_body", "enum_class_body")
"""Nodes that are bodies where the grammar has no field for them."""
_LEADING = re.compile(r"(?:@(?!interface\b)[\w.:]+|#?\[)\s*")
_BRACKETS = {"(": re.compile(r"[()]"), "[": re.compile(r"[\[\]]")}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_HASH_COMMENT = re.compile(r"(?:^|\s)#[^\n]*")
_AIR = re.compile(r"(?<=[(\[]) |,? ([)\]])")
"""What is left of line breaks within brackets."""
_AIRY = ("( ", "[ ", " )", " ]")
"""What it looks for: most signatures have none of it, which is told faster without an expression."""
_BEGINNING = re.compile(r"(?:\s*(?:[{;:=]|=>|(?<=[)\s;])end))+$")
"""What a body begins with, or what follows an empty one."""
_BEGINNINGS = ("{", ";", ":", "=", "=>", "end")
_NAME_END = re.compile(r"[<\[({\s]")


class Definition(NamedTuple):
    name: str
    kind: str
    line: int
    end_line: int
    enclosing: int
    """Number of the definition that it is in; -1 at the top."""
    parent: str
    signature: str


class _Tags(NamedTuple):
    parser: Parser
    cursor: QueryCursor
    kinds: tuple[str, ...]
    """By pattern."""


@cache
def _tags_of(language: str) -> _Tags:
    # The pack's own function for this takes the same module, after importing all that comes with the pack.
    binding = import_module("tree_sitter_c_sharp" if language == "csharp" else f"{_BINDINGS}.{language}")
    grammar = Language(binding.language())
    query = Query(grammar, query_text(language))
    kinds = []
    for number in range(query.pattern_count):
        start, end = query.start_byte_for_pattern(number), query.end_byte_for_pattern(number)
        captured = re.findall(r"@([a-z]+)", query_text(language).encode()[start:end].decode())
        kinds.append(next(name for name in reversed(captured) if name not in ("name", "scope")))
    return _Tags(Parser(grammar), QueryCursor(query), tuple(kinds))


def definitions(data: bytes, language: str) -> list[Definition]:
    """In the order of the text; what encloses others comes before them."""
    tags = _tags_of(language)
    tree = tags.parser.parse(data)
    found: dict[int, tuple[int, dict[str, list[Node]]]] = {}
    for pattern, captures in tags.cursor.matches(tree.root_node):
        start = captures["name"][0].start_byte
        if start not in found or pattern < found[start][0]:
            found[start] = pattern, captures
    rows = []
    for start, (pattern, captures) in found.items():
        node = captures[tags.kinds[pattern]][0]
        rows.append((node.start_byte, -node.end_byte, start, pattern, captures, node))
    rows.sort(key=itemgetter(0, 1, 2))
    result: list[Definition] = []
    open_ones: list[tuple[int, int]] = []  # end byte, number in result
    for _, minus_end, _, pattern, captures, node in rows:
        while open_ones and open_ones[-1][0] < -minus_end:
            open_ones.pop()
        name_node, scopes = captures["name"][0], captures.get("scope")
        name = _text(data, name_node.start_byte, name_node.end_byte)
        if not name.isprintable() or not 0 < len(name) <= _MAX_NAME:  # errors of the parser
            continue
        kind, enclosing = tags.kinds[pattern], open_ones[-1][1] if open_ones else -1
        scope = _scope_name(_text(data, scopes[0].start_byte, scopes[0].end_byte)) if scopes else ""
        if kind in ("implementation", "class", "struct"):
            name = _NAME_END.split(name, maxsplit=1)[0] or name
        if language == "cpp" and "::" in name and "<" not in name:
            scope, _, name = name.rpartition("::")
            scope = scope.replace("::", ".")
        outer = result[enclosing] if enclosing >= 0 else None
        parent = ".".join(part for part in (outer and outer.parent, outer and outer.name, scope) if part)
        if kind == "function" and (scope or (outer is not None and outer.kind in TYPES)):
            kind = "method"
        line, end = name_node.start_point.row + 1, node.end_point
        open_ones.append((-minus_end, len(result)))
        result.append(
            Definition(
                name,
                kind,
                line,
                max(end.row + (end.column > 0), line),
                enclosing,
                parent,
                _signature(data, node, kind, language),
            )
        )
    return result


def _signature(data: bytes, node: Node, kind: str, language: str) -> str:
    start, end = node.start_byte, node.end_byte
    body = node.child_by_field_name("body")
    if body is None and kind not in _VALUES:
        value = node.child_by_field_name("value") or node.child_by_field_name("right")
        body = value.child_by_field_name("body") if value is not None else None
        if body is None and language == "kotlin":
            body = next((child for child in node.children if child.type in _BODIES), None)
    if body is not None and body.start_byte > start:
        end = body.start_byte
    cut = end - start > _LOOK_BYTES
    text = _text(data, start, min(end, start + _LOOK_BYTES))
    if text[:1] in "@[#":
        text = _without_annotations(text)
    if body is None:
        if node.type == "macro_definition":
            text = text.partition("{")[0].partition("(")[0]
        elif kind in _VALUES:
            text = text.lstrip().partition("\n")[0].rstrip("\\ \t\r")
        elif kind in TYPES or kind == "namespace":
            text, brace, _ = text.partition("{")
            cut = cut and not brace
    if "\n" in text:
        text = (_HASH_COMMENT if language in ("python", "ruby", "bash") else _COMMENT).sub(" ", text)
    text = " ".join(text.split())
    if any(map(text.__contains__, _AIRY)):
        text = _AIR.sub(r"\1", text)
    if kind in _VALUES:
        text = text.rstrip(" {;")
    elif text.endswith(_BEGINNINGS):
        text = _BEGINNING.sub("", text)
    text = _PREFIXES.get((language, node.type), "") + text
    if node.type == "variable_declarator" and node.parent is not None:
        text = _text(data, node.parent.start_byte, node.parent.start_byte + 10).split()[0] + " " + text
    if not text.isprintable():  # it is shown on terminals
        text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    if cut or len(text) > _MAX_SIGNATURE:
        text = text[: _MAX_SIGNATURE - 1].rstrip() + "…"
    return text


def _without_annotations(text: str) -> str:
    while (match := _LEADING.match(text)) is not None:
        position = match.end()
        before = text[position - 1 : position] if match[0].rstrip().endswith("[") else text[position : position + 1]
        if match[0].rstrip().endswith("["):
            position = _closing(text, match[0].index("["))
        elif before == "(":
            position = _closing(text, position)
        if position <= 0:
            return text
        text = text[position:].lstrip()
    return text


def _closing(text: str, position: int) -> int:
    """Where the bracket at `position` has been closed; 0 when it is not."""
    open_one, depth = text[position], 0
    first = text.find(")" if open_one == "(" else "]", position)
    if first < 0 or open_one not in text[position + 1 : first]:
        return first + 1
    for bracket in _BRACKETS[open_one].finditer(text, position):
        depth += 1 if bracket[0] == open_one else -1
        if depth == 0:
            return bracket.end()
    return 0


def _scope_name(text: str) -> str:
    """The name in a receiver's type (`*Stack[T]`) or in what a member is assigned to (`Stack.prototype`)."""
    name = _NAME_END.split(text.strip("*& \t"), maxsplit=1)[0]
    return name.removesuffix(".prototype").removeprefix("module.exports").removeprefix("this").strip(".")[:_MAX_NAME]


def _text(data: bytes, start: int, end: int) -> str:
    return data[start:end].decode("utf-8", "replace")


class _TagFields(msgspec.Struct):
    name: str
    kind: str
    line: int
    end_line: int
    parent: str
    signature: str


_encode = msgspec.json.Encoder().encode


def tag_members(definition: Definition) -> bytes:
    """JSON members of a line of `tags.jsonl`, without path and score."""
    name, kind, line, end_line, _, parent, signature = definition
    return _encode(_TagFields(name, kind, line, end_line, parent, signature))[1:-1]


def ctags_fields(definition: Definition, outer: Definition | None) -> bytes:
    """A line of a ctags file from behind the path, as Universal Ctags writes it (`--excmd=number --fields=+neKS`)."""
    name, kind, line, end_line, _, parent, signature = definition
    fields = f'\t{line};"\t{kind}\tline:{line}'
    if parent:
        scope = outer.kind if outer is not None else "class"
        fields += f"\t{scope}:{_escaped(parent)}"
    fields += f"\tend:{end_line}"
    if kind in ("function", "method", "constructor", "prototype"):
        start = signature.find("(", signature.find(name) + len(name))
        end = _closing(signature, start) if start >= 0 else 0
        if end:
            fields += f"\tsignature:{_escaped(signature[start:end])}"
    return (fields + "\n").encode("utf-8", "replace")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")
