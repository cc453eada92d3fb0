"""HTTP requests reach an ASGI application as its text says, and so do its responses the client."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.helpers import asgi, logged_errors, serving
from trio_ws_server.config import Config
from trio_ws_server.errors import ClientDisconnected, InvalidEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

GET = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n"
PLAIN = Config(access_log=False, date_header=False, server_header=False)
DISCONNECT = {"type": "http.disconnect"}


def post(*, length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: %d\r\n\r\n" % length


def start(status: int = 200, *headers: tuple[bytes, bytes], **keys: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers, **keys}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def length(value: int) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % value)


def sending(*events: Any) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Return an application that sends these events and returns."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)

    return app


async def respond(send: Any, data: bytes = b"done") -> None:
    await send(start(200, length(len(data))))
    await send(body(data))


# The request's body.


async def test_a_request_without_a_body_is_one_event() -> None:
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        await respond(send)

    async with serving(asgi(app)) as client:
        await client.request()
    assert received == [{"type": "http.request", "body": b"", "more_body": False}]


CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nHello\r\n7;x=y\r\n, world\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("request_", [post(length=12) + b"Hello, world", CHUNKED])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_body_arrives_in_events_of_which_only_the_last_has_no_more_to_come(
    request_: bytes, size: int
) -> None:
    events: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not events or events[-1]["more_body"]:
            events.append(await receive())
        await respond(send)

    async with serving(asgi(app)) as client:
        for at in range(0, len(request_), size):
            await client.send(request_[at : at + size])
            await trio.testing.wait_all_tasks_blocked()
        await client.receive_until(b"done")
    assert b"".join(event["body"] for event in events) == b"Hello, world"
    assert [event["more_body"] for event in events] == [True] * (len(events) - 1) + [False]
    assert {event["type"] for event in events} == {"http.request"}
    assert {type(event["body"]) for event in events} == {bytes}


async def test_a_body_is_streamed_as_it_comes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, length(6)))
        while (event := await receive())["more_body"]:
            await send(body(event["body"].upper(), more=True))
        await send(body())

    async with serving(asgi(app)) as client:
        await client.send(post(length=6))
        for piece in (b"one", b"two"):
            await client.send(piece)
            await client.receive_until(piece.upper())


async def test_a_client_that_sends_faster_than_the_application_reads_has_to_wait() -> None:
    size, sent = 1 << 20, 0
    go_on = trio.Event()
    received = bytearray()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        while (event := await receive())["more_body"]:
            received.extend(event["body"])
        await respond(send)

    async with serving(asgi(app), lockstep=True) as client, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def upload() -> None:
            nonlocal sent
            await client.send(post(length=size))
            for _ in range(0, size, 1024):
                await client.send(b"x" * 1024)
                sent += 1024

        await trio.testing.wait_all_tasks_blocked()
        assert sent < size // 4
        go_on.set()
        await client.receive_until(b"done")
    assert received == b"x" * size


async def test_a_client_is_asked_for_the_body_it_holds_back_when_the_application_asks() -> None:
    go_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await respond(send, (await receive())["body"])

    async with serving(asgi(app)) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as nothing_yet:
            await client.stream.receive_some()
        assert nothing_yet.cancelled_caught
        go_on.set()
        await client.receive_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        await client.send(b"body")
        await client.receive_until(b"body")


# The client's end.


@pytest.mark.parametrize("request_", [post(length=10) + b"abc", CHUNKED[:-5], CHUNKED[:-9]])
async def test_a_body_cut_off_ends_in_a_disconnect(request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not events or events[-1]["type"] == "http.request":
            events.append(await receive())

    async with serving(asgi(app)) as client:
        await client.send(request_)
        await client.send_eof()
        await client.receive_all()
    *pieces, last = events
    assert all(piece["more_body"] for piece in pieces)
    assert last == DISCONNECT
    assert logged_errors(caplog) == []


async def test_a_body_with_broken_framing_ends_in_a_disconnect_as_often_as_asked_and_400(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    class ClientDisconnect(Exception):
        """As Starlette's requests have it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (event := await receive()) != DISCONNECT:
            assert event["more_body"]
        with trio.fail_after(1):
            assert await receive() == DISCONNECT
        raise ClientDisconnect

    async with serving(asgi(app)) as client:
        await client.send(CHUNKED.replace(b"7;", b"seven;"))
        response = await client.receive_all()
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"illegal chunk header" in response
    assert logged_errors(caplog) == []


