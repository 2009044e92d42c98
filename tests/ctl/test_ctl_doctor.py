"""`doctor`: with a daemon, without one, and without the right to control it."""

from __future__ import annotations

import json
from pathlib import Path

from ctl_peer import Ctl, Peer

from buildd import protocol as p
from buildd.errors import NotPermitted


def test_all_is_well(peer: Peer, ctl: Ctl, tmp_path: Path) -> None:
    peer.checks = (p.CheckResult(name="sandbox", status="ok", message="bwrap works", hint="not shown"),)
    done = ctl("doctor")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"✓ socket   the daemon is reachable at {tmp_path}/s",
        "✓ rights   you may start and cancel runs",
        "✓ sandbox  bwrap works",
        "",
        "3 checks: 0 errors, 0 warnings",
    ]


def test_an_error_of_the_daemon_fails_with_its_hint(peer: Peer, ctl: Ctl) -> None:
    peer.checks = (p.CheckResult(name="disk", status="error", message="full", hint="remove something"),)
    done = ctl("doctor")
    assert done.returncode == 1
    assert "✗ disk    full\n          remove something\n" in done.stdout
    assert [check["name"] for check in json.loads(ctl("doctor", "--json").stdout)["checks"]] == [
        "socket",
        "rights",
        "disk",
    ]


def test_missing_rights_are_a_warning_that_names_them(peer: Peer, ctl: Ctl) -> None:
    peer.failures["run.cancel"] = NotPermitted("you may look only", hint="join the group buildd")
    done = ctl("doctor")
    assert done.returncode == 0
    assert "! rights  you may look only\n          join the group buildd\n" in done.stdout


def program(directory: Path, text: str) -> dict[str, str]:
    """A `buildd` on the PATH that does what `text` says."""
    file = directory / "bin" / "buildd"
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return {"PATH": f"{file.parent}:/usr/bin:/bin"}


def test_without_a_daemon_its_own_checks_are_run(ctl: Ctl, tmp_path: Path) -> None:
    checks = '[{"name": "sandbox", "status": "warning", "message": "no bwrap", "hint": "install it"}]'
    path = program(tmp_path, f"""[ "$*" = "--check --json" ] && echo '{checks}'""")
    done = ctl("doctor", env=path)
    assert done.returncode == 1
    assert done.stdout.startswith(f"✗ socket   daemon not reachable at {tmp_path}/s: no such socket\n")
    assert "! sandbox  no bwrap\n           install it\n" in done.stdout


def test_a_daemon_that_cannot_check_is_an_error(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("doctor", env=program(tmp_path, "echo broken >&2; exit 3"))
    assert done.returncode == 1
    assert "--check failed: broken" in done.stdout


def test_no_daemon_at_all_says_how_to_get_one(ctl: Ctl) -> None:
    done = ctl("doctor", env={"PATH": "/nonexistent"})
    assert done.returncode == 1
    assert "neither beside buildctl nor on the PATH" in done.stdout
