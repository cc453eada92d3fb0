"""WebSocket connections reach an ASGI application as its text says, and what it sends the peer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import trio
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason

from tests.helpers import Client, asgi, logged_errors, serving
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.errors import ClientDisconnected, InvalidEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

CONNECT = {"type": "websocket.connect"}
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


def accept(**keys: Any) -> dict[str, Any]:
    return {"type": "websocket.accept", **keys}


def text(data: str) -> dict[str, Any]:
    return {"type": "websocket.send", "text": data}


def close(**keys: Any) -> dict[str, Any]:
    return {"type": "websocket.close", **keys}


def denial(status: int, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "websocket.http.response.start", "status": status, "headers": headers}


def denial_body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "websocket.http.response.body", "body": data, "more_body": more}


def disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


class Failure(Exception):
    """What an application raises."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await send(accept())
    assert await receive() == CONNECT
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


def sending(*events: Any) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Return an application that sends these events and then waits for the end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)
        while (await receive())["type"] != "websocket.disconnect":
            pass

    return app


def recording(events: list[Any], *to_send: Any, count: int = 1) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Return an application that sends these events and records what it receives, to the count-th disconnect."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in to_send:
            await send(event)
        while [event["type"] for event in events].count("websocket.disconnect") < count:
            events.append(await receive())

    return app


async def finish_closing(client: Client) -> CloseConnection:
    """Take the server's close frame, answer it, and see the server end the connection."""
    event = await client.event()
    assert isinstance(event, CloseConnection)
    await client.send_event(event.response())
    assert await client.receive_all() == b""
    return event


# Connecting.


