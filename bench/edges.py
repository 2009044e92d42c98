"""The same packages for ninja and make: an edge each, that depends on the package's two files and on other edges.

Both files name the same outputs; ninja makes them, once, so that its log is that of a real build. After that
neither has anything to do, which is the moment that they are measured at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.daemon import BenchError
from bench.monorepo import RECIPE, SOURCE, directory_of
from bench.packages import GIT_ENVIRONMENT, Recipe

NINJA = ("ninja",)
MAKE = ("make", "-rR")
_IDLE = {NINJA: "ninja: no work to do.", MAKE: "make: Nothing to be done for 'all'."}
_LIMIT_S = 900.0


def write_edges(directory: Path, repository: Path, recipes: Sequence[Recipe]) -> Path:
    """Make `directory` one in which NINJA and MAKE find everything up to date. Raises BenchError."""
    for program, *_ in _IDLE:
        if shutil.which(program) is None:
            raise BenchError(f"{program} is not installed, and without it there is nothing to compare with")
    directory.mkdir()
    sources = os.path.relpath(repository, directory)
    ninja = ["rule package", "  command = cp $source $out"]
    make = [f"all: {' '.join(map(_output, recipes))}", ".PHONY: all"]
    outputs = {recipe.name: _output(recipe) for recipe in recipes}
    for recipe in recipes:
        files = [f"{sources}/{directory_of(recipe)}/{name}" for name in (SOURCE, RECIPE)]
        inputs = " ".join([*files, *(outputs[name] for name in recipe.depends)])
        ninja += [f"build {outputs[recipe.name]}: package {inputs}", f"  source = {files[0]}"]
        make += [f"{outputs[recipe.name]}: {inputs}", "\tcp $< $@"]
    (directory / "build.ninja").write_text("\n".join(ninja) + "\n")
    (directory / "Makefile").write_text("\n".join(make) + "\n")
    _run(NINJA, directory)
    check_idle(directory)
    return directory


def check_idle(directory: Path) -> None:
    """Make sure that both say that there is nothing to do. Raises BenchError."""
    for command, expected in _IDLE.items():
        said = _run(command, directory).strip()
        if said != expected:
            raise BenchError(f"{command[0]} should have nothing to do in {directory}, and says: {said[-500:]}")


def _output(recipe: Recipe) -> str:
    return f"out/{directory_of(recipe)}"


def _run(command: Sequence[str], directory: Path) -> str:
    ran = subprocess.run(command, cwd=directory, env=GIT_ENVIRONMENT, capture_output=True, text=True, timeout=_LIMIT_S)
    if ran.returncode != 0:
        raise BenchError(f"{command[0]} ended with {ran.returncode}:\n{ran.stdout[-1000:]}{ran.stderr[-1000:]}")
    return ran.stdout
