"""
The WebSocket opening handshake (RFC 6455 section 4), both sides, on wsproto.

wsproto takes much of a request on trust (the key's form, a header's encoding, one field line of a kind), raises
whatever comes of it, and would parse again what h11 has parsed. So a request is checked here, each error with the
status that answers it; wsproto hashes the key and negotiates the extensions, and h11 sends the response on the
connection that the request came on. It is, byte for byte, the one that wsproto would have sent.
"""

from __future__ import annotations

import base64
import binascii
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import h11
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.handshake import H11Handshake, server_extensions_handshake
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from trio_ws_server.errors import HandshakeError
from trio_ws_server.headers import RESERVED_FIELDS, TOKEN
from trio_ws_server.protocol.allowed import origin_allowed
from trio_ws_server.protocol.http1 import BARE_LINE_BREAK, HEAD_END, BadRequest, field_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trio_ws_server.headers import RequestHead
    from trio_ws_server.protocol.deflate import Deflate

_VERSION = b"13"
_KEY_BYTES = 16
_MAX_REJECTION_BODY = 64 * 1024
# RFC 9110 section 15.2: any number of interim responses may come before the final one, which 101 is here.
_INTERIM = re.compile(rb"HTTP/1\.[0-9] 1(?!01)[0-9][0-9][ \r]")
# RFC 6455 sections 4.1 and 11.3: what a response holds once at most, and wsproto takes the last of.
_SINGLE_FIELD = re.compile(rb"\r\n(upgrade|sec-websocket-(?:accept|extensions|protocol)):", re.IGNORECASE)
_CONNECTION = re.compile(rb"\r\nconnection:([^\r]*)", re.IGNORECASE)


def is_upgrade(request: RequestHead) -> bool:
    """Whether the request asks for a WebSocket, rightly or not."""
    return b"websocket" in _options(request, b"upgrade")


class ServerHandshake:
    """A client's valid opening handshake, to be accepted."""

    def __init__(self, request: RequestHead, allowed_origins: tuple[str, ...] = ()) -> None:
        """
        Check a request; raises `BadRequest` if RFC 6455 section 4.2.1 does not allow to accept it.

        So it does, with 403, for an origin that `origin_allowed` does not let in: any page that a browser shows can
        make it connect, with the cookies of its user (section 10.2).
        """
        if request.method != b"GET":
            raise BadRequest(f"a WebSocket handshake is a GET request, not {request.method.decode()}")
        if request.http_version < b"1.1":
            raise BadRequest("a WebSocket handshake needs HTTP/1.1")
        lengths = field_values(request, b"content-length")
        if field_values(request, b"transfer-encoding") or lengths not in ([], [b"0"]):
            raise BadRequest("a WebSocket handshake has no body")
        if b"upgrade" not in _options(request, b"connection"):
            raise BadRequest("a WebSocket handshake needs the header field Connection: Upgrade")
        versions = field_values(request, b"sec-websocket-version")
        if versions != [_VERSION]:
            # RFC 6455 section 4.4
            raise BadRequest(
                "only WebSocket version 13 is spoken here (header field Sec-WebSocket-Version)",
                HTTPStatus.UPGRADE_REQUIRED if versions else HTTPStatus.BAD_REQUEST,
                headers=[
                    (b"sec-websocket-version", _VERSION),
                    (b"upgrade", b"websocket"),
                    (b"connection", b"upgrade"),
                ],
            )
        keys = field_values(request, b"sec-websocket-key")
        if len(keys) != 1 or not _is_key(keys[0]):
            raise BadRequest("a WebSocket handshake needs one Sec-WebSocket-Key: 16 bytes in base64")
        self._key = keys[0]
        subprotocols = _list(request, b"sec-websocket-protocol")
        if not all(map(TOKEN.fullmatch, subprotocols)):
            raise BadRequest("a WebSocket subprotocol (header field Sec-WebSocket-Protocol) is a token")
        self.subprotocols = [subprotocol.decode("ascii") for subprotocol in subprotocols]
        extensions = _list(request, b"sec-websocket-extensions")
        self._extensions = (
            [offer.decode("ascii") for offer in extensions] if all(map(bytes.isascii, extensions)) else []
        )
        origins = field_values(request, b"origin")
        if not origin_allowed(origins, allowed_origins):
            shown = ", ".join(repr(origin.decode("latin-1")) for origin in origins)
            whose = f"the origin {shown}" if origins else "clients that send no origin"
            raise BadRequest(
                f"WebSocket connections of {whose} are not allowed here (--allowed-origin)",
                HTTPStatus.FORBIDDEN,
            )

    def accept(
        self,
        *,
        subprotocol: str | None,
        headers: Iterable[tuple[bytes, bytes]],
        deflate: Deflate | None,
    ) -> list[tuple[bytes, bytes]]:
        """
        Return the header fields of the 101 response, ``headers`` among them: for `Exchange.switch_protocols`.

        ``deflate.enabled()`` tells afterwards whether compression was agreed on. Raises ``ValueError`` for a
        subprotocol that the client did not offer, and for header fields that nobody else may set.
        """
        fields = [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", generate_accept_token(self._key)),
        ]
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError(
                    f"subprotocol {subprotocol!r} was not offered by the client, which offered "
                    f"{', '.join(map(repr, self.subprotocols)) or 'none'}"
                )
            fields.append((b"Sec-WebSocket-Protocol", subprotocol.encode("ascii")))
        if deflate is not None and (agreed := server_extensions_handshake(self._extensions, [deflate])):
            fields.append((b"Sec-WebSocket-Extensions", agreed))
        for name, value in headers:
            if name.lower() in RESERVED_FIELDS:
                raise ValueError(f"header field {name.decode('latin-1')!r} is made by the handshake")
            fields.append((name, value))
        return fields