async def test_the_handshake_waits_for_the_applications_answer() -> None:
    go_on = trio.Event()
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append(await receive())
        await go_on.wait()
        await send(accept())

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE)
        await trio.testing.wait_all_tasks_blocked()
        assert events == [CONNECT]
        with trio.move_on_after(0) as nothing_yet:
            await client.stream.receive_some()
        assert nothing_yet.cancelled_caught
        go_on.set()
        assert (await client.receive_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_accepting_sends_the_subprotocol_and_the_headers_in_their_order() -> None:
    headers = [(b"set-cookie", b"b=1"), [b"X-A", b"1"], (b"set-cookie", b"a=1")]
    async with serving(asgi(sending(accept(subprotocol="v1", headers=iter(headers))))) as client:
        outcome = await client.open(subprotocols=["v2", "v1"])
    assert isinstance(outcome, AcceptConnection)
    assert outcome.subprotocol == "v1"
    own = {b"date", b"server"}
    assert [field for field in outcome.extra_headers if field[0] not in own] == [
        (b"set-cookie", b"b=1"),
        (b"x-a", b"1"),
        (b"set-cookie", b"a=1"),
    ]


@pytest.mark.parametrize("keys", [{}, {"subprotocol": None, "headers": None}, {"subprotocol": ""}])
async def test_accepting_without_more_agrees_on_no_subprotocol(keys: dict[str, Any]) -> None:
    async with serving(asgi(sending(accept(**keys)))) as client:
        outcome = await client.open(subprotocols=["v1"])
    assert isinstance(outcome, AcceptConnection)
    assert outcome.subprotocol is None


async def test_date_and_server_headers_of_the_handshake_can_be_turned_off() -> None:
    config = Config(access_log=False, date_header=False, server_header=False)
    async with serving(asgi(sending(accept())), config=config) as client:
        outcome = await client.open()
    assert isinstance(outcome, AcceptConnection)
    assert outcome.extra_headers == []


async def test_another_task_may_accept_while_one_waits_in_receive() -> None:
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def watch() -> None:
                events.append(await receive())

            await trio.testing.wait_all_tasks_blocked()
            await send(accept())

    async with serving(asgi(app)) as client:
        await client.open()
        await client.send_event(TextMessage("hello"))
        await finish_closing(client)
    assert events == [{"type": "websocket.receive", "text": "hello", "bytes": None}]


# Messages.


@pytest.mark.parametrize(
    ("sent", "event"),
    [
        ([TextMessage("héllo")], {"text": "héllo", "bytes": None}),
        ([TextMessage("")], {"text": "", "bytes": None}),
        ([BytesMessage(b"\0\xff")], {"text": None, "bytes": b"\0\xff"}),
        ([BytesMessage(b"")], {"text": None, "bytes": b""}),
        (
            [TextMessage("a", message_finished=False), Ping(b"p"), TextMessage("b")],
            {"text": "ab", "bytes": None},
        ),
        ([BytesMessage(b"a", message_finished=False), BytesMessage(b"b")], {"text": None, "bytes": b"ab"}),
    ],
)
async def test_each_message_is_one_event_whole_and_with_both_keys(
    sent: list[Event], event: dict[str, Any]
) -> None:
    events: list[Any] = []
    async with serving(asgi(recording(events, accept()))) as client:
        await client.open()
        for frame in sent:
            await client.send_event(frame)
        await client.send_event(CloseConnection(code=1000))
        await client.receive_all()
    assert events == [CONNECT, {"type": "websocket.receive", **event}, disconnect(1000)]
    assert {type(value) for value in event.values()} <= {str, bytes, type(None)}


@pytest.mark.parametrize(
    ("keys", "frame"),
    [
        ({"text": "héllo"}, TextMessage("héllo")),
        ({"text": "", "bytes": None}, TextMessage("")),
        ({"bytes": b"\0\xff"}, BytesMessage(b"\0\xff")),
        ({"text": None, "bytes": b""}, BytesMessage(b"")),
        ({"bytes": bytearray(b"a")}, BytesMessage(b"a")),
    ],
)
async def test_a_message_sent_is_of_the_type_of_the_key_that_is_given(
    keys: dict[str, Any], frame: TextMessage | BytesMessage
) -> None:
    async with serving(asgi(sending(accept(), {"type": "websocket.send", **keys}))) as client:
        await client.open()
        received = await client.event()
    assert isinstance(received, type(frame))
    assert (received.data, received.message_finished) == (frame.data, True)


async def test_frames_that_came_with_the_handshake_are_received() -> None:
    masked_hello = b"\x81\x85\0\0\0\0Hello"
    async with serving(asgi(echo)) as client:
        await client.send(HANDSHAKE + masked_hello)
        await client.receive_until(b"\x81\x05Hello")


async def test_pings_are_answered_without_the_application() -> None:
    events: list[Any] = []
    async with serving(asgi(recording(events, accept()))) as client:
        await client.open()
        await client.send_event(Ping(b"are you there?"))
        assert await client.event() == Pong(b"are you there?")
    assert events == [CONNECT, disconnect(1006)]


async def test_a_peer_that_sends_faster_than_the_application_receives_has_to_wait() -> None:
    go_on = trio.Event()
    sent, received = 0, 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal received
        await send(accept())
        await receive()
        await go_on.wait()
        while (await receive())["type"] == "websocket.receive":
            received += 1

    config = Config(access_log=False, inbox_messages=8)
    async with serving(asgi(app), config=config, lockstep=True) as client, trio.open_nursery() as nursery:
        await client.open()

        @nursery.start_soon
        async def flood() -> None:
            nonlocal sent
            for _ in range(100):
                await client.send_event(TextMessage("again"))
                sent += 1
            await client.send_event(CloseConnection(code=1000))

        await trio.testing.wait_all_tasks_blocked()
        assert sent <= 9
        go_on.set()
        await client.receive_all()
    assert received == 100


async def test_an_application_that_sends_faster_than_the_peer_takes_has_to_wait() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(accept())
        for _ in range(1000):
            await send(text("x" * 100))
            sent += 1

    config = Config(access_log=False, write_high_water=1000, write_low_water=500)
    async with serving(asgi(app), config=config, lockstep=True) as client:
        await client.open()
        await trio.testing.wait_all_tasks_blocked()
        assert sent <= 20
        for _ in range(1000):
            assert isinstance(await client.event(), TextMessage)
        await finish_closing(client)


# The end of a connection.


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        (CloseConnection(code=1000), disconnect(1000)),
        (CloseConnection(code=1001, reason="see you"), disconnect(1001, "see you")),
        (CloseConnection(code=4321, reason="wörks"), disconnect(4321, "wörks")),
        (CloseConnection(code=CloseReason.NO_STATUS_RCVD), disconnect(1005)),
    ],
)
async def test_the_peers_own_code_and_reason_are_told(frame: CloseConnection, event: dict[str, Any]) -> None:
    events: list[Any] = []
    async with serving(asgi(recording(events, accept()))) as client:
        await client.open()
        await client.send_event(frame)
        await client.receive_all()
    assert events == [CONNECT, event]


