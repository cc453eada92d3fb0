"""What the tests in this directory serve. What an application has to tell, it writes to standard error."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_ws_server import WebSocket

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

not_callable = 3


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def native_echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send back what comes: a body with the request line before it, at /stream each piece by itself, messages."""
    match scope["type"]:
        case "lifespan":
            await tell_lifespan(receive, send)
        case "http" if scope["path"] == "/stream":
            await start_response(send)
            async for piece in body_of(receive):
                await send_body(send, piece, more=True)
            await send_body(send, b"")
        case "http":
            body = f"{scope['method']} {scope['path']} ".encode()
            async for piece in body_of(receive):
                tell(f"got {piece!r}")
                body += piece
            await respond(send, body)
            tell("responded")
        case "websocket":
            await echo_messages(receive, send)


def factory() -> object:
    return echo


def asgi2(scope: Scope) -> Callable[[Receive, Send], Awaitable[None]]:
    async def application(receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)

    return application


async def describe(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the scope."""
    assert scope["type"] == "http"
    await respond(send, json.dumps(scope, default=repr).encode())


async def fails_to_start(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is down"})


async def never_starts(scope: Scope, receive: Receive, send: Send) -> None:
    tell("working")
    await trio.sleep_forever()


async def never_shuts_down(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    tell("working")
    await trio.sleep_forever()


async def blocks_while_starting(scope: Scope, receive: Receive, send: Send) -> None:
    block()


async def never_ends(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept, and do nothing from then on."""
    refuse_lifespan(scope)
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    try:
        tell("working")
        await trio.sleep_forever()
    finally:
        tell("cancelled")


async def never_ends_nor_heeds_cancellation(scope: Scope, receive: Receive, send: Send) -> None:
    with trio.CancelScope(shield=True):
        await never_ends(scope, receive, send)


async def blocks(scope: Scope, receive: Receive, send: Send) -> None:
    refuse_lifespan(scope)
    block()


async def spins(scope: Scope, receive: Receive, send: Send) -> None:
    refuse_lifespan(scope)
    tell("working")
    while True:
        pass


async def leaves_a_thread(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        threading.Thread(target=block).start()
    await echo(scope, receive, send)


async def floods_or_echoes(scope: Scope, receive: Receive, send: Send) -> None:
    await (floods if scope.get("path") == "/flood" else echo)(scope, receive, send)


async def floods(scope: Scope, receive: Receive, send: Send) -> None:
    refuse_lifespan(scope)
    await send({"type": "websocket.accept"})
    tell("working")
    try:
        while True:
            await send({"type": "websocket.send", "bytes": bytes(1_000_000)})
    finally:
        tell("flood ended")


# What they are made of.


def block() -> NoReturn:
    tell("working")
    while True:
        time.sleep(1000)


def refuse_lifespan(scope: Scope) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError


async def tell_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        tell(event["type"])
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def echo_messages(receive: Receive, send: Send) -> None:
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({**event, "type": "websocket.send"})
    for _ in range(10):
        await trio.lowlevel.checkpoint()
    tell(f"handler ended after {event['code']}")


async def body_of(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        event = await receive()
        yield event.get("body", b"")
        more = event.get("more_body", False)


async def start_response(send: Send, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_body(send: Send, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def respond(send: Send, body: bytes) -> None:
    await start_response(send, (b"content-length", str(len(body)).encode()))
    await send_body(send, body)
