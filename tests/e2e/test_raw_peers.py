"""Peers that are not ours, over real sockets: raw bytes, wsproto driven by hand, the websockets client."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from websockets.sync.client import ClientConnection, connect
from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    Pong,
    Request,
    TextMessage,
)

from tests.e2e.helpers import DEADLINE, receive_all, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.helpers import ServerProcess

KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


def head(*lines: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in (*lines, b""))


def upgrade(
    request_line: bytes = b"GET / HTTP/1.1", version: bytes = b"13", key: bytes = b"Sec-WebSocket-Key: " + KEY
) -> bytes:
    return head(
        request_line,
        b"Host: x",
        b"Upgrade: WebSocket",
        b"Connection: keep-alive, UPGRADE",
        b"Sec-WebSocket-Version: " + version,
        key,
    )


def text_frame(text: bytes) -> bytes:
    """A masked text frame, with a mask that changes nothing."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


def ok(body: bytes, *fields: bytes) -> bytes:
    return head(b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *fields) + body


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The echo application, with responses that hold nothing but what the test is about."""
    with running("--no-date-header", "--no-server-header", "--ws-per-message-deflate", "apps:echo") as server:
        yield server


@pytest.fixture
def peer(server: ServerProcess) -> Iterator[socket.socket]:
    with closing(server.connect()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        yield connection


def receive(peer: socket.socket, length: int) -> bytes:
    """Return so many bytes; an end before them is an error."""
    received = peer.recv(length, socket.MSG_WAITALL)
    assert len(received) == length, f"the end came after {received!r}"
    return received


def receive_head(peer: socket.socket) -> bytes:
    """Return the status line and header fields, and take nothing that comes behind them."""
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += receive(peer, 1)
    return received


# HTTP.


def test_a_connection_serves_one_request_after_the_other(peer: socket.socket) -> None:
    for path in b"/first", b"/second":
        peer.sendall(head(b"GET " + path + b" HTTP/1.1", b"Host: x"))
        expected = ok(b"GET " + path + b" ")
        assert receive(peer, len(expected)) == expected


def test_pipelined_requests_are_answered_in_their_order(peer: socket.socket) -> None:
    peer.sendall(
        head(b"GET /1 HTTP/1.1", b"Host: x")
        + head(b"POST /2 HTTP/1.1", b"Host: x", b"Content-Length: 3")
        + b"two"
        + head(b"GET /3 HTTP/1.1", b"Host: x", b"Connection: close")
    )
    assert receive_all(peer) == (ok(b"GET /1 ") + ok(b"POST /2 two") + ok(b"GET /3 ", b"Connection: close"))


def test_a_request_may_come_byte_by_byte(peer: socket.socket) -> None:
    for byte in head(b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 3", b"Connection: close") + b"abc":
        peer.sendall(bytes([byte]))
    assert receive_all(peer) == ok(b"POST / abc", b"Connection: close")


def test_a_client_that_expects_100_continue_gets_it_before_it_sends_the_body(peer: socket.socket) -> None:
    peer.sendall(head(b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 3", b"Expect: 100-continue"))
    assert receive_head(peer).startswith(b"HTTP/1.1 100 ")
    peer.sendall(b"abc")
    expected = ok(b"POST / abc")
    assert receive(peer, len(expected)) == expected


def test_bodies_are_chunked_both_ways_and_each_chunk_passes_at_once(peer: socket.socket) -> None:
    peer.sendall(head(b"POST /stream HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked"))
    assert receive_head(peer) == head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked")
    for piece in b"a", b"bcd":
        chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
        peer.sendall(chunk)
        assert receive(peer, len(chunk)) == chunk
    peer.sendall(b"0\r\n\r\n")
    assert receive(peer, 5) == b"0\r\n\r\n"


def test_a_response_without_a_length_ends_with_the_connection_for_http_1_0(peer: socket.socket) -> None:
    peer.sendall(head(b"POST /stream HTTP/1.0", b"Content-Length: 3") + b"abc")
    assert receive_all(peer) == head(b"HTTP/1.1 200 OK", b"Connection: close") + b"abc"


def test_a_response_to_head_has_no_body(peer: socket.socket) -> None:
    peer.sendall(head(b"HEAD / HTTP/1.1", b"Host: x", b"Connection: close"))
    assert receive_all(peer) == head(b"HTTP/1.1 200 OK", b"content-length: 7", b"Connection: close")


BAD_REQUESTS = {
    "no request at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "content-length and transfer-encoding": head(
        b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 3", b"Transfer-Encoding: chunked"
    ),
    "two content-lengths": head(b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 3", b"Content-Length: 3"),
    "a folded line": head(b"GET / HTTP/1.1", b"Host: x", b"A: b", b" c"),
    "a bare line feed": b"GET / HTTP/1.1\nHost: x\n\n",
    "no host": head(b"GET / HTTP/1.1"),
    "two hosts": head(b"GET / HTTP/1.1", b"Host: x", b"Host: x"),
    "a space before the colon": head(b"GET / HTTP/1.1", b"Host : x"),
    "an upgrade without a key": upgrade(key=b"X: y"),
    "an upgrade with a bad key": upgrade(key=b"Sec-WebSocket-Key: c2hvcnQ="),
    "an upgrade by another method": upgrade(b"POST / HTTP/1.1"),
    "an upgrade with HTTP/1.0": upgrade(b"GET / HTTP/1.0"),
}


@pytest.mark.parametrize("request_", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_answered_400_which_arrives_although_more_was_sent(
    peer: socket.socket, request_: bytes
) -> None:
    peer.sendall(request_ + bytes(3_000_000))
    answer = receive_all(peer)  # and no reset
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_another_websocket_version_is_answered_426_with_the_one_there_is(peer: socket.socket) -> None:
    peer.sendall(upgrade(version=b"8"))
    answer = receive_all(peer)
    assert answer.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nsec-websocket-version: 13\r\n" in answer.lower()


def test_a_head_of_more_than_its_maximum_size_is_answered_431(peer: socket.socket) -> None:
    peer.sendall(head(b"GET / HTTP/1.1", b"Host: x", b"A: " + b"b" * 100_000))
    assert receive_all(peer).startswith(b"HTTP/1.1 431 ")


# WebSocket, by raw bytes.


def test_frames_in_the_segment_of_the_upgrade_are_not_lost(peer: socket.socket) -> None:
    peer.sendall(upgrade() + text_frame(b"early") + text_frame(b"bird"))
    assert b"\r\nsec-websocket-accept: " + ACCEPT.lower() in receive_head(peer).lower()
    assert receive(peer, 7 + 6) == b"\x81\x05early\x81\x04bird"


def test_a_handshake_and_frames_may_come_byte_by_byte(peer: socket.socket) -> None:
    for byte in upgrade() + text_frame(b"slow"):
        peer.sendall(bytes([byte]))
    assert receive_head(peer).startswith(b"HTTP/1.1 101 ")
    assert receive(peer, 6) == b"\x81\x04slow"


def test_a_protocol_error_is_answered_with_a_close_frame_which_arrives_although_more_was_sent(
    peer: socket.socket,
) -> None:
    peer.sendall(upgrade())
    receive_head(peer)
    peer.sendall(b"\x81\x02hi" + bytes(3_000_000))  # unmasked
    frame = receive_all(peer)  # and no reset
    assert frame[:1] == b"\x88"
    assert frame[2:4] == (1002).to_bytes(2, "big")


# WebSocket, by wsproto.


def test_wsproto_and_the_server_understand_each_other(peer: socket.socket) -> None:
    ws = WSConnection(ConnectionType.CLIENT)
    events: list[Event] = []

    def exchange(*sent: Event) -> Event:
        for event in sent:
            peer.sendall(ws.send(event))
        while not events:
            ws.receive_data(peer.recv(65536) or None)
            events.extend(ws.events())
        return events.pop(0)

    assert isinstance(exchange(Request(host="x", target="/")), AcceptConnection)
    assert exchange(
        TextMessage("to ", message_finished=False), Ping(b"in between"), TextMessage("gether")
    ) == Pong(b"in between")
    assert exchange() == TextMessage("to gether")
    closed = exchange(CloseConnection(4000, "bye"))
    assert isinstance(closed, CloseConnection)
    assert closed.code == 4000  # RFC 6455 section 5.5.1
    assert peer.recv(1) == b""


# WebSocket, by the websockets client.


@pytest.fixture(params=["deflate", None], ids=["compressed", "plain"])
def client(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[ClientConnection]:
    uri = server.url.replace("http", "ws")
    with connect(uri, compression=request.param, open_timeout=DEADLINE, max_size=None) as websocket:
        negotiated = [extension.name for extension in websocket.protocol.extensions]
        assert negotiated == (["permessage-deflate"] if request.param else [])
        yield websocket


@pytest.mark.parametrize("message", ["", "grün", b"", bytes(range(256)) * 20_000])
def test_a_message_comes_back_as_it_was(client: ClientConnection, message: str | bytes) -> None:
    client.send(message)
    assert client.recv(DEADLINE) == message


def test_a_message_may_come_in_fragments(client: ClientConnection) -> None:
    client.send(["one", "", "two" * 10_000, "three"])
    assert client.recv(DEADLINE) == "one" + "two" * 10_000 + "three"


def test_a_ping_is_answered(client: ClientConnection) -> None:
    assert client.ping("anyone?").wait(DEADLINE)


def test_a_close_is_answered_with_its_code_and_reason(client: ClientConnection) -> None:
    client.close(4001, "done")
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == 4001


def test_many_clients_are_served_at_the_same_time(server: ServerProcess) -> None:
    def converse(name: int) -> list[str | bytes]:
        with connect(server.url.replace("http", "ws"), open_timeout=DEADLINE) as websocket:
            for number in range(50):
                websocket.send(f"{name}: {number}")
            return [websocket.recv(DEADLINE) for _ in range(50)]

    with ThreadPoolExecutor(20) as threads:
        for name, messages in enumerate(threads.map(converse, range(20))):
            assert messages == [f"{name}: {number}" for number in range(50)]


def test_nothing_of_all_this_made_the_server_log_an_error(server: ServerProcess) -> None:
    assert server.stop() == 0
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log
