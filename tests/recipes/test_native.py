"""Recipes: every complaint names the file, the package and the key, and nothing else ever comes out."""

from __future__ import annotations

import json
import posixpath
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from buildd.errors import InvalidInput, NotFound
from buildd.model import PHASES, Limits, Package, PhaseLimits, Source
from buildd.recipes.native import MAX_PHASE_BYTES, MAX_RECIPE_BYTES, Origin, discover
from buildd.recipes.presets import PRESETS

ORIGIN = Origin(repository="https://example.org/r", store="/clones/r")
SHA = "0" * 64


class Tree:
    """A revision in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def files_named(self, name: str) -> Iterable[tuple[str, str]]:
        return [(path, path) for path in sorted(self.files) if posixpath.basename(path) == name]

    def read(self, blob: str, limit: int) -> bytes:
        if len(self.files[blob]) > limit:
            raise InvalidInput(f"file {blob} has {len(self.files[blob])} bytes, more than {limit}")
        return self.files[blob]

    def subtree(self, path: str) -> str:
        if path != "." and not any(file.startswith(path + "/") for file in self.files):
            raise NotFound(f"no directory {path!r}")
        return f"tree of {path}"


def found(text: str | bytes, path: str = "buildd.toml", **files: str) -> list[Package]:
    content = text if isinstance(text, bytes) else text.encode()
    tree = Tree({path: content, "sub/file": b"", **{k: v.encode() for k, v in files.items()}})
    return [package for packages in discover(tree, ORIGIN).values() for package in packages]


def one(text: str, path: str = "buildd.toml") -> Package:
    (package,) = found(text, path)
    return package


def complaint(text: str | bytes, path: str = "buildd.toml") -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        found(text, path)
    return caught.value


def recipe(**keys: Any) -> str:
    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        return json.dumps(value)

    return "[package.jq]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items())


def source(**keys: Any) -> str:
    return recipe(source=[{"url": "https://example.org/d/jq-1.tar.gz", "sha256": SHA, **keys}])


# --- what a recipe says -----------------------------------------------------------------------------------


def test_the_least_recipe_is_a_name() -> None:
    package = one("[package.jq]", "sub/buildd.toml")
    assert package == Package(
        name="jq",
        version="0",
        path="sub",
        repository=ORIGIN.repository,
        store=ORIGIN.store,
        tree="tree of sub",
    )


def test_a_full_recipe_becomes_a_package() -> None:
    package = one(
        f"""
        [package.jq]
        version = "1.7.1"
        summary = "JSON\\tprocessor"
        path = "sub"
        depends = ["oniguruma", "https://example.org/other//zlib", "oniguruma"]
        patches = ["patches/a.patch"]
        tools = ["cc", "g++"]
        formats = ["tar"]
        default = false
        [[package.jq.source]]
        url = "https://example.org/d/jq%201.tar.gz?x=y"
        sha256 = "{SHA}"
        into = "vendor/./jq"
        strip = 0
        patches = ["b.patch"]
        [[package.jq.source]]
        url = "https://example.org/"
        filename = "data.bin"
        sha256 = "{SHA}"
        extract = false
        [package.jq.phases]
        build = "make"
        [package.jq.limits]
        timeout = "30min"
        silence = 90
        log = "10MiB"
        memory = "2GiB"
        [package.jq.limits.phases]
        fetch.silence = "20s"
        [package.jq.limits.phases.check]
        timeout = "10min"
        silence = 60
        """
    )
    assert package.path == "sub"
    assert package.depends == ("oniguruma", "https://example.org/other//zlib")
    assert package.summary == "JSON processor"
    assert package.limits == Limits(
        timeout=1800.0,
        silence=90.0,
        log=10 << 20,
        memory=2 << 30,
        phases={"fetch": PhaseLimits(silence=20.0), "check": PhaseLimits(timeout=600.0, silence=60.0)},
    )
    assert package.phases == {"build": "make"}
    assert package.sources == (
        Source(
            url="https://example.org/d/jq%201.tar.gz?x=y",
            sha256=SHA,
            filename="jq 1.tar.gz",
            into="vendor/jq",
            strip=0,
            patches=("b.patch",),
        ),
        Source(url="https://example.org/", sha256=SHA, filename="data.bin", extract=False),
    )
    assert (package.tools, package.formats, package.default) == (("cc", "g++"), ("tar",), False)
    assert package.patches == ("patches/a.patch",)


def test_a_package_can_be_stored_and_comes_back_as_it_was() -> None:
    limits = {"timeout": "1.5h", "silence": 3, "log": "1MiB", "memory": 2**40, "phases": {"check": {"timeout": "1m"}}}
    package = one(recipe(limits=limits, summary="ü"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(package), type=Package) == package
    assert msgspec.json.decode(msgspec.json.encode(package), type=Package) == package


@pytest.mark.parametrize("system", sorted(PRESETS))
def test_a_system_brings_its_phases_and_a_recipe_replaces_them_one_by_one(system: str) -> None:
    preset = one(recipe(system=system)).phases
    assert preset == {phase: text for phase, text in PRESETS[system].items() if text}
    assert list(preset) == [phase for phase in PHASES if phase in preset], "in the order they run"
    replaced = one(recipe(system=system, phases={"stage": "cp a $DESTDIR", "build": ""})).phases
    assert replaced["stage"] == "cp a $DESTDIR"
    assert "build" not in replaced, "an empty text leaves the phase out"
    assert {p: t for p, t in replaced.items() if p not in ("stage", "build")} == {
        p: t for p, t in preset.items() if p not in ("stage", "build")
    }


def test_every_preset_is_shell_that_parses() -> None:
    for phases in PRESETS.values():
        for phase, text in phases.items():
            assert phase in PHASES
            subprocess.run(["/bin/sh", "-n", "-c", text], check=True)


def test_a_path_is_relative_to_the_file_and_may_lead_aside_but_not_out() -> None:
    assert one(recipe(path="../sub"), "rec/buildd.toml").path == "sub"
    assert one(recipe(path=""), "sub/buildd.toml").path == "sub"
    assert "path" in complaint(recipe(path="../../sub"), "rec/buildd.toml").message


def test_packages_of_several_files_are_found_together() -> None:
    packages = found("[package.a]\n[package.b]", **{"sub/buildd.toml": "[package.c]"})
    assert [(p.name, p.path) for p in packages] == [("a", "."), ("b", "."), ("c", "sub")]


def test_a_revision_without_recipes_has_no_packages() -> None:
    assert discover(Tree({"README": b""}), ORIGIN) == {}


# --- what it must not say ---------------------------------------------------------------------------------

WRONG = {
    "unknown key vesion": recipe(vesion="1"),
    "unknown key limits.memroy": recipe(limits={"memroy": 1}),
    "unknown phase limits.phases.chek": recipe(limits={"phases": {"chek": {"timeout": 1}}}),
    "unknown phase limits.phases.timeout": recipe(limits={"phases": {"timeout": 1}}),
    "unknown key limits.phases.check.timout": recipe(limits={"phases": {"check": {"timout": 1}}}),
    "unknown key limits.phases.check.memory": recipe(limits={"phases": {"check": {"memory": "1GiB"}}}),
    "unknown key source.sha": source(sha="0"),
    "version": recipe(version="1 2"),
    "$.version": recipe(version=1),
    "$.depends": recipe(depends="onig"),
    "'-onig' is not the name of a package": recipe(depends=["-onig"]),
    "'../x' is not the name of a package": recipe(depends=["../x"]),
    "path '/etc'": recipe(path="/etc"),
    "path '../x'": recipe(path="../x"),
    "path 'none' is not a directory": recipe(path="none"),
    "unknown system 'automake'": recipe(system="automake"),
    "unknown phase 'compile'": recipe(phases={"compile": "make"}),
    "text of phase build": recipe(phases={"build": "a\0b"}),
    "text of phase check": recipe(phases={"check": "x" * (MAX_PHASE_BYTES + 1)}),
    "$.phases": recipe(phases={"build": 1}),
    "'a b' is not the name of a tool": recipe(tools=["a b"]),
    "'/bin/sh' is not the name of a tool": recipe(tools=["/bin/sh"]),
    "unknown format 'rpm'": recipe(formats=["rpm"]),
    "patches '../a.patch'": recipe(patches=["../a.patch"]),
    "patches '/a.patch'": recipe(patches=["/a.patch"]),
    "$.default": recipe(default="no"),
    "$.limits.timeout": recipe(limits={"timeout": "soon"}),
    "$.limits.silence": recipe(limits={"silence": -1}),
    "$.limits.memory": recipe(limits={"memory": "2 stones"}),
    "$.limits.log": recipe(limits={"log": 1.5}),
    "limits.phases.check.timeout: 'soon' is not a duration": recipe(limits={"phases": {"check": {"timeout": "soon"}}}),
    "limits.phases.build.silence: -1 is not a duration": recipe(limits={"phases": {"build": {"silence": -1}}}),
    "limits.phases.build.silence: [] is not a duration": recipe(limits={"phases": {"build": {"silence": []}}}),
    "limits.phases.check is not a table": recipe(limits={"phases": {"check": "10min"}}),
    "$.limits.phases": recipe(limits={"phases": 1}),
    "$.limits": recipe(limits=1),
    "$.source": recipe(source=1),
    "$.source[0]": recipe(source=[1]),
    "missing required field `sha256`": recipe(source=[{"url": "https://example.org/a"}]),
    "'jq.tar.gz' is not a URL": source(url="jq.tar.gz"),
    "is not 64 lower-case hexadecimal digits": source(sha256=SHA.replace("0", "A")),
    "does not end in a file name": source(url="https://example.org/"),
    "does not end in a file name ": source(filename="a/b"),
    "does not end in a file name  ": source(filename=".."),
    "into '../out'": source(into="../out"),
    "into '/out'": source(into="/out"),
    "strip = -1": source(strip=-1),
    "strip = 101": source(strip=101),
    "patches '../p'": source(patches=["../p"]),
    "two sources are called": recipe(
        source=[{"url": f"https://{host}/a.tgz", "sha256": SHA} for host in ("one.example", "two.example")]
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_complaint_names_the_file_the_package_and_the_key(what: str) -> None:
    error = complaint(WRONG[what], "sub/buildd.toml")
    assert error.message.startswith("sub/buildd.toml: package jq: ")
    assert what.strip() in error.message
    assert error.message.isprintable()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (recipe(vesion="1"), "version"),
        (recipe(limits={"memroy": 1}), "limits.memory"),
        (recipe(limits={"phases": {"check": {"timout": 1}}}), "limits.phases.check.timeout"),
        (recipe(limits={"phases": {"chek": {"timeout": 1}}}), "did you mean limits.phases.check?"),
        (recipe(limits={"phases": {"check": "10min"}}), "[package.jq.limits.phases.check]"),
        (recipe(phases={"compile": "x"}), "configure"),
        (recipe(system="automake"), "autotools"),
        (recipe(formats=["rpm"]), "tar"),
        (source(url="https://example.org/"), "filename"),
    ],
)
def test_a_complaint_says_what_to_write_instead(text: str, hint: str) -> None:
    assert hint in complaint(text).hint


@pytest.mark.parametrize("name", ["-jq", "a b", "a/b", "", "x" * 129, "jq\\u001b[2J", "ü"])
def test_a_name_that_is_none_is_shown_without_harm(name: str) -> None:
    error = complaint(f'[package."{name}"]')
    assert "not a package name" in error.message
    assert error.message.isascii()
    assert error.message.isprintable()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"\xff\xfe", "not UTF-8"),
        ("[package.jq", "not valid TOML"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("[pakage.jq]", "unknown key 'pakage'"),
        ("package = 1", "package is not a table"),
        ("[package]\njq = 1", "package jq: not a table"),
        ("[[package.jq]]", "package jq: not a table"),
        (b"#" * (MAX_RECIPE_BYTES + 1), "more than"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text: str | bytes, what: str) -> None:
    error = complaint(text, "sub/buildd.toml")
    assert "sub/buildd.toml" in error.message
    assert what in error.message
    assert len(error.message) < 1000


def test_a_package_that_two_files_define_is_refused_and_both_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"jq is defined twice: in buildd.toml and in sub/buildd.toml"):
        found("[package.jq]", **{"sub/buildd.toml": "[package.jq]"})


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "https://a\u2100b/x.tgz", "https://example.org]/x"])
def test_a_url_that_cannot_even_be_taken_apart_is_a_complaint(url: str) -> None:
    assert complaint(source(url=url)).message.startswith("buildd.toml: package jq: ")


@pytest.mark.parametrize(
    "limits",
    [
        {"memory": "9" * 400 + "GiB"},
        {"log": "9" * 400},
        {"timeout": 10**400},
        {"memory": "999999999999TiB"},
        {"log": 2**70},
        {"phases": {"check": {"timeout": "9" * 400 + "h"}}},
    ],
)
def test_a_limit_beyond_all_bounds_is_a_complaint(limits: dict[str, Any]) -> None:
    assert "limits" in complaint(recipe(limits=limits)).message


@pytest.mark.parametrize("key", ["\\u001b[2J", "a\\nb", "\\u202e", "x" * 5000])
@pytest.mark.parametrize(
    "table",
    [
        *("[package.jq]\n", "[package.jq.limits]\n", "[[package.jq.source]]\n", ""),
        *("[package.jq.limits.phases]\n", "[package.jq.limits.phases.check]\n"),
    ],
)
def test_a_key_does_no_harm_to_the_terminal_it_is_shown_on(table: str, key: str) -> None:
    error = complaint(f'{table}"{key}" = 1')
    assert error.message.isprintable()
    assert error.hint.isprintable()
    assert len(error.message) < 1000


@pytest.mark.parametrize("directory", ["\x1b[2J", "a\nb", "\udcff\udcfe"], ids=ascii)
@pytest.mark.parametrize("text", [b"\xff", b"[", b"x = 1", b"package = 1", b"[package.jq]\nx = 1", b"[package.jq]"])
def test_the_name_of_a_directory_does_no_harm_either(directory: str, text: bytes) -> None:
    # what is no UTF-8 could be neither recorded nor sent: the daemon would end over it
    error = complaint(text, f"{directory}/buildd.toml")
    assert error.message.isprintable()
    error.message.encode()


def test_a_small_file_cannot_take_all_memory() -> None:
    # tomllib keeps every prefix of a dotted key: the square of their number
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from test_native import found\n"
        "from buildd.errors import InvalidInput\n"
        "for text in ('[package.jq]\\n' + 'a.' * 60_000 + 'b = 1', '[package.' + 'a.' * 60_000 + 'b]'):\n"
        "    try:\n"
        "        found(text)\n"
        "    except InvalidInput:\n"
        "        continue\n"
        "    raise SystemExit('it was taken')\n"
    )
    path = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{posixpath.dirname(__file__)}:{path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-300:]


# --- anything ---------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none().map(lambda _: True),
    st.integers(-(2**70), 2**70),
    st.text(max_size=20).filter(lambda t: "\x7f" not in t),
    st.sampled_from(["../x", "/x", "http://[", "1h", "9" * 350, "make", "a//b", "\0", "file:", "%2e%2e", "a/%2f"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["url", "sha256", "build", "timeout", "memory", "phases", "x", "into"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
KEYS = [
    "version",
    "summary",
    "path",
    "depends",
    "system",
    "source",
    "patches",
    "tools",
    "formats",
    "phases",
    "limits",
    "default",
    "ignore",
]


def check(text: str | bytes) -> None:
    try:
        packages = found(text)
    except InvalidInput as error:
        error.message.encode()
        assert error.message
        return
    for package in packages:
        for path in (package.path, *package.patches, *(s.into for s in package.sources)):
            assert not path.startswith("/")
            assert ".." not in path.split("/")
        assert all("/" not in s.filename and s.filename not in ("", ".", "..") for s in package.sources)
        assert set(package.phases) <= set(PHASES)


@given(st.binary(max_size=200))
@example(b"[package.jq]\n" + b'version = "\\uD800"')
@example(b"[package.jq]\nversion = 1979-05-27T07:32:00Z")
@example(b"[package.jq]\nsummary = nan")
def test_arbitrary_bytes_are_packages_or_invalid_input(content: bytes) -> None:
    check(content)


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=3))
def test_arbitrary_values_of_known_keys_are_packages_or_invalid_input(keys: dict[str, Any]) -> None:
    check(recipe(**keys))


@given(st.dictionaries(st.sampled_from(["url", "filename", "into", "strip", "extract", "patches"]), values, max_size=3))
def test_arbitrary_sources_are_packages_or_invalid_input(keys: dict[str, Any]) -> None:
    check(source(**keys))


@given(
    st.lists(
        st.sampled_from(
            ["[", "]", "package", ".", "jq", "\n", "=", '"', "'", "source", "phases", "build", "{", "}", ",", "1", "#"]
        )
    ).map("".join)
)
def test_the_words_of_recipes_in_any_order_are_packages_or_invalid_input(text: str) -> None:
    check(text)
