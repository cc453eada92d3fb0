"""HTTP/1.1 on one connection: one exchange after the other, each wait and each buffer bounded."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
import tracemalloc
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import RejectConnection, RejectData

from tests.helpers import Client, asgi, cancelled_after, logged_errors, read_response, serving
from trio_ws_server.config import Config
from trio_ws_server.errors import ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade

KIB = 1024
CONFIG = Config(
    handshake_timeout=10, keep_alive_timeout=5, access_log=False, date_header=False, server_header=False
)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class Web:
    """An application that responds with a function of its own, and that no WebSocket client should come to."""

    def __init__(self, respond: Callable[[HttpConnection, RequestHead], Awaitable[None]]) -> None:
        self._respond = respond

    async def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> None:
        await self._respond(connection, request)

    async def websocket(self, upgrade: Upgrade) -> None:
        raise AssertionError(f"unexpected {upgrade!r}")


@Web
async def empty(connection: HttpConnection, request: RequestHead) -> None:
    """Respond without a look at the body."""
    await connection.respond(200, [], b"")


@Web
async def target(connection: HttpConnection, request: RequestHead) -> None:
    """Respond with the request's target, after a while."""
    await trio.sleep(1)
    await connection.respond(200, [], request.target)


@Web
async def echo(connection: HttpConnection, request: RequestHead) -> None:
    """Respond with the request's body."""
    body = b""
    while piece := await connection.receive_body():
        body += piece
    await connection.respond(200, [], body)


