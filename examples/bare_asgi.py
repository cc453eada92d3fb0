"""
An ASGI application without a framework: a line of text over HTTP, and an echo over WebSocket.

Run it from the repository with ``trio-ws-server examples.bare_asgi:app``.
"""

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    match scope["type"]:
        case "http":
            await hello(send)
        case "websocket":
            await echo(receive, send)
        case other:
            raise NotImplementedError(other)  # to the server: no lifespan here


async def hello(send: ASGISendCallable) -> None:
    body = b"Connect a WebSocket client here.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def echo(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    while True:
        event = await receive()
        match event["type"]:
            case "websocket.connect":
                await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
            case "websocket.receive":
                await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})
            case "websocket.disconnect":
                return
