"""One connection, whatever the application does on it, and whenever the server wants it to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, CloseConnection, Ping, Pong, RejectConnection, TextMessage
from wsproto.events import Request as HandshakeRequest
from wsproto.extensions import PerMessageDeflate

from tests.helpers import Client, logged_errors, native, run_connection, serving
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.errors import ClientDisconnected, ConnectionClosed, ConnectionClosedError
from trio_ws_server.protocol.websocket import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade
    from trio_ws_server.websocket import WebSocket

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
RESTART = Close(1012)


class App:
    """An application made of functions."""

    def __init__(
        self,
        http: Callable[[HttpConnection], Awaitable[object]] | None = None,
        websocket: Callable[[Upgrade], Awaitable[object]] | None = None,
    ) -> None:
        self._http = http
        self._websocket = websocket

    async def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> None:
        assert self._http is not None
        await self._http(connection)

    async def websocket(self, upgrade: Upgrade) -> None:
        assert self._websocket is not None
        await self._websocket(upgrade)


async def hello(connection: HttpConnection) -> None:
    await connection.respond(200, [], b"hello")


async def echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def until_closed(websocket: WebSocket) -> None:
    async for _ in websocket:
        pass


async def closed_with(client: Client) -> Close:
    """Return what the server's close frame says, which is answered."""
    event = await client.event()
    assert isinstance(event, CloseConnection)
    await client.send_event(event.response())
    return Close(int(event.code), event.reason or "")


