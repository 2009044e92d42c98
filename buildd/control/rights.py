"""Who may do what: root, the daemon's own user and the control group may control; others may look, if allowed.

The uid is the kernel's word about the peer, not the client's. Group membership is asked of the system's user
database each time, so that a change counts at once.
"""

from __future__ import annotations

import grp
import os
import pwd

from buildd.config import ControlConfig
from buildd.control.socket import Peer
from buildd.errors import NotPermitted
from buildd.protocol import Right


def user_name(uid: int) -> str:
    """The account's name, or `uid N` without one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def may_control(peer: Peer, group: str) -> bool:
    if peer.uid < 0:
        return False
    if peer.uid in (0, os.getuid()):
        return True
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return False
    if peer.gid == entry.gr_gid:
        return True
    try:
        account = pwd.getpwuid(peer.uid)
    except KeyError:
        return False
    return account.pw_gid == entry.gr_gid or account.pw_name in entry.gr_mem


def check(peer: Peer, right: Right, config: ControlConfig) -> None:
    """Raises NotPermitted, naming the right that is missing and how to get it."""
    if may_control(peer, config.group) or (right == "observe" and config.observe == "everyone"):
        return
    who = user_name(peer.uid)
    owner = "" if os.getuid() == 0 else f", {user_name(os.getuid())}"
    raise NotPermitted(
        f"{who} may not {'look at' if right == 'observe' else 'control'} this daemon: it takes the right to {right}, "
        f"which members of group {config.group}{owner} and root have",
        hint=f"ask an administrator for membership of the group: usermod -aG {config.group} {who}",
    )
