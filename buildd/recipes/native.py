"""The native provider: packages described by `buildd.toml` files, as buildd-recipe(5) documents them.

Recipes are untrusted input. Everything that becomes a path, a command's argument or a name on a screen is
checked here, once, and each complaint names the file, the package and the key.
"""

from __future__ import annotations

import difflib
import posixpath
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec
from msgspec import Meta, Struct

from buildd.config import Bytes, Seconds, decode_quantity, parse_seconds
from buildd.errors import InvalidInput, NotFound
from buildd.model import PHASES, Limits, Package, PhaseLimits, Source
from buildd.recipes.presets import PRESETS

RECIPE_FILE = "buildd.toml"
MAX_RECIPE_BYTES = 4 << 20
MAX_PHASE_BYTES = 64 << 10
"""A phase travels as one argument of execve(2), which takes 128 KiB."""
MAX_DOTS = 64
"""In one line of a recipe file, not counting those that follow another one."""
FORMATS = ("tar",)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.~:_-]{0,127}")
_TOOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
_DEPENDENCY = re.compile(rf"(?:[^\x00-\x20]{{1,1024}}//)?{_NAME.pattern}")
_DOT = re.compile(rb"\.[^.]")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Tree(Protocol):
    """The files of a revision, as a provider reads them."""

    def files_named(self, name: str) -> Iterable[tuple[str, str]]:
        """Path and blob id of every file called `name`, in path order."""

    def read(self, blob: str, limit: int) -> bytes:
        """Content of a blob; InvalidInput when it is larger than `limit` bytes."""

    def subtree(self, path: str) -> str:
        """Tree id of a directory; NotFound when there is none."""


class Origin(Struct, frozen=True, kw_only=True):
    """Where packages were found; see the fields of the same names in `Package`."""

    repository: str
    store: str


class _SourceTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    sha256: str
    filename: str = ""
    into: str = "."
    strip: int | None = None
    extract: bool = True
    patches: tuple[str, ...] = ()


class _PhaseLimitsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    timeout: Seconds | None = None
    silence: Seconds | None = None


class _LimitsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    timeout: Seconds | None = None
    silence: Seconds | None = None
    log: Bytes | None = None
    memory: Bytes | None = None
    cpu: Annotated[float, Meta(ge=0)] | None = None
    pids: Annotated[int, Meta(ge=0)] | None = None
    disk: Bytes | None = None
    files: Annotated[int, Meta(ge=0)] | None = None
    open_files: Annotated[int, Meta(ge=0)] | None = None
    phases: dict[str, _PhaseLimitsTable] = {}


_NO_LIMITS_TABLE, _NO_LIMITS = _LimitsTable(), Limits()


class _PackageTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: str = "0"
    summary: str = ""
    path: str = "."
    depends: tuple[str, ...] = ()
    system: str = "none"
    source: tuple[_SourceTable, ...] = ()
    patches: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    phases: dict[str, str] = {}
    limits: _LimitsTable = _LimitsTable()
    default: bool = True
    ignore: str = ""


def discover(tree: Tree, origin: Origin, check: Callable[[], None] = lambda: None) -> dict[str, tuple[Package, ...]]:
    """The packages of every `buildd.toml` in the tree, by its path. Raises InvalidInput naming file and key.

    `check` is called for each file, and may raise to end it.
    """
    found: dict[str, tuple[Package, ...]] = {}
    seen: dict[str, str] = {}
    for path, blob in tree.files_named(RECIPE_FILE):
        check()
        found[path] = read_recipes(path, blob, tree, origin)
        for package in found[path]:
            if package.name in seen:
                raise InvalidInput(
                    f"package {package.name} is defined twice: in {seen[package.name]} and in {path}",
                    hint="rename one of them",
                )
            seen[package.name] = path
    return found


def read_recipes(path: str, blob: str, tree: Tree, origin: Origin) -> tuple[Package, ...]:
    """The packages of one recipe file. Raises InvalidInput naming file and key."""
    return tuple(_read_file(path, _content(tree, path, blob), tree, origin))


def _content(tree: Tree, path: str, blob: str) -> bytes:
    try:
        return tree.read(blob, MAX_RECIPE_BYTES)
    except InvalidInput as error:
        raise InvalidInput(
            f"{_shown(path)}: {error.message}", hint="split it: each directory may have its own"
        ) from None


