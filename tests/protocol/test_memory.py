"""What a connection and the messages on it hold of memory."""

from __future__ import annotations

import sys
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.protocol.ends import Link, receive
from tests.protocol.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, header
from tests.protocol.memory import held_by, most_held_during
from trio_ws_server.config import MIB, Config
from trio_ws_server.protocol.websocket import Ping, Pong, WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN, DEFLATED = Link(client=False, deflate=None), Link(client=False, deflate="; client_max_window_bits")
CONFIG = Config()
READ_SIZE = 256 * 1024
SIZE = 4 * MIB
SLOW_SIZE = 15_000
"""Of what comes byte by byte. The smaller, the less is there for what does not grow with the message."""


# Idle


def talk(end: WebSocketProtocol) -> WebSocketProtocol:
    """Have it exchange what connections exchange before they are idle, and pings while they are."""
    received = receive(end, frame(TEXT, b"a") + frame(BINARY, b"b"), frame(PING) + frame(PONG, b"c"))
    assert received == ["a", b"b", Ping(b""), Pong(b"c")]
    for sent in (end.send_message("a"), end.send_message(b"b"), end.send_ping(b"c"), end.send_pong(b"")):
        assert sent
    return end


@pytest.mark.parametrize("happen", [lambda end: end, talk], ids=["fresh", "after messages and pings"])
def test_an_idle_connection_holds_200_bytes_and_500_more_where_compression_was_agreed_on(
    happen: Callable[[WebSocketProtocol], WebSocketProtocol],
) -> None:
    assert held_by(lambda: [happen(PLAIN.end(CONFIG)) for _ in range(50)]) < 50 * 220
    assert held_by(lambda: [happen(DEFLATED.end(CONFIG)) for _ in range(50)]) < 50 * 720


def test_of_its_compression_a_connection_that_sends_nothing_more_holds_what_it_inflates_with() -> None:
    def rest(*, inflates: bool) -> WebSocketProtocol:
        end = DEFLATED.end(CONFIG)
        message = "a message to compress" * 10
        if inflates:
            peer = Link(client=True, deflate="").end(CONFIG)
            assert receive(end, peer.send_message(message)) == [message]
        assert end.send_message(message)
        end.forget_if_idle()
        end.forget_if_idle()
        return end

    assert held_by(lambda: [rest(inflates=False) for _ in range(50)]) < 50 * 720
    assert held_by(lambda: [rest(inflates=True) for _ in range(50)]) < 50 * 12_500


def part(end: WebSocketProtocol) -> WebSocketProtocol:
    """Have it answer the peer's close frame."""
    assert receive(end, frame(CLOSE, b"\x03\xe8")) == []
    assert end.data_to_send() == frame(CLOSE, b"\x03\xe8", masked=False)
    return end


def test_a_connection_that_has_been_closed_properly_holds_the_close_frames_beside() -> None:
    assert held_by(lambda: [part(PLAIN.end(CONFIG)) for _ in range(50)]) < 50 * 400


@pytest.mark.parametrize("rest", [b"", frame(BINARY, b"a")[:3], frame(PING, b"a")[:-1]])
def test_of_what_has_been_read_nothing_is_kept(rest: bytes) -> None:
    def read() -> WebSocketProtocol:
        end = PLAIN.end(CONFIG)
        assert receive(end, frame(BINARY, bytes(1000)) * 100 + rest) == [bytes(1000)] * 100
        return end

    assert held_by(read) < 500


# A message in flight: three times its size at most, itself included

MESSAGES = {
    "binary": Random(0).randbytes(SIZE),
    "ASCII": "a" * SIZE,
    "Latin": "ä" * (SIZE // 2),
    "Chinese": "中" * (SIZE // 3),
    "emoji": "😀" * (SIZE // 4),
}
in_flight = pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
either_way = pytest.mark.parametrize("deflate", [None, ""], ids=["plain", "compressed"])


def two_ends(deflate: str | None, *, from_client: bool) -> tuple[WebSocketProtocol, WebSocketProtocol]:
    return Link(from_client, deflate).end(CONFIG), Link(not from_client, deflate).end(CONFIG)


def send(end: WebSocketProtocol, message: str | bytes) -> bytes:
    if len(message) > end.steps_above:
        for _ in end.compress_ahead(message):
            pass
    return end.send_message(message)


@in_flight
@either_way
@pytest.mark.parametrize("from_client", [False, True], ids=["from a server", "from a client"])
def test_a_message_takes_up_to_three_times_its_size_while_it_is_sent_and_while_it_is_received(
    from_client: bool, deflate: str | None, message: str | bytes
) -> None:
    sender, receiver = two_ends(deflate, from_client=from_client)
    limit = 3 * SIZE + READ_SIZE
    assert sys.getsizeof(message) + most_held_during(lambda: send(sender, message)) < limit
    sender, receiver = two_ends(deflate, from_client=from_client)
    stream = BytesIO(send(sender, message))
    received: list[object] = []

    def read() -> None:
        while piece := stream.read(READ_SIZE):
            received.extend(receive(receiver, piece))

    assert most_held_during(read) < limit
    assert received == [message]


def test_the_payload_of_a_large_message_is_not_copied_to_be_sent() -> None:
    message = bytes(SIZE)
    assert most_held_during(lambda: PLAIN.end(CONFIG).send_large_message(message)) < SIZE / 10


@pytest.mark.parametrize(
    "stream",
    [
        frame(TEXT, bytes(SLOW_SIZE)),
        frame(BINARY, bytes(SLOW_SIZE)),
        frame(BINARY, b"", fin=False) + frame(CONTINUATION, bytes(SLOW_SIZE)),
    ],
    ids=["text", "binary", "fragments"],
)
def test_a_message_that_comes_byte_by_byte_takes_three_times_its_size(stream: bytes) -> None:
    def read(size: int) -> None:
        end = PLAIN.end(CONFIG)
        for byte in stream[:size]:
            receive(end, bytes([byte]))

    read(1000)  # what Python itself keeps after a first time is not counted
    assert most_held_during(lambda: read(len(stream) - 1)) < 3 * SLOW_SIZE


def test_a_message_that_was_only_declared_takes_nothing() -> None:
    def begin() -> WebSocketProtocol:
        end = PLAIN.end(CONFIG)
        receive(end, header(BINARY, SIZE) + bytes(4))
        return end

    assert held_by(begin) < 1000
