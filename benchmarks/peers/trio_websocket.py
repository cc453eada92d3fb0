"""trio-websocket, which has no compression."""

from __future__ import annotations

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from benchmarks.peers.arguments import Arguments

_CLIENTS: list[WebSocketConnection] = []


async def echo(request: WebSocketRequest) -> None:
    """Send every message back."""
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(await connection.get_message())
    except ConnectionClosed:
        pass


async def fan_out(request: WebSocketRequest) -> None:
    """Send every message to all clients."""
    connection = await request.accept()
    _CLIENTS.append(connection)
    try:
        while True:
            message = await connection.get_message()
            for client in _CLIENTS:
                await client.send_message(message)
    except ConnectionClosed:
        pass


if __name__ == "__main__":
    arguments = Arguments.parse()
    handler = fan_out if arguments.fan_out else echo
    trio.run(serve_websocket, handler, "127.0.0.1", arguments.port, None)
