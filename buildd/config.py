"""Configuration: TOML, environment and `--set` become one frozen `Config`.

Later sources win, key by key: built-in defaults, the configuration file, `BUILDD_SECTION_KEY` in the
environment, `--set section.key=value`. An unknown key or a wrong type is an error that names where it was
found, the key, and what is allowed: a daemon never starts on a configuration it only half understood.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import platformdirs
from msgspec import Struct

from buildd.errors import InvalidInput
from buildd.model import Strategy


class Seconds(float):
    """A duration; written as `30s`, `5min`, `2h`, `1d`, `500ms` or a plain number of seconds."""


class Bytes(int):
    """A size; written as `512MiB`, `2GiB`, `10MB` or a plain number of bytes."""


_SECONDS = {"ms": 0.001, "": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {"": 1, "b": 1} | {
    f"{p}{s}": base**n for n, p in enumerate("kmgt", start=1) for s, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


_MOST = 2**62
"""Larger quantities are mistakes, and would not fit the database's integers."""


def _quantity(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    match = _QUANTITY.fullmatch(text)
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text[:40]!r} is not a {what}; write it like {example}")
    quantity = float(match[1]) * factor
    if quantity > _MOST:
        raise ValueError(f"{text[:40]!r} is beyond all bounds for a {what}; write it like {example}")
    return quantity


