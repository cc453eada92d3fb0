"""ASGI 2 applications, callables that return callables, are served like any others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from asgiref.compatibility import guarantee_single_callable
from wsproto.events import AcceptConnection, RejectConnection, TextMessage

from tests.helpers import asgi, logged_errors, serving
from trio_ws_server.asgi.lifespan import run_lifespan
from trio_ws_server.native import is_native

if TYPE_CHECKING:
    from collections.abc import Callable


class Application:
    """An application of the kind that Django Channels 2 consumers are: an instance for each connection."""

    def __init__(self, scope: Any) -> None:
        if scope["type"] == "lifespan":
            raise ValueError("no lifespan here")
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        event = await receive()
        if self.scope["path"] == "/fail":
            raise RuntimeError("asked to")
        if event["type"] == "http.request":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": self.scope["raw_path"]})
        else:
            await send({"type": "websocket.accept"})
            while (event := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": event["text"]})


def application(scope: Any) -> Any:
    """The same as a function that returns a coroutine function, with a lifespan."""

    async def lifespan(receive: Any, send: Any) -> None:
        await receive()
        scope["state"]["started"] = True
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return lifespan if scope["type"] == "lifespan" else Application(scope)


@pytest.fixture(params=[Application, application])
def app(request: pytest.FixtureRequest) -> Callable[..., Any]:
    assert not is_native(request.param)
    single: Callable[..., Any] = guarantee_single_callable(request.param)
    return single


async def test_requests_are_responded_to(app: Callable[..., Any]) -> None:
    async with serving(asgi(app)) as client:
        for target in ("/1", "/2"):
            response, body = await client.request(target)
            assert (response.status_code, body) == (200, target.encode())


async def test_websockets_are_served(app: Callable[..., Any]) -> None:
    async with serving(asgi(app)) as client:
        assert isinstance(await client.open(), AcceptConnection)
        await client.send_event(TextMessage("hello"))
        assert await client.event() == TextMessage("hello")


async def test_exceptions_are_the_applications_failure(
    app: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(asgi(app)) as client:
        outcome = await client.open("/fail")
        assert isinstance(outcome, RejectConnection)
        assert outcome.status_code == 500
    [error] = logged_errors(caplog)
    assert error.endswith("RuntimeError: asked to")


async def test_a_lifespan_works_and_where_there_is_none_nothing_is_amiss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_lifespan(guarantee_single_callable(application), "on") as state:
        assert state == {"started": True}
    async with run_lifespan(guarantee_single_callable(Application), "auto") as state:
        assert state is None
    assert logged_errors(caplog) == []
