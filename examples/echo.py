import trio

from trio_ws_server import serve


async def echo(websocket, path):
    async for message in websocket:
        await websocket.send(message)


if __name__ == "__main__":
    trio.run(serve, echo, "localhost", 8765)
