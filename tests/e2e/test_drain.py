"""A thousand connections, of which a hundred have stalled: a server tells all of its end, and ends."""

from __future__ import annotations

import resource
import selectors
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.helpers import DEADLINE, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.helpers import ServerProcess

READING, STALLED = 900, 100

UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CLOSE_1012 = b"\x88\x02\x03\xf4"


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    """Room for all connections, in this process and in the server, which inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * (READING + STALLED)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowded(graceful_timeout: float) -> Iterator[tuple[ServerProcess, list[socket.socket]]]:
    """Run a server that all are connected to; yield it with those that read, and have got nothing but the 101."""
    options = ["--graceful-timeout", str(graceful_timeout), "--ws-ping-interval", "0", "--no-access-log"]
    with running(*options, "apps:floods_or_echoes") as server, ExitStack() as peers:
        for _ in range(STALLED):
            peers.enter_context(upgrading(server, "/flood"))
        reading = [peers.enter_context(upgrading(server, "/")) for _ in range(READING)]
        for connection in reading:
            assert connection.recv(4096).endswith(b"\r\n\r\n")
        server.wait_for("working\n", times=STALLED)
        yield server, reading


def upgrading(server: ServerProcess, target: str) -> socket.socket:
    """Open a connection and ask for a WebSocket; the answer is still to be read."""
    connection = socket.socket()
    # So little that the server's end soon fills up where this one is not read from.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(DEADLINE)
    connection.connect(server.address)
    connection.sendall(UPGRADE.format(target).encode())
    return connection


def receive_closes(connections: list[socket.socket]) -> None:
    """Wait until each connection has received a close frame, and see that it has received nothing else."""
    deadline = time.monotonic() + DEADLINE
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        while waiting := len(selector.get_map()):
            ready = selector.select(deadline - time.monotonic())
            assert ready, f"{waiting} connections have no close frame"
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                assert key.fileobj.recv(4096) == CLOSE_1012
                selector.unregister(key.fileobj)


def test_at_the_deadline_the_stalled_are_cancelled_and_the_lifespan_is_last() -> None:
    with crowded(graceful_timeout=3) as (server, reading):
        signalled = time.monotonic()
        server.send_signal(signal.SIGTERM)
        receive_closes(reading)
        for connection in reading:
            connection.close()
        assert server.wait() == 0
        assert time.monotonic() - signalled >= 3
        assert "Cancelled what still ran 3 s after the signal to stop" in server.log
        assert server.log.count("flood ended\n") == STALLED
        assert server.log.endswith("lifespan.shutdown\n")


def test_a_second_signal_ends_a_thousand_open_connections_at_once() -> None:
    with crowded(graceful_timeout=1000) as (server, reading):
        server.send_signal(signal.SIGTERM)
        receive_closes(reading)
        # Status 0 says that it took no more than the seconds there are for cancelling.
        assert server.stop(signal.SIGINT) == 0
        assert "Cancelled everything that still ran" in server.log
        assert server.log.count("flood ended\n") == STALLED
