"""What a file is for, told by its path, by what it says of itself and by `.gitattributes`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from buildd.repos.ignore import IgnoreFile

SOURCE, TEST, VENDORED, GENERATED, EXAMPLE, DOCUMENTATION, CONFIGURATION = range(7)
ROLES = ("source", "test", "vendored", "generated", "example", "documentation", "configuration")
WEIGHTS = (1.0, 0.05, 0.02, 0.05, 0.1, 0.1, 0.2)
"""Of what a file defines, by role."""
_TELEPORTS = (1.0, 0.3, 0.02, 0.05, 0.3, 0.1, 0.2)
"""Of a file as a place to begin at: tests and examples show what others use."""

_DIRECTORIES = {
    VENDORED: """vendor vendored _vendor third_party third-party thirdparty 3rdparty 3rd-party node_modules
        bower_components godeps external externals extern site-packages""",
    TEST: """test tests testing spec specs __tests__ __mocks__ testdata test_data test-data testfixtures fixtures e2e
        mock mocks testsuite integrationtest unittest functionaltest androidtest commontest jvmtest iostest testutil
        testutils test_utils test-utils""",
    EXAMPLE: """example examples sample samples demo demos tutorial tutorials playground quickstart benchmark benchmarks
        benches bench jmh-benchmarks""",
    DOCUMENTATION: "doc docs documentation man site",
    GENERATED: "generated __generated__",
}
_BY_DIRECTORY = {name.encode(): role for role, names in _DIRECTORIES.items() for name in names.split()}
_TEST_DIRECTORY = re.compile(rb"tests?[-_].+|.+[-_]tests?")
_STRENGTH = (GENERATED, VENDORED, TEST, EXAMPLE, DOCUMENTATION, CONFIGURATION)
"""Of several that apply the first one counts."""
_SUFFIXES = {
    DOCUMENTATION: "md mdx markdown rst adoc asciidoc txt org tex texi pod htm html 1 2 3 4 5 6 7 8 9",
    CONFIGURATION: """json json5 yml yaml toml ini cfg conf config properties xml lock plist env service gradle csproj
        sln cmake mk bazel bzl in""",
}
_BY_SUFFIX = {suffix.encode(): role for role, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_GENERATED_NAMES = frozenset(
    b"""cargo.lock composer.lock gemfile.lock go.sum package-lock.json pnpm-lock.yaml poetry.lock uv.lock
    yarn.lock""".split()
)
_GENERATED = re.compile(
    rb"zz_generated.*|.*(?:\.pb\.(?:go|cc|h|swift|gw\.go)|_pb2(?:_grpc)?\.pyi?|[._-]generated\.\w+|\.g\.(?:cs|dart)"
    rb"|\.designer\.cs|[.-]min\.(?:js|css)|_string\.go|bindata\.go|\.js\.map)"
)
_VENDORED = re.compile(rb"jquery.*\.js|gradlew(?:\.bat)?")
_TEST = re.compile(
    rb"(?:test[_-].+|tests?|conftest|testing|test_?utils?|test_?helpers?)\.\w+|.+[_.-](?:tests?|specs?|e2e)\.\w+"
)
_TEST_CAMEL = re.compile(
    rb".*[a-z0-9](?:Tests?|TestCase|IT|Spec|Specs|TestUtils?|TestBase)\.(?:java|kt|scala|swift|cs|php|groovy)"
)
_DOCUMENTATION = re.compile(
    rb"(?:readme|licen[cs]e|copying|changes|changelog|news|authors|contributors|history|notice|unlicense|maintainers"
    rb"|contributing|codeowners|owners|todo|install).*"
)
_CONFIGURATION = re.compile(
    rb"\..+|(?:dockerfile|makefile|cmakelists\.txt|build|workspace|jenkinsfile|meson\.build|configure).*"
)
_ENTRY = re.compile(
    rb"__main__\.py|main\.\w+|lib\.rs|app\.\w+|cli\.\w+|index\.[jt]sx?|program\.cs|application\.\w+|server\.\w+"
)
_TOP = re.compile(
    rb"readme.*|pyproject\.toml|setup\.(?:cfg|py)|package\.json|cargo\.toml|go\.mod|pom\.xml|build\.gradle(?:\.kts)?"
    rb"|settings\.gradle(?:\.kts)?|cmakelists\.txt|makefile|meson\.build|composer\.json|gemfile|.+\.gemspec|package\.swift"
    rb"|build\.sbt"
)


_TOP_WEIGHT, _ENTRY_FACTOR, _NEAR_TOP = 3.0, 4.0, 3.0


def role_of(path: bytes, *, is_code: bool, says_generated: bool) -> int:
    directory, _, name = path.rpartition(b"/")
    by_directory, small = _role_of_directory(directory), name.lower()
    found = {by_directory}
    if says_generated or small in _GENERATED_NAMES or _GENERATED.fullmatch(small):
        found.add(GENERATED)
    elif _VENDORED.fullmatch(small):
        found.add(VENDORED)
    elif _TEST.fullmatch(small) or _TEST_CAMEL.fullmatch(name):
        found.add(TEST)
    elif not is_code:
        found.add(_BY_SUFFIX.get(small.rpartition(b".")[2], SOURCE))
        if _DOCUMENTATION.fullmatch(small):
            found.add(DOCUMENTATION)
        elif _CONFIGURATION.fullmatch(small):
            found.add(CONFIGURATION)
    return next((role for role in _STRENGTH if role in found), SOURCE)


@lru_cache(maxsize=1 << 12)
def _role_of_directory(directory: bytes) -> int:
    found = set()
    for part in directory.lower().split(b"/"):
        if part in _BY_DIRECTORY:
            found.add(_BY_DIRECTORY[part])
        elif _TEST_DIRECTORY.fullmatch(part):
            found.add(TEST)
        elif part.startswith(b"."):
            found.add(CONFIGURATION)
    return next((role for role in _STRENGTH if role in found), SOURCE)


def teleport_of(path: bytes, role: int) -> float:
    """How likely a reader starts at this file, before anything is known of what leans on it."""
    if b"/" not in path and _TOP.fullmatch(path.lower()):
        return _TOP_WEIGHT
    weight = _TELEPORTS[role] * (1 + _NEAR_TOP / (1 + path.count(b"/")))
    if role == SOURCE and _ENTRY.fullmatch(path.rpartition(b"/")[2].lower()):
        weight *= _ENTRY_FACTOR
    return weight


class Attributes:
    """What the `.gitattributes` files of a tree say about roles."""

    _NAMES = (
        (b"linguist-vendored", VENDORED),
        (b"linguist-generated", GENERATED),
        (b"linguist-documentation", DOCUMENTATION),
    )

    def __init__(self, files: Iterable[tuple[bytes, bytes]]) -> None:
        """Of path and content of each."""
        self._rules: list[tuple[bytes, IgnoreFile, int | None]] = []
        for path, content in sorted(files):
            directory = path[: len(path) - len(b".gitattributes")]
            for line in content.split(b"\n"):
                words = line.split()
                if len(words) < 2 or words[0].startswith(b"#"):
                    continue
                for name, role in self._NAMES:
                    if name in words[1:] or name + b"=true" in words[1:]:
                        self._rules.append((directory, IgnoreFile(words[0]), role))
                    elif b"-" + name in words[1:] or name + b"=false" in words[1:]:
                        self._rules.append((directory, IgnoreFile(words[0]), None))

    def role(self, path: bytes, otherwise: int) -> int:
        role = otherwise
        for directory, rule, said in self._rules:  # the last one that matches counts
            if path.startswith(directory) and rule.match(path[len(directory) :], False):
                role = said if said is not None else SOURCE if otherwise in (VENDORED, GENERATED) else otherwise
        return role
