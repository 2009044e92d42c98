"""libgit2 as transport of a clone worker: the fallback where no git program is installed.

System and user configuration are not read. Host keys are checked by libgit2 against `~/.ssh/known_hosts`, TLS
certificates against the system's store (or SSL_CERT_FILE, SSL_CERT_DIR); neither check can be switched off.
libgit2's own time limits stay off: with them its sockets fail with EAGAIN at once (1.9). The daemon's hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import pygit2
from pygit2.enums import ConfigLevel, CredentialType, FetchPrune

from buildd.repos.failures import classify, clean
from buildd.repos.gitcli import REFSPECS
from buildd.repos.references import References, kept
from buildd.repos.wire import Progress, Request, Stage, TransferError

if TYPE_CHECKING:
    from pygit2.remotes import Remote, TransferProgress

T = TypeVar("T")

_Credential = pygit2.UserPass | pygit2.Keypair | pygit2.Username


class LibgitTransport:
    """Clones and fetches one repository. Raises TransferError."""

    def __init__(self, request: Request) -> None:
        self._request = request
        for level in (ConfigLevel.SYSTEM, ConfigLevel.XDG, ConfigLevel.GLOBAL):
            pygit2.settings.search_path[level] = ""

    def clone(self, report: Callable[[Progress], None]) -> None:
        def transfer() -> None:
            repository = pygit2.init_repository(self._request.path, bare=True)
            repository.remotes.create("origin", self._request.url)
            self._transfer(repository, report)

        self._guarded(transfer)

    def fetch(self, report: Callable[[Progress], None]) -> None:
        self._guarded(lambda: self._transfer(pygit2.Repository(self._request.path), report))

    def references(self) -> References | None:
        """What the server has."""
        return self._guarded(lambda: self._list(pygit2.Repository(self._request.path)))

    def _list(self, repository: pygit2.Repository) -> References:
        remote = repository.remotes.create_anonymous(self._request.url)
        remote.connect(callbacks=_Callbacks(self._request, lambda _: None), proxy=True)
        heads = [head for head in remote.list_heads(connect=False) if head.name]
        target = next((getattr(head, "symref_target", None) for head in heads if head.name == "HEAD"), None)
        return References(head=target or None, ids=kept((str(head.name), str(head.oid)) for head in heads))

    def _transfer(self, repository: pygit2.Repository, report: Callable[[Progress], None]) -> None:
        callbacks = _Callbacks(self._request, report)
        remote = repository.remotes.create_anonymous(self._request.url)
        remote.connect(callbacks=callbacks, proxy=True)
        heads = {head.name: head for head in remote.list_heads(connect=False) if head.name}
        # Before the fetch: a branch `a` that is gone would be in the way of a new branch `a/b`.
        for name in list(repository.references):
            if name.startswith(("refs/heads/", "refs/tags/")) and name not in heads:
                repository.references.delete(name)
        _fetch(remote, callbacks)
        self._follow_head(repository, heads.get("HEAD"))
        repository.compress_references()

    def _follow_head(self, repository: pygit2.Repository, head: object) -> None:
        if head is None:
            return  # an empty repository, or one whose HEAD names no branch yet
        target: str | None = getattr(head, "symref_target", None)
        if target and target.startswith("refs/heads/"):
            repository.references.create("HEAD", target, force=True)
        elif not target:
            repository.set_head(getattr(head, "oid"))  # noqa: B009 - pygit2 types the heads as object

    def _guarded(self, work: Callable[[], T]) -> T:
        credentials = self._request.credentials
        secrets = (credentials.password or credentials.username,) if credentials else ()
        try:
            return work()
        except (pygit2.GitError, KeyError, ValueError) as error:
            message = clean(str(error), secrets)
            raise TransferError(classify(message), message) from None


def _fetch(remote: Remote, callbacks: _Callbacks) -> None:
    remote.fetch(refspecs=list(REFSPECS), callbacks=callbacks, prune=FetchPrune.NO_PRUNE, proxy=True)


class _Callbacks(pygit2.RemoteCallbacks):
    def __init__(self, request: Request, report: Callable[[Progress], None]) -> None:
        super().__init__()
        self._request = request
        self._report = report
        self._asked = 0
        self._remote_messages = 0

    def sideband_progress(self, string: str) -> None:
        self._remote_messages += 1
        self._report(Progress(stage="counting", remote_messages=self._remote_messages))

    def transfer_progress(self, stats: TransferProgress) -> None:
        everything = stats.received_objects == stats.total_objects
        stage: Stage = "resolving" if everything else "receiving"
        self._report(
            Progress(
                stage=stage,
                received_objects=stats.received_objects,
                total_objects=stats.total_objects,
                indexed_objects=stats.indexed_objects,
                received_bytes=stats.received_bytes,
            )
        )

    def credentials(self, url: str, username_from_url: str | None, allowed_types: CredentialType) -> _Credential:
        # libgit2 asks again for ever when what it got was refused.
        self._asked += 1
        if self._asked > 3:
            raise TransferError("auth", "the server refused the credentials")
        request = self._request
        if allowed_types & CredentialType.USERNAME:
            return pygit2.Username(username_from_url or os.environ.get("USER") or "git")
        if allowed_types & CredentialType.SSH_KEY:
            user = username_from_url or os.environ.get("USER") or "git"
            if request.ssh_key is not None:
                return pygit2.Keypair(user, f"{request.ssh_key}.pub", request.ssh_key, "")
            if "SSH_AUTH_SOCK" in os.environ:
                return pygit2.KeypairFromAgent(user)
            raise TransferError("auth", "the server wants an ssh key, and there is neither a key nor an agent")
        if allowed_types & CredentialType.USERPASS_PLAINTEXT and request.credentials is not None:
            if self._asked > 1 or not _same_host(url, request.url):
                raise TransferError("auth", "authentication failed: the server refused the token")
            return pygit2.UserPass(request.credentials.username, request.credentials.password)
        raise TransferError("auth", "the server wants authentication, and no token is known for it")


def _same_host(left: str, right: str) -> bool:
    return left.split("/", 3)[:3] == right.split("/", 3)[:3]
