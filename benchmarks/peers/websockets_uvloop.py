"""websockets on asyncio with uvloop."""

from __future__ import annotations

import uvloop
from websockets.asyncio.server import ServerConnection, serve

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


async def main(arguments: Arguments) -> None:
    """Serve for ever."""
    handler = fan_out if arguments.fan_out else echo
    compression = "deflate" if arguments.deflate else None
    async with serve(handler, "127.0.0.1", arguments.port, compression=compression) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Arguments.parse()))
