"""The WebSocket state machine (RFC 6455 sections 5 to 7): alone, with others' ends, and with itself."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Close as WebsocketsClose
from websockets.frames import Frame
from websockets.frames import Opcode as WebsocketsOpcode
from websockets.protocol import Protocol as WebsocketsProtocol
from websockets.protocol import Side
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message
from wsproto.events import Ping as WsprotoPing
from wsproto.events import Pong as WsprotoPong

from tests.protocol.pieces import bytewise, cut, cuts, deterministic, whole
from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.config import Config
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.websocket import Ending, Internal, Ping, Pong, State, WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    InPieces = Callable[[bytes], Iterator[bytes]]

LIMIT = 1000
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x01\x02\x03\x04"
SIDES = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])

Received = str | bytes | Ping | Pong


def websocket(
    *, client: bool = False, limit: int = LIMIT, deflate: Deflate | None = None
) -> WebSocketProtocol:
    return WebSocketProtocol(Config(max_message_size=limit), client=client, deflate=deflate)


def receive(end: WebSocketProtocol, data: bytes) -> list[Received]:
    """Give bytes to an end; return the messages, pings and pongs that they bring."""
    end.receive_data(data)
    received: list[Received] = []
    while (event := end.next_event()) is not None:
        if event is not Internal.EVENT:
            received.append(event)
    return received


def header(opcode: int, length: int, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """Return a frame's header as RFC 6455 section 5.2 has it, without the masking key."""
    first, mask = fin << 7 | rsv << 4 | opcode, masked << 7
    if length < 126:
        return struct.pack("!BB", first, mask | length)
    if length < 2**16:
        return struct.pack("!BBH", first, mask | 126, length)
    return struct.pack("!BBQ", first, mask | 127, length)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """Return a whole frame; those to a server are masked."""
    start = header(opcode, len(payload), fin=fin, rsv=rsv, masked=masked)
    if not masked:
        return start + payload
    return start + MASK + bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))


def close_frame(code: int | None = None, reason: bytes = b"", *, masked: bool = True) -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason, masked=masked)


class Trace(NamedTuple):
    """All that a stream of bytes leaves to be seen."""

    received: list[Received]
    sent: bytes
    state: State
    ending: Ending | None
    close: int
    close_received: Close | None


def feed(end: WebSocketProtocol, pieces: Iterable[bytes]) -> Trace:
    """Give the pieces to the end; in the trace, of our own close reasons only that there is one."""
    received: list[Received] = []
    sent = b""
    for piece in pieces:
        received += receive(end, piece)
        sent += end.data_to_send()
    return Trace(received, sent[:4], end.state, end.ending, end.close.code, end.close_received)


# States


def put_into(state: State, *, client: bool = False) -> WebSocketProtocol:
    end = websocket(client=client)
    if state is not State.OPEN:
        end.send_close(Close(1000))
    if state is State.CLOSED:
        receive(end, close_frame(1000, masked=not client))
    end.data_to_send()
    assert end.state is state
    return end


class Row(NamedTuple):
    """What happens, the states that it changes, and the codes of the close frames sent for it."""

    happen: Callable[[WebSocketProtocol], object]
    changes: dict[State, tuple[State, list[int]]]


def arrives(opcode: int, payload: bytes) -> Callable[[WebSocketProtocol], object]:
    return lambda end: receive(end, frame(opcode, payload, masked=not end.client))


