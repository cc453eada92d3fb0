"""One connection, from its first byte to its last."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from trio_ws_server.app_errors import report, split
from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.http1 import HttpConnection
from trio_ws_server.logs import access_logger, log_request, log_websocket_ended, logger
from trio_ws_server.protocol.handshake import ServerHandshake, is_upgrade
from trio_ws_server.protocol.http1 import BadRequest
from trio_ws_server.upgrade import Upgrade

if TYPE_CHECKING:
    from trio_ws_server.application import Application
    from trio_ws_server.config import Config
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.peer import Peer
    from trio_ws_server.transport import Transport


class Connection:
    """Serves HTTP requests, one after the other, or a WebSocket, on one transport."""

    __slots__ = ("_application", "_closing", "_config", "_peer", "_serving")

    def __init__(self, transport: Transport, peer: Peer, application: Application, config: Config) -> None:
        """Become the transport's receiver."""
        self._peer = peer
        self._application = application
        self._config = config
        self._serving: HttpConnection | Upgrade = HttpConnection(transport, config)
        self._closing: Close | None = None

    async def run(self) -> None:
        """
        Serve the connection to its end.

        Cancelling it leaves the transport to be closed. What the application raises is logged and doesn't come out.
        """
        # A WebSocket is served here, not in a coroutine of its own, which would stay as long as the connection.
        upgrade = await self._next_upgrade()
        if upgrade is None:
            return
        started = trio.current_time()
        failed = False
        try:
            try:
                await self._application.websocket(upgrade)
            except BaseException as raised:
                failed = self._report(raised, upgrade.request, client_gone=upgrade.client_gone)
            await self._complete_upgrade(upgrade, failed)
        finally:
            if upgrade.websocket is None:
                self._log_request(upgrade.http, upgrade.request, started)
            elif self._config.access_log:
                log_websocket_ended(self._peer, upgrade.websocket, seconds=trio.current_time() - started)
        if upgrade.websocket is None:
            await upgrade.http.shutdown()

    @property
    def is_websocket(self) -> bool:
        """Whether this is a WebSocket, or will be one if the application accepts it."""
        return isinstance(self._serving, Upgrade)

    def begin_drain(self, close: Close) -> None:
        """Let a running request finish and then close; close a WebSocket with this code and reason."""
        self._closing = close
        if isinstance(self._serving, Upgrade):
            self._serving.start_closing(close)
        else:
            self._serving.begin_drain()

    async def _next_upgrade(self) -> Upgrade | None:
        """Serve requests up to a valid one for a WebSocket; if there is none, to the connection's end."""
        assert isinstance(self._serving, HttpConnection)
        http = self._serving
        try:
            while (request := await http.next_request()) is not None:
                if is_upgrade(request):
                    handshake = ServerHandshake(request, self._config.allowed_origins)
                    self._serving = upgrade = Upgrade(http, request, handshake, self._peer, self._config)
                    if self._closing is not None:
                        upgrade.start_closing(self._closing)
                    return upgrade
                await self._serve_http(http, request)
        except BadRequest as exc:
            await self._refuse(http, exc)
        await http.shutdown()
        return None

    async def _serve_http(self, http: HttpConnection, request: RequestHead) -> None:
        started = trio.current_time()
        failed = False
        try:
            try:
                await self._application.http(http, request, self._peer)
            except BaseException as raised:
                failed = self._report(raised, request, client_gone=http.client_ended)
            await self._complete_response(http, request, failed)
        finally:
            self._log_request(http, request, started)

    async def _complete_upgrade(self, upgrade: Upgrade, failed: bool) -> None:
        """Close what the application has left open: the WebSocket, or if it has not accepted it, the response."""
        if upgrade.websocket is None:
            await self._complete_response(upgrade.http, upgrade.request, failed)
        else:
            code = CloseCode.INTERNAL_ERROR if failed else CloseCode.NORMAL_CLOSURE
            upgrade.websocket.start_closing(Close(code))
            await upgrade.websocket.until_closed()

    def _report(self, raised: BaseException, request: RequestHead, *, client_gone: bool) -> bool:
        """Log what came out of the application, but let pass what is not its own; return whether it failed."""
        own, passed = split(raised)
        failed = own is not None and report(own, self._line(request), client_gone=client_gone)
        if passed is not None:
            raise passed from None
        return failed

    async def _complete_response(self, http: HttpConnection, request: RequestHead, failed: bool) -> None:
        """
        Do what the application left undone: respond with 500.

        A response that has begun gets no end, so that the client takes it for cut off; the connection ends there.
        """
        if http.response_complete or http.transport.lost:
            return
        if http.body_error is not None and not http.response_started:
            await self._refuse(http, http.body_error)
            return
        if not failed and not http.client_ended:
            what = "its response was complete" if http.response_started else "it sent a response"
            logger.error("%s: the application returned before %s", self._line(request), what)
        if not http.response_started:
            await http.respond(HTTPStatus.INTERNAL_SERVER_ERROR, [], b"Internal Server Error\n", close=True)

    async def _refuse(self, http: HttpConnection, error: BadRequest) -> None:
        if self._config.access_log:
            access_logger.info("%s refused with %d: %s", self._peer, error.status, error)
        await http.respond(error.status, error.headers, f"{error}\n".encode(), close=True)

    def _log_request(self, http: HttpConnection, request: RequestHead, started: float) -> None:
        if self._config.access_log:
            seconds = trio.current_time() - started
            log_request(
                self._peer,
                request,
                status=http.status,
                complete=http.response_complete,
                body_sent=http.body_sent,
                seconds=seconds,
            )

    def _line(self, request: RequestHead) -> str:
        return f"{self._peer} {request.method.decode('ascii')} {request.target.decode('ascii')}"
