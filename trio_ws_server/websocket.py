"""
The Trio side of a WebSocket connection: messages in and out, pings, the closing handshake.

What arrives is in the `inbox`, where tasks that receive find it. What is sent goes to the transport's buffer; a
full buffer makes tasks that send wait. While messages are still in the inbox, more is about to be sent: frames wait
for each other then, to leave together. Open, closing, closed is decided in `protocol.websocket`; here is only what
follows from it, and in `closing` what follows for the TCP connection.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Self

import trio

from trio_ws_server.close_codes import CloseCode, check_close
from trio_ws_server.closing import Closing
from trio_ws_server.errors import ConnectionClosedOK
from trio_ws_server.inbox import Inbox
from trio_ws_server.keepalive import Keepalive, Pings, SentPing
from trio_ws_server.protocol.frames import JOINED_SIZE, SHARED_SIZE
from trio_ws_server.protocol.websocket import Ending, Ping, Pong, State
from trio_ws_server.scheduling import Changes, pace
from trio_ws_server.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from trio_ws_server.close_codes import Close
    from trio_ws_server.config import Config
    from trio_ws_server.errors import ConnectionClosed
    from trio_ws_server.headers import Request
    from trio_ws_server.protocol.websocket import WebSocketProtocol
    from trio_ws_server.transport import Transport

MAX_PING_PAYLOAD = 125
"""RFC 6455 section 5.5."""

# The member of an enum, looked up once.
_OPEN = State.OPEN


class WebSocket:
    """
    A WebSocket connection, as native handlers and `connect` have it.

    Iterating over it yields messages until the connection is closed normally. Several tasks may send and
    receive at the same time; each message goes to one receiver, and messages leave whole.
    """

    def __init__(
        self,
        transport: Transport,
        protocol: WebSocketProtocol,
        config: Config,
        *,
        request: Request,
        subprotocol: str | None,
    ) -> None:
        """Become the transport's receiver."""
        self.request = request
        self.subprotocol = subprotocol
        """The subprotocol agreed on, None if there is none."""
        self._transport = transport
        self._protocol = protocol
        self._config = config
        self.inbox = Inbox(self, transport, protocol, config)
        self._changes = Changes()
        """Of all but what is in the inbox."""
        self._closing: Closing | None = None
        self._failing = False
        self._compressing = False
        self._pings = Pings()
        self._pong_owed: bytes | None = None
        self._keepalive = Keepalive(self, transport, config)
        self.data_received = self.inbox.data_received
        transport.receiver = self

    @property
    def path(self) -> str:
        """The request target of the opening handshake: path and query string, percent-encoded."""
        return self.request.path

    # What the application calls.

    async def recv(self) -> str | bytes:
        """
        Return the next message: a ``str`` for a text message, ``bytes`` for a binary one.

        Waits until there is one. Raises `ConnectionClosedOK` or `ConnectionClosedError` once the connection is
        closed and all that was received before has been returned. Cancelling it loses no message.
        """
        inbox = self.inbox
        await inbox.arrival()
        while (message := inbox.take()) is None and inbox.receiving:
            await inbox.arrival()
        if message is None:
            raise await self._closed_error()
        return message

    def __aiter__(self) -> Self:
        """Iterate over the messages still to come."""
        return self

    async def __anext__(self) -> str | bytes:
        """Do as `recv` does, but end the iteration where that raises `ConnectionClosedOK`."""
        inbox = self.inbox
        await inbox.arrival()
        while (message := inbox.take()) is None and inbox.receiving:
            await inbox.arrival()
        if message is None:
            raise _in_iteration(await self._closed_error())
        return message

    async def send(self, message: str | bytes | bytearray | memoryview) -> None:
        """
        Send a text message (``str``) or a binary message (bytes-like).

        Waits, before and after, while more than ``write_high_water`` bytes wait to be taken by the peer, and while
        a large message is compressed, in steps between which other tasks have their turn. Cancelling it leaves
        either nothing or the whole message to be sent. Raises `ConnectionClosed` if the connection is not open or
        is lost while waiting, ``TypeError`` for another type, ``UnicodeEncodeError``
        for a ``str`` that is not Unicode text.
        """
        await pace()
        if not isinstance(message, (str, bytes)):
            if not isinstance(message, (bytearray, memoryview)):
                raise TypeError(f"a message is a str or bytes-like, not {type(message).__name__}")
            message = bytes(message)
        if (rest := self.begin_to_send(message)) is not None:
            await rest

    async def ping(self, payload: str | bytes | None = None) -> float:
        """
        Send a ping and wait for its pong; return the time between them in seconds.

        ``payload`` is at most 125 bytes (``str``: in UTF-8), by default four random ones. Waits before, too, while
        more than ``write_high_water`` bytes wait to be taken by the peer. Raises
        `ConnectionClosed` if the connection is not open or closes before the pong, ``ValueError`` for a payload
        too long or one that a ping still under way has. Cancelling it leaves the connection as it is.
        """
        await pace()
        if payload is None:
            payload = self._pings.fresh_payload()
        elif isinstance(payload, str):
            payload = payload.encode()
        if len(payload) > MAX_PING_PAYLOAD:
            raise ValueError(f"ping payload is {len(payload)} bytes, {MAX_PING_PAYLOAD} at most")
        while self._protocol.state is _OPEN and self._transport.congested:
            await self._room_to_send()
        if payload in self._pings:
            raise ValueError(f"a ping with the payload {payload!r} is still waiting for its pong")
        self._transport.write(self._protocol.send_ping(payload))
        ping = self._pings.sent(payload)
        try:
            await self._changes.until(lambda: ping.answered_at is not None or self._over)
        finally:
            self._pings.forget(ping)
        if ping.answered_at is None:
            raise self._protocol.closed_error()
        return ping.answered_at - ping.sent_at

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """
        Close the connection: send a close frame, wait for the peer's, and for the end of the TCP connection.

        What was sent before goes first. Then the peer has ``close_timeout`` seconds for its part, and before that
        as long between one thing that it takes and the next; else the connection is dropped. Without effect on a
        connection that is already closed; one that is closing is only waited for. Cancelling it leaves the closing
        handshake to go on. Raises ``ValueError`` for a code or reason that may not be sent.
        """
        close = check_close(code, reason)
        await pace()
        self.start_closing(close)
        await self.until_closed()

    # What the server, the client and the ASGI adapter call.

    @property
    def state(self) -> State:
        """Whether the connection is open, closing or closed."""
        return self._protocol.state

    @property
    def ending(self) -> Ending | None:
        """What ended the open state, None while it lasts."""
        return self._protocol.ending

    @property
    def traffic(self) -> Traffic:
        """What the connection has carried so far."""
        inbox, protocol = self.inbox, self._protocol
        return Traffic(
            inbox.messages_received, inbox.bytes_received, protocol.messages_sent, protocol.payload_sent
        )

    @property
    def close_seen(self) -> Close:
        """The code and reason with which the connection ended or is ending."""
        return self._protocol.close

    def begin_to_send(self, message: str | bytes) -> Awaitable[None] | None:
        """Do as `send` does, as far as nothing has to be waited for; return what is to be awaited for the rest."""
        protocol, transport = self._protocol, self._transport
        if transport.congested or self._compressing or len(message) > protocol.steps_above:
            return self._send_in_time(message)
        self._send(message)
        return self._room_to_send() if transport.congested else None

    def start_closing(self, close: Close) -> None:
        """Send a close frame, without effect if the connection is not open, and go on to close it."""
        self._protocol.send_close(close)
        self.after_protocol()

    async def until_closed(self) -> None:
        """Wait until the TCP connection is closed. Cancelling it leaves the closing handshake to go on."""
        await self._changes.until(lambda: self._transport.lost)

    # What the keepalive calls.

    @property
    def listening(self) -> bool:
        return self.inbox.listening

    @property
    def listening_since(self) -> float:
        return self.inbox.listening_since

    def send_ping(self) -> SentPing | None:
        if self._protocol.state is not _OPEN:
            return None
        self._protocol.forget_if_idle()
        payload = self._pings.fresh_payload()
        self._transport.write(self._protocol.send_ping(payload))
        return self._pings.sent(payload)

    def repeat_ping(self, ping: SentPing) -> None:
        # A buffer that is full is not idle.
        if self._protocol.state is _OPEN and not self._transport.congested:
            self._transport.write(self._protocol.send_ping(ping.payload))
            ping.sent_at = trio.current_time()

    def ping_timed_out(self) -> None:
        self._protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout", Ending.LOST)
        self.after_protocol()

    # What the transport calls, beside `data_received`, which is the inbox's.

    def eof_received(self) -> None:
        """Take note of the peer's end: without a close frame before it, the connection is lost."""
        self.inbox.end_received()

    def writable_again(self) -> None:
        """Send the pong that had to wait for room in the write buffer."""
        if self._pong_owed is not None and self._protocol.state is _OPEN:
            self._transport.write(self._protocol.send_pong(self._pong_owed))
        self._pong_owed = None
        self._changes.announce()

    def connection_lost(self) -> None:
        """Take note that the transport is gone, and what it has brought before, however full the inbox is."""
        try:
            self.inbox.connection_lost()
        finally:
            self.after_protocol()

    # What the inbox calls.

    def control_received(self, event: Ping | Pong) -> None:
        """Answer a ping, or take note of a pong."""
        if isinstance(event, Ping):
            self._answer_ping(event.payload)
        elif self._pings.answered(event.payload):
            self._changes.announce()

    def after_protocol(self) -> None:
        """Do what follows from a call to the protocol that may have ended the open state."""
        self.inbox.announce()
        self._changes.announce()
        if data := self._protocol.data_to_send():
            self._transport.write(data)
        if self._protocol.state is not _OPEN:
            self._leave_open()
        elif self._protocol.violation is not None and not self._failing:
            self._failing = True
            self._transport.call_at(trio.current_time() + self._config.close_timeout, self.give_up)

    def give_up(self) -> None:
        """Fail the connection for its violation, whether what came before it has been answered or not."""
        self._protocol.give_up()
        self.after_protocol()

    # How.

    async def _closed_error(self) -> ConnectionClosed:
        """Wait until the connection is closed; return what an operation on it raises."""
        await self._changes.until(lambda: self._over)
        return self._protocol.closed_error()

    @property
    def _over(self) -> bool:
        """Whether the connection is closed; it is, too, where a bug of ours kept that from being known."""
        return self._protocol.state is State.CLOSED or self._transport.lost

    async def _send_in_time(self, message: str | bytes) -> None:
        # Before as well as after: one message each of many who gave up on waiting would be too much.
        while (self._compressing or self._transport.congested) and self._protocol.state is _OPEN:
            await self._changes.until(lambda: not self._compressing)
            await self._room_to_send()
        if len(message) > self._protocol.steps_above and self._protocol.state is _OPEN:
            await self._compress_ahead(message)
        self._send(message)
        if self._transport.congested:
            await self._room_to_send()

    def _send(self, message: str | bytes) -> None:
        size = len(message)
        if size > JOINED_SIZE and (size > SHARED_SIZE or isinstance(message, bytes)):
            header, frame = self._protocol.send_large_message(message)
            self._transport.write_soon(header)
        else:
            frame = self._protocol.send_message(message)
        if self.inbox.messages is not None:
            self._transport.write_soon(frame)
        else:
            self._transport.write(frame)

    async def _compress_ahead(self, message: str | bytes) -> None:
        """
        Compress a large message with a checkpoint at each step; other senders wait meanwhile.

        Not in a thread: that cannot be cancelled, and would go on for a connection that is gone.
        """
        self._compressing = True
        try:
            with closing(self._protocol.compress_ahead(message)) as steps:
                for _ in steps:
                    await trio.lowlevel.checkpoint()
        finally:
            self._compressing = False
            self._changes.announce()

    async def _room_to_send(self) -> None:
        await self._changes.until(lambda: not self._transport.congested or self._protocol.state is not _OPEN)
        if self._over:
            raise self._protocol.closed_error()

    # Closing.

    def _leave_open(self) -> None:
        if self._closing is None:
            self._keepalive.stop()
            self._closing = Closing(self._transport, self._protocol, self._config.close_timeout)
        self._closing.go_on(peer_ended=self.inbox.peer_ended)
        self.inbox.close()

    def _answer_ping(self, payload: bytes) -> None:
        # RFC 6455 section 5.5.3 allows to answer only the latest of several pings: what a peer that does not
        # read can make us buffer is one pong.
        if self._transport.congested:
            self._pong_owed = payload
        elif self._protocol.state is _OPEN:
            # Those to all pings of one read leave together: over TLS, each would be a record of its own.
            write = self._transport.write_soon if self._protocol.unread else self._transport.write
            write(self._protocol.send_pong(payload))


def _in_iteration(error: ConnectionClosed) -> Exception:
    """Return what an iteration ends with: had that a name where it is raised, each would keep the other alive."""
    return StopAsyncIteration() if isinstance(error, ConnectionClosedOK) else error
