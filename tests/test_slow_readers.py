"""Peers that read slowly, over TCP: they have all the time they need, and those that do not read have no more."""

from __future__ import annotations

import socket
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from fcntl import ioctl
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from tests.tls_ends import SERVER_CONTEXT, End, client_context, shake_hands
from tests.transport.lines import recorded
from tests.websocket_peer import KIB, opened
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.protocol.frames import SHARED_SIZE
from trio_ws_server.protocol.websocket import State
from trio_ws_server.transport import TLSStream
from trio_ws_server.transport.kernel import NOT_SENT_AT_MOST, kept

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from typing import Unpack

    from trio.abc import Stream
    from trio.testing import MockClock

    from trio_ws_server.config import Options
    from trio_ws_server.websocket import WebSocket

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the kernel does not tell what it keeps"
)

ALL_KEPT = 200 * KIB
"""Bytes that the kernel takes at once."""

TOO_MUCH = 4 * NOT_SENT_AT_MOST
"""Bytes that it does not."""


class Reader:
    """The peer's kernel and process, between them so full that they take just what they are told to."""

    def __init__(self) -> None:
        self._far = socket.socket()
        self._far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._far.connect(listener.getsockname())
            self.near, _ = listener.accept()
        self._far.setblocking(False)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TOO_MUCH)
        self._fd = self.near.fileno()
        while not not_sent(self._fd):
            self.near.send(bytes(KIB))
            self._acknowledge()

    @contextmanager
    def closed(self) -> Iterator[None]:
        with self._far:
            yield

    def take_some(self) -> None:
        """Take so much that the other kernel knows of it."""
        before = kept(self._fd)
        assert before, "there is nothing to be taken"
        while kept(self._fd) >= before:
            with suppress(BlockingIOError):
                self._far.recv(KIB)
        self._acknowledge()

    async def wait(self, clock: MockClock, seconds: float) -> None:
        """Take nothing for a time, which passes in steps in which no timer is due twice."""
        for _ in range(round(seconds * 2)):
            clock.jump(0.5)
            await wait_all_tasks_blocked()

    def _acknowledge(self) -> None:
        """Have the kernel tell at once what it took; it takes its time, of which a mock clock shows nothing."""
        while kept(self._fd) > not_sent(self._fd):
            self._far.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def not_sent(fd: int) -> int:
    """Return how many bytes our kernel keeps that have not left it yet (SIOCOUTQNSD)."""
    return int.from_bytes(ioctl(fd, 0x894B, bytes(4)), sys.byteorder)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    with reader.closed():
        yield reader


@pytest.fixture(params=["TCP", "TLS"])
def ours(request: pytest.FixtureRequest, reader: Reader) -> Stream:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(reader.near))
    if request.param == "TCP":
        return stream
    tls = TLSStream(stream, SERVER_CONTEXT)
    server = End(tls.tls.ssl_object, tls.tls.incoming, tls.tls.outgoing)
    shake_hands(End.of_client(client_context()), server)
    return tls


@asynccontextmanager
async def connected(ours: Stream, **options: Unpack[Options]) -> AsyncGenerator[WebSocket]:
    """Run a WebSocket connection to the reader, whose other end is not there to speak for it."""
    nobody, _ = memory_stream_pair()
    async with opened(streams=(ours, nobody), **options) as (websocket, _):
        yield websocket


def state(websocket: WebSocket) -> State:
    return websocket.state


# The write timeout


