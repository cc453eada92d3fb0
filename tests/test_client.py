"""The client connects, says clearly why it could not, and leaves nothing open."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked
from websockets.exceptions import ConnectionClosed as WebsocketsConnectionClosed
from websockets.sync.server import ServerConnection, serve
from wsproto import WSConnection
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import AcceptConnection, CloseConnection, Event, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.helpers import cancelled_after, needs_ipv6
from trio_ws_server.client import connect
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import (
    ConfigError,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeError,
    InvalidStatus,
    InvalidURI,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

CA = trustme.CA()
SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("127.0.0.1", "localhost").configure_cert(SERVER_CONTEXT)
CLIENT_CONTEXT = ssl.create_default_context()
CA.configure_trust(CLIENT_CONTEXT)


class Peer:
    """The server's end of a connection, wsproto on a stream; nothing is answered by itself."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.SERVER)
        self.events: list[Event] = []

    async def event(self) -> Event:
        while not self.events:
            data = await self.stream.receive_some()
            assert data or self.ws.state is ConnectionState.OPEN, "the client left during the handshake"
            self.ws.receive_data(bytes(data) or None)
            self.events.extend(self.ws.events())
        return self.events.pop(0)

    async def request(self) -> Request:
        request = await self.event()
        assert isinstance(request, Request)
        return request

    async def accept(self, **answer: Any) -> Request:
        """Accept the handshake; return the client's request."""
        request = await self.request()
        await self.stream.send_all(self.ws.send(AcceptConnection(**answer)))
        return request

    async def close(self) -> int:
        """Take part in the closing handshake that the client has begun; return its code."""
        event = await self.event()
        assert isinstance(event, CloseConnection)
        assert event.code != 1006, "the client left without a close frame"
        await self.stream.send_all(self.ws.send(event.response()))
        await self.stream.send_eof()
        return int(event.code)


@asynccontextmanager
async def listening(
    handler: Callable[[Peer], Awaitable[object]], *, host: str = "127.0.0.1"
) -> AsyncGenerator[str]:
    """
    Accept connections, let the handler do what it does with each, and close them; yield the URI.

    The handler must come to its end soon after the body.
    """

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await handler(Peer(stream))

    (listener,) = await trio.open_tcp_listeners(0, host=host)
    name = f"[{host}]" if ":" in host else host
    async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
        accepting.start_soon(partial(trio.serve_listeners, serve, [listener], handler_nursery=connections))
        yield f"ws://{name}:{listener.socket.getsockname()[1]}"
        accepting.cancel_scope.cancel()


async def echo(peer: Peer) -> None:
    """Answer one message with itself, and the close."""
    await peer.accept()
    message = await peer.event()
    assert isinstance(message, TextMessage)
    await peer.stream.send_all(peer.ws.send(message))
    assert await peer.close() == 1000


async def accept_and_close(peer: Peer) -> None:
    await peer.accept()
    assert await peer.close() == 1000
    assert await peer.stream.receive_some() == b""


async def see_it_end(peer: Peer) -> None:
    """Accept, and see the client go without a close frame."""
    await peer.accept()
    event = await peer.event()
    assert isinstance(event, CloseConnection)
    assert event.code == 1006


async def be_silent(peer: Peer) -> None:
    """Read to the end and say nothing."""
    with suppress(trio.BrokenResourceError):
        async for _ in peer.stream:
            pass


