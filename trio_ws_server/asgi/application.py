"""An ASGI 3 application, as connections call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_ws_server.asgi.http import HttpExchange
from trio_ws_server.asgi.scope import http_scope, websocket_scope
from trio_ws_server.asgi.websocket import WebSocketSession

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from asgiref.typing import ASGI3Application

    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade


class ASGIApplication:
    """Calls the application once for each request and each WebSocket connection."""

    def __init__(self, app: ASGI3Application, *, root_path: str, state: dict[str, Any] | None) -> None:
        self._app = app
        self._root_path = root_path
        self._state = state

    def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> Awaitable[None]:
        """Call the application for a request."""
        scope = http_scope(request, peer, root_path=self._root_path, state=self._state)
        exchange = HttpExchange(connection)
        return self._app(scope, exchange.receive, exchange.send)

    def websocket(self, upgrade: Upgrade) -> Awaitable[None]:
        """Call the application for a WebSocket connection."""
        scope = websocket_scope(
            upgrade.request, upgrade.peer, upgrade.subprotocols, root_path=self._root_path, state=self._state
        )
        session = WebSocketSession(upgrade)
        return self._app(scope, session.receive, session.send)
