"""Any bytes mean what RFC 6455 has them mean, and the same to websockets, wherever they are cut; nothing raises."""

from __future__ import annotations

from codecs import getincrementaldecoder
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from websockets.frames import Frame as WebsocketsFrame
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side

from fuzz.pieces import ways_to_cut
from trio_ws_server.close_codes import Close, check_close
from trio_ws_server.config import Config
from trio_ws_server.protocol.websocket import Ending, Internal, Ping, Pong, State, WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Event = str | bytes | Ping | Pong

CONFIG = Config(max_message_size=200, max_message_fragments=4)
PADDING = bytes(14 + CONFIG.max_message_size)
"""Completes the frame that a stream ends in, unless its header is enough to refuse it."""


class Outcome(NamedTuple):
    """What came of a stream."""

    events: list[Event]
    state: State
    ending: Ending | None
    close_received: Close | None
    code_sent: int | None


class Frame(NamedTuple):
    """A frame as RFC 6455 section 5.2 lays it out, valid or not."""

    start: int
    """The first byte."""
    masked: bool
    length: int
    shortest: bool
    """Whether its length takes as few bytes as it can."""
    payload: bytes
    """Unmasked; less than there should be where the stream ends."""

    @property
    def fin(self) -> bool:
        return bool(self.start & 0x80)

    @property
    def opcode(self) -> int:
        return self.start & 0x0F

    @property
    def is_control(self) -> bool:
        return self.opcode >= Opcode.CLOSE


def check(data: bytes) -> None:
    """Take the bytes behind the first, whose lowest bits say on which side, and if that has sent a close frame."""
    if not data:
        return
    client, closing, stream = bool(data[0] & 1), bool(data[0] & 2), data[1:]
    outcome, *others = [
        receive(pieces, client, closing, in_runs)
        for pieces in ways_to_cut(stream)
        for in_runs in (True, False)
    ]
    for other in others:
        assert other == outcome, f"cut otherwise: {other}, not {outcome}"
    assert outcome.events == reference(stream, client, closing)[0]
    check_with_rfc(
        receive([stream + PADDING], client, closing, True), *reference(stream + PADDING, client, closing)
    )
    if outcome.ending in (None, Ending.PEER_CLOSE):
        check_with_websockets(outcome, stream, client)


def receive(pieces: Iterable[bytes], client: bool, closing: bool, in_runs: bool) -> Outcome:
    """Give one end a stream; check what it sends, and that nothing comes of it once it is closed."""
    end = WebSocketProtocol(CONFIG, client=client)
    if closing:
        end.send_close(Close(1000))
        end.data_to_send()
    events, sent = [], b""
    for piece in pieces:
        end.receive_data(piece)
        if in_runs:
            messages, _ = end.next_messages(len(piece), len(piece) + 1)
            events += [message for message, _ in messages]
        while (event := end.next_event()) is not None:
            if event is not Internal.EVENT:
                events.append(event)
        end.give_up()
        sent += end.data_to_send()
    close = end.close_sent
    outcome = Outcome(events, end.state, end.ending, end.close_received, close and close.code)
    if closing or end.state is State.OPEN:
        assert not sent
    else:
        assert close
        check_close_frame(sent, close, client)
    end.receive_eof()
    end.receive_data(PADDING)
    assert end.state is State.CLOSED
    assert end.next_event() is None
    assert not end.data_to_send()
    assert str(end.closed_error())
    return outcome


def check_close_frame(sent: bytes, close: Close, client: bool) -> None:
    """Check that one close frame was sent and nothing else, and that RFC 6455 allows to send it."""
    [frame] = frames(sent)
    assert frame.opcode == Opcode.CLOSE
    assert not header_faults(frame, client=not client)
    if close.code != 1005:
        check_close(*close)
    assert (
        frame.payload == b"" if close.code == 1005 else close.code.to_bytes(2, "big") + close.reason.encode()
    )


def check_with_rfc(outcome: Outcome, events: list[Event], end: Close | set[int] | None) -> None:
    assert outcome.events == events, f"{outcome.events}, not {events}"
    match end:
        case None:
            assert outcome.ending in (None, Ending.LOCAL_CLOSE)
            assert outcome.state is not State.CLOSED
        case Close():
            assert outcome.ending in (Ending.PEER_CLOSE, Ending.LOCAL_CLOSE)
            assert outcome.state is State.CLOSED
            assert outcome.close_received == end
            assert outcome.ending is Ending.LOCAL_CLOSE or outcome.code_sent == end.code
        case codes:
            assert outcome.ending in (Ending.PROTOCOL_ERROR, Ending.LOCAL_CLOSE)
            assert outcome.state is State.CLOSED
            assert outcome.close_received is None
            assert outcome.ending is Ending.LOCAL_CLOSE or outcome.code_sent in codes, (
                f"{outcome}, not {codes}"
            )