@pytest.mark.parametrize("partial_frame", [b"", b"\x81\x85\0\0"])
async def test_a_lost_connection_is_1006(partial_frame: bytes) -> None:
    events: list[Any] = []
    async with serving(asgi(recording(events, accept()))) as client:
        await client.open()
        await client.send(partial_frame)
        await client.stream.aclose()
    assert events == [CONNECT, disconnect(1006)]


async def test_a_peer_that_breaks_the_protocol_is_told_and_the_application_learns_the_code() -> None:
    events: list[Any] = []
    async with serving(asgi(recording(events, accept()))) as client:
        await client.open()
        await client.send(b"\x83\x80\0\0\0\0")
        event = await client.event()
        assert isinstance(event, CloseConnection)
        assert event.code == 1002
    assert [(event["type"], event.get("code")) for event in events[1:]] == [("websocket.disconnect", 1002)]


async def test_messages_before_the_close_come_first_and_then_disconnect_as_often_as_asked() -> None:
    events: list[Any] = []
    go_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        await go_on.wait()
        await recording(events, count=3)(scope, receive, send)

    async with serving(asgi(app)) as client:
        await client.open()
        for number in "12":
            await client.send_event(TextMessage(number))
        await client.send_event(CloseConnection(code=4000, reason="bye"))
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await client.receive_all()
    messages = [{"type": "websocket.receive", "text": number, "bytes": None} for number in "12"]
    assert events == [CONNECT, *messages, *[disconnect(4000, "bye")] * 3]


async def test_messages_before_a_lost_connection_come_first_too() -> None:
    events: list[Any] = []
    go_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        await go_on.wait()
        await recording(events)(scope, receive, send)

    async with serving(asgi(app)) as client:
        await client.open()
        await client.send_event(BytesMessage(b"last words"))
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert events == [
        CONNECT,
        {"type": "websocket.receive", "bytes": b"last words", "text": None},
        disconnect(1006),
    ]


@pytest.mark.parametrize(
    "events", [[], [denial(401)]], ids=["neither accepted nor denied", "denial under way"]
)
async def test_a_client_that_leaves_before_it_is_accepted_is_a_disconnect_as_often_as_asked(
    events: list[Any], autojump_clock: MockClock
) -> None:
    received: list[Any] = []
    async with serving(asgi(recording(received, *events, count=3))) as client:
        await client.send(HANDSHAKE)
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
    assert received == [CONNECT, *[disconnect(1006)] * 3]


OWN_ENDS = [
    ([accept(), close(code=4000, reason="enough")], disconnect(4000, "enough")),
    ([accept(), close()], disconnect(1000)),
    ([close()], disconnect(1006)),
    ([denial(404), denial_body(b"no")], disconnect(1006)),
]


@pytest.mark.parametrize(("events", "expected"), OWN_ENDS)
async def test_after_the_applications_own_close_or_denial_receive_is_a_disconnect_as_often_as_asked(
    events: list[Any], expected: dict[str, Any], autojump_clock: MockClock
) -> None:
    received: list[Any] = []
    async with serving(asgi(recording(received, *events, count=3))) as client:
        await client.send(HANDSHAKE)  # and never an answer to a close frame
        with trio.fail_after(1):
            await trio.testing.wait_all_tasks_blocked()
        assert received == [CONNECT, *[expected] * 3]


@pytest.mark.parametrize(("events", "expected"), OWN_ENDS)
async def test_tasks_that_wait_in_receive_are_all_told_of_the_applications_own_close(
    events: list[Any], expected: dict[str, Any], autojump_clock: MockClock
) -> None:
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with trio.open_nursery() as nursery:
            for _ in range(2):

                @nursery.start_soon
                async def watch() -> None:
                    with trio.fail_after(1):
                        received.append(await receive())

            await trio.testing.wait_all_tasks_blocked()
            for event in events:
                await send(event)

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE)
        await trio.testing.wait_all_tasks_blocked()
    assert received == [expected] * 2


async def test_tasks_that_wait_in_receive_are_all_told_of_the_peers_close() -> None:
    received: tuple[list[Any], list[Any]] = ([], [])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        await receive()
        async with trio.open_nursery() as nursery:
            for events in received:
                nursery.start_soon(recording(events), scope, receive, send)

    async with serving(asgi(app)) as client:
        await client.open()
        await trio.testing.wait_all_tasks_blocked()
        await client.send_event(CloseConnection(code=4000))
        await client.receive_all()
    assert received == ([disconnect(4000)], [disconnect(4000)])


