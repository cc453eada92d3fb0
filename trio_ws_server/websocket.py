"""
The Trio side of a WebSocket connection: messages in and out, flow control, the closing handshake.

What arrives is taken from the transport at once and put into the inbox, where tasks that receive find it; a full
inbox pauses the transport. What is sent goes to the transport's buffer; a full buffer makes tasks that send wait.
While messages are still unread, more is about to be sent: frames wait for each other then, to leave together. No
task is needed but those of the application. Open, closing, closed is decided in `protocol.websocket`; here is only
what follows from it, and in `closing` what follows for the TCP connection.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import trio

from trio_ws_server.close_codes import CloseCode, check_close
from trio_ws_server.closing import Closing
from trio_ws_server.errors import ConnectionClosedOK
from trio_ws_server.keepalive import Keepalive, Pings, SentPing
from trio_ws_server.protocol.frames import SHARED_SIZE, payload_size
from trio_ws_server.protocol.websocket import Ending, Internal, Ping, Pong, State
from trio_ws_server.rate_limit import RateLimit
from trio_ws_server.scheduling import Changes, pace

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

EVENTS_PER_TURN = 64
"""Frames that are taken before other tasks get their turn: one read can bring 40,000."""

EVENTS_AT_THE_END = 4096
"""
Frames that are taken, into an inbox however full, when the connection is lost and no other turn comes.

