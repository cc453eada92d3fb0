from __future__ import annotations

import itertools
import random
import re
import zlib
from itertools import cycle
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame
from websockets.protocol import Protocol as WebsocketsProtocol
from websockets.protocol import Side
from websockets.server import ServerProtocol
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Request,
    TextMessage,
)
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.utilities import RemoteProtocolError

from tests.protocol.memory import held_by, most_held_during
from trio_ws_server.config import MIB, Config
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.deflate_streams import LITTLE
from trio_ws_server.protocol.violation import Violation
from trio_ws_server.protocol.websocket import WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def deflate(*, limit: int = MIB, **options: Any) -> Deflate:
    settings = {f"deflate_{name}": value for name, value in ({"min_size": 0} | options).items()}
    return Deflate(Config(max_message_size=limit, **settings))


# Two ends of one connection, each on an implementation of its own


class End(Protocol):
    can_be_pinged_within_messages: bool
    sends_fragments: bool

    def send(self, message: str | bytes, sizes: Sequence[int], *, ping: bool = False) -> bytes: ...

    def receive(self, stream: bytes, sizes: Sequence[int] = ...) -> list[object]: ...


class WsprotoEnd:
    sends_fragments = True

    def __init__(self, connection: Connection, *, can_be_pinged_within_messages: bool = True) -> None:
        self.connection = connection
        # wsproto's own PerMessageDeflate loses its place at a control frame between fragments.
        self.can_be_pinged_within_messages = can_be_pinged_within_messages

    def send(self, message: str | bytes, sizes: Sequence[int] = (), *, ping: bool = False) -> bytes:
        stream = b""
        fragments = cut(message, sizes)
        for number, fragment in enumerate(fragments, 1):
            finished = number == len(fragments)
            if isinstance(fragment, str):
                stream += self.connection.send(TextMessage(data=fragment, message_finished=finished))
            else:
                stream += self.connection.send(BytesMessage(data=fragment, message_finished=finished))
            if ping and not finished:
                stream += self.connection.send(Ping(payload=b"between"))
        return stream

    def receive(self, stream: bytes, sizes: Sequence[int] = ()) -> list[object]:
        """Return whole messages, codes of close events, and pings' payloads in a tuple."""
        received: list[object] = []
        parts: list[Any] = []
        for event in self.events(stream, sizes):
            match event:
                case Message(data=data, message_finished=finished):
                    parts.append(data)
                    if finished:
                        received.append(data[:0].join(parts))
                        parts.clear()
                case Ping(payload=payload):
                    received.append((bytes(payload),))
                case CloseConnection(code=code):
                    received.append(code)
        return received

    def events(self, stream: bytes, sizes: Sequence[int] = ()) -> Iterable[Event]:
        for piece in cut(stream, sizes):
            self.connection.receive_data(piece)
            yield from self.connection.events()


class OurEnd(WsprotoEnd):
    """Has wsproto read all frames, and sends each message as one, which is how our connections send them."""

    sends_fragments = False

    def __init__(self, extension: Deflate, *, client: bool) -> None:
        super().__init__(Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER, [extension]))
        self.protocol = WebSocketProtocol(Config(), client=client, deflate=extension)

    def send(self, message: str | bytes, sizes: Sequence[int] = (), *, ping: bool = False) -> bytes:
        return self.protocol.send_message(message)


class WebsocketsEnd:
    can_be_pinged_within_messages = True
    sends_fragments = True

    def __init__(self, side: Side, extensions: list[Any]) -> None:
        self.protocol = WebsocketsProtocol(side, max_size=None)
        self.protocol.extensions = extensions

    def send(self, message: str | bytes, sizes: Sequence[int], *, ping: bool = False) -> bytes:
        fragments = cut(message, sizes)
        for number, fragment in enumerate(fragments, 1):
            finished = number == len(fragments)
            data = fragment.encode() if isinstance(fragment, str) else fragment
            if number > 1:
                self.protocol.send_continuation(data, finished)
            elif isinstance(fragment, str):
                self.protocol.send_text(data, finished)
            else:
                self.protocol.send_binary(data, finished)
            if ping and not finished:
                self.protocol.send_ping(b"between")
        return b"".join(self.protocol.data_to_send())

    def receive(self, stream: bytes, sizes: Sequence[int] = ()) -> list[object]:
        for piece in cut(stream, sizes):
            self.protocol.receive_data(piece)
        received: list[object] = []
        parts: list[bytes] = []
        is_text = False
        for frame in self.protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode.name == "PING":
                received.append((bytes(frame.data),))
                continue
            if frame.opcode.name != "CONT":
                is_text = frame.opcode.name == "TEXT"
            parts.append(bytes(frame.data))
            if frame.fin:
                whole = b"".join(parts)
                received.append(whole.decode() if is_text else whole)
                parts.clear()
        return received


def cut(whole: Any, sizes: Sequence[int]) -> list[Any]:
    """Cut into pieces of these sizes, over and over; without sizes, or of nothing, there is one piece."""
    pieces = []
    start = 0
    for size in cycle(sizes or [max(1, len(whole))]):
        pieces.append(whole[start : start + size])
        start += size
        if start >= len(whole):
            return pieces
    raise AssertionError


