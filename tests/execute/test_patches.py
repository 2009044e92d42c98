"""Patches: which ones are meant, and that they are applied exactly or not at all, by `patch` and by `git`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from buildd.errors import BuildFailure
from buildd.execute.patches import Patch, patch_list, patch_script

EPOCH = 315_532_800

DIFF = """\
--- a/hello.c
+++ b/hello.c
@@ -2,5 +2,5 @@
 one
 two
-three
+THREE
 four
 five
"""
HELLO = "zero\none\ntwo\nthree\nfour\nfive\n"


@pytest.fixture
def srcdir(tmp_path: Path) -> Path:
    path = tmp_path / "src dir"
    (path / "patches").mkdir(parents=True)
    (path / "hello.c").write_text(HELLO)
    (path / "patches/01.patch").write_text(DIFF)
    return path


@pytest.fixture(params=["patch", "git"])
def apply(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path, list[Patch]], tuple[int, str]]:
    """Run the text as a phase is run, with only one of the two tools in PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (request.param, "find", "touch"):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed; buildd uses whichever of patch and git there is")
        (tools / name).symlink_to(found)

    def run(srcdir: Path, patches: list[Patch]) -> tuple[int, str]:
        for path in srcdir.rglob("*"):
            os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", patch_script(patches)],
            cwd=srcdir,
            env={"PATH": str(tools), "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        return done.returncode, done.stdout

    return run


Apply = Callable[[Path, list[Patch]], tuple[int, str]]


def test_a_patch_is_applied_and_nothing_else_is_left(apply: Apply, srcdir: Path) -> None:
    (srcdir / "untouched").touch()
    status, output = apply(srcdir, patch_list(srcdir, ["patches/01.patch"]))
    assert status == 0, output
    assert "applying patches/01.patch" in output
    assert (srcdir / "hello.c").read_text() == HELLO.replace("three", "THREE")
    assert sorted(path.name for path in srcdir.iterdir()) == ["hello.c", "patches", "untouched"]
    assert (srcdir / "hello.c").stat().st_mtime == EPOCH + 1
    assert (srcdir / "untouched").stat().st_mtime == EPOCH


def test_an_offset_is_fine_but_fuzz_is_not(apply: Apply, srcdir: Path) -> None:
    (srcdir / "hello.c").write_text("more\n" * 20 + HELLO)
    assert apply(srcdir, patch_list(srcdir, ["patches/01.patch"]))[0] == 0
    (srcdir / "hello.c").write_text(HELLO.replace("five", "FIVE"))
    status, output = apply(srcdir, patch_list(srcdir, ["patches/01.patch"]))
    assert status == 1
    assert "the patch patches/01.patch does not apply" in output
    assert sorted(path.name for path in srcdir.iterdir()) == ["hello.c", "patches"]


def test_the_first_failure_stops_and_is_named(apply: Apply, srcdir: Path) -> None:
    (srcdir / "patches/02.patch").write_text(DIFF.replace("three", "never"))
    (srcdir / "patches/03.patch").write_text(DIFF.replace("three", "THREE").replace("+THREE", "+drei"))
    patches = patch_list(srcdir, ["patches/01.patch", "patches/02.patch", "patches/03.patch"])
    status, output = apply(srcdir, patches)
    assert status == 1
    assert "the patch patches/02.patch does not apply" in output
    assert "03.patch" not in output
    assert "THREE" in (srcdir / "hello.c").read_text()


def test_a_patch_that_is_applied_already_is_a_failure(apply: Apply, srcdir: Path) -> None:
    patches = patch_list(srcdir, ["patches/01.patch", "patches/01.patch"])
    status, output = apply(srcdir, patches)
    assert status == 1, output
    assert "THREE" in (srcdir / "hello.c").read_text()


def test_names_are_quoted_for_the_shell_and_never_options(apply: Apply, srcdir: Path) -> None:
    for name in ["-p9 $(touch pwned) ' \"", "`touch pwned`"]:
        (srcdir / name).write_text(DIFF)
        (srcdir / "hello.c").write_text(HELLO)
        status, output = apply(srcdir, patch_list(srcdir, [name]))
        assert status == 0, output
    assert not (srcdir / "pwned").exists()


def test_patches_of_a_source_are_applied_where_it_was_put(apply: Apply, srcdir: Path) -> None:
    (srcdir / "-third party").mkdir()
    (srcdir / "-third party/hello.c").write_text(HELLO)
    patches = patch_list(srcdir, ["patches/01.patch"], directory="-third party")
    status, output = apply(srcdir, patches)
    assert status == 0, output
    assert "THREE" in (srcdir / "-third party/hello.c").read_text()
    assert "THREE" not in (srcdir / "hello.c").read_text()


def test_strip_levels_of_a_series_are_used(apply: Apply, srcdir: Path) -> None:
    (srcdir / "patches/00.patch").write_text(DIFF.replace("a/hello.c", "hello.c").replace("b/hello.c", "hello.c"))
    (srcdir / "patches/series").write_text("00.patch -p0\n")
    status, output = apply(srcdir, patch_list(srcdir, ["patches"]))
    assert status == 0, output


def test_git_applies_below_a_repository_too(apply: Apply, srcdir: Path) -> None:
    subprocess.run(["git", "init", "-q", srcdir.parent], check=True, timeout=30)
    status, output = apply(srcdir, patch_list(srcdir, ["patches/01.patch"]))
    assert status == 0, output
    assert "THREE" in (srcdir / "hello.c").read_text()


def test_without_either_tool_the_error_says_so(srcdir: Path, tmp_path: Path) -> None:
    text = patch_script(patch_list(srcdir, ["patches/01.patch"]))
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", text],
        cwd=srcdir,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "neither patch nor git is installed" in done.stderr


def test_no_patches_are_no_text() -> None:
    assert patch_script([]) == ""


def test_a_series_is_read_as_quilt_reads_it(srcdir: Path) -> None:
    (srcdir / "patches/sub").mkdir()
    (srcdir / "patches/sub/02.patch").touch()
    (srcdir / "patches/series").write_text("# first\n\n01.patch\nsub/02.patch -p2 # why\n")
    expected = [Patch(path="patches/01.patch", strip=1), Patch(path="patches/sub/02.patch", strip=2)]
    assert patch_list(srcdir, ["patches"]) == expected
    assert patch_list(srcdir, ["./patches/series"]) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../outside.patch", "is not the path of a patch inside the package"),
        ("/etc/passwd", "is not the path of a patch inside the package"),
        (".", "is not the path of a patch inside the package"),
        ("a\nb", "is not the path of a patch inside the package"),
        ("nothing", "there is no patch at 'nothing'"),
        ("hello.c/x", "there is no patch at 'hello.c/x'"),
        ("empty", "there is no patch at 'empty/series'"),
        ("link.patch", "lies behind a symbolic link"),
        ("linked/01.patch", "lies behind a symbolic link"),
        ("fifo", "is neither a patch nor a directory"),
        ("escape", "is not the path of a patch inside the package"),
        ("option", "line 1: '-R' is not understood"),
    ],
)
def test_what_is_no_patch_of_the_package_is_refused(entry: str, message: str, srcdir: Path) -> None:
    (srcdir.parent / "outside.patch").write_text(DIFF)
    (srcdir / "empty").mkdir()
    (srcdir / "link.patch").symlink_to("../outside.patch")
    (srcdir / "linked").symlink_to("patches")
    os.mkfifo(srcdir / "fifo")
    for name, line in [("escape", "../../outside.patch"), ("option", "x.patch -R")]:
        (srcdir / name).mkdir()
        (srcdir / name / "series").write_text(line)
    with pytest.raises(BuildFailure, match=message) as caught:
        patch_list(srcdir, [entry])
    assert caught.value.reason == "phase_failed"
