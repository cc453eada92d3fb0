"""Say hello to the server of ``examples/echo.py``, and print what comes back."""

import sys

import trio

from trio_ws_server import connect


async def hello(uri: str) -> None:
    async with connect(uri) as websocket:
        await websocket.send("Hello world!")
        print(await websocket.recv())


if __name__ == "__main__":
    trio.run(hello, sys.argv[1] if len(sys.argv) > 1 else "ws://localhost:8765")