# What the application does


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("a failure"),
        ExceptionGroup("failures", [ValueError("a failure")]),
        SystemExit(3),
        asyncio.CancelledError(),
    ],
)
async def test_a_failing_handler_closes_with_1011_and_is_logged_once(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(websocket: WebSocket) -> None:
        raise failure

    async with serving(native(fail)) as client:
        await client.open()
        assert await closed_with(client) == Close(1011)
    (error,) = logged_errors(caplog)
    assert "192.0.2.1:4000 GET /: exception in the application" in error
    assert error.count("Traceback") >= 1
    assert "in fail" in error


@pytest.mark.parametrize("failure", [ValueError("a failure"), SystemExit(3), asyncio.CancelledError()])
async def test_a_request_that_fails_before_its_response_is_answered_500(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(connection: HttpConnection) -> None:
        raise failure

    async with serving(App(http=fail)) as client:
        response, body = await client.request()
        assert (response.status_code, body) == (500, b"Internal Server Error\n")
        assert await client.receive_all() == b""
    assert len(logged_errors(caplog)) == 1


@pytest.mark.parametrize("failure", [ValueError("a failure"), None])
async def test_a_response_left_unfinished_is_seen_to_be_cut_off(
    failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def begin(connection: HttpConnection) -> None:
        connection.start_response(200, [(b"content-length", b"10")])
        await connection.send_body(b"half", more=True)
        if failure is not None:
            raise failure

    async with serving(App(http=begin)) as client:
        await client.send(GET * 2)
        response = await client.receive_all()
        assert response.count(b"HTTP/1.1") == 1
        assert response.endswith(b"half")
    assert len(logged_errors(caplog)) == 1


async def test_a_request_that_gets_no_response_is_answered_500_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def forget(connection: HttpConnection) -> None:
        pass

    async with serving(App(http=forget)) as client:
        assert (await client.request())[0].status_code == 500
    assert logged_errors(caplog) == [
        "192.0.2.1:4000 GET /: the application returned before it sent a response"
    ]


async def test_a_handler_that_returns_closes_with_1000() -> None:
    async def greet(websocket: WebSocket) -> None:
        await websocket.send("hello")

    async with serving(native(greet)) as client:
        await client.open()
        assert await client.event() == TextMessage("hello")
        assert await closed_with(client) == Close(1000)


async def test_a_handler_that_lets_the_peers_close_through_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "trio_ws_server")

    async def receive(websocket: WebSocket) -> None:
        await websocket.recv()

    async with serving(native(receive)) as client:
        await client.open()
        await client.send_event(CloseConnection(1001))
        assert isinstance(await client.event(), CloseConnection)
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "the client disconnected" in record.getMessage()


async def test_a_handlers_nursery_may_end_with_the_peers_close_in_a_group(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def receive_twice(websocket: WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.recv)
            nursery.start_soon(websocket.recv)

    async with serving(native(receive_twice)) as client:
        await client.open()
        await client.send_event(CloseConnection(1000))
    assert logged_errors(caplog) == []


async def test_a_failure_beside_the_peers_close_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(websocket: WebSocket) -> None:
        try:
            await websocket.recv()
        except ConnectionClosed as closed:
            raise ExceptionGroup("both", [closed, ValueError("a failure")]) from None

    async with serving(native(fail)) as client:
        await client.open()
        await client.send_event(CloseConnection(1000))
    (error,) = logged_errors(caplog)
    assert "ValueError: a failure" in error


async def test_an_application_that_lets_a_clients_disconnect_through_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stream(connection: HttpConnection) -> None:
        connection.start_response(200, [])
        while True:
            await connection.send_body(b"data", more=True)

    async with serving(App(http=stream)) as client:
        await client.send(GET)
        await client.receive_until(b"data")
        await client.stream.aclose()
    assert logged_errors(caplog) == []


async def test_a_handler_that_needs_asyncio_is_told_what_to_use(caplog: pytest.LogCaptureFixture) -> None:
    async def sleep(websocket: WebSocket) -> None:
        import asyncio

        await asyncio.sleep(1)

    async with serving(native(sleep)) as client:
        await client.open()
        assert await closed_with(client) == Close(1011)
    failure, hint = logged_errors(caplog)
    assert "Traceback" in failure
    assert "runs applications on Trio" in hint
    assert "anyio" in hint


async def test_cancelling_the_connection_cancels_the_application_and_closes_the_stream() -> None:
    cancelled = False

    async def wait(websocket: WebSocket) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled = True
            raise

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_connection, theirs, native(wait), Config(access_log=False))
        await Client(ours).open()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert cancelled
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"data")


# The upgrade


def upgrade_and(*frames: bytes) -> tuple[WSConnection, bytes]:
    """Return a client and its handshake with frames right behind it."""
    client = WSConnection(ConnectionType.CLIENT)
    return client, client.send(HandshakeRequest(host="h", target="/")) + b"".join(frames)


@pytest.mark.parametrize("cut", [None, 10, -1, -5])
async def test_frames_in_the_same_piece_as_the_handshake_are_not_lost(cut: int | None) -> None:
    received = []

    async def receive(websocket: WebSocket) -> None:
        received.extend([message async for message in websocket])

    masked_text = b"\x81\x82\0\0\0\0"
    _, wire = upgrade_and(masked_text + b"AB", masked_text + b"CD", b"\x88\x80\0\0\0\0")
    async with serving(native(receive)) as client:
        await client.send(wire[:cut])
        if cut is not None:
            await wait_all_tasks_blocked()
            await client.send(wire[cut:])
        assert (await client.receive_all()).endswith(b"\x88\x00")
    assert received == ["AB", "CD"]


async def test_the_end_in_the_same_piece_as_the_handshake_is_seen() -> None:
    async def receive(websocket: WebSocket) -> None:
        assert await websocket.recv() == "AB"
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()

    _, wire = upgrade_and(b"\x81\x82\0\0\0\0AB")
    async with serving(native(receive)) as client:
        await client.send(wire)
        await client.send_eof()
        assert (await client.receive_all()).startswith(b"HTTP/1.1 101 ")


async def test_frames_that_wait_for_an_answer_do_not_fill_the_memory() -> None:
    accepted = trio.Event()
    taken = 0

    async def flood(client: Client) -> None:
        nonlocal taken
        for _ in range(100):
            await client.send(b"\x81\xfe\x0f\xf8\0\0\0\0" + b"x" * 4088)
            taken += 1

    async def receive(upgrade: Upgrade) -> None:
        await accepted.wait()
        websocket = upgrade.accept()
        for _ in range(100):
            assert await websocket.recv() == "x" * 4088

    async with serving(App(websocket=receive), lockstep=True) as client, trio.open_nursery() as nursery:
        await client.send(upgrade_and()[1])
        nursery.start_soon(flood, client)
        await wait_all_tasks_blocked()
        assert 16 <= taken <= 18
        accepted.set()
        await client.receive_until(b"\r\n\r\n")
        assert await client.receive_until(b"\x88") == b"\x88\x02\x03\xe8"


async def test_an_upgrade_may_follow_ordinary_requests() -> None:
    async def accept(upgrade: Upgrade) -> None:
        await echo(upgrade.accept())

    async with serving(App(http=hello, websocket=accept)) as client:
        assert (await client.request())[1] == b"hello"
        await client.open()
        await client.send_event(TextMessage("hello"))
        assert await client.event() == TextMessage("hello")


async def test_a_handler_sees_the_request_as_it_came() -> None:
    seen: list[Any] = []

    async def look(upgrade: Upgrade) -> None:
        seen.append(upgrade.subprotocols)
        websocket = upgrade.accept(subprotocol="b", headers=[(b"x-answer", b"42")])
        seen.extend([websocket.path, websocket.request.headers.get_all("x-question"), websocket.subprotocol])

    async with serving(App(websocket=look)) as client:
        outcome = await client.open(
            "/chat%20room?a=%C3%A4",
            subprotocols=["a", "b"],
            headers=[(b"X-Question", b"1"), (b"X-Question", b"2")],
        )
        assert isinstance(outcome, AcceptConnection)
        assert outcome.subprotocol == "b"
        assert (b"x-answer", b"42") in outcome.extra_headers
    assert seen == [["a", "b"], "/chat%20room?a=%C3%A4", ["1", "2"], "b"]


@pytest.mark.parametrize("arguments", [{"subprotocol": "c"}, {"headers": [(b"upgrade", b"h2c")]}])
async def test_an_answer_that_cannot_be_given_sends_nothing_and_another_can_be_given(
    arguments: dict[str, Any],
) -> None:
    async def accept(upgrade: Upgrade) -> None:
        with pytest.raises(ValueError, match=r"not offered|made by the handshake"):
            upgrade.accept(**arguments)
        upgrade.accept()

    async with serving(App(websocket=accept)) as client:
        assert isinstance(await client.open(subprotocols=["a", "b"]), AcceptConnection)
        assert await closed_with(client) == Close(1000)


async def test_compression_is_agreed_on_where_both_want_it() -> None:
    async with serving(native(echo), config=Config(access_log=False, per_message_deflate=True)) as client:
        outcome = await client.open(extensions=[PerMessageDeflate()])
        assert isinstance(outcome, AcceptConnection)
        assert [extension.name for extension in outcome.extensions] == ["permessage-deflate"]
        await client.send_event(TextMessage("hello" * 1000))
        assert await client.event() == TextMessage("hello" * 1000)


@pytest.mark.parametrize(("status", "body"), [(403, b""), (404, b"no such room"), (503, b"later")])
async def test_a_rejected_handshake_gets_the_status_and_the_connection_ends(status: int, body: bytes) -> None:
    async def reject(upgrade: Upgrade) -> None:
        await upgrade.reject(status, body)

    async with serving(App(websocket=reject)) as client:
        await client.send(upgrade_and()[1] + GET)
        response = await client.receive_all()
        assert response.startswith(b"HTTP/1.1 %d " % status)
        assert response.endswith(b"\r\n\r\n" + body)
        assert b"\r\nconnection: close\r\n" in response.lower()


async def test_a_failing_application_that_has_not_answered_the_handshake_is_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(upgrade: Upgrade) -> None:
        raise ValueError("a failure")

    async with serving(App(websocket=fail)) as client:
        outcome = await client.open()
        assert isinstance(outcome, RejectConnection)
        assert outcome.status_code == 500
    assert len(logged_errors(caplog)) == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Version: 13", b"Version: 8"), 426),
        ((b"Key: ", b"Key: x"), 400),
        ((b"GET", b"POST"), 400),
        ((b"HTTP/1.1", b"HTTP/1.0"), 400),
        ((b"Host: h\r\n", b""), 400),
    ],
)
async def test_an_invalid_handshake_is_refused_before_the_application_sees_it(
    change: tuple[bytes, bytes], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_ws_server")
    async with serving(App(), config=Config()) as client:
        await client.send(upgrade_and()[1].replace(*change))
        response = await client.receive_all()
        assert response.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in response.lower()
    (record,) = caplog.records
    assert f"192.0.2.1:4000 refused with {status}: " in record.getMessage()


async def test_a_client_that_leaves_before_it_is_answered_is_seen() -> None:
    gone: list[bool] = []

    async def wait(upgrade: Upgrade) -> None:
        gone.append(upgrade.client_gone)
        await upgrade.decided_or_disconnected()
        gone.append(upgrade.client_gone)
        with pytest.raises(ClientDisconnected):
            upgrade.check_connected()

    async with serving(App(websocket=wait)) as client:
        await client.send(upgrade_and()[1])
        await wait_all_tasks_blocked()
        await client.stream.aclose()
    assert gone == [False, True]


async def test_a_handler_whose_client_left_before_the_handshake_ended_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def accept(upgrade: Upgrade) -> None:
        upgrade.check_connected()
        await upgrade.decided_or_disconnected()
        websocket = upgrade.accept()
        assert websocket.state is State.CLOSED
        await websocket.recv()

    async with serving(App(websocket=accept)) as client:
        await client.send(upgrade_and()[1])
        await wait_all_tasks_blocked()
        await client.send_eof()
    assert logged_errors(caplog) == []


FRAME = b"\x82\xfe\x04\0\0\0\0\0" + bytes(1024)
"""A message of 1 KiB, with a mask that changes nothing."""


async def test_a_client_that_leaves_behind_frames_sent_far_ahead_of_the_answer_is_seen() -> None:
    gone = False

    async def wait(upgrade: Upgrade) -> None:
        nonlocal gone
        await upgrade.decided_or_disconnected()
        gone = upgrade.client_gone

    async with serving(App(websocket=wait)) as client:
        await client.send(upgrade_and()[1])
        await wait_all_tasks_blocked()
        await client.send(FRAME * 200)
        await wait_all_tasks_blocked()
        await client.stream.aclose()
    assert gone


async def test_a_handshake_whose_frames_were_not_all_kept_is_over(caplog: pytest.LogCaptureFixture) -> None:
    received: list[object] = []

    async def accept_late(upgrade: Upgrade) -> None:
        await upgrade.decided_or_disconnected()
        with pytest.raises(ClientDisconnected):
            upgrade.check_connected()
        websocket = upgrade.accept()
        assert websocket.state is State.CLOSED
        async for message in websocket:
            received.append(message)

    async with serving(App(websocket=accept_late)) as client:
        await client.send(upgrade_and()[1])
        await wait_all_tasks_blocked()
        # The bound is behind a part of a frame.
        await client.send(FRAME * 100 + FRAME[:500])
        await wait_all_tasks_blocked()
        with suppress(trio.BrokenResourceError):
            await client.send(FRAME[500:] + FRAME * 100)
    assert received == []
    assert logged_errors(caplog) == []


async def test_of_a_websocket_accepted_on_a_lost_connection_nothing_is_left_to_the_garbage_collector() -> (
    None
):
    accepted = []

    async def accept_too_late(upgrade: Upgrade) -> None:
        upgrade.http.transport.abort()
        websocket = upgrade.accept()
        accepted.append(weakref.ref(websocket))
        with suppress(ConnectionClosedError):
            await websocket.recv()

    gc.disable()
    try:
        async with serving(App(websocket=accept_too_late)) as client:
            await client.send(upgrade_and()[1])
            await client.receive_all()
        # It has our end as well.
        del client
        assert [websocket() for websocket in accepted] == [None]
    finally:
        gc.enable()


async def test_frames_sent_far_ahead_of_the_answer_all_arrive_where_nobody_waits_for_the_disconnect() -> None:
    received = []

    async def accept_late(upgrade: Upgrade) -> None:
        await wait_all_tasks_blocked()
        async for message in upgrade.accept():
            received.append(len(message))

    async with serving(App(websocket=accept_late)) as client:
        await client.send(upgrade_and()[1] + FRAME * 200)
        await client.send_eof()
        await client.receive_all()
    assert received == [1024] * 200


async def test_a_websocket_keeps_nothing_of_what_came_ahead_once_that_was_received() -> None:
    held = {}
    for ahead in (0, 0, 60):  # the first time, caches are filled
        tracemalloc.start()
        try:

            async def accept_late(upgrade: Upgrade, ahead: int = ahead) -> None:
                await wait_all_tasks_blocked()
                websocket = upgrade.accept()
                for _ in range(ahead):
                    await websocket.recv()
                await until_closed(websocket)

            async with serving(App(websocket=accept_late)) as client:
                await client.send(upgrade_and()[1] + FRAME * ahead)
                await wait_all_tasks_blocked(0.01)
                gc.collect()
                held[ahead] = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert held[60] < held[0] + 16 * 1024


# Draining


async def drain(client: Client) -> None:
    assert client.connection is not None
    client.connection.begin_drain(RESTART)
    await wait_all_tasks_blocked()


async def test_a_drain_before_the_connection_runs_ends_it_at_once() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        connection = await nursery.start(run_connection, theirs, App(), Config(access_log=False))
        connection.begin_drain(RESTART)
        assert await ours.receive_some() == b""
        await ours.aclose()


@pytest.mark.parametrize("requests", [0, 1])
async def test_a_drain_ends_an_idle_connection_at_once(requests: int, autojump_clock: MockClock) -> None:
    async with serving(App(http=hello)) as client:
        for _ in range(requests):
            await client.request()
        await drain(client)
        assert await client.receive_all() == b""
        assert trio.current_time() == 0


@pytest.mark.parametrize("begun", [b"", b"\r\n", GET[:10]], ids=["nothing", "an empty line", "half a head"])
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "after a response"])
async def test_a_drain_closes_what_is_no_request_yet_without_waiting_for_the_client(
    before: bytes, begun: bytes, autojump_clock: MockClock
) -> None:
    async with serving(App(http=hello)) as client:
        await client.send(before + begun)
        await wait_all_tasks_blocked()
        await drain(client)
        assert (await client.receive_all()).count(b"HTTP/1.1") == (1 if before else 0)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await client.send(GET)
        assert trio.current_time() == 0


