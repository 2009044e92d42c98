"""JSON-RPC: whatever comes in, an answer goes out."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
import structlog
import trio
from hypothesis import example, given, strategies as st
from structlog.testing import capture_logs

from buildd import protocol
from buildd.config import ControlConfig
from buildd.control.server import Server
from buildd.control.socket import Peer
from buildd.errors import Busy, InvalidInput, NotFound, NotPermitted, Refused
from buildd.protocol import MAX_MESSAGE_BYTES, METHODS

ROOT = Peer(0, 0, 1)
STRANGER = Peer(4_000_001, 4_000_001, 1)


class Handlers:
    """A handler for every method: returns or raises what it was told to."""

    def __init__(self) -> None:
        self.result: Any = {"fine": True}
        self.called: list[tuple[str, Any, Peer]] = []

    def table(self) -> dict[str, Any]:
        return {name: self._handler(name) for name in METHODS}

    def _handler(self, name: str) -> Any:
        async def handle(params: Any, peer: Peer) -> Any:
            self.called.append((name, params, peer))
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

        return handle


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


def server(handlers: Handlers, **control: Any) -> Server:
    return Server(handlers.table(), lambda: ControlConfig(group="no-such-group", **control))


def ask(handlers: Handlers, body: bytes | dict[str, Any], peer: Peer = ROOT, **control: Any) -> Any:
    """The decoded answer; None for none."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode({"jsonrpc": "2.0", "id": 1, **body})
    answer = trio.run(server(handlers, **control).answer, raw, peer)
    if answer is None:
        return None
    decoded = msgspec.json.decode(answer)
    assert decoded["jsonrpc"] == "2.0"
    assert ("result" in decoded) != ("error" in decoded)
    return decoded


def error_of(handlers: Handlers, body: bytes | dict[str, Any], peer: Peer = ROOT, **control: Any) -> dict[str, Any]:
    answer = ask(handlers, body, peer, **control)
    error: dict[str, Any] = answer["error"]
    assert error["message"]
    return error


# --- what works -------------------------------------------------------------------------------------------


def test_a_request_reaches_its_handler_and_the_result_comes_back_with_its_id(handlers: Handlers) -> None:
    for id in (1, 0, -5, "x", "", None, 2**40):
        answer = ask(handlers, {"id": id, "method": "run.cancel", "params": {"run": "7", "package": "jq"}})
        assert answer == {"jsonrpc": "2.0", "id": id, "result": {"fine": True}}
    name, params, peer = handlers.called[0]
    assert (name, params.run, params.package, peer) == ("run.cancel", "7", "jq", ROOT)


def test_parameters_may_be_left_out_where_none_are_needed(handlers: Handlers) -> None:
    assert "result" in ask(handlers, {"method": "daemon.status"})
    assert "result" in ask(handlers, {"method": "daemon.status", "params": {}})


@pytest.mark.parametrize("result", [{"fine": True}, NotFound("gone"), RuntimeError("bug")])
def test_a_notification_is_done_and_not_answered(handlers: Handlers, result: Any) -> None:
    handlers.result = result
    with capture_logs():
        assert ask(handlers, b'{"jsonrpc": "2.0", "method": "daemon.drain"}') is None
    assert [name for name, _, _ in handlers.called] == ["daemon.drain"]
    assert ask(handlers, b'{"jsonrpc": "2.0", "method": "no.such"}') is None
    assert ask(handlers, b'{"jsonrpc": "2.0", "method": "run.wait", "params": {"x": 1}}') is None


def test_every_method_has_a_handler_or_the_server_does_not_start(handlers: Handlers) -> None:
    table = handlers.table()
    del table["run.start"]
    with pytest.raises(AssertionError, match=r"run\.start"):
        Server(table, ControlConfig)
    with pytest.raises(AssertionError, match=r"no\.such"):
        Server(handlers.table() | {"no.such": None}, ControlConfig)  # type: ignore[dict-item]