def handshake(client: Extension, server: Extension) -> tuple[Connection, Connection]:
    """Open a connection between wsproto's two sides."""
    near, far = WSConnection(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
    far.receive_data(near.send(Request(host="localhost", target="/", extensions=[client])))
    assert [type(event) for event in far.events()] == [Request]
    near.receive_data(far.send(AcceptConnection(extensions=[server])))
    assert [type(event) for event in near.events()] == [AcceptConnection]
    assert near.connection is not None
    assert far.connection is not None
    return near.connection, far.connection


def two_ends(client: Deflate, server: Deflate) -> tuple[OurEnd, OurEnd]:
    handshake(client, server)
    return OurEnd(client, client=True), OurEnd(server, client=False)


def client_end(answer: str = "", *, limit: int = MIB) -> OurEnd:
    """Make the side to which frames come unmasked, so that a test can spell them."""
    extension = deflate(limit=limit)
    extension.finalize(f"permessage-deflate{answer}")
    return OurEnd(extension, client=True)


def server_end(offer: str = "", **options: Any) -> OurEnd:
    """Make the side that sends frames unmasked, so that a test can read them."""
    extension = deflate(**options)
    assert extension.accept(f"permessage-deflate{offer}") is not None
    return OurEnd(extension, client=False)


def frame(first_byte: int, payload: bytes, *, mask: bytes = b"") -> bytes:
    masked = 0x80 if mask else 0
    if len(payload) < 126:
        head = bytes([first_byte, masked | len(payload)])
    elif len(payload) < 65536:
        head = bytes([first_byte, masked | 126]) + len(payload).to_bytes(2)
    else:
        head = bytes([first_byte, masked | 127]) + len(payload).to_bytes(8)
    if mask:
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return head + mask + payload


def compressed(data: bytes, *, flush: int = zlib.Z_SYNC_FLUSH, window_bits: int = 15) -> bytes:
    """Compress as the whole payload of a message."""
    compressor = zlib.compressobj(wbits=-window_bits)
    return (compressor.compress(data) + compressor.flush(flush)).removesuffix(b"\x00\x00\xff\xff")


TEXT, BINARY, CONTINUATION, PING = 0x01, 0x02, 0x00, 0x09
FIN, RSV1, RSV2 = 0x80, 0x40, 0x20


# RFC 7692 section 7.2.3, byte for byte

HELLO = bytes.fromhex("f2 48 cd c9 c9 07 00")
HELLO_FINAL = bytes.fromhex("f3 48 cd c9 c9 07 00")


def test_hello_is_one_compressed_frame_as_in_section_7_2_3_1() -> None:
    assert server_end().send("Hello") == bytes.fromhex("c1 07 f2 48 cd c9 c9 07 00")


def test_hello_in_two_fragments_is_received_as_in_section_7_2_3_1() -> None:
    assert client_end().receive(bytes.fromhex("41 03 f2 48 cd 80 04 c9 c9 07 00")) == ["Hello"]


def test_a_second_hello_refers_to_the_first_as_in_section_7_2_3_2() -> None:
    server = server_end()
    stream = server.send("Hello") + server.send("Hello")
    assert stream == bytes.fromhex("c1 07 f2 48 cd c9 c9 07 00 c1 05 f2 00 11 00 00")
    assert client_end().receive(stream) == ["Hello", "Hello"]


def test_without_context_takeover_a_second_hello_is_like_the_first_as_in_section_7_2_3_2() -> None:
    server = server_end("; server_no_context_takeover")
    stream = server.send("Hello") + server.send("Hello")
    assert stream == bytes.fromhex("c1 07 f2 48 cd c9 c9 07 00") * 2
    assert client_end("; server_no_context_takeover").receive(stream) == ["Hello", "Hello"]


def test_either_side_can_forget_context_while_the_other_keeps_it() -> None:
    stream = bytes.fromhex("c1 07 f2 48 cd c9 c9 07 00 c1 05 f2 00 11 00 00")
    assert client_end("; client_no_context_takeover").receive(stream) == ["Hello", "Hello"]
    assert client_end("; server_no_context_takeover").receive(stream) == ["Hello", 1007]


def test_a_block_without_compression_is_as_in_section_7_2_3_3() -> None:
    stream = bytes.fromhex("c1 0b 00 05 00 fa ff 48 65 6c 6c 6f 00")
    assert server_end(level=0).send("Hello") == stream
    assert client_end().receive(stream) == ["Hello"]


def test_a_final_block_is_received_as_in_section_7_2_3_4() -> None:
    assert client_end().receive(bytes.fromhex("c1 08 f3 48 cd c9 c9 07 00 00")) == ["Hello"]


def test_two_blocks_in_one_message_are_received_as_in_section_7_2_3_5() -> None:
    stream = bytes.fromhex("c1 0d f2 48 05 00 00 00 ff ff ca c9 c9 07 00")
    assert client_end().receive(stream) == ["Hello"]


def test_an_empty_message_is_one_byte_as_in_section_7_2_3_6() -> None:
    server = server_end()
    stream = server.send("") + server.send("") + server.send("Hello") + server.send("")
    assert stream.startswith(bytes.fromhex("c1 01 00") * 2)
    assert stream.endswith(bytes.fromhex("c1 01 00"))
    assert client_end().receive(stream) == ["", "", "Hello", ""]


# Final blocks (section 7.2.3.4)


@pytest.mark.parametrize("answer", ["", "; server_no_context_takeover"])
@pytest.mark.parametrize("sizes", [(), (1,), (3,)])
def test_context_goes_on_after_final_blocks(answer: str, sizes: tuple[int, ...]) -> None:
    messages = [HELLO_FINAL + b"\x00", HELLO_FINAL * 3 + HELLO, HELLO_FINAL + HELLO_FINAL + b"\x00"]
    stream = b"".join(frame(FIN | RSV1 | TEXT, message) for message in messages)
    assert client_end(answer).receive(stream, sizes) == ["Hello", "Hello" * 4, "Hello" * 2]


def test_a_message_after_one_with_a_final_block_may_refer_to_what_followed_that_block() -> None:
    stream = frame(FIN | RSV1 | TEXT, HELLO_FINAL + HELLO)
    stream += frame(FIN | RSV1 | TEXT, bytes.fromhex("f2 00 11 00 00"))
    assert client_end().receive(stream) == ["HelloHello", "Hello"]


def test_a_message_may_stop_right_after_a_final_block() -> None:
    stream = frame(FIN | RSV1 | TEXT, HELLO_FINAL) + frame(FIN | RSV1 | TEXT, HELLO)
    assert client_end().receive(stream) == ["Hello", "Hello"]


def test_final_blocks_may_be_spread_over_frames_with_pings_between() -> None:
    whole = compressed(b"one", flush=zlib.Z_FINISH) + compressed(b"two", flush=zlib.Z_FINISH)
    fragments = cut(whole, [1])
    stream = frame(RSV1 | BINARY, b"")
    stream += b"".join(frame(CONTINUATION, part) + frame(FIN | PING, b"") for part in fragments)
    stream += frame(FIN | CONTINUATION, b"\x00")
    received = client_end().receive(stream)
    assert received == [(b"",)] * len(fragments) + [b"onetwo"]


# Reserved bits (section 6)


@pytest.mark.parametrize("opcode", [0x8, 0x9, 0xA])
def test_a_control_frame_with_rsv1_is_a_protocol_error(opcode: int) -> None:
    assert client_end().receive(frame(FIN | RSV1 | opcode, b"")) == [1002]


def test_a_continuation_frame_with_rsv1_is_a_protocol_error() -> None:
    stream = frame(RSV1 | TEXT, HELLO[:3]) + frame(FIN | RSV1 | CONTINUATION, HELLO[3:])
    assert client_end().receive(stream) == [1002]


def test_another_reserved_bit_is_a_protocol_error() -> None:
    assert client_end().receive(frame(FIN | RSV1 | RSV2 | TEXT, HELLO)) == [1002]


def test_a_continuation_frame_with_no_message_begun_is_a_protocol_error() -> None:
    stream = frame(FIN | RSV1 | TEXT, HELLO) + frame(FIN | CONTINUATION, b"\xff" * 10)
    assert client_end().receive(stream) == ["Hello", 1002]


@pytest.mark.parametrize("payload", [b"\xff" * 10, compressed(bytes(100))])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_message_within_a_message_is_a_protocol_error_whatever_it_would_inflate_to(
    size: int, payload: bytes
) -> None:
    stream = frame(TEXT, b"") + frame(FIN | RSV1 | TEXT, payload)
    assert client_end(limit=50).receive(stream, [size]) == [1002]


def test_compressed_and_uncompressed_messages_take_turns_with_pings_within_them() -> None:
    ping = frame(FIN | PING, b"?")
    stream = frame(TEXT, b"He") + ping + frame(FIN | CONTINUATION, b"llo")
    stream += frame(RSV1 | TEXT, HELLO[:4]) + ping + frame(FIN | CONTINUATION, HELLO[4:])
    stream += ping + frame(FIN | TEXT, b"Hello") + frame(FIN | RSV1 | TEXT, HELLO)
    for size in range(1, len(stream) + 1):
        received = client_end().receive(stream, [size])
        assert received == [(b"?",), "Hello", (b"?",), "Hello", (b"?",), "Hello", "Hello"]


# Messages of one frame, without wsproto


@pytest.mark.parametrize("size", [*range(4080, 4100), 10_000])
def test_a_payload_of_any_size_is_inflated_at_once_or_in_pieces(size: int) -> None:
    extension = deflate()
    extension.finalize("permessage-deflate")
    data = random.Random(size).randbytes(size)
    payload = compressed(data)
    assert extension.decompressor.inflate_message(payload) == data
    extension.decompressor.start()
    pieces = [
        extension.decompressor.inflate(payload[:100], last=False),
        extension.decompressor.inflate(payload[100:], last=True),
    ]
    assert b"".join(pieces) == data
    assert extension.decompressor.inflate_message(HELLO) == b"Hello"


@pytest.mark.parametrize(("payload", "code"), [(b"\xff" * 10, 1007), (compressed(bytes(101)), 1009)])
def test_a_payload_that_is_damaged_or_too_large_is_a_violation(payload: bytes, code: int) -> None:
    extension = deflate(limit=100)
    extension.finalize("permessage-deflate")
    with pytest.raises(Violation) as violation:
        extension.decompressor.inflate_message(payload)
    assert violation.value.code == code


# What is inflated is bounded


@pytest.mark.parametrize("sizes", [(), (1,), (1000,)])
def test_a_message_of_exactly_the_limit_passes(sizes: tuple[int, ...]) -> None:
    stream = frame(FIN | RSV1 | BINARY, compressed(bytes(5000)))
    assert client_end(limit=5000).receive(stream * 2, sizes) == [bytes(5000)] * 2


@pytest.mark.parametrize("sizes", [(), (1,), (1000,)])
def test_a_message_of_a_byte_above_the_limit_is_too_big(sizes: tuple[int, ...]) -> None:
    stream = frame(FIN | RSV1 | BINARY, compressed(bytes(5001)))
    assert client_end(limit=5000).receive(stream, sizes) == [1009]


def test_the_limit_is_for_the_sum_of_all_fragments() -> None:
    fragments = cut(compressed(random.Random(1).randbytes(2000)), [100])
    stream = frame(RSV1 | BINARY, b"") + b"".join(frame(CONTINUATION, part) for part in fragments)
    received = list(client_end(limit=1000).events(stream))
    assert isinstance(received[-1], CloseConnection)
    assert received[-1].code == 1009
    data = b"".join(event.data for event in received if isinstance(event, BytesMessage))
    assert 800 < len(data) <= 1000


def test_a_bomb_fails_at_its_first_piece_in_little_memory() -> None:
    bomb = frame(FIN | RSV1 | BINARY, compressed(bytes(256 * MIB)))
    client = client_end(limit=MIB)
    received: list[object] = []
    # A thousandth of it is enough to pass the limit.
    assert most_held_during(lambda: received.extend(client.receive(bomb[:4096]))) < 4 * MIB
    assert received == [1009]


def test_a_bomb_of_final_blocks_fails_too() -> None:
    bomb = compressed(bytes(600), flush=zlib.Z_FINISH) * 2
    assert client_end(limit=1000).receive(frame(FIN | RSV1 | BINARY, bomb)) == [1009]


def test_the_limit_holds_for_what_the_end_of_the_message_inflates_to() -> None:
    # A block without compression that says 10 bytes and holds 6: the 4 that end a message make up the rest.
    payload = bytes.fromhex("00 0a 00 f5 ff") + b"abcdef"
    stream = frame(FIN | RSV1 | BINARY, payload)
    assert client_end(limit=8).receive(stream) == [1009]
    assert client_end(limit=10).receive(stream) == [b"abcdef\x00\x00\xff\xff"]


def test_a_limit_larger_than_zlib_can_count_to_is_no_error() -> None:
    assert client_end(limit=2**80).receive(frame(FIN | RSV1 | TEXT, HELLO)) == ["Hello"]


def test_an_uncompressed_message_is_not_measured() -> None:
    assert client_end(limit=10).receive(frame(FIN | TEXT, b"a" * 20)) == ["a" * 20]


# What is corrupted


def test_data_that_is_not_deflate_is_invalid() -> None:
    assert client_end().receive(frame(FIN | RSV1 | BINARY, b"\xff" * 10)) == [1007]


def test_data_that_the_end_of_the_message_makes_invalid_is_invalid() -> None:
    assert client_end().receive(frame(FIN | RSV1 | BINARY, b"\x00\x05")) == [1007]


def test_text_that_inflates_to_what_is_not_utf_8_is_invalid() -> None:
    assert client_end().receive(frame(FIN | RSV1 | TEXT, compressed(b"\xff\xfe"))) == [1007]


def test_a_reference_further_back_than_the_window_agreed_on_is_invalid() -> None:
    noise = random.Random(1).randbytes(20000)
    stream = frame(FIN | RSV1 | BINARY, compressed(noise + noise))
    assert client_end("; server_max_window_bits=15").receive(stream) == [noise + noise]
    assert client_end("; server_max_window_bits=9").receive(stream) == [1007]


def test_a_window_of_8_bits_is_received_from_a_sender_whose_zlib_made_9_of_it() -> None:
    # At 9 bits zlib refers 250 bytes back at most, which 8 bits hold as well.
    compressor = zlib.compressobj(wbits=-9)
    noise = random.Random(1).randbytes(250)
    stream = b""
    for _ in range(2):
        payload = compressor.compress(noise) + compressor.flush(zlib.Z_SYNC_FLUSH)
        stream += frame(FIN | RSV1 | BINARY, payload.removesuffix(b"\x00\x00\xff\xff"))
    assert client_end("; server_max_window_bits=8").receive(stream) == [noise, noise]


def test_a_compressed_message_without_payload_is_an_empty_message() -> None:
    assert client_end().receive(frame(FIN | RSV1 | TEXT, b"")) == [""]


# What is sent


def test_a_message_under_min_size_is_sent_uncompressed() -> None:
    server = server_end(min_size=5)
    assert server.send("Hell") == frame(FIN | TEXT, b"Hell")
    assert server.send("Hello") == frame(FIN | RSV1 | TEXT, HELLO)


def test_min_size_is_counted_in_bytes() -> None:
    assert server_end(min_size=4).send("éé")[0] == FIN | RSV1 | TEXT


def test_the_window_agreed_on_bounds_what_is_referred_to() -> None:
    noise = random.Random(1).randbytes(1000)
    stream = server_end("; server_max_window_bits=9").send(noise + noise)
    assert len(stream) > 2000
    assert client_end("; server_max_window_bits=9").receive(stream) == [noise + noise]
    assert len(server_end().send(noise + noise)) < 1100
    assert len(server_end(window_bits=9).send(noise + noise)) > 2000


# Memory


def test_a_connection_that_has_compressed_nothing_holds_no_streams() -> None:
    def negotiate() -> Deflate:
        extension = deflate()
        extension.accept("permessage-deflate; client_max_window_bits")
        return extension

    assert held_by(negotiate) < 2048


def test_only_with_context_takeover_are_streams_held_between_messages() -> None:
    def exchange(*, forget: bool) -> object:
        switches = {"server_no_context_takeover": forget, "client_no_context_takeover": forget}
        client, server = two_ends(deflate(**switches), deflate(**switches))
        assert server.receive(client.send("Hello" * 1000)) == ["Hello" * 1000]
        assert client.receive(server.send("Hello" * 1000)) == ["Hello" * 1000]
        return client.connection, server.connection

    # Two compressors take 32 KiB each, and the two connections themselves some KiB.
    assert held_by(lambda: exchange(forget=True)) < 32 * 1024
    assert held_by(lambda: exchange(forget=False)) > 64 * 1024


COMPRESSOR_SIZE = 32 * 1024
"""What the compressor of a connection holds, and more."""


def forget_twice(extension: Deflate) -> None:
    """Let the first time be one that finds it has been used."""
    extension.compressor.forget_if_idle()
    extension.compressor.forget_if_idle()


def test_an_idle_compressor_is_let_go_of_with_its_memory_and_what_is_to_be_inflated_is_not() -> None:
    def exchange(*, forget: bool) -> object:
        client, server = deflate(), deflate()
        ends = two_ends(client, server)
        assert ends[1].receive(ends[0].send("Hello" * 1000)) == ["Hello" * 1000]
        if forget:
            forget_twice(client)
            forget_twice(server)
        return ends

    let_go = held_by(lambda: exchange(forget=False)) - held_by(lambda: exchange(forget=True))
    assert COMPRESSOR_SIZE < let_go < COMPRESSOR_SIZE + 8 * 1024


def test_a_compressor_is_kept_that_was_used_since_the_last_time_it_might_have_been_let_go_of() -> None:
    extension = deflate()
    extension.finalize("permessage-deflate")
    first = extension.compressor.compress(b"Hello")
    for _ in range(3):
        extension.compressor.forget_if_idle()
        assert len(extension.compressor.compress(b"Hello")) < len(first)
    forget_twice(extension)
    assert extension.compressor.compress(b"Hello") == first


@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("peer_keeps_context", [True, False])
def test_a_peer_need_not_know_that_a_compressor_was_let_go_of(
    from_client: bool, peer_keeps_context: bool
) -> None:
    switch = "client_no_context_takeover" if from_client else "server_no_context_takeover"
    theirs = PerMessageDeflate(**{switch: not peer_keeps_context})
    extension = deflate()
    if from_client:
        connections = handshake(extension, theirs)
        peer = WsprotoEnd(connections[1])
    else:
        connections = handshake(theirs, extension)
        peer = WsprotoEnd(connections[0])
    end = OurEnd(extension, client=from_client)
    for message in ("Hello" * 100, "Hello" * 100, "World" * 100):
        assert peer.receive(end.send(message)) == [message]
        assert peer.receive(end.send("Hello")) == ["Hello"]
        forget_twice(extension)


def test_what_the_peer_refers_to_is_kept_when_the_compressor_is_let_go_of() -> None:
    client, server = deflate(), deflate()
    sender, receiver = two_ends(client, server)
    for _ in range(3):
        assert receiver.receive(sender.send("Hello")) == ["Hello"]
        forget_twice(server)


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("before", [100, 2 * LITTLE])
def test_a_message_that_is_being_compressed_is_right_wherever_the_compressor_is_let_go_of(
    steps: int, before: int
) -> None:
    message = random.Random(1).randbytes(100 * 1024)
    client, server = deflate(), deflate()
    sender, receiver = two_ends(client, server)
    assert receiver.receive(sender.send(message[:before])) == [message[:before]]
    ahead = sender.protocol.compress_ahead(message)
    taken = len(list(itertools.islice(ahead, steps)))
    forget_twice(client)
    assert taken + len(list(ahead)) == 4
    assert receiver.receive(sender.send(message)) == [message]
    assert receiver.receive(sender.send("Hello")) == ["Hello"]


@pytest.mark.parametrize("before", ["Hello", "Hello" * LITTLE], ids=["little", "much"])
def test_a_message_given_up_in_the_middle_leaves_a_compressor_let_go_of_as_it_is(before: str) -> None:
    client, server = deflate(), deflate()
    sender, receiver = two_ends(client, server)
    assert receiver.receive(sender.send(before)) == [before]
    ahead = sender.protocol.compress_ahead(bytes(100 * 1024))
    next(ahead)
    forget_twice(client)
    ahead.close()
    assert receiver.receive(sender.send("Hello")) == ["Hello"]


# The server's answer (section 7.1)


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("", ""),
        ("; client_max_window_bits", "client_max_window_bits=12"),
        ("; client_max_window_bits=15", "client_max_window_bits=12"),
        ("; client_max_window_bits=10", "client_max_window_bits=10"),
        ('; client_max_window_bits="10"', "client_max_window_bits=10"),
        ("; client_max_window_bits=8", "client_max_window_bits=8"),
        ("; server_max_window_bits=15", "server_max_window_bits=12"),
        ("; server_max_window_bits=9", "server_max_window_bits=9"),
        ('; server_max_window_bits="9"', "server_max_window_bits=9"),
        ("; server_no_context_takeover", "server_no_context_takeover"),
        ("; client_no_context_takeover", "client_no_context_takeover"),
        ("; Server_No_Context_Takeover", "server_no_context_takeover"),
        (";client_max_window_bits\t= 9 ", "client_max_window_bits=9"),
        (
            "; client_max_window_bits; client_no_context_takeover"
            "; server_max_window_bits=10; server_no_context_takeover",
            "server_no_context_takeover; client_no_context_takeover"
            "; server_max_window_bits=10; client_max_window_bits=12",
        ),
    ],
)
def test_an_offer_is_answered(offer: str, answer: str) -> None:
    extension = deflate()
    assert extension.accept(f"permessage-deflate{offer}") == answer
    assert extension.enabled()