async def test_a_peer_that_takes_a_little_in_each_write_timeout_is_never_dropped(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with recorded(ours, Config(write_timeout=30)) as (transport, recorder):
        transport.write(bytes(TOO_MUCH))
        for pause in (1, 29) * 5:
            await reader.wait(mock_clock, pause)
            reader.take_some()
        assert transport.congested
        assert recorder.events == []


async def test_a_peer_that_takes_no_more_is_dropped_a_quarter_of_the_write_timeout_late_at_most(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with recorded(ours, Config(write_timeout=30)) as (transport, recorder):
        transport.write(bytes(TOO_MUCH))
        await reader.wait(mock_clock, 1)
        reader.take_some()
        await reader.wait(mock_clock, 29.5)
        assert recorder.events == []
        await reader.wait(mock_clock, 0.5 + 30 / 4)
        assert recorder.events == ["lost"]


async def test_a_peer_that_takes_nothing_is_dropped_after_the_write_timeout(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with recorded(ours, Config(write_timeout=30)) as (transport, recorder):
        transport.write(bytes(TOO_MUCH))
        await reader.wait(mock_clock, 29.5)
        assert recorder.events == []
        await reader.wait(mock_clock, 0.5)
        assert recorder.events == ["lost"]


# The closing handshake


async def test_a_peer_that_takes_a_little_in_each_close_timeout_gets_what_was_sent_before_the_close_frame(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with connected(ours, close_timeout=10) as websocket:
        await websocket.send(bytes(ALL_KEPT))
        websocket.start_closing(Close(1000))
        for pause in (1, 9) * 5:
            await reader.wait(mock_clock, pause)
            reader.take_some()
        assert state(websocket) is State.CLOSING
        await reader.wait(mock_clock, 10)
        assert state(websocket) is State.CLOSING
        await reader.wait(mock_clock, 10 / 4)
        assert state(websocket) is State.CLOSED


async def test_a_peer_that_takes_nothing_is_dropped_after_the_close_timeout(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with connected(ours, close_timeout=10) as websocket:
        await websocket.send(bytes(ALL_KEPT))
        reader.take_some()
        websocket.start_closing(Close(1000))
        await reader.wait(mock_clock, 9.5)
        assert state(websocket) is State.CLOSING
        await reader.wait(mock_clock, 0.5)
        assert state(websocket) is State.CLOSED


# Keepalive


async def test_a_peer_that_takes_a_little_in_each_ping_timeout_of_what_lies_before_the_ping_is_alive(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with connected(ours, ping_interval=20, ping_timeout=20) as websocket:
        await reader.wait(mock_clock, 19)
        await websocket.send(bytes(ALL_KEPT))
        await reader.wait(mock_clock, 1)
        for pause in (1, 19) * 5:
            await reader.wait(mock_clock, pause)
            reader.take_some()
            # What lies behind the ping tells nothing, and hides nothing.
            await websocket.send(bytes(10 * KIB))
        assert state(websocket) is State.OPEN


async def test_many_small_messages_behind_the_ping_do_not_hide_what_the_peer_takes(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with connected(ours, ping_interval=20, ping_timeout=20, write_high_water=TOO_MUCH) as websocket:
        await reader.wait(mock_clock, 19)
        await websocket.send(bytes(ALL_KEPT))
        await reader.wait(mock_clock, 1)
        for _ in range(5):
            await reader.wait(mock_clock, 19.5)
            reader.take_some()
            for _ in range(300):
                await websocket.send(b"")
            await reader.wait(mock_clock, 0.5)
        assert state(websocket) is State.OPEN


async def test_a_peer_that_takes_nothing_of_what_lies_before_the_ping_is_dead_after_the_ping_timeout(
    ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with connected(ours, ping_interval=20, ping_timeout=20) as websocket:
        await websocket.send(bytes(ALL_KEPT))
        await reader.wait(mock_clock, 10)
        reader.take_some()
        await reader.wait(mock_clock, 29.5)
        assert state(websocket) is State.OPEN
        await reader.wait(mock_clock, 0.5)
        assert state(websocket) is State.CLOSED


@pytest.mark.parametrize("size", [SHARED_SIZE + 1, NOT_SENT_AT_MOST], ids=["has room for it", "gets full"])
async def test_that_we_send_more_behind_the_ping_is_no_sign_of_a_peers_life(
    size: int, ours: Stream, reader: Reader, mock_clock: MockClock
) -> None:
    async with connected(ours, ping_interval=20, ping_timeout=20, write_high_water=TOO_MUCH) as websocket:
        await websocket.send(bytes(SHARED_SIZE + 1))
        await reader.wait(mock_clock, 20)
        for _ in range(3):
            await reader.wait(mock_clock, 6)
            await websocket.send(bytes(size))
        await reader.wait(mock_clock, 2)
        assert state(websocket) is State.CLOSED
