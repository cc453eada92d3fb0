"""Accepting connections, and ending them all: the accept loops and the drain."""

from __future__ import annotations

import errno
import math
import random
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

import trio

from trio_ws_server.admission import REFUSAL_TIMEOUT, Admission, Unavailable, Verdict
from trio_ws_server.close_codes import Close, CloseCode, check_close
from trio_ws_server.connection import Connection
from trio_ws_server.listeners import peer_address
from trio_ws_server.logs import access_logger, logger
from trio_ws_server.memory import keep_freed_memory
from trio_ws_server.peer import AgreedTLS, Peer
from trio_ws_server.scheduling import serving_nursery
from trio_ws_server.transport import TLSStream, open_engine, open_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio.abc import Stream

    from trio_ws_server.application import Application
    from trio_ws_server.config import Config
    from trio_ws_server.listeners import Address, BoundListener
    from trio_ws_server.tls import ServerTLS
    from trio_ws_server.transport import Engine, Transport

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
"""What accept(2) reports when the process or the system has no room for one more connection."""

_ACCEPT_PAUSE = 0.1
"""Seconds to wait for room before accepting again, as `trio.serve_listeners` does."""

_RESTART = Close(CloseCode.SERVICE_RESTART)

LIFESPAN_GRACE = 2.0
"""Seconds that an application's lifespan has to shut down when its connections took all of the time there was."""

CANCELLATION_COST = 0.003
"""Seconds that cancelling one connection may take: 0.6 to 1.5 ms of CPU were measured with a thousand of them."""