TABLE = {
    "we send a close frame": Row(
        lambda end: end.send_close(Close(4000)), {State.OPEN: (State.CLOSING, [4000])}
    ),
    "the peer's close frame arrives": Row(
        arrives(CLOSE, b"\x0f\xa1"), {State.OPEN: (State.CLOSED, [4001]), State.CLOSING: (State.CLOSED, [])}
    ),
    "the peer breaks the protocol": Row(
        arrives(TEXT, b"\xff"), {State.OPEN: (State.CLOSED, [1007]), State.CLOSING: (State.CLOSED, [])}
    ),
    "the connection is made to fail": Row(
        lambda end: end.fail(1011, "why", Ending.LOST),
        {State.OPEN: (State.CLOSED, [1011]), State.CLOSING: (State.CLOSED, [])},
    ),
    "the connection is lost": Row(
        WebSocketProtocol.receive_eof, {State.OPEN: (State.CLOSED, []), State.CLOSING: (State.CLOSED, [])}
    ),
    "a message arrives": Row(arrives(TEXT, b"a"), {}),
    "a ping arrives": Row(arrives(PING, b"a"), {}),
    "a pong arrives": Row(arrives(PONG, b"a"), {}),
    "part of a frame arrives": Row(lambda end: receive(end, b"\x81"), {}),
    "nothing arrives": Row(lambda end: receive(end, b""), {}),
}


@SIDES
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_a_state_changes_only_as_the_table_says_and_the_peer_is_told_once(
    row: Row, state: State, client: bool
) -> None:
    end = put_into(state, client=client)
    row.happen(end)
    expected, codes = row.changes.get(state, (state, []))
    assert end.state is expected
    assert close_codes(end.data_to_send(), from_client=client) == codes
    assert end.data_to_send() == b""


def close_codes(stream: bytes, *, from_client: bool) -> list[int]:
    """Return the codes of the close frames of which the stream consists."""
    return [WebsocketsClose.parse(each.data).code for each in frames_of(stream, from_client=from_client)]


def frames_of(stream: bytes, *, from_client: bool) -> list[Frame]:
    """Return the frames in a stream as the `websockets` library reads them."""
    peer = WebsocketsProtocol(Side.SERVER if from_client else Side.CLIENT, max_size=None)
    peer.receive_data(stream)
    assert peer.parser_exc is None
    return [event for event in peer.events_received() if isinstance(event, Frame)]


@SIDES
@pytest.mark.parametrize("state", [State.CLOSING, State.CLOSED])
def test_nothing_but_a_close_frame_can_be_sent_once_the_connection_is_not_open(
    state: State, client: bool
) -> None:
    end = put_into(state, client=client)
    with pytest.raises(ConnectionClosed):
        end.send_message("a")
    with pytest.raises(ConnectionClosed):
        end.send_ping(b"")
    with pytest.raises(ConnectionClosed):
        end.send_pong(b"")
    end.send_close(Close(1000))
    assert end.data_to_send() == b""


def test_once_a_close_frame_is_sent_messages_and_pings_are_dropped_until_the_peers_close_frame() -> None:
    end = put_into(State.CLOSING)
    assert receive(end, frame(TEXT, b"a") + frame(PING) + frame(BINARY, b"b", fin=False)) == []
    assert receive(end, frame(CONTINUATION, b"c") + close_frame(1000)) == []
    assert end.state is State.CLOSED


def test_a_message_whose_rest_comes_after_our_close_frame_is_dropped() -> None:
    end = websocket()
    assert receive(end, frame(TEXT, b"a", fin=False)) == []
    end.send_close(Close(1000))
    assert receive(end, frame(CONTINUATION, b"b") + close_frame()) == []
    assert end.close_received == Close(1005)


def test_what_follows_the_peers_close_frame_is_ignored() -> None:
    end = websocket()
    assert receive(end, frame(TEXT, b"a") + close_frame(1000) + frame(TEXT, b"b") + b"garbage") == ["a"]
    assert receive(end, frame(TEXT, b"c")) == []
    assert end.close_sent == Close(1000)


@SIDES
def test_messages_received_before_garbage_are_delivered(client: bool) -> None:
    end = websocket(client=client)
    stream = frame(TEXT, b"a", masked=not client) + frame(PING, b"b", masked=not client) + b"\xff\xff"
    assert receive(end, stream) == ["a", Ping(b"b")]
    assert end.state is State.CLOSED


# Errors