async def test_a_server_that_shuts_down_closes_and_tells_the_application_its_own_code() -> None:
    events: list[Any] = []
    async with serving(asgi(recording(events, accept()))) as client:
        await client.open()
        assert client.connection is not None
        client.connection.begin_drain(Close(1012, "restarting"))
        event = await finish_closing(client)
        assert (event.code, event.reason) == (1012, "restarting")
    assert events == [CONNECT, disconnect(1012, "restarting")]


async def test_a_handshake_accepted_while_the_server_shuts_down_is_closed_at_once() -> None:
    events: list[Any] = []
    go_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await recording(events, accept())(scope, receive, send)

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE)
        await trio.testing.wait_all_tasks_blocked()
        assert client.connection is not None
        client.connection.begin_drain(Close(1012))
        go_on.set()
        assert (await client.receive_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await trio.testing.wait_all_tasks_blocked()
    assert events == [CONNECT, disconnect(1012)]


@pytest.mark.parametrize("ask", ["receive", "send"])
async def test_a_busy_loop_on_a_closed_connection_gives_way_to_others(ask: str) -> None:
    caught = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        while (await receive())["type"] != "websocket.disconnect":
            pass
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def end() -> None:
                nursery.cancel_scope.cancel()

            for _ in range(10_000):
                if ask == "receive":
                    await receive()
                else:
                    with pytest.raises(ClientDisconnected):
                        await send(text("anyone?"))
        caught.append(nursery.cancel_scope.cancelled_caught)

    async with serving(asgi(app)) as client:
        await client.open()
        await client.send_event(CloseConnection(code=1000))
        await client.receive_all()
    assert caught == [True]


# Sending to a peer that has gone.


async def leave_by_close_frame(client: Client) -> None:
    await client.open()
    await client.send_event(CloseConnection(code=4000, reason="bye"))


async def leave_without_a_word(client: Client) -> None:
    await client.open()
    await client.stream.aclose()


@pytest.mark.parametrize(
    ("leave", "told"),
    [(leave_by_close_frame, "received 4000 'bye'"), (leave_without_a_word, "no close frame received")],
)
async def test_sending_to_a_peer_that_has_gone_raises_an_oserror_which_is_no_error_in_the_log(
    leave: Callable[[Client], Awaitable[None]], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    raised = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        while (await receive())["type"] != "websocket.disconnect":
            pass
        try:
            await send(text("anyone?"))
        except OSError as exc:
            raised.append(exc)
            raise

    async with serving(asgi(app)) as client:
        await leave(client)
    assert [type(exc) for exc in raised] == [ClientDisconnected]
    assert told in str(raised[0])
    assert logged_errors(caplog) == []


@pytest.mark.parametrize("event", [accept(), denial(404)])
async def test_answering_a_handshake_whose_client_has_gone_raises_too(
    event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    raised = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == disconnect(1006)
        try:
            await send(event)
        except ClientDisconnected as exc:
            raised.append(str(exc))
            raise

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE)
        await client.stream.aclose()
    assert raised == ["the client disconnected during the WebSocket handshake"]
    assert logged_errors(caplog) == []


@pytest.mark.parametrize("to_send", [[], [accept()]])
async def test_closing_after_the_peer_has_gone_is_no_error(
    to_send: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    done = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in to_send:
            await send(event)
        while (await receive())["type"] != "websocket.disconnect":
            pass
        await send(close(code=1011))
        done.append(await receive())

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE)
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
    assert done == [disconnect(1006)]
    assert logged_errors(caplog) == []


@pytest.mark.parametrize("name", ["WebSocketDisconnect", "ClientDisconnect"])
async def test_a_frameworks_disconnect_is_an_error_only_while_the_peer_is_there(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    leave = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        await leave.wait()
        raise type(name, (Exception,), {})

    async with serving(asgi(app)) as client, serving(asgi(app)) as other:
        await client.open()
        await client.send_event(CloseConnection(code=1000))
        await other.open()
        await trio.testing.wait_all_tasks_blocked()
        leave.set()
        assert (await finish_closing(other)).code == 1011
    [error] = logged_errors(caplog)
    assert error.endswith(name)


# Closing.


@pytest.mark.parametrize(
    ("keys", "code", "reason"),
    [
        ({}, 1000, ""),
        ({"code": 1008, "reason": None}, 1008, ""),
        ({"code": 4999, "reason": "enough"}, 4999, "enough"),
        ({"reason": "€" * 100}, 1000, "€" * 41),
    ],
)
async def test_closing_sends_the_applications_code_and_of_its_reason_what_fits(
    keys: dict[str, Any], code: int, reason: str
) -> None:
    async with serving(asgi(sending(accept(), close(**keys)))) as client:
        await client.open()
        event = await finish_closing(client)
    assert (event.code, event.reason or "") == (code, reason)


async def test_what_was_sent_before_the_close_arrives_before_it() -> None:
    async with serving(asgi(sending(accept(), text("1"), text("2"), close()))) as client:
        await client.open()
        assert [await client.event(), await client.event()] == [TextMessage("1"), TextMessage("2")]
        await finish_closing(client)


# Denying.


@pytest.mark.parametrize("keys", [{}, {"code": 1005}, {"code": 4000, "reason": [{"type": "missing"}]}])
async def test_closing_before_accepting_is_403_whatever_code_and_reason(keys: dict[str, Any]) -> None:
    async with serving(asgi(sending(close(**keys)))) as client:
        outcome = await client.open()
        assert isinstance(outcome, RejectConnection)
        assert outcome.status_code == 403
        assert (b"connection", b"close") in outcome.headers
        await client.event()
        assert await client.receive_all() == b""


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"10")], [(b"transfer-encoding", b"gzip")]])
async def test_a_denial_is_a_response_in_as_many_parts_as_the_application_likes(
    headers: list[tuple[bytes, bytes]],
) -> None:
    parts = [denial_body(b"not ", more=True), denial_body(b"", more=True), denial_body(b"for ", more=True)]
    app = sending(denial(401, (b"x-a", b"1"), *headers), *parts, denial_body(b"me"))
    async with serving(asgi(app)) as client:
        outcome = await client.open()
        assert isinstance(outcome, RejectConnection)
        assert outcome.status_code == 401
        fields = [(name.lower(), value) for name, value in outcome.headers]
        assert (b"x-a", b"1") in fields
        assert (b"connection", b"close") in fields
        body = b""
        while True:
            event = await client.event()
            assert isinstance(event, RejectData)
            body += event.data
            if event.body_finished:
                break
        assert await client.receive_all() == b""
    assert body == b"not for me"


