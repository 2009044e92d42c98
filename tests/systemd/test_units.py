"""The unit files say what buildd(8) promises, and systemd understands them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
ANALYZE = shutil.which("systemd-analyze") or ""
needs_analyze = pytest.mark.skipif(not ANALYZE, reason="systemd-analyze is not installed")


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True, comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys of units are case-sensitive
    parser.read_string((UNITS / name).read_text())
    return parser


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a machine where the daemon is installed."""
    program = shutil.which("true")
    for name in ("buildd.service", "buildd.socket", "user/buildd.service"):
        text = (UNITS / name).read_text()
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("ExecStart=buildd\n", f"ExecStart={program}\n"))
    return tmp_path


@pytest.mark.parametrize("name", ["buildd.service", "user/buildd.service"])
def test_the_daemon_is_supervised_as_promised(name: str) -> None:
    service = unit(name)["Service"]
    assert {key: service[key] for key in ("Type", "NotifyAccess", "KillMode", "TimeoutStopSec", "Delegate")} == {
        "Type": "notify",
        "NotifyAccess": "main",
        "KillMode": "mixed",
        "TimeoutStopSec": "40s",
        "Delegate": "yes",
    }
    assert service["Restart"] == "on-failure"
    assert service["WatchdogSec"] == "60s"
    assert service["ExecReload"] == "/bin/sh -c 'kill -HUP $MAINPID'"
    assert service["OOMPolicy"] == "continue", "a build that runs out of memory would stop the daemon"


def test_the_system_service_has_its_directories_and_keeps_the_socket() -> None:
    service = unit("buildd.service")["Service"]
    for kind in ("State", "Cache", "Runtime", "Logs"):
        assert service[f"{kind}Directory"] == "buildd"
    # systemd would remove the socket of buildd.socket together with the directory
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["RuntimeDirectoryMode"] == "0755"


def test_hardening_leaves_what_sandboxes_are_made_of() -> None:
    service = unit("buildd.service")["Service"]
    for directive in (
        "RestrictNamespaces",  # the sandbox is made of namespaces
        "PrivateUsers",  # would hide who calls
        "PrivateNetwork",
        "ProtectControlGroups",
        "ProtectKernelTunables",  # the kernel refuses a new /proc where parts of the old one are covered
        "ProtectKernelLogs",
        "ProtectProc",
        "ProcSubset",
        "ProtectHostname",
        "RestrictSUIDSGID",
        "MemoryDenyWriteExecute",
        "LockPersonality",
        "SystemCallArchitectures",
    ):
        assert directive not in service
    assert service["UMask"] == "0022"
    denied = service["SystemCallFilter"]
    assert denied.startswith("~")
    assert not {"@mount", "@privileged", "@debug", "@resources"} & set(denied.lstrip("~").split())


def test_everyone_can_reach_the_socket_and_the_group_owns_it() -> None:
    socket = unit("buildd.socket")["Socket"]
    assert socket["ListenStream"] == "%t/buildd/control.sock"
    assert socket["SocketMode"] == "0666"
    assert socket["SocketGroup"] == "buildd"
    assert socket["DirectoryMode"] == "0755"


def test_the_user_of_the_units_is_made_by_sysusers_and_owns_the_runtime_directory() -> None:
    service, socket = unit("buildd.service")["Service"], unit("buildd.socket")["Socket"]
    assert {service["User"], service["Group"], socket["SocketUser"], socket["SocketGroup"]} == {"buildd"}
    users = [line.split()[:2] for line in (UNITS / "sysusers.d/buildd.conf").read_text().splitlines()]
    assert ["u", "buildd"] in users
    entries = [line.split() for line in (UNITS / "tmpfiles.d/buildd.conf").read_text().splitlines()]
    assert ["d", "/run/buildd", "0755", "buildd", "buildd", "-"] in entries


@needs_analyze
@pytest.mark.parametrize(
    ("names", "manager"),
    [(["buildd.service", "buildd.socket"], "--system"), (["user/buildd.service"], "--user")],
)
def test_systemd_accepts_the_units(installed: Path, names: list[str], manager: str) -> None:
    ran = subprocess.run(
        [ANALYZE, "verify", manager, "--man=no", *(str(installed / name) for name in names)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(installed), "HOME": str(installed)},
    )
    # other units of this machine may be complained about as well
    ours = [line for line in (ran.stdout + ran.stderr).splitlines() if "buildd" in line]
    assert ours == []


@needs_analyze
def test_the_exposure_of_the_service_is_at_most_four(installed: Path) -> None:
    command = [ANALYZE, "security", "--no-pager", "--offline=yes", str(installed / "buildd.service")]
    ran = subprocess.run([*command, "--threshold=40"], capture_output=True, text=True, timeout=60)
    if "unrecognized option" in ran.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit file")
    assert ran.returncode == 0, ran.stdout[-200:] + ran.stderr
