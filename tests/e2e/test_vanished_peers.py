"""Clients that reset their connection, or end their side of it, at every point of their conversation."""

from __future__ import annotations

import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.e2e.helpers import receive_all, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.helpers import ServerProcess

    State = Callable[[ServerProcess, socket.socket], None]

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
STREAM = b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HELLO = b"\x81\x85\0\0\0\0hello"  # with a mask that changes nothing
CLOSE_1000 = b"\x88\x82\0\0\0\0\x03\xe8"

NO_TIMEOUTS = [
    *("--keep-alive-timeout", "600", "--handshake-timeout", "600"),
    *("--ws-close-timeout", "600", "--graceful-timeout", "600"),
]
"""What is seen here is not that some time was up."""


@contextmanager
def serving_without_errors() -> Iterator[ServerProcess]:
    """Run the echo application; at the end, see that it stops by itself and has logged no error."""
    with running("--log-level", "debug", *NO_TIMEOUTS, "apps:echo") as server:
        yield server
        assert server.stop() == 0
        for sign in ("ERROR", "WARNING", "CRITICAL", "Traceback"):
            assert sign not in server.log


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving_without_errors() as server:
        yield server


def receive_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        data = connection.recv(65536)
        assert data, f"the end came before {mark!r}: {received!r}"
        received += data
    return received


def name_of(connection: socket.socket) -> str:
    """Return what the server's log calls the client."""
    host, port = connection.getsockname()
    return f"{host}:{port}"


def connected(server: ServerProcess) -> socket.socket:
    """Return a connection that the server knows of."""
    connection = server.connect()
    server.wait_for(f"{name_of(connection)} connected")
    return connection


def send_until_stuck(connection: socket.socket, data: bytes) -> None:
    """Send the data again and again, until all buffers on the way are full."""
    connection.settimeout(1)
    with suppress(TimeoutError):
        while True:
            connection.sendall(data)


