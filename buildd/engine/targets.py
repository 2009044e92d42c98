"""Targets: `REPO[@REV][//PACKAGE]`, taken apart.

REPO is a URL, an absolute path, `user@host:path` or the name of a known repository. The `//` of a URL's scheme
is not the package separator, and the `@` before a host is not the revision's.
"""

from __future__ import annotations

import os
import re

from msgspec import Struct

from buildd.errors import InvalidInput

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCP = re.compile(r"[^@/\s]+@[^:/\s]+:")
MAX_TARGET = 4096


class Target(Struct, frozen=True, kw_only=True):
    repo: str
    revision: str | None
    package: str | None
    local: bool
    """Whether `repo` is an absolute path."""


def parse_target(text: str) -> Target:
    """Raises InvalidInput for what cannot be a target."""
    if not text or len(text) > MAX_TARGET or not text.isprintable():
        raise InvalidInput(f"{text[:100]!r} is not a target", hint="write REPO[@REV][//PACKAGE]")
    scheme = _SCHEME.match(text)
    head, rest = (scheme.group(), text[scheme.end() :]) if scheme else ("", text)
    rest, separator, package = rest.rpartition("//") if "//" in rest else (rest, "", "")
    if separator and not package:
        raise InvalidInput(f"{text!r} ends in // without a package", hint="write REPO//PACKAGE")
    if scheme:
        host, slash, path = rest.partition("/")
        path, revision = _split(path)
        repo = head + host + slash + path
    elif rest.startswith("/"):
        # a directory may have an @ in its name: what exists is taken as it is
        repo, revision = (rest, None) if os.path.isdir(rest) else _split(rest, last=True)
    elif scp := _SCP.match(rest):
        path, revision = _split(rest[scp.end() :])
        repo = scp.group() + path
    else:
        repo, revision = _split(rest)
    if not repo or revision == "":
        raise InvalidInput(f"{text!r} is not a target", hint="write REPO[@REV][//PACKAGE]")
    return Target(repo=repo, revision=revision, package=package or None, local=repo.startswith("/"))


def without_credentials(text: str) -> str:
    """A target as it may be recorded and shown: without what a URL says before the host, but for ssh's user."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return text
    authority, slash, path = text[scheme.end() :].partition("/")
    user, at, host = authority.rpartition("@")
    name = user.partition(":")[0]
    kept = f"{name}@" if at and name and scheme.group().lower() == "ssh://" else ""
    return f"{scheme.group()}{kept}{host}{slash}{path}"


def is_url(repo: str) -> bool:
    """Whether a target's repository is a URL, or `user@host:path`, and not a known name."""
    return bool(_SCHEME.match(repo) or _SCP.match(repo))


def _split(text: str, *, last: bool = False) -> tuple[str, str | None]:
    repo, at, revision = text.rpartition("@") if last and "@" in text else text.partition("@")
    return repo, revision if at else None
