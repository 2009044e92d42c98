"""The recipes of the examples are understood by the native provider and hang together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from buildd.model import Package
from buildd.recipes.native import Origin, discover

ROOT = Path(__file__).parents[2]


class OneFile:
    """A tree whose only recipe is `text`; every directory that a recipe names is there."""

    def __init__(self, text: str) -> None:
        self._text = text

    def files_named(self, name: str) -> Iterable[tuple[str, str]]:
        return [(name, "blob")]

    def read(self, blob: str, limit: int) -> bytes:
        return self._text.encode()

    def subtree(self, path: str) -> str:
        return f"tree of {path}"


def packages(path: str) -> dict[str, Package]:
    tree = OneFile((ROOT / path).read_text())
    found = discover(tree, Origin(repository="examples", store="/"))
    return {p.name: p for packages in found.values() for p in packages}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("buildd.toml", {"buildd"}),
        (
            "examples/workspace/buildd.toml",
            {"libtally", "tally", "histogram", "tally-report", "roman", "broken"},
        ),
        (
            "examples/upstream/recipes.toml",
            {"zlib", "libpng", "oniguruma", "jq", "lua", "sqlite"},
        ),
    ],
)
def test_every_recipe_is_valid_and_its_dependencies_are_there(path: str, expected: set[str]) -> None:
    found = packages(path)
    assert found.keys() == expected
    for package in found.values():
        assert set(package.depends) <= expected
        assert package.tools, "a machine without the tools would report a failure instead of the reason"


def test_only_the_package_that_fails_on_purpose_is_kept_out_of_default_runs() -> None:
    assert {p.name for p in packages("examples/workspace/buildd.toml").values() if not p.default} == {"broken"}


def test_the_paths_of_the_workspace_exist_and_hold_the_patches() -> None:
    for package in packages("examples/workspace/buildd.toml").values():
        directory = ROOT / "examples/workspace" / package.path
        assert directory.is_dir()
        for source in package.sources:
            assert all((directory / patch).is_file() for patch in source.patches)


def test_the_projects_recipe_has_the_version_of_the_project() -> None:
    import buildd

    assert packages("buildd.toml")["buildd"].version == buildd.__version__
