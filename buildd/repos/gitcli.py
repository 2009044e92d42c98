"""The `git` program as transport of a clone worker.

git indexes a pack on all cores and libgit2 on one: with 130 MB of history git is 1.3 to 5 times faster (see
docs/architecture.md), so this is the transport of choice where git is installed.

git is run with an exact environment: no system or user configuration, no hooks, no templates, no prompts, one
allowed protocol. A password reaches it through a variable that only its credential helper reads and that is
offered to the one host it is for; a redirect to another host gets nothing.

This runs inside the worker, whose process group the daemon kills as a whole, so git is started with
`posix_spawn` here (in that group) and not through the daemon's door to child processes, which gives each
child a session of its own.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
from collections.abc import Callable, Mapping

from buildd.repos.failures import classify, clean
from buildd.repos.references import KEPT, References, kept
from buildd.repos.wire import Progress, Request, Stage, TransferError

REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_PROGRESS = re.compile(
    r"(?P<remote>remote: )?(?P<title>[A-Z][A-Za-z ]+):\s+"
    r"(?:(?P<percent>\d+)% \((?P<done>\d+)/(?P<total>\d+)\)|(?P<count>\d+))"
    r"(?:, (?P<size>[\d.]+) (?P<unit>bytes|KiB|MiB|GiB))?"
)
_HEAD = re.compile(r"^ref: (refs/heads/\S+)\tHEAD$", re.MULTILINE)
_MAX_LISTING = 64 << 20
"""Bytes: about a million references."""
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_HELPER = (
    '!f() { test "$1" = get || exit 0; printf "username=%s\\npassword=%s\\n" "$BUILDD_USER" "$BUILDD_SECRET"; }; f'
)


def find_git(environ: Mapping[str, str]) -> str | None:
    """The git program on PATH, or None."""
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = os.path.join(folder, "git")
        if folder.startswith("/") and os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    return None


class GitTransport:
    """Clones and fetches one repository by `program`. Raises TransferError."""

    def __init__(self, program: str, request: Request, environ: Mapping[str, str]) -> None:
        self._program = program
        self._request = request
        self._env = _environment(request, environ)
        credentials = request.credentials
        self._secrets = (credentials.password or credentials.username,) if credentials else ()

    def clone(self, report: Callable[[Progress], None]) -> None:
        self._run(
            ["clone", "--bare", "--progress", "--template=", "--", self._request.url, self._request.path],
            report,
        )

    def fetch(self, report: Callable[[Progress], None]) -> None:
        # Named outright: a damaged clone must not make git look for a repository in the directories above.
        where = [f"--git-dir={self._request.path}"]
        head = self._run([*where, "ls-remote", "--symref", "--", self._request.url, "HEAD"], None)
        self._run(
            [
                *where,
                *("fetch", "--progress", "--prune", "--force", "--no-tags", "--no-write-fetch-head"),
                *("--", self._request.url, *REFSPECS),
            ],
            report,
        )
        match = _HEAD.search(head)
        if match:
            self._run([*where, "symbolic-ref", "HEAD", match[1]], None)

    def references(self) -> References | None:
        """What the server has; None when it has too many to tell."""
        # Only these patterns keep the output small: a forge has a reference for each pull request as well.
        wanted = ("HEAD", *(f"{prefix}*" for prefix in KEPT))
        listed = self._run(["ls-remote", "--symref", "--", self._request.url, *wanted], None, _MAX_LISTING)
        if len(listed) >= _MAX_LISTING:
            return None
        head = _HEAD.search(listed)
        pairs = (line.partition("\t")[::2] for line in listed.split("\n"))
        return References(head=head[1] if head else None, ids=kept((name, id) for id, name in pairs))

    def _run(self, arguments: list[str], report: Callable[[Progress], None] | None, limit: int = 1 << 20) -> str:
        """Run git and return what it wrote on stdout (at most `limit` bytes of it are kept)."""
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        try:
            pid = os.posix_spawn(
                self._program,
                [self._program, *arguments],
                self._env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out_write, 1),
                    (os.POSIX_SPAWN_DUP2, err_write, 2),
                ],
                setsigdef=[signal.SIGTERM, signal.SIGPIPE, signal.SIGINT],
            )
        except BaseException:
            os.close(out_read)
            os.close(err_read)
            raise
        finally:
            os.close(out_write)
            os.close(err_write)
        try:
            output, words = _collect(out_read, err_read, _Reader(report), limit)
        finally:
            os.close(out_read)
            os.close(err_read)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 0:
            message = clean(words, self._secrets) or f"git ended with status {status}"
            raise TransferError(classify(message), message)
        return output


class _Reader:
    """Tells progress from words in git's stderr."""

    def __init__(self, report: Callable[[Progress], None] | None) -> None:
        self._report = report
        self._now = Progress(stage="connecting")
        self.words: list[str] = []

    def line(self, text: str) -> None:
        match = _PROGRESS.match(text)
        if match is None:
            # A server can talk for ever: only its last words are kept, and what git itself says of them.
            if text.strip() and not text.startswith(("Cloning into", "From ", " ")):
                self.words = [*self.words[-19:], text.strip()[:500]]
            return
        if self._report is not None:
            self._now = self._next(match)
            self._report(self._now)

    def _next(self, match: re.Match[str]) -> Progress:
        done = int(match["done"] or match["count"])
        if match["remote"]:
            return Progress(stage="counting", remote_messages=self._now.remote_messages + 1)
        total = int(match["total"] or done)
        title = match["title"]
        if title == "Receiving objects":
            size = float(match["size"]) * _UNITS[match["unit"]] if match["size"] else self._now.received_bytes
            stage: Stage = "finishing" if done == total and ", done" in match.string else "receiving"
            return Progress(stage=stage, received_objects=done, total_objects=total, received_bytes=int(size))
        now = self._now
        indexed = now.total_objects - total + done if title == "Resolving deltas" else now.indexed_objects
        return Progress(
            stage="resolving",
            received_objects=now.received_objects,
            total_objects=now.total_objects,
            indexed_objects=max(indexed, 0),
            received_bytes=now.received_bytes,
        )


