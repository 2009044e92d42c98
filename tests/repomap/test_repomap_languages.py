"""What is found in a text of each language: definitions with their places, references outside comments and strings."""

from __future__ import annotations

import pytest
from repomap_maps import Repository
from repomap_samples import SAMPLES

from buildd.repomap import contents, languages, lexer, tagger


def test_there_is_a_sample_of_every_language() -> None:
    assert set(SAMPLES) == set(languages.LANGUAGES)


@pytest.mark.parametrize("language", SAMPLES)
def test_definitions_have_kind_name_parent_and_signature(language: str) -> None:
    name, text, expected = SAMPLES[language]
    assert languages.language_of(languages.hint_of(name.encode()), text.encode()) == language
    found = tagger.definitions(text.encode(), language)
    assert [(one.kind, one.name, one.parent, one.signature) for one in found] == expected
    lines = text.splitlines()
    for definition in found:
        last_part = definition.name.rpartition("::")[2].rpartition(".")[2]
        assert last_part in lines[definition.line - 1]
        assert definition.line <= definition.end_line <= len(lines)


def test_a_definition_knows_its_first_and_last_line_and_what_encloses_it() -> None:
    text = b"class A:\n    @staticmethod\n    def f(\n        x,\n    ):\n        return 1\n\nb = A()\n"
    a, f, b = tagger.definitions(text, "python")
    assert [(one.line, one.end_line, one.enclosing) for one in (a, f, b)] == [(1, 6, -1), (3, 6, 0), (8, 8, -1)]


def test_long_signatures_are_shortened() -> None:
    text = b"def f(" + b", ".join(b"argument_%d" % number for number in range(1000)) + b"): pass\n"
    (found,) = tagger.definitions(text, "python")
    assert len(found.signature) == 240
    assert found.signature.endswith("…")


@pytest.mark.parametrize(
    ("path", "content", "language"),
    [
        ("a.h", "struct a { int b; };\nint f(struct a *a);\n", "c"),
        ("a.h", "#pragma once\nnamespace x {\nint f();\n}\n", "cpp"),
        ("a.h", "#include <vector>\nint f();\n", "cpp"),
        ("a.h", "class A;\nstd::string f();\n", "cpp"),
        ("bin/run", "#!/usr/bin/env python3\n", "python"),
        ("bin/run", "#!/usr/bin/env -S FOO=1 node --x\n", "javascript"),
        ("bin/run", "#! /bin/sh -e\n", "bash"),
        ("bin/run", "#!/usr/bin/python3.11 -I\n", "python"),
        ("bin/run", "#!/usr/bin/awk -f\n", ""),
        ("bin/run", "plain\n", ""),
        ("Rakefile", "task :x\n", "ruby"),
        ("a.ts", '<?xml version="1.0"?>\n<TS></TS>\n', ""),
        ("a.inc", "#define X\n", ""),
        ("a.inc", "<?php function f() {}\n", "php"),
        ("a.C", "int f();\n", "cpp"),
        ("a.PY", "x = 1\n", "python"),
        ("notes.md", "# x\n", ""),
        (".bashrc", "x=1\n", "bash"),
        (".profile.d", "", ""),
    ],
)
def test_a_language_is_told_by_name_first_line_and_content(path: str, content: str, language: str) -> None:
    assert languages.language_of(languages.hint_of(path.encode()), content.encode()) == language