async def test_receive_waits_for_the_client_to_leave_and_then_says_so_as_often_as_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    events = []
    started = trio.current_time()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        events.extend([await receive(), await receive(), await receive(), trio.current_time() - started])

    async with serving(asgi(app)) as client:
        await client.send(GET)
        await trio.sleep(100)
        await client.stream.aclose()
    assert events == [DISCONNECT, DISCONNECT, DISCONNECT, 100]


async def event_at_once(receive: Any) -> Any:
    """Return the event that is there without waiting, as Starlette's ``Request.is_disconnected`` does."""
    for _ in range(2):  # one in 32 calls gives way first
        with trio.CancelScope() as scope:
            scope.cancel()
            return await receive()
    return None


async def test_what_is_there_to_receive_comes_without_a_wait_even_to_a_cancelled_task() -> None:
    events = []
    left = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            events.append(await event_at_once(receive))
        await left.wait()
        for _ in range(2):
            events.append(await event_at_once(receive))

    async with serving(asgi(app)) as client:
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
    assert events == [{"type": "http.request", "body": b"", "more_body": False}, None, DISCONNECT, DISCONNECT]


async def test_receiving_for_ever_after_the_end_gives_way_to_others() -> None:
    caught = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def end() -> None:
                nursery.cancel_scope.cancel()

            for _ in range(10_000):
                await receive()
        caught.append(nursery.cancel_scope.cancelled_caught)

    async with serving(asgi(app)) as client:
        await client.request()
    assert caught == [True]


async def test_a_streaming_application_can_learn_early_that_the_client_has_left() -> None:
    left = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start())
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def watch() -> None:
                assert await receive() == DISCONNECT
                left.set()
                nursery.cancel_scope.cancel()

            await send(body(b"first", more=True))
            await trio.sleep_forever()

    async with serving(asgi(app)) as client:
        await client.send(GET)
        await client.receive_until(b"first")
        assert not left.is_set()
        await client.stream.aclose()
        await left.wait()


async def test_receive_after_the_response_is_a_disconnect_as_often_as_asked() -> None:
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        events.extend([await receive(), await receive()])

    async with serving(asgi(app)) as client:
        await client.request()
        response, _ = await client.request()
    assert response.status_code == 200
    assert events == [DISCONNECT] * 4


