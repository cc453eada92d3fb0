"""Whoever cancels what on a connection, an application, a client or the server: what is left is whole or gone."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import h11
import pytest
import trio
import wsproto.utilities
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    RejectConnection,
    RejectData,
    TextMessage,
)

from tests.automatic_peer import CLIENT_CONTEXT, SERVER_CONTEXT
from tests.cancelling import Cancelling, at_every_step
from tests.helpers import Client, asgi, logged_errors, read_response, run_connection, serving
from trio_ws_server.client import connect
from trio_ws_server.config import Config

KIB = 1024
CONFIG = Config(access_log=False)
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

lockstep = pytest.mark.parametrize("lockstep", [False, True], ids=["memory", "lockstep"])

# ASGI websocket


@lockstep
async def test_an_accept_that_is_cancelled_has_sent_nothing_or_all_of_it(lockstep: bool) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        async def app(scope: Any, receive: Receive, send: Send) -> None:
            assert await receive() == {"type": "websocket.connect"}
            if await cancelling(lambda: send({"type": "websocket.accept", "subprotocol": "chat"})):
                await send({"type": "websocket.accept", "subprotocol": "chat"})
            await send(await receive() | {"type": "websocket.send"})

        async with serving(asgi(app), lockstep=lockstep) as client:
            outcome = await client.open(subprotocols=["chat"])
            assert isinstance(outcome, AcceptConnection)
            assert outcome.subprotocol == "chat"
            await client.send_event(TextMessage("hello"))
            assert await client.event() == TextMessage("hello")

    assert await at_every_step(scenario) >= 2


@lockstep
async def test_a_receive_of_a_websocket_that_is_cancelled_loses_no_event(lockstep: bool) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        events: list[dict[str, Any]] = []

        async def app(scope: Any, receive: Receive, send: Send) -> None:
            async def receive_all() -> None:
                while not events or events[-1]["type"] != "websocket.disconnect":
                    events.append(await receive())
                    if len(events) == 1:
                        await send({"type": "websocket.accept"})

            if await cancelling(receive_all):
                if events == [{"type": "websocket.connect"}]:
                    with suppress(RuntimeError):  # accepted already
                        await send({"type": "websocket.accept"})
                await receive_all()

        async with serving(asgi(app), lockstep=lockstep) as client:
            await client.open()
            await client.send_event(TextMessage("one"))
            await client.send_event(BytesMessage(b"two"))
            await client.send_event(CloseConnection(4000, "enough"))
            assert isinstance(await client.event(), CloseConnection)
        assert [event["type"].removeprefix("websocket.") for event in events] == [
            "connect",
            "receive",
            "receive",
            "disconnect",
        ]
        assert (events[1]["text"], events[2]["bytes"], events[3]["code"]) == ("one", b"two", 4000)

    assert await at_every_step(scenario) >= 5


@lockstep
@pytest.mark.parametrize("size", [1, 100 * KIB])
async def test_a_send_on_a_websocket_that_is_cancelled_sends_nothing_or_the_whole_message(
    lockstep: bool, size: int
) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        cancelled = False

        async def app(scope: Any, receive: Receive, send: Send) -> None:
            nonlocal cancelled
            await receive()
            await send({"type": "websocket.accept"})
            cancelled = await cancelling(lambda: send({"type": "websocket.send", "bytes": b"x" * size}))
            await send({"type": "websocket.send", "text": "last"})

        received = b""
        async with serving(asgi(app), lockstep=lockstep) as client:
            await client.open()
            while not isinstance(event := await client.event(), TextMessage):
                assert isinstance(event, BytesMessage)
                received += event.data
        assert event.data == "last"
        assert received in (b"x" * size, b"" if cancelled else None)

    assert await at_every_step(scenario) >= 2


@lockstep
async def test_a_close_of_a_websocket_that_is_cancelled_has_not_begun_or_is_sent(lockstep: bool) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        async def app(scope: Any, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            close = {"type": "websocket.close", "code": 4000, "reason": "enough"}
            if await cancelling(lambda: send(close)):
                await send(close)
            assert await receive() == {"type": "websocket.disconnect", "code": 4000, "reason": "enough"}

        async with serving(asgi(app), lockstep=lockstep) as client:
            await client.open()
            event = await client.event()
            assert isinstance(event, CloseConnection)
            assert (event.code, event.reason) == (4000, "enough")
            await client.send_event(event.response())

    assert await at_every_step(scenario) >= 2


@lockstep
async def test_a_denial_that_is_cancelled_has_not_begun_or_is_whole(
    lockstep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        async def app(scope: Any, receive: Receive, send: Send) -> None:
            await receive()
            if await cancelling(lambda: send({"type": "websocket.close"})):
                with suppress(RuntimeError):  # denied already
                    await send({"type": "websocket.close"})
            assert (await receive())["type"] == "websocket.disconnect"

        async with serving(asgi(app), lockstep=lockstep) as client:
            outcome = await client.open()
            assert isinstance(outcome, RejectConnection)
            assert outcome.status_code == 403
            assert await client.receive_all() == b""

    assert await at_every_step(scenario) >= 2
    assert logged_errors(caplog) == []


@lockstep
async def test_a_denials_response_goes_on_after_any_event_of_it_was_cancelled(
    lockstep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    start: dict[str, Any] = {"type": "websocket.http.response.start", "status": 401, "headers": []}
    body: list[dict[str, Any]] = [
        {"type": "websocket.http.response.body", "body": b"who " * 10 * KIB, "more_body": True},
        {"type": "websocket.http.response.body", "body": b"are you?"},
    ]

    async def scenario(cancelling: Cancelling) -> None:
        sent = 0

        async def app(scope: Any, receive: Receive, send: Send) -> None:
            async def respond() -> None:
                nonlocal sent
                for event in (start, *body):
                    await send(event)
                    sent += 1

            await receive()
            await cancelling(respond)
            if sent == 0:
                await send(start)
            for event in body[max(0, sent - 1) :]:
                with suppress(RuntimeError):
                    await send(event)

        async with serving(asgi(app), lockstep=lockstep) as client:
            assert isinstance(await client.open(), RejectConnection)
            received = b""
            while isinstance(event := await client.event(), RejectData):
                received += event.data
                if event.body_finished:
                    break
        assert received.endswith(b"are you?")
        assert received.removesuffix(b"are you?") in (b"who " * 10 * KIB, b"who " * 20 * KIB)

    assert await at_every_step(scenario) >= 3
    assert logged_errors(caplog) == []


# ASGI http


@lockstep
async def test_a_request_and_its_response_come_whole_though_any_event_of_them_was_cancelled(
    lockstep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        received: list[bytes] = []

        async def app(scope: Any, receive: Receive, send: Send) -> None:
            async def read() -> None:
                while True:
                    event = await receive()
                    received.append(event["body"])
                    if not event["more_body"]:
                        break

            if await cancelling(read):
                await read()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"".join(received)})

        async with serving(asgi(app), lockstep=lockstep) as client:
            request = h11.Connection(h11.CLIENT)
            fields = [("Host", "h"), ("Transfer-Encoding", "chunked"), ("Expect", "100-continue")]
            await client.send(request.send(h11.Request(method="POST", target="/", headers=fields)))
            await client.receive_until(b"100 Continue\r\n\r\n")
            for piece in (b"one ", b"two ", b"three"):
                await client.send(request.send(h11.Data(data=piece)))
            await client.send(request.send(h11.EndOfMessage()))
            response, body = await read_response(client.stream, request)
            assert (response.status_code, body) == (200, b"one two three")

    assert await at_every_step(scenario) >= 3
    assert logged_errors(caplog) == []


@lockstep
async def test_a_response_goes_on_after_any_event_of_it_was_cancelled_and_the_next_request_is_served(
    lockstep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    pieces = [b"x" * 100 * KIB, b"y" * 100 * KIB]

    async def scenario(cancelling: Cancelling) -> None:
        sent = 0

        async def app(scope: Any, receive: Receive, send: Send) -> None:
            async def respond() -> None:
                nonlocal sent
                await send(start)
                sent += 1
                for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    sent += 1

            if scope["path"] == "/first":
                await cancelling(respond)
            if sent == 0 or scope["path"] == "/second":
                await send(start)
            await send({"type": "http.response.body", "body": b"last"})

        async with serving(asgi(app), lockstep=lockstep) as client:
            _, body = await client.request("/first")
            whole = pieces[: max(0, sent - 1)]
            assert body in (b"".join([*whole, b"last"]), b"".join([*pieces[: len(whole) + 1], b"last"]))
            assert (await client.request("/second"))[1] == b"last"

    assert await at_every_step(scenario) >= 3
    assert logged_errors(caplog) == []


# The server's connection


async def use_websocket(client: Client) -> None:
    await client.open()
    await client.send_event(TextMessage("hello"))
    await client.event()
    await client.send_event(CloseConnection(1000))
    await client.event()
    await client.receive_all()


async def use_http(client: Client) -> None:
    await client.request(method="POST", body=b"hello")
    await client.request("/second", headers=[("Connection", "close")])


async def echo(scope: Any, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send(event | {"type": "websocket.send"})


@pytest.mark.parametrize("use", [use_websocket, use_http])
async def test_cancelling_a_connection_at_any_step_closes_its_stream_without_a_word(
    use: Callable[[Client], Awaitable[None]], caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async def use_it(client: Client) -> None:
        with suppress(trio.BrokenResourceError, h11.RemoteProtocolError, wsproto.utilities.ProtocolError):
            await use(client)
        await client.stream.aclose()

    async def scenario(cancelling: Cancelling) -> None:
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use_it, Client(ours))
            await cancelling(lambda: run_connection(theirs, asgi(echo), CONFIG))
        with pytest.raises(trio.ClosedResourceError):
            await theirs.receive_some()

    assert await at_every_step(scenario) >= 10
    assert logged_errors(caplog) == []
    assert trio.current_time() == 0


# The client's connection


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_connecting_and_what_follows_leaves_nothing_open_wherever_it_is_cancelled(tls: bool) -> None:
    ends = set()

    async def serve(stream: trio.SocketStream) -> None:
        server = trio.SSLStream(stream, SERVER_CONTEXT, server_side=True) if tls else stream
        with suppress(trio.BrokenResourceError):
            await run_connection(server, asgi(echo), CONFIG)
        await stream.aclose()

    async def use(uri: str) -> None:
        ends.add("dialling")
        async with connect(uri, ssl_context=CLIENT_CONTEXT) as websocket:
            ends.add("open")
            await websocket.send("hello")
            assert await websocket.recv() == "hello"
            ends.add("leaving")

    async def scenario(cancelling: Cancelling) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            host, port = listeners[0].socket.getsockname()
            descriptors = len(os.listdir("/proc/self/fd"))
            await cancelling(lambda: use(f"{'wss' if tls else 'ws'}://{host}:{port}"))
            # The server has to see it too, which the operating system tells it of.
            await wait_all_tasks_blocked(0.01)
            assert len(os.listdir("/proc/self/fd")) == descriptors
            nursery.cancel_scope.cancel()

    assert await at_every_step(scenario) >= 20
    assert ends == {"dialling", "open", "leaving"}
