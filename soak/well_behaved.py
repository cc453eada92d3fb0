"""Clients that keep to the rules, of three makes, and account for every message: it comes back once, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
import websockets.sync.client
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate

from soak.servers import PATIENCE
from tests.helpers import Client
from trio_ws_server import ConnectionClosed, InvalidStatus, connect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from random import Random
    from typing import Unpack

    from soak.servers import Server
    from trio_ws_server import WebSocket
    from trio_ws_server.config import Options

_WORDS = "hello ", "grün ", "日本 ", "🎈"


@dataclass
class Tally:
    """Messages of the well-behaved."""

    sent: int = 0
    returned: int = 0


def _messages(random: Random) -> list[str | bytes]:
    """Return messages of all sizes, no two of them alike, most of them small."""
    messages: list[str | bytes] = []
    for number in range(random.randint(1, 40)):
        size = int(2 ** random.uniform(0, 17 if random.random() < 0.1 else 10))
        if random.random() < 0.5:
            messages.append(f"{number}:" + random.choice(_WORDS) * (size // 6))
        else:
            messages.append(b"%d:" % number + random.randbytes(size))
    return messages


def _connect(server: Server, path: str, **options: Unpack[Options]) -> AbstractAsyncContextManager[WebSocket]:
    """Use our client, with patience for a busy machine."""
    options["handshake_timeout"] = PATIENCE
    options["ping_timeout"] = PATIENCE
    return connect(server.url(path), ssl_context=server.tls, **options)


async def our_client(server: Server, random: Random, tally: Tally) -> None:
    messages = _messages(random)
    deflate = random.random() < 0.5
    async with _connect(server, "/echo", per_message_deflate=deflate) as websocket:

        async def send() -> None:
            for message in messages:
                tally.sent += 1
                await websocket.send(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for message in messages:
                _check(await websocket.recv(), message, tally)


async def websockets_client(server: Server, random: Random, tally: Tally) -> None:
    messages = _messages(random)
    compression = "deflate" if random.random() < 0.5 else None
    window = random.randint(1, 8)
    await trio.to_thread.run_sync(_websockets_client, server, messages, compression, window, tally)


def _websockets_client(
    server: Server, messages: Sequence[str | bytes], compression: str | None, window: int, tally: Tally
) -> None:
    with websockets.sync.client.connect(
        server.url("/echo"),
        ssl=server.tls,
        compression=compression,
        open_timeout=PATIENCE,
        close_timeout=PATIENCE,
        proxy=None,
    ) as websocket:
        for start in range(0, len(messages), window):
            for message in messages[start : start + window]:
                tally.sent += 1
                websocket.send(message)
            for message in messages[start : start + window]:
                _check(websocket.recv(PATIENCE), message, tally)


async def wsproto_client(server: Server, random: Random, tally: Tally) -> None:
    """Send messages whole and in fragments."""
    async with server.dial() as line:
        client = Client(line.stream)
        await client.open("/echo", extensions=[PerMessageDeflate()] if random.random() < 0.5 else [])
        messages = _messages(random)
        sending = trio.Lock()

        async def send(event: Event) -> None:
            async with sending:
                await client.send_event(event)

        async def send_all() -> None:
            for message in messages:
                tally.sent += 1
                cut = random.randint(0, len(message)) if random.random() < 0.3 else 0
                if cut:
                    await send(_piece(message[:cut], last=False))
                await send(_piece(message[cut:], last=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            for message in messages:
                pieces: list[Any] = []
                finished = False
                while not finished:
                    match await client.event():
                        case Ping() as ping:
                            await send(ping.response())
                        case TextMessage() | BytesMessage() as piece:
                            pieces.append(piece.data)
                            finished = piece.message_finished
                        case event:
                            raise AssertionError(f"{event!r} came instead of a message")
                _check(message[:0].join(pieces), message, tally)
        await send(CloseConnection(1000))
        while isinstance(event := await client.event(), Ping):
            pass
        assert isinstance(event, CloseConnection), event
        assert event.code == 1000, event
        assert await client.receive_all() == b""


def _piece(data: str | bytes, *, last: bool) -> Event:
    if isinstance(data, str):
        return TextMessage(data, message_finished=last)
    return BytesMessage(data, message_finished=last)


def _check(received: str | bytes, expected: str | bytes, tally: Tally) -> None:
    assert received == expected, f"{received[:20]!r} came instead of {expected[:20]!r}"
    tally.returned += 1


async def http_keep_alive(server: Server, random: Random, tally: Tally) -> None:
    """Make requests, one after the other, on one connection."""
    async with server.dial() as line:
        client = Client(line.stream)
        for _ in range(random.randint(1, 5)):
            body = random.randbytes(random.randint(1, 50_000))
            response, received = await client.request("/", method="POST", body=body)
            if not server.asgi:
                assert response.status_code == 426
                return
            assert response.status_code == 200
            assert received == body


_CODES = {
    "/cancel": 1000,
    "/close": 4000,
    "/fail": 1011,
    "/fail-in-a-task": 1011,
    "/ignore": 1000,
    "/leave": 1000,
    "/spawn": 1000,
}


async def client_of_a_difficult_handler(server: Server, random: Random, tally: Tally) -> None:
    """Talk to a handler that does something else than to echo, and see that it ends as it should."""
    path, code = random.choice([*_CODES.items()])
    async with _connect(server, path) as websocket:
        try:
            for number in range(100 if path == "/ignore" else 10):
                await websocket.send(f"message {number}")
            while True:
                await websocket.recv()
        except ConnectionClosed as closed:
            assert closed.code == code, f"{path} was closed with {closed.code}, not {code}"


async def denied_client(server: Server, random: Random, tally: Tally) -> None:
    if not server.asgi:
        return  # a native handler has no say in the handshake
    try:
        async with _connect(server, "/deny"):
            raise AssertionError("the handshake was accepted")
    except InvalidStatus as invalid:
        assert invalid.status == 403, invalid


async def cancelled_client(server: Server, random: Random, tally: Tally) -> None:
    """Be cancelled anywhere: dialling, shaking hands, talking, closing."""
    with trio.move_on_after(random.expovariate(10)):
        async with _connect(server, "/echo") as websocket, trio.open_nursery() as nursery:
            for message in _messages(random):
                nursery.start_soon(websocket.send, message)
                nursery.start_soon(websocket.recv)
            nursery.start_soon(websocket.ping)
