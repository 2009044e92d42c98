"""Who may do what: a user outside the group may look, where that is allowed, and nothing else."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from harness import ROOT, Daemon, RecipeRepository

Boot = Callable[..., Daemon]
NOBODY = 65534
GROUP = "daemon"
"""A group that every system has, for these tests in the place of `buildd`."""

# Everything is imported while the files of Python and of the checkout can be read for sure; rights are dropped then.
_AS_OTHER = """
import difflib, grp, importlib, os, pkgutil, pwd, stat, sys
import ctl, msgspec, zmq
for module in pkgutil.iter_modules(ctl.__path__):
    if module.name != "__main__":
        importlib.import_module("ctl." + module.name)
from ctl.__main__ import run
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
sys.exit(run(sys.argv[3:]))
"""

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


def as_other(daemon: Daemon, *arguments: object, gid: int = NOBODY) -> subprocess.CompletedProcess[str]:
    """Run `buildctl` as `nobody`, in one group."""
    return subprocess.run(
        [sys.executable, "-c", _AS_OTHER, str(NOBODY), str(gid), *map(str, arguments)],
        env=daemon.client_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_user_outside_the_group_may_look_and_neither_start_nor_cancel(
    boot: Boot, repository: RecipeRepository
) -> None:
    daemon = boot(settings={"control.group": GROUP})
    repository.package("one", phases={"build": f"echo here; {daemon.at_gate()}"}).commit()
    number = daemon.start(repository)
    (running,) = daemon.until_running(number, 1, saying="here")

    for refused in (
        as_other(daemon, "start", repository),
        as_other(daemon, "cancel", number),
        as_other(daemon, "plan", repository),
        as_other(daemon, "drain"),
        as_other(daemon, "resume"),
        as_other(daemon, "reload"),
        as_other(daemon, "shutdown"),
        as_other(daemon, "repo", "clone", "https://127.0.0.1:9/x"),
    ):
        assert refused.returncode == 5, refused
        assert "right to control" in refused.stderr
        assert f"group {GROUP}" in refused.stderr
        assert f"usermod -aG {GROUP}" in refused.stderr

    for allowed in (
        as_other(daemon, "status"),
        as_other(daemon, "show", number),
        as_other(daemon, "list"),
        as_other(daemon, "logs", running.build_id),
        as_other(daemon, "events", "--json"),
    ):
        assert allowed.returncode == 0, allowed
    assert daemon.run(number).state == "building"  # nothing of all that did anything
    assert len(daemon.call("run.list")["runs"]) == 1
    daemon.open_gate()
    assert daemon.wait(number).state == "completed"


def test_with_observe_group_a_user_outside_may_not_even_look(boot: Boot) -> None:
    daemon = boot(settings={"control.group": GROUP, "control.observe": "group"})
    refused = as_other(daemon, "status")
    assert refused.returncode == 5
    assert GROUP in refused.stderr
    assert daemon.buildctl("status").returncode == 0


def test_observe_group_holds_also_for_a_socket_that_anyone_can_reach(boot: Boot) -> None:
    daemon = boot(settings={"control.group": GROUP, "control.observe": "group"})
    daemon.socket.chmod(0o666)
    refused = as_other(daemon, "status")
    assert refused.returncode == 5
    assert "right to observe" in refused.stderr
    assert f"group {GROUP}" in refused.stderr


def test_a_member_of_the_group_may_start_and_is_on_record(boot: Boot, repository: RecipeRepository) -> None:
    daemon = boot(settings={"control.group": GROUP, "control.observe": "group"})
    repository.package("one").commit()
    # the kernel reports the primary group of a peer; that being the group counts as membership
    done = as_other(daemon, "start", repository, "--wait", "--json", gid=grp.getgrnam(GROUP).gr_gid)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requested_by"] == "nobody"