@pytest.mark.parametrize(
    "offer",
    [
        "; level=9",
        ";",
        "; =",
        "; client_no_context_takeover;",
        "; server_no_context_takeover=1",
        "; server_no_context_takeover=",
        "; client_no_context_takeover; client_no_context_takeover",
        "; client_no_context_takeover; CLIENT_NO_CONTEXT_TAKEOVER",
        "; client_max_window_bits; client_max_window_bits=10",
        "; server_max_window_bits=10; server_max_window_bits=10",
        "; server_max_window_bits",
        "; server_max_window_bits=",
        "; server_max_window_bits=8",
        "; server_max_window_bits=7",
        "; server_max_window_bits=16",
        "; server_max_window_bits=09",
        "; server_max_window_bits=+9",
        "; server_max_window_bits=-9",
        "; server_max_window_bits=9.0",
        "; server_max_window_bits=1_0",
        "; server_max_window_bits=1 0",
        "; server_max_window_bits=\u0661\u0660",
        "; server_max_window_bits=ten",
        '; server_max_window_bits="10',
        '; server_max_window_bits=10"',
        '; server_max_window_bits=""',
        "; server_max_window_bits='10'",
        "; client_max_window_bits=",
        "; client_max_window_bits=7",
        "; client_max_window_bits=16",
        "; client_max_window_bits==10",
        "; client_max_window_bits=99999999999999999999999999999999999999999",
    ],
)
def test_an_offer_that_is_not_valid_or_not_possible_is_declined(offer: str) -> None:
    extension = deflate()
    assert extension.accept(f"permessage-deflate{offer}") is None
    assert not extension.enabled()