def errors(*, masked: bool) -> dict[str, tuple[int, bytes]]:
    """Return what a peer may do wrong, with the close code for it."""
    make = partial(frame, masked=masked)
    close = partial(close_frame, masked=masked)
    mask = masked << 7
    return {
        "a wrong mask": (1002, frame(TEXT, b"a", masked=not masked)),
        "a reserved bit": (1002, make(TEXT, b"a", rsv=1)),
        "another reserved bit": (1002, make(PING, b"a", rsv=2)),
        "the bit of a compression not agreed on": (1002, make(TEXT, b"a", rsv=4)),
        "a reserved data opcode": (1002, make(3, b"a")),
        "a reserved control opcode": (1002, make(11)),
        "a fragmented ping": (1002, make(PING, fin=False)),
        "a fragmented close frame": (1002, make(CLOSE, fin=False)),
        "a long ping": (1002, make(PING, b"a" * 126)),
        "a long close frame": (1002, close(1000, b"a" * 124)),
        "a continuation of nothing": (1002, make(CONTINUATION, b"a")),
        "a message within a message": (1002, make(TEXT, b"a", fin=False) + make(TEXT, b"b")),
        "a length of two bytes that fits one": (1002, bytes([0x82, mask | 126, 0, 125]) + MASK),
        "a length of eight bytes that fits two": (1002, bytes([0x82, mask | 127, *[0] * 6, 1, 0]) + MASK),
        "a length of 64 bits": (1002, bytes([0x82, mask | 127, 0x80, *[0] * 7]) + MASK),
        "text that is not UTF-8": (1007, make(TEXT, b"a\xc3(")),
        "text that ends in the middle of a character": (1007, make(TEXT, b"\xe2\x82")),
        "text with a surrogate": (1007, make(TEXT, b"\xed\xa0\x80")),
        "text that goes wrong in a later fragment": (
            1007,
            make(TEXT, b"\xe2", fin=False) + make(CONTINUATION, b"("),
        ),
        "a message that is too big": (1009, make(BINARY, bytes(LIMIT + 1))),
        "a close frame of one byte": (1002, make(CLOSE, b"\x03")),
        "a close reason that is not UTF-8": (1007, close(1000, b"\xff")),
    } | {
        f"close code {code}": (1002, close(code))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65535)
    }


@SIDES
@pytest.mark.parametrize("in_pieces", [whole, bytewise])
@pytest.mark.parametrize("error", errors(masked=True))
def test_an_error_of_the_peer_is_answered_with_one_close_frame_and_then_nothing(
    error: str, in_pieces: InPieces, client: bool
) -> None:
    end = websocket(client=client)
    code, wrong = errors(masked=not client)[error]
    sent = b""
    for piece in in_pieces(wrong + frame(TEXT, b"a", masked=not client) + frame(PING, masked=not client)):
        assert receive(end, piece) == []
        sent += end.data_to_send()
    [answer] = frames_of(sent, from_client=client)
    assert answer.opcode is WebsocketsOpcode.CLOSE
    close = WebsocketsClose.parse(answer.data)
    assert close.code == code
    assert close.reason
    assert (end.state, end.ending) == (State.CLOSED, Ending.PROTOCOL_ERROR)
    assert end.close == end.close_sent == Close(code, close.reason)
    assert end.close_received is None


@pytest.mark.parametrize("in_pieces", [whole, bytewise])
@pytest.mark.parametrize("wrong", [frame(TEXT, b"aaa\xff"), close_frame(1000, b"aaa\xff")])
def test_the_peer_is_told_of_text_that_is_not_utf_8_in_the_same_words_wherever_it_was_cut(
    wrong: bytes, in_pieces: InPieces
) -> None:
    end = websocket()
    for piece in in_pieces(wrong):
        receive(end, piece)
    assert end.close_sent == Close(1007, "text is not valid UTF-8")


@pytest.mark.parametrize("text", [b"\xff", b"a\xe2(", b"\xe2\x82\xac" * 60 + b"\xff"])
def test_text_is_known_to_be_wrong_before_its_frame_is_complete(text: bytes) -> None:
    end = websocket()
    receive(end, frame(TEXT, text + b"a" * 100)[:-50])
    assert end.close_sent is not None
    assert end.close_sent.code == 1007