def reference(stream: bytes, client: bool, closing: bool) -> tuple[list[Event], Close | set[int] | None]:
    """Return what a stream means, and its end: a close frame, or the codes of all that is wrong with a frame."""
    events: list[Event] = []
    fragments: list[bytes] = []
    kind = 0
    for frame in frames(stream):
        codes = header_faults(frame, client)
        if not frame.is_control:
            kind = frame.opcode or kind
            codes |= message_faults(frame, fragments, kind)
        if frame.opcode == Opcode.CLOSE:
            codes |= close_faults(frame.payload)
        if codes:
            return events, codes
        if len(frame.payload) < frame.length:
            break
        match frame.opcode:
            case Opcode.CLOSE:
                code = int.from_bytes(frame.payload[:2], "big") or 1005
                return events, Close(code, frame.payload[2:].decode())
            case Opcode.PONG:
                events.append(Pong(frame.payload))
            case Opcode.PING if not closing:
                events.append(Ping(frame.payload))
            case Opcode.CONT | Opcode.TEXT | Opcode.BINARY:
                fragments.append(frame.payload)
                if frame.fin:
                    message = b"".join(fragments)
                    fragments.clear()
                    if not closing:
                        events.append(message.decode() if kind == Opcode.TEXT else message)
    return events, None


def frames(stream: bytes) -> Iterator[Frame]:
    """Yield all frames whose header is complete."""
    source = BytesIO(stream)
    while len(head := source.read(2)) == 2:
        length, masked = head[1] & 0x7F, bool(head[1] & 0x80)
        size = {126: 2, 127: 8}.get(length, 0)
        rest = source.read(size + 4 * masked)
        if len(rest) < size + 4 * masked:
            return
        shortest = True
        if size:
            length = int.from_bytes(rest[:size], "big")
            shortest = length > (125 if size == 2 else 0xFFFF)
        key = rest[size:] or bytes(4)
        payload = bytes(
            byte ^ key[place % 4] for place, byte in enumerate(source.read(min(length, len(stream))))
        )
        yield Frame(head[0], masked, length, shortest, payload)


def header_faults(frame: Frame, client: bool) -> set[int]:
    """RFC 6455 sections 5.1, 5.2 and 5.5."""
    valid = (
        not frame.start & 0x70
        and frame.opcode in set(Opcode)
        and frame.masked is not client
        and frame.shortest
        and frame.length < 2**63
        and (not frame.is_control or (frame.fin and frame.length <= 125))
    )
    return set() if valid else {1002}


def message_faults(frame: Frame, fragments: list[bytes], kind: int) -> set[int]:
    """RFC 6455 sections 5.4, 8.1 and 7.4.1, and our limits."""
    codes = set()
    if (frame.opcode == Opcode.CONT) is not bool(fragments):
        codes.add(1002)
    if sum(map(len, fragments)) + frame.length > CONFIG.max_message_size:
        codes.add(1009)
    if len(fragments) >= CONFIG.max_message_fragments:
        codes.add(1008)
    if kind == Opcode.TEXT:
        complete = frame.fin and len(frame.payload) == frame.length
        try:
            getincrementaldecoder("utf-8")().decode(b"".join(fragments) + frame.payload, complete)
        except UnicodeDecodeError:
            codes.add(1007)
    return codes


def close_faults(payload: bytes) -> set[int]:
    """RFC 6455 sections 5.5.1, 7.4 and 8.1."""
    codes = set()
    if payload:
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not (
            code in {*range(1000, 1004), *range(1007, 1015)} or 3000 <= code <= 4999
        ):
            codes.add(1002)
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            codes.add(1007)
    return codes


def check_with_websockets(outcome: Outcome, stream: bytes, client: bool) -> None:
    """Check that websockets receives the same from a stream that nothing is wrong with."""
    theirs = Protocol(Side.CLIENT if client else Side.SERVER, max_size=None)
    theirs.receive_data(stream)
    events: list[Event] = []
    message, kind = b"", Opcode.CONT
    for frame in theirs.events_received():
        assert isinstance(frame, WebsocketsFrame)
        match frame.opcode:
            case Opcode.PING:
                events.append(Ping(bytes(frame.data)))
            case Opcode.PONG:
                events.append(Pong(bytes(frame.data)))
            case Opcode.CONT | Opcode.TEXT | Opcode.BINARY:
                kind = frame.opcode or kind
                message += frame.data
                if frame.fin:
                    events.append(message.decode() if kind is Opcode.TEXT else message)
                    message = b""
    assert events == outcome.events, f"websockets: {events}, not {outcome.events}"
    close = theirs.close_rcvd
    assert (close and Close(close.code, close.reason)) == outcome.close_received