def test_a_server_can_turn_context_takeover_off_unasked() -> None:
    extension = deflate(server_no_context_takeover=True, client_no_context_takeover=True)
    assert extension.accept("permessage-deflate") == "server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        (b"permessage-deflate; server_max_window_bits=8, permessage-deflate", b"permessage-deflate"),
        (b"x-unknown, permessage-deflate; foo=1, permessage-deflate", b"permessage-deflate"),
        (
            b"permessage-deflate; server_no_context_takeover, permessage-deflate",
            b"permessage-deflate; server_no_context_takeover",
        ),
        (
            b'permessage-deflate; server_max_window_bits="1,0", permessage-deflate; client_max_window_bits',
            b"permessage-deflate; client_max_window_bits=12",
        ),
        (b"permessage-deflate; server_max_window_bits=ten", None),
    ],
)
def test_of_several_offers_the_first_acceptable_one_is_answered(offers: bytes, answer: bytes | None) -> None:
    server = WSConnection(ConnectionType.SERVER)
    server.initiate_upgrade_connection(
        [
            (b"Host", b"localhost"),
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
            (b"Sec-WebSocket-Version", b"13"),
            (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
            (b"Sec-WebSocket-Extensions", offers),
        ],
        "/",
    )
    assert [type(event) for event in server.events()] == [Request]
    response = server.send(AcceptConnection(extensions=[deflate()]))
    answers = re.findall(rb"(?mi)^sec-websocket-extensions: (.*)\r$", response)
    assert answers == ([] if answer is None else [answer])


separators = st.sampled_from(["; ", ";", "=", '"', "\\", ",", " ", "\t", "\0"])
values = st.sampled_from(["8", "10", "010", "15", "16", "٣"])
names = st.sampled_from(["client_max_window_bits", "server_max_window_bits", "client_no_context_takeover"])
parameter_like = st.lists(st.one_of(separators, values, names)).map("".join)


@given(st.one_of(st.text(), parameter_like), st.booleans())
def test_no_offer_raises(offer: str, is_prefixed: bool) -> None:
    extension = deflate()
    answer = extension.accept(f"permessage-deflate; {offer}" if is_prefixed else offer)
    assert extension.enabled() is (answer is not None)


@given(st.one_of(st.text(), parameter_like))
def test_an_answer_is_taken_or_raises_a_protocol_error_and_nothing_else(answer: str) -> None:
    extension = deflate()
    try:
        extension.finalize(f"permessage-deflate; {answer}")
    except RemoteProtocolError:
        assert not extension.enabled()
    else:
        assert extension.enabled()


# The client's offer (section 7.1)


@pytest.mark.parametrize(
    ("options", "offer"),
    [
        ({}, "client_max_window_bits=12"),
        ({"window_bits": 15}, "client_max_window_bits=15"),
        (
            {"client_no_context_takeover": True, "server_no_context_takeover": True},
            "client_max_window_bits=12; server_no_context_takeover; client_no_context_takeover",
        ),
    ],
)
def test_a_client_offers_what_its_settings_say(options: dict[str, Any], offer: str) -> None:
    assert deflate(**options).offer() == offer


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "; client_max_window_bits=12",
        "; client_max_window_bits=9",
        "; client_max_window_bits=15",
        '; client_max_window_bits="9"; server_max_window_bits=8',
        "; server_max_window_bits=15; server_no_context_takeover; client_no_context_takeover",
    ],
)
def test_a_valid_answer_is_taken(answer: str) -> None:
    extension = deflate()
    extension.finalize(f"permessage-deflate{answer}")
    assert extension.enabled()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("; foo", "unknown parameter 'foo'"),
        ("; server_no_context_takeover=1", "server_no_context_takeover takes no value"),
        ("; client_max_window_bits", "client_max_window_bits must be a whole number from 8 to 15, not ''"),
        (
            "; server_max_window_bits=010",
            "server_max_window_bits must be a whole number from 8 to 15, not '010'",
        ),
        ("; server_max_window_bits=9; server_max_window_bits=9", "server_max_window_bits is there twice"),
        ("; client_max_window_bits=8", "zlib cannot compress with client_max_window_bits=8"),
    ],
)
def test_a_bad_answer_fails_the_handshake(answer: str, reason: str) -> None:
    extension = deflate()
    with pytest.raises(RemoteProtocolError, match=f"{re.escape(repr(answer)[1:-1])}.*: {reason}$"):
        extension.finalize(f"permessage-deflate{answer}")
    assert not extension.enabled()


