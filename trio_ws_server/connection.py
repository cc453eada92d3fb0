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

    def __init__(self, transport: Transport, peer: Peer, application: Application, config: Config) -> None:
        """Become the transport's receiver."""
        self._peer = peer
        self._application = application
        self._config = config
        self._http = HttpConnection(transport, config)
        self._upgrade: Upgrade | None = None
        self._closing: Close | None = None

    async def run(self) -> None:
        """
        Serve the connection to its end.

        Cancelling it leaves the transport to be closed. What the application raises is logged and doesn't come out.
        """
        try:
            while (request := await self._http.next_request()) is not None:
                if is_upgrade(request):
                    handshake = ServerHandshake(request, self._config.allowed_origins)
                    if await self._serve_websocket(request, handshake):
                        return
                    break
                await self._serve_http(request)
        except BadRequest as exc:
            await self._refuse(exc)
        await self._http.shutdown()

    @property
    def is_websocket(self) -> bool:
        """Whether this is a WebSocket, or will be one if the application accepts it."""
        return self._upgrade is not None

    def begin_drain(self, close: Close) -> None:
        """Let a running request finish and then close; close a WebSocket with this code and reason."""
        self._closing = close
        self._http.begin_drain()
        if self._upgrade is not None:
            self._upgrade.start_closing(close)

    async def _serve_http(self, request: RequestHead) -> None:
        started = trio.current_time()
        failed = False
        try:
            try:
                await self._application.http(self._http, request, self._peer)
            except BaseException as raised:
                failed = self._report(raised, request, client_gone=self._http.client_ended)
            await self._complete_response(request, failed)
        finally:
            self._log_request(request, started)

    async def _serve_websocket(self, request: RequestHead, handshake: ServerHandshake) -> bool:
        """Serve a WebSocket to its end; return whether it was accepted: otherwise, it has been HTTP."""
        started = trio.current_time()
        failed = False
        self._upgrade = upgrade = Upgrade(self._http, request, handshake, self._peer, self._config)
        try:
            if self._closing is not None:
                upgrade.start_closing(self._closing)
            try:
                await self._application.websocket(upgrade)
            except BaseException as raised:
                failed = self._report(raised, request, client_gone=upgrade.client_gone)
            if upgrade.websocket is None:
                await self._complete_response(request, failed)
            else:
                code = CloseCode.INTERNAL_ERROR if failed else CloseCode.NORMAL_CLOSURE
                upgrade.websocket.start_closing(Close(code))
                await upgrade.websocket.until_closed()
            return upgrade.websocket is not None
        finally:
            if upgrade.websocket is None:
                self._log_request(request, started)
            elif self._config.access_log:
                log_websocket_ended(self._peer, upgrade.websocket, seconds=trio.current_time() - started)

    def _report(self, raised: BaseException, request: RequestHead, *, client_gone: bool) -> bool:
        """Log what came out of the application, but let pass what is not its own; return whether it failed."""
        own, passed = split(raised)
        failed = own is not None and report(own, self._line(request), client_gone=client_gone)
        if passed is not None:
            raise passed from None
        return failed

    async def _complete_response(self, request: RequestHead, failed: bool) -> None:
        """
        Do what the application left undone: respond with 500.

        A response that has begun gets no end, so that the client takes it for cut off; the connection ends there.
        """
        http = self._http
        if http.response_complete or http.transport.lost:
            return
        if http.body_error is not None and not http.response_started:
            await self._refuse(http.body_error)
            return
        if not failed and not http.client_ended:
            what = "its response was complete" if http.response_started else "it sent a response"
            logger.error("%s: the application returned before %s", self._line(request), what)
        if not http.response_started:
            await http.respond(HTTPStatus.INTERNAL_SERVER_ERROR, [], b"Internal Server Error\n", close=True)

    async def _refuse(self, error: BadRequest) -> None:
        if self._config.access_log:
            access_logger.info("%s refused with %d: %s", self._peer, error.status, error)
        await self._http.respond(error.status, error.headers, f"{error}\n".encode(), close=True)

    def _log_request(self, request: RequestHead, started: float) -> None:
        if self._config.access_log:
            seconds = trio.current_time() - started
            log_request(
                self._peer,
                request,
                status=self._http.status,
                complete=self._http.response_complete,
                body_sent=self._http.body_sent,
                seconds=seconds,
            )

    def _line(self, request: RequestHead) -> str:
        return f"{self._peer} {request.method.decode('ascii')} {request.target.decode('ascii')}"
