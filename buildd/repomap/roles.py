"""What a file is for, told by its path, by what it says of itself and by `.gitattributes`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from buildd.repos.ignore import IgnoreFile

SOURCE, TEST, VENDORED, GENERATED, EXAMPLE, DOCUMENTATION, CONFIGURATION = range(7)
ROLES = ("source", "test", "vendored", "generated", "example", "documentation", "configuration")
WEIGHTS = (1.0, 0.05, 0.02, 0.05, 0.1, 0.1, 0.2)
"""Of what a file defines, by role."""

_FLAGS = re.IGNORECASE


def _directories(names: str) -> str:
    return rf"(?:^|/)(?:{names})/"


_GENERATED = re.compile(
    rb"\.pb\.(?:go|cc|h|swift|gw\.go)$|_pb2(?:_grpc)?\.pyi?$|(?:^|/)zz_generated|[._-]generated\.\w+$|\.g\.(?:cs|dart)$"
    rb"|\.designer\.cs$|[.-]min\.(?:js|css)$|(?:^|/)generated/|(?:^|/)__generated__/|_string\.go$|bindata\.go$"
    rb"|(?:^|/)(?:package-lock\.json|yarn\.lock|pnpm-lock\.yaml|Cargo\.lock|go\.sum|poetry\.lock|Gemfile\.lock|composer\.lock"
    rb"|uv\.lock)$|\.js\.map$",
    _FLAGS,
)
_VENDORED = re.compile(
    _directories(
        "vendor|vendored|_vendor|third[_-]?party|3rd-?party|node_modules|bower_components|godeps|externals?|extern|"
        "site-packages|contrib/bundled|gradle/wrapper"
    ).encode()
    + rb"|(?:^|/)jquery[^/]*\.js$|(?:^|/)gradlew(?:\.bat)?$",
    _FLAGS,
)
_TEST = re.compile(
    _directories(
        r"tests?|testing|specs?|__tests__|__mocks__|test[_-]?data|testfixtures|fixtures|e2e|mocks?|testsuite|test[-_]\w+|\w+[-_]tests?"
        r"|(?:integration|unit|functional|android|common|jvm|ios)test|test[-_]?utils?"
    ).encode()
    + rb"|(?:^|/)(?:test[_-][^/]+|tests?|conftest|testing|test_?utils?|test_?helpers?)\.\w+$"
    rb"|[^/][_.-](?:tests?|specs?|e2e)\.\w+$",
    _FLAGS,
)
_TEST_CAMEL = re.compile(rb"[a-z0-9](?:Tests?|TestCase|IT|Spec|Specs|TestUtils?|TestBase)\.(?:java|kt|scala|swift|cs|php|groovy)$")
_EXAMPLE = re.compile(
    _directories(
        "examples?|samples?|demos?|tutorials?|playground|quickstart|benchmarks?|benches|bench|[a-z]+-examples?|jmh-benchmarks"
    ).encode(),
    _FLAGS,
)
_DOCUMENTATION = re.compile(
    rb"\.(?:md|mdx|markdown|rst|adoc|asciidoc|txt|org|tex|texi|pod|[1-9]|1in|html?)$|(?:^|/)(?:docs?|documentation|man|site)/"
    rb"|(?:^|/)(?:README|LICEN[CS]E|COPYING|CHANGE(?:S|LOG)|NEWS|AUTHORS|CONTRIBUTORS|HISTORY|NOTICE|UNLICENSE|MAINTAINERS"
    rb"|CONTRIBUTING|CODEOWNERS|OWNERS|TODO|INSTALL)[^/]*$",
    _FLAGS,
)
_CONFIGURATION = re.compile(
    rb"\.(?:json5?|ya?ml|toml|ini|cfg|conf|config|properties|xml|lock|plist|editorconfig|env|service|gradle|csproj|sln|cmake|mk"
    rb"|bazel|bzl|gitignore|gitattributes|in)$|(?:^|/)\.[^/]+(?:/|$)|(?:^|/)(?:Dockerfile|Makefile|CMakeLists\.txt|BUILD|WORKSPACE|Jenkinsfile"
    rb"|meson\.build|configure)[^/]*$",
    _FLAGS,
)
_ENTRY = re.compile(
    rb"(?:^|/)(?:__main__\.py|main\.\w+|lib\.rs|app\.\w+|cli\.\w+|index\.[jt]sx?|cmd/[^/]+\.go|Program\.cs|Application\.\w+"
    rb"|server\.\w+)$",
    _FLAGS,
)
_TOP = re.compile(
    rb"(?:README[^/]*|pyproject\.toml|setup\.(?:cfg|py)|package\.json|Cargo\.toml|go\.mod|pom\.xml|build\.gradle(?:\.kts)?"
    rb"|settings\.gradle(?:\.kts)?|CMakeLists\.txt|Makefile|meson\.build|composer\.json|Gemfile|[^/]+\.gemspec|Package\.swift|build\.sbt)",
    _FLAGS,
)


def role_of(path: bytes, *, is_code: bool, says_generated: bool) -> int:
    if says_generated or _GENERATED.search(path):
        return GENERATED
    if _VENDORED.search(path):
        return VENDORED
    if _TEST.search(path) or _TEST_CAMEL.search(path):
        return TEST
    if _EXAMPLE.search(path):
        return EXAMPLE
    if _DOCUMENTATION.search(path):
        return DOCUMENTATION
    if not is_code and _CONFIGURATION.search(path):
        return CONFIGURATION
    return SOURCE


def teleport_of(path: bytes, role: int) -> float:
    """How likely a reader starts at this file, before anything is known of what leans on it."""
    weight = WEIGHTS[role]
    if _TOP.fullmatch(path):
        return 3.0
    if role == SOURCE and _ENTRY.search(path):
        weight *= 4
    return weight


class Attributes:
    """What the `.gitattributes` files of a tree say about roles."""

    _NAMES = ((b"linguist-vendored", VENDORED), (b"linguist-generated", GENERATED), (b"linguist-documentation", DOCUMENTATION))

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
