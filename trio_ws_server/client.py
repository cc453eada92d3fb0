"""The client: dial, TLS, handshake."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Unpack
from urllib.parse import urlsplit

import trio

from trio_ws_server.config import Config, Options, check_names
from trio_ws_server.errors import HandshakeError, InvalidStatus, InvalidURI
from trio_ws_server.headers import Headers, Request
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.handshake import Accepted, ClientHandshake, Rejected
from trio_ws_server.protocol.websocket import WebSocketProtocol
from trio_ws_server.transport import TLSStream, open_engine, open_transport
from trio_ws_server.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from trio.abc import Stream

_DEFAULT_PORTS = {"ws": 80, "wss": 443}


@asynccontextmanager
async def connect(
    uri: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    ssl_context: ssl.SSLContext | None = None,
    **options: Unpack[Options],
) -> AsyncGenerator[WebSocket, None]:
    """
    Connect to the WebSocket server at ``uri`` (``ws://`` or ``wss://``) for the length of an ``async with``.

    ``subprotocols`` are offered in order of preference; ``headers`` are sent with the request; ``ssl_context``
    is for ``wss://``, by default one that verifies the server's certificate. ``options`` are the settings of
    `Config`: ``handshake_timeout`` limits, in seconds, everything from dialling to the server's response.

    Leaving the block closes the connection with code 1000, as `WebSocket.close` does; cancelling it drops the
    connection. Raises `InvalidURI`, `ConfigError`; ``OSError`` if no connection can be made; `HandshakeError`,
    or `InvalidStatus`, one of these, if the server doesn't accept; ``TimeoutError`` if it takes too long.
    """
    check_names(options, Options.__annotations__)
    if isinstance(subprotocols, str):
        raise TypeError(f"subprotocols is a sequence of strings, such as [{subprotocols!r}], not one string")
    config = Config(**options)
    location = _Location.of(uri)
    deflate = Deflate(config) if config.per_message_deflate else None
    pairs = headers.items() if hasattr(headers, "items") else headers
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    handshake = ClientHandshake(
        host=location.authority,
        target=location.target,
        subprotocols=subprotocols,
        headers=fields,
        deflate=deflate,
        max_head_size=config.max_head_size,
    )
    try:
        with trio.fail_after(config.handshake_timeout):
            stream = await _dial(location, ssl_context)
            accepted = await _shake_hands(stream, handshake)
    except trio.TooSlowError:
        raise TimeoutError(f"no connection to {uri} within {config.handshake_timeout:g} seconds") from None
    async with open_engine(poller=False) as engine, open_transport(stream, config, engine) as transport:
        websocket = WebSocket(
            transport,
            WebSocketProtocol(config, client=True, deflate=deflate),
            config,
            request=Request(location.target, Headers(fields)),
            subprotocol=accepted.subprotocol,
        )
        if accepted.leftover:
            websocket.data_received(accepted.leftover)
        try:
            yield websocket
        finally:
            await websocket.close()


class _Location(NamedTuple):
    """Where a WebSocket URI (RFC 6455 section 3) leads."""

    host: str
    port: int
    secure: bool
    authority: str
    target: str

    @classmethod
    def of(cls, uri: str) -> _Location:
        try:
            parts = urlsplit(uri)
            port = parts.port
        except ValueError as exc:
            raise InvalidURI(f"{uri!r} is not a URI: {exc}") from exc
        if parts.scheme not in _DEFAULT_PORTS:
            raise InvalidURI(f"{uri!r} is not a WebSocket URI: it must start with ws:// or wss://")
        if not parts.hostname:
            raise InvalidURI(f"{uri!r} names no host")
        if port == 0:
            raise InvalidURI(f"{uri!r} has port 0, which nobody can listen on")
        if parts.fragment or uri.endswith("#"):
            raise InvalidURI(f"{uri!r} has a fragment, which a WebSocket URI has not (RFC 6455 section 3)")
        if parts.username is not None:
            raise InvalidURI(f"{uri!r} holds credentials: send them in headers instead")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not target.isascii() or not target.isprintable() or " " in target:
            raise InvalidURI(f"{uri!r} has a path or query that must be percent-encoded")
        try:
            host = parts.hostname.encode("idna").decode("ascii")
        except UnicodeError as exc:
            raise InvalidURI(f"{uri!r} has no valid host name: {exc}") from exc
        authority = f"[{host}]" if ":" in host else host
        if port not in (None, _DEFAULT_PORTS[parts.scheme]):
            authority += f":{port}"
        return cls(host, port or _DEFAULT_PORTS[parts.scheme], parts.scheme == "wss", authority, target)


async def _dial(location: _Location, ssl_context: ssl.SSLContext | None) -> Stream:
    stream = await trio.open_tcp_stream(location.host, location.port)
    if not location.secure:
        return stream
    tls_stream = TLSStream(stream, ssl_context or ssl.create_default_context(), server_hostname=location.host)
    try:
        await tls_stream.do_handshake()
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(stream)
        raise HandshakeError(f"TLS handshake with {location.authority} failed: {exc.__cause__}") from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls_stream


async def _shake_hands(stream: Stream, handshake: ClientHandshake) -> Accepted:
    outcome: Accepted | Rejected | None = None
    try:
        await stream.send_all(handshake.request())
        while outcome is None:
            outcome = handshake.receive_data(bytes(await stream.receive_some()))
        if isinstance(outcome, Rejected):
            raise InvalidStatus(*outcome)
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(stream)
        raise HandshakeError("the server dropped the connection during the opening handshake") from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return outcome
