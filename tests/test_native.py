"""Native handlers: what may be one, how it is told from an ASGI application, and what it is called with."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from wsproto.events import AcceptConnection, CloseConnection, TextMessage

from tests.helpers import logged_errors, native, serving
from trio_ws_server.native import NativeApplication, is_native

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server.websocket import WebSocket


async def with_path(websocket: WebSocket, path: str) -> None:
    await websocket.send(f"path {path}")


async def without_path(websocket: WebSocket) -> None:
    await websocket.send("no path")


async def with_an_optional_path(websocket: WebSocket, path: str = "none") -> None:
    await websocket.send(f"path {path}")


async def with_options(websocket: WebSocket, *, greeting: str = "no path") -> None:
    await websocket.send(greeting)


async def with_more_in_front(greeting: str, websocket: WebSocket, path: str) -> None:
    await websocket.send(f"{greeting} {path}")


def plain(websocket: WebSocket, path: str) -> Awaitable[None]:
    return with_path(websocket, path)


@functools.wraps(with_path)
async def decorated(*args: Any) -> None:
    await with_path(*args)


class Methods:
    async def with_path(self, websocket: WebSocket, path: str) -> None:
        await with_path(websocket, path)

    async def without_path(self, websocket: WebSocket) -> None:
        await without_path(websocket)

    @staticmethod
    async def static(websocket: WebSocket, path: str) -> None:
        await with_path(websocket, path)


class Callable2:
    async def __call__(self, websocket: WebSocket, path: str) -> None:
        await with_path(websocket, path)


class Callable1:
    async def __call__(self, websocket: WebSocket) -> None:
        await without_path(websocket)


HANDLERS: dict[str, tuple[Callable[..., Any], str]] = {
    "a function of two": (with_path, "path /a%20b?c=d"),
    "a function of one": (without_path, "no path"),
    "a function of one and perhaps two": (with_an_optional_path, "path /a%20b?c=d"),
    "a function of one, with options": (with_options, "no path"),
    "a plain function that returns an awaitable": (plain, "path /a%20b?c=d"),
    "a decorated function": (decorated, "path /a%20b?c=d"),
    "a lambda": (lambda websocket, path: with_path(websocket, path), "path /a%20b?c=d"),
    "a partial that leaves two": (functools.partial(with_more_in_front, "hello"), "hello /a%20b?c=d"),
    "a partial that leaves one": (functools.partial(with_options, greeting="no path"), "no path"),
    "a partial of a partial": (
        functools.partial(functools.partial(with_more_in_front), "hello"),
        "hello /a%20b?c=d",
    ),
    "a bound method of two": (Methods().with_path, "path /a%20b?c=d"),
    "a bound method of one": (Methods().without_path, "no path"),
    "a static method": (Methods.static, "path /a%20b?c=d"),
    "a callable object of two": (Callable2(), "path /a%20b?c=d"),
    "a callable object of one": (Callable1(), "no path"),
    "a partial of a callable object": (functools.partial(Callable2()), "path /a%20b?c=d"),
}


@pytest.mark.parametrize(("handler", "answer"), HANDLERS.values(), ids=HANDLERS)
async def test_a_handler_is_called_with_as_much_as_it_takes(handler: Callable[..., Any], answer: str) -> None:
    assert is_native(handler)
    async with serving(native(handler)) as client:
        assert isinstance(await client.open("/a%20b?c=d"), AcceptConnection)
        message = await client.event()
        assert isinstance(message, TextMessage)
        assert message.data == answer
        closed = await client.event()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1000


async def none() -> None: ...


async def three(one: object, two: object, three: object) -> None: ...


async def one_by_name(*, websocket: WebSocket) -> None: ...


@pytest.mark.parametrize("function", [none, three, one_by_name, max])
def test_a_function_that_takes_neither_one_argument_nor_two_is_no_handler(
    function: Callable[..., Any],
) -> None:
    with pytest.raises(
        TypeError, match=r"a handler takes \(websocket, path\) or \(websocket\); .* takes [(w]"
    ):
        NativeApplication(function)


async def asgi3(scope: object, receive: object, send: object) -> None: ...


def plain_asgi3(scope: object, receive: object, send: object) -> Awaitable[None]:
    return asgi3(scope, receive, send)


class ASGI3:
    async def __call__(self, scope: object, receive: object, send: object) -> None: ...


class ASGI2:
    def __init__(self, scope: object) -> None: ...

    async def __call__(self, receive: object, send: object) -> None: ...


def asgi2(scope: object) -> ASGI2:
    return ASGI2(scope)


async def anything(*args: object) -> None: ...


@pytest.mark.parametrize(
    "app", [asgi3, plain_asgi3, ASGI3(), functools.partial(asgi3), ASGI3().__call__, ASGI2, asgi2, anything]
)
def test_an_asgi_application_is_no_handler(app: Callable[..., Any]) -> None:
    assert not is_native(app)


def test_a_third_argument_that_need_not_be_given_does_not_make_a_handler_an_application() -> None:
    async def greet(websocket: WebSocket, path: str, greeting: str = "hi") -> None: ...

    async def any_number(*args: Any) -> None: ...

    assert is_native(greet)
    assert not is_native(any_number)


async def test_a_handler_that_is_no_coroutine_function_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    def forgot_async(websocket: WebSocket) -> None: ...

    async with serving(native(forgot_async)) as client:
        await client.open()
        assert isinstance(event := await client.event(), CloseConnection)
        assert event.code == 1011
    [error] = logged_errors(caplog)
    assert "a handler is a coroutine function, defined with async def; <function" in error


async def test_an_ordinary_request_is_told_to_upgrade() -> None:
    async with serving(native(without_path)) as client:
        response, body = await client.request()
    assert response.status_code == 426
    assert (b"upgrade", b"websocket") in response.headers
    assert (b"connection", b"upgrade") in response.headers
    assert b"WebSocket" in body