def statuses(wire: bytes) -> list[int]:
    """Return the statuses of all responses."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", wire)]


async def drip(client: Client, piece: bytes, seconds: float) -> None:
    """Send the piece every so many seconds, until there is nobody to take it."""
    with contextlib.suppress(trio.BrokenResourceError):
        while True:
            await client.send(piece)
            await trio.sleep(seconds)


# Keep-alive


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with serving(echo, config=CONFIG) as client:
        for body in b"one", b"", b"three":
            response, echoed = await client.request("/", method="POST", body=body)
            assert (response.status_code, echoed) == (200, body)


async def test_an_idle_connection_is_closed_after_the_keep_alive_timeout(autojump_clock: MockClock) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.request()
        await trio.sleep(4)
        await client.request()
        assert await client.receive_all() == b""
        assert trio.current_time() == 4 + 5


async def test_a_client_that_never_sends_a_byte_is_closed_without_a_word(autojump_clock: MockClock) -> None:
    async with serving(empty, config=CONFIG) as client:
        assert await client.receive_all() == b""
        assert trio.current_time() == 10


@pytest.mark.parametrize("earlier_requests", [0, 1])
async def test_a_head_that_does_not_come_to_its_end_in_time_is_answered_408(
    earlier_requests: int, autojump_clock: MockClock
) -> None:
    async with serving(empty, config=CONFIG) as client, trio.open_nursery() as nursery:
        for _ in range(earlier_requests):
            await client.request()
        await trio.sleep(4)
        begun = trio.current_time()

        async def drip() -> None:
            for byte in GET:
                await client.send(bytes([byte]))
                await trio.sleep(1)

        nursery.start_soon(drip)
        response = await client.receive_until(b"did not arrive within 10 seconds\n")
        assert trio.current_time() == begun + 10
        assert statuses(response) == [408]
        assert b"\r\nconnection: close\r\n" in response.lower()
        assert await client.receive_all() == b""
        nursery.cancel_scope.cancel()


async def test_a_head_that_begins_behind_another_request_has_its_time_from_the_response_on(
    autojump_clock: MockClock,
) -> None:
    async with serving(target, config=CONFIG) as client, trio.open_nursery() as nursery:
        await client.send(GET + GET[:5])
        nursery.start_soon(drip, client, b"x", 1)
        assert statuses(await client.receive_until(b"did not arrive within 10 seconds\n")) == [200, 408]
        assert trio.current_time() == 1 + 10


@pytest.mark.parametrize(("earlier_requests", "closed"), [(0, 10), (1, 5)])
async def test_empty_lines_are_no_beginning_of_a_request(
    earlier_requests: int, closed: int, autojump_clock: MockClock
) -> None:
    async with serving(empty, config=CONFIG) as client, trio.open_nursery() as nursery:
        for _ in range(earlier_requests):
            await client.request()
        nursery.start_soon(drip, client, b"\r\n", 0.4)
        assert await client.receive_all() == b""
        assert trio.current_time() == closed


async def test_the_client_that_leaves_between_requests_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.request()
        await client.send_eof()
        assert await client.receive_all() == b""
    assert not caplog.records


async def test_the_client_that_leaves_in_the_middle_of_a_head_gets_no_response() -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.send(GET[:-2])
        await client.send_eof()
        assert await client.receive_all() == b""


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(autojump_clock: MockClock) -> None:
    async with serving(target, config=CONFIG) as client:
        wire = b"".join(GET.replace(b"/", b"/%d" % number, 1) for number in range(3))
        await client.send(wire + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        for number in range(3):
            assert (await client.receive_until(b"/%d" % number)).endswith(b"/%d" % number)
            assert trio.current_time() == number + 1
        assert b"connection: close" in (await client.receive_all()).lower()


async def test_requests_sent_before_the_client_ended_its_side_are_answered(autojump_clock: MockClock) -> None:
    async with serving(target, config=CONFIG) as client:
        await client.send(GET * 2)
        await client.send_eof()
        assert statuses(await client.receive_all()) == [200, 200]


@pytest.mark.parametrize(
    ("request_", "says_close"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
async def test_the_connection_ends_after_the_response_where_the_client_cannot_or_will_not_keep_it(
    request_: bytes, says_close: bool, autojump_clock: MockClock
) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.send(request_ * 2)
        response = await client.receive_all()
        assert statuses(response) == [200]
        assert b"\r\nconnection: close\r\n" in response.lower()
        assert trio.current_time() == 0


async def test_a_response_of_unknown_length_to_http_1_0_ends_with_the_connection() -> None:
    @Web
    async def stream(connection: HttpConnection, request: RequestHead) -> None:
        connection.start_response(200, [])
        await connection.send_body(b"no ", more=True)
        await connection.send_body(b"length", more=False)

    async with serving(stream, config=CONFIG) as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        head, body = (await client.receive_all()).split(b"\r\n\r\n")
        assert body == b"no length"
        assert b"transfer-encoding" not in head.lower()


# Which hosts and origins


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"])
async def test_a_request_for_a_host_that_is_not_served_is_refused_with_421_and_a_line_in_the_log(
    upgrade: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trio_ws_server")
    async with serving(empty, config=Config(allowed_hosts=("h",))) as client:
        await client.send(GET + b"GET / HTTP/1.1\r\nHost: evil.example\r\n" + upgrade + b"\r\n")
        response = await client.receive_all()
        assert statuses(response) == [200, 421]
        assert response.endswith(b"\r\n\r\nhost 'evil.example' is not served here (--allowed-host)\n")
    assert [record.getMessage() for record in caplog.records][1:] == [
        "192.0.2.1:4000 refused with 421: host 'evil.example' is not served here (--allowed-host)"
    ]


async def test_a_websocket_of_an_origin_that_is_not_allowed_is_refused_with_403_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="trio_ws_server")
    # The application says that no WebSocket client should come to it.
    async with serving(empty, config=Config(allowed_origins=("https://example.com",))) as client:
        rejected = await client.open(headers=[(b"Origin", b"https://evil.example")])
        assert isinstance(rejected, RejectConnection)
        assert rejected.status_code == 403
        body = await client.event()
        assert isinstance(body, RejectData)
        assert b"'https://evil.example' are not allowed here (--allowed-origin)\n" in body.data
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"192.0.2.1:4000 refused with 403: {body.data.decode().rstrip()}"


async def test_a_request_of_any_origin_is_served_where_it_asks_for_no_websocket() -> None:
    config = Config(access_log=False, allowed_origins=("https://example.com",))
    async with serving(empty, config=config) as client:
        response, _ = await client.request(headers=[("Origin", "https://evil.example")])
        assert response.status_code == 200


# Request bodies


async def test_of_a_body_that_nobody_reads_no_more_than_the_bound_is_taken() -> None:
    taken = 0

    async def count(client: Client) -> None:
        nonlocal taken
        head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n"
        await client.send(head)
        while True:
            await client.send(bytes(KIB))
            taken += KIB

    @Web
    async def wait(connection: HttpConnection, request: RequestHead) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with serving(wait, config=CONFIG, lockstep=True) as client, trio.open_nursery() as nursery:
            nursery.start_soon(count, client)
            await wait_all_tasks_blocked()
            assert 64 * KIB <= taken <= 66 * KIB
            scope.cancel()


async def test_of_a_body_in_tiny_chunks_no_more_than_the_bound_is_taken_ahead() -> None:
    taken = 0

    async def count(client: Client) -> None:
        nonlocal taken
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await client.send(b"1\r\nx\r\n" * 1000)
            taken += 1000

    @Web
    async def read_some(connection: HttpConnection, request: RequestHead) -> None:
        for _ in range(100):
            assert await connection.receive_body() == b"x"
            await wait_all_tasks_blocked()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with serving(read_some, config=CONFIG, lockstep=True) as client, trio.open_nursery() as nursery:
            nursery.start_soon(count, client)
            await wait_all_tasks_blocked(0.01)
            assert taken * 6 <= 3 * 64 * KIB
            scope.cancel()


async def test_of_requests_sent_ahead_no_more_than_the_bound_is_taken() -> None:
    request = GET.replace(b"\r\n\r\n", b"\r\nX-Padding: %s\r\n\r\n" % bytes(KIB).replace(b"\0", b"x"))
    sent = answered = most_ahead = 0

    async def flood(client: Client) -> None:
        nonlocal sent
        for _ in range(50):
            await client.send(request * 10)
            sent += 10

    @Web
    async def count(connection: HttpConnection, _: RequestHead) -> None:
        nonlocal answered, most_ahead
        await wait_all_tasks_blocked()
        most_ahead = max(most_ahead, sent - answered)
        answered += 1
        await connection.respond(204, [], b"")

    async with serving(count, config=CONFIG, lockstep=True) as client, trio.open_nursery() as nursery:
        nursery.start_soon(flood, client)
        received = b""
        while len(statuses(received)) < 500:
            received += await client.stream.receive_some()
    assert 64 <= most_ahead <= 3 * 64


async def test_the_rest_of_a_body_that_was_not_read_is_skipped_before_the_next_request() -> None:
    async with serving(empty, config=CONFIG) as client:
        for _ in range(2):
            response, _ = await client.request("/", method="POST", body=bytes(60 * KIB))
            assert response.status_code == 200


async def test_a_connection_is_closed_rather_than_a_long_body_skipped(autojump_clock: MockClock) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
        await client.send(bytes(500_000))
        assert statuses(await client.receive_all()) == [200]
        assert trio.current_time() == 0


async def test_the_rest_of_a_body_is_waited_for_no_longer_than_the_keep_alive_timeout(
    autojump_clock: MockClock,
) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nbody")
        assert statuses(await client.receive_all()) == [200]
        assert trio.current_time() == 5


async def test_the_rest_of_a_body_is_not_waited_for_after_the_last_response(
    autojump_clock: MockClock,
) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.send(
            b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 10\r\n\r\nbody"
        )
        assert statuses(await client.receive_all()) == [200]
        assert trio.current_time() == 0


@pytest.mark.parametrize("rest", [b"", b"zz\r\n"])
async def test_a_rest_of_a_body_that_never_comes_or_is_broken_ends_the_connection(
    rest: bytes, autojump_clock: MockClock
) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
        await client.receive_until(b"\r\n\r\n")
        await client.send(rest)
        await client.send_eof()
        assert await client.receive_all() == b""
        assert trio.current_time() == 0


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_told_to_the_application() -> None:
    pieces = []

    @Web
    async def read(connection: HttpConnection, request: RequestHead) -> None:
        pieces.append(await connection.receive_body())
        with pytest.raises(ClientDisconnected):
            await connection.receive_body()
        pieces.append(b"disconnected")

    async with serving(read, config=CONFIG) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nbody")
        await wait_all_tasks_blocked()
        await client.send_eof()
        await client.receive_all()
    assert pieces == [b"body", b"disconnected"]


async def test_a_body_with_broken_framing_is_answered_400() -> None:
    async with serving(echo, config=CONFIG) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        response = await client.receive_all()
        assert statuses(response) == [400]
        assert b"\r\nconnection: close\r\n" in response.lower()


# The pace of request bodies

IMPATIENT = Config(body_timeout=10, access_log=False, date_header=False, server_header=False)


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (post(1_000_000), b"x"),
        (post(1_000_000).replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
        # What is around a chunk is not the body.
        (post(1_000_000).replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked"), b"00000000"),
    ],
    ids=["with a length", "chunks", "a chunk's size"],
)
async def test_a_body_that_comes_too_slowly_is_answered_408_and_the_connection_dropped(
    head: bytes, piece: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo, config=IMPATIENT) as client:
        async with trio.open_nursery() as nursery:
            await client.send(head)
            nursery.start_soon(drip, client, piece, 1)
            response = await client.receive_until(b"request's body arrived in 10 seconds\n")
            assert trio.current_time() == 10
            assert statuses(response) == [408]
            assert b"\r\nconnection: close\r\n" in response.lower()
            assert await client.receive_all() == b""
        # Who is still sending is heard out for keep_alive_timeout, and not longer.
        assert 15 <= trio.current_time() <= 16
    assert logged_errors(caplog) == []


@pytest.mark.parametrize(("size", "status"), [(1023, 408), (1024, 200)])
async def test_1_kib_of_a_body_in_each_body_timeout_is_enough_and_no_byte_less(
    size: int, status: int, autojump_clock: MockClock
) -> None:
    async with serving(echo, config=IMPATIENT) as client:
        await client.send(post(10 * size))
        for _ in range(10):
            for piece in (bytes(size - 1), b"x"):
                await trio.sleep(4.99)
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send(piece)
        await client.send_eof()
        assert statuses(await client.receive_all()) == [status]


async def test_the_end_of_a_body_is_enough_however_little_that_is(autojump_clock: MockClock) -> None:
    async with serving(echo, config=IMPATIENT) as client:
        await client.send(post(2) + b"a")
        await trio.sleep(9.9)
        await client.send(b"b")
        assert statuses(await client.receive_until(b"ab")) == [200]
        assert trio.current_time() == 9.9


async def test_each_body_has_a_time_of_its_own(autojump_clock: MockClock) -> None:
    async with serving(echo, config=IMPATIENT) as client:
        for _ in range(3):
            await client.send(post(1))
            await trio.sleep(9)
            await client.send(b"x")
            assert statuses(await client.receive_until(b"x")) == [200]


async def test_the_time_in_which_the_application_does_not_read_does_not_count(
    autojump_clock: MockClock,
) -> None:
    @Web
    async def dawdle(connection: HttpConnection, request: RequestHead) -> None:
        for _ in range(5):
            await trio.sleep(100)
            assert await connection.receive_body() == b"x"
        await connection.respond(200, [], b"")

    async with serving(dawdle, config=IMPATIENT) as client:
        await client.send(post(5))
        for _ in range(5):
            await trio.sleep(101)
            await client.send(b"x")
        assert statuses(await client.receive_until(b"\r\n\r\n")) == [200]


async def test_waiting_a_little_again_and_again_is_waiting_too(autojump_clock: MockClock) -> None:
    @Web
    async def poll(connection: HttpConnection, request: RequestHead) -> None:
        while True:
            with trio.move_on_after(3):
                await connection.receive_body()
            await trio.sleep(1)

    async with serving(poll, config=IMPATIENT) as client:
        await client.send(post(5))
        assert statuses(await client.receive_until(b"\r\n\r\n")) == [408]
        assert trio.current_time() == 13  # of which every fourth second was not spent in waiting


async def test_an_application_is_told_that_a_body_comes_too_slowly_however_often_it_asks(
    autojump_clock: MockClock,
) -> None:
    told = []

    @Web
    async def read(connection: HttpConnection, request: RequestHead) -> None:
        connection.start_response(200, [(b"content-length", b"4")])
        assert await connection.receive_body() == b"x"
        for _ in range(2):
            with pytest.raises(ClientDisconnected, match="less than 1024 bytes"):
                await connection.receive_body()
            told.append(trio.current_time())
        assert connection.client_ended
        await connection.send_body(b"late", more=False)

    async with serving(read, config=IMPATIENT) as client:
        await client.send(post(5) + b"x")
        # A response that has begun can be completed, but another cannot follow it.
        assert statuses(await client.receive_until(b"late")) == [200]
        await client.send(b"xxxx" + GET)
        assert await client.receive_all() == b""
    assert told == [10, 10]


async def test_an_asgi_application_is_told_of_a_slow_body_as_of_a_disconnect(
    autojump_clock: MockClock,
) -> None:
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (event := await receive())["type"] != "http.disconnect":
            events.append(event)
        events.append(event)

    async with serving(asgi(app), config=IMPATIENT) as client:
        await client.send(post(5) + b"abc")
        assert statuses(await client.receive_until(b"\r\n\r\n")) == [408]
    assert events == [
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.disconnect"},
    ]


async def test_a_client_that_is_told_to_send_its_body_must_do_so(autojump_clock: MockClock) -> None:
    async with serving(echo, config=IMPATIENT) as client:
        await client.send(EXPECTING + b"\r\n")
        assert statuses(await client.receive_until(b"seconds\n")) == [100, 408]
        assert trio.current_time() == 10


# 100 Continue

EXPECTING = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n"


async def test_the_body_is_called_for_once_when_it_is_first_asked_for() -> None:
    async with serving(echo, config=CONFIG) as client:
        await client.send(EXPECTING + b"\r\n")
        assert await client.receive_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"bo")
        await wait_all_tasks_blocked()
        await client.send(b"dy")
        response = await client.receive_until(b"body")
        assert statuses(response) == [200]
        assert (await client.request())[0].status_code == 200


@pytest.mark.parametrize(
    ("application", "request_"),
    [
        (empty, EXPECTING + b"Connection: close\r\n\r\n"),
        (echo, EXPECTING + b"Connection: close\r\n\r\nbody"),
        (echo, EXPECTING.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\nbody"),
    ],
    ids=["not asked for", "there already", "HTTP/1.0"],
)
async def test_the_body_is_not_called_for_where_that_is_useless(application: Web, request_: bytes) -> None:
    async with serving(application, config=CONFIG) as client:
        await client.send(request_)
        assert statuses(await client.receive_all()) == [200]


async def test_a_response_without_a_look_at_a_body_that_is_held_back_says_that_it_is_the_last(
    autojump_clock: MockClock,
) -> None:
    async with serving(empty, config=CONFIG) as client:
        await client.send(EXPECTING + b"\r\n")
        response = await client.receive_all()
        assert statuses(response) == [200]
        assert b"\r\nconnection: close\r\n" in response.lower()
        assert trio.current_time() == 0


# Responses


async def test_a_response_has_the_headers_that_the_configuration_asks_for_each_once() -> None:
    config = Config(access_log=False, response_headers=((b"Server", b"ours"), (b"X-Frame-Options", b"DENY")))

    @Web
    async def respond(connection: HttpConnection, request: RequestHead) -> None:
        await connection.respond(204, [(b"x-frame-options", b"SAMEORIGIN")], b"")

    async with serving(respond, config=config) as client:
        response, _ = await client.request()
        headers = dict(response.headers)
        assert len(headers) == len(list(response.headers))
        assert headers[b"server"] == b"ours"
        assert headers[b"x-frame-options"] == b"SAMEORIGIN"
        assert parsedate_to_datetime(headers[b"date"].decode()).tzinfo is UTC


async def test_each_response_has_the_date_of_its_second(monkeypatch: pytest.MonkeyPatch) -> None:
    dates = []
    for now in (0.0, 0.9, 1.0, 86_400.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        async with serving(empty, config=Config(access_log=False)) as client:
            response, _ = await client.request()
        dates.append(parsedate_to_datetime(dict(response.headers)[b"date"].decode()).timestamp())
    assert dates == [0, 0, 1, 86_400]


async def test_responding_to_a_client_that_has_gone_is_no_error() -> None:
    responded = False

    @Web
    async def respond(connection: HttpConnection, request: RequestHead) -> None:
        nonlocal responded
        connection.transport.abort()
        await connection.respond(200, [], b"")
        responded = True

    async with serving(respond, config=CONFIG) as client:
        await client.send(GET)
        assert await client.receive_all() == b""
    assert responded


async def test_a_client_that_has_ended_its_side_still_gets_its_response(autojump_clock: MockClock) -> None:
    async with serving(target, config=CONFIG) as client:
        await client.send(GET)
        await client.send_eof()
        assert statuses(await client.receive_all()) == [200]


async def test_a_task_that_waits_for_the_disconnect_sees_it() -> None:
    ended = []

    @Web
    async def wait(connection: HttpConnection, request: RequestHead) -> None:
        await connection.disconnected_or(lambda: False)
        ended.append(connection.client_ended)

    async with serving(wait, config=CONFIG) as client:
        await client.send(GET)
        await wait_all_tasks_blocked()
        assert ended == []
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert ended == [True]


async def test_who_streams_to_a_client_that_takes_nothing_is_told_when_it_is_dropped(
    autojump_clock: MockClock,
) -> None:
    stopped = None

    @Web
    async def stream(connection: HttpConnection, request: RequestHead) -> None:
        nonlocal stopped
        connection.start_response(200, [])
        try:
            while True:
                await connection.send_body(bytes(10 * KIB), more=True)
        except ClientDisconnected:
            stopped = trio.current_time()
            with pytest.raises(ClientDisconnected):
                await connection.send_body(b"", more=False)
            with pytest.raises(ClientDisconnected):
                connection.start_response(200, [])

    async with serving(stream, config=CONFIG, lockstep=True) as client:
        await client.send(GET)
        await trio.sleep(31)
    assert stopped == 30


@pytest.mark.parametrize("stalled", [False, True])
async def test_a_piece_whose_sending_is_cancelled_anywhere_is_sent_whole_or_not_at_all(stalled: bool) -> None:
    before = bytes(100 * KIB) if stalled else b""
    piece = b"x" * 100 * KIB
    for steps in itertools.count():
        cancelled = True

        @Web
        async def stream(connection: HttpConnection, request: RequestHead, steps: int = steps) -> None:
            nonlocal cancelled
            connection.start_response(200, [])
            if stalled:
                with trio.move_on_after(0.01):
                    await connection.send_body(before, more=True)
            cancelled = await cancelled_after(steps, lambda: connection.send_body(piece, more=True))
            await connection.send_body(b"", more=False)

        async with serving(stream, config=CONFIG, lockstep=True) as client:
            await client.send(GET)
            await wait_all_tasks_blocked(0.02)
            parser = h11.Connection(h11.CLIENT)
            parser.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
            parser.send(h11.EndOfMessage())
            _, body = await read_response(client.stream, parser)
        assert body in (before, before + piece)
        if not cancelled:
            break
    assert steps > 1


# Waiting for the disconnect behind what is sent far ahead

AHEAD = GET * (100 * KIB // len(GET))
"""More requests than are taken ahead."""


@Web
async def until_disconnected(connection: HttpConnection, request: RequestHead) -> None:
    """Respond once the client has ended its side."""
    await connection.disconnected_or(lambda: False)
    assert connection.client_ended
    await connection.respond(200, [], b"ended")


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_end_of_a_client_that_sent_too_much_ahead_is_seen_by_who_waits_for_it(
    at_once: bool, autojump_clock: MockClock
) -> None:
    async with serving(until_disconnected, config=CONFIG) as client:
        await client.send(GET + AHEAD if at_once else GET)
        await trio.sleep(1)
        await client.send(AHEAD)
        await trio.sleep(1)
        await client.send_eof()
        response = await client.receive_all()
        assert statuses(response) == [200]
        assert b"\r\nconnection: close\r\n" in response.lower()
        assert trio.current_time() == 2


async def test_an_asgi_application_that_looks_now_and_then_sees_that_its_client_has_left(
    autojump_clock: MockClock,
) -> None:
    left = None

    async def poll(scope: Any, receive: Any, send: Any) -> None:
        nonlocal left
        await receive()
        while left is None:
            await trio.sleep(1)
            with trio.CancelScope() as scope:
                scope.cancel()
                assert (await receive())["type"] == "http.disconnect"
                left = trio.current_time()

    async with serving(asgi(poll), config=CONFIG) as client:
        await client.send(GET + AHEAD)
        await trio.sleep(5.5)
        await client.stream.aclose()
        await trio.sleep(2)
    assert left == 6


@pytest.mark.parametrize("begun", [True, False])
async def test_requests_dropped_to_wait_for_the_disconnect_are_not_answered_and_no_later_ones_either(
    begun: bool, autojump_clock: MockClock
) -> None:
    @Web
    async def respond_later(connection: HttpConnection, request: RequestHead) -> None:
        if begun:
            connection.start_response(200, [(b"content-length", b"5")])
        with trio.move_on_after(2):
            await connection.disconnected_or(lambda: False)
        if begun:
            await connection.send_body(b"later", more=False)
        else:
            await connection.respond(200, [], b"later")

    async with serving(respond_later, config=CONFIG) as client:
        await client.send(GET + AHEAD)
        await trio.sleep(1)
        await client.send(GET)
        response = await client.receive_until(b"later")
        assert await client.receive_all() == b""
        assert statuses(response) == [200]
        assert (b"\r\nconnection: close\r\n" in response.lower()) is not begun
        assert trio.current_time() == 2
        # The client, which may be sending still, is heard out for keep_alive_timeout, so that it gets to read that.
        await trio.sleep(4)
        await client.send(GET)


async def test_requests_sent_ahead_within_the_bound_are_answered_behind_one_that_waits_for_the_disconnect(
    autojump_clock: MockClock,
) -> None:
    @Web
    async def wait_a_little(connection: HttpConnection, request: RequestHead) -> None:
        with trio.move_on_after(1):
            await connection.disconnected_or(lambda: False)
        await connection.respond(200, [], b"")

    request = GET.replace(b"\r\n\r\n", b"\r\nX-Padding: %s\r\n\r\n" % (b"x" * KIB))
    async with serving(wait_a_little, config=CONFIG) as client:
        await client.send(request * 60)
        received = b""
        while len(statuses(received)) < 60:
            received += await client.stream.receive_some()


async def test_of_what_is_dropped_to_wait_for_the_disconnect_nothing_is_kept() -> None:
    async with serving(until_disconnected, config=CONFIG, lockstep=True) as client:
        await client.send(GET)
        await wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            for _ in range(20):
                await client.send(AHEAD)
            await wait_all_tasks_blocked()
            assert tracemalloc.get_traced_memory()[0] < 32 * KIB
        finally:
            tracemalloc.stop()
        await client.send_eof()
        await client.receive_all()


async def test_a_client_that_left_behind_a_long_body_is_told_to_the_application_that_reads_it() -> None:
    told = None

    @Web
    async def read_late(connection: HttpConnection, request: RequestHead) -> None:
        nonlocal told
        await read_now.wait()
        size = 0
        try:
            while piece := await connection.receive_body():
                size += len(piece)
        except ClientDisconnected:
            told = size

    read_now = trio.Event()
    async with serving(read_late, config=CONFIG) as client:
        await client.send(post(1_000_000))
        await client.send(bytes(100 * KIB))
        await wait_all_tasks_blocked()
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        read_now.set()
    assert told == 100 * KIB