def answer(response: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Answer the request with these bytes, and see the client go."""

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send_all(response)
        await be_silent(peer)

    return handler


# The block


async def test_messages_go_both_ways_and_leaving_the_block_closes_the_connection() -> None:
    async with listening(echo) as uri, connect(uri) as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
    with pytest.raises(ConnectionClosedOK) as caught:
        await websocket.recv()
    assert caught.value.received == caught.value.sent == Close(1000)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
async def test_a_client_takes_no_descriptor_beside_its_socket() -> None:
    async with listening(accept_and_close) as uri:
        before = len(os.listdir("/proc/self/fd"))
        async with connect(uri):
            # Two are the ends of the connection.
            assert len(os.listdir("/proc/self/fd")) - before == 2


@pytest.mark.parametrize("error", [ValueError("body"), ExceptionGroup("body", [ValueError()]), SystemExit(3)])
async def test_what_the_block_raises_comes_out_as_it_was_raised(error: BaseException) -> None:
    async def fail(uri: str) -> None:
        async with connect(uri):
            raise error

    async with listening(accept_and_close) as uri:
        with pytest.raises(type(error)) as caught:
            await fail(uri)
    assert caught.value is error or caught.value.exceptions == error.exceptions  # type: ignore[attr-defined]


async def test_the_servers_close_comes_out_of_the_block_unwrapped() -> None:
    async def close(peer: Peer) -> None:
        await peer.accept()
        await peer.stream.send_all(peer.ws.send(CloseConnection(4000, "enough")))
        assert isinstance(await peer.event(), CloseConnection)

    async def receive(uri: str) -> None:
        async with connect(uri) as websocket:
            await websocket.recv()

    async with listening(close) as uri:
        with pytest.raises(ConnectionClosedError) as caught:
            await receive(uri)
    assert caught.value.received == Close(4000, "enough")


async def test_cancelling_the_block_drops_the_connection_at_once(autojump_clock: MockClock) -> None:
    async with listening(see_it_end) as uri:
        with trio.move_on_after(1) as scope:
            async with connect(uri):
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert trio.current_time() == 1


async def test_leaving_the_block_ends_in_time_whatever_the_server_does(autojump_clock: MockClock) -> None:
    async def accept(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(30)

    async with listening(accept) as uri:
        async with connect(uri, close_timeout=10):
            pass
        assert trio.current_time() == 10


@pytest.mark.parametrize("pieces", [1, 2])
async def test_frames_that_come_with_the_servers_answer_are_not_lost(pieces: int) -> None:
    async def greet(peer: Peer) -> None:
        await peer.request()
        wire = peer.ws.send(AcceptConnection()) + peer.ws.send(TextMessage("hello"))
        wire += peer.ws.send(CloseConnection(1000))
        if pieces == 2:
            await peer.stream.send_all(wire[:-10])
            await wait_all_tasks_blocked()
        await peer.stream.send_all(wire[-10:] if pieces == 2 else wire)
        assert isinstance(await peer.event(), CloseConnection)

    async with listening(greet) as uri, connect(uri) as websocket:
        assert [message async for message in websocket] == ["hello"]


async def test_connecting_that_is_cancelled_anywhere_leaves_nothing_open() -> None:
    async def take_what_comes(peer: Peer) -> None:
        try:
            await peer.accept()
            await peer.close()
        except (AssertionError, trio.BrokenResourceError):
            await peer.stream.aclose()

    async def use(uri: str) -> None:
        async with connect(uri):
            pass

    for steps in itertools.count():
        async with listening(take_what_comes) as uri:
            cancelled = await cancelled_after(steps, partial(use, uri))
        if not cancelled:
            break
    assert steps > 5


# The handshake


async def test_the_request_says_where_and_what_the_client_wants() -> None:
    requests = []

    async def accept(peer: Peer) -> None:
        requests.append(await peer.accept(subprotocol="b", extra_headers=[(b"x-answer", b"42")]))
        await peer.close()

    async with (
        listening(accept) as uri,
        connect(
            f"{uri}/chat%20room?a=%C3%A4&b", subprotocols=["a", "b"], headers=[("X-One", "1"), ("X-One", "2")]
        ) as websocket,
    ):
        assert websocket.subprotocol == "b"
        assert websocket.path == "/chat%20room?a=%C3%A4&b"
        assert websocket.request.headers.get_all("x-one") == ["1", "2"]
    (request,) = requests
    assert (request.target, request.host) == ("/chat%20room?a=%C3%A4&b", uri.removeprefix("ws://"))
    assert request.subprotocols == ["a", "b"]
    assert [value for name, value in request.extra_headers if name == b"x-one"] == [b"1", b"2"]
    assert request.extensions == []


async def test_headers_may_be_a_mapping() -> None:
    requests = []

    async def accept(peer: Peer) -> None:
        requests.append(await peer.accept())
        await peer.close()

    async with listening(accept) as uri, connect(uri, headers={"Authorization": "Basic Zm9vOmJhcg=="}):
        pass
    assert (b"authorization", b"Basic Zm9vOmJhcg==") in requests[0].extra_headers


async def test_compression_is_used_where_both_want_it() -> None:
    async def compress(peer: Peer) -> None:
        await peer.accept(extensions=[PerMessageDeflate()])
        assert await peer.event() == TextMessage("hello" * 1000)
        await peer.stream.send_all(peer.ws.send(TextMessage("world" * 1000)))
        await peer.close()

    async with listening(compress) as uri, connect(uri, per_message_deflate=True) as websocket:
        await websocket.send("hello" * 1000)
        assert await websocket.recv() == "world" * 1000


async def enter(uri: str, **options: Any) -> None:
    async with connect(uri, **options):
        raise AssertionError("connected")


async def test_a_server_that_rejects_is_quoted() -> None:
    response = b"HTTP/1.1 404 Not Found\r\nX-Reason: none\r\nContent-Length: 12\r\n\r\nno such room"
    async with listening(answer(response)) as uri:
        with pytest.raises(InvalidStatus, match="HTTP status 404, not 101") as caught:
            await enter(uri)
    assert caught.value.status == 404
    assert caught.value.body == b"no such room"
    assert (b"x-reason", b"none") in caught.value.headers


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "invalid"),
        (b"\x00\xff" * 50 + b"\r\n\r\n", "invalid"),
        (SWITCH + b"Sec-WebSocket-Accept: bm8=\r\n\r\n", "invalid"),
        (SWITCH + b"\r\n", "invalid"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "more than 65536 bytes"),
    ],
    ids=["another protocol", "garbage", "wrong key", "no key", "long head"],
)
async def test_an_answer_that_is_none_is_a_handshake_error(response: bytes, message: str) -> None:
    async with listening(answer(response)) as uri:
        with pytest.raises(HandshakeError, match=message):
            await enter(uri)


async def test_a_subprotocol_that_was_not_offered_is_a_handshake_error() -> None:
    async def accept(peer: Peer) -> None:
        await peer.request()
        response = peer.ws.send(AcceptConnection())
        await peer.stream.send_all(response[:-2] + b"Sec-WebSocket-Protocol: other\r\n\r\n")
        await be_silent(peer)

    async with listening(accept) as uri:
        with pytest.raises(HandshakeError, match="other"):
            await enter(uri, subprotocols=["mine"])


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 101 Switching"])
async def test_a_server_that_hangs_up_without_an_answer_is_a_handshake_error(part: bytes) -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send_all(part)

    async with listening(hang_up) as uri:
        with pytest.raises(HandshakeError, match="closed the connection without answering"):
            await enter(uri)


async def test_a_server_that_resets_the_connection_is_a_handshake_error() -> None:
    async def reset(peer: Peer) -> None:
        assert isinstance(peer.stream, trio.SocketStream)
        await peer.stream.receive_some(1)
        # Closing with unread bytes resets the connection.

    async with listening(reset) as uri:
        with pytest.raises(HandshakeError, match="dropped the connection"):
            await enter(uri)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_server_that_does_not_answer_is_given_up_on(scheme: str, autojump_clock: MockClock) -> None:
    async with listening(be_silent) as uri:
        with pytest.raises(TimeoutError, match=r"no connection to wss?://127\.0\.0\.1:\d+ within 10 seconds"):
            await enter(uri.replace("ws", scheme), handshake_timeout=10)
    assert trio.current_time() == 10


async def test_an_answer_that_trickles_in_does_not_put_off_the_timeout(autojump_clock: MockClock) -> None:
    async def trickle(peer: Peer) -> None:
        await peer.request()
        try:
            for byte in SWITCH:
                await peer.stream.send_all(bytes([byte]))
                await trio.sleep(1)
        except trio.BrokenResourceError:
            pass

    async with listening(trickle) as uri:
        with pytest.raises(TimeoutError):
            await enter(uri, handshake_timeout=10)
        assert trio.current_time() == 10


async def test_where_nobody_listens_an_oserror_says_so() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(OSError, match=str(port)):
        await enter(f"ws://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://example.org/", "must start with ws:// or wss://"),
        ("example.org", "must start with ws:// or wss://"),
        ("", "must start with ws:// or wss://"),
        ("ws://", "names no host"),
        ("ws:///path", "names no host"),
        ("ws://:8000", "names no host"),
        ("ws://example.org/#top", "has a fragment"),
        ("ws://example.org/#", "has a fragment"),
        ("ws://ann:secret@example.org/", "holds credentials"),
        ("ws://example.org:x/", "is not a URI"),
        ("ws://example.org:70000/", "is not a URI"),
        ("ws://[::1/", "is not a URI"),
        ("ws://example.org/ä", "must be percent-encoded"),
        ("ws://example.org/a b", "must be percent-encoded"),
        ("ws://example.org/?a b", "must be percent-encoded"),
        (f"ws://{'x' * 64}.org/", "no valid host name"),
        ("ws://a..org/", "no valid host name"),
        ("ws://example.org:0/", "port 0"),
    ],
)
async def test_a_uri_that_cannot_be_connected_to_is_refused_and_told_why(uri: str, message: str) -> None:
    with pytest.raises(InvalidURI, match=message) as caught:
        await enter(uri)
    assert repr(uri) in str(caught.value)


class Resolver(trio.abc.HostnameResolver):
    """Finds everything on one port of this machine's, and remembers what it was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[tuple[Any, Any]] = []

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.append((host, port))
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", self.port))]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("uri", "host", "port", "host_header"),
    [
        ("ws://example.org", b"example.org", 80, "example.org"),
        ("WS://Example.ORG:80/", b"example.org", 80, "example.org"),
        ("ws://example.org:443/", b"example.org", 443, "example.org:443"),
        ("wss://localhost", b"localhost", 443, "localhost"),
        ("wss://localhost:8443", b"localhost", 8443, "localhost:8443"),
        # wsproto shows the name, which goes over the wire in ASCII, as people write it
        ("ws://bücher.example", b"xn--bcher-kva.example", 80, "bücher.example"),
    ],
)
async def test_the_uri_tells_host_and_port(uri: str, host: bytes, port: int, host_header: str) -> None:
    requests = []

    async def accept(peer: Peer) -> None:
        requests.append(await peer.accept())
        await peer.close()

    async with listening(over_tls(accept) if uri.startswith("wss") else accept) as where:
        resolver = Resolver(int(where.rpartition(":")[2]))
        trio.socket.set_custom_hostname_resolver(resolver)
        async with connect(uri, ssl_context=CLIENT_CONTEXT):
            pass
    assert resolver.asked == [(host, port)]
    assert [request.host for request in requests] == [host_header]


