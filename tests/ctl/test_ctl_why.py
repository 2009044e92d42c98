"""`why` and `plan --why`: what is asked for, and that the answer reads as what a person wants to know."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ctl_peer import Ctl, Peer

from buildd import protocol as p
from buildd.errors import NotFound

BUILD = "3fa2b1c0-0000-4000-8000-000000000000"
DAY = 86400.0
MODIFIED = p.FileChange(
    path="src/inflate.c",
    change="modified",
    old_blob="1a2b3c4d" + "0" * 32,
    new_blob="5d6e7f80" + "0" * 32,
    old_mode="100644",
    new_mode="100644",
)


def verdict(state: str = "build", *causes: p.Cause, **fields: Any) -> p.PackageVerdict:
    given: dict[str, Any] = {
        "package": "zlib",
        "version": "1.3.1",
        "repository": "/r",
        "state": state,
        "build": BUILD,
        "built_at": time.time() - 2 * DAY - 60,
        "causes": causes,
    }
    return p.PackageVerdict(**(given | fields))


def source(*files: p.FileChange) -> p.Cause:
    return p.Cause(kind="source", old="a" * 40, new="b" * 40, message=f"source: {len(files)} modified", files=files)


def dependency(name: str, old: str | None, new: str | None, how: str) -> p.Cause:
    return p.Cause(kind="dependency", what=name, old=old, new=new, message=f"dependency {name}: {how}")


@pytest.fixture
def answer(peer: Peer) -> Any:
    """Have the peer answer `package.why` with this."""

    def set_answer(asked: p.PackageVerdict, *needed: p.PackageVerdict, notes: tuple[str, ...] = ()) -> None:
        result = p.WhyResult(verdict=asked, needed=needed, notes=notes)
        peer.package_why = lambda params: result  # type: ignore[attr-defined]

    return set_answer


# --- the question -----------------------------------------------------------------------------------------


def test_a_name_is_sent_as_it_is_even_where_a_directory_is_called_so(
    peer: Peer, ctl: Ctl, answer: Any, tmp_path: Path
) -> None:
    (tmp_path / "zlib").mkdir()
    answer(verdict("up_to_date"))
    assert ctl("why", "zlib").returncode == 0
    assert ctl("why", "zlib@1.3.1").returncode == 0
    assert [params.package for params in peer.calls("package.why")] == ["zlib", "zlib@1.3.1"]


def test_the_path_of_a_target_is_made_absolute(peer: Peer, ctl: Ctl, answer: Any, tmp_path: Path) -> None:
    answer(verdict("up_to_date"))
    for text in (".//zlib", "../x//zlib", "https://h/r.git@v1//zlib", "known//zlib"):
        assert ctl("why", text).returncode == 0
    assert [params.package for params in peer.calls("package.why")] == [
        f"{tmp_path}//zlib",
        f"{tmp_path.parent}/x//zlib",
        "https://h/r.git@v1//zlib",
        "known//zlib",
    ]


@pytest.mark.parametrize("text", [".", "./zlib", "/srv/zlib", "~/zlib", ""])
def test_a_path_without_a_package_is_wrong_usage(peer: Peer, ctl: Ctl, text: str) -> None:
    done = ctl("why", text)
    assert done.returncode == 2
    assert "//NAME" in done.stderr
    assert peer.calls("package.why") == []


def test_every_option_is_sent(peer: Peer, ctl: Ctl, answer: Any) -> None:
    answer(verdict("up_to_date"))
    ctl("why", "zlib", "--run", "7", "--worktree", "--strategy", "conservative", "--refresh")
    ctl("why", "zlib")
    assert peer.calls("package.why") == [
        p.WhyParams(package="zlib", run="7", worktree=True, strategy="conservative", refresh=True),
        p.WhyParams(package="zlib"),
    ]
    assert ctl("why", "zlib", "--strategy", "clever").returncode == 2


def test_what_is_not_found_has_its_own_exit_code(peer: Peer, ctl: Ctl) -> None:
    peer.failures["package.why"] = NotFound("zlib was never built", hint="say where it is")
    done = ctl("why", "zlib")
    assert done.returncode == 3
    assert done.stderr == "buildctl: zlib was never built\n  say where it is\n"


# --- the answer -------------------------------------------------------------------------------------------


def test_json_is_the_answer_as_it_came(ctl: Ctl, answer: Any) -> None:
    answer(verdict("build", source(MODIFIED)), notes=("this one",))
    done = ctl("why", "zlib", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["verdict"]["causes"][0]["files"][0]["path"] == "src/inflate.c"
    assert result["notes"] == ["this one"]


def test_what_is_up_to_date_names_the_build_that_answers_it(ctl: Ctl, answer: Any) -> None:
    answer(verdict("up_to_date"), notes=("zlib was built from 2 repositories",))
    done = ctl("why", "zlib")
    assert done.returncode == 0
    assert done.stdout == "zlib 1.3.1 is up to date: build 3fa2b1c0 (2 days ago) had the same key\n"
    assert done.stderr == "zlib was built from 2 repositories\n"
    assert ctl("why", "zlib", "--run", "7").stdout.startswith("zlib 1.3.1 was up to date: build 3fa2b1c0")


def test_a_changed_source_is_named_file_by_file(ctl: Ctl, answer: Any) -> None:
    def change(path: str, kind: Any, **fields: str) -> p.FileChange:
        given = {"old_blob": "1" * 40, "new_blob": "2" * 40, "old_mode": "100644", "new_mode": "100644"}
        return p.FileChange(path=path, change=kind, **(given | fields))

    added = p.FileChange(path="new.c", change="added", new_blob="5" * 40, new_mode="100644")
    removed = p.FileChange(path="old\x1b.c", change="removed", old_blob="6" * 40, old_mode="100644")
    answer(
        verdict(
            "build",
            source(
                MODIFIED,
                change("configure", "mode", new_blob="1" * 40, new_mode="100755"),
                change("b.c", "renamed", old_path="a.c", new_blob="1" * 40),
                change("link", "modified", new_mode="120000"),
                added,
                removed,
            ),
        )
    )
    assert ctl("why", "zlib").stdout.splitlines() == [
        "zlib 1.3.1 would be built: its source changed since build 3fa2b1c0 (2 days ago)",
        "  modified  src/inflate.c  1a2b3c4 -> 5d6e7f8",
        "  mode      configure      100644 -> 100755",
        "  renamed   a.c -> b.c",
        "  modified  link           1111111 -> 2222222  100644 -> 120000",
        "  added     new.c          5555555",
        "  removed   old\\x1b.c      6666666",
    ]


def test_of_many_files_some_are_shown_and_all_are_counted(ctl: Ctl, answer: Any) -> None:
    files = [p.FileChange(path=f"f{n:03}", change="added", new_blob="5" * 40) for n in range(60)]
    answer(verdict("build", source(*files)))
    lines = ctl("why", "zlib").stdout.splitlines()
    assert len(lines) == 52
    assert lines[-1] == "  … and 10 files more: --json has them"


def test_a_source_whose_files_are_not_known_says_so(ctl: Ctl, answer: Any) -> None:
    cause = p.Cause(kind="source", old="a" * 40, new="b" * 40, message="source: tree a -> b; no longer known")
    answer(verdict("build", cause))
    assert ctl("why", "zlib").stdout.splitlines()[1:] == ["  source: tree a -> b; no longer known"]


def test_several_causes_are_all_named(ctl: Ctl, answer: Any) -> None:
    causes = (
        source(MODIFIED),
        p.Cause(kind="recipe", what="build", old="make", new="make -s", message="phase build: `make` -> `make -s`"),
        p.Cause(kind="recipe", what="check", message="phase check: added `make check`"),
        p.Cause(kind="environment", what="os-release", message="environment, os-release: 1 -> 2"),
    )
    answer(verdict("build", *causes, built_at=time.time() - 3700))
    assert ctl("why", "zlib").stdout.splitlines() == [
        "zlib 1.3.1 would be built: its source changed, its recipe changed and its environment changed since build "
        "3fa2b1c0 (1 hour ago)",
        "  modified  src/inflate.c  1a2b3c4 -> 5d6e7f8",
        "  phase build: `make` -> `make -s`",
        "  phase check: added `make check`",
        "  environment, os-release: 1 -> 2",
    ]


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (p.Cause(kind="never_built", message="it was never built"), "would be built: it was never built"),
        (p.Cause(kind="artifact", message="its artifact 12 is gone"), "would be built: its artifact 12 is gone"),
        (p.Cause(kind="strategy", message="the strategy none …"), "would be built: the strategy none …"),
        (
            p.Cause(kind="version", message="version: 1 -> 2"),
            "would be built: its version changed since build 3fa2b1c0",
        ),
    ],
)
def test_what_needs_no_more_words_has_one_line(ctl: Ctl, answer: Any, cause: p.Cause, line: str) -> None:
    answer(verdict("build", cause, built_at=None))
    assert ctl("why", "zlib").stdout.splitlines()[0] == f"zlib 1.3.1 {line}"


def test_a_forced_build_of_a_run_is_told_in_the_past(ctl: Ctl, answer: Any) -> None:
    answer(verdict("build", p.Cause(kind="forced", message="it was forced")), notes=("run 7 built it as build 1",))
    done = ctl("why", "zlib", "--run", "latest")
    assert done.stdout == "zlib 1.3.1 was built: it was forced\n"
    assert done.stderr == "run 7 built it as build 1\n"


def test_an_ignored_package_says_why(ctl: Ctl, answer: Any) -> None:
    answer(verdict("ignored", p.Cause(kind="ignored", message="it needs cmake"), build=None, built_at=None))
    assert ctl("why", "zlib").stdout == "zlib 1.3.1 is ignored: it needs cmake\n"


def test_what_waits_for_a_dependency_leads_down_to_the_root(ctl: Ctl, answer: Any) -> None:
    root = verdict("build", source(MODIFIED), package="libc", version="2")
    middle = verdict("build", dependency("libc", "1", None, "would be built"), package="libm", version="3")
    asked = verdict("build", dependency("libm", "2", None, "would be built"))
    answer(asked, root, middle)
    assert ctl("why", "zlib").stdout.splitlines() == [
        "zlib 1.3.1 would be built if the output of libm or libc is not what it was for build 3fa2b1c0 (2 days ago)",
        "  dependency libm: would be built",
        "",
        "libm 3 would be built if the output of libc is not what it was for build 3fa2b1c0 (2 days ago)",
        "  dependency libc: would be built",
        "",
        "libc 2 would be built: its source changed since build 3fa2b1c0 (2 days ago)",
        "  modified  src/inflate.c  1a2b3c4 -> 5d6e7f8",
    ]


def test_what_is_certain_is_not_told_as_a_condition(ctl: Ctl, answer: Any) -> None:
    middle = verdict("build", dependency("libc", "1", "2", "output 1 -> 2"), package="libm", version="3")
    waiting = dependency("libm", "2", None, "would be built")
    answer(verdict("build", waiting), middle)
    assert ctl("why", "zlib").stdout.startswith("zlib 1.3.1 would be built: what it depends on changed since build")
    answer(verdict("build", source(MODIFIED), waiting), verdict("build", source(MODIFIED), package="libm"))
    lines = ctl("why", "zlib").stdout.splitlines()
    assert lines[0].startswith("zlib 1.3.1 would be built: its source changed since build")
    assert lines[2] == "  dependency libm: would be built"


def test_many_dependencies_are_counted_and_not_listed(ctl: Ctl, answer: Any) -> None:
    names = [f"lib{n}" for n in range(5)]
    below = [verdict("build", source(MODIFIED), package=name) for name in names]
    answer(verdict("build", *(dependency(name, "1", None, "would be built") for name in names)), *below)
    assert "if the output of any of 5 dependencies is not what it was" in ctl("why", "zlib").stdout.splitlines()[0]


def test_a_dependency_whose_output_changed_says_what_changed_it(ctl: Ctl, answer: Any) -> None:
    behind = verdict("up_to_date", source(MODIFIED), package="libm", version="3")
    answer(verdict("build", dependency("libm", "1" * 64, "2" * 64, "output 11111111 -> 22222222")), behind)
    assert ctl("why", "zlib").stdout.splitlines() == [
        "zlib 1.3.1 would be built: what it depends on changed since build 3fa2b1c0 (2 days ago)",
        "  dependency libm: output 11111111 -> 22222222",
        "",
        "libm 3 has another output since build 3fa2b1c0 (2 days ago): its source changed",
        "  modified  src/inflate.c  1a2b3c4 -> 5d6e7f8",
    ]


# --- plan --why -------------------------------------------------------------------------------------------


def planned(name: str, state: str | None, *causes: p.Cause, ignore: str = "") -> p.PlannedPackage:
    told = verdict(state, *causes, package=name) if state is not None else None
    return p.PlannedPackage(
        name=name, version="1", repository="r", path=name, tree="t", depends=(), wave=1, ignore=ignore, verdict=told
    )


def test_a_plan_says_what_would_be_built_and_the_first_cause(peer: Peer, ctl: Ctl, tmp_path: Path) -> None:
    peer.plan = p.PlanResult(
        packages=(
            planned("a", "up_to_date"),
            planned("b", "build", source(MODIFIED), p.Cause(kind="version", message="version: 1 -> 2")),
            planned("c", "build", p.Cause(kind="never_built", message="it was never built")),
            planned("d", "ignored", ignore="no cmake"),
        ),
        waves=1,
    )
    done = ctl("plan", ".", "--why", "--worktree", "--strategy", "none")
    assert done.stdout.splitlines() == [
        "wave 1",
        "  a 1  (up to date)",
        "  b 1  (build: source: 1 modified and 1 more)",
        "  c 1  (build: it was never built)",
        "  d 1  (ignored: no cmake)",
    ]
    assert done.stderr == "4 packages in 1 wave, 2 to be built\n"
    assert peer.calls("run.plan") == [
        p.PlanParams(targets=(str(tmp_path),), worktree=True, strategy="none", why=True),
    ]
    dot = ctl("plan", ".", "--why", "--dot").stdout
    assert '"b" [label="b 1", style=bold];' in dot
    assert '"a" [label="a 1"];' in dot


def test_a_plan_without_why_says_nothing_of_it(peer: Peer, ctl: Ctl) -> None:
    peer.plan = p.PlanResult(packages=(planned("a", None),), waves=1)
    done = ctl("plan", "known")
    assert (done.stdout, done.stderr) == ("wave 1\n  a 1\n", "1 package in 1 wave\n")
