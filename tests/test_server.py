"""The server takes connections from the network, keeps them apart, and comes to its end in time."""

from __future__ import annotations

import errno
import gc
import logging
import math
import random
import socket
import ssl
import tracemalloc
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, RejectConnection

from tests.helpers import Client, asgi, logged_errors, native
from trio_ws_server.admission import MAX_REFUSED, REFUSAL_TIMEOUT
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.errors import ConnectionClosed
from trio_ws_server.listeners import BoundListener
from trio_ws_server.protocol.websocket import State
from trio_ws_server.server import CANCELLATION_COST, LIFESPAN_GRACE, Server
from trio_ws_server.tls import ServerTLS
from trio_ws_server.upgrade import Upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from trio_ws_server.application import Application
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
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

    async def client(self, host: str | None = None, **outcomes: Any) -> Client:
        """Return the end of a client at this address, if it has one, of a connection that is now to be accepted."""
        ours, theirs = trio.socket.socketpair()
        if host is not None:
            outcomes["getpeername"] = (host, 4000)
        self.give(DataSocket(theirs, **outcomes))
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
        """Close, and with it the connections that nobody has accepted."""
        self.closed = True
        with suppress(trio.WouldBlock):
            while True:
                waiting = self._take.receive_nowait()
                if not isinstance(waiting, OSError):
                    waiting.close()


def listener_on(network: ListeningSocket) -> BoundListener:
    """Return what a server is given to listen on, on which nobody can be accepted without a wait."""
    with socket.socket() as nobody:
        return BoundListener(trio.SocketListener(network), nobody, ("192.0.2.2", 80))


class DataSocket(trio.socket.SocketType):
    """A connection's socket on which some calls have outcomes of their own: an exception, or what they return."""

    type = socket.SOCK_STREAM

    def __init__(self, sock: trio.socket.SocketType, **outcomes: Any) -> None:
        self._sock = sock
        self._outcomes = outcomes

    def __getattribute__(self, name: str) -> Any:
        if name in ("_sock", "_outcomes", "type", "__class__"):
            return object.__getattribute__(self, name)
        if name not in self._outcomes:
            return getattr(self._sock, name)

        def call(*args: Any) -> Any:
            outcome = self._outcomes[name]
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return call


