"""TLS over any stream, with an end of our side that leaves the socket open to the peer's last bytes."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from tests.helpers import OneWay, Recorder, read_all
from tests.tls_ends import SERVER_CONTEXT, End, TLSPeer, client_context
from trio_ws_server.config import Config
from trio_ws_server.transport import TLSStream, open_engine, open_transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


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


# The stream


@versions
async def test_bytes_go_both_ways(version: ssl.TLSVersion) -> None:
    async with connected(version) as (server, client):
        await server.wait_send_all_might_not_block()
        await server.send_all(b"from the server")
        await client.send_all(b"from the client")
        assert await client.receive_some() == b"from the server"
        assert await server.receive_some() == b"from the client"


async def failure_of_handshake(end: TLSStream | trio.SSLStream[Any]) -> str:
    with pytest.raises(trio.BrokenResourceError) as caught:
        await end.do_handshake()
    return str(caught.value.__cause__)


async def test_a_client_verifies_the_servers_name_and_tells_it_what_was_wrong() -> None:
    ours, theirs = memory_stream_pair()
    client = TLSStream(ours, client_context(), server_hostname="other.test")
    server = trio.SSLStream(theirs, SERVER_CONTEXT, server_side=True)
    told = []

    async def serve() -> None:
        told.append(await failure_of_handshake(server))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert "other.test" in await failure_of_handshake(client)
        await ours.aclose()
    assert "alert bad certificate" in told[0]


async def test_a_server_tells_a_client_that_it_cannot_agree_with_why() -> None:
    ours, theirs = memory_stream_pair()
    modern = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    modern.minimum_version = ssl.TLSVersion.TLSv1_3
    client = trio.SSLStream(theirs, client_context(ssl.TLSVersion.TLSv1_2), server_hostname="server.test")

    async def serve() -> None:
        await failure_of_handshake(TLSStream(ours, modern))
        await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert "alert protocol version" in await failure_of_handshake(client)


async def test_a_handshake_takes_nothing_that_comes_behind_it() -> None:
    ours, theirs = memory_stream_pair()
    server = TLSStream(ours, SERVER_CONTEXT)
    client = End.of_client(client_context())
    with pytest.raises(ssl.SSLWantReadError):
        client.ssl_object.do_handshake()
    await theirs.send_all(client.outgoing.read())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await wait_all_tasks_blocked()
        client.incoming.write(await theirs.receive_some())
        client.ssl_object.do_handshake()
        client.ssl_object.write(b"request")
        await theirs.send_all(client.outgoing.read())
    assert not server.tls.incoming.pending
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.ssl_object.read()
    assert await server.receive_some() == b"request"


async def test_a_client_that_only_sends_has_nothing_to_read() -> None:
    async with connected() as (server, client):
        await client.send_all(b"request")
        assert await server.receive_some() == b"request"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.transport_stream.receive_some)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            nursery.cancel_scope.cancel()


async def test_session_tickets_come_with_the_first_data() -> None:
    async with connected() as (server, client):
        assert not client.session.has_ticket
        await server.send_all(b"response")
        assert await client.receive_some() == b"response"
        assert client.session.has_ticket


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
    client = TLSPeer(theirs, End.of_client(client_context()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await client.do_handshake()
    await client.send_eof()
    assert await server.receive_some() == b""
    await server.send_all(b"response")
    assert await client.receive_some() == b"response"


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