def test_a_clients_window_is_no_larger_than_it_offered_even_where_the_server_allows_more() -> None:
    repetition = random.Random(1).randbytes(2**11) * 2

    def compressed_size(answer: str) -> int:
        extension = deflate(window_bits=9)
        extension.finalize(f"permessage-deflate; client_max_window_bits={answer}")
        return len(OurEnd(extension, client=True).send(repetition))

    assert compressed_size("15") == compressed_size("9") > len(repetition)


def test_a_server_must_answer_the_switch_that_it_was_asked_for() -> None:
    extension = deflate(server_no_context_takeover=True)
    with pytest.raises(RemoteProtocolError, match="server_no_context_takeover was asked for and is missing"):
        extension.finalize("permessage-deflate")


def test_a_second_answer_fails_the_handshake() -> None:
    extension = deflate()
    extension.finalize("permessage-deflate")
    with pytest.raises(RemoteProtocolError, match="answered already"):
        extension.finalize("permessage-deflate")


def test_a_client_keeps_its_own_offer_to_forget_context_though_the_server_does_not_answer_it() -> None:
    extension = deflate(client_no_context_takeover=True)
    extension.finalize("permessage-deflate")
    client = OurEnd(extension, client=True)
    assert len(client.send("Hello")) == len(client.send("Hello"))