# --- what does not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"\xff\xfe", b'{"jsonrpc": "2.0", "method": "a"} x', b'{"jsonrpc":"2.0","method":"\xff"}'],
)
def test_what_is_no_json_is_a_parse_error(handlers: Handlers, body: bytes) -> None:
    answer = ask(handlers, body)
    assert answer["error"]["code"] == protocol.PARSE_ERROR
    assert answer["id"] is None


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"1",
        b"null",
        b'"x"',
        b"[]",
        b'[{"jsonrpc": "2.0", "id": 1, "method": "daemon.status"}]',
        b'{"jsonrpc": "1.0", "id": 1, "method": "daemon.status"}',
        b'{"id": 1, "method": "daemon.status"}',
        b'{"jsonrpc": "2.0", "id": 1}',
        b'{"jsonrpc": "2.0", "id": 1, "method": 7}',
        b'{"jsonrpc": "2.0", "id": 1.5, "method": "daemon.status"}',
        b'{"jsonrpc": "2.0", "id": {}, "method": "daemon.status"}',
        b'{"jsonrpc": "2.0", "id": 1' + b"0" * 5000 + b', "method": "daemon.status"}',
    ],
)
def test_json_that_is_no_request_is_an_invalid_request(handlers: Handlers, body: bytes) -> None:
    error = error_of(handlers, body)
    assert error["code"] == protocol.INVALID_REQUEST
    assert error["data"]["hint"]
    assert handlers.called == []


def test_a_batch_is_refused_in_words(handlers: Handlers) -> None:
    assert "batches are not supported" in error_of(handlers, b" [1]")["message"]


def test_an_unknown_method_is_named_but_not_at_any_length(handlers: Handlers) -> None:
    error = error_of(handlers, {"method": "run.strat"})
    assert error["code"] == protocol.METHOD_NOT_FOUND
    assert "run.strat" in error["message"]
    assert len(error_of(handlers, {"method": "\x1b" * 10_000})["message"]) < 1000


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"run": "1", "timout": 5}, "timout"),
        ({"timeout": 5}, "run"),
        ({"run": 1}, "$.run"),
        ({"run": "1", "timeout": "5"}, "$.timeout"),
        ([], "array"),
        (None, "null"),
        ("x", "str"),
    ],
)
def test_wrong_parameters_are_named_and_the_right_ones_listed(handlers: Handlers, params: object, what: str) -> None:
    error = error_of(handlers, {"method": "run.wait", "params": params})
    assert error["code"] == protocol.INVALID_PARAMS
    assert "run.wait" in error["message"]
    assert what in error["message"]
    assert error["data"]["hint"] == "parameters: run, timeout, packages"
    assert handlers.called == []


def test_parameters_that_are_no_utf_8_are_invalid_parameters(handlers: Handlers) -> None:
    body = b'{"jsonrpc": "2.0", "id": 1, "method": "run.wait", "params": {"run": "\xff"}}'
    assert error_of(handlers, body)["code"] in (protocol.INVALID_PARAMS, protocol.PARSE_ERROR)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("before", [b"", b'{"jsonrpc":"2.0","id":1,"method":"run.wait","params":', b'{"x":'])