def test_an_end_that_fails_tells_the_peer_as_much_of_the_reason_as_a_close_frame_holds() -> None:
    end = websocket()
    end.fail(1011, "ä" * 100, Ending.LOST)
    assert end.close_sent == Close(1011, "ä" * 61)
    assert end.data_to_send() == close_frame(1011, ("ä" * 61).encode(), masked=False)


# The size of a message


@SIDES
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [1, 125, 126, 2**16 - 1, 2**16])
def test_a_message_may_be_as_large_as_the_limit_and_no_byte_larger(
    size: int, opcode: int, client: bool
) -> None:
    end = websocket(client=client, limit=size)
    message: str | bytes = "a" * size if opcode == TEXT else b"a" * size
    assert receive(end, frame(opcode, b"a" * size, masked=not client)) == [message]
    receive(end, frame(opcode, b"a" * (size + 1), masked=not client))
    assert end.close_sent == Close(1009, f"message is larger than {size} bytes")


@SIDES
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", [1001, 2**16 - 1, 2**16, 2**40, 2**63 - 1])
@pytest.mark.parametrize("in_pieces", [whole, bytewise])
def test_a_message_too_large_is_refused_by_its_header_before_any_of_its_payload(
    in_pieces: InPieces, length: int, opcode: int, client: bool
) -> None:
    end = websocket(client=client)
    for piece in in_pieces(header(opcode, length, masked=not client)):
        receive(end, piece)
    assert end.close_sent is not None
    assert end.close_sent.code == CloseCode.MESSAGE_TOO_BIG


@SIDES
@pytest.mark.parametrize("in_pieces", [whole, bytewise])
@pytest.mark.parametrize("ping", [b"", b"a" * 125])
def test_the_fragments_of_a_message_count_together_and_pings_between_them_do_not(
    ping: bytes, in_pieces: InPieces, client: bool
) -> None:
    end = websocket(client=client)
    between = frame(PING, ping, masked=not client)
    start = frame(BINARY, b"a" * 600, fin=False, masked=not client) + between
    start += frame(CONTINUATION, b"b" * 300, fin=False, masked=not client) + between
    first = feed(end, in_pieces(start + frame(CONTINUATION, b"c" * 100, masked=not client)))
    assert first.received == [Ping(ping), Ping(ping), b"a" * 600 + b"b" * 300 + b"c" * 100]
    second = feed(end, in_pieces(start + header(CONTINUATION, 101, fin=False, masked=not client)))
    assert (second.received, second.close) == ([Ping(ping), Ping(ping)], CloseCode.MESSAGE_TOO_BIG)


def test_many_messages_may_together_be_larger_than_the_limit() -> None:
    end = websocket()
    message = frame(BINARY, bytes(600), fin=False) + frame(CONTINUATION, bytes(400))
    assert receive(end, message * 5) == [bytes(1000)] * 5


def test_a_compressed_message_is_limited_before_and_after_inflation() -> None:
    def deflated() -> tuple[Deflate, Deflate]:
        ours, theirs = (Deflate(Config(deflate_min_size=0, max_message_size=LIMIT)) for _ in range(2))
        answer = ours.accept(f"permessage-deflate; {theirs.offer()}")
        theirs.finalize(f"permessage-deflate; {answer}")
        return ours, theirs

    ours, theirs = deflated()
    server, client = websocket(deflate=ours), websocket(client=True, deflate=theirs)
    assert receive(server, client.send_message(bytes(LIMIT))) == [bytes(LIMIT)]
    receive(server, client.send_message(bytes(LIMIT + 1)))
    assert server.close == Close(1009, "message is larger than 1000 bytes")
    server = websocket(deflate=deflated()[0])
    receive(server, header(BINARY, LIMIT + 1, rsv=4))
    assert server.close.code == CloseCode.MESSAGE_TOO_BIG


# The fragments of a message


def fragments(count: int) -> bytes:
    """Return so many fragments of a message, without its end."""
    return frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"a", fin=False) * (count - 1)


def test_a_message_may_have_as_many_fragments_as_the_limit() -> None:
    end = WebSocketProtocol(Config(max_message_fragments=3), client=False)
    message = fragments(2) + frame(PING) + frame(CONTINUATION, b"a")
    assert receive(end, message * 2) == [Ping(b""), "aaa"] * 2