class Server:
    """A server at work: `serve` hands it out once it accepts connections."""

    def __init__(
        self, listeners: Sequence[BoundListener], config: Config, *, tls: ServerTLS | None = None
    ) -> None:
        self._listeners = listeners
        self._config = config
        # What is refused is logged by the Admission, in sum.
        self._refusal_config = replace(config, access_log=False)
        self._admission = Admission(config)
        self._tls = tls
        self._connections: set[Connection] = set()
        self._engine: Engine
        self._shutdown_requested = trio.Event()
        self._close = _RESTART
        self._connections_scope = trio.CancelScope()
        self._tls_handshakes: set[trio.CancelScope] = set()
        self.scope = trio.CancelScope()
        """Holds everything that the server runs, lifespan included."""

    @property
    def graceful_timeout(self) -> float:
        """Seconds from `shut_down` to the cancellation of what is left."""
        return self._config.graceful_timeout

    @property
    def cancellation_time(self) -> float:
        """Seconds that the server itself may need to cancel all connections that are open now."""
        return len(self._connections) * CANCELLATION_COST

    @property
    def addresses(self) -> list[Address]:
        """What is listened on: ``(host, port)``, or ``(path, None)`` for a Unix socket."""
        return [listener.address for listener in self._listeners]

    @property
    def urls(self) -> list[str]:
        """The addresses as URLs: ``http://…`` or with TLS ``https://…``; ``unix:…`` for a Unix socket."""
        return [listener.url(tls=self._tls is not None) for listener in self._listeners]

    def shut_down(self, close: Close = _RESTART) -> None:
        """
        Stop accepting, let running requests finish, close WebSocket connections, and return from `serve`.

        ``close`` is the code and reason that WebSocket peers get, each at a random time within ``graceful_jitter``
        seconds. What is still there after ``graceful_timeout`` seconds is cancelled; an application's lifespan has
        `LIFESPAN_GRACE` seconds more. Without effect where it has been called before. Raises ``ValueError`` for a
        code or reason that may not be sent.
        """
        close = check_close(*close)
        if self._shutdown_requested.is_set():
            return
        self._close = close
        deadline = trio.current_time() + self._config.graceful_timeout
        self._connections_scope.deadline = deadline
        self.scope.deadline = deadline + LIFESPAN_GRACE
        self._shutdown_requested.set()

    def cancel(self) -> None:
        """Stop now: cancel everything."""
        self.scope.cancel()

    async def run(self, application: Application, started: Callable[[], None] | None = None) -> None:
        """
        Accept and serve connections until told to shut down; return when the last one is gone.

        Calls ``started`` once everything is there that connections need.
        Cancelling it drops all connections. The listeners are closed in every case.
        """
        keep_freed_memory()
        with self._connections_scope:
            async with (
                open_engine() as self._engine,
                serving_nursery() as draining,
                trio.open_nursery() as connections,
                trio.open_nursery() as accepting,
            ):
                for listener in self._listeners:
                    accepting.start_soon(self._accept, listener, application, connections)
                if started is not None:
                    started()
                await self._shutdown_requested.wait()
                # Cancelling thousands of connections takes seconds, which are not to be taken from the lifespan.
                self.scope.deadline = math.inf
                accepting.cancel_scope.cancel()
                draining.start_soon(self._drain)
        self.scope.deadline = max(trio.current_time(), self._connections_scope.deadline) + LIFESPAN_GRACE
        if self._connections_scope.cancelled_caught:
            logger.warning(
                "Cancelled what still ran %g s after the signal to stop (--graceful-timeout)",
                self._config.graceful_timeout,
            )

    async def _accept(
        self, listener: BoundListener, application: Application, connections: trio.Nursery
    ) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    if exc.errno not in _OUT_OF_RESOURCES:
                        raise
                    logger.error("Cannot accept a connection: %s; trying again", exc.strerror)
                    await trio.sleep(_ACCEPT_PAUSE)
                else:
                    # Given a name, Trio does not make one for each task.
                    connections.start_soon(self._serve, stream, listener, application, name="connection")

    async def _serve(
        self, stream: trio.SocketStream, listener: BoundListener, application: Application
    ) -> None:
        """Serve one connection; nothing that goes wrong on it comes out, but cancellation."""
        # What is known here, and each coroutine more, stays as long as the connection.
        peer = Peer(None, None)
        sock: trio.socket.SocketType | None = stream.socket
        transport: Transport | None = None
        try:
            peer = Peer(peer_address(stream), listener.server_address(stream))
            with self._admission.place(peer) as verdict:
                access_logger.debug("%s connected, to be %s", peer, verdict.value)
                config, deadline = self._config, math.inf
                if verdict is Verdict.REFUSED:
                    application, config = Unavailable(), self._refusal_config
                    deadline = trio.current_time() + REFUSAL_TIMEOUT
                if verdict is not Verdict.DROPPED:
                    transport, peer = await self._open(stream, peer, config, deadline)
                # If the transport has taken the socket over, shells are left.
                sock = None if stream.socket.fileno() < 0 else stream.socket
                del stream
                if transport is not None:
                    async with transport:
                        connection = self._connection(transport, peer, application, config)
                        try:
                            await connection.run()
                        finally:
                            self._connections.discard(connection)
        except* Exception as group:
            logger.error("%s: internal error, connection dropped", peer, exc_info=group)
        finally:
            access_logger.debug("%s disconnected", peer)
            if sock is not None:
                # A stream's `aclose` would yield, which costs more than to close it.
                sock.close()

    async def _open(
        self, stream: trio.SocketStream, peer: Peer, config: Config, deadline: float
    ) -> tuple[Transport | None, Peer]:
        """
        Return a transport, which is dropped at the deadline, and the peer; with TLS if that is spoken here.

        Without a transport where that was not agreed on.
        """
        below: Stream = stream
        if self._tls is not None:
            below = tls_stream = TLSStream(stream, self._tls.context)
            if not await self._agree(tls_stream, peer, deadline):
                return None, peer
            peer = peer._replace(tls=(AgreedTLS.of(tls_stream.tls.ssl_object), self._tls))
        transport = open_transport(below, config, self._engine)
        if deadline < math.inf:
            transport.call_at(deadline, transport.abort)
        return transport, peer

    def _connection(
        self, transport: Transport, peer: Peer, application: Application, config: Config
    ) -> Connection:
        """Make a connection that is told of a shutdown."""
        connection = Connection(transport, peer, application, config)
        self._connections.add(connection)
        if self._shutdown_requested.is_set():
            self._begin_drain(connection)
        return connection

    async def _agree(self, stream: TLSStream, peer: Peer, deadline: float) -> bool:
        """Return whether TLS was agreed on, before the time was up or a shutdown was requested."""
        if self._shutdown_requested.is_set():
            return False
        handshake = trio.CancelScope(deadline=deadline)
        self._tls_handshakes.add(handshake)
        try:
            with handshake:
                return await self._shake_hands(stream, peer)
        finally:
            self._tls_handshakes.discard(handshake)
        return False

    async def _shake_hands(self, stream: TLSStream, peer: Peer) -> bool:
        try:
            with trio.fail_after(self._config.handshake_timeout):
                await stream.do_handshake()
                return True
        except trio.TooSlowError as exc:
            logger.debug("%s: TLS handshake failed: %r", peer, exc)
        except trio.BrokenResourceError as exc:
            logger.debug("%s: TLS handshake failed: %r", peer, exc.__cause__ or exc)
            # Whatever the client has sent behind what was wrong, it is to learn why.
            async with open_transport(stream.stream, self._config, self._engine) as transport:
                await transport.shutdown(linger=self._config.keep_alive_timeout)
        return False

    async def _drain(self) -> None:
        """Tell every connection of the shutdown: WebSockets at their random times, all others at once."""
        for handshake in self._tls_handshakes:
            handshake.cancel()
        now = trio.current_time()
        websockets = []
        for connection in self._connections:
            if connection.is_websocket:
                wait = random.uniform(0, self._config.graceful_jitter)  # noqa: S311 (no secret)
                websockets.append((now + wait, connection))
            else:
                self._begin_drain(connection)
        for time, connection in sorted(websockets, key=itemgetter(0)):
            await trio.sleep_until(time)
            self._begin_drain(connection)

    def _begin_drain(self, connection: Connection) -> None:
        """Tell a connection of the shutdown; what goes wrong with it keeps no other from being told."""
        try:
            connection.begin_drain(self._close)
        except Exception:
            logger.exception("Internal error, a connection is left to the deadline")