class Hello:
    """An application that takes so many seconds for a request, and keeps a WebSocket open until it is closed."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.ended = 0

    async def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> None:
        await trio.sleep(self.seconds)
        await connection.respond(200, [], b"hello")
        self.ended += 1

    async def websocket(self, upgrade: Upgrade) -> None:
        websocket = upgrade.accept()
        with suppress(ConnectionClosed):
            async for _ in websocket:
                pass
        self.ended += 1


@asynccontextmanager
async def running(
    application: Application, *, config: Config = CONFIG, tls: ServerTLS | None = None
) -> AsyncGenerator[tuple[Server, ListeningSocket]]:
    """Run a server on a listening socket of ours; at last shut it down, and see that it closes that."""
    network = ListeningSocket()
    server = Server([listener_on(network)], config, tls=tls)

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


async def test_the_server_keeps_the_memory_of_large_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("trio_ws_server.server.keep_freed_memory", lambda: calls.append("kept"))
    async with running(Hello()):
        await wait_all_tasks_blocked()
        assert calls == ["kept"]


async def test_the_server_knows_its_addresses() -> None:
    async with running(Hello()) as (server, _):
        assert server.addresses == [("192.0.2.2", 80)]
        assert server.urls == ["http://192.0.2.2:80"]
    async with running(Hello(), tls=TLS) as (server, _):
        assert server.urls == ["https://192.0.2.2:80"]


# Keeping connections apart


async def test_an_error_that_nobody_foresaw_ends_its_own_connection_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Hello()) as (_, network):
        bystander = await network.client()
        await bystander.open()
        ours, theirs = trio.socket.socketpair()
        sound, descriptor = socket.socket.recv_into, theirs.fileno()

        def faulty(sock: socket.socket, *args: Any) -> Any:
            if sock.fileno() == descriptor:
                raise KeyError("a bug")
            return sound(sock, *args)

        with monkeypatch.context() as patches:
            patches.setattr(socket.socket, "recv_into", faulty)
            network.give(theirs)
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
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_closing(upgrade: Upgrade, close: Close) -> None:
        if upgrade.request.target == b"/faulty":
            raise KeyError("a bug")
        unpatched(upgrade, close)

    unpatched = Upgrade.start_closing
    monkeypatch.setattr(Upgrade, "start_closing", start_closing)
    async with running(Hello()) as (server, network):
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


# Memory


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: server.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def asgi_listener(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await receive()


async def native_listener(websocket: WebSocket) -> None:
    await websocket.recv()


@pytest.mark.parametrize(
    ("application", "kib"),
    [(asgi(asgi_listener), 7.5), (native(native_listener), 6.5)],
    ids=["ASGI", "native"],
)
async def test_an_idle_websocket_takes_little_memory(application: Application, kib: float) -> None:
    count = 100

    def connect() -> Iterator[socket.socket]:
        for _ in range(count):
            ours, theirs = socket.socketpair()
            network.give(trio.socket.from_stdlib_socket(theirs))
            ours.send(HANDSHAKE)
            yield ours

    async with running(application) as (_, network):
        clients = [*connect()]  # what is kept of a first time does not count
        await wait_all_tasks_blocked(0.01)
        clients += connect()
        tracemalloc.start()
        try:
            await wait_all_tasks_blocked(0.01)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
            client.close()
    assert held / count < kib * 1024


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


async def test_a_client_whose_tls_handshake_fails_is_told_why_whatever_it_has_sent_behind_it() -> None:
    server_hello = bytes([22, 3, 3, 0, 4, 2, 0, 0, 0])
    async with running(Hello(), tls=TLS) as (_, network):
        client = await network.client()
        await client.send(server_hello)
        await wait_all_tasks_blocked()
        # A server that has closed its socket would answer this with a reset, before which nothing may be read.
        await client.send(bytes(100 * 1024))
        assert await client.receive_all() == bytes([21, 3, 3, 0, 2, 2, 10])  # a fatal unexpected_message
        await client.stream.aclose()


async def test_over_tls_responses_come_whole_and_the_end_is_announced() -> None:
    async with running(Hello(), tls=TLS) as (_, network):
        client = await open_tls(network)
        await client.send(LAST_GET)
        assert (await client.receive_all()).endswith(b"hello")
        await client.stream.aclose()


async def test_over_tls_the_application_sees_the_connections_tls() -> None:
    seen = []

    class Look(Hello):
        async def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> None:
            seen.append(peer.tls)
            await super().http(connection, request, peer)

    async with running(Look(), tls=TLS) as (_, network):
        await response_to(await open_tls(network))
    ((agreed, tls),) = [tls for tls in seen if tls is not None]
    assert agreed.version == "TLSv1.3"
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


# Limiting connections


def limited(**settings: Any) -> Config:
    return Config(**{"access_log": False, "handshake_timeout": 10, "limit_connections": 1, **settings})


async def assert_refuses(client: Client) -> None:
    response = (await response_to(client)).lower()
    assert response.startswith(b"http/1.1 503 ")
    assert b"\r\nretry-after: 5\r\n" in response
    assert b"\r\nconnection: close\r\n" in response
    assert response.endswith(b"\r\n\r\ntoo many connections: try again later\n")


async def test_beyond_the_limit_clients_get_503_until_a_connection_ends() -> None:
    async with running(Hello(), config=limited(limit_connections=2)) as (_, network):
        clients = [await network.client() for _ in range(2)]
        for client in clients:
            await client.open()
        await assert_refuses(await network.client())
        refused = await network.client()
        outcome = await refused.open()
        assert isinstance(outcome, RejectConnection)
        assert outcome.status_code == 503
        await refused.stream.aclose()
        await clients[0].stream.aclose()
        await wait_all_tasks_blocked()
        await assert_serves(network)
        await clients[1].stream.aclose()


async def test_each_address_has_places_of_its_own() -> None:
    config = limited(limit_connections=None, limit_connections_per_ip=1)
    async with running(Hello(), config=config) as (_, network):
        first, other = [await network.client(host) for host in ("192.0.2.1", "192.0.2.3")]
        for client in first, other:
            await client.open()
        await assert_refuses(await network.client("192.0.2.1"))
        await first.stream.aclose()
        await wait_all_tasks_blocked()
        assert (await response_to(await network.client("192.0.2.1"))).endswith(b"hello")
        await other.stream.aclose()


async def test_over_tls_the_503_comes_after_the_handshake() -> None:
    async with running(Hello(), config=limited(), tls=TLS) as (_, network):
        first = await open_tls(network)
        await assert_refuses(await open_tls(network))
        await first.stream.aclose()


async def test_who_is_refused_is_not_in_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trio_ws_server")
    async with running(Hello(), config=limited(access_log=True)) as (_, network):
        first = await network.client()
        await wait_all_tasks_blocked()
        await assert_refuses(await network.client())
        client = await network.client()
        await client.send(b"\r\nnonsense\r\n\r\n")
        assert (await client.receive_all()).startswith(b"HTTP/1.1 400 ")
        await client.stream.aclose()
        await first.stream.aclose()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("Answered 1 connections with 503 and dropped 0; the last was ")


@pytest.mark.parametrize("sent", [b"", GET[:-2], LAST_GET], ids=["nothing", "half a head", "a request"])
@pytest.mark.parametrize("tls", [None, TLS], ids=["plain", "TLS"])
async def test_who_is_refused_has_little_time_for_it(
    sent: bytes, tls: ServerTLS | None, autojump_clock: MockClock
) -> None:
    async with running(Hello(), config=limited(), tls=tls) as (_, network):
        first = await network.client()
        await wait_all_tasks_blocked()
        client = await (network.client() if tls is None else open_tls(network))
        await client.send(sent)
        with suppress(trio.BrokenResourceError):  # over TLS, where the connection is just cut
            assert (await client.receive_all()).startswith(b"HTTP/1.1 503 " if sent == LAST_GET else b"")
        assert trio.current_time() == (0 if sent == LAST_GET else REFUSAL_TIMEOUT)
        await client.stream.aclose()
        await first.stream.aclose()


async def test_a_tls_handshake_before_a_503_has_no_more_time_than_that(autojump_clock: MockClock) -> None:
    async with running(Hello(), config=limited(), tls=TLS) as (_, network):
        first = await network.client()
        await wait_all_tasks_blocked()
        client = await network.client()
        assert await client.receive_all() == b""
        assert trio.current_time() == REFUSAL_TIMEOUT
        await client.stream.aclose()
        await first.stream.aclose()


async def test_so_many_wait_for_their_503_and_the_rest_is_dropped_at_once(autojump_clock: MockClock) -> None:
    async with running(Hello(), config=limited()) as (_, network):
        first = await network.client()
        await wait_all_tasks_blocked()
        refused = [await network.client() for _ in range(MAX_REFUSED)]
        await wait_all_tasks_blocked()
        dropped = await network.client()
        assert await dropped.receive_all() == b""
        assert trio.current_time() == 0
        await assert_refuses(refused[0])
        await wait_all_tasks_blocked()
        await assert_refuses(await network.client())
        for client in [*refused, dropped, first]:
            await client.stream.aclose()


async def test_a_shutdown_does_not_wait_for_those_who_are_refused(autojump_clock: MockClock) -> None:
    async with running(Hello(), config=limited()) as (server, network):
        clients = [await network.client() for _ in range(2)]
        await wait_all_tasks_blocked()
        server.shut_down()
        for client in clients:
            assert await client.receive_all() == b""
            await client.stream.aclose()
    assert trio.current_time() == 0


async def leaves_without_a_word(network: ListeningSocket) -> Client:
    client = await network.client()
    await client.stream.aclose()
    return client


async def sends_nothing(network: ListeningSocket) -> Client:
    return await network.client()


async def sends_no_request(network: ListeningSocket) -> Client:
    client = await network.client()
    await client.send(b"nonsense\r\n\r\n")
    return client


async def sends_half_a_handshake(network: ListeningSocket) -> Client:
    client = await network.client()
    await client.send(b"\x16\x03\x01")
    return client


async def sends_a_request(network: ListeningSocket) -> Client:
    client = await network.client()
    await client.send(LAST_GET)
    return client


async def opens_a_websocket_and_vanishes(network: ListeningSocket) -> Client:
    client = await network.client()
    await client.open()
    await client.stream.aclose()
    return client


async def meets_a_bug_in_receiving(network: ListeningSocket) -> Client:
    return await network.client(recv=KeyError("a bug"))


async def is_gone_when_accepted(network: ListeningSocket) -> Client:
    gone = OSError(errno.ENOTCONN, "not connected")
    return await network.client(getpeername=gone, recv=gone)


async def agrees_on_tls_and_vanishes(network: ListeningSocket) -> Client:
    client = await open_tls(network)
    await trio.aclose_forcefully(client.stream)
    return client


@pytest.mark.parametrize(
    ("visit", "tls"),
    [
        (leaves_without_a_word, None),
        (sends_nothing, None),
        (sends_no_request, None),
        (sends_a_request, None),
        (opens_a_websocket_and_vanishes, None),
        (meets_a_bug_in_receiving, None),
        (is_gone_when_accepted, None),
        (leaves_without_a_word, TLS),
        (sends_nothing, TLS),
        (sends_no_request, TLS),
        (sends_half_a_handshake, TLS),
        (meets_a_bug_in_receiving, TLS),
        (agrees_on_tls_and_vanishes, TLS),
    ],
)
async def test_however_a_connection_ends_its_place_is_free_again(
    visit: Callable[[ListeningSocket], Awaitable[Client]], tls: ServerTLS | None, autojump_clock: MockClock
) -> None:
    async with running(Hello(), config=limited(), tls=tls) as (_, network):
        visitor = await visit(network)
        await trio.sleep(10.1)
        client = await (network.client() if tls is None else open_tls(network))
        assert (await response_to(client)).endswith(b"hello")
        await visitor.stream.aclose()


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


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("tls", [None, TLS], ids=["plain", "TLS"])
async def test_shutting_down_ends_a_connection_however_new_it_is(
    steps: int, tls: ServerTLS | None, autojump_clock: MockClock
) -> None:
    async with running(Hello(), tls=tls) as (server, network):
        client = await network.client()
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        server.shut_down()
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


@pytest.fixture
def same_random_numbers() -> Iterator[None]:
    state = random.getstate()
    random.seed(0)
    yield
    random.setstate(state)


@pytest.mark.usefixtures("same_random_numbers")
async def test_with_jitter_websockets_are_closed_all_over_that_time(autojump_clock: MockClock) -> None:
    closed_at = []

    async def stay(client: Client) -> None:
        assert await closed_with(client) == Close(1012)
        closed_at.append(trio.current_time())

    config = Config(access_log=False, graceful_timeout=30, graceful_jitter=10)
    async with running(Hello(), config=config) as (server, network), trio.open_nursery() as nursery:
        for _ in range(100):
            client = await network.client()
            await client.open()
            nursery.start_soon(stay, client)
        server.shut_down()
    assert {int(time) for time in closed_at} == {*range(10)}
    assert trio.current_time() == max(closed_at)


async def test_with_jitter_http_is_drained_at_once(autojump_clock: MockClock) -> None:
    config = Config(access_log=False, graceful_timeout=30, graceful_jitter=30)
    async with running(Hello(seconds=1), config=config) as (server, network):
        idle, busy = await network.client(), await network.client()
        await busy.send(GET * 2)
        await wait_all_tasks_blocked()
        server.shut_down()
        assert await idle.receive_all() == b""
        assert trio.current_time() == 0
        response = await busy.receive_all()
        assert b"\r\nconnection: close\r\n" in response.lower()
        for client in idle, busy:
            await client.stream.aclose()
    assert trio.current_time() == 1


async def test_the_jitter_is_not_waited_for_once_everyone_has_left(autojump_clock: MockClock) -> None:
    config = Config(access_log=False, graceful_timeout=1e6, graceful_jitter=1e6)
    async with running(Hello(), config=config) as (server, network):
        client = await network.client()
        await client.open()
        server.shut_down()
        await trio.sleep(1)
        await client.send_event(CloseConnection(1000))
        await client.stream.aclose()
    assert trio.current_time() == 1


@pytest.mark.usefixtures("same_random_numbers")
async def test_a_handshake_answered_during_the_jitter_is_closed_within_it(autojump_clock: MockClock) -> None:
    class Slow(Hello):
        async def websocket(self, upgrade: Upgrade) -> None:
            await trio.sleep(1)
            await super().websocket(upgrade)

    config = Config(access_log=False, graceful_timeout=1e6, graceful_jitter=1e5, ping_interval=None)
    async with running(Slow(), config=config) as (server, network):
        client = await network.client()

        async def shut_down() -> None:
            await wait_all_tasks_blocked()
            server.shut_down()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shut_down)
            await client.open()
        assert trio.current_time() == 1
        assert await closed_with(client) == Close(1012)
        assert 1 < trio.current_time() < 1e5


async def test_a_second_request_to_stop_cancels_during_the_jitter(autojump_clock: MockClock) -> None:
    config = Config(access_log=False, graceful_timeout=1e6, graceful_jitter=1e6)
    async with running(Hello(), config=config) as (server, network):
        client = await network.client()
        await client.open()
        server.shut_down()
        await wait_all_tasks_blocked()
        server.cancel()
        await client.stream.aclose()
    assert trio.current_time() == 0


@pytest.mark.parametrize("tls", [None, TLS], ids=["plain", "TLS"])
@pytest.mark.parametrize("close", [Close(1012), Close(1001)])
async def test_a_peer_that_reads_slowly_gets_all_that_was_sent_and_then_the_close(
    close: Close, tls: ServerTLS | None, autojump_clock: MockClock
) -> None:
    sent = 0

    async def flood(websocket: WebSocket) -> None:
        nonlocal sent
        while websocket.state is State.OPEN:
            with suppress(ConnectionClosed):
                await websocket.send(bytes(10_000))
        sent = websocket.traffic.bytes_sent

    async with running(native(flood), tls=tls) as (server, network):
        client = await (network.client() if tls is None else open_tls(network))
        await client.open()
        await trio.sleep(1)
        server.shut_down(close)
        received = 0
        while isinstance(event := await client.event(), BytesMessage):
            received += len(event.data)
            await trio.sleep(0.1)
        assert event == CloseConnection(close.code, "")
        await client.send_event(event.response())
        await client.stream.aclose()
    assert received == sent > CONFIG.write_high_water
    assert 2 < trio.current_time() < CONFIG.close_timeout


async def test_shutting_down_again_gives_no_more_time(autojump_clock: MockClock) -> None:
    async with running(Hello(seconds=math.inf)) as (server, network):
        client = await network.client()
        await client.send(GET)
        await wait_all_tasks_blocked()
        server.shut_down()
        await trio.sleep(20)
    assert trio.current_time() == 30
    await client.stream.aclose()


async def test_the_lifespan_has_its_time_however_long_the_cancelled_connections_take(
    autojump_clock: MockClock,
) -> None:
    async def clean_up_for_long(websocket: WebSocket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    network = ListeningSocket()
    server = Server([listener_on(network)], CONFIG)

    async def visit() -> None:
        client = await network.client()
        await client.open()
        server.shut_down()
        await client.receive_all()
        await client.stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        with server.scope:
            await server.run(native(clean_up_for_long))
            assert trio.current_time() == 30 + 10
            await trio.sleep_forever()
    assert trio.current_time() == 30 + 10 + LIFESPAN_GRACE


async def test_shutting_down_before_running_serves_nobody() -> None:
    network = ListeningSocket()
    server = Server([listener_on(network)], CONFIG)
    server.shut_down()
    await server.run(Hello())
    assert network.closed


async def test_the_time_for_cancelling_grows_with_the_connections() -> None:
    async with running(Hello()) as (server, network):
        clients = [await network.client() for _ in range(3)]
        assert server.cancellation_time == 0
        for client in clients:
            await client.open()
        assert server.cancellation_time == 3 * CANCELLATION_COST
        for client in clients:
            await client.stream.aclose()


async def test_cancelling_drops_everything_at_once(autojump_clock: MockClock) -> None:
    async with running(Hello(seconds=math.inf)) as (server, network):
        client = await network.client()
        await client.send(GET)
        await wait_all_tasks_blocked()
        server.cancel()
        assert await client.receive_all() == b""
        await client.stream.aclose()
    assert trio.current_time() == 0