@needs_ipv6
async def test_an_ipv6_address_is_dialled_without_its_brackets_and_named_with_them() -> None:
    requests = []

    async def accept(peer: Peer) -> None:
        requests.append(await peer.accept())
        await peer.close()

    async with listening(accept, host="::1") as uri, connect(uri):
        pass
    assert [request.host for request in requests] == [uri.removeprefix("ws://")]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"close_timeout": 0}, ConfigError, "close_timeout"),
        ({"headers": {"Upgrade": "h2c"}}, ValueError, "'Upgrade' is made by the handshake"),
        ({"headers": {"X": "line\nbreak"}}, ValueError, "X|header"),
        ({"headers": {"X": "€"}}, ValueError, "latin-1"),
    ],
)
async def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    async with listening(be_silent) as uri:
        with pytest.raises(error, match=message):
            await enter(uri, **options)
        await (await trio.open_tcp_stream("127.0.0.1", int(uri.rpartition(":")[2]))).aclose()


# TLS


def over_tls(handler: Callable[[Peer], Awaitable[object]]) -> Callable[[Peer], Awaitable[None]]:
    """Speak TLS, Trio's own, and let the handler do the rest."""

    async def serve(peer: Peer) -> None:
        stream = trio.SSLStream(peer.stream, SERVER_CONTEXT, server_side=True)
        await handler(Peer(trio.StapledStream(stream, stream)))
        await stream.aclose()

    return serve


