"""
The WebSocket state machine: open, closing, closed, decided here and nowhere else.

It wraps `wsproto.Connection`, which parses and frames, and adds what that leaves to its user:

- A parse error ends the connection with the close frame that RFC 6455 section 7.1.7 asks for; nothing that the
  peer sends raises. wsproto reports it as if the peer had sent a close frame, its own state unchanged.
- A frame whose declared length would make its message too large is refused before its payload is buffered; so
  is one fragment too many.
- Pieces of frames are put together to messages.

State transitions (anything not in the table changes nothing)::

    OPEN     we send a close frame     -> CLOSING
    OPEN     the peer's arrives        -> CLOSED, and it is answered
    OPEN     the connection fails      -> CLOSED, and the peer is told why
    OPEN     the connection is lost    -> CLOSED
    CLOSING  the peer's arrives        -> CLOSED
    CLOSING  the connection fails      -> CLOSED
    CLOSING  the connection is lost    -> CLOSED
"""

from __future__ import annotations

from enum import Enum
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

import wsproto.events as ws
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, Opcode, RsvBits

from trio_ws_server.close_codes import Close, CloseCode, shorten
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from wsproto.frame_protocol import FrameDecoder, FrameProtocol

    from trio_ws_server.config import Config
    from trio_ws_server.protocol.deflate import Deflate


COMPRESSED_PIECE_SIZE = 4096
"""Bytes that are inflated at a time, to 4 MiB at most, which takes 20 ms or so."""


