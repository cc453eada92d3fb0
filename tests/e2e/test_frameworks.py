"""Real frameworks on our server, driven by clients that are not ours: httpx and websockets."""

# No postponed annotations: the frameworks read those of routes, which are local to their tests.

import hashlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import fastapi
import httpx
import pytest
import trio
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse as FastAPIPlainTextResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import URL
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.helpers import logged_errors
from trio_ws_server import serve

T = TypeVar("T")

MIB = 1024 * 1024


@dataclass
class Site:
    """An application, served."""

    url: str
    http: httpx.AsyncClient
    shut_down: Callable[[], None]

    async def talk(self, path: str, conversation: Callable[[ClientConnection], T], **options: Any) -> T:
        """Hold a conversation over a WebSocket connection; its client is synchronous, so in a thread."""

        def in_thread() -> T:
            with connect(self.url.replace("http", "ws", 1) + path, **options) as websocket:
                return conversation(websocket)

        return await trio.to_thread.run_sync(in_thread)

    async def get_until(self, path: str, mark: bytes) -> None:
        """Request a long response, and leave when so much of it has come."""
        host, port = self.url.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            received = b""
            while mark not in received:
                received += bytes(await stream.receive_some())

    async def refusal(self, path: str, **options: Any) -> tuple[int, bytes]:
        """Return the status and the body with which a WebSocket connection is refused."""
        with pytest.raises(InvalidStatus) as caught:
            await self.talk(path, ClientConnection.recv, **options)
        response = caught.value.response
        return response.status_code, bytes(response.body or b"")


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncGenerator[Site, None]:
    """Serve the application for the body of the ``async with``."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, app, "127.0.0.1", 0, **options))
        url = server.urls[0]
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            yield Site(url, http, server.shut_down)
        server.shut_down()


def the_end(websocket: ClientConnection) -> tuple[int, str]:
    """Return the code and reason with which the server closes the connection."""
    with pytest.raises(ConnectionClosed) as caught:
        websocket.recv()
    close = caught.value.rcvd
    assert close is not None
    return close.code, close.reason


def vanish(websocket: ClientConnection) -> None:
    """End the TCP connection without a closing handshake."""
    websocket.socket.shutdown(socket.SHUT_RDWR)


# Starlette: HTTP.


async def test_starlette_routes_have_path_and_query_parameters_headers_and_cookies() -> None:
    async def item(request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "id": request.path_params["id"],
                "rest": request.path_params["rest"],
                "query": request.query_params.multi_items(),
                "agent": request.headers["User-Agent"],
                "cookie": request.cookies["session"],
                "client": request.client is not None and request.client.host,
            }
        )

    async with serving(Starlette(routes=[Route("/items/{id:int}/{rest:path}", item)])) as site:
        response = await site.http.get(
            "/items/7/a%20b/%C3%A9?q=1&q=%26", headers={"User-Agent": "httpx", "Cookie": "session=s"}
        )
        assert response.json() == {
            "id": 7,
            "rest": "a b/é",
            "query": [["q", "1"], ["q", "&"]],
            "agent": "httpx",
            "cookie": "s",
            "client": "127.0.0.1",
        }
        assert (await site.http.get("/nothing")).status_code == 404
        assert (await site.http.post("/items/7/")).status_code == 405
        head = await site.http.head("/items/7/x", headers={"Cookie": "session=s"})
        assert (head.status_code, head.content) == (200, b"")


async def test_an_upload_of_some_mebibytes_arrives_whole_and_so_does_the_same_download() -> None:
    data = hashlib.shake_256(b"seed").digest(5 * MIB)

    async def mirror(request: Request) -> StreamingResponse:
        pieces = [piece async for piece in request.stream()]

        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return StreamingResponse(body())

    async def digest(request: Request) -> PlainTextResponse:
        return PlainTextResponse(hashlib.sha256(await request.body()).hexdigest())

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    routes = [Route(f"/{route.__name__}", route, methods=["POST"]) for route in (mirror, digest)]
    async with serving(Starlette(routes=routes)) as site:
        for content in (data, chunks()):
            assert (await site.http.post("/mirror", content=content)).content == data
        response = await site.http.post("/digest", content=chunks())
        assert response.text == hashlib.sha256(data).hexdigest()


class Numbers:
    """An endless body. (Not a generator: nobody would close that when the client leaves.)"""

    def __init__(self) -> None:
        self.next = 0

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        self.next += 1
        return f"{self.next}\n" * 1000


async def test_a_streaming_response_ends_when_the_client_leaves(caplog: pytest.LogCaptureFixture) -> None:
    ended = trio.Event()

    async def count(request: Request) -> StreamingResponse:
        return StreamingResponse(Numbers())

    starlette = Starlette(routes=[Route("/", count)])

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        try:
            await starlette(scope, receive, send)
        finally:
            if scope["type"] == "http":
                ended.set()

    async with serving(watched) as site:
        await site.get_until("/", b"\n5\n")
        with trio.fail_after(10):
            await ended.wait()
    assert logged_errors(caplog) == []


async def test_a_request_knows_when_its_client_has_left(caplog: pytest.LogCaptureFixture) -> None:
    left = trio.Event()

    async def poll(request: Request) -> StreamingResponse:
        async def ticks() -> AsyncIterator[str]:
            yield "tick"
            while not await request.is_disconnected():
                await trio.lowlevel.checkpoint()
            left.set()

        return StreamingResponse(ticks())

    async with serving(Starlette(routes=[Route("/", poll)])) as site:
        await site.get_until("/", b"tick")
        with trio.fail_after(10):
            await left.wait()
    assert logged_errors(caplog) == []


async def test_a_background_task_runs_after_the_response() -> None:
    go_on, done = trio.Event(), trio.Event()

    async def task() -> None:
        await go_on.wait()
        done.set()

    async def home(request: Request) -> Response:
        return PlainTextResponse("at once", background=BackgroundTask(task))

    async with serving(Starlette(routes=[Route("/", home)])) as site:
        assert (await site.http.get("/")).text == "at once"
        assert not done.is_set()
        go_on.set()
        await done.wait()


class Stamp(BaseHTTPMiddleware):
    """Adds a header field to every response."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["X-Stamp"] = "stamped"
        return response