def _collect(out_fd: int, err_fd: int, reader: _Reader, limit: int) -> tuple[str, str]:
    poller = select.poll()
    poller.register(out_fd, select.POLLIN)
    poller.register(err_fd, select.POLLIN)
    output, pending, open_fds = bytearray(), b"", 2
    while open_fds:
        for fd, _ in poller.poll():
            data = os.read(fd, 65536)
            if not data:
                poller.unregister(fd)
                open_fds -= 1
            elif fd == out_fd:
                output += data[: limit - len(output)]
            else:
                *lines, pending = re.split(rb"[\r\n]", pending + data)
                pending = pending[-65536:]
                for line in lines:
                    reader.line(line.decode("utf-8", "replace"))
    reader.line(pending.decode("utf-8", "replace"))
    return output.decode("utf-8", "replace"), " ".join(reader.words)


def _environment(request: Request, environ: Mapping[str, str]) -> dict[str, str]:
    env = dict(environ)
    config = {
        "core.hooksPath": os.devnull,
        "protocol.allow": "never",
        "gc.auto": "0",
        "maintenance.auto": "false",
        # Keep packs as packs: one file to write and sync instead of one per object.
        "fetch.unpackLimit": "1",
        "transfer.unpackLimit": "1",
        "fetch.recurseSubmodules": "false",
        "credential.helper": "",
    }
    # A server may send http to https, never the other way.
    allowed = ["http", "https"] if request.scheme == "http" else [request.scheme]
    for protocol in allowed:
        config[f"protocol.{protocol}.allow"] = "always"
    credentials = request.credentials
    pairs = list(config.items())
    if credentials is not None:
        root = "/".join(request.url.split("/", 3)[:3])
        pairs.append((f"credential.{root}.helper", _HELPER))
        env["BUILDD_USER"] = credentials.username
        env["BUILDD_SECRET"] = credentials.password
    env["GIT_CONFIG_COUNT"] = str(len(pairs))
    for number, (key, value) in enumerate(pairs):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    env["GIT_CONFIG_NOSYSTEM"] = "1"
    env["GIT_CONFIG_GLOBAL"] = os.devnull
    env["GIT_ATTR_NOSYSTEM"] = "1"
    env["GIT_TERMINAL_PROMPT"] = "0"
    env["GIT_ALLOW_PROTOCOL"] = ":".join(allowed)
    env["GIT_SSH_VARIANT"] = "ssh"
    env["GIT_SSH_COMMAND"] = _ssh_command(request)
    # git knows these two of OpenSSL's variables under names of its own.
    if "SSL_CERT_FILE" in environ:
        env["GIT_SSL_CAINFO"] = environ["SSL_CERT_FILE"]
    if "SSL_CERT_DIR" in environ:
        env["GIT_SSL_CAPATH"] = environ["SSL_CERT_DIR"]
    return env


def _ssh_command(request: Request) -> str:
    options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ForwardAgent=no",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        f"ConnectTimeout={max(1, round(request.connect_timeout_s))}",
        "ServerAliveInterval=15",
    ]
    if request.known_hosts is not None:
        options.append(f'UserKnownHostsFile="{request.known_hosts}" ~/.ssh/known_hosts')
    command = ["ssh", "-x", *(word for option in options for word in ("-o", option))]
    if request.ssh_key is not None:
        command += ["-o", "IdentitiesOnly=yes", "-i", request.ssh_key]
    return shlex.join(command)