def test_a_fragment_more_is_refused_by_its_header() -> None:
    end = WebSocketProtocol(Config(max_message_fragments=3), client=False)
    assert receive(end, fragments(3) + header(CONTINUATION, 100)) == []
    assert end.close_sent == Close(1008, "message has more than 3 fragments")


# Messages

texts = st.text(max_size=12)
payloads = st.binary(max_size=12)
messages = texts | payloads


class Script(NamedTuple):
    """What a peer sends, and the messages, pings and pongs in it."""

    stream: bytes
    received: list[Received]


@st.composite
def fragmented(draw: st.DrawFn, *, masked: bool) -> Script:
    """A message in any fragments, with pings and pongs between them and a last one behind it."""
    message = draw(messages)
    payload = message.encode() if isinstance(message, str) else message
    fragments = list(cut(payload, draw(st.lists(st.integers(0, 20), max_size=4)))) or [b""]
    received: list[Received] = []
    stream = b""
    for number, fragment in enumerate(fragments):
        opcode = CONTINUATION if number else TEXT if isinstance(message, str) else BINARY
        last = number == len(fragments) - 1
        stream += frame(opcode, fragment, fin=last, masked=masked)
        if last:
            received.append(message)
        if (control := draw(st.none() | payloads)) is not None:
            is_ping = draw(st.booleans())
            stream += frame(PING if is_ping else PONG, control, masked=masked)
            received.append(Ping(control) if is_ping else Pong(control))
    return Script(stream, received)


@st.composite
def scripts(draw: st.DrawFn, *, masked: bool) -> Script:
    parts = draw(st.lists(fragmented(masked=masked), max_size=4))
    return Script(b"".join(part.stream for part in parts), [each for part in parts for each in part.received])


@deterministic
@given(scripts(masked=True), cuts)
def test_messages_are_put_together_whatever_their_fragments_and_wherever_they_are_cut(
    script: Script, places: Sequence[int]
) -> None:
    end = websocket()
    assert feed(end, cut(script.stream, places)).received == script.received
    assert end.state is State.OPEN


def test_line_breaks_survive_fragmentation() -> None:
    stream = frame(TEXT, b"a\r", fin=False) + frame(CONTINUATION, b"\n\n\r", fin=False) + frame(CONTINUATION)
    assert receive(websocket(), stream) == ["a\r\n\n\r"]


def test_a_message_sent_is_one_frame_that_the_client_masks() -> None:
    assert websocket().send_message("ä") == b"\x81\x02\xc3\xa4"
    assert websocket().send_message(b"\x00") == b"\x82\x01\x00"
    sent = websocket(client=True).send_message("ä")
    assert sent[:2] == b"\x81\x82"
    assert bytes(byte ^ key for byte, key in zip(sent[6:], sent[2:6], strict=False)) == b"\xc3\xa4"


def test_text_that_utf_8_cannot_hold_is_an_error_and_the_next_message_is_sent() -> None:
    end = websocket()
    with pytest.raises(UnicodeEncodeError):
        end.send_message("\ud800")
    assert end.send_message("a") == b"\x81\x01a"


# Close codes


@SIDES
@pytest.mark.parametrize(
    "code", [*(c for c in CloseCode if c not in (1005, 1006, 1015)), 3000, 3999, 4000, 4999]
)
def test_any_close_code_that_may_be_sent_arrives_and_is_answered_with_the_same(
    code: int, client: bool
) -> None:
    end, peer = websocket(client=client), websocket(client=not client)
    end.send_close(Close(code, "so what"))
    receive(peer, end.data_to_send())
    assert (peer.close_received, peer.close_sent) == (Close(code, "so what"), Close(code))
    receive(end, peer.data_to_send())
    assert (end.close_received, end.close_sent) == (Close(code), Close(code, "so what"))


def test_close_code_1014_does_not_hide_a_reason_that_is_not_utf_8() -> None:
    end = websocket()
    receive(end, close_frame(1014, b"\xff"))
    assert (end.close.code, end.ending) == (1007, Ending.PROTOCOL_ERROR)