class State(Enum):
    """RFC 6455 sections 7.1.3 and 7.1.4."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Ending(Enum):
    """What made a connection leave the open state."""

    LOCAL_CLOSE = "us"
    PEER_CLOSE = "peer"
    PROTOCOL_ERROR = "protocol error"
    LOST = "connection lost"


_NEXT_STATE = {
    (State.OPEN, Ending.LOCAL_CLOSE): State.CLOSING,
    (State.OPEN, Ending.PEER_CLOSE): State.CLOSED,
    (State.OPEN, Ending.PROTOCOL_ERROR): State.CLOSED,
    (State.OPEN, Ending.LOST): State.CLOSED,
    (State.CLOSING, Ending.PEER_CLOSE): State.CLOSED,
    (State.CLOSING, Ending.PROTOCOL_ERROR): State.CLOSED,
    (State.CLOSING, Ending.LOST): State.CLOSED,
}

_HARMLESS_CODES = {CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD}


class Ping(NamedTuple):
    """The peer wants a pong with the same payload."""

    payload: bytes


class Pong(NamedTuple):
    """The peer answers a ping."""

    payload: bytes


class Internal(Enum):
    """What a frame brings that completes nothing: a fragment, a close frame, or one that comes too late."""

    EVENT = "event"


class WebSocketProtocol:
    """One end of a WebSocket connection, from the end of its opening handshake on."""

    def __init__(self, config: Config, *, client: bool, deflate: Deflate | None = None) -> None:
        self.client = client
        self.state = State.OPEN
        self.ending: Ending | None = None
        self.close_received: Close | None = None
        self.close_sent: Close | None = None
        self.violation: Close | None = None
        """What the connection is to fail with, by `give_up`, once the messages before it have been handled."""
        self._message_given = False
        self._config = config
        self._bad_gateway = _BadGateway()
        self._deflate = deflate if deflate is not None and deflate.enabled() else None
        extensions: list[Extension] = [_MessageLimits(config), self._bad_gateway]
        if self._deflate is not None:
            extensions.append(self._deflate)
        self._connection = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER, extensions)
        self._pieces: Any = None
        """What has come of an incomplete message, in a StringIO or BytesIO; None between messages."""
        self.payload_received = 0
        """Bytes of messages, inflated, and characters of text: what the work of `next_event` is measured by."""
        self._unparsed = b""
        self._events: Iterator[ws.Event] = iter(())
        self._outgoing = b""

    # What the peer sends.

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer. They are kept as they came until `next_event` gets to them."""
        if self.state is not State.CLOSED and self.violation is None:
            self._unparsed += data

    def next_event(self) -> str | bytes | Ping | Pong | Internal | None:
        """
        Return what the next frame brings: a message, ping or pong; None where more bytes are needed first.

        One at a time, because a few bytes can be many frames, or, of compressed ones, large messages. Messages and
        pings received once a close frame was sent are dropped. Never raises for what the peer sent: see `state`,
        `violation` and `data_to_send` after it.
        """
        if self.state is State.CLOSED or self.violation is not None:
            return None
        match self._next_wsproto_event():
            case None:
                return None
            case ws.TextMessage() | ws.BytesMessage() as piece:
                self.payload_received += len(piece.data)
                message = self._assemble(piece)
                if message is not None and self.state is State.OPEN:
                    self._message_given = True
                    return message
            case ws.Ping(payload=payload):
                if self.state is State.OPEN:
                    return Ping(bytes(payload))
            case ws.Pong(payload=payload):
                return Pong(bytes(payload))
            case event:
                assert isinstance(event, ws.CloseConnection)
                self._close_received_or_failed(event.code, event.reason or "")
        return Internal.EVENT

    def _next_wsproto_event(self) -> ws.Event | None:
        event = next(self._events, None)
        while event is None and self._unparsed:
            size = len(self._unparsed) if self._deflate is None else COMPRESSED_PIECE_SIZE
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            self._connection.receive_data(piece)
            self._events = self._connection.events()
            event = next(self._events, None)
        return event

    def receive_eof(self) -> None:
        """Take note that nothing more will come from the peer, or that the connection is gone."""
        self.give_up()
        self._end(Ending.LOST)

    def give_up(self) -> None:
        """Fail the connection because of the `violation`; without effect if there is none."""
        violation, self.violation = self.violation, None
        if violation is not None:
            self.fail(violation.code, violation.reason, Ending.PROTOCOL_ERROR)

    def _close_received_or_failed(self, code: int, reason: str) -> None:
        if self._connection.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            self.violation = Close(int(code), self._what_was_wrong(code, reason))
            if not (self._message_given and self.state is State.OPEN):
                self.give_up()
            return
        code = CloseCode.BAD_GATEWAY if self._bad_gateway.seen else code
        self.close_received = Close(int(code), reason)
        if self.state is State.OPEN:
            # RFC 6455 section 5.5.1: answer with the status code received.
            self._queue_close(Close(int(code)))
        self._end(Ending.PEER_CLOSE)

    def _what_was_wrong(self, code: int, reason: str) -> str:
        """Return wsproto's reason, unless it is none, or counts bytes from where the network happened to cut."""
        match code:
            case CloseCode.MESSAGE_TOO_BIG:
                return f"message is larger than {self._config.max_message_size} bytes"
            case CloseCode.POLICY_VIOLATION:
                return f"message has more than {self._config.max_message_fragments} fragments"
            case CloseCode.INVALID_DATA if self._deflate is None:
                return "text is not valid UTF-8"
            case CloseCode.INVALID_DATA:
                return "text is not valid UTF-8, or compressed data is damaged"
        return reason

    def _assemble(self, event: ws.TextMessage | ws.BytesMessage) -> str | bytes | None:
        """Return the message that the piece completes, if it does."""
        if self._pieces is None:
            if event.message_finished:
                return event.data if isinstance(event, ws.TextMessage) else bytes(event.data)
            self._pieces = StringIO() if isinstance(event, ws.TextMessage) else BytesIO()
        self._pieces.write(event.data)
        if not event.message_finished:
            return None
        message: str | bytes = self._pieces.getvalue()
        self._pieces = None
        return message

    # What we send.

    def takes_long(self, message: str | bytes) -> bool:
        """Whether `send_message` would take long, and `compress_ahead` is to be gone through before."""
        return (
            self.state is State.OPEN and self._deflate is not None and self._deflate.takes_long(len(message))
        )

    def compress_ahead(self, message: str | bytes) -> Generator[None]:
        """
        Compress in steps, between which other connections can have their turn, what `send_message` sends next.

        Closed before its end, it is as if it had not begun.
        """
        assert self._deflate is not None
        return self._deflate.compress_ahead(message.encode() if isinstance(message, str) else message)

    def send_message(self, message: str | bytes) -> bytes:
        """Return the bytes of a message. Raises `ConnectionClosed` if the connection is not open."""
        self._check_open()
        event: ws.Event = (
            ws.TextMessage(data=message) if isinstance(message, str) else ws.BytesMessage(data=message)
        )
        return self._connection.send(event)

    def send_ping(self, payload: bytes) -> bytes:
        """Return the bytes of a ping of at most 125 bytes. Raises `ConnectionClosed` as `send_message` does."""
        self._check_open()
        return self._connection.send(ws.Ping(payload=payload))

    def send_pong(self, payload: bytes) -> bytes:
        """Return the bytes of a pong of at most 125 bytes. Raises `ConnectionClosed` as `send_message` does."""
        self._check_open()
        return self._connection.send(ws.Pong(payload=payload))

    def send_close(self, close: Close) -> None:
        """Start the closing handshake; without effect if the connection is not open."""
        if self.state is State.OPEN:
            self._queue_close(close)
            self._end(Ending.LOCAL_CLOSE)
            self.give_up()

    def fail(self, code: int, reason: str, ending: Ending) -> None:
        """Tell the peer, if a close frame can still be sent, and be done with it (RFC 6455 section 7.1.7)."""
        if self.state is State.OPEN:
            self._queue_close(Close(int(code), shorten(reason)))
        self._end(ending)

    def data_to_send(self) -> bytes:
        """Return the bytes of a close frame, once, when there is one to send."""
        data, self._outgoing = self._outgoing, b""
        return data

    def _queue_close(self, close: Close) -> None:
        # wsproto knows an empty close frame by the identity of this code.
        code = CloseReason.NO_STATUS_RCVD if close.code == CloseCode.NO_STATUS_RCVD else close.code
        self._outgoing += self._connection.send(ws.CloseConnection(code=code, reason=close.reason or None))
        self.close_sent = close

    def _check_open(self) -> None:
        if self.state is not State.OPEN:
            raise self.closed_error()

    def _end(self, ending: Ending) -> None:
        state = _NEXT_STATE.get((self.state, ending))
        if state is None:
            return
        self.state = state
        if state is State.CLOSED:
            self._unparsed = b""
        if self.ending is None:
            self.ending = ending
        self._pieces = None

    # How it ended.

    @property
    def close(self) -> Close:
        """
        The code and reason with which the connection ended or is ending.

        The peer's where it sent a close frame (1005 for an empty one); else ours, if it was we who ended the
        connection; else 1006 (RFC 6455 section 7.1.5).
        """
        if self.close_received is not None:
            return self.close_received
        if self.close_sent is not None and self.ending is not Ending.LOST:
            return self.close_sent
        return Close(CloseCode.ABNORMAL_CLOSURE)

    def closed_error(self) -> ConnectionClosed:
        """Return the exception for an operation on a connection that is not open."""
        codes = {close.code for close in (self.close_received, self.close_sent) if close is not None}
        if self.close_received is not None and codes <= _HARMLESS_CODES:
            return ConnectionClosedOK(self.close_received, self.close_sent)
        return ConnectionClosedError(self.close_received, self.close_sent)