# Any messages, any way, between any two implementations

window_bits = st.integers(9, 15)

our_deflate = st.builds(
    deflate,
    level=st.integers(0, 9),
    mem_level=st.integers(1, 9),
    window_bits=window_bits,
    min_size=st.integers(0, 100),
    server_no_context_takeover=st.booleans(),
    client_no_context_takeover=st.booleans(),
)

wsproto_deflate = st.builds(
    PerMessageDeflate,
    client_no_context_takeover=st.booleans(),
    client_max_window_bits=window_bits,
    server_no_context_takeover=st.booleans(),
    server_max_window_bits=window_bits,
)

messages = st.one_of(
    # Messages that come again are what context takeover is for.
    st.sampled_from(["", "Hello", "Hello, hello!", b"", random.Random(1).randbytes(300)]),
    st.text(),
    st.binary(),
    st.builds(lambda unit, times: unit * times, st.text(max_size=20), st.integers(1, 2000)),
    st.builds(
        lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 9), st.integers(0, 10000)
    ),
)
sizes = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 5000)), max_size=5)


def our_ends(data: st.DataObject) -> tuple[End, End]:
    return two_ends(data.draw(our_deflate), data.draw(our_deflate))


def wsproto_client(data: st.DataObject) -> tuple[End, End]:
    theirs, ours = data.draw(wsproto_deflate), data.draw(our_deflate)
    near, _ = handshake(theirs, ours)
    return WsprotoEnd(near, can_be_pinged_within_messages=False), OurEnd(ours, client=False)