async def expect_failure(peer: Peer) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await trio.SSLStream(peer.stream, SERVER_CONTEXT, server_side=True).do_handshake()


async def test_wss_speaks_tls_with_a_server_that_the_context_trusts() -> None:
    async with (
        listening(over_tls(echo)) as uri,
        connect(uri.replace("ws", "wss"), ssl_context=CLIENT_CONTEXT) as websocket,
    ):
        await websocket.send("hello")
        assert await websocket.recv() == "hello"


@pytest.mark.parametrize(
    ("context", "host"), [(None, "127.0.0.1"), (CLIENT_CONTEXT, "127.0.0.2")], ids=["authority", "name"]
)
async def test_a_server_that_cannot_be_trusted_is_a_handshake_error(
    context: ssl.SSLContext | None, host: str
) -> None:
    async with listening(expect_failure, host=host) as uri:
        authority = uri.removeprefix("ws://")
        with pytest.raises(HandshakeError, match=rf"TLS handshake with {authority} failed.*verify failed"):
            await enter(f"wss://{authority}", ssl_context=context)


async def test_a_server_that_speaks_no_tls_is_a_handshake_error() -> None:
    async def speak(peer: Peer) -> None:
        await peer.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await be_silent(peer)

    async with listening(speak) as uri:
        with pytest.raises(HandshakeError, match="TLS handshake"):
            await enter(uri.replace("ws", "wss"))