@SIDES
def test_an_empty_close_frame_is_1005_and_answered_with_an_empty_one(client: bool) -> None:
    end = websocket(client=client)
    receive(end, close_frame(masked=not client))
    assert end.close == end.close_received == Close(1005)
    [answer] = frames_of(end.data_to_send(), from_client=client)
    assert (answer.opcode, bytes(answer.data)) == (WebsocketsOpcode.CLOSE, b"")


def test_an_empty_close_frame_can_be_sent() -> None:
    end = websocket()
    end.send_close(Close(1005))
    assert end.data_to_send() == b"\x88\x00"


@SIDES
def test_both_ends_may_close_at_once(client: bool) -> None:
    end, peer = websocket(client=client), websocket(client=not client)
    end.send_close(Close(1000, "enough"))
    peer.send_close(Close(1001, "bye"))
    ours, theirs = end.data_to_send(), peer.data_to_send()
    receive(end, theirs)
    receive(peer, ours)
    assert (end.state, peer.state) == (State.CLOSED, State.CLOSED)
    assert (end.close, peer.close) == (Close(1001, "bye"), Close(1000, "enough"))
    assert (end.ending, peer.ending) == (Ending.LOCAL_CLOSE, Ending.LOCAL_CLOSE)
    assert (end.data_to_send(), peer.data_to_send()) == (b"", b"")


def lost_while_closing(end: WebSocketProtocol) -> None:
    end.send_close(Close(4000, "ours"))
    end.receive_eof()


def closed_then_lost(end: WebSocketProtocol) -> None:
    receive(end, close_frame(4001, b"theirs"))
    end.receive_eof()


@pytest.mark.parametrize(
    ("happen", "ending", "close"),
    [
        (lambda end: None, None, Close(1006)),
        (lambda end: end.receive_eof(), Ending.LOST, Close(1006)),
        (lambda end: end.fail(1011, "no pong", Ending.LOST), Ending.LOST, Close(1006)),
        (lambda end: end.fail(1009, "big", Ending.PROTOCOL_ERROR), Ending.PROTOCOL_ERROR, Close(1009, "big")),
        (lambda end: end.send_close(Close(4000, "ours")), Ending.LOCAL_CLOSE, Close(4000, "ours")),
        (lost_while_closing, Ending.LOCAL_CLOSE, Close(4000, "ours")),
        (closed_then_lost, Ending.PEER_CLOSE, Close(4001, "theirs")),
    ],
)
def test_the_close_is_the_peers_else_ours_if_we_ended_it_else_1006(
    happen: Callable[[WebSocketProtocol], object], ending: Ending | None, close: Close
) -> None:
    end = websocket()
    happen(end)
    assert (end.ending, end.close) == (ending, close)


@pytest.mark.parametrize(
    ("received", "sent", "kind"),
    [
        (Close(1000), Close(1000), ConnectionClosedOK),
        (Close(1001), Close(1000), ConnectionClosedOK),
        (Close(1005), Close(1005), ConnectionClosedOK),
        (Close(1000), Close(1011), ConnectionClosedError),
        (Close(1011), Close(1000), ConnectionClosedError),
        (Close(4000), Close(4000), ConnectionClosedError),
        (None, Close(1000), ConnectionClosedError),
    ],
)
def test_the_error_of_a_closed_connection_tells_both_close_frames_and_if_all_was_well(
    received: Close | None, sent: Close, kind: type[ConnectionClosed]
) -> None:
    end = websocket()
    end.send_close(sent)
    if received is not None:
        receive(end, close_frame(None if received.code == 1005 else received.code))
    with pytest.raises(kind) as closed:
        end.send_message("a")
    assert (closed.value.received, closed.value.sent) == (received, sent)


def test_the_error_of_a_lost_connection_is_one_without_close_frames() -> None:
    end = websocket()
    end.receive_eof()
    with pytest.raises(ConnectionClosedError) as closed:
        end.send_message("a")
    assert (closed.value.received, closed.value.sent, closed.value.code) == (None, None, 1006)