def reset(connection: socket.socket) -> None:
    """Close the connection so that the peer gets a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# States that a client can bring its connection to


def before_its_first_byte(server: ServerProcess, client: socket.socket) -> None:
    pass


def in_a_head(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(GET[:-2])


def idle_between_requests(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(GET % b"before")
    receive_until(client, b"GET /before ")


def in_the_head_of_the_next_request(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(GET % b"before" + GET[:-2])
    receive_until(client, b"GET /before ")


def in_a_body_that_is_waited_for(server: ServerProcess, client: socket.socket) -> None:
    piece = name_of(client)[-5:].encode()
    client.sendall(POST + piece)
    server.wait_for(f"got {piece!r}")


def in_a_body_that_was_called_for(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    receive_until(client, b"HTTP/1.1 100 Continue\r\n\r\n")


def in_a_response(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(STREAM + b"5\r\nabcde\r\n")
    receive_until(client, b"abcde\r\n")


def in_a_response_that_it_does_not_read(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(STREAM)
    send_until_stuck(client, b"10000\r\n" + bytes(0x10000) + b"\r\n")


def behind_requests_that_it_sent_ahead(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(b"".join(GET % b"%d" % number for number in range(1000)))


def refused_and_still_sending(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(b"nonsense\r\n\r\n" + bytes(100_000))
    receive_until(client, b"HTTP/1.1 400 ")


def open_(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(UPGRADE)
    receive_until(client, b"\r\n\r\n")


def open_and_not_told(server: ServerProcess, client: socket.socket) -> None:
    client.sendall(UPGRADE)
    server.wait_for(f'{name_of(client)} "WebSocket /" accepted')


def in_a_frame(server: ServerProcess, client: socket.socket) -> None:
    open_(server, client)
    client.sendall(HELLO + HELLO[:-1])
    receive_until(client, b"hello")


def behind_messages_whose_echo_it_does_not_read(server: ServerProcess, client: socket.socket) -> None:
    open_(server, client)
    send_until_stuck(client, b"\x82\xff" + (0x10000).to_bytes(8, "big") + bytes(4 + 0x10000))


def closed(server: ServerProcess, client: socket.socket) -> None:
    open_(server, client)
    client.sendall(CLOSE_1000)
    receive_until(client, b"\x88\x02\x03\xe8")


HTTP_STATES = [
    before_its_first_byte,
    in_a_head,
    idle_between_requests,
    in_the_head_of_the_next_request,
    in_a_body_that_is_waited_for,
    in_a_body_that_was_called_for,
    in_a_response,
    in_a_response_that_it_does_not_read,
    behind_requests_that_it_sent_ahead,
    refused_and_still_sending,
]
BUSY_STATES = [
    in_a_body_that_is_waited_for,
    in_a_body_that_was_called_for,
    in_a_response,
    in_a_response_that_it_does_not_read,
]
"""Those that a drain waits for."""
OPEN_STATES = [open_, open_and_not_told, in_a_frame, behind_messages_whose_echo_it_does_not_read]


def named(state: State) -> str:
    return state.__name__.strip("_")


# Resets


@pytest.mark.parametrize("state", [*HTTP_STATES, *OPEN_STATES, closed], ids=named)
def test_a_reset_ends_its_connection_and_no_other(server: ServerProcess, state: State) -> None:
    with closing(connected(server)) as http, closing(connected(server)) as websocket:
        idle_between_requests(server, http)
        open_(server, websocket)
        client = connected(server)
        name = name_of(client)
        state(server, client)
        idle_between_requests(server, http)  # by then the server has seen what the client has sent
        reset(client)
        server.wait_for(f"{name} disconnected")
        idle_between_requests(server, http)
        websocket.sendall(HELLO)
        receive_until(websocket, b"\x81\x05hello")


@pytest.mark.parametrize("state", [open_, open_and_not_told, in_a_frame], ids=named)
def test_an_application_that_receives_learns_of_a_reset_as_of_code_1006(
    server: ServerProcess, state: State
) -> None:
    told = server.log.count("handler ended after 1006")
    client = connected(server)
    state(server, client)
    reset(client)
    server.wait_for("handler ended after 1006", times=told + 1)


def test_an_application_that_sends_learns_of_a_reset_by_its_exception(server: ServerProcess) -> None:
    client = connected(server)
    name = name_of(client)
    behind_messages_whose_echo_it_does_not_read(server, client)
    reset(client)
    server.wait_for(f"{name} GET /: the client disconnected: ClientDisconnected(")


@pytest.mark.parametrize("state", [*BUSY_STATES, *OPEN_STATES], ids=named)
def test_a_reset_before_a_drain_or_in_it_leaves_nothing_to_wait_for(state: State) -> None:
    with serving_without_errors() as server:
        early, late = connected(server), connected(server)
        for client in (early, late):
            state(server, client)
        reset(early)
        server.send_signal(signal.SIGTERM)
        server.wait_for("SIGTERM: shutting down")
        reset(late)
        assert server.wait() == 0


WAITING_FOR_THE_DISCONNECT = """
import sys

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await receive()
    print("waiting", file=sys.stderr, flush=True)
    print("told of", (await receive())["type"], file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("leave", [reset, socket.socket.close], ids=["resets", "closes"])
@pytest.mark.parametrize(
    ("request_", "ahead", "told"),
    [(GET % b"", GET % b"", "http.disconnect"), (UPGRADE, HELLO, "websocket.disconnect")],
    ids=["requests", "frames"],
)
def test_an_application_that_waits_for_the_disconnect_learns_of_it_behind_what_was_sent_far_ahead(
    request_: bytes, ahead: bytes, told: str, leave: Callable[[socket.socket], None], tmp_path: Path
) -> None:
    (tmp_path / "waiting.py").write_text(WAITING_FOR_THE_DISCONNECT)
    with running("--log-level", "debug", *NO_TIMEOUTS, "waiting:app", cwd=tmp_path) as server:
        client = connected(server)
        name = name_of(client)
        client.sendall(request_)
        server.wait_for("waiting")
        # A WebSocket's client may be answered before it has sent all of that.
        with suppress(ConnectionError):
            client.sendall(ahead * (1_000_000 // len(ahead)))
        leave(client)
        server.wait_for(f"told of {told}")
        server.wait_for(f"{name} disconnected")


# Ends of one side


def test_a_client_that_ends_its_side_behind_its_requests_gets_all_responses(server: ServerProcess) -> None:
    with closing(connected(server)) as client:
        client.sendall(GET % b"1" + POST + b"0123456789" + GET % b"3")
        client.shutdown(socket.SHUT_WR)
        response = receive_all(client)
        assert response.count(b"HTTP/1.1 200 OK\r\n") == 3
        assert response.endswith(b"GET /3 ")


def test_a_client_that_ends_its_side_gets_the_whole_of_a_long_response(server: ServerProcess) -> None:
    def send_all_and_end() -> None:
        client.sendall(STREAM + b"3d0900\r\n" + bytes(4_000_000) + b"\r\n0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)

    with closing(connected(server)) as client, ThreadPoolExecutor(1) as thread:
        sent = thread.submit(send_all_and_end)
        response = receive_all(client)
        sent.result()
        assert response.count(b"\0") == 4_000_000
        assert response.endswith(b"0\r\n\r\n")


def test_a_client_that_ends_its_side_in_its_body_is_gone(server: ServerProcess) -> None:
    with closing(connected(server)) as client:
        in_a_body_that_is_waited_for(server, client)
        client.shutdown(socket.SHUT_WR)
        receive_all(client)
        server.wait_for(f"{name_of(client)} disconnected")


@pytest.mark.parametrize("state", [open_, in_a_frame], ids=named)
def test_the_end_of_a_websockets_other_side_without_a_close_frame_is_a_lost_connection(
    server: ServerProcess, state: State
) -> None:
    told = server.log.count("handler ended after 1006")
    with closing(connected(server)) as client:
        state(server, client)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
        server.wait_for("handler ended after 1006", times=told + 1)
        server.wait_for(f'{name_of(client)} "WebSocket /" lost with 1006')