def parse_seconds(value: str | float) -> Seconds:
    """Seconds of `30s`, `5min`, `1.5h` or a number. Raises ValueError."""
    if isinstance(value, str):
        return Seconds(_quantity(value, _SECONDS, "duration", "30s, 5min or 2h"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        raise ValueError(f"{value!r:.40} is not a duration; write it like 30s, 5min or 2h")
    return Seconds(value)


def parse_bytes(value: str | int) -> Bytes:
    """Bytes of `512MiB`, `2GiB`, `10MB` or a number. Raises ValueError."""
    if isinstance(value, str):
        return Bytes(_quantity(value, _BYTES, "size", "512MiB or 2GiB"))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ValueError(f"{value!r:.40} is not a size; write it like 512MiB or 2GiB")
    return Bytes(value)


def decode_quantity(kind: type, value: Any) -> Any:
    """The msgspec `dec_hook` for `Seconds` and `Bytes`."""
    if kind is Seconds:
        return parse_seconds(value)
    if kind is Bytes:
        return parse_bytes(value)
    raise NotImplementedError(kind)


_CORES = len(os.sched_getaffinity(0))
_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class DaemonConfig(Struct, frozen=True, kw_only=True):
    state_dir: str
    """Database, artifacts, logs."""
    cache_dir: str
    """Clones and downloaded sources; can be deleted while the daemon is stopped."""
    runtime_dir: str
    """The control socket."""
    work_dir: str
    """Builds happen here; each has a directory of its own that lives as long as the build."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    shutdown_grace: Seconds = Seconds(10)
    """How long a build may take to end after SIGTERM."""
    shutdown_limit: Seconds = Seconds(30)
    """The daemon is gone this long after SIGTERM, whatever the builds do."""
    sweep_interval: Seconds = Seconds(60)
    """Time between two sweeps for what no task owns any more."""


class WorkersConfig(Struct, frozen=True, kw_only=True):
    max_concurrent_builds: int = _CORES
    max_concurrent_clones: int = 4
    max_concurrent_maps: int = 1
    jobs: int = _CORES
    """$JOBS of each build."""
    nice: int = 10
    """Of builds: the daemon, and whatever else the machine does, goes first."""


class SandboxConfig(Struct, frozen=True, kw_only=True):
    backend: Literal["auto", "bwrap", "plain"] = "auto"
    path: tuple[str, ...] = ()
    """Directories put before the system's in the PATH of builds."""
    readonly_paths: tuple[str, ...] = ()
    """Further files and directories that builds see, read-only, at the same path."""
    prefix: str = "/opt/buildd"
    """$PREFIX of every build: where packages will live, and where a build finds its dependencies."""


class LimitsConfig(Struct, frozen=True, kw_only=True):
    """Defaults for packages, and the most a recipe may ask for."""

    timeout: Seconds = Seconds(7200)
    silence: Seconds = Seconds(1800)
    log: Bytes = Bytes(1 << 30)
    memory: Bytes = Bytes(_MEMORY * 4 // 5)
    """Of all processes of a build together, and of its /dev/shm. In this section 0 sets no limit."""
    cpu: float = 0.0
    """Processors that a build may keep busy."""
    pids: int = 4096
    """Processes and threads of a build at a time."""
    disk: Bytes = Bytes(50 << 30)
    """What the directories of a build may take on the disk."""
    files: int = 2_000_000
    """Files and directories in them."""
    open_files: int = 16_384
    """Descriptors of each process."""


class ControlConfig(Struct, frozen=True, kw_only=True):
    group: str = "buildd"
    """Members may control the daemon, like root and the daemon's own user."""
    observe: Literal["everyone", "group"] = "everyone"
    """Who may look: status, logs, events."""


class ReposConfig(Struct, frozen=True, kw_only=True):
    schemes: tuple[str, ...] = ("https", "ssh", "git", "file")
    idle_timeout: Seconds = Seconds(60)
    """A transfer without progress for this long fails."""
    total_timeout: Seconds = Seconds(3600)
    transport: Literal["auto", "libgit2", "git"] = "auto"
    ssh_key: str = ""
    """Private key file for ssh; empty uses the agent."""
    token_files: dict[str, str] = {}
    """Host name to the file that holds its access token."""
    max_repositories: int = 1000
    """Most clones that are kept; the least recently used go first. 0 sets no limit."""
    max_bytes: Bytes = Bytes(100 << 30)
    """The same for what they take of the disk."""
    refresh_active: Seconds = Seconds(86400)
    """How often a repository is refreshed that was used within `active_within`; 0 for never."""
    refresh_inactive: Seconds = Seconds(604800)
    """The same for any other."""
    active_within: Seconds = Seconds(14 * 86400)


class MapsConfig(Struct, frozen=True, kw_only=True):
    automatic: bool = True
    """Map the default branch of each repository after it was cloned, or fetched with changes."""
    processes: int = 2
    """That parse side by side for one map."""
    timeout: Seconds = Seconds(7200)
    tokens: int = 4096
    """Budget of the `map.txt` in the published directory."""
    max_file_bytes: Bytes = Bytes(1 << 20)
    """Larger files are left out."""
    max_file_time: Seconds = Seconds(10)
    """Files that take longer to parse are left out."""
    max_cache_bytes: Bytes = Bytes(2 << 30)
    """Of what is known of single files; the least recently used go first."""
    keep: int = 4
    """Most maps of one repository; the least recently used go first."""


class FetchConfig(Struct, frozen=True, kw_only=True):
    schemes: tuple[str, ...] = ("https", "http")
    mirrors: tuple[str, ...] = ()
    """Base URLs asked first, with the file name appended; the hash decides what is accepted."""
    timeout: Seconds = Seconds(1800)
    idle_timeout: Seconds = Seconds(60)
    max_bytes: Bytes = Bytes(4 << 30)
    """Largest download, and largest sum of files extracted from one archive."""
    environment: tuple[str, ...] = (
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "PIP_CERT",
    )
    """Variables of the daemon that a recipe's `fetch` commands see."""


class CacheConfig(Struct, frozen=True, kw_only=True):
    strategy: Strategy = "aggressive"
    """When an earlier result is used: never, only the package's own last one, or any with equal inputs."""
    strategies: dict[str, Strategy] = {}
    """The same for single repositories, by URL or absolute path; shell patterns may be used."""
    max_bytes: Bytes = Bytes(0)
    """Most bytes that artifacts and releases may take; 0 sets no limit."""
    max_age: Seconds = Seconds(0)
    """Artifacts that were not used for so long go; 0 sets no limit."""
    min_free_bytes: Bytes = Bytes(1 << 30)
    """With less free space than this (or a tenth of a small file system) artifacts go; 0 sets no limit."""
    min_free_inodes: int = 10_000
    """The same for inodes."""
    collect_interval: Seconds = Seconds(600)
    """Time between two looks at all limits."""


class RetryConfig(Struct, frozen=True, kw_only=True):
    """Further attempts after failures that may pass by themselves."""

    max_retries: int = 2
    """Attempts after the first; 0 for none."""
    delay: Seconds = Seconds(5)
    """Wait before the second attempt; each further wait is `backoff` times as long."""
    backoff: float = 3.0
    max_delay: Seconds = Seconds(300)


class MonitorConfig(Struct, frozen=True, kw_only=True):
    """The watch over the machine, the daemon itself and its builds."""

    interval: Seconds = Seconds(5)
    """Time between two samples."""
    memory_growth: Bytes = Bytes(500_000_000)
    """So much more resident memory than when the daemon had settled is looked into; 0 sets no limit."""
    trace_memory: bool = False
    """Note where memory is allocated, for profiles of it: costs time and memory at every allocation."""
    stuck_after: Seconds = Seconds(300)
    """A build that goes on for so long after its time limit is reported."""


class ThrottleConfig(Struct, frozen=True, kw_only=True):
    """Fewer workers on a machine that is short of processors or memory: a quarter of them at the worst."""

    enabled: bool = True
    load_from: float = 1.5
    """Load per processor from which there are fewer workers."""
    load_to: float = 5.0
    """Load per processor from which a quarter of them is left."""
    swap_from: float = 10.0
    """Per cent of the swap space, of what is in it and would not fit into available memory."""
    swap_to: float = 40.0
    memory_from: float = 10.0
    """Per cent of the memory that is available."""
    memory_to: float = 3.0


class EventsConfig(Struct, frozen=True, kw_only=True):
    keep: int = 1_000_000
    """Events kept in the journal; older ones are dropped."""


class Config(Struct, frozen=True, kw_only=True):
    daemon: DaemonConfig
    workers: WorkersConfig = WorkersConfig()
    sandbox: SandboxConfig = SandboxConfig()
    limits: LimitsConfig = LimitsConfig()
    control: ControlConfig = ControlConfig()
    repos: ReposConfig = ReposConfig()
    maps: MapsConfig = MapsConfig()
    fetch: FetchConfig = FetchConfig()
    cache: CacheConfig = CacheConfig()
    retry: RetryConfig = RetryConfig()
    monitor: MonitorConfig = MonitorConfig()
    throttle: ThrottleConfig = ThrottleConfig()
    events: EventsConfig = EventsConfig()
    files: tuple[str, ...] = ()
    """The configuration files that were read."""


SECTIONS: dict[str, type[Struct]] = {f.name: f.type for f in msgspec.structs.fields(Config) if f.name != "files"}

_MINIMA = {
    ("workers", "max_concurrent_builds"): 1,
    ("workers", "max_concurrent_clones"): 1,
    ("workers", "max_concurrent_maps"): 1,
    ("maps", "processes"): 1,
    ("maps", "tokens"): 64,
    ("maps", "keep"): 1,
    ("workers", "jobs"): 1,
    ("repos", "max_repositories"): 0,
    ("workers", "nice"): 0,
    ("limits", "cpu"): 0,
    ("limits", "pids"): 0,
    ("limits", "files"): 0,
    ("limits", "open_files"): 0,
    ("cache", "min_free_inodes"): 0,
    ("cache", "collect_interval"): 1,
    ("monitor", "interval"): 0.1,
    ("events", "keep"): 1000,
    ("retry", "max_retries"): 0,
    ("retry", "backoff"): 1,
}


def _allowed(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    names = {
        str: "a string",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        Seconds: "a duration like 30s, 5min or 2h",
        Bytes: "a size like 512MiB or 2GiB",
    }
    if kind in names:
        return names[kind]
    return 'a table like { "host" = "file" }' if get_origin(kind) is dict else 'a list like ["a", "b"]'


def _convert(section: str, key: str, value: Any, where: str) -> Any:
    """One value of the configuration, checked. `where` names its source in errors."""
    model = _check_section(section, where)
    fields = {f.name: f.type for f in msgspec.structs.fields(model)}
    if key not in fields:
        raise InvalidInput(
            f"{where}: unknown key {section}.{key}", hint=_suggest(key, list(fields), f"keys of [{section}]")
        )
    kind = fields[key]
    try:
        result = msgspec.convert(value, kind, dec_hook=decode_quantity)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(
            f"{where}: {section}.{key} = {value!r} is not allowed: {error}",
            hint=f"{section}.{key} takes {_allowed(kind)}",
        ) from None
    minimum = _MINIMA.get((section, key))
    if minimum is not None and result < minimum:
        raise InvalidInput(f"{where}: {section}.{key} = {result} is too small", hint=f"it must be at least {minimum}")
    if key in ("state_dir", "cache_dir", "runtime_dir", "work_dir", "prefix") and not os.path.isabs(result):
        raise InvalidInput(f"{where}: {section}.{key} = {result!r} is not an absolute path")
    return result


def _check_section(section: str, where: str) -> type[Struct]:
    model = SECTIONS.get(section)
    if model is None:
        raise InvalidInput(f"{where}: unknown section [{section}]", hint=_suggest(section, list(SECTIONS), "sections"))
    return model


def _suggest(word: str, known: Sequence[str], what: str) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"{what}: {', '.join(known)}"


def _from_file(path: Path) -> dict[tuple[str, str], Any]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise InvalidInput(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from None
    values: dict[tuple[str, str], Any] = {}
    for section, table in document.items():
        if not isinstance(table, dict):
            raise InvalidInput(f"{path}: {section} is not in a section", hint=f"sections: {', '.join(SECTIONS)}")
        _check_section(section, str(path))
        for key, value in table.items():
            values[section, key] = _convert(section, key, value, str(path))
    return values


def _text_value(section: str, key: str, text: str, where: str) -> Any:
    """A value given as text: TOML where it parses as the key's type, else the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    fields = {f.name: f.type for f in msgspec.structs.fields(SECTIONS[section])} if section in SECTIONS else {}
    if fields.get(key) is str and not isinstance(value, str):
        value = text  # a directory called 2024 is still a name
    return _convert(section, key, value, where)


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    values: dict[tuple[str, str], Any] = {}
    for name, text in environ.items():
        for section in SECTIONS:
            prefix = f"BUILDD_{section.upper()}_"
            if name.startswith(prefix):
                key = name.removeprefix(prefix).lower()
                values[section, key] = _text_value(section, key, text, f"environment {name}")
    return values


def _from_arguments(settings: Sequence[str]) -> dict[tuple[str, str], Any]:
    values: dict[tuple[str, str], Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise InvalidInput(f"--set {setting}: write it as --set section.key=value")
        values[section, key] = _text_value(section, key, text, f"--set {name}")
    return values


def is_system_service(environ: Mapping[str, str]) -> bool:
    """Whether systemd's system manager started us (it names directories below /var)."""
    return environ.get("STATE_DIRECTORY", "").startswith("/var/")


def default_files(environ: Mapping[str, str]) -> list[Path]:
    """The configuration files read without --config, those that exist."""
    system = Path("/etc/buildd/buildd.conf")
    user = Path(platformdirs.user_config_dir("buildd")) / "buildd.conf"
    candidates = [system] if is_system_service(environ) else [user]
    if os.getuid() == 0 and not user.exists():
        candidates = [system]
    return [path for path in candidates if path.exists()]


def user_runtime_dir(environ: Mapping[str, str]) -> Path:
    """Where a user's daemon has its socket; `buildctl` looks in the same places."""
    base = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not Path(base).is_dir():
        base = f"{tempfile.gettempdir()}/runtime-{os.getuid()}"
    return Path(base) / "buildd"


def _default_directories(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    # systemd passes lists separated by colons when a unit names several
    def from_systemd(name: str) -> str:
        return environ.get(name, "").split(":")[0]

    return {
        ("daemon", "state_dir"): from_systemd("STATE_DIRECTORY") or platformdirs.user_state_dir("buildd"),
        ("daemon", "cache_dir"): from_systemd("CACHE_DIRECTORY") or platformdirs.user_cache_dir("buildd"),
        ("daemon", "runtime_dir"): from_systemd("RUNTIME_DIRECTORY") or str(user_runtime_dir(environ)),
    }


def load(
    *,
    files: Sequence[Path] | None = None,
    settings: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration. `files` None reads the default ones. Raises InvalidInput."""
    paths = default_files(environ) if files is None else list(files)
    values = _default_directories(environ)
    for path in paths:
        values |= _from_file(path)
    values |= _from_environment(environ)
    values |= _from_arguments(settings)
    values.setdefault(("daemon", "work_dir"), str(Path(values["daemon", "state_dir"]) / "work"))
    sections = {
        section: model(**{key: value for (name, key), value in values.items() if name == section})
        for section, model in SECTIONS.items()
    }
    return Config(**sections, files=tuple(map(str, paths)))  # type: ignore[arg-type]  # built from SECTIONS
