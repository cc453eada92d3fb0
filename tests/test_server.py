"""The server takes connections from the network, keeps them apart, and comes to its end in time."""

from __future__ import annotations

import errno
import logging
import math
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import CloseConnection

from tests.helpers import Client, logged_errors, native
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.listeners import BoundListener
from trio_ws_server.server import Server
from trio_ws_server.tls import ServerTLS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import h11

    from trio_ws_server.application import Application
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade
    from trio_ws_server.websocket import WebSocket

CONFIG = Config(access_log=False, graceful_timeout=30, handshake_timeout=10)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

CA = trustme.CA()
SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("server.test").configure_cert(SERVER_CONTEXT)
CLIENT_CONTEXT = ssl.create_default_context()
CA.configure_trust(CLIENT_CONTEXT)
TLS = ServerTLS.of(SERVER_CONTEXT)


class ListeningSocket(trio.socket.SocketType):
    """A socket of the operating system's that has what the test gives it: connections, and errors."""

    type = socket.SOCK_STREAM
    family = socket.AF_INET

    def __init__(self) -> None:
        self.closed = False
        self.accepted = 0
        self._give, self._take = trio.open_memory_channel[trio.socket.SocketType | OSError](math.inf)

    def give(self, outcome: trio.socket.SocketType | OSError) -> None:
        """Let accept(2) return a connection, or fail."""
        if self.closed and not isinstance(outcome, OSError):
            outcome.close()
        self._give.send_nowait(outcome)

    async def client(self) -> Client:
        """Return a client's end of a connection that is now to be accepted."""
        ours, theirs = trio.socket.socketpair()
        self.give(theirs)
        return Client(trio.SocketStream(ours))

    async def accept(self) -> tuple[trio.socket.SocketType, Any]:
        outcome = await self._take.receive()
        if isinstance(outcome, OSError):
            raise outcome
        self.accepted += 1
        return outcome, None

    def getsockopt(self, *args: Any) -> Any:
        raise OSError(errno.ENOPROTOOPT, "not a real socket")

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


class DataSocket(trio.socket.SocketType):
    """A connection's socket on which some calls fail in a way of their own."""

    type = socket.SOCK_STREAM

    def __init__(self, sock: trio.socket.SocketType, **failing: BaseException) -> None:
        self._sock = sock
        self._failing = failing

    def __getattribute__(self, name: str) -> Any:
        if name in ("_sock", "_failing", "type", "__class__"):
            return object.__getattribute__(self, name)
        if name not in self._failing:
            return getattr(self._sock, name)

        def fail(*args: Any) -> Any:
            raise self._failing[name]

        return fail


