"""TLS over any stream, with an end of our side that leaves the socket open to the peer's last bytes."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio
import trustme
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from tests.helpers import OneWay, Recorder, read_all
from trio_ws_server.config import Config
from trio_ws_server.transport import TLSStream, open_engine, open_transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

T = TypeVar("T")

CA = trustme.CA()
SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("server.test").configure_cert(SERVER_CONTEXT)
# On in Debian's Python, where it makes a connection that is cut look like one that is ended.
SERVER_CONTEXT.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF

versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.maximum_version = version
    return context


@asynccontextmanager
async def connected(
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> AsyncGenerator[tuple[TLSStream, trio.SSLStream[Any]]]:
    """Yield our server's end of a connection and a client's, which is Trio's; close ours at last."""
    ours, theirs = memory_stream_pair()
    server = TLSStream(ours, SERVER_CONTEXT)
    client = trio.SSLStream(theirs, client_context(version), server_hostname="server.test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    yield server, client
    await server.aclose()


class OpenSSLClient:
    """A TLS client step by step, for what `trio.SSLStream` has no way to do: end one side only."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.incoming, self.outgoing, server_hostname="server.test")

    async def until(self, step: Callable[[], T]) -> T:
        """Repeat the step, with what the server sends, until it needs no more of that."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:
                await self.flush()
            self.incoming.write(await self.stream.receive_some())

    async def flush(self) -> None:
        await self.stream.send_all(self.outgoing.read())


# The stream


@versions
async def test_bytes_go_both_ways(version: ssl.TLSVersion) -> None:
    async with connected(version) as (server, client):
        await server.wait_send_all_might_not_block()
        await server.send_all(b"from the server")
        await client.send_all(b"from the client")
        assert await client.receive_some() == b"from the server"
        assert await server.receive_some() == b"from the client"


async def test_a_client_verifies_the_servers_name() -> None:
    ours, theirs = memory_stream_pair()
    client = TLSStream(ours, client_context(), server_hostname="other.test")
    server = trio.SSLStream(theirs, SERVER_CONTEXT, server_side=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.do_handshake()
        nursery.cancel_scope.cancel()
    assert "other.test" in str(caught.value.__cause__)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\x00" * 100, b""])
async def test_a_handshake_with_something_else_than_tls_fails(sent: bytes) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(sent)
    await theirs.send_eof()
    with pytest.raises(trio.BrokenResourceError):
        await TLSStream(ours, SERVER_CONTEXT).do_handshake()


@versions
async def test_ending_our_side_tells_the_peer_so_by_close_notify(version: ssl.TLSVersion) -> None:
    async with connected(version) as (server, client):
        await server.send_all(b"last words")
        await server.send_eof()
        # A truncated connection would raise BrokenResourceError.
        assert await read_all(client) == b"last words"
        assert await client.transport_stream.receive_some() == b""


@versions
async def test_the_peer_can_still_send_after_our_end(version: ssl.TLSVersion) -> None:
    async with connected(version) as (server, client):
        await server.send_eof()
        await client.send_all(b"data")
        assert await server.receive_some() != b""
        await client.aclose()
        await read_all(server)


@versions
async def test_the_peers_end_is_seen_by_a_reader_that_waits_since_before_our_end(
    version: ssl.TLSVersion,
) -> None:
    async with connected(version) as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(read_all, server)
        await wait_all_tasks_blocked()
        await server.send_eof()
        await client.send_all(bytes(100_000))
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await client.aclose()


async def test_after_the_peers_close_notify_it_still_gets_what_is_sent() -> None:
    ours, theirs = memory_stream_pair()
    server = TLSStream(ours, SERVER_CONTEXT)
    client = OpenSSLClient(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await client.until(client.tls.do_handshake)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    await client.flush()
    assert await server.receive_some() == b""
    await server.send_all(b"response")
    assert await client.until(lambda: client.tls.read(100)) == b"response"


@versions
async def test_a_connection_cut_without_close_notify_is_broken(version: ssl.TLSVersion) -> None:
    async with connected(version) as (server, client):
        await client.transport_stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()


async def test_a_stream_below_that_cannot_end_one_side_is_closed_with_ours() -> None:
    ours, theirs = memory_stream_pair()
    server = TLSStream(OneWay(ours), SERVER_CONTEXT)
    client = trio.SSLStream(theirs, client_context(), server_hostname="server.test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await client.do_handshake()
    await server.send_eof()
    assert await read_all(client) == b""
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"data")


async def test_closing_closes_the_stream_below() -> None:
    async with connected() as (server, client):
        await server.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"data")


# Under a transport


@versions
async def test_shutdown_ends_with_the_peers_end(version: ssl.TLSVersion, autojump_clock: MockClock) -> None:
    async with connected(version) as (server, client):
        async with (
            open_engine() as engine,
            open_transport(server, Config(), engine) as transport,
            trio.open_nursery() as nursery,
        ):
            transport.receiver = recorder = Recorder()
            transport.write(b"last words")
            nursery.start_soon(transport.shutdown, 5)
            assert await read_all(client) == b"last words"
            await client.aclose()
        assert trio.current_time() == 0
        assert recorder.events == ["eof", "lost"]


@versions
async def test_a_peer_that_keeps_sending_gets_the_last_words(
    version: ssl.TLSVersion, autojump_clock: MockClock
) -> None:
    async with connected(version) as (server, client):
        async with (
            open_engine() as engine,
            open_transport(server, Config(), engine) as transport,
            trio.open_nursery() as nursery,
        ):
            transport.receiver = recorder = Recorder()
            transport.write(b"last words")
            nursery.start_soon(transport.shutdown, 5)
            for _ in range(10):
                await trio.sleep(0.1)
                await client.send_all(bytes(1000))
            assert await read_all(client) == b"last words"
        assert trio.current_time() == 5
        assert recorder.events == ["lost"]
        assert recorder.data == b""


async def test_a_peer_that_does_not_even_take_our_end_is_dropped(autojump_clock: MockClock) -> None:
    ours, theirs = lockstep_stream_pair()
    server = TLSStream(ours, SERVER_CONTEXT)
    client = trio.SSLStream(theirs, client_context(), server_hostname="server.test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    async with open_engine() as engine, open_transport(server, Config(write_timeout=30), engine) as transport:
        transport.receiver = recorder = Recorder()
        await transport.shutdown(5)
        assert trio.current_time() == 30
        assert recorder.events == ["lost"]


async def test_a_client_that_hangs_up_without_close_notify_is_a_lost_connection() -> None:
    async with (
        connected() as (server, client),
        open_engine() as engine,
        open_transport(server, Config(), engine) as transport,
    ):
        transport.receiver = recorder = Recorder()
        await client.transport_stream.aclose()
        await wait_all_tasks_blocked()
        assert recorder.events == ["lost"]