# Any bytes


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames of all kinds, most of them right, with a byte of them changed at times."""
    right = st.builds(
        frame, st.sampled_from([CONTINUATION, TEXT, BINARY, PING, PONG]), payloads, fin=st.booleans()
    )
    whole_message = scripts(masked=True).map(lambda script: script.stream)
    wrong = st.sampled_from([stream for _, stream in errors(masked=True).values()])
    closing = st.sampled_from([close_frame(), close_frame(1000), close_frame(4999, b"why")])
    stream = b"".join(
        draw(
            st.lists(
                whole_message | whole_message | right | wrong | closing | st.binary(max_size=8), max_size=6
            )
        )
    )
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 150), st.binary(max_size=1)), max_size=1)):
        stream = stream[:place] + byte + stream[place + 1 :]
    return stream


@deterministic
@given(streams(), cuts, st.booleans())
def test_any_bytes_have_the_same_outcome_wherever_they_are_cut_and_never_raise(
    stream: bytes, places: Sequence[int], closing: bool
) -> None:
    def trace(pieces: Iterable[bytes]) -> Trace:
        end = websocket(limit=40)
        if closing:
            end.send_close(Close(1000))
            end.data_to_send()
        return feed(end, pieces)

    assert trace(whole(stream)) == trace(cut(stream, places)) == trace(bytewise(stream))


def events_of_wsproto(stream: bytes) -> list[Received | Close]:
    """Return what wsproto alone makes of a stream, its pieces of messages put together, errors as their code."""
    connection = Connection(ConnectionType.SERVER)
    connection.receive_data(stream)
    events: list[Received | Close] = []
    parts: list[str | bytes] = []
    for event in connection.events():
        match event:
            case Message(data=data, message_finished=finished):
                parts.append(data)
                if finished:
                    empty: str | bytes = b"" if isinstance(event, BytesMessage) else ""
                    events.append(empty.join(parts))  # type: ignore[arg-type]
                    parts.clear()
            case WsprotoPing(payload=payload):
                events.append(Ping(bytes(payload)))
            case WsprotoPong(payload=payload):
                events.append(Pong(bytes(payload)))
            case CloseConnection(code=code, reason=reason):
                failed = connection.state is ConnectionState.OPEN
                events.append(Close(code, "" if failed else reason or ""))
    return events


@deterministic
@given(streams(), cuts)
@example(frame(PING, b"a") + close_frame(4000, b"why"), [])
def test_the_events_are_those_of_wsproto(stream: bytes, places: Sequence[int]) -> None:
    """Up to the limit, that is, and but for close code 1014."""
    end = websocket(limit=2**64)
    received: list[Received | Close] = [*feed(end, cut(stream, places)).received]
    if end.state is State.CLOSED:
        received.append(end.close_received or Close(end.close.code))
    assert received == events_of_wsproto(stream)


# Two ends


sends = st.one_of(
    messages,
    st.builds(Ping, payloads),
    st.builds(Pong, payloads),
)
steps = st.lists(
    st.tuples(st.booleans(), sends | st.integers(1, 30) | st.builds(Close, st.just(4000), texts)), max_size=30
)


class Party:
    """One end, what it has sent, and what is on the way to it."""

    def __init__(self, *, client: bool) -> None:
        self.end = websocket(client=client)
        self.sent: list[Received] = []
        self.received: list[Received] = []
        self.arriving = b""

    def send(self, what: Received | Close) -> bytes:
        match what:
            case Close():
                self.end.send_close(what)
            case _ if self.end.state is not State.OPEN:
                return b""
            case Ping(payload=payload):
                self.sent.append(what)
                return self.end.send_ping(payload)
            case Pong(payload=payload):
                self.sent.append(what)
                return self.end.send_pong(payload)
            case message:
                self.sent.append(message)
                return self.end.send_message(message)
        return self.end.data_to_send()

    def take(self, size: int) -> bytes:
        """Receive so many of the bytes that are on the way; return what is sent for it."""
        piece, self.arriving = self.arriving[:size], self.arriving[size:]
        self.received += receive(self.end, piece)
        return self.end.data_to_send()


@deterministic
@given(steps)
def test_two_ends_agree_whatever_they_send_and_however_it_is_delayed_and_cut(
    script: list[tuple[bool, Received | Close | int]],
) -> None:
    parties = Party(client=False), Party(client=True)
    for second, action in script:
        actor, other = parties[second], parties[not second]
        if isinstance(action, int):
            other.arriving += actor.take(action)
        else:
            other.arriving += actor.send(action)
    for _ in range(3):
        for actor, other in (parties, parties[::-1]):
            other.arriving += actor.take(len(actor.arriving))
    one, two = parties
    closed = any(isinstance(action, Close) for _, action in script)
    assert one.end.state is two.end.state is (State.CLOSED if closed else State.OPEN)
    assert (one.end.close_received, two.end.close_received) == (two.end.close_sent, one.end.close_sent)
    assert Ending.PROTOCOL_ERROR not in (one.end.ending, two.end.ending)
    for sender, receiver in (parties, parties[::-1]):
        # only what arrives once the receiver has sent a close frame is dropped
        assert receiver.received == sender.sent[: len(receiver.received)] or closed
        if receiver.end.ending is not Ending.LOCAL_CLOSE:
            assert receiver.received == sender.sent


class WebsocketsEnd:
    """The `websockets` library's end of a connection."""

    def __init__(self, side: Side) -> None:
        self.protocol = WebsocketsProtocol(side, max_size=None)

    def received(self) -> list[Received]:
        found: list[Received] = []
        for each in self.protocol.events_received():
            assert isinstance(each, Frame)
            match each.opcode:
                case WebsocketsOpcode.TEXT:
                    found.append(bytes(each.data).decode())
                case WebsocketsOpcode.BINARY:
                    found.append(bytes(each.data))
                case WebsocketsOpcode.PING:
                    found.append(Ping(bytes(each.data)))
                case WebsocketsOpcode.PONG:
                    found.append(Pong(bytes(each.data)))
        return found