@pytest.mark.parametrize("event", [denial_body(b"four"), denial_body(b"x")])
async def test_a_denial_whose_length_is_not_the_one_announced_raises_and_is_cut_off(event: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(denial(401, (b"content-length", b"3")))
        with pytest.raises(InvalidEvent, match=r"^websocket\.http\.response\.body: "):
            await send(event)

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE)
        assert (await client.receive_all()).endswith(b"\r\n\r\n")


# Events that may not be sent.

WHILE_CONNECTING = [
    (None, "an event is a dict, not None"),
    ({"type": "websocket.acept"}, "unexpected event 'websocket.acept', expected 'websocket.accept' or "),
    (
        text("early"),
        "unexpected event 'websocket.send', expected 'websocket.accept' or 'websocket.close' or ",
    ),
    ({"type": "http.response.start", "status": 403}, "unexpected event 'http.response.start'"),
    (denial_body(b"no"), "unexpected event 'websocket.http.response.body'"),
    (denial(101), "'status' must be an int from 200 to 599, not 101"),
    (denial(401, (b"a", b"b\n")), "must not hold line breaks"),
    (denial(401, (b"content-length", b"x")), "websocket.http.response.start: "),
    (accept(subprotocol=b"v1"), "websocket.accept: 'subprotocol' must be a str, not b'v1'"),
    (accept(subprotocol="v3"), "subprotocol 'v3' was not offered by the client, which offered 'v1', 'v2'"),
    (accept(subprotocol="V1"), "subprotocol 'V1' was not offered"),
    (accept(headers=[("a", "b")]), "websocket.accept: a header is a [name, value] pair of bytes"),
    (accept(headers=[(b"a", b"b\r\nc: d")]), "must not hold line breaks or NUL: b'a': b'b\\r\\nc: d'"),
    (accept(headers=[(b"a b", b"c")]), "websocket.accept: "),
    (accept(headers=[(b"Sec-WebSocket-Protocol", b"v1")]), "'sec-websocket-protocol'"),
    (accept(headers=[(b"sec-websocket-accept", b"x")]), "'sec-websocket-accept'"),
    (accept(headers=[(b"connection", b"close")]), "'connection'"),
]