async def test_what_is_left_of_a_request_does_not_touch_the_next_on_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    late: list[Any] = []
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/first":
            late.extend((receive, send))
            await respond(send)
            return
        late_receive, late_send = late
        with trio.fail_after(1):
            received.append(await late_receive())
        await late_send(start(500))
        await late_send(body(b"late"))
        received.append(await receive())
        await respond(send, b"second")

    async with serving(asgi(app)) as client:
        await client.request("/first")
        response, data = await client.request("/second", method="POST", body=b"secret")
        assert (response.status_code, data) == (200, b"second")
    assert received[0] == {"type": "http.disconnect"}
    assert received[1]["body"] == b"secret"


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nbody"],
)
async def test_a_task_outside_of_the_call_that_waits_in_receive_is_told_of_the_responses_end(
    sent: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    events: list[Any] = []

    async with trio.open_nursery() as nursery:

        async def watch(receive: Any) -> None:
            with trio.fail_after(1):
                events.append(await receive())

        async def app(scope: Any, receive: Any, send: Any) -> None:
            events.append(await receive())
            nursery.start_soon(watch, receive)
            await trio.testing.wait_all_tasks_blocked()
            await respond(send)

        async with serving(asgi(app)) as client:
            await client.send(sent)
            await client.receive_until(b"done")
            await trio.testing.wait_all_tasks_blocked()
            assert [event["type"] for event in events] == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("request_", [GET, post(length=10) + b"abc"])
async def test_a_task_waiting_in_receive_is_told_when_the_response_is_complete(
    request_: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append(await receive())
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def watch() -> None:
                with trio.fail_after(1):
                    events.append(await receive())

            await trio.testing.wait_all_tasks_blocked()
            await respond(send)

    async with serving(asgi(app)) as client:
        await client.send(request_)
        await client.receive_until(b"done")
        await trio.testing.wait_all_tasks_blocked()
        assert [event["type"] for event in events] == ["http.request", "http.disconnect"]


async def test_sending_to_a_client_that_has_left_raises_an_oserror_which_is_no_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == DISCONNECT
        try:
            await send(start())
            while True:
                await send(body(b"x", more=True))
        except OSError as exc:
            raised.append(exc)
            raise

    async with serving(asgi(app)) as client:
        await client.send(GET)
        await client.stream.aclose()
    assert [type(exc) for exc in raised] == [ClientDisconnected]
    assert "the client has disconnected" in str(raised[0])
    assert logged_errors(caplog) == []


# The response.


async def test_a_response_has_the_applications_headers_in_their_order_and_the_servers_own() -> None:
    headers = [(b"X-B", b"1"), (b"set-cookie", b"b"), (b"x-a", b"2"), (b"set-cookie", b"a")]
    async with serving(asgi(sending(start(404, *headers), body(b"gone")))) as client:
        response, data = await client.request()
    assert (response.status_code, data) == (404, b"gone")
    own = {b"date", b"server", b"transfer-encoding"}
    fields = list(response.headers)
    assert [field for field in fields if field[0] not in own] == [
        (name.lower(), value) for name, value in headers
    ]
    assert dict(fields)[b"server"] == b"trio-ws-server"
    assert parsedate_to_datetime(dict(fields)[b"date"].decode()).tzinfo is not None
    assert len(fields) == len(headers) + len(own)


async def test_headers_of_the_server_that_the_application_gives_are_not_doubled() -> None:
    headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"mine"), length(0)]
    async with serving(asgi(sending(start(200, *headers), body()))) as client:
        response, _ = await client.request()
    assert sorted(response.headers) == sorted(headers)


async def test_date_and_server_headers_can_be_turned_off() -> None:
    async with serving(asgi(sending(start(200, length(0)), body())), config=PLAIN) as client:
        response, _ = await client.request()
    assert list(response.headers) == [length(0)]


async def test_headers_may_be_missing_and_so_may_the_body() -> None:
    app = sending({"type": "http.response.start", "status": 200}, {"type": "http.response.body"})
    async with serving(asgi(app)) as client:
        response, data = await client.request()
    assert (response.status_code, data) == (200, b"")


async def test_each_piece_of_a_streamed_response_is_sent_at_once() -> None:
    go_on = [trio.Event(), trio.Event()]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for event, piece in zip(go_on, (b"one", b"two"), strict=True):
            await send(body(piece, more=True))
            await event.wait()
        await send(body())

    async with serving(asgi(app)) as client:
        await client.send(LAST_GET)
        assert b"\r\ntransfer-encoding: chunked\r\n" in (await client.receive_until(b"one")).lower()
        go_on[0].set()
        await client.receive_until(b"two")
        go_on[1].set()
        assert await client.receive_all() == b"0\r\n\r\n"


async def test_an_application_that_sends_faster_than_the_client_takes_has_to_wait() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(start(200, length(1 << 20)))
        for _ in range(1024):
            await send(body(b"x" * 1024, more=True))
            sent += 1024
        await send(body())

    config = Config(access_log=False, write_high_water=8192, write_low_water=4096)
    async with serving(asgi(app), lockstep=True, config=config) as client:
        await client.send(LAST_GET)
        await trio.testing.wait_all_tasks_blocked()
        assert sent <= 2 * 8192
        assert (await client.receive_all()).endswith(b"\r\n\r\n" + b"x" * (1 << 20))


