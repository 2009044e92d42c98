"""A repository of thousands of small packages, made from a seed: what incremental starts are measured with.

`pkg/012/p01234` is a package of two files: its recipe, and a source that its only phase copies. Directories hold
100 packages. A package depends on up to three earlier ones, most of its own directory and some of the first one:
on 1.4 of them directly and on 10 in all, when there are 10,000. (Were all earlier ones as likely, it would be on
35 in all and on 260 at worst, and the first build were a benchmark of setting up dependencies.)
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.packages import Recipe, import_repository, recipe_lines

PER_DIRECTORY = 100
SOURCE = "main.c"
RECIPE = "buildd.toml"
_MOST_DEPENDENCIES = 3
_COMMON_SHARE = 0.1
"""How many of the dependencies are packages of the first directory."""
_SEED = 10_000


def draw_packages(count: int) -> list[Recipe]:
    """`count` packages, each after those it depends on."""
    rng = random.Random(_SEED)
    return [
        Recipe(name=(name := f"p{number:05}"), phases=_phases(name), depends=_depends(rng, number))
        for number in range(count)
    ]


def _depends(rng: random.Random, number: int) -> tuple[str, ...]:
    first = number - number % PER_DIRECTORY
    drawn: set[int] = set()
    for _ in range(rng.randint(0, _MOST_DEPENDENCIES)):
        if first and rng.random() < _COMMON_SHARE:
            drawn.add(rng.randrange(PER_DIRECTORY))
        elif number > first:
            drawn.add(rng.randrange(first, number))
    return tuple(f"p{other:05}" for other in sorted(drawn))


def _phases(name: str) -> dict[str, str]:
    return {"stage": f'install -D -m 644 {SOURCE} "$DESTDIR$PREFIX/share/{name}"'}


def directory_of(recipe: Recipe) -> str:
    """Where the package's two files are."""
    return f"pkg/{int(recipe.name[1:]) // PER_DIRECTORY:03}/{recipe.name}"


def write_monorepo(directory: Path, recipes: Iterable[Recipe]) -> Path:
    """A git repository at `directory` whose one commit holds the packages, checked out."""
    files: dict[str, str] = {}
    for recipe in recipes:
        files[f"{directory_of(recipe)}/{RECIPE}"] = "\n".join(recipe_lines(recipe)) + "\n"
        files[f"{directory_of(recipe)}/{SOURCE}"] = source_text(recipe, 0)
    return import_repository(directory, files)


def source_text(recipe: Recipe, version: int) -> str:
    """The source of a package; each version is another content of the same length."""
    functions = [f"int {recipe.name}_{number}(void) {{ return {number}; }}\n" for number in range(20)]
    return f"/* {recipe.name}, version {version:06} */\n" + "".join(functions)


def last_leaf(recipes: Sequence[Recipe]) -> Recipe:
    """The last package that nobody depends on and that depends on something."""
    needed = {name for recipe in recipes for name in recipe.depends}
    return next(recipe for recipe in reversed(recipes) if recipe.depends and recipe.name not in needed)