@pytest.mark.parametrize(("event", "complaint"), WHILE_CONNECTING)
async def test_an_invalid_event_before_accepting_raises_and_the_connection_can_still_be_accepted(
    event: Any, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(InvalidEvent, match=re.escape(complaint)):
            await send(event)
        await send(accept(subprotocol="v1"))
        await receive()
        await receive()

    async with serving(asgi(app)) as client:
        outcome = await client.open(subprotocols=["v1", "v2"])
        assert isinstance(outcome, AcceptConnection)
        assert outcome.subprotocol == "v1"
        await client.send_event(TextMessage("hello"))
        await finish_closing(client)
    assert logged_errors(caplog) == []


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        ("text", "an event is a dict, not 'text'"),
        (accept(), "unexpected event 'websocket.accept', expected 'websocket.send' or 'websocket.close'"),
        (denial(401), "unexpected event 'websocket.http.response.start'"),
        ({"type": "websocket.sned", "text": "a"}, "unexpected event 'websocket.sned'"),
        ({"type": "websocket.send"}, "exactly one of 'text' and 'bytes' must be given, not neither"),
        ({"type": "websocket.send", "text": "a", "bytes": b"a"}, "must be given, not both"),
        ({"type": "websocket.send", "text": b"a"}, "'text' must be a str, not b'a'"),
        ({"type": "websocket.send", "bytes": "a"}, "'bytes' must be bytes, not 'a'"),
        (text("\udc80"), "websocket.send: 'text' is not Unicode text: "),
        (text("a" * 100_000 + "\udc80"), "websocket.send: 'text' is not Unicode text: "),
        (close(code="1000"), "'code' must be an int, not '1000'"),
        (close(code=1005), "close code 1005 may not be sent"),
        (close(reason=b"why"), "'reason' must be a str, not b'why'"),
    ],
)
async def test_an_invalid_event_on_an_open_connection_raises_and_the_connection_goes_on(
    event: Any, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        with pytest.raises(InvalidEvent, match=re.escape(complaint)):
            await send(event)
        await send(text("still here"))

    async with serving(asgi(app)) as client:
        await client.open()
        assert await client.event() == TextMessage("still here")
        assert (await finish_closing(client)).code == 1000
    assert logged_errors(caplog) == []


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (accept(), "unexpected event 'websocket.accept', expected 'websocket.http.response.body'"),
        (close(), "unexpected event 'websocket.close', expected 'websocket.http.response.body'"),
        (denial(401), "unexpected event 'websocket.http.response.start'"),
        ({"type": "websocket.http.response.body", "body": "no"}, "'body' must be bytes, not 'no'"),
    ],
)
async def test_an_invalid_event_in_a_denial_raises_and_the_denial_can_still_be_completed(
    event: Any, complaint: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(denial(401, (b"content-length", b"2")))
        with pytest.raises(InvalidEvent, match=re.escape(complaint)):
            await send(event)
        await send(denial_body(b"no"))

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE)
        assert (await client.receive_all()).endswith(b"\r\n\r\nno")


