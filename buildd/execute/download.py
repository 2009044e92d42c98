"""The cache of distfiles: files from outside the repository, each under the SHA-256 that it must have.

Downloads run in worker threads of their own limit, so that slow servers take no thread from the rest of the
daemon; a cancelled one ends within `wire.TICK` seconds, except while the disk itself is stuck.

Invariant: a file at `directory/<sha256>` was complete, durable and of that hash when it got its name. Each hash
is downloaded by one task at a time; the others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import trio
from msgspec import Struct

from buildd.errors import BuildFailure, is_shortage
from buildd.execute.transport import FetchError, Proxies, Transport, redacted
from buildd.execute.wire import Address
from buildd.model import Source
from buildd.store.tree import CHUNK, sync_directory, write_all
from buildd.threads import in_thread

T = TypeVar("T")

Log = Callable[[str], None]
"""Takes a line for the build's log, in trio's thread."""

_REPORT_S = 5.0  # between two lines about the progress of one download
_LONGEST_PAUSE_S = 60.0
_PART = ".part"


class FetchSettings(Struct, frozen=True, kw_only=True):
    """How sources are fetched. Times are seconds."""

    schemes: tuple[str, ...] = ("https", "http")
    """Allowed in the URLs of sources, mirrors and redirects; `file` may be added (but never redirected to)."""
    mirrors: tuple[str, ...] = ()
    """Base URLs that are asked first, for `<mirror>/<file name>`."""
    connect_timeout: float = 30.0
    """For a connection, and again for its TLS handshake."""
    idle_timeout: float = 60.0
    total_timeout: float = 3600.0
    """For one source with all its mirrors and attempts."""
    max_bytes: int = 4 << 30
    max_redirects: int = 8
    retries: int = 3
    """Further attempts at one URL after a failure that may pass."""
    backoff: float = 1.0
    """Pause before the first further attempt; doubled each time."""
    max_concurrent: int = 8
    proxies: Proxies = Proxies()
    ca_file: str = ""
    """PEM file of certificate authorities to trust beside those of the system."""


class DistfileCache:
    """The directory of distfiles; one object per directory and daemon.

    Making it creates the directory and removes what interrupted downloads left there. Raises OSError.
    """

    def __init__(self, directory: Path, settings: FetchSettings) -> None:
        self.directory = directory
        self._settings = settings
        self._flights: dict[str, _Flight] = {}
        self._known: dict[str, tuple[int, ...]] = {}
        self._slots = trio.Semaphore(settings.max_concurrent)
        self._threads = trio.CapacityLimiter(2 * settings.max_concurrent)  # no download waits for hashing
        tls = ssl.create_default_context()
        if settings.ca_file:
            tls.load_verify_locations(settings.ca_file)
        self._transport = Transport(
            schemes=settings.schemes,
            connect_timeout=settings.connect_timeout,
            idle_timeout=settings.idle_timeout,
            max_redirects=settings.max_redirects,
            proxies=settings.proxies,
            tls=tls,
            resolve=partial(_resolve, settings.connect_timeout),
            check=trio.from_thread.check_cancelled,
        )
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f".*{_PART}"):
            leftover.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the file with this hash is, once it has been fetched."""
        return self.directory / sha256

    async def fetch(self, source: Source, log: Log) -> Path:
        """The file of `source`, from the cache or else from a mirror or its URL.

        Raises BuildFailure: `fetch_failed`, `checksum_mismatch`, or `disk_full`.
        """
        flight = self._flights.setdefault(source.sha256, _Flight())
        flight.users += 1
        try:
            if flight.lock.locked():
                log(f"waiting for {source.filename}, which another build is fetching")
            async with flight.lock:
                if (failure := flight.failures.get(source.url)) is not None:
                    raise BuildFailure(failure.reason, failure.message, hint=failure.hint, transient=failure.transient)
                if await self._present(source, log):
                    return self.path(source.sha256)
                try:
                    await self._download(source, log)
                except BuildFailure as error:
                    flight.failures[source.url] = error  # those who waited would only fail in the same way
                    raise
                return self.path(source.sha256)
        finally:
            flight.users -= 1
            if not flight.users:
                del self._flights[source.sha256]

    async def verify(self, source: Source) -> None:
        """Hash the fetched file again, whatever is known of it; one that is wrong is removed.

        Raises BuildFailure (`checksum_mismatch`).
        """
        path = self.path(source.sha256)
        found = await self._in_thread(partial(_hash_file, path))
        if found != source.sha256:
            await self._in_thread(partial(path.unlink, missing_ok=True))
            raise _mismatch(source, found or "no file", "the cache of distfiles, for " + source.url)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await in_thread(call, limiter=self._threads)

    async def _present(self, source: Source, log: Log) -> bool:
        """Whether the file is there. It is hashed unless it is the very file that was hashed before."""
        path = self.path(source.sha256)
        try:
            identity = _identity(path)
        except FileNotFoundError:
            return False
        if self._known.get(source.sha256) != identity:
            if await self._in_thread(partial(_hash_file, path)) != source.sha256:
                log(f"{source.filename} in the cache is damaged; fetching it again")
                await self._in_thread(partial(path.unlink, missing_ok=True))
                return False
            self._known[source.sha256] = identity
        return True

    # --- downloading ---

    async def _download(self, source: Source, log: Log) -> None:
        async with self._slots:
            with trio.move_on_after(self._settings.total_timeout) as scope:
                await self._from_anywhere(source, log)
        if scope.cancelled_caught:
            raise BuildFailure(
                "fetch_failed",
                f"{redacted(source.url)} was not fetched within {self._settings.total_timeout:g} s",
                hint="try again later, add a mirror, or raise the time limit for fetching",
                transient=True,
            )

    async def _from_anywhere(self, source: Source, log: Log) -> None:
        """Ask the mirrors, then the URL itself, whose failure is the one that counts.

        It may pass if that of any mirror may: the file is to be had as soon as one place answers.
        """
        mirror_may_answer = False
        for mirror in self._settings.mirrors:
            url = f"{mirror.rstrip('/')}/{quote(source.filename)}"
            try:
                return await self._with_retries(url, source, log)
            except BuildFailure as error:
                if error.reason == "disk_full":
                    raise
                mirror_may_answer = mirror_may_answer or error.transient
                log(f"{error.message}; trying the next place")
        try:
            return await self._with_retries(source.url, source, log)
        except BuildFailure as error:
            error.transient = error.transient or (error.reason == "fetch_failed" and mirror_may_answer)
            raise

    async def _with_retries(self, url: str, source: Source, log: Log) -> None:
        for attempt in range(self._settings.retries + 1):
            log(f"fetching {redacted(url)}")
            try:
                return await self._in_thread(partial(self._receive, url, source, log))
            except FetchError as error:
                if not (error.transient and error.soon) or attempt == self._settings.retries:
                    raise BuildFailure(
                        "fetch_failed", error.message, hint=error.hint, transient=error.transient
                    ) from error
                pause = self._settings.backoff * 2**attempt * random.uniform(0.75, 1.25)
                pause = min(max(pause, error.wait or 0.0), _LONGEST_PAUSE_S)
                log(f"{error.message}; trying again in {pause:.0f} s")
            except OSError as error:
                full = error.errno in {errno.ENOSPC, errno.EDQUOT}
                raise BuildFailure(
                    "disk_full" if full else "fetch_failed",
                    f"cannot store {source.filename} in {self.directory}: {error.strerror}",
                    hint="free some space" if full else "check that buildd may write there",
                    transient=full or is_shortage(error),
                ) from error
            await trio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _receive(self, url: str, source: Source, log: Log) -> None:
        """One attempt, in a worker thread. The file is there afterwards, or this raises and nothing is left."""
        temporary = self.directory / f".{source.sha256}.{secrets.token_hex(8)}{_PART}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            found = self._write(url, handle, source.filename, log)
            if found != source.sha256:
                raise _mismatch(source, found, url)
            os.fchmod(handle, 0o444)
            os.fsync(handle)
            os.rename(temporary, self.path(source.sha256))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        sync_directory(self.directory)
        self._known[source.sha256] = _identity(self.path(source.sha256))

    def _write(self, url: str, handle: int, name: str, log: Log) -> str:
        """Stream `url` into an open file; the SHA-256 of what came."""
        digest = hashlib.sha256()
        received = 0
        report_at = time.monotonic() + _REPORT_S
        with contextlib.closing(self._transport.read(url)) as chunks:
            for total, chunk in chunks:
                trio.from_thread.check_cancelled()
                received += len(chunk)
                if max(total or 0, received) > self._settings.max_bytes:
                    raise FetchError(
                        f"{redacted(url)} is larger than {self._settings.max_bytes} bytes",
                        transient=False,
                        hint="raise the size limit for fetching if that is right",
                    )
                digest.update(chunk)
                write_all(handle, chunk)
                if time.monotonic() >= report_at:
                    report_at += _REPORT_S
                    share = f" of {total >> 20} MiB ({100 * received // total} %)" if total else " MiB"
                    trio.from_thread.run_sync(log, f"{name}: {received >> 20}{share}")
        return digest.hexdigest()