@pytest.mark.parametrize("headers", [[], [length(5)]])
async def test_head_is_answered_like_get_without_the_body(headers: list[tuple[bytes, bytes]]) -> None:
    app = sending(start(200, *headers), body(b"He", more=True), body(b"llo"))
    heads = []
    for method, data in (("GET", b"Hello"), ("HEAD", b"")):
        async with serving(asgi(app), config=PLAIN) as client:
            response, received = await client.request(method=method)
            assert received == data
            await client.send(LAST_GET)  # after a body that is not expected it would be found in it
            assert (await client.receive_all()).startswith(b"HTTP/1.1 200 ")
        heads.append((response.status_code, list(response.headers)))
    assert heads[0] == heads[1]


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_that_has_no_body_has_no_framing_either(status: int) -> None:
    async with serving(asgi(sending(start(status), body())), config=PLAIN) as client:
        await client.send(LAST_GET)
        head = await client.receive_all()
    assert re.fullmatch(rb"HTTP/1.1 %d [^\r]+\r\nconnection: close\r\n\r\n" % status, head, re.IGNORECASE)


@pytest.mark.parametrize(
    ("headers", "framing"), [([], b"transfer-encoding: chunked"), ([length(5)], b"content-length: 5")]
)
@pytest.mark.parametrize("coding", [b"chunked", b"gzip, chunked", b"identity"])
async def test_transfer_encoding_from_the_application_is_ignored(
    headers: list[tuple[bytes, bytes]], framing: bytes, coding: bytes
) -> None:
    app = sending(start(200, (b"transfer-encoding", coding), *headers), body(b"Hello"))
    async with serving(asgi(app), config=PLAIN) as client:
        response, data = await client.request()
    assert [b": ".join(field).lower() for field in response.headers] == [framing]
    assert data == b"Hello"


@pytest.mark.parametrize("more", [[body(b"more")], [start(500)], [{"type": "http.response.trailers"}]])
async def test_events_after_the_end_of_the_response_are_ignored(
    more: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = sending(start(200, length(2), trailers=False), body(b"ok"), *more)
    async with serving(asgi(app)) as client:
        for _ in range(2):
            response, data = await client.request()
            assert (response.status_code, data) == (200, b"ok")
    assert logged_errors(caplog) == []


async def test_sending_for_ever_after_the_end_of_the_response_gives_way_to_others() -> None:
    caught = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def end() -> None:
                nursery.cancel_scope.cancel()

            for _ in range(10_000):
                await send(body(b"more"))
        caught.append(nursery.cancel_scope.cancelled_caught)

    async with serving(asgi(app)) as client:
        await client.request()
    assert caught == [True]


# Events that may not be sent.

INVALID_STARTS = [
    ("http.response.start", "an event is a dict, not 'http.response.start'"),
    ({"status": 200}, "an event has a 'type', a str: {'status': 200}"),
    (
        {"type": "http.response.begin"},
        "unexpected event 'http.response.begin', expected 'http.response.start'",
    ),
    ({"type": "websocket.accept"}, "unexpected event 'websocket.accept'"),
    (body(b"early"), "unexpected event 'http.response.body', expected 'http.response.start'"),
    (start(99), "'status' must be an int from 200 to 599, not 99"),
    (start(200, (b"a", b"b\r\nc: d")), "must not hold line breaks or NUL: b'a': b'b\\r\\nc: d'"),
    (start(200, (b"a b", b"c")), "http.response.start: "),
    (start(200, (b"", b"c")), "http.response.start: "),
    (start(200, (b"content-length", b"ten")), "http.response.start: "),
    (start(200, length(1), length(2)), "http.response.start: "),
]


@pytest.mark.parametrize(("event", "complaint"), INVALID_STARTS)
async def test_an_invalid_event_raises_in_the_application_which_can_still_respond(
    event: Any, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(InvalidEvent, match=re.escape(complaint)):
            await send(event)
        await respond(send)

    async with serving(asgi(app)) as client:
        for _ in range(2):
            response, data = await client.request()
            assert (response.status_code, data) == (200, b"done")
    assert logged_errors(caplog) == []


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (start(), "unexpected event 'http.response.start', expected 'http.response.body'"),
        ({"type": "http.response.trailers"}, "unexpected event 'http.response.trailers'"),
        ({"type": "http.response.body", "body": "text"}, "'body' must be bytes, not 'text'"),
        ({"type": "http.response.body", "more_body": 1}, "'more_body' must be a bool, not 1"),
    ],
)
async def test_an_invalid_event_in_the_response_raises_and_the_response_can_still_be_completed(
    event: Any, complaint: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, length(4)))
        with pytest.raises(InvalidEvent, match=re.escape(complaint)):
            await send(event)
        await send(body(b"done"))

    async with serving(asgi(app)) as client:
        for _ in range(2):
            assert (await client.request())[1] == b"done"


