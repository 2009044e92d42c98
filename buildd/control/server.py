"""JSON-RPC 2.0: a request's bytes in, an answer's bytes out.

Invariant: whatever comes in, `answer` returns; every error has a code, a message and, where there is one, a
hint. A fault of ours is logged with its context and becomes INTERNAL_ERROR; it never ends the daemon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from buildd import protocol
from buildd.config import ControlConfig
from buildd.control import rights
from buildd.control.socket import Peer
from buildd.errors import BuilddError, Busy
from buildd.protocol import METHODS, Error, ErrorData, Request

log = structlog.get_logger()

Handler = Callable[[Any, Peer], Awaitable[Any]]

_requests = msgspec.json.Decoder(Request)
_decoders = {name: msgspec.json.Decoder(method.params) for name, method in METHODS.items()}
_encode = msgspec.json.Encoder().encode
RequestId = int | str | None


class Server:
    def __init__(self, handlers: Mapping[str, Handler], control: Callable[[], ControlConfig]) -> None:
        """`handlers` has one for each of `METHODS`; a missing or surplus one is a broken invariant."""
        if handlers.keys() != METHODS.keys():
            raise AssertionError(f"handlers and methods differ: {sorted(handlers.keys() ^ METHODS.keys())}")
        self._handlers = handlers
        self._control = control

    async def answer(self, body: bytes, peer: Peer) -> bytes | None:
        """The answer to one request; None for a notification."""
        try:
            request = _requests.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _failure(None, _malformed(body, error))
        failure: Error | None = None
        try:
            success = _success(request.id, await self._call(request, peer))
        except BuilddError as error:
            failure = Error(
                code=error.code, message=error.message, data=ErrorData(hint=error.hint, kind=type(error).__name__)
            )
        except _Unanswerable as error:
            failure = error.error
        except Exception:
            log.exception("request failed by a fault of the daemon", method=request.method, peer=peer.uid)
            failure = Error(
                code=protocol.INTERNAL_ERROR, message=f"{request.method} failed", data=ErrorData(hint="see the log")
            )
        if request.id is msgspec.UNSET:
            return None
        return _failure(request.id, failure) if failure is not None else success

    async def _call(self, request: Request, peer: Peer) -> Any:
        method = METHODS.get(request.method)
        if method is None:
            raise _Unanswerable(
                Error(
                    code=protocol.METHOD_NOT_FOUND,
                    message=f"there is no method {request.method[:100]!r}",
                    data=ErrorData(hint="`buildctl schema` lists them"),
                )
            )
        rights.check(peer, method.right, self._control())
        try:
            params = _decoders[request.method].decode(request.params)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Unanswerable(
                Error(
                    code=protocol.INVALID_PARAMS,
                    message=f"{request.method}: {error}",
                    data=ErrorData(hint=f"parameters: {', '.join(_names(method.params)) or 'none'}"),
                )
            ) from None
        return await self._handlers[request.method](params, peer)

    def overflow(self, body: bytes) -> bytes | None:
        """The answer when too many requests are being answered already."""
        try:
            request = _requests.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _failure(None, _malformed(body, error))
        if request.id is msgspec.UNSET:
            return None
        message = "too many requests are waiting for their answers"
        return _failure(
            request.id, Error(code=Busy.code, message=message, data=ErrorData(hint="ask again later", kind="Busy"))
        )


class _Unanswerable(Exception):
    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


def _names(params: Any) -> list[str]:
    return [f.name for f in msgspec.structs.fields(params)]


def _malformed(body: bytes, error: Exception) -> Error:
    """PARSE_ERROR for what is no JSON, INVALID_REQUEST for what is no request."""
    if isinstance(error, msgspec.ValidationError):
        what = "a list is not a request; batches are not supported" if body.lstrip()[:1] == b"[" else str(error)
        return Error(
            code=protocol.INVALID_REQUEST,
            message=f"not a request: {what}",
            data=ErrorData(hint='send {"jsonrpc": "2.0", "id": 1, "method": …, "params": {…}}'),
        )
    return Error(code=protocol.PARSE_ERROR, message=f"not JSON: {error}")


def _success(id: RequestId | msgspec.UnsetType, result: Any) -> bytes:
    return _encode({"jsonrpc": "2.0", "id": id, "result": result})


def _failure(id: RequestId | msgspec.UnsetType, error: Error) -> bytes:
    return _encode({"jsonrpc": "2.0", "id": id, "error": error})
