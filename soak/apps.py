"""
What the servers of the soak serve: the same behaviours by an ASGI application and by a native handler.

The path says which. Whatever fails here on purpose fails with a `Provoked`, so that the servers' logs show every
other failure.
"""

from __future__ import annotations

import gc
import json
from random import Random
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import trio

from trio_ws_server.errors import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server import WebSocket

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]


FLOOD = Random(0).randbytes(16 * 1024)
"""Nothing that compression could make small, so that it fills what is between here and a client that stalls."""


class Provoked(Exception):
    """What handlers raise on purpose."""


class Peer(Protocol):
    """A WebSocket connection as the behaviours below have it, of either kind of application."""

    async def receive(self) -> str | bytes | None:
        """Return the next message, None behind the last one."""

    async def send(self, message: str | bytes) -> None:
        """Send a message; raises what the server's own API raises once the peer has gone."""

    async def close(self, code: int) -> None:
        """Close the connection."""


async def echo(peer: Peer) -> None:
    while (message := await peer.receive()) is not None:
        await peer.send(message)


async def flood(peer: Peer) -> None:
    while True:
        await peer.send(FLOOD)


async def ignore(peer: Peer) -> None:
    """Leave what comes unread: the inbox fills, and reading pauses."""
    await trio.sleep(1)


async def leave(peer: Peer) -> None:
    await peer.receive()


async def close(peer: Peer) -> None:
    await peer.receive()
    await peer.close(4000)


async def fail(peer: Peer) -> None:
    await peer.receive()
    raise Provoked


async def fail_in_a_task(peer: Peer) -> None:
    async def fail_soon() -> None:
        await trio.sleep(0.05)
        raise Provoked

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, peer)
        nursery.start_soon(fail_soon)


async def cancel(peer: Peer) -> None:
    """Cancel sends that wait for room, and a receive; then go on."""
    for _ in range(10):
        with trio.move_on_after(0.01):
            await flood(peer)
        with trio.move_on_after(0.01):
            await peer.receive()


async def spawn(peer: Peer) -> None:
    """Let many tasks send and receive at the same time."""
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(peer.send, f"from task {number}")
            nursery.start_soon(peer.receive)


async def tell_statistics(peer: Peer) -> None:
    """Tell what this process holds: tasks, and objects that the garbage collector knows."""
    gc.collect()
    statistics = {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "objects": sum(not _is_deadline(found) for found in gc.get_objects()),
    }
    await peer.send(json.dumps(statistics))


def _is_deadline(found: object) -> bool:
    """Whether it is of Trio's heap of deadlines, which clears those away that are over once they are a thousand."""
    match found:
        case trio.CancelScope() | (float(), int(), trio.CancelScope()):
            return True
    return type(found).__name__ == "CancelReason"


BEHAVIOURS = {
    "/cancel": cancel,
    "/close": close,
    "/echo": echo,
    "/fail": fail,
    "/fail-in-a-task": fail_in_a_task,
    "/flood": flood,
    "/ignore": ignore,
    "/leave": leave,
    "/spawn": spawn,
    "/statistics": tell_statistics,
}


async def handler(websocket: WebSocket) -> None:
    """The native handler."""
    await BEHAVIOURS[urlsplit(websocket.path).path](_NativePeer(websocket))


class _NativePeer:
    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self) -> str | bytes | None:
        try:
            return await self._websocket.recv()
        except ConnectionClosed:
            return None

    async def send(self, message: str | bytes) -> None:
        await self._websocket.send(message)

    async def close(self, code: int) -> None:
        await self._websocket.close(code)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application."""
    match scope["type"]:
        case "lifespan":
            for phase in "startup", "shutdown":
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
        case "websocket" if scope["path"] == "/deny":
            await send({"type": "websocket.close"})
        case "websocket":
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept"})
            await BEHAVIOURS[scope["path"]](_ASGIPeer(receive, send))
        case "http" if scope["path"] == "/fail":
            raise Provoked
        case "http":
            await _echo_body(receive, send)


async def _echo_body(receive: Receive, send: Send) -> None:
    """Respond with the request's body, piece by piece as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        more = event["more_body"]
        await send({"type": "http.response.body", "body": event["body"], "more_body": more})


class _ASGIPeer:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def receive(self) -> str | bytes | None:
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            return None
        message: str | bytes = event["bytes"] if event["text"] is None else event["text"]
        return message

    async def send(self, message: str | bytes) -> None:
        key = "text" if isinstance(message, str) else "bytes"
        await self._send({"type": "websocket.send", key: message})

    async def close(self, code: int) -> None:
        await self._send({"type": "websocket.close", "code": code})
