"""
The WebSocket state machine: open, closing, closed, decided here and nowhere else.

Frames that are whole messages, pings, pongs and close frames are read and written here (`protocol.frames`), all
others, and whatever is wrong, are read by wsproto (`protocol.wsproto_frames`), and what comes is the same as if
wsproto read them all. Beside that:

- What is wrong ends the connection with the close frame that RFC 6455 section 7.1.7 asks for; nothing that the peer
  sends raises.
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

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import wsproto.events as ws

from trio_ws_server.close_codes import Close, CloseCode, shorten
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.protocol import frames
from trio_ws_server.protocol.binary import BinaryPieces
from trio_ws_server.protocol.frames import (
    BINARY,
    CLOSE,
    COMPRESSED,
    INFLATED_AT_ONCE,
    MASKED,
    PING,
    PLAIN,
    PONG,
    TEXT,
    close_payload,
    encode,
    encode_in_two,
    encode_shared,
    locate,
    payload_size,
    read_close,
    read_messages,
    simple_kinds,
)
from trio_ws_server.protocol.payload import Payload
from trio_ws_server.protocol.text import TextPieces, decoded
from trio_ws_server.protocol.violation import Violation
from trio_ws_server.protocol.wsproto_frames import WsprotoFrames

if TYPE_CHECKING:
    from collections.abc import Generator

    from trio_ws_server.config import Config
    from trio_ws_server.protocol.deflate import Deflate


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

# Python 3.11 takes 80 ns to find a member by its class, 10 times as long as by a name.
_OPEN, _CLOSED = State.OPEN, State.CLOSED

_MASKED_TEXT = TEXT | MASKED

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

    __slots__ = (
        "_config",
        "_deflate",
        "_kinds",
        "_left",
        "_message_given",
        "_outgoing",
        "_payload",
        "_pieces",
        "_start",
        "_wsproto",
        "client",
        "close_received",
        "close_sent",
        "ending",
        "messages_sent",
        "payload_received",
        "payload_sent",
        "receiving",
        "state",
        "steps_above",
        "unread",
        "violation",
    )

    def __init__(self, config: Config, *, client: bool, deflate: Deflate | None = None) -> None:
        self.client = client
        self.state = State.OPEN
        self.ending: Ending | None = None
        self.close_received: Close | None = None
        self.close_sent: Close | None = None
        self.violation: Close | None = None
        """What the connection is to fail with, by `give_up`, once the messages before it have been handled."""
        self.receiving = True
        """Whether a message may still come: the connection is open, and nothing is wrong with it."""
        self.payload_received = 0
        """Bytes of messages, inflated, that have been read so far: what that work is measured by."""
        self.messages_sent = 0
        self.payload_sent = 0
        """Bytes of them, before they were compressed."""
        self._config = config
        self._deflate = deflate if deflate is not None and deflate.enabled() else None
        self.steps_above = math.inf if self._deflate is None else self._deflate.compressor.steps_above
        """A message of more characters or bytes is to go through `compress_ahead` before `send_message`."""
        self._message_given = False
        self.unread: bytes | memoryview = b""
        """What has come and has not been read, from some place on; empty if that is nothing."""
        self._start = 0
        """That place."""
        self._kinds = self._simple_kinds()
        """The kinds of frames that are not shown to wsproto."""
        self._left = 0
        """Bytes still to be read of a frame that has been begun: by `_payload`, or by wsproto if that is None."""
        self._payload: Payload | None = None
        self._pieces: Any = None
        """What has come of an incomplete message, in TextPieces or BinaryPieces; None between messages."""
        self._wsproto: WsprotoFrames | None = None
        """Made when it is first needed."""
        self._outgoing = b""

    # What the peer sends.

    def receive_data(self, data: bytes | memoryview) -> None:
        """
        Take bytes from the peer. They are kept as they came until `next_event` gets to them.

        A ``memoryview`` must stay as it is until `keep_data`: a large frame is unmasked straight from it.
        """
        if self.state is not _CLOSED and self.violation is None:
            self.unread = bytes(self.unread[self._start :]) + data if self.unread else data
            self._start = 0

    def keep_data(self) -> None:
        """Copy what `next_event` has not got to, of a ``memoryview`` that was given to `receive_data`."""
        if isinstance(self.unread, memoryview):
            self._wait()
            self.unread = bytes(self.unread)

    def next_messages(self, most: int, most_bytes: int) -> tuple[list[tuple[str | bytes, int]], int]:
        """
        Return the next messages, as long as they are quick to read, each with its size in bytes, and all of these.

        That is what `next_event` would return one by one, but in a fraction of the time; it goes on from there. So
        many messages at most, and none once they have so many bytes.
        """
        # Messages come this way only to servers, and only between other messages.
        if self._left or _MASKED_TEXT not in self._kinds or self.state is not _OPEN:
            return [], 0
        data = self.unread
        inflate = None if self._deflate is None else self._deflate.decompressor.inflate_message
        messages, size, self._start, violation = read_messages(
            data, self._start, most, most_bytes, self._config.max_message_size, inflate
        )
        if messages:
            self._message_given = True
            self.payload_received += size
            if self._start == len(data):
                self.unread = b""
        if violation is not None:
            self._fail_after_messages(violation)
        return messages, size

    def next_event(self) -> str | bytes | Ping | Pong | Internal | None:
        """
        Return what the next frame brings: a message, ping or pong; None where more bytes are needed first.

        One at a time, because a few bytes can be many frames, or, of compressed ones, large messages. Messages and
        pings received once a close frame was sent are dropped. Never raises for what the peer sent: see `state`,
        `violation` and `data_to_send` after it.
        """
        data = self.unread
        if not data:
            return None
        try:
            if self._left:
                return self._read_on()
            start = self._start
            frame = locate(data, start)
            if frame is None:
                self._wait()
                return None
            kind, body, end = frame
            size = end - body
            if kind not in self._kinds or size > self._config.max_message_size:
                self._left = end - start
                return self._read_on()
            compressed = kind & COMPRESSED
            if end > len(data) or (compressed and size > INFLATED_AT_ONCE):
                return self._begin(kind, body, end)
            found = data[body:end]
            payload = frames.mask(found, data[body - 4 : body]) if kind & MASKED else bytes(found)
            self._go_to(end)
            if compressed:
                assert self._deflate is not None
                payload = self._deflate.decompressor.inflate_message(payload)
            first = kind & PLAIN
            if first == TEXT:
                return self._take_message(decoded(payload), len(payload))
            if first == BINARY:
                return self._take_message(payload, len(payload))
            if first == PING:
                return self._take_ping(payload)
            if first == PONG:
                return Pong(payload)
            close = read_close(payload)
            return self._take_from_wsproto(data[start:end]) if close is None else self._take_close(close)
        except UnicodeDecodeError:
            return self._fail_after_messages(Violation(CloseCode.INVALID_DATA))
        except Violation as violation:
            return self._fail_after_messages(violation)

    def _wait(self) -> None:
        """Keep what has come of a header, or of a control frame, and nothing else, until more comes."""
        self.unread = self.unread[self._start :]
        self._start = 0

    def _begin(self, kind: int, body: int, end: int) -> str | bytes | Ping | Pong | Internal | None:
        """Begin a frame that has not come as a whole, or that takes long to inflate."""
        first = kind & PLAIN
        if body > len(self.unread) or first in (CLOSE, PING, PONG):
            self._wait()
            return None
        self._payload = Payload(
            bytes(self.unread[body - 4 : body]) if kind & MASKED else b"",
            text=first == TEXT,
            decompressor=self._deflate.decompressor if self._deflate and kind & COMPRESSED else None,
        )
        self._go_to(body)
        self._left = end - body
        return self._read_on()

    def _read_on(self) -> str | bytes | Ping | Pong | Internal | None:
        """Read more of the frame that has been begun: a piece of it that doesn't take long."""
        in_steps = self._deflate is not None if self._payload is None else self._payload.compressed
        size = min(self._left, INFLATED_AT_ONCE) if in_steps else self._left
        piece = self.unread[self._start : self._start + size]
        self._left -= len(piece)
        self._go_to(self._start + len(piece))
        if self._payload is None:
            return self._take_from_wsproto(piece)
        finished = not self._left
        piece_of_message = self._payload.take(piece, last=finished)
        if finished:
            self._payload = None
        return self._take_piece(piece_of_message, finished)

    def _take_from_wsproto(self, piece: bytes | memoryview) -> str | bytes | Ping | Pong | Internal:
        if self._wsproto is None:
            self._wsproto = WsprotoFrames(self._config, client=self.client, deflate=self._deflate)
        event = self._wsproto.receive(bytes(piece))
        self._kinds = frozenset() if self._wsproto.within_message else self._simple_kinds()
        match event:
            case ws.TextMessage() | ws.BytesMessage():
                data = bytes(event.data) if isinstance(event, ws.BytesMessage) else event.data
                return self._take_piece(data, event.message_finished)
            case ws.Ping(payload=payload):
                return self._take_ping(payload)
            case ws.Pong(payload=payload):
                return Pong(payload)
            case Close():
                return self._take_close(event)
        return Internal.EVENT

    def _take_piece(self, piece: str | bytes, finished: bool) -> str | bytes | Internal:
        """Return the message that the piece completes, if it does."""
        size = payload_size(piece)
        if self._pieces is None and (finished or self.state is not _OPEN):
            return self._take_message(piece, size)
        self.payload_received += size
        if self._pieces is None:
            self._pieces = TextPieces() if isinstance(piece, str) else BinaryPieces()
        self._pieces.write(piece)
        if not finished:
            return Internal.EVENT
        message: str | bytes = self._pieces.getvalue()
        self._pieces = None
        self._message_given = True
        return message

    def _take_message(self, message: str | bytes, size: int) -> str | bytes | Internal:
        """Return a message that came in one piece, of so many bytes."""
        self.payload_received += size
        if self.state is not _OPEN:
            return Internal.EVENT
        self._message_given = True
        return message

    def _take_ping(self, payload: bytes) -> Ping | Internal:
        return Ping(payload) if self.state is _OPEN else Internal.EVENT

    def _take_close(self, close: Close) -> Internal:
        self.close_received = close
        if self.state is State.OPEN:
            # RFC 6455 section 5.5.1: answer with the status code received.
            self._queue_close(Close(close.code))
        self._end(Ending.PEER_CLOSE)
        return Internal.EVENT

    def _go_to(self, place: int) -> None:
        """Go on reading there. Once all that has come has been read, none of it is kept."""
        self._start = place
        if place == len(self.unread):
            self.unread = b""

    def _simple_kinds(self) -> frozenset[int]:
        return simple_kinds(masked=not self.client, compressed=self._deflate is not None)

    def _stop_reading(self) -> None:
        self.unread = b""
        self._left = 0
        self._payload = self._pieces = None

    def receive_eof(self) -> None:
        """Take note that nothing more will come from the peer, or that the connection is gone."""
        self.give_up()
        self._end(Ending.LOST)

    def give_up(self) -> None:
        """Fail the connection because of the `violation`; without effect if there is none."""
        violation, self.violation = self.violation, None
        if violation is not None:
            self.fail(violation.code, violation.reason, Ending.PROTOCOL_ERROR)

    def _fail_after_messages(self, violation: Violation) -> Internal:
        self._stop_reading()
        self.receiving = False
        self.violation = Close(violation.code, self._what_was_wrong(violation))
        if not (self._message_given and self.state is State.OPEN):
            self.give_up()
        return Internal.EVENT

    def _what_was_wrong(self, violation: Violation) -> str:
        """Return wsproto's reason, unless it is none, or counts bytes from where the network happened to cut."""
        match violation.code:
            case CloseCode.MESSAGE_TOO_BIG:
                return f"message is larger than {self._config.max_message_size} bytes"
            case CloseCode.POLICY_VIOLATION:
                return f"message has more than {self._config.max_message_fragments} fragments"
            case CloseCode.INVALID_DATA if self._deflate is None:
                return "text is not valid UTF-8"
            case CloseCode.INVALID_DATA:
                return "text is not valid UTF-8, or compressed data is damaged"
        return violation.reason

    # What we send.

    def compress_ahead(self, message: str | bytes) -> Generator[None]:
        """
        Compress in steps, between which other connections can have their turn, what `send_message` sends next.

        To be gone through to its end for a message above `steps_above`. Closed before its end, it is as if it had
        not begun.
        """
        assert self._deflate is not None
        return self._deflate.compressor.compress_ahead(
            message.encode() if isinstance(message, str) else message
        )

    def forget_if_idle(self) -> None:
        """Let go of what only compresses better, if no message was compressed since this was last called."""
        if self._deflate is not None:
            self._deflate.compressor.forget_if_idle()

    def send_message(self, message: str | bytes) -> bytes:
        """
        Return the bytes of a message: one frame.

        Raises `ConnectionClosed` if the connection is not open, ``UnicodeEncodeError`` for text that UTF-8 cannot
        hold.
        """
        if self.state is not _OPEN:
            raise self.closed_error()
        deflate = self._deflate
        if self.client or (deflate is not None and payload_size(message) >= deflate.compressor.min_size):
            header, payload = self._encode(message)
            return header + payload
        frame, size = encode_shared(message)
        self.messages_sent += 1
        self.payload_sent += size
        return frame

    def send_large_message(self, message: str | bytes) -> tuple[bytes, bytes]:
        """Do as `send_message` does, but return header and payload, not to copy that to behind the header."""
        if self.state is not _OPEN:
            raise self.closed_error()
        return self._encode(message)

    def _encode(self, message: str | bytes) -> tuple[bytes, bytes]:
        """Return header and payload of a message's frame, compressed if it is to be."""
        first, payload = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        self.messages_sent += 1
        self.payload_sent += len(payload)
        if self._deflate is not None and len(payload) >= self._deflate.compressor.min_size:
            first |= COMPRESSED
            payload = self._deflate.compressor.compress(payload)
        return encode_in_two(first, payload, masked=self.client)

    def send_ping(self, payload: bytes) -> bytes:
        """Return the bytes of a ping of at most 125 bytes. Raises `ConnectionClosed` as `send_message` does."""
        return self._send_control(PING, payload)

    def send_pong(self, payload: bytes) -> bytes:
        """Return the bytes of a pong of at most 125 bytes. Raises `ConnectionClosed` as `send_message` does."""
        return self._send_control(PONG, payload)

    def _send_control(self, first: int, payload: bytes) -> bytes:
        assert len(payload) <= 125, "RFC 6455 section 5.5"
        if self.state is not _OPEN:
            raise self.closed_error()
        return encode(first, payload, masked=self.client)

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
        self._outgoing += encode(CLOSE, close_payload(close), masked=self.client)
        self.close_sent = close

    def _end(self, ending: Ending) -> None:
        state = _NEXT_STATE.get((self.state, ending))
        if state is None:
            return
        self.state = state
        self.receiving = False
        if state is State.CLOSED:
            self._stop_reading()
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