async def test_base_http_middleware_passes_bodies_both_ways_and_leaves_websockets_alone() -> None:
    async def mirror(request: Request) -> Response:
        return Response(await request.body())

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    routes = [Route("/", mirror, methods=["POST"]), WebSocketRoute("/ws", echo)]
    async with serving(Starlette(routes=routes, middleware=[Middleware(Stamp)])) as site:
        response = await site.http.post("/", content=b"x" * MIB)
        assert (response.content, response.headers["X-Stamp"]) == (b"x" * MIB, "stamped")

        def converse(websocket: ClientConnection) -> str | bytes:
            websocket.send("Hello!")
            return websocket.recv()

        assert await site.talk("/ws", converse) == "Hello!"


async def test_a_file_is_sent_whole_and_in_ranges(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 1024)

    async def file(request: Request) -> FileResponse:
        return FileResponse(path)

    async with serving(Starlette(routes=[Route("/", file)])) as site:
        assert (await site.http.get("/")).content == path.read_bytes()
        part = await site.http.get("/", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, bytes(range(10, 20)))


@pytest.mark.parametrize("target", ["/sub/item/7", "/api/sub/item/7"], ids=["stripped", "not stripped"])
async def test_a_mounted_application_under_a_root_path_makes_urls_that_lead_back(target: str) -> None:
    async def item(request: Request) -> JSONResponse:
        return JSONResponse({"item": str(request.url_for("sub:item", id=8)), "url": str(request.url)})

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(websocket.url_for("sub:item", id=8)))

    routes = [Route("/item/{id}", item, name="item"), WebSocketRoute("/ws", echo)]
    app = Starlette(routes=[Mount("/sub", routes=routes, name="sub")])
    async with serving(app, root_path="/api") as site:
        told = (await site.http.get(target)).json()
        assert told == {"item": f"{site.url}/api/sub/item/8", "url": f"{site.url}/api/sub/item/7"}
        assert (await site.http.get(URL(told["item"]).path)).status_code == 200
        prefix = target.removesuffix("/item/7")
        url = await site.talk(f"{prefix}/ws", ClientConnection.recv)
        assert url == told["item"]


