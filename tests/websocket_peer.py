"""A WebSocket connection of ours, and its peer, which wsproto speaks for and tests drive."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event
from wsproto.extensions import PerMessageDeflate

from tests.networks import left_closed, stream_pair
from tests.protocol.frames import close_frame
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config, Options
from trio_ws_server.headers import Headers, Request
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.websocket import State, WebSocketProtocol
from trio_ws_server.transport import open_engine, open_transport
from trio_ws_server.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Unpack

KIB = 1024


class Peer:
    """The other end. Nothing is answered by itself."""

    def __init__(self, stream: Any, ours: Any, connection_type: ConnectionType) -> None:
        self.stream = stream
        self.ours = ours
        """Our end of the stream, for what only the network could do to it."""
        self.connection = Connection(connection_type)
        self.events: list[Event] = []

    async def send(self, *events: Event) -> None:
        """Send frames in one piece."""
        await self.stream.send_all(b"".join(map(self.connection.send, events)))

    async def receive(self) -> Event:
        """Return what the next frame says."""
        while not self.events:
            assert await self._read(), "the end came instead of a frame"
        return self.events.pop(0)

    async def receive_all(self) -> list[Event]:
        """Return what all frames up to the end say."""
        while await self._read():
            pass
        return self.events

    async def _read(self) -> bool:
        data = await self.stream.receive_some()
        if data:
            self.connection.receive_data(bytes(data))
            self.events.extend(self.connection.events())
        return bool(data)

    async def vanish(self) -> None:
        await self.stream.aclose()


@asynccontextmanager
async def opened(
    *,
    client: bool = False,
    lockstep: bool = False,
    streams: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
    **options: Unpack[Options],
) -> AsyncGenerator[tuple[WebSocket, Peer]]:
    """
    Yield our end, a server's or a client's, and the peer.

    The network between them takes everything, or, in lockstep, nothing that is not being read; or it is made of
    these streams, ours first. Keepalive is off unless asked for. With ``per_message_deflate`` it is agreed on,
    of which this peer knows nothing. At the end our stream is closed; who gave it sees to that.
    """
    options.setdefault("ping_interval", None)
    config = Config(**options)
    ours, theirs = streams or stream_pair(lockstep=lockstep)
    async with nullcontext() if streams else left_closed(ours), theirs:
        async with open_engine() as engine, open_transport(ours, config, engine) as transport:
            protocol = WebSocketProtocol(
                config, client=client, deflate=_agreed_deflate(config, client=client)
            )
            request = Request("/chat?room=1", Headers([(b"Origin", b"http://example.org")]))
            websocket = WebSocket(transport, protocol, config, request=request, subprotocol="chat")
            yield websocket, Peer(theirs, ours, ConnectionType.SERVER if client else ConnectionType.CLIENT)
        assert websocket.state is State.CLOSED


@asynccontextmanager
async def compressing() -> AsyncGenerator[tuple[WebSocket, Peer]]:
    """Yield a server's end with compression agreed on, and a peer that compresses by wsproto's own means."""
    async with opened(per_message_deflate=True, write_high_water=1024 * KIB) as (websocket, peer):
        extension = PerMessageDeflate()
        extension.finalize(extension.name)
        peer.connection = Connection(ConnectionType.CLIENT, [extension])
        yield websocket, peer


@asynccontextmanager
async def closed_by_peer_at(time: float, **options: Unpack[Options]) -> AsyncGenerator[WebSocket]:
    """Yield our end on a socket, where a close frame comes right before what is due then, to be found by a look."""
    config = Config(**options)
    near, far = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
    with far:
        async with open_engine() as engine, open_transport(stream, config, engine) as transport:
            transport.call_at(time, lambda: far.sendall(close_frame(4000)))
            protocol = WebSocketProtocol(config, client=False, deflate=None)
            request = Request("/", Headers([]))
            yield WebSocket(transport, protocol, config, request=request, subprotocol=None)


def _agreed_deflate(config: Config, *, client: bool) -> Deflate | None:
    """Return our compression as a handshake without parameters leaves it, None where it is off."""
    if not config.per_message_deflate:
        return None
    deflate = Deflate(config)
    if client:
        deflate.finalize(deflate.name)
    else:
        deflate.accept(deflate.name)
    return deflate


async def stall(websocket: WebSocket, size: int = 100 * KIB) -> None:
    """Fill the write buffer of a connection in lockstep to above its high-water mark."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.send, bytes(size))
            await wait_all_tasks_blocked()
            scope.cancel()


CALLS: dict[str, Callable[[WebSocket], Awaitable[object]]] = {
    "recv": lambda websocket: websocket.recv(),
    "iteration": lambda websocket: anext(aiter(websocket)),
    "send": lambda websocket: websocket.send("message"),
    "ping": lambda websocket: websocket.ping(),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def close_in(event: Event) -> Close:
    """Return what a close frame says."""
    assert isinstance(event, CloseConnection)
    return Close(int(event.code), event.reason or "")
