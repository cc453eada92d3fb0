"""
What the suite tests of our client: `client.py URI [AGENT]` runs all cases of the fuzzing server at this address.

Each case is a connection on which the server sends what it likes, and every message is sent back. The server
notes how it went, and writes its reports at the end. It is waited for to listen, for `DEADLINE` seconds at most.
"""

from __future__ import annotations

import sys

import trio

from trio_ws_server import ConnectionClosed, HandshakeError, connect

DEADLINE = 30


async def main(uri: str, agent: str = "client") -> None:
    """Run the cases one after the other, as the server counts them, from 1; it knows us by the agent's name."""
    with trio.fail_after(DEADLINE):
        count = int(await case_count(uri))
    for case in range(1, count + 1):
        try:
            await echo(f"{uri}/runCase?case={case}&agent={agent}")
        except (ConnectionClosed, HandshakeError, OSError) as exc:
            # Many cases are there to be refused. What it was worth, the server's report says.
            print(f"case number {case}: {exc!r}")
    async with connect(f"{uri}/updateReports?agent={agent}") as websocket:
        async for _ in websocket:
            pass


async def case_count(uri: str) -> str | bytes:
    """Ask until the server listens."""
    while True:
        try:
            async with connect(f"{uri}/getCaseCount") as websocket:
                return await websocket.recv()
        except OSError:
            await trio.sleep(0.1)


async def echo(uri: str) -> None:
    """Send every message back until the server closes."""
    async with connect(uri, per_message_deflate=True) as websocket:
        async for message in websocket:
            await websocket.send(message)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
