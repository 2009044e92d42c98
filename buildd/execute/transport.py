"""One attempt at one URL (http, https or file), as a stream of chunks, for a worker thread.

Redirects, proxies, deadlines and what counts as worth another attempt are decided here. http.client on `Wire`
is enough for that: an async client on trio (httpx) would bring six packages for what is one GET per source, and
would still leave hashing and writing to a thread.

Invariant: a message never holds a credential; user names, passwords and secret query values are starred out.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import socket
import ssl
import stat
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from msgspec import Struct

from buildd.execute.wire import Address, Wire, dial

_CHUNK = 1 << 18
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 421, 425, 429}  # worth another attempt; so is trouble of the server's own, 500-599
_FINAL = {501, 505}  # of these: the server will never know the method or the version
_SOON_EAI = {socket.EAI_AGAIN, socket.EAI_SYSTEM}  # others are what the name server is sure of at the moment
_SECRET = re.compile(r"(?i)(^|&)([^=&]*(?:token|secret|passw|key|sig|auth|cred)[^=&]*)=[^&]*")
_PORTS = {"http": 80, "https": 443}


Chunks = Generator[tuple[int | None, memoryview], None, None]


class Proxies(Struct, frozen=True, kw_only=True):
    """Which proxy to use; URLs with the scheme http, with or without credentials. Empty: none."""

    http: str = ""
    https: str = ""
    no_proxy: str = ""
    """Host name suffixes, separated by commas, that are asked directly; `*` for all."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Proxies:
        """As curl does it: lower case wins, and HTTP_PROXY in capitals is ignored (a CGI client can set it)."""
        either = {name: environ.get(name) or environ.get(name.upper(), "") for name in _PROXY_VARIABLES}
        return cls(
            http=environ.get("http_proxy", "") or either["all_proxy"],
            https=either["https_proxy"] or either["all_proxy"],
            no_proxy=either["no_proxy"],
        )

    def bypassed(self, host: str) -> bool:
        """Whether `host` is asked directly; `.example.org` and `example.org` both cover what is below it."""
        names = [name.strip().lower().lstrip(".") for name in self.no_proxy.split(",")]
        return "*" in names or any(name and (host == name or host.endswith(f".{name}")) for name in names)


_PROXY_VARIABLES = ("https_proxy", "all_proxy", "no_proxy")