async def test_a_drain_lets_a_running_request_be_the_last_and_its_response_says_so(
    autojump_clock: MockClock,
) -> None:
    async def slow(connection: HttpConnection) -> None:
        assert await connection.receive_body() == b"body"
        await trio.sleep(1)
        await hello(connection)

    async with serving(App(http=slow)) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
        await wait_all_tasks_blocked()
        await drain(client)
        await client.send(b"body" + GET)
        response = (await client.receive_all()).lower()
        assert response.endswith(b"hello")
        assert response.count(b"http/1.1 200") == 1
        assert b"\r\nconnection: close\r\n" in response
        assert trio.current_time() == 1


async def test_a_drain_lets_a_response_come_to_its_end_and_no_further_request_be_served(
    autojump_clock: MockClock,
) -> None:
    async def slow(connection: HttpConnection) -> None:
        connection.start_response(200, [(b"content-length", b"5")])
        await connection.send_body(b"hel", more=True)
        await trio.sleep(1)
        await connection.send_body(b"lo", more=False)

    async with serving(App(http=slow)) as client:
        await client.send(GET * 2)
        await client.receive_until(b"hel")
        await drain(client)
        assert await client.receive_all() == b"lo"
        assert trio.current_time() == 1


async def test_a_drain_closes_a_websocket_and_lets_its_handler_come_to_an_end(
    autojump_clock: MockClock,
) -> None:
    ended = False

    async def handler(websocket: WebSocket) -> None:
        nonlocal ended
        with pytest.raises(ConnectionClosedError, match="1012"):
            await until_closed(websocket)
        await trio.sleep(1)
        ended = True

    async with serving(native(handler)) as client:
        await client.open()
        await drain(client)
        assert await closed_with(client) == RESTART
        await client.stream.aclose()
    assert ended


async def test_a_drain_before_the_handshake_is_answered_lets_it_be_and_closes_then() -> None:
    answer = trio.Event()

    async def accept(upgrade: Upgrade) -> None:
        await answer.wait()
        await until_closed(upgrade.accept())

    async with serving(App(websocket=accept)) as client, trio.open_nursery() as nursery:

        async def opened() -> None:
            assert isinstance(await client.open(), AcceptConnection)
            assert await closed_with(client) == RESTART

        nursery.start_soon(opened)
        await wait_all_tasks_blocked()
        await drain(client)
        answer.set()


async def test_a_second_drain_changes_nothing() -> None:
    async with serving(native(until_closed)) as client:
        await client.open()
        await drain(client)
        await drain(client)
        assert await closed_with(client) == RESTART


async def test_pings_are_answered_while_the_application_does_something_else() -> None:
    async def busy(websocket: WebSocket) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with serving(native(busy)) as client:
            await client.open()
            await client.send_event(Ping(b"ping"))
            assert await client.event() == Pong(b"ping")
            scope.cancel()