REFERENCES = {
    "python": ('x1 = foo(bar) # no1\n"no2"; \'no3\'\n"""no4\n"no5"\n"""\nf\'\'\'no6\\\'\'\'\'\nbaz', "x1 foo bar baz"),
    "javascript": ("foo(1) // no1\n/* no2\n * no3 */ bar('no4\\'no5', \"no6\", `no7\nno8`) + baz", "foo bar baz"),
    "java": ('foo("no1\\"no2", \'x\') /* no3 */ + bar // no4\n"""\nno5 "no6"\n""" + baz', "foo bar baz"),
    "kotlin": ('foo("no1") /* no2 */ + """no3 "no4" no5""" + bar', "foo bar"),
    "scala": ('foo(\'x\') + """no1""" + bar // no2', "foo bar"),
    "swift": ('foo("no1") + #"no2 "no3""# + bar // no4\n"""\nno5\n"""\nbaz', "foo bar baz"),
    "go": ("foo('\\'') + `no1\nno2` + \"no3\" + bar // no4\n", "foo bar"),
    "rust": (
        "foo::<'a>('x', b'\\'') + r#\"no1 \"no2\" \"# + \"no3\nno4\" + bar /* no5 */ // no6\n"
        "fn baz<'long>(q: &'long T2)",
        "foo bar baz long T2",
    ),
    "c": ('foo(\'"\') + "no1\\\nno2" + bar; // no3\n/* no4 */ baz', "foo bar baz"),
    "cpp": ('foo(1\'000) + R"x(no1 )" no2)x" + bar // no3', "foo bar"),
    "csharp": ('foo(@"no1 ""no2"" ") + $"no3" + bar // no4\n', "foo bar"),
    "ruby": ("foo(:bar, 'no1', \"no2\") # no3\n=begin\nno4 = no5\n=end\nbaz", "foo bar baz"),
    "php": (
        "<p>no0</p><?php foo(\"no1\nno2\", 'no3'); # no4\n#[Bar]\nbaz() ?><b>no5</b><?php qux();",
        "foo Bar baz qux",
    ),
    "lua": ("foo('no1') -- no2\n--[[ no3\n ]] bar [[no4]] --[==[ no5 ]] ]==] baz", "foo bar baz"),
    "bash": ("foo \"$bar\" 'no1' # no2\necho ${#qux[@]} $# baz", "foo bar qux baz"),
}


@pytest.mark.parametrize("language", REFERENCES)
def test_references_are_found_outside_comments_and_strings(language: str) -> None:
    text, expected = REFERENCES[language]
    found = set(lexer.references(text.encode(), language))
    assert not {word for word in found if word.startswith(b"no")}
    assert found >= {word.encode() for word in expected.split()}
    for word in expected.split():
        assert lexer.lines_with(text.encode(), language, word.encode())
    assert lexer.lines_with(text.encode(), language, b"no1") == []


def test_every_language_has_its_comments_strings_and_keywords() -> None:
    for language in ("", *languages.LANGUAGES):
        text = b"<?php function_name " if language == "php" else b" function_name "
        assert b"function_name" in lexer.references(text, language)
    assert b"return" not in lexer.references(b"return x", "c")


def test_references_are_counted_and_numbers_are_none() -> None:
    assert lexer.references(b"foo foo.bar(0x1F, 10ms, x, \xc3\xa9t\xc3\xa9, \xe2\x86\x92\xe2\x86\x92)", "c") == {
        b"foo": 2,
        b"bar": 1,
        "été".encode(): 1,
    }


GO = b"""package shop

import (
	"io"
	stdlog "log" // (not ours)
	"example.org/shop/store"
	other "example.org/other"
	"github.com/labstack/echo/v4"
	"gopkg.in/yaml.v3"
	"github.com/mattn/go-isatty"
	"math/rand/v2"
)

const (
	Deep Depths = iota
	Flat
)

var depths = map[Depths]string{
	Deep: "deep",
}

type Cart struct {
	Reader io.Reader
	Items, Rest []Item
}

func (c *Cart) Load(from io.Reader) (*store.Shelf, error) {
	stdlog.Println(c.Items, c.Rest[0].Price.Total())
	return store.Open(other.Options{Reader: from, Depth: Deep}), Check(c)
}

func New(options ...Option) *echo.Echo {
	return yaml.Node{isatty.IsTerminal, rand.Intn(1)}.
		With(options ...store.More)
}
"""
RUST = b"""use std::io::{self, Read, Error as IoError};
use std::{fmt::Debug, mem};
use std::process::Command;
use std::path::Path;
use crate::path;
use crate::shelf::Item;

impl Debug for Cart {}

pub fn load(mut from: impl Read) -> Result<Item, IoError> {
    let item: Item = Item::read_from(from)?;
    mem::drop(io::stdout());
    process(path::normalize(item));
    std::process::exit(crate::shelf::close(item) + other::Error::new())
}
"""
JAVA = b"""package shop;
import java.util.List;
import static java.util.stream.Collectors.toList;
import org.example.Map;
import org.example.Thread;

class Cart {
    List<Item> items = new Map<>().items().collect(toList());
    String name(Thread thread) { return null; }
    static class Runnable {}
    Runnable run() { return new Runnable(); }
}
"""