class FetchError(Exception):
    """An attempt failed.

    `transient`: the same URL may work later, after `wait` seconds if the server said so. `soon`: it may take no
    more than seconds.
    """

    def __init__(
        self, message: str, *, transient: bool, soon: bool = True, wait: float | None = None, hint: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.transient = transient
        self.soon = soon
        self.wait = wait
        self.hint = hint


def redacted(url: str) -> str:
    """`url` as it may be shown: without credentials."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        query = _SECRET.sub(r"\1\2=***", parts.query)
        return urlunsplit(parts._replace(netloc=host, query=query)).encode("ascii", "backslashreplace").decode()
    except ValueError:
        return "(a malformed URL)"


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How to reach servers: the limits and helpers that all attempts share."""

    schemes: Sequence[str]
    connect_timeout: float
    idle_timeout: float
    max_redirects: int
    proxies: Proxies
    tls: ssl.SSLContext
    resolve: Callable[[str, int], Sequence[Address]]
    """getaddrinfo for a stream socket; may raise OSError."""
    check: Callable[[], None]

    def read(self, url: str) -> Chunks:
        """Yield (total bytes if known, chunk). The chunk is valid until the next one is asked for.

        Raises FetchError, and what `check` raises. Close the generator if you leave it early.
        """
        for _ in range(self.max_redirects + 1):
            parts = self._checked(url)
            if parts.scheme == "file":
                yield from _read_file(parts)
                return
            try:
                with (
                    contextlib.closing(self._connect(parts)) as connection,
                    contextlib.closing(self._request(connection, parts)) as response,
                ):
                    if response.status not in _REDIRECTS:
                        yield from _read_body(response, url)
                        return
                    url = self._redirected(url, response)
            except (OSError, http.client.HTTPException) as error:
                raise _described(error, url) from error
        raise FetchError(f"more than {self.max_redirects} redirects, the last one to {redacted(url)}", transient=False)

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise FetchError(f"{redacted(url)} is not a valid URL", transient=False) from None
        if any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
            raise FetchError("the URL holds a space or a control character", transient=False)
        if parts.scheme not in self.schemes or parts.scheme not in {"http", "https", "file"}:
            raise FetchError(
                f"URLs with the scheme {parts.scheme!r} are not allowed: {redacted(url)}",
                transient=False,
                hint=f"allowed are {', '.join(self.schemes)}",
            )
        if parts.scheme != "file" and (not parts.hostname or port == 0):
            raise FetchError(f"{redacted(url)} names no server", transient=False)
        try:
            _host(parts).encode("idna")  # as getaddrinfo(3) is called, which does not say it as an OSError
        except UnicodeError:
            raise FetchError(f"{redacted(url)}: a server cannot have such a name", transient=False) from None
        return parts

    def _redirected(self, url: str, response: http.client.HTTPResponse) -> str:
        location = response.getheader("Location")
        if not location:
            raise FetchError(f"{redacted(url)} redirects to nowhere", transient=False)
        # Header bytes come as Latin-1; browsers and curl pass those beyond ASCII on as they are.
        location = quote(location.encode("latin-1"), safe="!#$%&'()*+,/:;=?@[]~")
        target = urljoin(url, location)
        if urlsplit(target).scheme == "file":
            raise FetchError(f"{redacted(url)} redirects to a local file", transient=False)
        return target

    # --- connections ---

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        """A connection on which the request can be sent: direct, to a proxy, or through one."""
        host, port = _host(parts), parts.port or _PORTS[parts.scheme]
        proxy = self._proxy(parts)
        target = (host, port) if proxy is None else (_host(proxy), proxy.port or 80)
        wire = dial(self.resolve(*target), self.connect_timeout, self.idle_timeout, self.check)
        try:
            if parts.scheme == "https":
                if proxy is not None:
                    _open_tunnel(wire, host, port, _basic(proxy))
                wire = wire.secure(self.tls, host, self.connect_timeout)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = wire  # all of a socket that http.client uses
        except BaseException:
            wire.close()
            raise
        return connection

    def _proxy(self, parts: SplitResult) -> SplitResult | None:
        address = self.proxies.https if parts.scheme == "https" else self.proxies.http
        if not address or self.proxies.bypassed(_host(parts)):
            return None
        proxy = urlsplit(address if "://" in address else f"http://{address}")
        if proxy.scheme != "http" or not proxy.hostname:
            raise FetchError(
                f"the proxy {redacted(proxy.geturl())} cannot be used",
                transient=False,
                hint="set http_proxy and https_proxy to http://HOST:PORT, or unset them",
            )
        return proxy

    def _request(self, connection: http.client.HTTPConnection, parts: SplitResult) -> http.client.HTTPResponse:
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~") or "/"
        if parts.query:
            path += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~")
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "buildd", "Connection": "close"}
        if authorization := _basic(parts):
            headers["Authorization"] = authorization
        if parts.scheme == "http" and (proxy := self._proxy(parts)) is not None:
            path = f"http://{_netloc(_host(parts), parts.port)}{path}"
            if authorization := _basic(proxy):
                headers["Proxy-Authorization"] = authorization
        connection.request("GET", path, headers=headers)
        return connection.getresponse()


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return host if host.isascii() else host.encode("idna").decode()


