"""What a connection asks of whatever it serves: an ASGI application or a native handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade


class Application(Protocol):
    """Called in the connection's own task; what it raises ends that connection only."""

    async def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> None:
        """Respond to a request."""

    async def websocket(self, upgrade: Upgrade) -> None:
        """Accept a WebSocket and serve it, or reject it; returning closes it."""
