"""What an application's events hold is checked, and an error says what was wrong with which key."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ws_server.asgi.events import (
    body_of,
    close_of,
    headers_of,
    message_of,
    optional,
    status_of,
    type_of,
    unexpected,
)
from trio_ws_server.close_codes import MAX_REASON_BYTES, Close
from trio_ws_server.errors import InvalidEvent

if TYPE_CHECKING:
    from collections.abc import Callable


def start(**keys: Any) -> dict[str, Any]:
    return {"type": "http.response.start", **keys}


def body(**keys: Any) -> dict[str, Any]:
    return {"type": "http.response.body", **keys}


def message(**keys: Any) -> dict[str, Any]:
    return {"type": "websocket.send", **keys}


def close(**keys: Any) -> dict[str, Any]:
    return {"type": "websocket.close", **keys}


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (None, "an event is a dict, not None"),
        (["type"], "an event is a dict, not ['type']"),
        ({}, "an event has a 'type', a str: {}"),
        ({"type": 1}, "an event has a 'type', a str: {'type': 1}"),
        ({"type": b"websocket.send"}, "a str: {'type': b'websocket.send'}"),
    ],
)
def test_what_is_no_event_is_refused(event: object, complaint: str) -> None:
    with pytest.raises(InvalidEvent, match=re.escape(complaint)):
        type_of(event)


def test_an_unexpected_event_is_named_with_those_expected() -> None:
    error = unexpected({"type": "websocket.sned"}, "websocket.send", "websocket.close")
    assert str(error) == "unexpected event 'websocket.sned', expected 'websocket.send' or 'websocket.close'"


@pytest.mark.parametrize("keys", [{}, {"more_body": None}])
def test_an_optional_key_may_be_missing_or_none(keys: dict[str, Any]) -> None:
    assert optional(body(**keys), "more_body", bool, default=False) is False


@pytest.mark.parametrize(
    ("read", "event", "complaint"),
    [
        (status_of, start(), "http.response.start: 'status' is missing; it must be an int from 200 to 599"),
        (status_of, start(status="200"), "'status' must be an int from 200 to 599, not '200'"),
        (status_of, start(status=True), "'status' must be an int from 200 to 599, not True"),
        (status_of, start(status=199), "'status' must be an int from 200 to 599, not 199"),
        (status_of, start(status=600), "'status' must be an int from 200 to 599, not 600"),
        (
            headers_of,
            start(headers=5),
            "'headers' must be an iterable of [name, value] pairs of bytes, not 5",
        ),
        (headers_of, start(headers=[b"ab"]), "a header is a [name, value] pair of bytes, not b'ab'"),
        (headers_of, start(headers=[(b"a",)]), "pair of bytes, not (b'a',)"),
        (headers_of, start(headers=[(b"a", b"b", b"c")]), "pair of bytes, not (b'a', b'b', b'c')"),
        (headers_of, start(headers=[("a", b"b")]), "http.response.start: a header is a [name, value] pair"),
        (headers_of, start(headers=[(b"a", "b")]), "pair of bytes, not (b'a', 'b')"),
        (headers_of, start(headers=[7]), "pair of bytes, not 7"),
        (body_of, body(body="text"), "http.response.body: 'body' must be bytes, not 'text'"),
        (body_of, body(body="x" * 1000), "not '" + "x" * 99 + "…"),
        (message_of, message(), "exactly one of 'text' and 'bytes' must be given, not neither"),
        (message_of, message(text=None, bytes=None), "websocket.send: exactly one"),
        (message_of, message(text="", bytes=b""), "must be given, not both"),
        (message_of, message(text=b"a"), "websocket.send: 'text' must be a str, not b'a'"),
        (message_of, message(bytes="a"), "websocket.send: 'bytes' must be bytes, not 'a'"),
        (close_of, close(code="1000"), "websocket.close: 'code' must be an int, not '1000'"),
        (close_of, close(code=True), "websocket.close: 'code' must be an int, not True"),
        (close_of, close(reason=b"bye"), "websocket.close: 'reason' must be a str, not b'bye'"),
        (close_of, close(reason="\ud800"), "websocket.close: 'reason' is not Unicode text: "),
    ],
)
def test_a_wrong_value_is_refused_and_shown(
    read: Callable[[Any], object], event: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidEvent, match=re.escape(complaint)):
        read(event)


def test_a_status_may_be_of_the_standard_librarys_enum() -> None:
    assert status_of(start(status=HTTPStatus.IM_A_TEAPOT)) == 418


@pytest.mark.parametrize("keys", [{}, {"headers": None}, {"headers": []}, {"headers": iter(())}])
def test_headers_may_be_missing(keys: dict[str, Any]) -> None:
    assert headers_of(start(**keys)) == []


def test_headers_keep_order_and_duplicates_with_names_in_lower_case() -> None:
    given = [(b"Set-Cookie", b"b=2"), [b"x", b"1"], (b"set-cookie", b"a=1")]
    assert headers_of(start(headers=iter(given))) == [
        (b"set-cookie", b"b=2"),
        (b"x", b"1"),
        (b"set-cookie", b"a=1"),
    ]


def test_a_header_may_be_any_iterable_of_two_items() -> None:
    assert headers_of(start(headers=[iter([b"a", b"b"])])) == [(b"a", b"b")]


@given(
    name=st.binary(),
    value=st.binary(),
    end=st.sampled_from([b"\r", b"\n", b"\r\n", b"\0"]),
    in_name=st.booleans(),
)
def test_no_header_may_hold_a_line_break_or_nul_anywhere(
    name: bytes, value: bytes, end: bytes, in_name: bool
) -> None:
    header = (name + end + value, b"value") if in_name else (b"name", name + end + value)
    with pytest.raises(InvalidEvent, match="a header must not hold line breaks or NUL") as caught:
        headers_of(start(headers=[header]))
    assert repr(header[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"data", bytearray(b"data"), memoryview(b"data")])
def test_bytes_may_be_of_any_bytes_like_type(data: object) -> None:
    assert body_of(body(body=data)) == b"data"
    assert message_of(message(bytes=data)) == b"data"
    assert type(message_of(message(bytes=data))) is bytes


@pytest.mark.parametrize("keys", [{}, {"body": None}, {"body": b""}])
def test_a_body_may_be_missing(keys: dict[str, Any]) -> None:
    assert body_of(body(**keys)) == b""


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"text": "a"}, "a"),
        ({"text": "a", "bytes": None}, "a"),
        ({"text": ""}, ""),
        ({"bytes": b"a"}, b"a"),
        ({"text": None, "bytes": b""}, b""),
    ],
)
def test_a_message_is_the_one_of_text_and_bytes_that_is_not_none(
    keys: dict[str, Any], expected: str | bytes
) -> None:
    assert message_of(message(**keys)) == expected


@pytest.mark.parametrize("keys", [{}, {"code": None, "reason": None}])
def test_a_close_is_1000_without_a_reason_unless_it_says_otherwise(keys: dict[str, Any]) -> None:
    assert close_of(close(**keys)) == Close(1000, "")


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000])
def test_a_close_code_that_rfc_6455_keeps_off_the_wire_is_refused(code: int) -> None:
    with pytest.raises(InvalidEvent, match=f"websocket.close: close code {code} may not be sent"):
        close_of(close(code=code))


@given(st.text())
def test_any_reason_may_be_given_and_as_much_of_it_is_sent_as_a_close_frame_holds(text: str) -> None:
    reason = text * 20
    sent = close_of(close(code=4000, reason=reason)).reason
    assert reason.startswith(sent)
    assert len(sent.encode()) <= MAX_REASON_BYTES
    next_character = reason[len(sent) : len(sent) + 1]
    assert not next_character or len((sent + next_character).encode()) > MAX_REASON_BYTES