@deterministic
@given(st.lists(sends, max_size=6), st.booleans())
def test_the_websockets_library_receives_what_is_sent(sent: list[Received], client: bool) -> None:
    party = Party(client=client)
    peer = WebsocketsEnd(Side.SERVER if client else Side.CLIENT)
    for each in sent:
        peer.protocol.receive_data(party.send(each))
    assert peer.received() == sent


@deterministic
@given(st.lists(sends, max_size=6), cuts, st.booleans())
def test_what_the_websockets_library_sends_is_received(
    sent: list[Received], places: Sequence[int], client: bool
) -> None:
    peer = WebsocketsProtocol(Side.SERVER if client else Side.CLIENT)
    for each in sent:
        match each:
            case Ping(payload=payload):
                peer.send_ping(payload)
            case Pong(payload=payload):
                peer.send_pong(payload)
            case str():
                peer.send_text(each.encode())
            case _:
                peer.send_binary(each)
    stream = b"".join(peer.data_to_send())
    assert feed(websocket(client=client), cut(stream, places)).received == sent


@SIDES
@pytest.mark.parametrize("code", [1000, 1001, 1014, 4000])
def test_the_websockets_library_and_we_close_either_way(code: int, client: bool) -> None:
    end, peer = websocket(client=client), WebsocketsProtocol(Side.SERVER if client else Side.CLIENT)
    end.send_close(Close(code, "why"))
    peer.receive_data(end.data_to_send())
    receive(end, b"".join(peer.data_to_send()))
    assert peer.close_rcvd == WebsocketsClose(code, "why")
    assert end.close_received == Close(code, "why")
    end, peer = websocket(client=client), WebsocketsProtocol(Side.SERVER if client else Side.CLIENT)
    peer.send_close(code, "why")
    receive(end, b"".join(peer.data_to_send()))
    peer.receive_data(end.data_to_send())
    assert end.close == Close(code, "why")
    assert peer.close_rcvd == WebsocketsClose(code, "")