def _netloc(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _basic(parts: SplitResult) -> str:
    if parts.username is None:
        return ""
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(user.encode()).decode()


def _open_tunnel(wire: Wire, host: str, port: int, authorization: str) -> None:
    """Ask an HTTP proxy to pass everything on to the server."""
    lines = [f"CONNECT {_netloc(host, port)} HTTP/1.1", f"Host: {_netloc(host, port)}"]
    if authorization:
        lines.append(f"Proxy-Authorization: {authorization}")
    wire.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = bytearray()
    byte = memoryview(bytearray(1))
    while not answer.endswith(b"\r\n\r\n"):  # one at a time: what follows belongs to TLS
        if not wire.recv_into(byte) or len(answer) > 1 << 16:
            raise http.client.BadStatusLine("from the proxy")
        answer += byte
    status = answer.split(b" ", 2)[1:2]
    if status != [b"200"]:
        shown = status[0][:3].decode("ascii", "replace") if status else "no status"
        raise FetchError(
            f"the proxy refused to connect to {host} ({shown})",
            transient=shown.startswith("5"),
            hint="check the proxy settings in the environment of buildd",
        )


# --- answers ------------------------------------------------------------------------------------------------


def _read_body(response: http.client.HTTPResponse, url: str) -> Chunks:
    if response.status != 200:
        raise _refused(response, url)
    expected = response.length
    received = 0
    view = memoryview(bytearray(_CHUNK))
    while count := response.readinto(view):
        received += count
        yield expected, view[:count]
    if expected is not None and received != expected:
        raise FetchError(f"{redacted(url)}: the connection ended after {received} of {expected} bytes", transient=True)


def _refused(response: http.client.HTTPResponse, url: str) -> FetchError:
    status = response.status
    hint = ""
    if status in {401, 403, 407}:
        hint = "the server wants credentials, or refuses this machine"
    elif status in {404, 410}:
        hint = "the file is gone from there: correct the url, or add a mirror that has it"
    return FetchError(
        f"{redacted(url)}: the server answered {status} {response.reason[:80]}".rstrip(),
        transient=status in _PASSING or (500 <= status <= 599 and status not in _FINAL),
        wait=_retry_after(response.getheader("Retry-After")),
        hint=hint,
    )


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, (when - when.now(when.tzinfo)).total_seconds())
    except (ValueError, TypeError):
        return None


def _read_file(parts: SplitResult) -> Chunks:
    path = Path(unquote(parts.path))
    if parts.netloc not in {"", "localhost"} or "\0" in str(path):
        raise FetchError(f"{redacted(parts.geturl())} is not a local file", transient=False)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise FetchError(f"{path} is not a regular file", transient=False)
            buffer = bytearray(_CHUNK)
            view = memoryview(buffer)
            while count := os.readv(handle, [buffer]):
                yield status.st_size, view[:count]
        finally:
            os.close(handle)
    except OSError as error:
        raise FetchError(f"cannot read {path}: {error.strerror}", transient=False) from error


def _described(error: OSError | http.client.HTTPException, url: str) -> FetchError:
    """What a failure of the network means to people, and whether it may pass."""
    where = redacted(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchError(
            f"{where}: the certificate of the server is not accepted: {error.verify_message}",
            transient=False,
            hint="install ca-certificates, or name the authority of your site in the configuration",
        )
    if isinstance(error, socket.gaierror):
        return FetchError(
            f"{where}: the name of the server cannot be resolved: {error.strerror}",
            transient=True,
            soon=error.errno in _SOON_EAI,
            hint="check the name in the url, and the name servers of this machine",
        )
    if isinstance(error, ssl.SSLError):
        return FetchError(f"{where}: TLS failed: {error.reason or error.strerror}", transient=True)
    if isinstance(error, OSError):
        return FetchError(f"{where}: {error.strerror or type(error).__name__}", transient=True)
    if isinstance(error, http.client.IncompleteRead):
        return FetchError(f"{where}: the connection ended too early", transient=True)
    # The text of these may quote what the server sent, so their names have to do.
    return FetchError(f"{where}: the answer is not valid HTTP ({type(error).__name__})", transient=True)
