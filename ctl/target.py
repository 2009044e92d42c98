"""Targets, `REPO[@REV][//PACKAGE]`: local paths become absolute here, for the daemon has another directory.

URLs, scp-like addresses (`user@host:path`) and known names go to the daemon as they are.
"""

from __future__ import annotations

import os
import re

from ctl.failure import USAGE, CtlError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCP = re.compile(r"[^/]+:")


def absolute(target: str) -> str:
    """`target` as it means the same to the daemon. Raises CtlError for an empty one."""
    if not target.strip():
        raise CtlError("a target is empty", hint="write it as REPO[@REV][//PACKAGE], for example `.`", code=USAGE)
    if _URL.match(target):
        return target
    start = len(target) - len(target.lstrip("/"))  # leading slashes separate nothing
    cut = target.rfind("//", start)
    place, package = (target, "") if cut < 0 else (target[:cut], target[cut:])
    spelled_as_path = place.startswith((".", "/", "~"))
    path, revision = _split_revision(place)
    if not spelled_as_path and (_SCP.match(place) or not os.path.isdir(path)):
        return target
    full = os.path.abspath(os.path.expanduser(path))
    return "/" + full.lstrip("/") + revision + package


def repository_and_revision(text: str) -> tuple[str, str]:
    """`REPO[@REV]` as REPO, which means the same to the daemon, and REV, empty without one. Raises CtlError."""
    target = absolute(text)
    scheme = _URL.match(target)
    if target.startswith("/"):
        repo, revision = _split_revision(target)
    else:
        # what stands before the path, as in user@host:path, has an @ of its own
        host = _SCP.match(target)
        start = target.find("/", scheme.end()) if scheme else host.end() if host else 0
        path, at, name = target[start:].partition("@") if start >= 0 else ("", "", "")
        repo, revision = (target[:start] + path, at + name) if start >= 0 else (target, "")
    if revision == "@":
        raise CtlError(f"{text!r} ends in @ without a revision", hint="write it as REPO@REV", code=USAGE)
    return repo, revision[1:]


def is_address(repo: str) -> bool:
    """Whether a repository can be cloned from what it is called."""
    return bool(_URL.match(repo) or _SCP.match(repo))


def _split_revision(place: str) -> tuple[str, str]:
    """The path and `@REV`. Directories may have an @ in their name, so what exists decides first."""
    if os.path.exists(os.path.expanduser(place)):
        return place, ""
    ats = [i for i, char in enumerate(place) if char == "@" and i > 0]
    for i in reversed(ats):
        if os.path.exists(os.path.expanduser(place[:i])):
            return place[:i], place[i:]
    return (place[: ats[0]], place[ats[0] :]) if ats else (place, "")
