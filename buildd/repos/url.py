"""Repository URLs: from untrusted text to one identity, one safe directory name and what the transport needs.

Invariant: credentials inside a URL are split off at once. They are in `RepoUrl.credentials` for the transport
and nowhere else: not in `normalized`, not in `fetch_url`, not in an error, not in a repr.

Two spellings are one repository only when every server must treat them alike: case of scheme and host, the
default port, trailing slashes. `host:path` (relative to the home directory) therefore stays another repository
than `ssh://host/path`, and `x` another than `x.git`.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import unquote

from msgspec import Struct

from buildd.errors import InvalidInput

SCHEMES = ("https", "http", "ssh", "git", "file")
"""All schemes that exist; a configuration allows some of them."""
MAX_LENGTH = 2048
_DEFAULT_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]")
_USER = re.compile(r"[A-Za-z0-9_.+@][A-Za-z0-9_.+@-]*")
_REMOTE_HELPER = re.compile(r"[A-Za-z0-9+.-]*::")
_SCP = re.compile(r"(?:(?P<user>[^@:/]+)@)?(?P<host>\[[^\]/]*\]|[^:/@]+):(?P<path>.+)")


class Credentials(Struct, frozen=True, kw_only=True):
    """User and password or token of one transport. Its repr shows neither."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(…)"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("username", "…"), ("password", "…")]


class RepoUrl(Struct, frozen=True, kw_only=True):
    """A checked URL. Two texts that mean the same repository have the same `normalized`."""

    scheme: str
    normalized: str
    """The identity, without credentials."""
    fetch_url: str
    """What the transport is given, without credentials; a plain path for `file`."""
    host: str
    """Lower case, with the port when it is not the default; empty for `file`."""
    name: str
    """Last component without `.git`."""
    directory: str
    """File name of the clone: ASCII, never hidden, unique for `normalized`."""
    credentials: Credentials | None = None


def parse_url(text: str, schemes: Sequence[str]) -> RepoUrl:
    """Check `text`: a URL, `user@host:path`, or an absolute local path.

    Raises InvalidInput when it is malformed or its scheme is not among `schemes`.
    """
    _check_text(text)
    if text.startswith("/"):
        return _file(text, text, schemes)
    if _REMOTE_HELPER.match(text):
        _refuse(text, "names a remote helper program, which is never run", schemes)
    if "://" not in text:
        return _scp(text, schemes)
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES or scheme not in schemes:
        _refuse(text, f"has the scheme {scheme[:20]!r}, which is not allowed", schemes)
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost"):
            _refuse(text, "names a host, but file URLs are local", schemes)
        return _file(text, unquote(slash + path), schemes)
    return _network(text, scheme, rest, schemes)


def redact(text: str) -> str:
    """`text` fit for an error message: what may be a credential is replaced, and it is cut to 200 characters."""
    start = text.find("://") + 3 if "://" in text else 0
    at = text.rfind("@")
    if at >= start:
        text = text[:start] + "***" + text[at:]
    return ascii(text[:200])[1:-1] + ("…" if len(text) > 200 else "")


def _check_text(text: str) -> None:
    if not text:
        raise InvalidInput("the repository URL is empty", hint="Give a URL or an absolute path.")
    if len(text) > MAX_LENGTH:
        raise InvalidInput(f"the repository URL has {len(text)} characters, more than {MAX_LENGTH}")
    if any(unicodedata.category(character).startswith("C") for character in text):
        raise InvalidInput("the repository URL contains control or unprintable characters")
    if text != text.strip():
        raise InvalidInput("the repository URL begins or ends with a space")
    if text.startswith("-"):
        raise InvalidInput("a repository URL cannot begin with '-'", hint="It looks like an option.")


def _network(text: str, scheme: str, rest: str, schemes: Sequence[str]) -> RepoUrl:
    authority, _, path = rest.partition("/")
    userinfo, at, hostport = authority.rpartition("@")
    user, colon, password = userinfo.partition(":")
    user, password = unquote(user), unquote(password)
    if any(unicodedata.category(character).startswith("C") for character in user + password):
        _refuse(text, "has control characters in its credentials", schemes)
    host, port = _host_and_port(text, scheme, hostport, schemes)
    if "?" in path or "#" in path:
        _refuse(text, "has a query or a fragment, which a repository URL cannot have", schemes)
    path = _clean_path(text, path, schemes)
    netloc = host if port is None else f"{host}:{port}"
    credentials = None
    if scheme == "ssh":
        # The user is part of where the repository is, not a secret; a password would be one, and is not usable.
        if colon:
            _refuse(text, "has a password, which ssh cannot take", schemes, "Use an ssh key or agent.")
        if at and not _USER.fullmatch(user):
            _refuse(text, "has an unusable user name", schemes)
        where = f"{user}@{netloc}" if user else netloc
    else:
        if at and scheme == "git":
            _refuse(text, "has credentials, which the git protocol cannot send", schemes)
        credentials = _credentials(user, password)
        where = netloc
    normalized = f"{scheme}://{where}/{path}"
    return _url(scheme, normalized, normalized, netloc, path, credentials)


