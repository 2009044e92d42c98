"""Which credentials go to which server.

A token file holds `token` or `user:token`. Tokens from files are sent over https only: `http` would show them
to everybody on the way. What stands in the URL itself is the caller's own choice and is sent as asked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from buildd.repos.transfer import CloneFailed
from buildd.repos.url import Credentials, RepoUrl

_DEFAULT_USER = "x-access-token"
"""A user name that the large forges accept beside a token."""
_MAX_TOKEN = 8192


def credentials_for(url: RepoUrl, embedded: Credentials | None, tokens: Mapping[str, str]) -> Credentials | None:
    """The credentials for `url`: those that came with it, else those of its host's token file.

    Blocks for reading a small file. Raises CloneFailed when the file cannot be used.
    """
    if embedded is not None and embedded.password:
        return embedded
    file = tokens.get(url.host) if url.scheme == "https" else None
    if file is None:
        return embedded
    username, token = _read(file, url.host)
    if embedded is not None:
        username = embedded.username
    return Credentials(username=username or _DEFAULT_USER, password=token)


def _read(file: str, host: str) -> tuple[str, str]:
    hint = f"repos.token_files names {file} for {host}."
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, encoding="utf-8") as stream:
            mode = os.fstat(fd).st_mode
            text = stream.read(_MAX_TOKEN + 1).strip() if stat.S_ISREG(mode) else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CloneFailed("auth", f"cannot read the token file {file}: {error}", hint=hint) from error
    if mode & stat.S_IROTH:
        raise CloneFailed("auth", f"the token file {file} can be read by everybody", hint=f"chmod o-rwx it. {hint}")
    if not text or len(text) > _MAX_TOKEN or not text.isprintable():
        raise CloneFailed("auth", f"the token file {file} holds no token", hint=f"One line is expected. {hint}")
    username, colon, token = text.partition(":")
    return (username, token) if colon else ("", text)
