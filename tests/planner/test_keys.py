"""Cache keys: what changes them, and what must not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from buildd.model import Limits, Package, Source
from buildd.planner.keys import KeyParts, key_of, key_parts

SOURCE = Source(url="https://example.org/a.tar.gz", sha256="0" * 64, filename="a.tar.gz")
OTHER = Source(url="https://example.org/b.tar.gz", sha256="1" * 64, filename="b.tar.gz")
PACKAGE = Package(
    name="jq",
    version="1.7",
    path="jq",
    repository="https://example.org/r",
    store="/clones/r",
    tree="t" * 40,
    depends=("onig",),
    system="make",
    phases={"build": "make", "stage": "make install"},
    sources=(SOURCE,),
    patches=("one.patch", "two.patch"),
    formats=("tar",),
)
AROUND: dict[str, Any] = {"environment": "debian", "architecture": "x86_64", "dependencies": {"onig": "f" * 64}}


def key(package: Package = PACKAGE, **around: Any) -> str:
    return key_of(key_parts(package, **(AROUND | around)))


def changed(**fields: Any) -> Package:
    return msgspec.structs.replace(PACKAGE, **fields)


def with_source(**fields: Any) -> Package:
    return changed(sources=(msgspec.structs.replace(SOURCE, **fields),))


@pytest.mark.parametrize(
    "package",
    [
        changed(name="jq2"),
        changed(version="1.8"),
        changed(tree="u" * 40),
        changed(phases={"build": "make -s", "stage": "make install"}),
        changed(phases={"check": "make", "stage": "make install"}),
        changed(phases={"build": "make"}),
        changed(patches=("two.patch", "one.patch")),
        changed(patches=()),
        changed(formats=()),
        changed(sources=()),
        changed(sources=(SOURCE, OTHER)),
        with_source(sha256="2" * 64),
        with_source(filename="c.tar.gz"),
        with_source(into="vendor"),
        with_source(strip=0),
        with_source(strip=1),
        with_source(extract=False),
        with_source(patches=("a.patch",)),
    ],
)
def test_everything_that_can_change_the_output_changes_the_key(package: Package) -> None:
    assert key(package) != key()


@pytest.mark.parametrize(
    "around",
    [
        {"environment": "fedora"},
        {"architecture": "aarch64"},
        {"dependencies": {}},
        {"dependencies": {"onig": "e" * 64}},
        {"dependencies": {"zlib": "f" * 64}},
    ],
)
def test_what_the_build_finds_around_it_changes_the_key(around: dict[str, Any]) -> None:
    assert key(**around) != key()


@pytest.mark.parametrize(
    "package",
    [
        changed(limits=Limits(timeout=1.0, silence=1.0, log=1, memory=1)),
        changed(path="elsewhere"),
        changed(repository="https://example.org/fork"),
        changed(store="/other"),
        changed(summary="another text"),
        changed(default=False),
        changed(tools=("cc",)),
        with_source(url="https://mirror.example.org/a.tar.gz"),
    ],
)
def test_limits_and_where_things_come_from_do_not_change_the_key(package: Package) -> None:
    assert key(package) == key()


def test_sources_in_another_order_are_another_build() -> None:
    # both are unpacked into one directory: for a path that both have, the later one wins
    assert key(changed(sources=(SOURCE, OTHER))) != key(changed(sources=(OTHER, SOURCE)))


def test_a_space_in_a_name_does_not_make_two_recipes_one() -> None:
    assert key(with_source(patches=("a b.patch",))) != key(with_source(patches=("a", "b.patch")))
    assert key(with_source(into="x None", strip=1)) != key(with_source(into="x", strip=None))


def test_the_key_does_not_depend_on_the_order_of_tables() -> None:
    turned = dict(reversed(PACKAGE.phases.items()))
    two = {"onig": "f" * 64, "zlib": "e" * 64}
    assert key(changed(phases=turned)) == key()
    assert key(dependencies=two) == key(dependencies=dict(reversed(two.items())))


def test_a_new_meaning_of_keys_makes_all_of_them_new() -> None:
    parts = key_parts(PACKAGE, **AROUND)
    assert key_of(msgspec.structs.replace(parts, format=parts.format + 1)) != key_of(parts)


def test_the_parts_survive_being_stored() -> None:
    parts = key_parts(PACKAGE, **AROUND)
    again = msgspec.json.decode(msgspec.json.encode(parts), type=KeyParts)
    assert again == parts
    assert key_of(again) == key_of(parts)


@given(st.dictionaries(st.text(), st.text(), max_size=4), st.dictionaries(st.text(), st.text(), max_size=4))
def test_two_keys_are_equal_exactly_when_the_dependencies_are(one: dict[str, str], two: dict[str, str]) -> None:
    assert (key(dependencies=one) == key(dependencies=two)) == (one == two)
    assert len(key(dependencies=one)) == 64