def wsproto_server(data: st.DataObject) -> tuple[End, End]:
    ours, theirs = data.draw(our_deflate), data.draw(wsproto_deflate)
    _, far = handshake(ours, theirs)
    return OurEnd(ours, client=True), WsprotoEnd(far, can_be_pinged_within_messages=False)


def websockets_client(data: st.DataObject) -> tuple[End, End]:
    factory = data.draw(
        st.builds(
            ClientPerMessageDeflateFactory,
            server_no_context_takeover=st.booleans(),
            client_no_context_takeover=st.booleans(),
            server_max_window_bits=st.one_of(st.none(), window_bits),
            client_max_window_bits=st.one_of(st.none(), st.just(value=True), window_bits),
        )
    )
    offer = "; ".join(
        name if value is None else f"{name}={value}" for name, value in factory.get_request_params()
    )
    ours = data.draw(our_deflate)
    answer = ours.accept(f"permessage-deflate; {offer}" if offer else "permessage-deflate")
    assert answer is not None
    parameters = [
        (name, value or None) for name, _, value in (p.partition("=") for p in answer.split("; ") if p)
    ]
    theirs = factory.process_response_params(parameters, [])
    return WebsocketsEnd(Side.CLIENT, [theirs]), OurEnd(ours, client=False)


def websockets_server(data: st.DataObject) -> tuple[End, End]:
    factory = data.draw(
        st.builds(
            ServerPerMessageDeflateFactory,
            server_no_context_takeover=st.booleans(),
            client_no_context_takeover=st.booleans(),
            server_max_window_bits=st.one_of(st.none(), window_bits),
            client_max_window_bits=st.one_of(st.none(), window_bits),
        )
    )
    ours = data.draw(our_deflate)
    answer, theirs = ServerProtocol(extensions=[factory]).process_extensions(
        Headers({"Sec-WebSocket-Extensions": f"permessage-deflate; {ours.offer()}"})
    )
    assert answer is not None
    ours.finalize(answer)
    return OurEnd(ours, client=True), WebsocketsEnd(Side.SERVER, theirs)


