"""`.gitignore` against git's own judgement."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from repos_servers import GIT_ENV, git

from buildd.repos.ignore import IgnoreFile

PATHS = [
    *(b"a", b"ab", b"abc", b"b", b"a.o", b"x.o", b"A", b"a b", b"a ", b"#a", b"!a", b"a\\b", b"a]", b"-", b"[a]"),
    *(b"d/a", b"d/x.o", b"d/e/a", b"d/e/f/a", b"d/abc/a", b"abc/d/a", b"e/d", b"foo/bar/baz", b"a1", b"a\xe9"),
]
PATTERNS = [
    *("a", "/a", "*.o", "d/", "d/*", "/d/a", "d/**", "**/a", "**/d/a", "d/**/a", "a*", "*b*", "?", "a?c", "**"),
    *("[ab]", "[!a]", "[^a]", "[a-c]*", "[]]", "[]-]", "[[:upper:]]", "[[:digit:]a]1", "a[", "\\#a", "#a", "\\!a"),
    *("a\\ ", "a ", "a\\\\b", "a\\", "!a", "!*.o", "foo/**/baz", "foo/*/baz", "a/", "*/a", "/*", "!/d", "***", "d/**/"),
    *("[z-a]", "[a-]", "[\\]]", "a**c", "*", "**/", "/**", "/", "", "[[:foo:]]", "\\a", "d//a", "*a*b*c"),
]


def judged_by_git(repository: Path, paths: list[bytes]) -> set[bytes]:
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=repository, env=GIT_ENV, input=b"\0".join(paths), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return set(done.stdout.split(b"\0")) - {b""}


def judged_by_us(content: bytes, paths: list[bytes]) -> set[bytes]:
    rules, found = IgnoreFile(content), set()
    for path in paths:
        parts = path.split(b"/")
        for depth in range(1, len(parts) + 1):
            if rules.match(b"/".join(parts[:depth]), depth < len(parts)):
                found.add(path)
                break
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ignore")
    git("init", "-q", path)
    return path


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_kind_of_pattern_means_what_git_means(repository: Path, pattern: str) -> None:
    (repository / ".gitignore").write_text(pattern + "\n")
    assert judged_by_us(pattern.encode() + b"\n", PATHS) == judged_by_git(repository, PATHS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(PATTERNS) | st.text("ab*?/[]!\\-d .", max_size=8), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
)
def test_files_of_patterns_mean_what_git_means(repository: Path, patterns: list[str], end: str) -> None:
    if any("[" in pattern and "/" in pattern for pattern in patterns):
        return  # a slash within brackets is undefined in fnmatch(3), and not taken for a member here
    content = end.join([*patterns, ""]).encode()
    (repository / ".gitignore").write_bytes(content)
    assert judged_by_us(content, PATHS) == judged_by_git(repository, PATHS)


def test_a_hostile_pattern_takes_no_time() -> None:
    rules = IgnoreFile(b"*a" * 60 + b"b\n" + b"**/a/" * 50 + b"b\n" + b"**/a/" * 4 + b"b\n" + b"[" * 5000)
    start = time.monotonic()
    assert rules.match(b"a/" * 60 + b"a" * 250, False) is None
    assert time.monotonic() - start < 2
