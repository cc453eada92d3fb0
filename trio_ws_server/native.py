"""Native handlers: ``async def handler(websocket, path)`` or ``async def handler(websocket)``."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from asgiref.compatibility import is_double_callable

from trio_ws_server.websocket import WebSocket

if TYPE_CHECKING:
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade

Handler = Callable[[WebSocket, str], Awaitable[object]] | Callable[[WebSocket], Awaitable[object]]
"""
A coroutine function called for each WebSocket connection; returning closes the connection with code 1000.

``path`` is the request target: path and query string, percent-encoded.
"""


class NativeApplication:
    """A native handler, as connections call it."""

    def __init__(self, handler: Handler) -> None:
        """Look at the handler's signature; raises ``TypeError`` if it takes neither one argument nor two."""
        self._handler: Callable[..., Awaitable[object]] = handler
        self._takes_path = takes(handler, 2)
        if not self._takes_path and not takes(handler, 1):
            raise TypeError(
                f"a handler takes (websocket, path) or (websocket); {handler!r} takes "
                f"{_signature(handler) or 'what Python cannot tell'}"
            )

    async def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> None:
        """Tell an ordinary HTTP client that there is nothing for it here."""
        await connection.respond(
            HTTPStatus.UPGRADE_REQUIRED,
            [(b"upgrade", b"websocket"), (b"connection", b"upgrade")],
            b"This is a WebSocket server: connect to it with a WebSocket client.\n",
        )

    async def websocket(self, upgrade: Upgrade) -> None:
        """Accept the connection and call the handler."""
        websocket = upgrade.accept()
        arguments = (websocket, websocket.path) if self._takes_path else (websocket,)
        result = self._handler(*arguments)
        if not isinstance(result, Awaitable):
            raise TypeError(
                f"a handler is a coroutine function, defined with async def; {self._handler!r} is not"
            )
        await result


def is_native(app_or_handler: Callable[..., Any]) -> bool:
    """
    Tell a native handler from an ASGI application.

    An ASGI 3 application needs three arguments, or takes any number; a handler may only allow for a third. An
    ASGI 2 application takes one, as some handlers do, but is a class or a plain function, where a handler is a
    coroutine function.
    """
    is_asgi3 = takes(app_or_handler, 3) and (not takes(app_or_handler, 2) or takes(app_or_handler, 0))
    is_asgi2 = takes(app_or_handler, 1) and is_double_callable(app_or_handler)
    return not is_asgi3 and not is_asgi2


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether the function can be called with so many arguments; False as well if its signature is not known."""
    signature = _signature(function)
    if signature is None:
        return False
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the function's signature, None for one written in C that does not tell."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None
