"""The example release is packed to the same bytes everywhere, and those are what the recipe asks for."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def pack(script: Path, destination: Path) -> Path:
    subprocess.run([sys.executable, script, destination], check=True, capture_output=True, timeout=60)
    (tarball,) = destination.iterdir()
    return tarball


def test_the_tarball_has_the_hash_and_the_name_in_the_recipe(tmp_path: Path) -> None:
    recipes = tomllib.loads((EXAMPLES / "workspace/buildd.toml").read_text())
    (source,) = recipes["package"]["roman"]["source"]
    tarball = pack(EXAMPLES / "distfiles/pack", tmp_path / "out")
    assert hashlib.sha256(tarball.read_bytes()).hexdigest() == source["sha256"]
    assert source["url"].endswith(f"/{tarball.name}")


def test_times_modes_and_owners_of_the_checkout_do_not_matter(tmp_path: Path) -> None:
    first = pack(EXAMPLES / "distfiles/pack", tmp_path / "first").read_bytes()
    copy = tmp_path / "distfiles"
    shutil.copytree(EXAMPLES / "distfiles", copy)
    for file in copy.rglob("*.c"):
        file.chmod(0o600)
        os.utime(file, (1, 1))
    assert pack(copy / "pack", tmp_path / "second").read_bytes() == first
