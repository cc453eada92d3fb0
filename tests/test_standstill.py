"""A process that stands still for longer than its timeouts: what came meanwhile has come in time."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.connection import ConnectionType
from wsproto.events import Ping

from tests import networks
from tests.helpers import asgi, serving
from tests.networks import PORTABLE, SOCKETS, STREAMS_OVER_SOCKETS, Network
from tests.websocket_peer import Peer, opened
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.headers import Headers, Request
from trio_ws_server.protocol.websocket import State, WebSocketProtocol
from trio_ws_server.transport import open_engine, open_transport
from trio_ws_server.transport.poller import EVENTS_PER_TURN
from trio_ws_server.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

HEAD = b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
BODY = b"body"


@pytest.fixture(
    params=[SOCKETS, PORTABLE, STREAMS_OVER_SOCKETS],
    ids=["poller", "portable poller", "streams"],
    autouse=True,
)
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Have connections made over sockets, where bytes come without a task that hands them over."""
    monkeypatch.setattr(networks, "chosen", request.param)
    with request.param.used():
        yield request.param


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Respond with the request's body."""
    event = {"body": b"", "more_body": True}
    body = b""
    while event.get("more_body"):
        event = await receive()
        body += event["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": body})


async def stand_still(clock: MockClock, stream: trio.SocketStream, data: bytes, seconds: float) -> None:
    """Let bytes arrive, and then time pass, without anyone seeing either before both have happened."""
    await wait_all_tasks_blocked()
    assert os.write(stream.socket.fileno(), data) == len(data)
    clock.jump(seconds)


@pytest.mark.parametrize(
    ("before", "meanwhile", "after"),
    [
        pytest.param(b"", HEAD, BODY, id="its first byte"),
        pytest.param(HEAD[:20], HEAD[20:], BODY, id="the rest of its head"),
        pytest.param(HEAD, BODY, b"", id="its body"),
    ],
)
async def test_a_request_is_served_if(
    before: bytes, meanwhile: bytes, after: bytes, mock_clock: MockClock
) -> None:
    async with serving(asgi(echo)) as client:
        await client.send(before)
        await stand_still(mock_clock, client.stream, meanwhile, 3600)
        await wait_all_tasks_blocked()
        await client.send(after)
        received = await client.receive_all()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.endswith(BODY)


async def test_a_pong_that_came_meanwhile_answers_its_ping(mock_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=20) as (websocket, peer):
        await wait_all_tasks_blocked()
        mock_clock.jump(20)
        ping = await peer.receive()
        assert isinstance(ping, Ping)
        await stand_still(mock_clock, peer.stream, peer.connection.send(ping.response()), 3600)
        await wait_all_tasks_blocked()
        assert websocket.state is State.OPEN


async def test_the_pongs_of_more_connections_than_are_looked_at_in_a_turn_answer_their_pings(
    mock_clock: MockClock,
) -> None:
    config = Config(ping_interval=20, ping_timeout=20)
    request = Request("/", Headers([]))
    websockets, peers, pongs = [], [], []
    async with open_engine() as engine, AsyncExitStack() as streams:
        for _ in range(EVENTS_PER_TURN + 1):
            ours, theirs = networks.stream_pair(lockstep=False)
            transport = await streams.enter_async_context(open_transport(ours, config, engine))
            protocol = WebSocketProtocol(config, client=False)
            websockets.append(WebSocket(transport, protocol, config, request=request, subprotocol=None))
            peers.append(Peer(await streams.enter_async_context(theirs), ours, ConnectionType.CLIENT))
        await wait_all_tasks_blocked()
        mock_clock.jump(20)
        for peer in peers:
            ping = await peer.receive()
            assert isinstance(ping, Ping)
            pongs.append(peer.connection.send(ping.response()))
        for peer, pong in zip(peers, pongs, strict=True):
            os.write(peer.stream.socket.fileno(), pong)
        mock_clock.jump(3600)
        await wait_all_tasks_blocked()
        assert {websocket.state for websocket in websockets} == {State.OPEN}


async def test_what_the_peer_took_meanwhile_is_progress(mock_clock: MockClock) -> None:
    async with opened(write_timeout=30) as (websocket, peer), trio.open_nursery() as nursery:
        size = 16 * 1024 * 1024
        nursery.start_soon(websocket.send, bytes(size))
        await wait_all_tasks_blocked()
        os.read(peer.stream.socket.fileno(), size)
        mock_clock.jump(3600)
        await wait_all_tasks_blocked()
        assert websocket.state is State.OPEN
        nursery.cancel_scope.cancel()


async def test_what_the_peer_took_of_what_was_sent_before_a_close_frame_is_progress(
    mock_clock: MockClock,
) -> None:
    async with opened(close_timeout=10, write_timeout=10_000) as (websocket, peer):
        size = 16 * 1024 * 1024
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.send, bytes(size))
                await wait_all_tasks_blocked()
                scope.cancel()
        websocket.start_closing(Close(1000))
        await wait_all_tasks_blocked()
        os.read(peer.stream.socket.fileno(), size)
        mock_clock.jump(3600)
        await wait_all_tasks_blocked()
        assert websocket.state is State.CLOSING