class _Flight:
    """Those who want one hash at the moment, and why it could not be had from a URL."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.users = 0
        self.failures: dict[str, BuildFailure] = {}


def _resolve(timeout: float, host: str, port: int) -> Sequence[Address]:
    """Look a name up from a worker thread; done in trio, for getaddrinfo(3) itself cannot be called off."""

    async def lookup() -> Sequence[Address]:
        with trio.move_on_after(timeout):
            return await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        raise TimeoutError(errno.ETIMEDOUT, f"the name of the server was not resolved within {timeout:g} s")

    return trio.from_thread.run(lookup)


def _identity(path: Path) -> tuple[int, ...]:
    found = os.stat(path, follow_symlinks=False)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hash_file(path: Path) -> str | None:
    """SHA-256 of a file, in a worker thread; None if there is no such file."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(CHUNK)
            view = memoryview(buffer)
            while count := file.readinto(buffer):
                trio.from_thread.check_cancelled()
                digest.update(view[:count])
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def _mismatch(source: Source, found: str, url: str) -> BuildFailure:
    return BuildFailure(
        "checksum_mismatch",
        f"{source.filename} has the SHA-256 {found} but should have {source.sha256}; it came from {redacted(url)}",
        hint="if the file was meant to change, check it and put its new SHA-256 into the recipe",
    )
