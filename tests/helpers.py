"""
Peers driven by hand: what the tests of connections, adapters and the client have at the other end.

They are made of h11 and wsproto, not of our own code.
"""

from __future__ import annotations

import logging
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio
import trio.testing
from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Event, RejectConnection, Request

from tests.networks import left_closed, stream_pair
from trio_ws_server.asgi.application import ASGIApplication
from trio_ws_server.config import Config
from trio_ws_server.connection import Connection
from trio_ws_server.native import NativeApplication
from trio_ws_server.peer import Peer
from trio_ws_server.transport import open_engine, open_transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from trio_ws_server.application import Application


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")

PEER = Peer(("192.0.2.1", 4000), ("192.0.2.2", 80))


def asgi(
    app: Callable[..., Any], *, root_path: str = "", state: dict[str, Any] | None = None
) -> ASGIApplication:
    """Return an ASGI application as connections call it."""
    return ASGIApplication(app, root_path=root_path, state=state)


def native(handler: Callable[..., Any]) -> NativeApplication:
    """Return a native handler as connections call it."""
    return NativeApplication(handler)


@asynccontextmanager
async def serving(
    application: Application, *, config: Config | None = None, peer: Peer = PEER, lockstep: bool = False
) -> AsyncGenerator[Client, None]:
    """
    Serve one connection; yield the client's end of it.

    The connection must end by itself in good time, and close its stream.

    With ``lockstep``, no byte is under way: who sends waits until the other has taken all of it.
    """
    theirs, ours = stream_pair(lockstep=lockstep)
    config = config or Config(access_log=False)
    async with left_closed(theirs), trio.open_nursery() as nursery:
        connection = await nursery.start(partial(run_connection, theirs, application, config, peer=peer))
        yield Client(ours, connection)
        await ours.aclose()


async def run_connection(
    stream: trio.abc.Stream,
    application: Application,
    config: Config,
    *,
    peer: Peer = PEER,
    task_status: trio.TaskStatus[Connection] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one connection to its end."""
    async with open_engine() as engine, open_transport(stream, config, engine) as transport:
        connection = Connection(transport, peer, application, config)
        task_status.started(connection)
        await connection.run()


def logged_errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the server logged as an error or worse, with the tracebacks."""
    formatter = logging.Formatter("%(message)s")
    ours = [record for record in caplog.records if record.name.startswith("trio_ws_server")]
    return [formatter.format(record) for record in ours if record.levelno >= logging.ERROR]


class Client:
    """A client's end of a connection: bytes, HTTP by h11, WebSocket by wsproto."""

    def __init__(self, stream: Any, connection: Connection | None = None) -> None:
        self.stream = stream
        self.connection = connection
        """Our server's side, for what only the server can start, such as a drain."""
        self._ws: WSConnection | None = None
        self._events: list[Event] = []

    # Bytes.

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def receive_all(self) -> bytes:
        """Return everything up to the end."""
        return await read_all(self.stream)

    async def receive_until(self, mark: bytes) -> bytes:
        """Return what comes up to and including the mark, and what happens to come with it."""
        received = bytearray()
        while mark not in received:
            data = await self.stream.receive_some()
            assert data, f"the end came before {mark!r}: {bytes(received)!r}"
            received += data
        return bytes(received)

    # HTTP.

    async def request(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> tuple[h11.Response, bytes]:
        """Send a request on a connection of its own, and return the response and its body."""
        client = h11.Connection(h11.CLIENT)
        fields = [("Host", "example.org"), *headers]
        if body:
            fields.append(("Content-Length", str(len(body))))
        wire = client.send(h11.Request(method=method, target=target, headers=fields))
        if body:
            wire += client.send(h11.Data(data=body))
        await self.send(wire + client.send(h11.EndOfMessage()))
        return await read_response(self.stream, client)

    # WebSocket.

    async def open(
        self,
        target: str = "/",
        *,
        subprotocols: Sequence[str] = (),
        extensions: Sequence[Any] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> AcceptConnection | RejectConnection:
        """Make the opening handshake; return its outcome."""
        self._ws = WSConnection(ConnectionType.CLIENT)
        request = Request(
            host="example.org",
            target=target,
            subprotocols=list(subprotocols),
            extensions=list(extensions),
            extra_headers=list(headers),
        )
        await self.send(self._ws.send(request))
        outcome = await self.event()
        assert isinstance(outcome, AcceptConnection | RejectConnection)
        return outcome

    async def send_event(self, event: Event) -> None:
        assert self._ws is not None
        await self.send(self._ws.send(event))

    async def event(self) -> Event:
        """Return the next WebSocket event from the server; nothing is answered by itself."""
        assert self._ws is not None
        while not self._events:
            data = await self.stream.receive_some()
            self._ws.receive_data(bytes(data) or None)
            self._events.extend(self._ws.events())
        return self._events.pop(0)


class Recorder:
    """A transport's receiver that keeps what it is told."""

    def __init__(self) -> None:
        self.data = b""
        self.events: list[str] = []

    def data_received(self, data: bytes | memoryview) -> None:
        assert not {"eof", "lost"} & {*self.events}, "data after the end"
        self.data += data

    def eof_received(self) -> None:
        self.events.append("eof")

    def writable_again(self) -> None:
        self.events.append("writable again")

    def connection_lost(self) -> None:
        self.events.append("lost")


class OneWay(trio.abc.Stream):
    """A stream over another, without its means to end one side only."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


async def cancelled_after(steps: int, call: Callable[[], Awaitable[object]]) -> bool:
    """
    Cancel a call when it has been suspended so many times, 0: before it begins; return whether it was cancelled.

    With 0, 1, 2 and so on until that is False, every await point of the call is gone through.
    """
    caller = trio.lowlevel.current_task()
    suspended = 0

    class Canceller(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal suspended
            suspended += task is caller
            if suspended == steps:
                scope.cancel()

    canceller = Canceller()
    trio.lowlevel.add_instrument(canceller)
    try:
        with trio.CancelScope() as scope:
            if steps == 0:
                scope.cancel()
            await call()
    finally:
        trio.lowlevel.remove_instrument(canceller)
    return scope.cancelled_caught


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Return everything up to the end."""
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


async def read_response(stream: Any, client: h11.Connection) -> tuple[h11.Response, bytes]:
    """Read a response with the h11 connection that the request was sent with."""
    response: h11.Response | None = None
    body = bytearray()
    while True:
        match client.next_event():
            case h11.NEED_DATA:
                client.receive_data(bytes(await stream.receive_some()))
            case h11.Response() as response:
                pass
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage():
                assert response is not None
                return response, bytes(body)
            case h11.InformationalResponse():
                pass
            case other:
                raise AssertionError(f"unexpected {other!r}")
