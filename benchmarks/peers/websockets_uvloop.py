"""websockets on asyncio with uvloop."""

from __future__ import annotations

import uvloop
from websockets.asyncio.server import serve

from benchmarks.apps import native_echo, native_fan_out
from benchmarks.peers.arguments import Arguments


async def main(arguments: Arguments) -> None:
    """Serve for ever."""
    handler = native_fan_out if arguments.fan_out else native_echo
    async with serve(handler, "127.0.0.1", arguments.port, **arguments.of_websockets) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Arguments.parse()))