def _list(request: RequestHead, name: bytes) -> list[bytes]:
    """Return the elements of a list-based field over all its lines (RFC 9110 section 5.6.1)."""
    pieces = b",".join(field_values(request, name)).split(b",")
    return [piece.strip() for piece in pieces if piece.strip()]


def _options(request: RequestHead, name: bytes) -> set[bytes]:
    return {element.lower() for element in _list(request, name)}


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except binascii.Error:
        return False


class Accepted(NamedTuple):
    """The server accepted the client's handshake."""

    subprotocol: str | None
    headers: list[tuple[bytes, bytes]]
    leftover: bytes
    """What the server sent behind its response: the first frames."""


class Rejected(NamedTuple):
    """The server answered the client's handshake with another status than 101."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    """What of the response's body came, its first 64 KiB at most."""


class ClientHandshake:
    """The opening handshake as a client makes it."""

    def __init__(
        self,
        *,
        host: str,
        target: str,
        subprotocols: Sequence[str],
        headers: Sequence[tuple[bytes, bytes]],
        deflate: Deflate | None,
        max_head_size: int,
    ) -> None:
        for name, _ in headers:
            if name.lower() in RESERVED_FIELDS | {b"host"}:
                raise ValueError(f"header field {name.decode('latin-1')!r} is made by the handshake")
        for subprotocol in subprotocols:
            if not TOKEN.fullmatch(subprotocol.encode()):
                raise ValueError(f"subprotocol {subprotocol!r} is no token (RFC 6455 section 4.1)")
        self._request = Request(
            host=host,
            target=target,
            subprotocols=list(subprotocols),
            extensions=[] if deflate is None else [deflate],
            extra_headers=list(headers),
        )
        self._handshake = H11Handshake(ConnectionType.CLIENT)
        self._max_head_size = max_head_size
        self._head = bytearray()
        self._rejection: Rejected | None = None

    def request(self) -> bytes:
        """Return the bytes of the request. Raises ``ValueError`` for header fields that cannot be sent."""
        try:
            return self._handshake.send(self._request)
        except h11.LocalProtocolError as exc:
            raise ValueError(str(exc)) from exc

    def receive_data(self, data: bytes) -> Accepted | Rejected | None:
        """
        Take bytes from the server, ``b""`` at their end; return the outcome once it is known.

        Raises `HandshakeError` for a response that RFC 6455 section 4.1 does not allow to go on with.
        """
        if self._rejection is not None:
            return self._receive(data)
        self._head += data
        while (end := self._head.find(HEAD_END) + len(HEAD_END)) >= len(HEAD_END):
            self._check_size(end)
            head, self._head = bytes(self._head[:end]), self._head[end:]
            if BARE_LINE_BREAK.search(head):
                raise HandshakeError("the server's response is invalid: lines must end in CR LF")
            if _INTERIM.match(head):
                continue
            outcome = self._receive(_with_all_connection_options_last(head))
            if isinstance(outcome, Accepted):
                _check_single_fields(head)
                return outcome._replace(leftover=bytes(self._head))
            return self._receive(bytes(self._head)) if outcome is None and self._head else outcome
        self._check_size(len(self._head))
        if not data:
            raise HandshakeError("the server closed the connection without answering the opening handshake")
        return None

    def _check_size(self, size: int) -> None:
        if size > self._max_head_size:
            raise HandshakeError(f"the server's response has a head of more than {self._max_head_size} bytes")

    def _receive(self, data: bytes) -> Accepted | Rejected | None:
        """Take the head of the final response, or more of its body."""
        error: Exception | None = None
        try:
            self._handshake.receive_data(data)
        except (RemoteProtocolError, UnicodeDecodeError) as exc:
            error = exc
        for event in self._handshake.events():
            match event:
                case AcceptConnection(subprotocol=subprotocol, extra_headers=headers):
                    return Accepted(subprotocol, list(headers), b"")
                case RejectConnection(status_code=status, headers=headers):
                    self._rejection = Rejected(status, list(headers), b"")
                case _:
                    assert isinstance(event, RejectData)
                    assert self._rejection is not None
                    self._rejection = self._rejection._replace(body=self._rejection.body + event.data)
        if self._rejection is None:
            raise HandshakeError(
                f"the server's response to the opening handshake is invalid: {error}"
            ) from error
        # A body that is cut short or broken leaves the status what it is.
        complete = self._handshake.state is ConnectionState.CLOSED or not data or error is not None
        if complete or len(self._rejection.body) >= _MAX_REJECTION_BODY:
            return self._rejection._replace(body=self._rejection.body[:_MAX_REJECTION_BODY])
        return None


def _with_all_connection_options_last(head: bytes) -> bytes:
    """Return the head for wsproto, which takes the last line of what is one list (RFC 9110 section 5.3)."""
    lines = _CONNECTION.findall(head)
    if len(lines) < 2:
        return head
    return head.removesuffix(HEAD_END) + b"\r\nConnection:" + b",".join(lines) + HEAD_END


def _check_single_fields(head: bytes) -> None:
    names = [name.lower() for name in _SINGLE_FIELD.findall(head)]
    for name in names:
        if names.count(name) > 1:
            raise HandshakeError(f"the server's response is invalid: more than one {name.decode()}")
