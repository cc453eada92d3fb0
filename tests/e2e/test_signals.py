"""SIGTERM and SIGINT end a real server: gracefully where all play along, and in bounded time where one does not."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e.helpers import DEADLINE, receive_all, running, starting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.helpers import ServerProcess

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def open_websocket(server: ServerProcess) -> ClientConnection:
    return connect(server.url.replace("http", "ws"), open_timeout=DEADLINE, close_timeout=DEADLINE)


def wait_until_refused(server: ServerProcess) -> None:
    """The listener closes a moment after the log says so."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            server.connect().close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:  # waiting to be accepted when the listener closed
            pass
    raise AssertionError("the server still accepts connections")


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with running("--keep-alive-timeout", "60", "apps:echo") as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_server_without_connections_shuts_the_lifespan_down_and_ends_with_0(
    server: ServerProcess, number: signal.Signals
) -> None:
    assert server.stop(number) == 0
    assert f"{number.name}: shutting down" in server.log
    assert server.log.endswith("lifespan.shutdown\n")


def test_an_idle_keep_alive_connection_is_closed(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(GET)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        server.send_signal(signal.SIGTERM)
        # The client does not close its side: connection pools don't.
        assert server.wait() == 0
        assert receive_all(connection) == b""


def test_a_connection_without_a_request_is_closed(server: ServerProcess) -> None:
    with server.connect() as connection:
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert receive_all(connection) == b""


def test_a_running_request_finishes_while_nobody_new_is_accepted(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nfirst")
        server.wait_for("got b'first'")
        server.send_signal(signal.SIGTERM)
        server.wait_for("shutting down")
        wait_until_refused(server)
        connection.sendall(b"last")
        response = receive_all(connection)
    assert response.endswith(b"\r\n\r\nPOST / firstlast")
    assert b"connection: close" in response.lower()
    assert server.wait() == 0
    assert server.log.endswith("lifespan.shutdown\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 1012), (signal.SIGINT, 1001)], ids=["SIGTERM", "SIGINT"]
)
def test_websocket_peers_get_a_close_code_and_handlers_run_to_their_end(
    server: ServerProcess, number: signal.Signals, code: int
) -> None:
    with open_websocket(server) as first, open_websocket(server) as second:
        for websocket in first, second:
            websocket.send("hello")
            assert websocket.recv() == "hello"
        server.send_signal(number)
        for websocket in first, second:
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(DEADLINE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
    assert server.wait() == 0
    assert server.log.count("handler ended after ") == 2
    assert server.log.endswith("lifespan.shutdown\n")


@pytest.fixture
def busy() -> Iterator[ServerProcess]:
    """A server whose application never ends, with a request and a WebSocket under way."""
    with running("--graceful-timeout", "0.3", "apps:never_ends") as server, ExitStack() as peers:
        for request in GET, UPGRADE:
            peers.enter_context(server.connect()).sendall(request)
        server.wait_for("working", times=2)
        yield server


def test_after_the_graceful_timeout_what_is_left_is_cancelled(busy: ServerProcess) -> None:
    assert busy.stop() == 0
    assert busy.log.count("cancelled\n") == 2
    assert "Cancelled what still ran 0.3 s after the signal to stop (--graceful-timeout)" in busy.log


def test_a_second_signal_cancels_at_once() -> None:
    with running("--graceful-timeout", "1000", "apps:never_ends") as server, server.connect() as connection:
        connection.sendall(GET)
        server.wait_for("working")
        server.send_signal(signal.SIGINT)
        server.wait_for("shutting down")
        assert server.stop(signal.SIGINT) == 0
        assert "cancelled\n" in server.log


def test_a_peer_that_never_answers_the_close_is_waited_for_no_longer_than_the_close_timeout() -> None:
    with running("--ws-close-timeout", "0.2", "apps:echo") as server, server.connect() as connection:
        connection.sendall(UPGRADE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 101")
        assert server.stop() == 0
        assert "handler ended after 1012" in server.log
        assert "Cancelled" not in server.log


def test_a_peer_that_never_reads_holds_nothing_up_beyond_the_graceful_timeout() -> None:
    with running("--graceful-timeout", "0.3", "apps:floods") as server, server.connect() as connection:
        connection.sendall(UPGRADE)
        server.wait_for("working")
        assert server.stop() == 0


ONE, TWO = [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]

OBSTINATE = {
    # application: graceful timeout, signals, exit status
    "never_starts": ("0", ONE, 0),
    "never_shuts_down": ("0", ONE, 0),
    "never_ends_nor_heeds_cancellation": ("1000", TWO, 1),
    "blocks": ("1000", TWO, 1),
    "spins": ("1000", TWO, 1),
    "blocks_while_starting": ("1000", TWO, 1),
    "leaves_a_thread": ("0", ONE, 1),
}


@pytest.fixture(scope="module")
def obstinate() -> Iterator[dict[str, ServerProcess]]:
    """A server for each application that holds up the end, signalled. They take their seconds all at once."""
    with ExitStack() as stack:
        servers = {}
        for name, (graceful_timeout, _, _) in OBSTINATE.items():
            arguments = ["--port", "0", "--graceful-timeout", graceful_timeout, f"apps:{name}"]
            servers[name] = stack.enter_context(starting(*arguments))
        for name, server in servers.items():
            if name in ("never_ends_nor_heeds_cancellation", "blocks", "spins"):
                server.wait_for("Listening on ")
                stack.enter_context(server.connect()).sendall(GET)
            server.wait_for("working")
        for name, (_, numbers, _) in OBSTINATE.items():
            for number in numbers:
                servers[name].send_signal(number)
        yield servers


@pytest.mark.parametrize("name", OBSTINATE)
def test_the_process_ends_whatever_the_application_does(
    obstinate: dict[str, ServerProcess], name: str
) -> None:
    status = OBSTINATE[name][-1]
    assert obstinate[name].wait() == status
    # Where all else fails, the process tells where it was.
    assert ("Timeout (" in obstinate[name].log) == (status == 1)