@pytest.mark.parametrize(
    ("language", "text", "standard", "members", "plain"),
    [
        (
            "go",
            GO,
            {"Reader": 2, "Println": 1, "Intn": 1},
            {"Reader": 2, "Items": 1, "Rest": 2, "Price": 1, "Total": 1, "Depth": 1, "With": 1},
            {
                "Shelf": 1,
                "Open": 1,
                "Options": 1,
                "Item": 1,
                "Deep": 3,
                "Check": 1,
                "Cart": 2,
                "Load": 1,
                "Option": 1,
                "Echo": 1,
                "Node": 1,
                "IsTerminal": 1,
                "More": 1,
                "Depths": 2,
            },
        ),
        (
            "rust",
            RUST,
            {"Read": 2, "Error": 1, "IoError": 2, "Debug": 2, "drop": 1, "stdout": 1, "exit": 1},
            {},
            {"Item": 4, "Error": 1, "read_from": 1, "close": 1, "Cart": 1, "process": 2, "normalize": 1, "path": 2},
        ),
        (
            "java",
            JAVA,
            {"List": 2, "Collectors": 1, "String": 1},
            {},
            {"Map": 2, "Thread": 2, "Runnable": 3, "Item": 1, "Cart": 1, "toList": 2, "items": 2},
        ),
    ],
)
def test_words_are_told_apart_by_what_a_text_imports(
    language: str, text: bytes, standard: dict[str, int], members: dict[str, int], plain: dict[str, int]
) -> None:
    defined = {definition.name.encode(): definition.kind for definition in tagger.definitions(text, language)}
    found = lexer.references(text, language, defined)
    for prefix, expected in (("/", standard), (".", members), ("", plain)):
        shown = {name: found.get((prefix + name).encode()) for name in expected}
        assert shown == expected, prefix or "plain"
    packages = {"std", "io", "fmt", "mem", "process", "path", "Command", "Path"}
    assert {word[1:].decode() for word in found if word[:1] == b"/"} <= standard.keys() | packages


def test_lines_are_counted_over_comments_and_strings() -> None:
    text = b"/* a\n b */ foo\n\nx = 'foo'\nfoo(foo) // foo\nfood\n"
    assert lexer.lines_with(text, "javascript", b"foo") == [2, 5]


@pytest.mark.parametrize(
    "opening", ["/*", '"""', "`", "'", '"', "--[[", "=begin\n", 'R"x(', "#", 'r#"', "[[", '@"', "?>"]
)
def test_what_is_never_closed_takes_time_in_proportion(opening: str) -> None:
    text = (opening + " a\\") * 60_000
    for language in languages.LANGUAGES:
        lexer.references(text.encode(), language)


@pytest.mark.parametrize("beginning", ["", "import ", "\nimport (\n", "use std::", "import java."])
@pytest.mark.parametrize(
    "unit", ["a", "a.", "a::", " a", 'a"', " as ", "{a", ",\n", "import ", "\nimport (\n", "use std::"]
)
def test_what_goes_on_and_on_takes_time_in_proportion(beginning: str, unit: str) -> None:
    text = beginning + unit * 100_000
    for language in ("go", "rust", "java"):
        lexer.references(text.encode(), language)


def test_long_lines_and_words_take_time_in_proportion() -> None:
    for text in (
        ",a b" * 100_000 + "=",
        "use " + "a" * 300_000 + "::",
        "use std::{" + "a" * 300_000,
        "." + " " * 300_000,
    ):
        for language in ("go", "rust"):
            lexer.references(text.encode(), language)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\0b", "binary"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n", "lfs"),
        (b"var a=1;" * 1000, "minified"),
        (b"var a=1;\n" * 1000, None),
        (b"short\0"[:5], None),
        (b"", None),
    ],
)
def test_what_is_no_source_is_sorted_out(data: bytes, reason: str | None) -> None:
    assert contents.sort_out(data) == reason


def test_text_of_other_encodings_is_read() -> None:
    assert contents.as_utf8("été = 1".encode("latin-1")) == "été = 1".encode()
    assert contents.as_utf8("été".encode("utf-16")) == "été".encode()
    assert contents.as_utf8("\ufeffété".encode()) == "été".encode()
    assert contents.as_utf8(bytes(range(256))) is None


def test_files_in_every_language_are_mapped(repository: Repository) -> None:
    repository.commit({f"{language}/{name}": text for language, (name, text, _) in SAMPLES.items()})
    made = repository.map()
    lines = made.lines("tags.jsonl")
    for language, (name, _, expected) in SAMPLES.items():
        own = [line for line in lines if line["path"] == f"{language}/{name}"]
        assert [(one["kind"], one["name"], one["parent"], one["signature"]) for one in own] == expected
    assert list(lines[0]) == ["path", "name", "kind", "line", "end_line", "parent", "signature", "score"]
    assert made.left_out() == {}
    assert made.built.definitions == len(lines)