# A server that is not ours


@asynccontextmanager
async def websockets_server(
    handler: Callable[[ServerConnection], None], **options: Any
) -> AsyncGenerator[str]:
    """Run a server of the websockets library in a thread; yield its URI."""
    server = serve(handler, "127.0.0.1", 0, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, server.serve_forever)
        try:
            yield f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()


def echo_all(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@pytest.mark.parametrize("options", [{}, {"per_message_deflate": True}], ids=["plain", "deflate"])
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_it_talks_with_the_websockets_library(options: dict[str, Any], tls: bool) -> None:
    messages: list[str | bytes] = ["", "Grüße", b"", b"\x00\xff", "x" * 200_000, bytes(200_000)]
    server_options = {"ssl": SERVER_CONTEXT} if tls else {}
    async with (
        websockets_server(echo_all, **server_options) as uri,
        connect(uri, ssl_context=CLIENT_CONTEXT, **options) as websocket,
    ):
        for message in messages:
            await websocket.send(message)
            assert await websocket.recv() == message
        assert 0 <= await websocket.ping() < 10
    assert websocket.close_seen == Close(1000)


async def test_the_websockets_librarys_close_and_fragments_are_understood() -> None:
    def stream_and_close(connection: ServerConnection) -> None:
        connection.send(["one ", "two ", "three"])
        connection.close(4000, "enough")

    async with websockets_server(stream_and_close) as uri, connect(uri) as websocket:
        assert await websocket.recv() == "one two three"
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        assert caught.value.received == Close(4000, "enough")


async def test_the_websockets_library_understands_our_close() -> None:
    closes = []

    def see(connection: ServerConnection) -> None:
        with pytest.raises(WebsocketsConnectionClosed) as caught:
            connection.recv()
        closes.append(caught.value.rcvd)

    async with websockets_server(see) as uri, connect(uri) as websocket:
        await websocket.close(4000, "enough")
    (close,) = closes
    assert close is not None
    assert (close.code, close.reason) == (4000, "enough")


async def test_the_websockets_librarys_rejection_and_subprotocol_are_understood() -> None:
    async with websockets_server(echo_all, subprotocols=["b"]) as uri:
        async with connect(uri, subprotocols=["a", "b"]) as websocket:
            assert websocket.subprotocol == "b"
        with pytest.raises(InvalidStatus, match="400"):
            await enter(uri, subprotocols=["c"])


async def test_an_option_that_there_is_not_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'ping_intervall'; there are .*ping_interval"):
        async with connect("ws://localhost", ping_intervall=3):  # type: ignore[call-arg]
            pass


async def test_one_string_is_no_list_of_subprotocols() -> None:
    with pytest.raises(TypeError, match=r"subprotocols is a sequence of strings, such as \['chat'\]"):
        async with connect("ws://localhost", subprotocols="chat"):
            pass
