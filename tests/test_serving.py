"""`serve` and `run`: what to serve, where, how it begins and how it ends."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
import threading
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme

from trio_ws_server import (
    BindError,
    ConfigError,
    ConnectionClosedError,
    LifespanError,
    Server,
    WebSocket,
    connect,
    run,
    serve,
    server_tls,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path


async def echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI application with neither a lifespan nor WebSockets."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


@asynccontextmanager
async def serving(app_or_handler: Any, *host_and_port: Any, **options: Any) -> AsyncGenerator[Server, None]:
    """Serve, by default on a free port, for the body of the ``async with``; shut down, and wait for the end."""
    async with trio.open_nursery() as nursery:
        call = partial(serve, app_or_handler, *(host_and_port or ("127.0.0.1", 0)), **options)
        server: Server = await nursery.start(call)
        yield server
        server.shut_down()


async def get(server: Server, path: str = "/") -> bytes:
    """Return the whole response to a request to the server's first address."""
    host, port = server.addresses[0]
    stream: trio.abc.Stream
    if port is None:
        stream = await trio.open_unix_socket(host)
    else:
        stream = await trio.open_tcp_stream(host, port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join([bytes(data) async for data in stream])


def uri(server: Server) -> str:
    return server.urls[0].replace("http", "ws")


# What.


async def test_a_handler_is_told_from_an_asgi_application_by_its_signature() -> None:
    async with serving(echo) as server, connect(uri(server)) as websocket:
        await websocket.send("Hello!")
        assert await websocket.recv() == "Hello!"
    async with serving(hello) as server:
        assert b" 200 OK\r\n" in await get(server)


async def test_native_says_that_a_callable_of_any_arguments_is_a_handler() -> None:
    async def handler(*arguments: Any) -> None:
        await arguments[0].send(f"{len(arguments)} arguments")

    async with serving(handler, native=True) as server, connect(uri(server)) as websocket:
        assert await websocket.recv() == "2 arguments"


async def test_an_asgi_2_application_is_served() -> None:
    def asgi2(scope: dict[str, Any]) -> Callable[[Any, Any], Any]:
        return partial(hello, scope)

    async with serving(asgi2) as server:
        assert b" 200 OK\r\n" in await get(server)


# Where.


async def test_once_it_has_started_it_accepts_connections_and_tells_its_addresses() -> None:
    async with serving(hello) as server:
        ((host, port),) = server.addresses
        assert host == "127.0.0.1"
        assert server.urls == [f"http://127.0.0.1:{port}"]
        assert b" 200 OK\r\n" in await get(server)


async def test_several_hosts_share_a_port() -> None:
    async with serving(hello, ["127.0.0.1", "127.0.0.2"], 0) as server:
        (first, port), (second, same_port) = server.addresses
        assert (first, second) == ("127.0.0.1", "127.0.0.2")
        assert port == same_port


async def test_a_unix_socket_has_the_mode_asked_for_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(hello, uds=path, uds_mode=0o600) as server:
        assert server.addresses == [(str(path), None)]
        assert path.stat().st_mode & 0o777 == 0o600
        assert b" 200 OK\r\n" in await get(server)
    assert not path.exists()


async def test_an_inherited_descriptor_is_listened_on() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    async with serving(hello, fd=sock.detach()) as server:
        assert b" 200 OK\r\n" in await get(server)


@pytest.mark.parametrize("wrapped", [True, False], ids=["ServerTLS", "SSLContext"])
async def test_tls_is_spoken_with_a_context_or_the_options_of_server_tls(
    tmp_path: Path, *, wrapped: bool
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = server_tls(certfile=tmp_path / "pem") if wrapped else context
    async with serving(echo, "localhost", 0, tls=tls) as server:
        assert server.urls[0].startswith("https://")
        async with connect(f"wss://localhost:{server.addresses[0][1]}", ssl_context=trusting) as websocket:
            await websocket.send("Hello!")
            assert await websocket.recv() == "Hello!"


# Mistakes.


async def test_an_unknown_option_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'prot'; there are .*ping_interval.*uds"):
        await serve(echo, prot=80)  # type: ignore[call-arg]


async def test_an_import_string_is_for_the_command_line() -> None:
    with pytest.raises(TypeError, match=r"'app:app' is no application or handler; give the object itself"):
        await serve("app:app")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ping_interval": -1}, "ping_interval must be a number of seconds above 0, not -1"),
        ({"uds": "socket", "fd": 3}, "--uds and --fd cannot go together"),
        ({"uds_mode": 0o600}, "--uds-mode given without --uds"),
        ({"host": []}, "no host given to listen on"),
        ({"port": 65536}, "port must be a whole number from 0 to 65535, not 65536"),
        ({"port": "8000"}, "port must be a whole number from 0 to 65535, not '8000'"),
        ({"lifespan": "maybe"}, "lifespan must be one of 'auto', 'on', 'off', not 'maybe'"),
        ({"tls": "cert.pem"}, r"tls must be an ssl.SSLContext or of server_tls\(\), not 'cert.pem'"),
    ],
)
async def test_a_setting_that_cannot_be_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await serve(echo, **options)


