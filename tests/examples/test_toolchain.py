"""`examples/toolchain`: the compiler wrapper that it writes, and what it says when it is not run by `make run`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "examples/toolchain"


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("toolchain", str(SCRIPT))
    spec = importlib.util.spec_from_loader("toolchain", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_wrapper_fills_the_private_cache_once_and_passes_the_arguments_on(
    toolchain: ModuleType, tmp_path: Path
) -> None:
    warm, zig, home = tmp_path / "warm cache", tmp_path / "zig", tmp_path / "home"
    warm.mkdir()
    (warm / "libc++.a").write_text("warm")
    home.mkdir()
    zig.write_text('#!/bin/sh\nprintf "%s|" "$ZIG_GLOBAL_CACHE_DIR" "$@"\n')
    zig.chmod(0o755)
    wrapper = tmp_path / "c++"
    toolchain.write_script(wrapper, toolchain.WRAPPER.format(warm=shlex.quote(str(warm)), zig=shlex.quote(str(zig))))

    def run() -> str:
        environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            [wrapper, "-c", "a b.cc"], env=environ, stdout=subprocess.PIPE, text=True, check=True, timeout=30
        ).stdout

    cache = home / ".cache/zig"
    assert run() == f"{cache}|c++|-O1|-c|a b.cc|"
    assert (cache / "libc++.a").read_text() == "warm"
    (cache / "libc++.a").write_text("changed by a build")
    run()
    assert (cache / "libc++.a").read_text() == "changed by a build"
    assert [path.name for path in cache.parent.iterdir()] == ["zig"]


def test_a_compiler_that_does_not_work_is_not_taken_for_one_that_does(toolchain: ModuleType, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    toolchain.write_script(broken, "#!/bin/sh\necho 'no such target' >&2\nexit 3\n")
    assert "status 3: no such target" in toolchain.compiles(broken, tmp_path)
    assert "No such file" in toolchain.compiles(tmp_path / "missing", tmp_path)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler is installed")
def test_a_compiler_that_works_is_recognised(toolchain: ModuleType, tmp_path: Path) -> None:
    assert toolchain.compiles(Path(shutil.which("c++") or ""), tmp_path) == ""


def test_it_refuses_to_install_anything_outside_a_virtual_environment() -> None:
    base = Path(sys.base_prefix) / "bin" / "python3"
    ran = subprocess.run([base, SCRIPT], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "virtual environment" in ran.stderr
