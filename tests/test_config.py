"""The configuration: every source, their order, and no half-understood start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from buildd import config as configuration
from buildd.config import SECTIONS, Config, load, parse_bytes, parse_seconds
from buildd.errors import InvalidInput


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without any configuration."""
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def written(directory: Path, text: str, name: str = "buildd.conf") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def plain(*settings: str, environ: dict[str, str] | None = None, files: list[Path] | None = None) -> Config:
    return load(files=files or [], settings=settings, environ=environ or {})


def complaint(*settings: str, environ: dict[str, str] | None = None, files: list[Path] | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        plain(*settings, environ=environ, files=files)
    return caught.value


# --- sources ----------------------------------------------------------------------------------------------


def test_without_any_source_there_are_defaults(home: Path) -> None:
    config = plain()
    assert config.files == ()
    assert config.workers.max_concurrent_builds == len(os.sched_getaffinity(0))
    assert (config.daemon.shutdown_grace, config.daemon.shutdown_limit) == (10, 30)
    assert config.limits.timeout == 7200
    assert config.limits.log == 1 << 30
    assert config.events.keep == 1_000_000
    assert config.control.group == "buildd"
    for path in (config.daemon.state_dir, config.daemon.cache_dir, config.daemon.work_dir):
        assert path.startswith(f"{home}/")


def test_later_sources_win_key_by_key(home: Path) -> None:
    first = written(home, '[workers]\njobs = 1\nmax_concurrent_builds = 1\n[limits]\ntimeout = "1h"\n', "first")
    second = written(home, "[workers]\njobs = 2\nmax_concurrent_clones = 2\n[events]\nkeep = 2000\n", "second")
    environ = {"BUILDD_WORKERS_JOBS": "3", "BUILDD_EVENTS_KEEP": "3000"}
    config = plain("workers.jobs=4", "workers.jobs=5", environ=environ, files=[first, second])
    assert config.workers.jobs == 5
    assert config.events.keep == 3000
    assert config.workers.max_concurrent_clones == 2
    assert config.workers.max_concurrent_builds == 1
    assert config.limits.timeout == 3600
    assert config.limits.silence == 1800
    assert config.files == (str(first), str(second))


def test_systemd_says_where_things_are_and_a_setting_wins_over_it() -> None:
    environ = {
        "STATE_DIRECTORY": "/var/lib/buildd:/var/lib/more",
        "CACHE_DIRECTORY": "/var/cache/buildd",
        "RUNTIME_DIRECTORY": "/run/buildd",
    }
    config = plain(environ=environ)
    assert (config.daemon.state_dir, config.daemon.cache_dir, config.daemon.runtime_dir) == (
        "/var/lib/buildd",
        "/var/cache/buildd",
        "/run/buildd",
    )
    assert config.daemon.work_dir == "/var/lib/buildd/work"
    assert plain("daemon.state_dir=/srv/b", environ=environ).daemon.work_dir == "/srv/b/work"
    assert plain("daemon.work_dir=/tmp/w", environ=environ).daemon.work_dir == "/tmp/w"


def test_the_users_file_is_read_without_being_named(home: Path) -> None:
    path = written(home / ".config" / "buildd", "[workers]\njobs = 7\n")
    config = load(environ={})
    assert config.files == (str(path),)
    assert config.workers.jobs == 7


def test_a_system_service_does_not_read_a_users_file(home: Path) -> None:
    written(home / ".config" / "buildd", "[workers]\njobs = 7\n")
    assert all(str(path).startswith("/etc/") for path in configuration.default_files({"STATE_DIRECTORY": "/var/lib/b"}))


def test_the_runtime_directory_of_a_user_is_systemds_or_a_private_one(home: Path) -> None:
    assert configuration.user_runtime_dir({"XDG_RUNTIME_DIR": str(home)}) == home / "buildd"
    fallback = configuration.user_runtime_dir({"XDG_RUNTIME_DIR": str(home / "none")})
    assert str(os.getuid()) in str(fallback)
    assert fallback.is_absolute()


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("limits.memory=2GiB", "limits", "memory", 2 << 30),
        ('limits.memory="2GiB"', "limits", "memory", 2 << 30),
        ("limits.timeout=90", "limits", "timeout", 90.0),
        ("limits.timeout=1.5h", "limits", "timeout", 5400.0),
        ("sandbox.backend=plain", "sandbox", "backend", "plain"),
        ("sandbox.path=['/opt/a', '/opt/b']", "sandbox", "path", ("/opt/a", "/opt/b")),
        ("sandbox.path=[]", "sandbox", "path", ()),
        ("control.group=2024", "control", "group", "2024"),
        ("control.group=true", "control", "group", "true"),
        ("daemon.state_dir=/a=b", "daemon", "state_dir", "/a=b"),
        ("repos.ssh_key=", "repos", "ssh_key", ""),
        ('repos.token_files={ "example.org" = "/t" }', "repos", "token_files", {"example.org": "/t"}),
    ],
)
def test_a_setting_is_toml_or_plain_text(setting: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(plain(setting), section), key) == value
    _, _, text = setting.partition("=")
    name = f"BUILDD_{section}_{key}".upper()
    assert getattr(getattr(plain(environ={name: text}), section), key) == value