@pytest.mark.parametrize(
    "make_ends", [our_ends, wsproto_client, wsproto_server, websockets_client, websockets_server]
)
@given(
    data=st.data(),
    exchange=st.lists(st.tuples(st.booleans(), messages, sizes, st.booleans(), sizes), max_size=6),
)
def test_messages_come_out_as_they_went_in(
    make_ends: Callable[[st.DataObject], tuple[End, End]],
    data: st.DataObject,
    exchange: list[tuple[bool, str | bytes, list[int], bool, list[int]]],
) -> None:
    client, server = make_ends(data)
    for is_from_client, message, fragment_sizes, ping, piece_sizes in exchange:
        sender, receiver = (client, server) if is_from_client else (server, client)
        ping = ping and sender.sends_fragments and receiver.can_be_pinged_within_messages
        stream = sender.send(message, fragment_sizes, ping=ping)
        *pings, received = receiver.receive(stream, piece_sizes)
        assert received == message
        assert len(pings) == (len(cut(message, fragment_sizes)) - 1 if ping else 0)
        assert set(pings) <= {(b"between",)}


@given(st.lists(messages, min_size=1, max_size=4), sizes)
def test_a_stream_cut_anywhere_gives_the_same_messages(
    contents: list[str | bytes], piece_sizes: list[int]
) -> None:
    near, _ = handshake(PerMessageDeflate(), extension := deflate())
    client, server = WsprotoEnd(near), OurEnd(extension, client=False)
    stream = b"".join(client.send(message, [100], ping=True) for message in contents)
    received = server.receive(stream, piece_sizes)
    assert [item for item in received if item != (b"between",)] == contents


@pytest.mark.parametrize("place", range(1, 8))
@pytest.mark.parametrize("kept", [True, False], ids=["context", "no context"])
def test_a_payload_may_begin_like_the_end_of_one_and_be_cut_behind_that(place: int, kept: bool) -> None:
    # RFC 1951 section 3.2.4: a stored block of 65,280 bytes begins with 00 00 ff ff 00.
    data = bytes(65_280)
    payload = (
        b"\0" + len(data).to_bytes(2, "little") + (len(data) ^ 0xFFFF).to_bytes(2, "little") + data + b"\0"
    )
    message = frame(FIN | RSV1 | BINARY, payload)
    start = len(message) - len(payload) + place
    answer = "" if kept else "; server_no_context_takeover"
    end = client_end(answer)
    assert end.receive(message, [start, len(message)]) == [data]
    fragments = frame(RSV1 | BINARY, payload[:place]) + frame(FIN | CONTINUATION, payload[place:])
    assert end.receive(fragments) == [data]


# Anything at all from the peer

payloads = st.one_of(
    st.binary(),
    st.binary().map(compressed),
    st.builds(lambda data, cut_at: compressed(data)[:cut_at], st.binary(), st.integers(0, 20)),
    st.builds(lambda data: compressed(data, flush=zlib.Z_FINISH), st.binary()),
    st.integers(0, 5000).map(lambda times: b"\x03\x00" * times),
    st.integers(0, 2 * MIB).map(lambda size: compressed(bytes(size))),
)
frames = st.builds(
    lambda first_byte, payload: frame(first_byte, payload, mask=b"mask"),
    st.one_of(
        st.sampled_from([FIN | RSV1 | TEXT, RSV1 | BINARY, FIN | CONTINUATION, CONTINUATION, FIN | PING]),
        st.integers(0, 255),
    ),
    payloads,
)


@example([frame(FIN | RSV1 | BINARY, b"\x03\x00" * 50000, mask=b"mask")], [])
@given(st.one_of(st.lists(frames), st.lists(st.binary())), sizes)
def test_garbage_gives_events_and_never_an_exception(stream: list[bytes], piece_sizes: list[int]) -> None:
    server = server_end(limit=64 * 1024)
    events = list(server.events(b"".join(stream), piece_sizes))
    assert not any(isinstance(event, CloseConnection) for event in events[:-1])