Inflated, they may be as large as one message, and one more.
"""

PAYLOAD_PER_TURN = 256 * 1024
"""Bytes of payload after which a turn is over too: one read of compressed messages can inflate to 64 MiB."""

PAYLOAD_PER_CALL = 64 * 1024
"""Bytes of payload that a call which makes room for them may take on its way, and not have to give way for it."""

# Members of enums, looked up once.
_OPEN, _INTERNAL = State.OPEN, Internal.EVENT


@dataclass(slots=True)
class Traffic:
    """Data messages that a connection has seen, and the bytes of their payloads (text in UTF-8)."""

    messages_received: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    bytes_sent: int = 0


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
        self.traffic = Traffic()
        self._transport = transport
        self._protocol = protocol
        self._config = config
        self._rate_limit = None if config.limit_message_rate is None else RateLimit(config.limit_message_rate)
        self._inbox: deque[tuple[str | bytes, int]] | None = None
        """None where it is empty, as it is most of the time: a deque takes 800 bytes."""
        self._inbox_bytes = 0
        self._arrivals = Changes()
        """Of messages, or of the end of them."""
        self._changes = Changes()
        """Of all else."""
        self._peer_eof = False
        self._closing: Closing | None = None
        self._failing = False
        self._reading_paused = False
        self._paused_at = 0.0
        self._catching_up = False
        self._compressing = False
        self._owes_a_turn = False
        """Whether the task that receives next is to give way to others first."""
        self._pings = Pings()
        self._pong_owed: bytes | None = None
        self.listening_since = trio.current_time()
        self._keepalive = Keepalive(self, transport, config)
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
        await self.arrival()
        while (message := self.take_message()) is None and self.receiving:
            await self.arrival()
        if message is None:
            raise await self._closed_error()
        return message

    def __aiter__(self) -> Self:
        """Iterate over the messages still to come."""
        return self

    async def __anext__(self) -> str | bytes:
        """Do as `recv` does, but end the iteration where that raises `ConnectionClosedOK`."""
        await self.arrival()
        while (message := self.take_message()) is None and self.receiving:
            await self.arrival()
        if message is None:
            error = await self._closed_error()
            raise StopAsyncIteration if isinstance(error, ConnectionClosedOK) else error
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

    @property
    def receiving(self) -> bool:
        """Whether a message may still come that is not in the inbox."""
        return self._protocol.receiving and not self._transport.lost

    def arrival(self) -> Awaitable[object]:
        """
        Wait, when awaited at once, until a message is there or none comes any more.

        Others may take it first, so this stands in a loop. A coroutine that held that loop for all who receive
        would take 3 % of what echoing a small message does.
        """
        if self._inbox is None and self.receiving:
            self._transport.push()
            return self._arrivals.next()
        # Who had to wait has given way to others by that.
        return trio.lowlevel.checkpoint() if self._owes_a_turn else pace()  # noqa: ASYNC105 (as for `Changes.next`)

    def take_message(self) -> str | bytes | None:
        """Return the next message; None where there is none yet, or, no longer `receiving`, none any more."""
        self._owes_a_turn = False
        inbox = self._inbox
        if inbox is None:
            if not self.receiving:
                # One task that receives has answered what came before when it comes for more.
                self._give_up()
            return None
        message, size = inbox.popleft()
        if not inbox:
            self._inbox = None
        self._inbox_bytes -= size
        if self._reading_paused and not self._inbox_full:
            before = self._protocol.payload_received
            self._resume_reading()
            self._owes_a_turn = self._protocol.payload_received - before > PAYLOAD_PER_CALL
        return message

    def start_closing(self, close: Close) -> None:
        """Send a close frame, without effect if the connection is not open, and go on to close it."""
        self._protocol.send_close(close)
        self._after_protocol()

    async def until_closed(self) -> None:
        """Wait until the TCP connection is closed. Cancelling it leaves the closing handshake to go on."""
        await self._changes.until(lambda: self._transport.lost)

    # What the keepalive calls.

    @property
    def listening(self) -> bool:
        return not self._reading_paused and not self._catching_up

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
        self._after_protocol()

    # What the transport calls.

    def data_received(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer."""
        self._protocol.receive_data(data)
        try:
            self._take()
        finally:
            # Whatever goes wrong: what the memory holds next may be another connection's.
            if isinstance(data, memoryview):
                self._protocol.keep_data()

    def eof_received(self) -> None:
        """Take note of the peer's end: without a close frame before it, the connection is lost."""
        self._peer_eof = True
        self._take()

    def writable_again(self) -> None:
        """Send the pong that had to wait for room in the write buffer."""
        if self._pong_owed is not None and self._protocol.state is _OPEN:
            self._transport.write(self._protocol.send_pong(self._pong_owed))
        self._pong_owed = None
        self._changes.announce()

    def connection_lost(self) -> None:
        """Take note that the transport is gone, and what it has brought before, however full the inbox is."""
        self._peer_eof = True
        try:
            self._take_events(EVENTS_AT_THE_END, self._config.max_message_size, overfill=True)
            self._protocol.receive_eof()
        finally:
            self._after_protocol()

    # How.

    async def _closed_error(self) -> ConnectionClosed:
        """Wait until the connection is closed; return what an operation on it raises."""
        await self._changes.until(lambda: self._over)
        return self._protocol.closed_error()

    @property
    def _over(self) -> bool:
        """Whether the connection is closed; it is, too, where a bug of ours kept that from being known."""
        return self._protocol.state is State.CLOSED or self._transport.lost

    def _take(self) -> bool:
        """
        Take what the peer's bytes make of messages, as far as the inbox has room, and for one turn at most.

        The rest waits in the protocol until reading is resumed or the next turn comes, the peer's end behind it.
        Returns whether there is to be one.
        """
        caught_up = self._take_events(EVENTS_PER_TURN, PAYLOAD_PER_TURN)
        if caught_up and self._peer_eof:
            self._protocol.receive_eof()
        behind = not caught_up and not self._reading_paused
        if behind and not self._catching_up:
            self._catching_up = True
            self._transport.pause_reading()
            self._transport.start_soon(self._catch_up)
        if not self._protocol.receiving:
            self._after_protocol()
        return behind

    def _take_events(self, most: int, payload: int, *, overfill: bool = False) -> bool:
        """Take so many events at most, until they have had so much payload; return whether there are no more."""
        protocol = self._protocol
        before = protocol.payload_received
        enough = before + payload
        if self._rate_limit is None and not self._reading_paused:
            config, inbox = self._config, self._inbox
            room = config.inbox_messages if inbox is None else config.inbox_messages - len(inbox)
            messages = protocol.next_messages(
                min(most, room), min(payload, config.inbox_bytes - self._inbox_bytes)
            )
            if messages:
                self._deliver(messages, protocol.payload_received - before)
                most -= len(messages)
                if not protocol.unread or protocol.payload_received >= enough:
                    return not protocol.unread and not self._reading_paused
        for _ in range(most):
            if self._reading_paused and not overfill:
                return False
            event = protocol.next_event()
            if event is None:
                return True
            if event is not _INTERNAL:
                self._take_event(event)
            if protocol.payload_received >= enough:
                return not protocol.unread
        return False

    def _take_event(self, event: str | bytes | Ping | Pong) -> None:
        if self._rate_limit is not None and not self._rate_limit.allows(trio.current_time()):
            reason = f"more than {self._config.limit_message_rate} messages a second"
            self._protocol.fail(CloseCode.POLICY_VIOLATION, reason, Ending.PROTOCOL_ERROR)
        elif isinstance(event, (str, bytes)):
            # All that has come since the message before belongs to this one.
            size = self._protocol.payload_received - self.traffic.bytes_received
            self._deliver([(event, size)], size)
        elif isinstance(event, Ping):
            self._answer_ping(event.payload)
        elif self._pings.answered(event.payload):
            self._changes.announce()

    async def _catch_up(self) -> None:
        """Take what is there turn by turn, and nothing more from the network meanwhile."""
        while True:
            await trio.lowlevel.checkpoint()
            if not self._take():
                break
        self._catching_up = False
        self.listening_since = trio.current_time()
        if not self._reading_paused:
            self._transport.resume_reading()
        self._changes.announce()

    @property
    def _inbox_full(self) -> bool:
        return self._inbox is not None and (
            self._inbox_bytes >= self._config.inbox_bytes or len(self._inbox) >= self._config.inbox_messages
        )

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
        if len(message) > SHARED_SIZE:
            header, frame = self._protocol.send_large_message(message)
            self._transport.write_soon(header)
        else:
            frame = self._protocol.send_message(message)
        if self._inbox:
            self._transport.write_soon(frame)
        else:
            self._transport.write(frame)
        traffic = self.traffic
        traffic.messages_sent += 1
        traffic.bytes_sent += payload_size(message)

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

    def _deliver(self, messages: list[tuple[str | bytes, int]], size: int) -> None:
        """Put messages into the inbox, with their sizes in bytes, of which this is the sum."""
        traffic = self.traffic
        traffic.messages_received += len(messages)
        traffic.bytes_received += size
        if self._inbox is None:
            self._inbox = deque(messages)
        else:
            self._inbox.extend(messages)
        self._inbox_bytes += size
        if self._inbox_full and not self._reading_paused:
            self._reading_paused = True
            self._paused_at = trio.current_time()
            self._transport.pause_reading()
        self._arrivals.announce()

    def _resume_reading(self) -> None:
        self._reading_paused = False
        self.listening_since = trio.current_time()
        if self._rate_limit is not None:
            self._rate_limit.excuse(self.listening_since - self._paused_at)
        self._take()
        if not self._reading_paused and not self._catching_up:
            self._transport.resume_reading()

    # Closing.

    def _after_protocol(self) -> None:
        """Do what follows from a call to the protocol that may have ended the open state."""
        self._arrivals.announce()
        self._changes.announce()
        if data := self._protocol.data_to_send():
            self._transport.write(data)
        if self._protocol.state is not _OPEN:
            self._leave_open()
        elif self._protocol.violation is not None and not self._failing:
            self._failing = True
            self._transport.call_at(trio.current_time() + self._config.close_timeout, self._give_up)

    def _leave_open(self) -> None:
        if self._closing is None:
            self._keepalive.stop()
            self._closing = Closing(self._transport, self._protocol, self._config.close_timeout)
        self._closing.go_on(peer_ended=self._peer_eof)
        if self._reading_paused:
            # Nothing more goes into the inbox; the peer's close frame must be seen.
            self._resume_reading()

    def _give_up(self) -> None:
        """Fail the connection for its violation, whether what came before it has been answered or not."""
        self._protocol.give_up()
        self._after_protocol()

    def _answer_ping(self, payload: bytes) -> None:
        # RFC 6455 section 5.5.3 allows to answer only the latest of several pings: what a peer that does not
        # read can make us buffer is one pong.
        if self._transport.congested:
            self._pong_owed = payload
        elif self._protocol.state is _OPEN:
            self._transport.write(self._protocol.send_pong(payload))