def _credentials(user: str, password: str) -> Credentials | None:
    if password:
        return Credentials(username=user or "x-access-token", password=password)
    # `https://TOKEN@host` is how several forges document their tokens.
    return Credentials(username=user, password="") if user else None


def _scp(text: str, schemes: Sequence[str]) -> RepoUrl:
    match = _SCP.fullmatch(text)
    if match is None:
        _refuse(text, "is neither a URL nor an absolute path", schemes)
    if "ssh" not in schemes:
        _refuse(text, "means the scheme 'ssh', which is not allowed", schemes)
    user, host, path = match["user"] or "", match["host"].lower(), match["path"]
    if user and not _USER.fullmatch(user):
        _refuse(text, "has an unusable user name", schemes)
    if not _HOST.fullmatch(host):
        _refuse(text, "has an unusable host name", schemes)
    if path.startswith("-") or "@" in path:
        _refuse(text, "has an unusable path", schemes)
    where = f"{user}@{host}" if user else host
    cleaned = _clean_path(text, path.lstrip("/") if path.startswith("/") else path, schemes)
    normalized = f"ssh://{where}/{cleaned}" if path.startswith("/") else f"{where}:{cleaned}"
    return _url("ssh", normalized, normalized, host, cleaned, None)


def _file(text: str, path: str, schemes: Sequence[str]) -> RepoUrl:
    if "file" not in schemes:
        _refuse(text, "is a local path (scheme 'file'), which is not allowed", schemes)
    if not path.startswith("/"):
        _refuse(text, "is not an absolute path", schemes)
    _check_text(path)
    path = "/" + os.path.normpath(path).lstrip("/")
    return _url("file", f"file://{path}", path, "", path, None)


def _url(
    scheme: str, normalized: str, fetch_url: str, host: str, path: str, credentials: Credentials | None
) -> RepoUrl:
    name = path.rstrip("/").rsplit("/", 1)[-1]
    if scheme == "file" and name == ".git":
        name = path.rstrip("/").rsplit("/", 2)[-2]
    name = name.removesuffix(".git") or host or "root"
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:60] or "repository"
    digest = hashlib.sha256(normalized.encode()).hexdigest()[:12]
    return RepoUrl(
        scheme=scheme,
        normalized=normalized,
        fetch_url=fetch_url,
        host=host,
        name=name,
        directory=f"{safe}-{digest}.git",
        credentials=credentials,
    )


def _host_and_port(text: str, scheme: str, hostport: str, schemes: Sequence[str]) -> tuple[str, int | None]:
    host, port_text = hostport, ""
    if not hostport.endswith("]"):
        head, colon, tail = hostport.rpartition(":")
        if colon:
            host, port_text = head, tail
    host = host.lower()
    if not _HOST.fullmatch(host) or ".." in host:
        _refuse(text, "has no usable host name", schemes)
    if not port_text:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 0 < int(port_text) < 65536:
        _refuse(text, "has an unusable port", schemes)
    port = int(port_text)
    return host, None if port == _DEFAULT_PORTS[scheme] else port


def _clean_path(text: str, path: str, schemes: Sequence[str]) -> str:
    parts = [part for part in path.split("/") if part]
    if not parts:
        _refuse(text, "names a host but no repository", schemes)
    if any(unquote(part) in (".", "..") for part in parts):
        _refuse(text, "has '.' or '..' in its path", schemes)
    if any(unicodedata.category(character).startswith("C") for character in unquote(path)):
        _refuse(text, "has control characters in its path", schemes)
    return "/".join(parts)


def _refuse(text: str, why: str, schemes: Sequence[str], hint: str = "") -> NoReturn:
    allowed = ", ".join(schemes) or "none"
    raise InvalidInput(
        f"the repository URL '{redact(text)}' {why} (allowed schemes: {allowed})",
        hint=hint or f"Allowed schemes: {allowed} (repos.schemes in the configuration).",
    )