def test_a_request_as_deep_as_a_message_is_long_is_an_error(handlers: Handlers, before: bytes, opening: bytes) -> None:
    body = before + opening * ((MAX_MESSAGE_BYTES - len(before)) // len(opening))
    assert error_of(handlers, body)["code"] in (
        protocol.PARSE_ERROR,
        protocol.INVALID_REQUEST,
        protocol.INVALID_PARAMS,
    )


@pytest.mark.parametrize("error", [InvalidInput, NotFound, Refused, NotPermitted, Busy])
def test_an_error_for_the_user_keeps_its_code_message_hint_and_kind(handlers: Handlers, error: Any) -> None:
    handlers.result = error("it cannot be done", hint="do something else")
    assert error_of(handlers, {"method": "daemon.status"}) == {
        "code": error.code,
        "message": "it cannot be done",
        "data": {"hint": "do something else", "kind": error.__name__},
    }


def test_a_fault_of_ours_is_logged_and_told_without_details(handlers: Handlers) -> None:
    handlers.result = RuntimeError("the secret detail")
    with capture_logs() as logs:
        error = error_of(handlers, {"method": "daemon.status"})
    assert error["code"] == protocol.INTERNAL_ERROR
    assert "secret" not in msgspec.json.encode(error).decode()
    assert [(line["log_level"], line["method"]) for line in logs] == [("error", "daemon.status")]


@pytest.mark.parametrize("result", [{"path": "\udcff"}, object(), {1.5: object()}])
def test_a_result_that_cannot_be_sent_is_a_fault_of_ours_and_not_the_end(handlers: Handlers, result: object) -> None:
    handlers.result = result
    with capture_logs():
        assert error_of(handlers, {"method": "daemon.status"})["code"] == protocol.INTERNAL_ERROR


def test_an_error_that_names_a_file_in_no_encoding_is_still_told(handlers: Handlers) -> None:
    handlers.result = InvalidInput("\udcff\udcfe/buildd.toml is not UTF-8", hint="\udcff")
    with capture_logs():
        assert "buildd.toml" in error_of(handlers, {"method": "daemon.status"})["message"]


# --- rights -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() == STRANGER.uid, reason="the tests run as the user who is to be the stranger")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_stranger_may_look_but_not_steer(handlers: Handlers, name: str) -> None:
    right = METHODS[name].right
    answer = ask(handlers, {"method": name, "params": {"no": "such"}}, STRANGER)
    code = answer["error"]["code"]
    assert code == (NotPermitted.code if right == "control" else protocol.INVALID_PARAMS)
    assert error_of(handlers, {"method": name}, STRANGER, observe="group")["code"] == NotPermitted.code
    assert handlers.called == []


# --- too much ---------------------------------------------------------------------------------------------


def test_a_request_for_which_there_is_no_room_is_told_to_come_again(handlers: Handlers) -> None:
    raw = server(handlers).overflow(b'{"jsonrpc": "2.0", "id": 9, "method": "daemon.status"}')
    assert raw is not None
    answer = msgspec.json.decode(raw)
    assert answer["id"] == 9
    assert (answer["error"]["code"], answer["error"]["data"]["kind"]) == (Busy.code, "Busy")
    assert server(handlers).overflow(b'{"jsonrpc": "2.0", "method": "daemon.status"}') is None
    assert handlers.called == []


# --- anything ---------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
requests = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from(sorted(METHODS)) | st.text()},
    optional={"id": st.none() | st.integers() | st.text() | json_values, "params": json_values},
)


def check_any(body: bytes) -> None:
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.ReturnLoggerFactory()
    )
    try:
        handlers = Handlers()
        answer = ask(handlers, body)
        raw = server(handlers).overflow(body)
        assert raw is None or "error" in msgspec.json.decode(raw)
        assert answer is None or "result" in answer or answer["error"]["code"]
    finally:
        structlog.reset_defaults()


@given(st.binary(max_size=200))
@example(b'"\xff"')
@example(b'{"jsonrpc":"2.0","id":"\xff","method":"daemon.status"}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"run.wait","params":{"\xff":1}}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"run.wait","params":{"run":"\\ud800"}}')
def test_arbitrary_bytes_are_answered(body: bytes) -> None:
    check_any(body)


@given(requests)
def test_arbitrary_requests_are_answered(request_: dict[str, Any]) -> None:
    try:
        body = msgspec.json.encode(request_)
    except (UnicodeEncodeError, OverflowError):
        return
    check_any(body)


@given(requests, st.data())
def test_a_request_with_some_bytes_changed_is_answered(request_: dict[str, Any], data: st.DataObject) -> None:
    try:
        body = bytearray(msgspec.json.encode(request_))
    except (UnicodeEncodeError, OverflowError):
        return
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check_any(bytes(body))
