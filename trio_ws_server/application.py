"""What a connection asks of whatever it serves: an ASGI application or a native handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade


class Application(Protocol):
    """
    Called in the connection's own task; what it raises ends that connection only.

    What its functions return is awaited at once: they may be coroutine functions, and need not be. Each coroutine
    around the application's own stays as long as the connection, and is gone through whenever it is woken.
    """

    def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> Awaitable[object]:
        """Respond to a request."""

    def websocket(self, upgrade: Upgrade) -> Awaitable[object]:
        """Accept a WebSocket and serve it, or reject it; returning closes it."""