class _FrameHook(Extension):
    """Sees each frame that arrives before wsproto does. No extension of the wire: nothing is negotiated."""

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        raise NotImplementedError


class _MessageLimits(_FrameHook):
    """
    Refuses a frame by its header where it would make a message larger than the limit, or of too many fragments.

    wsproto calls `frame_inbound_header` again for the same frame when it lacks the masking key, so a frame is
    only counted when it is complete.
    """

    name = "trio-ws-server-message-limits"

    def __init__(self, config: Config) -> None:
        self._max_size = config.max_message_size
        self._max_fragments = config.max_message_fragments
        self._before = 0
        self._fragments = 0
        self._frame = 0
        self._is_control = False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._is_control = opcode.iscontrol()
        if not self._is_control:
            self._frame = payload_length
            if self._before + self._frame > self._max_size:
                return CloseReason.MESSAGE_TOO_BIG
            if self._fragments == self._max_fragments:
                return CloseReason.POLICY_VIOLATION
        return RsvBits(False, False, False)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> None:
        if not self._is_control:
            self._before = 0 if fin else self._before + self._frame
            self._fragments = 0 if fin else self._fragments + 1


class _BadGateway(_FrameHook):
    """
    Lets close code 1014 pass, which is registered with IANA (bad gateway) but reserved for wsproto.

    wsproto is shown its neighbour 1013 instead, which is as good a code; `seen` tells the two apart.
    """

    name = "trio-ws-server-bad-gateway"
    _CODE = CloseCode.BAD_GATEWAY.to_bytes(2, "big")
    _SHOWN = CloseCode.TRY_AGAIN_LATER.to_bytes(2, "big")

    def __init__(self) -> None:
        self.seen = False
        self._is_close = False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._is_close = opcode is Opcode.CLOSE
        return RsvBits(False, False, False)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        # The payload of a control frame comes in one piece.
        self.seen = self._is_close and data.startswith(self._CODE)
        return self._SHOWN + data[2:] if self.seen else data
