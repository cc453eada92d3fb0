"""What is served in the benchmarks: as ASGI applications, the same ones on every server, and as native handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope


class WebSocket(Protocol):
    """A connection, as ours and those of websockets are."""

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Iterate over the messages."""

    async def send(self, message: str | bytes) -> None:
        """Send a message."""


_ASGI_CLIENTS: list[ASGISendCallable] = []
_NATIVE_CLIENTS: list[WebSocket] = []


async def echo(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Send every message back, over ASGI."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    while (event := await receive())["type"] == "websocket.receive":
        if (text := event.get("text")) is not None:
            await send({"type": "websocket.send", "bytes": None, "text": text})
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"], "text": None})


async def fan_out(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Send every message to all clients, over ASGI."""
    assert scope["type"] == "websocket"
    await receive()
    _ASGI_CLIENTS.append(send)
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    while (event := await receive())["type"] == "websocket.receive":
        for client in _ASGI_CLIENTS:
            await client({"type": "websocket.send", "bytes": None, "text": event["text"]})


async def native_echo(websocket: WebSocket) -> None:
    """Send every message back, as a native handler."""
    async for message in websocket:
        await websocket.send(message)


async def native_fan_out(websocket: WebSocket) -> None:
    """Send every message to all clients, as a native handler."""
    _NATIVE_CLIENTS.append(websocket)
    async for message in websocket:
        for client in _NATIVE_CLIENTS:
            await client.send(message)
