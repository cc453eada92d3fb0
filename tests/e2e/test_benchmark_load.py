"""The load of the benchmarks on a server that wsproto speaks for, and tests drive: what it does with pings."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Event, Ping, Pong

from benchmarks import frames
from benchmarks.programs import LOAD, compile_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEADLINE = 20.0

RESPONSE = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
"""As much of one as the load looks at."""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    """Compile the load."""
    compile_all()


class Server:
    """The server's end of the one connection."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._connection = Connection(ConnectionType.SERVER)
        self._events: list[Event] = []

    def send(self, *events: Event) -> None:
        """Send frames in one piece."""
        self.stream.sendall(b"".join(map(self._connection.send, events)))

    def receive(self) -> Event:
        """Return what the next frame says; of a message, all that has come of it."""
        while not self._events:
            data = self.stream.recv(1 << 16)
            assert data, "the load has ended"
            self._connection.receive_data(data)
            self._events.extend(self._connection.events())
        return self._events.pop(0)


@contextmanager
def loaded(mode: str, messages: Sequence[bytes], *, receive_buffer: int | None = None) -> Iterator[Server]:
    """Run the load on a server, with one message at a time in flight on one connection, until this is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        port = listener.getsockname()[1]
        arguments = [mode, str(port), "1", "1", "0", str(DEADLINE), "0"]
        with subprocess.Popen([LOAD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
            try:
                assert load.stdin is not None
                blocks = [frames.opening_request(port), b"", frames.CLOSE_FRAME, *messages]
                load.stdin.write(b"".join(len(block).to_bytes(4, "little") + block for block in blocks))
                load.stdin.close()
                stream, _ = listener.accept()
                with stream:
                    stream.settimeout(DEADLINE)
                    while not stream.recv(1 << 16, socket.MSG_PEEK).endswith(b"\r\n\r\n"):
                        pass
                    stream.recv(1 << 16)
                    stream.sendall(RESPONSE)
                    yield Server(stream)
            finally:
                load.kill()


@pytest.mark.parametrize("mode", ["echo", "rate", "fan-out", "connect", "idle", "keepalive"])
def test_a_ping_is_answered_in_every_mode(mode: str) -> None:
    with loaded(mode, frames.binaries(1, 16)) as server:
        server.send(Ping(b"payload"))

        while isinstance(event := server.receive(), BytesMessage):
            pass
        assert event == Pong(b"payload")


@pytest.mark.parametrize("size", [0, 1, 125])
def test_the_pong_has_the_payload_of_the_ping(size: int) -> None:
    payload = bytes(range(size))
    with loaded("keepalive", frames.binaries(1, 16)) as server:
        server.send(Ping(payload))

        assert server.receive() == Pong(payload)


def test_a_ping_that_comes_byte_by_byte_is_answered() -> None:
    with loaded("keepalive", frames.binaries(1, 16)) as server:
        server.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in Connection(ConnectionType.SERVER).send(Ping(b"payload")):
            server.stream.sendall(bytes([byte]))

        assert server.receive() == Pong(b"payload")


def test_pongs_wait_for_the_end_of_the_message_that_is_being_sent_and_the_latest_is_certain() -> None:
    size = 8 << 20
    with loaded("echo", frames.binaries(1, size), receive_buffer=4096) as server:
        server.send(Ping(b"first"), Ping(b"second"))
        received = 0
        while received < size:
            event = server.receive()
            assert isinstance(event, BytesMessage)
            received += len(event.data)

        assert received == size
        if (pong := server.receive()) == Pong(b"first"):
            pong = server.receive()
        assert pong == Pong(b"second")