async def test_an_exception_is_500_with_one_traceback_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: Request) -> Response:
        raise ZeroDivisionError("of the route")

    async def home(request: Request) -> Response:
        return PlainTextResponse("fine")

    async with serving(Starlette(routes=[Route("/fail", fail), Route("/", home)])) as site:
        response = await site.http.get("/fail")
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        assert (await site.http.get("/")).text == "fine"
    [error] = logged_errors(caplog)
    assert error.count("ZeroDivisionError: of the route") == 1


# Starlette: lifespan.


async def test_the_lifespan_is_around_all_requests_and_its_state_is_in_each() -> None:
    order: list[str] = []
    requested, connected, ended, release = trio.Event(), trio.Event(), trio.Event(), trio.Event()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        order.append("startup")
        yield {"order": order}
        order.append("shutdown")

    async def slow(request: Request) -> Response:
        request.state.order.append("request")
        requested.set()
        await release.wait()
        order.append("response")
        return Response()

    async def session(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.state.order.append("websocket")
        connected.set()
        try:
            await websocket.receive_text()
        finally:
            order.append("websocket ended")
            ended.set()

    app = Starlette(lifespan=lifespan, routes=[Route("/slow", slow), WebSocketRoute("/ws", session)])
    async with serving(app) as site, trio.open_nursery() as nursery:
        nursery.start_soon(site.http.get, "/slow")
        await requested.wait()
        nursery.start_soon(site.talk, "/ws", the_end)
        await connected.wait()
        site.shut_down()
        await ended.wait()
        release.set()
    assert order == ["startup", "request", "websocket", "websocket ended", "response", "shutdown"]


# Starlette: WebSocket.


async def test_text_bytes_and_json_go_both_ways_with_subprotocol_and_headers() -> None:
    async def echo(websocket: WebSocket) -> None:
        assert websocket.scope["subprotocols"] == ["v2", "v1"]
        await websocket.accept(
            subprotocol="v1", headers=[(b"x-room", websocket.path_params["room"].encode())]
        )
        await websocket.send_text(await websocket.receive_text())
        await websocket.send_bytes(await websocket.receive_bytes())
        await websocket.send_json(await websocket.receive_json())

    def converse(websocket: ClientConnection) -> None:
        assert websocket.subprotocol == "v1"
        assert websocket.response is not None
        assert websocket.response.headers["X-Room"] == "kitchen"
        for message in ("Hello! é", b"\0\xff" * 1000, '{"a":[1]}'):
            websocket.send(message)
            assert websocket.recv() == message
        assert the_end(websocket) == (1000, "")

    async with serving(Starlette(routes=[WebSocketRoute("/ws/{room}", echo)])) as site:
        await site.talk("/ws/kitchen", converse, subprotocols=["v2", "v1"])


@pytest.mark.parametrize(
    ("leave", "code", "reason"),
    [
        (ClientConnection.close, 1000, ""),
        (lambda websocket: websocket.close(1001, "next page"), 1001, "next page"),
        (lambda websocket: websocket.close(4001, "wörks"), 4001, "wörks"),
        (vanish, 1006, ""),
    ],
)
async def test_a_disconnect_is_raised_with_the_peers_code_and_need_not_be_caught(
    leave: Callable[[ClientConnection], None], code: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[WebSocketDisconnect] = []
    closed = trio.Event()

    async def session(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            assert await websocket.receive_text() == "last words"
            await websocket.receive_text()
        except WebSocketDisconnect as exc:
            raised.append(exc)
            raise
        finally:
            await websocket.close()
            closed.set()

    def converse(websocket: ClientConnection) -> None:
        websocket.send("last words")
        leave(websocket)

    async with serving(Starlette(routes=[WebSocketRoute("/", session)])) as site:
        await site.talk("/", converse)
        await closed.wait()
    assert [(exc.code, exc.reason) for exc in raised] == [(code, reason)]
    assert logged_errors(caplog) == []


async def test_sending_to_a_client_that_has_left_raises_a_disconnect_each_time_which_need_not_be_caught(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised = trio.Event()

    async def session(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text("tick")
        except WebSocketDisconnect:
            raised.set()
            await websocket.send_text("once more")

    def listen_and_vanish(websocket: ClientConnection) -> None:
        websocket.recv()
        vanish(websocket)

    async with serving(Starlette(routes=[WebSocketRoute("/", session)])) as site:
        await site.talk("/", listen_and_vanish)
        await raised.wait()
    assert logged_errors(caplog) == []


async def test_an_exception_closes_with_1011_and_a_websocket_exception_with_its_own_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise ZeroDivisionError("of the route")

    async def refuse(websocket: WebSocket) -> None:
        await websocket.accept()
        raise WebSocketException(4003, "not for you, " * 20)

    async with serving(
        Starlette(routes=[WebSocketRoute("/fail", fail), WebSocketRoute("/no", refuse)])
    ) as site:
        code, reason = await site.talk("/no", the_end)
        assert code == 4003
        assert ("not for you, " * 20).startswith(reason)
        assert logged_errors(caplog) == []
        assert (await site.talk("/fail", the_end))[0] == 1011
    [error] = logged_errors(caplog)
    assert error.count("ZeroDivisionError: of the route") == 1


async def test_a_websocket_can_be_denied_in_each_way_that_starlette_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def close(websocket: WebSocket) -> None:
        await websocket.close(4000, "no")

    async def deny(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("log in first", status_code=401))

    async def stream(websocket: WebSocket) -> None:
        async def body() -> AsyncIterator[str]:
            yield "come back "
            yield "later"

        await websocket.send_denial_response(StreamingResponse(body(), status_code=503))

    async def raise_http(websocket: WebSocket) -> None:
        raise HTTPException(418, "a teapot")

    async def raise_websocket(websocket: WebSocket) -> None:
        raise WebSocketException(1008)

    endpoints = [close, deny, stream, raise_http, raise_websocket]
    app = Starlette(routes=[WebSocketRoute(f"/{endpoint.__name__}", endpoint) for endpoint in endpoints])
    async with serving(app) as site:
        refusals = [(await site.refusal(f"/{endpoint.__name__}")) for endpoint in endpoints]
        assert [status for status, _ in refusals] == [403, 401, 503, 418, 403]
        assert [body for _, body in refusals[1:4]] == [b"log in first", b"come back later", b"a teapot"]
        assert (await site.refusal("/nowhere"))[0] == 403
    assert logged_errors(caplog) == []


# FastAPI.


async def test_fastapi_routes_have_dependencies_validation_and_threads_for_plain_functions() -> None:
    closed: list[str] = []

    async def connection() -> AsyncIterator[str]:
        try:
            yield "connection"
        finally:
            closed.append("connection")

    def plain(name: str = "nobody") -> str:
        return name.upper()

    app = FastAPI()

    @app.get("/async/{number}")
    async def asynchronous(
        number: int, database: Annotated[str, Depends(connection)], name: Annotated[str, Depends(plain)]
    ) -> dict[str, Any]:
        return {"number": number, "database": database, "name": name}

    @app.get("/sync/{number}")
    def synchronous(number: int, name: Annotated[str, Depends(plain)]) -> dict[str, Any]:
        return {"number": number, "name": name}

    @app.get("/fail")
    async def fail(database: Annotated[str, Depends(connection)]) -> None:
        raise fastapi.HTTPException(409, "taken")

    async with serving(app) as site:
        asynchronous_told = (await site.http.get("/async/1?name=ann")).json()
        assert asynchronous_told == {"number": 1, "database": "connection", "name": "ANN"}
        assert (await site.http.get("/sync/2")).json() == {"number": 2, "name": "NOBODY"}
        assert (await site.http.get("/sync/two")).status_code == 422
        assert (await site.http.get("/fail")).json() == {"detail": "taken"}
        assert (await site.http.get("/openapi.json")).json()["paths"].keys() == {
            "/async/{number}",
            "/sync/{number}",
            "/fail",
        }
    assert closed == ["connection", "connection"]


async def test_fastapi_websockets_have_dependencies_which_end_with_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    members: list[str] = []
    left = trio.Event()

    async def membership(name: str) -> AsyncIterator[str]:
        members.append(name)
        try:
            yield name
        finally:
            members.remove(name)
            left.set()

    app = FastAPI()

    @app.websocket("/rooms/{room}")
    async def chat(
        websocket: fastapi.WebSocket, room: int, name: Annotated[str, Depends(membership)]
    ) -> None:
        await websocket.accept()
        while True:
            text = await websocket.receive_text()
            await websocket.send_json({"room": room, "members": members, "text": text})

    def converse(websocket: ClientConnection) -> str | bytes:
        websocket.send("Hello!")
        return websocket.recv()

    async with serving(app) as site:
        reply = await site.talk("/rooms/7?name=ann", converse)
        assert reply == '{"room":7,"members":["ann"],"text":"Hello!"}'
        await left.wait()
        # FastAPI closes with a list of what was wrong as the reason.
        assert (await site.refusal("/rooms/seven?name=ann"))[0] == 403
        assert (await site.refusal("/rooms/7"))[0] == 403
    assert members == []
    assert logged_errors(caplog) == []


async def test_fastapi_websocket_dependencies_can_refuse() -> None:
    async def token(websocket: fastapi.WebSocket) -> None:
        if websocket.query_params.get("token") != "secret":
            raise fastapi.WebSocketException(fastapi.status.WS_1008_POLICY_VIOLATION, "no token")

    app = FastAPI()

    @app.websocket("/", dependencies=[Depends(token)])
    async def session(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()

    async with serving(app) as site:
        assert (await site.refusal("/"))[0] == 403
        assert await site.talk("/?token=secret", the_end) == (1000, "")


async def test_a_fastapi_application_mounted_in_another_knows_its_root_path() -> None:
    inner = FastAPI()

    @inner.get("/where", response_class=FastAPIPlainTextResponse)
    async def where(request: fastapi.Request) -> str:
        return f"{request.scope['root_path']} {request.url.path} {request.url_for('where').path}"

    outer = FastAPI()
    outer.mount("/inner", inner)
    async with serving(outer, root_path="/api") as site:
        for path in ("/inner/where", "/api/inner/where"):
            assert (await site.http.get(path)).text == "/api/inner /api/inner/where /api/inner/where"


# Others.


async def test_litestar_is_served(caplog: pytest.LogCaptureFixture) -> None:
    import litestar

    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        events.append("startup")
        yield
        events.append("shutdown")

    async def greet() -> dict[str, str]:
        return {"greeting": "Hello!"}

    async def shout(data: str) -> str:
        return data.upper()

    handlers = [
        litestar.get("/greet")(greet),
        litestar.websocket_listener("/shout")(shout),
    ]

    def converse(websocket: ClientConnection) -> str | bytes:
        websocket.send("hey")
        return websocket.recv()

    async with serving(litestar.Litestar(handlers, lifespan=[lifespan])) as site:
        assert (await site.http.get("/greet")).json() == {"greeting": "Hello!"}
        assert await site.talk("/shout", converse) == "HEY"
        assert (await site.refusal("/nowhere"))[0] in (403, 404)
    assert events == ["startup", "shutdown"]
    assert logged_errors(caplog) == []


async def test_quart_trio_is_served(caplog: pytest.LogCaptureFixture) -> None:
    import quart
    import quart_trio

    events: list[str] = []
    app = quart_trio.QuartTrio(__name__)

    async def lifespan() -> AsyncGenerator[None, None]:
        events.append("startup")
        yield
        events.append("shutdown")

    async def mirror() -> Any:
        return await quart.request.get_data()

    async def shout() -> None:
        while True:
            await quart.websocket.send((await quart.websocket.receive()).upper())

    app.while_serving(lifespan)
    app.post("/mirror")(mirror)
    app.websocket("/shout")(shout)

    def converse(websocket: ClientConnection) -> str | bytes:
        websocket.send("hey")
        return websocket.recv()

    async with serving(app) as site:
        assert (await site.http.post("/mirror", content=b"x" * MIB)).content == b"x" * MIB
        assert await site.talk("/shout", converse) == "HEY"
        assert (await site.refusal("/nowhere"))[0] in (403, 404)
    assert events == ["startup", "shutdown"]
    assert logged_errors(caplog) == []