@pytest.mark.parametrize(("status", "headers"), [(200, [length(3)]), (204, []), (304, [])])
async def test_more_of_a_body_than_the_head_allows_raises_and_nothing_of_it_is_sent(
    status: int, headers: list[tuple[bytes, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(status, *headers))
        with pytest.raises(InvalidEvent, match=r"^http\.response\.body: "):
            await send(body(b"four"))

    async with serving(asgi(app)) as client:
        await client.send(GET)
        assert (await client.receive_all()).endswith(b"\r\n\r\n")
    assert len(logged_errors(caplog)) == 1


async def test_less_of_a_body_than_the_head_announced_raises_and_the_client_sees_it_cut_off() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, length(10)))
        await send(body(b"four", more=True))
        with pytest.raises(InvalidEvent, match=r"^http\.response\.body: "):
            await send(body())

    async with serving(asgi(app)) as client:
        await client.send(GET)
        assert (await client.receive_all()).endswith(b"\r\n\r\nfour")


# Applications that fail.


class Failure(Exception):
    """What an application raises."""


@pytest.mark.parametrize("failure", [Failure("of mine"), SystemExit(1), ExceptionGroup("two", [Failure()])])
async def test_an_application_that_raises_before_the_response_gives_500_and_one_traceback(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise failure

    async with serving(asgi(app)) as client:
        response, _ = await client.request("/broken?x")
        assert await client.receive_all() == b""
    assert response.status_code == 500
    assert (b"connection", b"close") in response.headers
    [error] = logged_errors(caplog)
    assert error.startswith("192.0.2.1:4000 GET /broken?x: exception in the application\n")
    assert len(re.findall(r"in app\n.* raise failure\n", error)) == 1


async def test_an_invalid_event_that_the_application_does_not_catch_gives_500_and_names_it_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(asgi(sending({"type": "http.response.start", "status": "ok"}))) as client:
        response, _ = await client.request()
    assert response.status_code == 500
    [error] = logged_errors(caplog)
    assert error.endswith(
        "InvalidEvent: http.response.start: 'status' must be an int from 200 to 599, not 'ok'"
    )


async def test_an_application_that_returns_before_the_response_gives_500_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(asgi(sending())) as client:
        response, _ = await client.request()
    assert response.status_code == 500
    assert logged_errors(caplog) == [
        "192.0.2.1:4000 GET /: the application returned before it sent a response"
    ]


@pytest.mark.parametrize("headers", [[], [length(10)]])
@pytest.mark.parametrize("failure", [None, Failure("of mine")])
async def test_a_response_left_unfinished_is_cut_off_so_that_no_client_takes_it_for_whole(
    headers: list[tuple[bytes, bytes]], failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, *headers))
        await send(body(b"part", more=True))
        await trio.testing.wait_all_tasks_blocked()
        if failure is not None:
            raise failure

    async with serving(asgi(app)) as client:
        await client.send(GET)
        received = await client.receive_all()
    assert received.endswith(b"part" if headers else b"4\r\npart\r\n")
    assert len(logged_errors(caplog)) == 1


async def test_an_exception_after_the_response_is_logged_and_the_client_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        raise Failure

    async with serving(asgi(app)) as client:
        for _ in range(2):
            assert (await client.request())[1] == b"done"
    assert len(logged_errors(caplog)) == 2


async def test_a_failing_request_does_not_touch_other_connections() -> None:
    failed = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fail":
            raise Failure
        await send(start(200, length(9)))
        await send(body(b"part", more=True))
        await failed.wait()
        await send(body(b"whole"))

    async with serving(asgi(app)) as client, serving(asgi(app)) as other:
        await client.send(GET)
        await client.receive_until(b"part")
        await other.request("/fail")
        failed.set()
        await client.receive_until(b"whole")