def _read_file(path: str, content: bytes, tree: Tree, origin: Origin) -> Iterable[Package]:
    path = _shown(path)
    _check_dots(path, content)
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {_one_line(str(error))}") from None
    unknown = sorted(document.keys() - {"package"})
    if unknown:
        raise InvalidInput(f"{path}: unknown key {unknown[0][:200]!r}", hint="packages are tables [package.NAME]")
    packages = document.get("package", {})
    if not isinstance(packages, dict):
        raise InvalidInput(f"{path}: package is not a table", hint="write [package.NAME]")
    directory = posixpath.dirname(path) or "."
    for name, table in packages.items():
        yield _Reader(path, name, tree, origin).package(table, directory)


class _Reader:
    """Checks one package table; `path` and `name` are what its complaints begin with."""

    def __init__(self, path: str, name: str, tree: Tree, origin: Origin) -> None:
        self._path, self._name, self._tree, self._origin = path, name, tree, origin

    def _wrong(self, what: str, hint: str = "") -> InvalidInput:
        name = self._name if _NAME.fullmatch(self._name) else ascii(self._name[:200])
        return InvalidInput(f"{self._path}: package {name}: {what}", hint=hint)

    def package(self, table: Any, directory: str) -> Package:
        if not _NAME.fullmatch(self._name):
            raise self._wrong("not a package name", "letters, digits and + . _ -, at most 128, no leading sign")
        if not isinstance(table, dict):
            raise self._wrong("not a table", f"write [package.{self._name}]")
        self._check_keys(table, _PackageTable, "")
        self._check_limits(table.get("limits"))
        for source in table.get("source", ()) if isinstance(table.get("source"), list) else ():
            self._check_keys(source, _SourceTable, "source.")
        try:
            recipe = msgspec.convert(table, _PackageTable, dec_hook=decode_quantity)
        except (msgspec.ValidationError, ValueError) as error:
            raise self._wrong(_one_line(str(error)), "see buildd-recipe(5)") from None
        if not _VERSION.fullmatch(recipe.version):
            raise self._wrong(f"version {recipe.version!r} has characters that versions cannot have")
        path = self._inside("path", posixpath.join(directory, recipe.path))
        try:
            tree = self._tree.subtree(path)
        except NotFound:
            raise self._wrong(f"path {recipe.path!r} is not a directory of the revision") from None
        for dependency in recipe.depends:
            if not _DEPENDENCY.fullmatch(dependency):
                raise self._wrong(f"{dependency!r} is not the name of a package", "NAME or REPOSITORY//NAME")
        for tool in recipe.tools:
            if not _TOOL.fullmatch(tool):
                raise self._wrong(f"{tool!r} is not the name of a tool")
        for kind in recipe.formats:
            if kind not in FORMATS:
                raise self._wrong(f"unknown format {kind!r}", f"known: {', '.join(FORMATS)}")
        return Package(
            name=self._name,
            version=recipe.version,
            path=path,
            repository=self._origin.repository,
            store=self._origin.store,
            tree=tree,
            depends=tuple(dict.fromkeys(recipe.depends)),
            system=recipe.system,
            phases=self._phases(recipe),
            sources=self._sources(recipe.source),
            patches=tuple(self._inside("patches", p) for p in recipe.patches),
            tools=recipe.tools,
            formats=recipe.formats,
            limits=_limits(recipe.limits),
            default=recipe.default,
            summary=_one_line(recipe.summary),
            ignore=_one_line(recipe.ignore),
        )

    def _check_keys(self, table: Any, model: type[Struct], prefix: str) -> None:
        known = model.__struct_encode_fields__
        for key in table if isinstance(table, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {prefix}{near[0]}? " if near else ""
                raise self._wrong(f"unknown key {prefix}{_shown(key)}", f"{hint}known: {', '.join(known)}")

    def _check_limits(self, table: Any) -> None:
        self._check_keys(table, _LimitsTable, "limits.")
        phases = table.get("phases") if isinstance(table, dict) else None
        for phase, limits in phases.items() if isinstance(phases, dict) else ():
            key = f"limits.phases.{_shown(phase)}"
            if phase not in PHASES:
                near = difflib.get_close_matches(phase, PHASES, n=1)
                hint = f"did you mean limits.phases.{near[0]}? " if near else ""
                raise self._wrong(f"unknown phase {key}", f"{hint}phases: {', '.join(PHASES)}")
            if not isinstance(limits, dict):
                raise self._wrong(f"{key} is not a table", f"write [package.{self._name}.{key}]")
            self._check_keys(limits, _PhaseLimitsTable, f"{key}.")
            for name, value in limits.items():  # one by one: msgspec does not name the keys of a dictionary
                try:
                    parse_seconds(value)
                except ValueError as error:
                    raise self._wrong(f"{key}.{name}: {_one_line(str(error))}", "see buildd-recipe(5)") from None

    def _phases(self, recipe: _PackageTable) -> dict[str, str]:
        preset = PRESETS.get(recipe.system)
        if preset is None:
            raise self._wrong(f"unknown system {recipe.system!r}", f"known: {', '.join(PRESETS)}")
        for phase, text in recipe.phases.items():
            if phase not in PHASES:
                raise self._wrong(f"unknown phase {phase!r}", f"phases: {', '.join(PHASES)}")
            if "\0" in text or len(text.encode()) > MAX_PHASE_BYTES:
                raise self._wrong(f"the text of phase {phase} has a NUL or is over {MAX_PHASE_BYTES} bytes")
        texts = preset | recipe.phases
        return {phase: texts[phase] for phase in PHASES if texts.get(phase, "").strip()}

    def _sources(self, tables: Iterable[_SourceTable]) -> tuple[Source, ...]:
        result: dict[str, Source] = {}
        for table in tables:
            url, parts = table.url, _split_url(table.url)
            if parts is None:
                raise self._wrong(f"{url[:200]!r} is not a URL")
            if not _SHA256.fullmatch(table.sha256):
                raise self._wrong(f"sha256 of {url} is not 64 lower-case hexadecimal digits")
            filename = table.filename or unquote(posixpath.basename(parts.path))
            if not filename or filename in (".", "..") or "/" in filename or _printable(filename) is None:
                raise self._wrong(f"{url} does not end in a file name", "set filename beside url")
            if filename in result:
                raise self._wrong(f"two sources are called {filename}", "set filename beside url")
            if table.strip is not None and not 0 <= table.strip <= 100:
                raise self._wrong(f"strip = {table.strip} is not between 0 and 100")
            result[filename] = Source(
                url=url,
                sha256=table.sha256,
                filename=filename,
                into=self._inside("into", table.into),
                strip=table.strip,
                extract=table.extract,
                patches=tuple(self._inside("patches", p) for p in table.patches),
            )
        return tuple(result.values())

    def _inside(self, key: str, path: str) -> str:
        """`path` in its shortest form. Raises InvalidInput when it leaves the tree it belongs to."""
        normal = posixpath.normpath(path or ".")
        if normal.startswith(("/", "../")) or normal == ".." or _printable(normal) is None:
            raise self._wrong(f"{key} {path!r} is not a relative path inside the tree")
        return normal


def _limits(table: _LimitsTable) -> Limits:
    """With plain numbers, as they are stored."""
    if table == _NO_LIMITS_TABLE:
        return _NO_LIMITS  # one for all: most packages have none
    return Limits(
        timeout=_plain(table.timeout),
        silence=_plain(table.silence),
        log=None if table.log is None else int(table.log),
        memory=None if table.memory is None else int(table.memory),
        cpu=table.cpu,
        pids=table.pids,
        disk=None if table.disk is None else int(table.disk),
        files=table.files,
        open_files=table.open_files,
        phases={
            phase: PhaseLimits(timeout=_plain(limits.timeout), silence=_plain(limits.silence))
            for phase, limits in table.phases.items()
        },
    )


def _plain(duration: Seconds | None) -> float | None:
    return None if duration is None else float(duration)


def _split_url(text: str) -> SplitResult | None:
    """The parts of a URL; None for what is none."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return parts if parts.scheme and _printable(text) is not None else None


def _check_dots(path: str, content: bytes) -> None:
    """Refuse lines with very many dots: tomllib takes the square of a dotted key's length in time and memory."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.count(b".") > MAX_DOTS and len(_DOT.findall(line)) > MAX_DOTS:
            raise InvalidInput(f"{path}: line {number} has over {MAX_DOTS} dots", hint="break it into several lines")


def _shown(text: str) -> str:
    """Text from outside as it can be shown: short, and without anything that a terminal would obey."""
    return text if text.isprintable() and len(text) <= 200 else ascii(text[:60])


def _printable(text: str) -> str | None:
    """The text, unless it has control characters or is unreasonably long."""
    return text if len(text) <= 2048 and text.isprintable() else None


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:200].strip()
