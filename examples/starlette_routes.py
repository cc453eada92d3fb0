"""
Starlette's routes, HTTP and WebSocket side by side, with state from its lifespan.

Run it from the repository with ``trio-ws-server examples.starlette_routes:app``.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket


class State(TypedDict):
    greeting: str


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[State]:
    yield {"greeting": "Hello"}


async def greet(request: Request) -> JSONResponse:
    name = request.path_params["name"]
    return JSONResponse({"message": f"{request.state.greeting}, {name}!"})


async def count(request: Request) -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        for number in range(1, 4):
            yield f"{number}\n"
            await trio.sleep(0.1)

    return StreamingResponse(numbers(), media_type="text/plain")


async def shout(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/greet/{name}", greet),
        Route("/count", count),
        WebSocketRoute("/shout", shout),
    ],
)