def test_every_key_can_be_set_by_every_source(home: Path) -> None:
    config = plain()
    for section, model in SECTIONS.items():
        for field in msgspec.structs.fields(model):
            value = getattr(getattr(config, section), field.name)
            text = msgspec.json.encode(_plain(value)).decode()
            if not isinstance(value, dict):
                assert getattr(getattr(plain(f"{section}.{field.name}={text}"), section), field.name) == value
                path = written(home, f"[{section}]\n{field.name} = {text}\n", "every.conf")
                assert getattr(getattr(plain(files=[path]), section), field.name) == value


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, float) else int(value) if type(value) is configuration.Bytes else value


def test_variables_of_the_client_and_of_builds_are_not_settings() -> None:
    plain(environ={"BUILDD_SOCKET": "/x", "BUILDD_BUILD": "id", "BUILDD_DAEMON": "id", "HOME": "/"})


# --- what is wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "what", "hint"),
    [
        ("worker.jobs=1", "unknown section [worker]", "did you mean workers?"),
        ("workers.job=1", "unknown key workers.job", "did you mean jobs?"),
        ("workers.zzz=1", "unknown key workers.zzz", "max_concurrent_builds"),
        ("workers.jobs=0", "too small", "at least 1"),
        ("workers.max_concurrent_builds=-1", "too small", "at least 1"),
        ("events.keep=999", "too small", "at least 1000"),
        ("workers.jobs=many", "workers.jobs = 'many'", "a whole number"),
        ("workers.jobs=1.5", "workers.jobs = 1.5", "a whole number"),
        ("workers.jobs=true", "workers.jobs = True", "a whole number"),
        ("limits.timeout=soon", "limits.timeout = 'soon'", "30s, 5min or 2h"),
        ("limits.timeout=-1", "limits.timeout = -1", "30s, 5min or 2h"),
        ("limits.timeout=nan", "limits.timeout = nan", "30s, 5min or 2h"),
        ("limits.memory=2 stones", "limits.memory", "512MiB or 2GiB"),
        ("limits.memory=-1", "limits.memory", "512MiB or 2GiB"),
        ("limits.memory=" + "9" * 400 + "TiB", "limits.memory", "512MiB or 2GiB"),
        ("sandbox.backend=chroot", "sandbox.backend", "auto, bwrap, plain"),
        ("sandbox.path=/opt", "sandbox.path", '["a", "b"]'),
        ("sandbox.path=[1]", "sandbox.path", '["a", "b"]'),
        ("repos.token_files=x", "repos.token_files", '"host" = "file"'),
        ("daemon.state_dir=relative", "not an absolute path", ""),
        ("sandbox.prefix=opt", "not an absolute path", ""),
        ("daemon.log_level=loud", "daemon.log_level", "debug, info, warning, error"),
        ("jobs=1", "--set section.key=value", ""),
        ("workers.jobs", "--set section.key=value", ""),
        ("", "--set section.key=value", ""),
    ],
)
def test_a_wrong_setting_says_where_what_and_what_is_allowed(setting: str, what: str, hint: str) -> None:
    error = complaint(setting)
    assert "--set" in error.message
    assert what in error.message
    assert hint in error.hint


def test_a_wrong_variable_is_named() -> None:
    error = complaint(environ={"BUILDD_WORKERS_JOBS": "many"})
    assert "BUILDD_WORKERS_JOBS" in error.message
    assert "BUILDD_LIMITS_MEMRY" in complaint(environ={"BUILDD_LIMITS_MEMRY": "1"}).message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[workers]\njob = 1", "unknown key workers.job"),
        ("[wrkers]\njobs = 1", "unknown section [wrkers]"),
        ("jobs = 1", "jobs is not in a section"),
        ("[workers\n", "not valid TOML"),
        ("[workers]\njobs = '2'", "workers.jobs = '2'"),
        ("[workers.jobs]\nx = 1", "workers.jobs"),
        ("[[workers]]\njobs = 1", "workers is not in a section"),
        ("files = []", "files is not in a section"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, what: str) -> None:
    path = written(tmp_path, text)
    error = complaint(files=[path])
    assert str(path) in error.message
    assert what in error.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "No such file" in complaint(files=[tmp_path / "none"]).message
    assert "directory" in complaint(files=[tmp_path]).message
    path = tmp_path / "latin1"
    path.write_bytes(b"[workers]\n# \xe4\n")
    assert "not valid TOML" in complaint(files=[path]).message


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_invalid_input(text: str) -> None:
    for name in ("workers.jobs", "limits.memory", "sandbox.path", "repos.token_files", "control.group"):
        try:
            plain(f"{name}={text}")
        except InvalidInput as error:
            assert name in error.message


# --- quantities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("30s", 30),
        ("500ms", 0.5),
        ("5min", 300),
        ("5m", 300),
        ("1.5h", 5400),
        ("1d", 86400),
        ("2w", 1209600),
        (" 2 H ", 7200),
        ("2sec", 2),
        (3, 3),
        (0.25, 0.25),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("10", 10),
        ("10b", 10),
        ("1k", 1024),
        ("1KiB", 1024),
        ("10MB", 10**7),
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5g", 3 << 29),
        ("1TB", 10**12),
        (7, 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "s", "-1s", "1e3", "1 2", "1parsec", "٣", "1s1s", True, -1, float("nan")])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="write it like 30s, 5min or 2h"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e3", "1.5.5", "1PiB!", True, -1, 1.5, "9" * 400])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="write it like 512MiB or 2GiB"):
        parse_bytes(text)


@given(st.integers(0, 2**53))
def test_a_plain_number_is_itself(number: int) -> None:
    assert parse_bytes(number) == number
    assert parse_seconds(number) == number
