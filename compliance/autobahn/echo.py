"""What the suite tests of our server: the same echo as an ASGI application and as a native handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from trio_ws_server import WebSocket


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Send every message back, over ASGI."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": event["bytes"], "text": event["text"]})


async def handler(websocket: WebSocket) -> None:
    """Send every message back, as a native handler."""
    async for message in websocket:
        await websocket.send(message)
