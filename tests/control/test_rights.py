"""Who may do what."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from buildd.config import ControlConfig
from buildd.control import rights
from buildd.control.socket import Peer
from buildd.errors import NotPermitted

GID = 4_000_001
STRANGER, BY_LIST, BY_PRIMARY, NAMELESS = 4_000_010, 4_000_011, 4_000_012, 4_000_013
ACCOUNTS = {STRANGER: ("stranger", 100), BY_LIST: ("member", 100), BY_PRIMARY: ("primary", GID)}


@pytest.fixture(autouse=True)
def _accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user database with the group `builders`."""
    real = pwd.getpwuid

    def getpwuid(uid: int) -> object:
        if uid in ACCOUNTS:
            name, gid = ACCOUNTS[uid]
            return pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/sh"))
        return real(uid)

    def getgrnam(name: str) -> object:
        if name != "builders":
            raise KeyError(name)
        return grp.struct_group(("builders", "x", GID, ["member"]))

    monkeypatch.setattr(rights.pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(rights.grp, "getgrnam", getgrnam)


@pytest.mark.parametrize(
    ("peer", "may"),
    [
        (Peer(0, 0, 1), True),
        (Peer(os.getuid(), os.getgid(), 1), True),
        (Peer(BY_LIST, 100, 1), True),
        (Peer(BY_PRIMARY, 100, 1), True),
        (Peer(STRANGER, GID, 1), True),  # by the group it runs with
        (Peer(NAMELESS, GID, 1), True),
        (Peer(STRANGER, 100, 1), False),
        (Peer(NAMELESS, 100, 1), False),
        (Peer(-1, -1, -1), False),
        (Peer(-1, GID, -1), False),
    ],
)
def test_root_the_daemons_user_and_members_control(peer: Peer, may: bool) -> None:
    assert rights.may_control(peer, "builders") is may


def test_without_the_group_only_root_and_the_daemons_user_control() -> None:
    assert rights.may_control(Peer(0, 0, 1), "no-such-group")
    assert not rights.may_control(Peer(BY_LIST, GID, 1), "no-such-group")


def test_everyone_may_look_where_the_configuration_says_so() -> None:
    stranger = Peer(STRANGER, 100, 1)
    rights.check(stranger, "observe", ControlConfig(group="builders", observe="everyone"))
    with pytest.raises(NotPermitted):
        rights.check(stranger, "observe", ControlConfig(group="builders", observe="group"))
    with pytest.raises(NotPermitted):
        rights.check(stranger, "control", ControlConfig(group="builders", observe="everyone"))
    rights.check(Peer(BY_LIST, 100, 1), "observe", ControlConfig(group="builders", observe="group"))
    rights.check(Peer(BY_LIST, 100, 1), "control", ControlConfig(group="builders", observe="group"))


def test_a_refusal_names_the_caller_the_right_and_the_way_to_it() -> None:
    with pytest.raises(NotPermitted, match="stranger may not control this daemon") as caught:
        rights.check(Peer(STRANGER, 100, 1), "control", ControlConfig(group="builders"))
    assert "group builders" in caught.value.message
    assert caught.value.hint.endswith("usermod -aG builders stranger")


def test_a_user_without_an_account_has_a_name_too() -> None:
    assert rights.user_name(NAMELESS) == f"uid {NAMELESS}"
    assert rights.user_name(-1) == "uid -1"
    assert rights.user_name(STRANGER) == "stranger"