class Hello:
    """An application that takes so many seconds for a request, and keeps a WebSocket open until it is closed."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.ended = 0

    async def http(self, connection: HttpConnection, request: h11.Request, peer: Peer) -> None:
        await trio.sleep(self.seconds)
        await connection.respond(200, [], b"hello")
        self.ended += 1

    async def websocket(self, upgrade: Upgrade) -> None:
        websocket = upgrade.accept()
        while await websocket.next_message() is not None:
            pass
        self.ended += 1


@asynccontextmanager
async def running(
    application: Application, *, config: Config = CONFIG, tls: ServerTLS | None = None
) -> AsyncGenerator[tuple[Server, ListeningSocket]]:
    """Run a server on a listening socket of ours; at last shut it down, and see that it closes that."""
    network = ListeningSocket()
    server = Server([BoundListener(trio.SocketListener(network), ("192.0.2.2", 80))], config, tls=tls)

    async def run() -> None:
        with server.scope:
            await server.run(application)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield server, network
        server.shut_down()
    assert network.closed


async def response_to(client: Client) -> bytes:
    await client.send(LAST_GET)
    response = await client.receive_all()
    await client.stream.aclose()
    return response


async def assert_serves(network: ListeningSocket) -> None:
    assert (await response_to(await network.client())).endswith(b"hello")


# Accepting


async def test_connections_are_served_side_by_side(autojump_clock: MockClock) -> None:
    async with running(Hello(seconds=1)) as (_, network), trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(assert_serves, network)
    assert trio.current_time() == 1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_a_want_of_resources_is_logged_and_waited_out(
    code: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Hello()) as (_, network):
        network.give(OSError(code, "out of something"))
        network.give(OSError(code, "out of something"))
        await assert_serves(network)
        assert trio.current_time() == 0.2
    assert logged_errors(caplog) == ["Cannot accept a connection: out of something; trying again"] * 2


async def test_any_other_error_of_a_listener_comes_out_of_the_server() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="a bug"), flatten_subgroups=True):
        async with running(Hello()) as (_, network):
            network.give(OSError(errno.EINVAL, "a bug"))
            await trio.sleep_forever()


async def test_the_server_knows_its_addresses() -> None:
    async with running(Hello()) as (server, _):
        assert server.addresses == [("192.0.2.2", 80)]
        assert server.urls == ["http://192.0.2.2:80"]
    async with running(Hello(), tls=TLS) as (server, _):
        assert server.urls == ["https://192.0.2.2:80"]


# Keeping connections apart


@pytest.mark.parametrize("call", ["recv", "send"])
async def test_an_error_that_nobody_foresaw_ends_its_own_connection_only(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Hello()) as (_, network):
        bystander = await network.client()
        await bystander.open()
        ours, theirs = trio.socket.socketpair()
        network.give(DataSocket(theirs, **{call: KeyError("a bug")}))
        victim = Client(trio.SocketStream(ours))
        await victim.send(GET)
        with suppress(trio.BrokenResourceError):  # a reset, for what was not read
            assert await victim.receive_all() == b""
        await victim.stream.aclose()
        await bystander.send_event(CloseConnection(1000))
        assert isinstance(await bystander.event(), CloseConnection)
        await bystander.stream.aclose()
        await assert_serves(network)
    (error,) = logged_errors(caplog)
    assert "internal error, connection dropped" in error
    assert "KeyError: 'a bug'" in error
    assert theirs.fileno() == -1


async def test_a_client_that_is_gone_when_it_is_accepted_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(Hello()) as (_, network):
        ours, theirs = trio.socket.socketpair()
        ours.close()
        gone = OSError(errno.ENOTCONN, "not connected")
        network.give(DataSocket(theirs, getpeername=gone, getsockname=gone))
        await assert_serves(network)
    assert logged_errors(caplog) == []
    assert theirs.fileno() == -1


async def test_an_application_that_exits_does_not_take_the_server_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def leave(websocket: WebSocket) -> None:
        raise SystemExit(1)

    async with running(native(leave)) as (_, network):
        for _ in range(2):
            client = await network.client()
            await client.open()
            event = await client.event()
            assert isinstance(event, CloseConnection)
            assert event.code == 1011
            await client.stream.aclose()
    assert len(logged_errors(caplog)) == 2


async def test_a_connection_that_fails_to_take_note_of_a_shutdown_keeps_no_other_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(Hello):
        async def websocket(self, upgrade: Upgrade) -> None:
            def fail(close: Close) -> None:
                raise KeyError("a bug")

            if upgrade.request.target == b"/faulty":
                upgrade.start_closing = fail  # type: ignore[method-assign]
            await super().websocket(upgrade)

    async with running(Faulty()) as (server, network):
        clients = [await network.client() for _ in range(4)]
        for client in clients:
            await client.open("/faulty" if client is clients[1] else "/")
        server.shut_down()
        for client in clients:
            if client is not clients[1]:
                event = await client.event()
                assert isinstance(event, CloseConnection)
                assert event.code == 1012
            await client.stream.aclose()
    (error,) = logged_errors(caplog)
    assert "KeyError: 'a bug'" in error


async def test_a_close_that_may_not_be_sent_does_not_shut_down() -> None:
    async with running(Hello()) as (server, network):
        with pytest.raises(ValueError, match="close code 1006 may not be sent"):
            server.shut_down(Close(1006))
        await assert_serves(network)


# TLS


async def open_tls(network: ListeningSocket) -> Client:
    client = await network.client()
    stream = trio.SSLStream(client.stream, CLIENT_CONTEXT, server_hostname="server.test")
    await stream.do_handshake()
    return Client(stream)


async def test_a_shutdown_does_not_wait_for_tls_handshakes(autojump_clock: MockClock) -> None:
    async with running(Hello(), tls=TLS) as (server, network):
        client = await network.client()
        await wait_all_tasks_blocked()
        server.shut_down()
        assert await client.receive_all() == b""
        await client.stream.aclose()
    assert trio.current_time() == 0


async def test_over_tls_responses_come_whole_and_the_end_is_announced() -> None:
    async with running(Hello(), tls=TLS) as (_, network):
        client = await open_tls(network)
        await client.send(LAST_GET)
        assert (await client.receive_all()).endswith(b"hello")
        await client.stream.aclose()


async def test_over_tls_the_application_sees_the_connections_tls() -> None:
    seen = []

    class Look(Hello):
        async def http(self, connection: HttpConnection, request: h11.Request, peer: Peer) -> None:
            seen.append(peer.tls)
            await super().http(connection, request, peer)

    async with running(Look(), tls=TLS) as (_, network):
        await response_to(await open_tls(network))
    ((stream, tls),) = [tls for tls in seen if tls is not None]
    assert stream.version() == "TLSv1.3"
    assert tls is TLS


@pytest.mark.parametrize("sent", [GET, b"\x16\x03\x01\x00\x05hello", b""], ids=["HTTP", "garbage", "nothing"])
async def test_a_tls_handshake_that_fails_ends_its_own_connection_only(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_ws_server")
    async with running(Hello(), tls=TLS) as (_, network):
        client = await network.client()
        await client.send(sent)
        await client.send_eof()
        await client.receive_all()
        await client.stream.aclose()
        assert (await response_to(await open_tls(network))).endswith(b"hello")
    assert logged_errors(caplog) == []
    assert "TLS handshake failed" in caplog.text


async def test_a_tls_handshake_that_does_not_come_to_its_end_is_given_up_on(
    autojump_clock: MockClock,
) -> None:
    async with running(Hello(), tls=TLS) as (_, network):
        client = await network.client()
        await client.send(b"\x16\x03\x01")
        await client.receive_all()
        assert trio.current_time() == 10
        await client.stream.aclose()


# Shutting down


async def closed_with(client: Client) -> Close:
    event = await client.event()
    assert isinstance(event, CloseConnection)
    await client.send_event(event.response())
    await client.stream.aclose()
    return Close(int(event.code), event.reason or "")


@pytest.mark.parametrize("close", [None, Close(1001), Close(4000, "maintenance")])
async def test_shutting_down_closes_websockets_with_the_code_given(close: Close | None) -> None:
    application = Hello()
    async with running(application) as (server, network):
        client = await network.client()
        await client.open()
        server.shut_down() if close is None else server.shut_down(close)
        assert await closed_with(client) == (close or Close(1012))
    assert application.ended == 1


async def test_shutting_down_stops_accepting_and_lets_running_requests_finish(
    autojump_clock: MockClock,
) -> None:
    async with running(Hello(seconds=5)) as (server, network):
        client = await network.client()
        await client.send(GET * 2)
        await wait_all_tasks_blocked()
        server.shut_down()
        await wait_all_tasks_blocked()
        late = await network.client()
        response = await client.receive_all()
        assert response.count(b"HTTP/1.1 200") == 1
        assert b"\r\nconnection: close\r\n" in response.lower()
        assert trio.current_time() == 5
        assert (network.accepted, network.closed) == (1, True)
        await client.stream.aclose()
        await late.stream.aclose()


async def test_shutting_down_ends_idle_connections_at_once(autojump_clock: MockClock) -> None:
    async with running(Hello()) as (server, network):
        clients = [await network.client() for _ in range(3)]
        await clients[0].send(GET)
        await clients[0].receive_until(b"hello")
        await wait_all_tasks_blocked()
        server.shut_down()
        for client in clients:
            assert await client.receive_all() == b""
            await client.stream.aclose()
    assert trio.current_time() == 0


@pytest.mark.parametrize("graceful_timeout", [0, 30])
async def test_what_still_runs_after_the_graceful_timeout_is_cancelled(
    graceful_timeout: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def ignore_all(websocket: WebSocket) -> None:
        await trio.sleep_forever()

    config = Config(access_log=False, graceful_timeout=graceful_timeout)
    async with running(native(ignore_all), config=config) as (_, network):
        client = await network.client()
        await client.open()
    assert trio.current_time() == graceful_timeout
    assert [record.getMessage() for record in caplog.records] == [
        f"Cancelled what still ran {graceful_timeout:g} s after the signal to stop (--graceful-timeout)"
    ]
    await client.stream.aclose()


async def test_shutting_down_again_gives_no_more_time(autojump_clock: MockClock) -> None:
    async with running(Hello(seconds=math.inf)) as (server, network):
        client = await network.client()
        await client.send(GET)
        await wait_all_tasks_blocked()
        server.shut_down()
        await trio.sleep(20)
    assert trio.current_time() == 30
    await client.stream.aclose()


async def test_shutting_down_before_running_serves_nobody() -> None:
    network = ListeningSocket()
    server = Server([BoundListener(trio.SocketListener(network), ("192.0.2.2", 80))], CONFIG)
    server.shut_down()
    await server.run(Hello())
    assert network.closed


async def test_cancelling_drops_everything_at_once(autojump_clock: MockClock) -> None:
    async with running(Hello(seconds=math.inf)) as (server, network):
        client = await network.client()
        await client.send(GET)
        await wait_all_tasks_blocked()
        server.cancel()
        assert await client.receive_all() == b""
        await client.stream.aclose()
    assert trio.current_time() == 0