@pytest.mark.parametrize("end", [[accept(), close()], [close()], [denial(401), denial_body()]])
@pytest.mark.parametrize("event", [accept(), text("more"), close(), denial(401), denial_body(b"more")])
async def test_an_event_after_the_applications_own_end_raises_and_nothing_is_sent(
    end: list[Any], event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for earlier in end:
            await send(earlier)
        complaint = f"unexpected event '{event['type']}': the application has closed this connection"
        with pytest.raises(InvalidEvent, match=re.escape(complaint)):
            await send(event)

    received = []
    for application in (app, sending(*end)):
        async with serving(asgi(application), config=Config(access_log=False, date_header=False)) as client:
            await client.send(HANDSHAKE)
            await client.send_eof()
            received.append(await client.receive_all())
    assert received[0] == received[1]
    assert logged_errors(caplog) == []


async def test_a_cancelled_receive_loses_no_event() -> None:
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await receive()
            events.append(await receive())

    async with serving(asgi(app)) as client:
        await client.send(HANDSHAKE + b"\x81\x85\0\0\0\0Hello\x88\x80\0\0\0\0")
        await client.receive_all()
    assert events == [
        CONNECT,
        {"type": "websocket.receive", "text": "Hello", "bytes": None},
        disconnect(1005),
    ]


async def test_a_cancelled_accept_sends_nothing() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await send(accept())
        await send(close())

    async with serving(asgi(app)) as client:
        assert isinstance(await client.open(), RejectConnection)


async def test_an_invalid_event_does_not_touch_other_connections() -> None:
    go_on = trio.Event()

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send(accept())
        await go_on.wait()
        await send({"type": "websocket.send"})

    async with serving(asgi(echo)) as client, serving(asgi(broken)) as other:
        await client.open()
        await other.open()
        await client.send_event(TextMessage("before"))
        assert await client.event() == TextMessage("before")
        go_on.set()
        assert (await finish_closing(other)).code == 1011
        await client.send_event(TextMessage("after"))
        assert await client.event() == TextMessage("after")


# Applications that fail.


def failing(*events: Any, failure: BaseException | None) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Return an application that sends these events and then raises, or returns."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)
        if failure is not None:
            raise failure

    return app


def failures() -> list[BaseException]:
    return [Failure("of mine"), SystemExit(3), ExceptionGroup("two", [Failure(), Failure()])]


@pytest.mark.parametrize("failure", failures())
async def test_an_application_that_raises_before_accepting_gives_500_and_one_traceback(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(asgi(failing(failure=failure))) as client:
        outcome = await client.open("/chat?x")
        assert isinstance(outcome, RejectConnection)
        assert outcome.status_code == 500
    [error] = logged_errors(caplog)
    assert error.startswith("192.0.2.1:4000 GET /chat?x: exception in the application\n")
    assert len(re.findall(r"in app\n.* raise failure\n", error)) == 1


async def test_an_application_that_returns_before_accepting_gives_500_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(asgi(failing(failure=None))) as client:
        outcome = await client.open()
        assert isinstance(outcome, RejectConnection)
        assert outcome.status_code == 500
    assert logged_errors(caplog) == [
        "192.0.2.1:4000 GET /: the application returned before it sent a response"
    ]


@pytest.mark.parametrize("failure", failures())
async def test_an_application_that_raises_on_an_open_connection_closes_it_with_1011_and_one_traceback(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(asgi(failing(accept(), text("last"), failure=failure))) as client:
        await client.open()
        assert await client.event() == TextMessage("last")
        assert (await finish_closing(client)).code == 1011
    [error] = logged_errors(caplog)
    assert len(re.findall(r"in app\n.* raise failure\n", error)) == 1


async def test_an_invalid_event_that_the_application_does_not_catch_closes_with_1011_and_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(asgi(sending(accept(), close(code=99)))) as client:
        await client.open()
        assert (await finish_closing(client)).code == 1011
    [error] = logged_errors(caplog)
    assert "InvalidEvent: websocket.close: close code 99 may not be sent" in error


async def test_an_application_that_returns_on_an_open_connection_closes_it_with_1000(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(asgi(failing(accept(), text("last"), failure=None))) as client:
        await client.open()
        assert await client.event() == TextMessage("last")
        assert (await finish_closing(client)).code == 1000
    assert logged_errors(caplog) == []


@pytest.mark.parametrize("failure", [Failure(), None])
async def test_a_denial_left_unfinished_is_cut_off_and_logged(
    failure: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    start = denial(401, (b"content-length", b"10"))
    async with serving(asgi(failing(start, denial_body(b"part", more=True), failure=failure))) as client:
        await client.send(HANDSHAKE)
        assert (await client.receive_all()).endswith(b"\r\n\r\npart")
    assert len(logged_errors(caplog)) == 1


async def test_an_application_that_raises_after_its_own_close_keeps_its_code_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(asgi(failing(accept(), close(code=4000), failure=Failure()))) as client:
        await client.open()
        assert (await finish_closing(client)).code == 4000
    assert len(logged_errors(caplog)) == 1


async def test_an_application_that_raises_after_a_complete_denial_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(asgi(failing(denial(401), denial_body(b"no"), failure=Failure()))) as client:
        assert isinstance(await client.open(), RejectConnection)
    assert len(logged_errors(caplog)) == 1
