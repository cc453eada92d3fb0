"""
The end of a WebSocket connection: the closing handshake (RFC 6455 section 7.1), and then that of TCP.

No task sees to it: what comes, the peer's close frame or its end, takes it further, and a timer gives it up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_ws_server.protocol.websocket import Ending, State

if TYPE_CHECKING:
    from trio_ws_server.protocol.websocket import WebSocketProtocol
    from trio_ws_server.transport import Transport


class Closing:
    """
    What becomes of a connection that is not open any more.

    Its peer has ``timeout`` seconds from when it last took something. So one that reads slowly gets all that was
    sent before, with our close frame at the end of it, and has as long again for its own close frame and its end.
    One that the connection has failed for has that much in all to take what is left.
    """

    __slots__ = ("_began", "_protocol", "_timeout", "_transport")

    def __init__(self, transport: Transport, protocol: WebSocketProtocol, timeout: float) -> None:
        self._transport = transport
        self._protocol = protocol
        self._timeout = timeout
        self._began = trio.current_time()
        # What the peer took before then does not count.
        transport.see_taken()
        transport.call_by(self._deadline, timeout, self._look)

    def go_on(self, *, peer_ended: bool) -> None:
        """End the TCP connection, if it is time for that."""
        # RFC 6455 section 7.1.1: it is for the server to close the TCP connection first.
        if self._protocol.state is State.CLOSED and (peer_ended or not self._protocol.client):
            self._transport.end()

    @property
    def _deadline(self) -> float:
        transport = self._transport
        failed = self._protocol.ending in (Ending.PROTOCOL_ERROR, Ending.LOST)
        if failed and transport.taken < transport.written:
            return self._began + self._timeout
        return max(self._began, transport.taken_at) + self._timeout

    def _look(self) -> None:
        """Drop the connection if its peer has had its time, or look again when it has."""
        self._transport.look()
        deadline = self._deadline
        if deadline <= trio.current_time():
            self._transport.abort()
        else:
            self._transport.call_by(deadline, self._timeout, self._look)
