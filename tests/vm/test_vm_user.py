"""systemd/user/buildd.service: a daemon of one user, under the systemd of that user."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness import RecipeRepository

from vm.guest import Guest, copied_in
from vm.image import NOBODY_SPECIAL, ROOT
from vm.machine import Result

HOG = "head -c 400000000 /dev/zero | tail -n 1 | wc -c"


class User:
    """Somebody with a systemd of their own, who has installed the unit as README.md says."""

    def __init__(self, vm: Guest, name: str) -> None:
        self._vm, self.name = vm, name
        vm.run(f"loginctl enable-linger {name}")
        vm.until(f"systemctl is-active user@$(id -u {name}).service")
        unit = f"/home/{name}/.config/systemd/user/buildd.service"
        vm.write(unit, (ROOT / "systemd/user/buildd.service").read_text())
        vm.run(f"chown -R {name}: /home/{name}/.config")

    def run(self, command: str, *, check: bool = True) -> Result:
        return self._vm.run(f"export XDG_RUNTIME_DIR=/run/user/$(id -u); {command}", user=self.name, check=check)

    def leave(self) -> None:
        self._vm.run(f"loginctl disable-linger {self.name}; systemctl stop user@$(id -u {self.name}).service")
        self._vm.run(f"rm -rf /home/{self.name}/.config /home/{self.name}/.local")


@pytest.fixture
def user(vm: Guest) -> Iterator[User]:
    user = User(vm, NOBODY_SPECIAL)
    yield user
    user.leave()


def test_a_user_has_a_daemon_whose_builds_are_limited_by_cgroups_too(
    vm: Guest, user: User, repository: RecipeRepository
) -> None:
    repository.package("fat", phases={"build": HOG}, limits={"memory": "100MiB"})
    repository.package("fine", phases={"build": "id -un; sleep 1"}).commit()
    target = copied_in(vm, repository)
    user.run("systemctl --user daemon-reload; systemctl --user start buildd")
    assert "ready, builds run in bwrap" in user.run("systemctl --user status buildd").out
    status = json.loads(user.run("buildctl status --json").out)
    assert status["state_dir"] == f"/home/{user.name}/.local/state/buildd"

    ended = user.run(f"buildctl start {target} --wait", check=False)
    assert ended.status == 1, ended
    found = json.loads(user.run("""buildctl call run.status '{"run": "1"}'""").out)
    told = {package["name"]: package for package in found["packages"]}
    assert told["fine"]["state"] == "success"
    assert told["fat"]["reason"] == "oom"
    assert "the kernel ended it" in told["fat"]["message"]

    user.run("systemctl --user restart buildd")
    assert json.loads(user.run("buildctl status --json").out)["pid"] != status["pid"]
    user.run("systemctl --user stop buildd")
    assert vm.run(f"pgrep -u {user.name} -f buildd", check=False).out == ""
