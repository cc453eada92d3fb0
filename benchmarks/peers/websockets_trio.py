"""websockets on Trio."""

from __future__ import annotations

from functools import partial

import trio
from websockets.trio.server import ServerConnection, serve

from benchmarks.peers.arguments import Arguments

_CLIENTS: list[ServerConnection] = []


async def echo(connection: ServerConnection) -> None:
    """Send every message back."""
    async for message in connection:
        await connection.send(message)


async def fan_out(connection: ServerConnection) -> None:
    """Send every message to all clients."""
    _CLIENTS.append(connection)
    async for message in connection:
        for client in _CLIENTS:
            await client.send(message)


if __name__ == "__main__":
    arguments = Arguments.parse()
    handler = fan_out if arguments.fan_out else echo
    compression = "deflate" if arguments.deflate else None
    trio.run(partial(serve, handler, arguments.port, host="127.0.0.1", compression=compression))
