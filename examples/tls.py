r"""
An echo over TLS, and a client that trusts its certificate.

Make a certificate with its key, then run this with the file's name::

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout localhost.pem -out localhost.pem
    python examples/tls.py localhost.pem

On the command line it is ``trio-ws-server --ssl-certfile localhost.pem --native examples.echo:echo``.
"""

import ssl
import sys
from functools import partial

import trio

from trio_ws_server import Server, WebSocket, connect, serve, server_tls


async def echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def main(certfile: str) -> None:
    async with trio.open_nursery() as nursery:
        tls = server_tls(certfile=certfile)
        server: Server = await nursery.start(partial(serve, echo, "localhost", 0, tls=tls))
        trusting = ssl.create_default_context(cafile=certfile)
        uri = f"wss://localhost:{server.addresses[0][1]}"
        async with connect(uri, ssl_context=trusting) as websocket:
            await websocket.send("Hello over TLS!")
            print(await websocket.recv())
        server.shut_down()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