async def test_an_address_that_cannot_be_listened_on_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BindError):
        await serve(echo, "127.0.0.1", taken.getsockname()[1])


async def test_a_startup_that_fails_is_an_error_of_its_own_and_leaves_nothing_open(tmp_path: Path) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.failed", "message": "the database is down"})

    with pytest.raises(LifespanError, match="the database is down"):  # and no exception group
        await serve(app, uds=tmp_path / "socket")
    assert not (tmp_path / "socket").exists()


# The beginning.


async def test_nobody_is_accepted_before_the_startup_is_complete(tmp_path: Path) -> None:
    order = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            order.append("request")
            await hello(scope, receive, send)
            return
        for stage in "lifespan.startup", "lifespan.shutdown":
            assert await receive() == {"type": stage}
            if stage == "lifespan.startup":
                nursery.start_soon(request)
                await trio.testing.wait_all_tasks_blocked()
            order.append(stage)
            await send({"type": f"{stage}.complete"})

    async def request() -> None:
        async with await trio.open_unix_socket(tmp_path / "socket") as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b" 200 OK\r\n" in b"".join([bytes(data) async for data in stream])
            server.shut_down()

    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, app, uds=tmp_path / "socket"))
    assert order == ["lifespan.startup", "request", "lifespan.shutdown"]


async def test_each_address_is_logged_with_the_version_of_trio(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(hello, ["127.0.0.1", "127.0.0.2"], 0) as server:
        lines = [message for message in caplog.messages if "Listening" in message]
        assert lines == [f"Listening on {url} (Trio {trio.__version__})" for url in server.urls]


# The access log.


async def test_a_request_is_one_line_in_the_access_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_ws_server.access")
    async with serving(hello) as server:
        await get(server, "/path?query")
    (line,) = [record.message for record in caplog.records if record.name == "trio_ws_server.access"]
    before, request, after = line.split('"')
    assert before.startswith("127.0.0.1:")
    assert request == "GET /path?query HTTP/1.1"
    assert after.startswith(" 200 4 bytes in ")


async def test_a_websocket_is_one_line_when_it_opens_and_one_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_ws_server.access")
    async with serving(echo) as server, connect(f"{uri(server)}/room?a=b") as websocket:
        await websocket.send("grün")
        await websocket.recv()
        await websocket.close(4000, "enough")
    opened, ended = [record.message for record in caplog.records if record.name == "trio_ws_server.access"]
    assert opened.endswith('"WebSocket /room?a=b" accepted')
    assert "\"WebSocket /room?a=b\" closed by the client with 4000 'enough' after " in ended
    assert ended.endswith("; received 1 messages, 5 bytes; sent 1 messages, 5 bytes")


async def test_the_access_log_can_be_turned_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(echo, access_log=False) as server:
        await get(server)
        async with connect(uri(server)):
            pass
    assert not [record for record in caplog.records if record.name == "trio_ws_server.access"]


# The end.


async def test_shutting_down_closes_websockets_with_1012_and_returns_from_serve() -> None:
    async with serving(echo) as server, connect(uri(server)) as websocket:
        server.shut_down()
        with pytest.raises(ConnectionClosedError, match="1012"):
            await websocket.recv()


async def test_cancelling_serve_drops_connections_at_once() -> None:
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, echo, "127.0.0.1", 0))
        async with connect(uri(server)) as websocket:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), pytest.raises(ConnectionClosedError) as closed:
                await websocket.recv()
            assert closed.value.received is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_run_ends_at_a_signal_and_leaves_signals_as_they_were(
    caplog: pytest.LogCaptureFixture, number: signal.Signals, tmp_path: Path
) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await send({"type": "lifespan.startup.complete"})
        signal.raise_signal(number)

    before = signal.getsignal(number)
    run(app, uds=tmp_path / "socket")
    assert signal.getsignal(number) is before
    assert f"{number.name}: shutting down, in 30 s at the most" in caplog.messages


def test_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        await send({"type": "lifespan.startup.failed", "message": "enough"})

    def run_in_thread() -> None:
        with pytest.raises(LifespanError):
            run(app, uds=tmp_path / "socket")

    seen: list[Any] = []
    thread = threading.Thread(target=run_in_thread)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
