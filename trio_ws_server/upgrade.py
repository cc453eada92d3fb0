"""A WebSocket handshake that waits for the application's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_ws_server.errors import ClientDisconnected
from trio_ws_server.headers import Headers, Request
from trio_ws_server.logs import log_websocket_accepted
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.websocket import State, WebSocketProtocol
from trio_ws_server.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_ws_server.close_codes import Close
    from trio_ws_server.config import Config
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.protocol.handshake import ServerHandshake


class Upgrade:
    """A valid opening handshake, to be accepted or rejected, once."""

    __slots__ = ("_closing", "_config", "_handshake", "http", "peer", "request", "websocket")

    def __init__(
        self,
        http: HttpConnection,
        request: RequestHead,
        handshake: ServerHandshake,
        peer: Peer,
        config: Config,
    ) -> None:
        self.http = http
        """What the handshake came on, until it is accepted."""
        self.request = request
        self.peer = peer
        self.websocket: WebSocket | None = None
        """The connection, once it is accepted."""
        self._handshake = handshake
        self._config = config
        self._closing: Close | None = None

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers, in its order of preference."""
        return self._handshake.subprotocols

    def accept(
        self, *, subprotocol: str | None = None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> WebSocket:
        """
        Complete the handshake and return the open connection.

        Frames that came with the request are in its inbox. Raises ``ValueError`` for a subprotocol that was not
        offered or header fields that cannot be sent; nothing has been sent then.
        """
        deflate = Deflate(self._config) if self._config.per_message_deflate else None
        fields = self._handshake.accept(
            subprotocol=subprotocol, headers=self.http.with_default_headers(headers), deflate=deflate
        )
        response = self.http.exchange.switch_protocols(fields)
        websocket = WebSocket(
            self.http.transport,
            WebSocketProtocol(self._config, client=False, deflate=deflate),
            self._config,
            request=Request(self.request.target.decode("ascii"), Headers(self.request.headers)),
            subprotocol=subprotocol,
        )
        self.http.transport.write(response)
        self.http.hand_over(websocket)
        self.websocket = websocket
        # Of no use any more, they would stay as long as the connection.
        del self.http, self._handshake
        if self._config.access_log:
            log_websocket_accepted(self.peer, websocket)
        if self._closing is not None:
            websocket.start_closing(self._closing)
        return websocket

    async def reject(self, status: int, body: bytes = b"") -> None:
        """Answer with an HTTP status instead of accepting; the connection is closed after it."""
        await self.http.respond(status, [], body, close=True)

    @property
    def client_gone(self) -> bool:
        """Whether the client has gone, before the handshake or after it."""
        if self.websocket is None:
            return self.http.client_ended
        return self.websocket.state is not State.OPEN

    def check_connected(self) -> None:
        """Raise `ClientDisconnected` if the client has gone."""
        if self.http.client_ended:
            raise ClientDisconnected("the client disconnected during the WebSocket handshake")

    async def decided_or_disconnected(self) -> None:
        """Wait until the handshake is accepted or rejected, or the client is gone."""
        await self.http.disconnected_or(lambda: self.websocket is not None or self.http.response_complete)

    def start_closing(self, close: Close) -> None:
        """Close the connection; if it isn't open yet, as soon as it is."""
        self._closing = close
        if self.websocket is not None:
            self.websocket.start_closing(close)
