"""Why a package is built again: the difference is named, exactly, whatever it is."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from buildd.planner.changes import file_changes
from buildd.planner.keys import FORMAT, Inputs, KeyParts, SourceKey, key_of
from buildd.planner.why import differences
from buildd.protocol import Cause, FileChange

A, B, C, D = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)
FILE, EXECUTABLE, LINK = 0o100644, 0o100755, 0o120000
TARBALL = SourceKey(filename="jq.tar.gz", sha256="1" * 64, into=".", strip=None, extract=True, patches=())
PARTS = KeyParts(
    name="jq",
    version="1.7",
    tree="1" * 40,
    sources=(TARBALL,),
    patches=("one.patch",),
    phases={"build": "make", "stage": "make install"},
    formats=("tar",),
    environment="e" * 64,
    architecture="x86_64",
    dependencies={"onig": "c" * 64},
)
INPUTS = Inputs(
    parts=PARTS,
    outputs={"onig": "5" * 64, "libc": "6" * 64},
    environment={"os-release": "7" * 64, "sandbox": "bwrap", "path": "/usr/bin"},
    strategy="aggressive",
    repository="https://example.org/r",
    commit=None,
    root="2" * 40,
    path="jq",
)


def inputs(*, outputs: dict[str, str] | None = None, found: dict[str, str] | None = None, **parts: Any) -> Inputs:
    """What is changed of INPUTS: parts of the key, outputs of dependencies, parts of the environment."""
    changed = msgspec.structs.replace(PARTS, **parts)
    if found is not None and "environment" not in parts:
        changed = msgspec.structs.replace(changed, environment="f" * 64)
    return msgspec.structs.replace(
        INPUTS,
        parts=changed,
        outputs=INPUTS.outputs if outputs is None else outputs,
        environment=INPUTS.environment if found is None else found,
    )


def only(new: Inputs, files: tuple[FileChange, ...] | None = None, **options: Any) -> Cause:
    """The one cause for which `new` is built."""
    causes = differences(INPUTS, new, files, **options)
    assert len(causes) == 1, causes
    return causes[0]


def source(**fields: Any) -> tuple[SourceKey, ...]:
    return (msgspec.structs.replace(TARBALL, **fields),)


# --- files ------------------------------------------------------------------------------------------------

LISTING = (("Makefile", FILE, A), ("src/jq.c", FILE, B), ("src/run", FILE, C))


def test_equal_listings_have_no_changes() -> None:
    assert file_changes(LISTING, tuple(reversed(LISTING))) == ()


def test_a_changed_file_is_named_with_its_old_and_new_content() -> None:
    changes = file_changes(LISTING, (("Makefile", FILE, A), ("src/jq.c", FILE, D), ("src/run", FILE, C)))
    assert changes == (
        FileChange(path="src/jq.c", change="modified", old_blob=B, new_blob=D, old_mode="100644", new_mode="100644"),
    )
    cause = only(inputs(tree="3" * 40), changes)
    assert (cause.kind, cause.old, cause.new, cause.files) == ("source", "1" * 40, "3" * 40, changes)
    assert cause.message == "source: 1 modified"
    many = file_changes(LISTING, (("Makefile", EXECUTABLE, A), ("src/jq.c", FILE, D), ("run", FILE, C), ("x", FILE, A)))
    assert only(inputs(tree="3" * 40), many).message == ("source: 1 modified, 1 added, 1 renamed, 1 with another mode")


def test_a_changed_mode_is_named() -> None:
    (change,) = file_changes(LISTING, (*LISTING[:2], ("src/run", EXECUTABLE, C)))
    assert (change.path, change.change, change.old_mode, change.new_mode) == ("src/run", "mode", "100644", "100755")


def test_added_and_removed_files_are_named() -> None:
    added, removed = file_changes(LISTING, (*LISTING[:2], ("src/go", FILE, D)))
    assert (added.path, added.change, added.old_blob, added.new_blob) == ("src/go", "added", None, D)
    assert (removed.path, removed.change, removed.old_blob, removed.new_blob) == ("src/run", "removed", C, None)


def test_a_file_that_became_a_link_is_modified_and_not_renamed() -> None:
    (change,) = file_changes((("a", FILE, A),), (("a", LINK, B),))
    assert (change.change, change.old_mode, change.new_mode) == ("modified", "100644", "120000")
    assert {c.change for c in file_changes((("a", FILE, A),), (("b", LINK, A),))} == {"added", "removed"}


def test_a_renamed_file_is_one_change_also_with_another_mode() -> None:
    (change,) = file_changes(LISTING, (*LISTING[:2], ("bin/run", EXECUTABLE, C)))
    assert change == FileChange(
        path="bin/run",
        old_path="src/run",
        change="renamed",
        old_blob=C,
        new_blob=C,
        old_mode="100644",
        new_mode="100755",
    )


def test_of_equal_files_those_with_the_same_name_are_paired_and_then_as_they_sort() -> None:
    old = (("a/one", FILE, A), ("a/two", FILE, A), ("a/three", FILE, A))
    new = (("b/alpha", FILE, A), ("b/two", FILE, A), ("b/zeta", FILE, A), ("b/zulu", FILE, A))
    changes = {c.path: (c.change, c.old_path) for c in file_changes(old, new)}
    assert changes == {
        "b/alpha": ("renamed", "a/one"),
        "b/two": ("renamed", "a/two"),
        "b/zeta": ("renamed", "a/three"),
        "b/zulu": ("added", None),
    }
    assert file_changes(old[::-1], new[::-1]) == file_changes(old, new)


def test_a_copy_is_added_and_not_renamed() -> None:
    (change,) = file_changes(LISTING, (*LISTING, ("copy", FILE, C)))
    assert change.change == "added"


def test_a_name_that_is_not_utf8_can_be_sent() -> None:
    name = os.fsdecode(b"caf\xe9")
    changes = file_changes(((name, FILE, A),), ((name, FILE, B), (os.fsdecode(b"\xff"), FILE, C)))
    assert changes[0].path == name
    cause = only(inputs(tree="3" * 40), changes)
    assert msgspec.json.decode(msgspec.json.encode(cause), type=Cause) == cause
    assert [change.path for change in cause.files] == ["caf\\udce9", "\\udcff"]


names = st.binary(min_size=1, max_size=3).map(os.fsdecode)
entries = st.tuples(st.sampled_from((FILE, EXECUTABLE, LINK)), st.sampled_from((A, B, C)))
listings = st.dictionaries(names, entries, max_size=8)


def applied(old: dict[str, tuple[int, str]], changes: tuple[FileChange, ...]) -> dict[str, tuple[int, str]]:
    """`old` with the changes made to it, each of which has to fit."""
    result = dict(old)
    for change in changes:
        before = change.old_path if change.change == "renamed" else change.path
        if change.change == "added":
            assert change.path not in old
        else:
            assert before is not None
            assert old[before] == (int(str(change.old_mode), 8), change.old_blob)
        if change.change in ("removed", "renamed"):
            assert before is not None
            del result[before]
    for change in changes:
        if change.change != "removed":
            assert change.new_blob is not None
            result[change.path] = (int(str(change.new_mode), 8), change.new_blob)
        kept = {"mode": change.old_blob == change.new_blob, "modified": change.old_blob != change.new_blob}
        assert kept.get(change.change, True)
    return result


@given(listings, listings)
def test_the_changes_applied_to_the_old_listing_give_the_new_one(
    old: dict[str, tuple[int, str]], new: dict[str, tuple[int, str]]
) -> None:
    changes = file_changes([(p, *e) for p, e in old.items()], [(p, *e) for p, e in new.items()])
    assert applied(old, changes) == new
    assert (changes == ()) == (old == new)
    paths = [change.path for change in changes if change.change != "removed"]
    assert len(paths) == len(set(paths))


# --- everything else --------------------------------------------------------------------------------------


def test_a_new_version_is_named() -> None:
    cause = only(inputs(version="1.8"))
    assert (cause.kind, cause.old, cause.new, cause.message) == ("version", "1.7", "1.8", "version: 1.7 -> 1.8")


def test_another_architecture_is_named() -> None:
    cause = only(inputs(architecture="aarch64"))
    assert (cause.kind, cause.old, cause.new) == ("architecture", "x86_64", "aarch64")


def test_a_changed_command_is_named_by_its_phase_with_the_whole_text() -> None:
    cause = only(inputs(phases={"build": "make -s", "stage": "make install"}))
    assert (cause.kind, cause.what, cause.old, cause.new) == ("recipe", "build", "make", "make -s")
    assert cause.message == "phase build: `make` -> `make -s`"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (None, "make check", "added `make check`"),
        (None, "one\ntwo\nthree", "added `one` and 2 more lines"),
        ("make check", None, "removed `make check`"),
        ("one\ntwo", "one\nbetween\ntwo", "added `between`"),
        ("one\nbetween\ntwo", "one\ntwo", "removed `between`"),
        ("one\ntwo\nthree", "one\n2\n2.5\nthree", "`two` -> `2` and 1 more line"),
        ("one\n", "one", "white space"),
        (None, "", "added"),
        ("", None, "removed"),
        (f"cc {'-O2 ' * 50}-c", f"cc {'-O2 ' * 50}-S", "`…O2 -O2 -O2 -O2 -O2 -c` -> `…O2 -O2 -O2 -O2 -O2 -S`"),
        ("x" * 100, "y", f"`{'x' * 60}…` -> `y`"),
    ],
)
def test_the_line_that_differs_is_shown(old: str | None, new: str | None, message: str) -> None:
    def phases(text: str | None) -> dict[str, str]:
        return {} if text is None else {"check": text}

    (cause,) = differences(inputs(phases=phases(old)), inputs(phases=phases(new)))
    assert (cause.what, cause.old, cause.new) == ("check", old, new)
    assert cause.message == f"phase check: {message}"


def test_phases_are_named_in_the_order_they_run() -> None:
    causes = differences(INPUTS, inputs(phases={"stage": "x", "configure": "y"}))
    assert [cause.what for cause in causes] == ["configure", "build", "stage"]


def test_a_fetched_file_with_another_hash_is_named() -> None:
    cause = only(inputs(sources=source(sha256="2" * 64)))
    assert (cause.kind, cause.what, cause.old, cause.new) == ("fetched", "jq.tar.gz", "1" * 64, "2" * 64)
    assert cause.message == "fetched jq.tar.gz: sha256 11111111 -> 22222222"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (source(into="vendor"), "fetched jq.tar.gz: into . -> vendor"),
        (source(strip=1), "fetched jq.tar.gz: strip auto -> 1"),
        (source(extract=False), "fetched jq.tar.gz: extract true -> false"),
        (source(patches=("a", "b")), "fetched jq.tar.gz: patches [] -> [a, b]"),
        (source(filename="jq-2.tar.gz"), "fetched: jq.tar.gz is replaced by jq-2.tar.gz"),
        ((), "fetched: no longer jq.tar.gz"),
        ((TARBALL, *source(filename="two")), "fetched: now also two"),
        ((TARBALL, TARBALL), "fetched: now also jq.tar.gz"),
    ],
)
def test_what_is_done_with_fetched_files_is_named(sources: tuple[SourceKey, ...], message: str) -> None:
    cause = only(inputs(sources=sources))
    assert (cause.kind, cause.message) == ("fetched", message)


def test_another_order_of_fetched_files_is_named() -> None:
    two = (TARBALL, *source(filename="two"))
    (cause,) = differences(inputs(sources=two), inputs(sources=two[::-1]))
    assert (cause.what, cause.old, cause.new) == ("order", "jq.tar.gz, two", "two, jq.tar.gz")


def test_patches_and_formats_are_named() -> None:
    assert only(inputs(patches=("two.patch",))).message == "patches: added two.patch, removed one.patch"
    assert only(inputs(formats=())).message == "formats: removed tar"
    (cause,) = differences(inputs(patches=("a", "b")), inputs(patches=("b", "a")))
    assert (cause.kind, cause.message) == ("patches", "patches: order a, b -> b, a")


def test_a_dependency_whose_output_changed_is_named() -> None:
    cause = only(inputs(dependencies={"onig": "d" * 64}, outputs=INPUTS.outputs | {"onig": "8" * 64}))
    assert (cause.kind, cause.what, cause.old, cause.new) == ("dependency", "onig", "5" * 64, "8" * 64)
    assert cause.message == "dependency onig: output 55555555 -> 88888888"


def test_an_indirect_dependency_whose_output_changed_is_named() -> None:
    cause = only(inputs(dependencies={"onig": "d" * 64}, outputs=INPUTS.outputs | {"libc": "8" * 64}))
    assert (cause.what, cause.old, cause.new) == ("libc", "6" * 64, "8" * 64)
    assert "indirect" in cause.message


def test_a_dependency_with_other_dependencies_of_its_own_is_named_when_nothing_closer_is_known() -> None:
    cause = only(inputs(dependencies={"onig": "d" * 64}))
    assert (cause.what, cause.old, cause.new) == ("onig", "c" * 64, "d" * 64)
    assert "the same output" in cause.message


def test_added_and_removed_dependencies_are_named() -> None:
    causes = differences(INPUTS, inputs(dependencies={"pcre": "d" * 64}, outputs={"pcre": "9" * 64}))
    assert [(c.what, c.old, c.new, c.message) for c in causes] == [
        ("onig", "5" * 64, None, "dependency onig: no longer one"),
        ("pcre", None, "9" * 64, "dependency pcre: new"),
    ]


def test_a_dependency_that_is_to_be_built_is_neither_removed_nor_compared() -> None:
    cause = only(inputs(dependencies={}, outputs={}), pending=["onig"])
    assert (cause.what, cause.old, cause.new) == ("onig", "5" * 64, None)
    assert cause.message == "dependency onig: would be built"
    assert only(INPUTS, pending=["pcre"]).message == "dependency pcre: new, and would be built"


def test_an_indirect_dependency_that_changed_is_named_also_below_one_that_is_to_be_built() -> None:
    new = inputs(dependencies={}, outputs={"libc": "8" * 64})
    direct, indirect = differences(INPUTS, new, pending=["onig"])
    assert (direct.what, direct.new) == ("onig", None)
    assert (indirect.what, indirect.old, indirect.new) == ("libc", "6" * 64, "8" * 64)
    only(inputs(dependencies={}, outputs={"libc": "6" * 64, "new": "8" * 64}), pending=["onig"])  # not known yet


def test_the_part_of_the_environment_is_named() -> None:
    cause = only(inputs(found=INPUTS.environment | {"os-release": "8" * 64}))
    assert (cause.kind, cause.what, cause.old, cause.new) == ("environment", "os-release", "7" * 64, "8" * 64)
    assert cause.message == "environment, os-release: 77777777 -> 88888888"
    assert only(inputs(found=INPUTS.environment | {"sandbox": "plain"})).message == (
        "environment, sandbox: bwrap -> plain"
    )
    assert only(inputs(found=INPUTS.environment | {"path": ""})).message == "environment, path: /usr/bin -> empty"


def test_what_only_another_strategy_looks_at_is_named() -> None:
    careful = msgspec.structs.replace(
        inputs(found=INPUTS.environment | {"installed packages": "8" * 64}), strategy="conservative"
    )
    cause = only(careful)
    assert (cause.what, cause.old, cause.new) == ("installed packages", None, "8" * 64)
    assert "conservative" in cause.message


def test_an_environment_that_differs_in_nothing_that_is_named_is_a_cause_all_the_same() -> None:
    cause = only(inputs(environment="f" * 64))
    assert (cause.kind, cause.old, cause.new) == ("environment", "e" * 64, "f" * 64)


def test_keys_of_another_meaning_are_a_cause() -> None:
    assert only(inputs(format=FORMAT + 1)).kind == "format"


def test_the_source_comes_first_and_its_files_with_it() -> None:
    new = inputs(tree="3" * 40, version="1.8", architecture="aarch64", phases={})
    kinds = [cause.kind for cause in differences(INPUTS, new, file_changes(LISTING, LISTING[:1]))]
    assert kinds == ["source", "version", "recipe", "recipe", "architecture"]
    assert "no longer known" in differences(INPUTS, new, None)[0].message
    assert "same files" in differences(INPUTS, new, ())[0].message


texts = st.text(max_size=3)
digests = st.sampled_from(("a" * 64, "b" * 64, "c" * 64))
sources = st.builds(
    SourceKey,
    filename=st.sampled_from(("x", "y")),
    sha256=digests,
    into=texts,
    strip=st.none() | st.integers(0, 2),
    extract=st.booleans(),
    patches=st.lists(texts, max_size=2).map(tuple),
)
parts = st.builds(
    KeyParts,
    name=texts,
    version=texts,
    tree=digests,
    sources=st.lists(sources, max_size=3).map(tuple),
    patches=st.lists(texts, max_size=2).map(tuple),
    phases=st.dictionaries(st.sampled_from(("build", "stage", "other")), texts),
    formats=st.lists(texts, max_size=2).map(tuple),
    environment=digests,
    architecture=texts,
    dependencies=st.dictionaries(st.sampled_from(("p", "q", "r")), digests),
    format=st.integers(1, 3),
)
everything = st.builds(
    Inputs,
    parts=parts,
    outputs=st.dictionaries(st.sampled_from(("p", "q", "r", "s")), digests),
    environment=st.dictionaries(texts, texts, max_size=2),
    strategy=st.sampled_from(("none", "conservative", "aggressive")),
    repository=texts,
    commit=st.none() | texts,
    root=digests,
    path=texts,
)


def check(old: Inputs, new: Inputs) -> None:
    causes = differences(old, new)
    assert (causes == ()) == (key_of(old.parts) == key_of(new.parts))
    assert all(cause.message for cause in causes)


@given(everything, everything)
def test_there_are_causes_exactly_when_the_keys_differ(old: Inputs, new: Inputs) -> None:
    check(old, new)
    assert differences(old, old) == ()


@given(everything, parts, st.sampled_from(KeyParts.__struct_fields__))
def test_a_change_of_any_single_part_has_a_cause(old: Inputs, other: KeyParts, part: str) -> None:
    mixed = msgspec.structs.replace(old.parts, **{part: getattr(other, part)})
    check(old, msgspec.structs.replace(old, parts=mixed))
    kinds = {cause.kind for cause in differences(old, msgspec.structs.replace(old, parts=mixed))}
    assert len(kinds) <= 1
