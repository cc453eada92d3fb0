"""The WebSocket state machine (RFC 6455 sections 5 to 7), example by example."""

from __future__ import annotations

import zlib
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pytest
from websockets.frames import Close as WebsocketsClose
from websockets.frames import Opcode as WebsocketsOpcode
from websockets.protocol import Protocol as WebsocketsProtocol
from websockets.protocol import Side

from tests.protocol.ends import receive
from tests.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_frame,
    errors,
    frame,
    frames_of,
    header,
)
from tests.protocol.pieces import bytewise, whole
from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.config import MIB, Config
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.frames import INFLATED_AT_ONCE
from trio_ws_server.protocol.websocket import (
    Ending,
    Internal,
    Ping,
    State,
    WebSocketProtocol,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    InPieces = Callable[[bytes], Iterator[bytes]]

LIMIT = 1000
SIDES = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])


def websocket(
    *, client: bool = False, limit: int = LIMIT, deflate: Deflate | None = None
) -> WebSocketProtocol:
    return WebSocketProtocol(Config(max_message_size=limit), client=client, deflate=deflate)


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


def end_with_garbage_behind_a_message(*, client: bool = False) -> WebSocketProtocol:
    end = websocket(client=client)
    end.receive_data(frame(TEXT, b"a", masked=not client) + b"\xff\xff")
    assert [end.next_event(), end.next_event(), end.next_event()] == ["a", Internal.EVENT, None]
    return end


@SIDES
def test_a_message_received_before_garbage_can_be_answered_before_the_connection_fails(client: bool) -> None:
    end = end_with_garbage_behind_a_message(client=client)
    assert end.send_message("answer")
    end.receive_data(frame(TEXT, b"too late", masked=not client))
    assert end.next_event() is None
    end.give_up()
    assert (end.state, end.close.code) == (State.CLOSED, CloseCode.PROTOCOL_ERROR)


def test_after_garbage_our_own_close_frame_waits_for_none() -> None:
    end = end_with_garbage_behind_a_message()
    end.send_close(Close(1000))
    assert (end.state, end.close_sent) == (State.CLOSED, Close(1000))


def test_the_peers_end_after_garbage_does_not_hide_it() -> None:
    end = end_with_garbage_behind_a_message()
    end.receive_eof()
    assert (end.state, end.close.code) == (State.CLOSED, CloseCode.PROTOCOL_ERROR)


# Errors


@SIDES
@pytest.mark.parametrize("in_pieces", [whole, bytewise])
@pytest.mark.parametrize("error", errors(masked=True, limit=LIMIT))
def test_an_error_of_the_peer_is_answered_with_one_close_frame_and_then_nothing(
    error: str, in_pieces: InPieces, client: bool
) -> None:
    end = websocket(client=client)
    code, wrong = errors(masked=not client, limit=LIMIT)[error]
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
    receive(end, *in_pieces(wrong))
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
    receive(end, *in_pieces(header(opcode, length, masked=not client)))
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
    first = receive(end, *in_pieces(start + frame(CONTINUATION, b"c" * 100, masked=not client)))
    assert first == [Ping(ping), Ping(ping), b"a" * 600 + b"b" * 300 + b"c" * 100]
    second = receive(end, *in_pieces(start + header(CONTINUATION, 101, fin=False, masked=not client)))
    assert (second, end.close.code) == ([Ping(ping), Ping(ping)], CloseCode.MESSAGE_TOO_BIG)


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


def compressed(data: bytes, *, behind: bytes = b"") -> bytes:
    """Return the payload that says this, and refers back to what was before it."""
    compressor = zlib.compressobj(wbits=-15, zdict=behind)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


# Read a second time, what refers to the message before it would be other text, and what is too large be damaged.
_FIRST = bytes(range(100, 200)) + b"a" * 200


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (frame(TEXT, compressed(_FIRST[:100], behind=_FIRST), rsv=4), CloseCode.INVALID_DATA),
        (
            frame(BINARY, compressed(Random(1).randbytes(501).hex().encode()), rsv=4),
            CloseCode.MESSAGE_TOO_BIG,
        ),
    ],
)
def test_a_message_is_inflated_once_though_it_comes_to_nothing(second: bytes, code: int) -> None:
    ours = Deflate(Config(max_message_size=LIMIT))
    ours.accept("permessage-deflate")
    end = websocket(deflate=ours)
    assert receive(end, frame(BINARY, compressed(_FIRST), rsv=4) + second) == [_FIRST]
    assert end.close.code == code


def test_a_large_message_is_inflated_in_steps_between_which_others_can_have_their_turn() -> None:
    ours = Deflate(Config())
    ours.accept("permessage-deflate")
    end = WebSocketProtocol(Config(), client=False, deflate=ours)
    end.receive_data(frame(BINARY, compressed(bytes(8 * MIB)), rsv=4))
    assert end.next_messages(64, MIB) == ([], 0)
    assert end.next_event() is Internal.EVENT
    assert 0 < end.payload_received <= INFLATED_AT_ONCE * 1032
    *steps, message = iter(end.next_event, None)
    assert set(steps) <= {Internal.EVENT}
    assert message == bytes(8 * MIB)


def test_a_large_message_that_is_not_compressed_takes_no_steps() -> None:
    ours = Deflate(Config())
    ours.accept("permessage-deflate")
    end = WebSocketProtocol(Config(), client=False, deflate=ours)
    wire = frame(BINARY, bytes(MIB))
    for piece in wire[:100], wire[100:]:
        end.receive_data(piece)
        event = end.next_event()
    assert event == bytes(MIB)


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
