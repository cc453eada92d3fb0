"""The opening handshake (RFC 6455 section 4), our two sides of it against others' and against each other."""

from __future__ import annotations

import base64
import hashlib
import itertools
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.http11 import Request as WebsocketsRequest
from websockets.http11 import Response as WebsocketsResponse
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request

from tests.protocol.pieces import bytewise, cut, cuts, whole
from trio_ws_server.config import Config
from trio_ws_server.errors import HandshakeError
from trio_ws_server.headers import RESERVED_FIELDS
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.handshake import (
    Accepted,
    ClientHandshake,
    Rejected,
    ServerHandshake,
    is_upgrade,
)
from trio_ws_server.protocol.http1 import BadRequest, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from trio_ws_server.headers import RequestHead

    InPieces = Callable[[bytes], Iterator[bytes]]

LIMIT = 64 * 1024
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
FIELDS = {
    b"Host": b"server.example.com",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
}


def deflate() -> Deflate:
    return Deflate(Config(max_message_size=LIMIT))


def exchange_of(stream: bytes) -> Exchange:
    """Return the exchange that begins with this request, which has been read."""
    exchange = Exchange(Config(max_head_size=LIMIT), leftover=stream)
    exchange.next_request()
    return exchange


def parsed(stream: bytes) -> RequestHead:
    request = exchange_of(stream).request
    assert request is not None
    return request


def checked(stream: bytes, *allowed_origins: str) -> ServerHandshake:
    return ServerHandshake(parsed(stream), allowed_origins)


def request(
    *more: tuple[bytes, bytes],
    line: bytes = b"GET /chat HTTP/1.1",
    without: bytes | None = None,
    **fields: bytes,
) -> bytes:
    """Return the handshake of RFC 6455 section 1.2, changed: fields left out, replaced or added."""
    replaced = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    kept = {name: value for name, value in (FIELDS | replaced).items() if name != without}
    lines = [line, *(b"%s: %s" % field for field in [*kept.items(), *more]), b"", b""]
    return b"\r\n".join(lines)


def response_to(
    stream: bytes,
    *,
    subprotocol: str | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    compression: Deflate | None = None,
) -> bytes:
    """Return the response that accepts the handshake."""
    exchange = exchange_of(stream)
    assert exchange.request is not None
    handshake = ServerHandshake(exchange.request)
    return exchange.switch_protocols(
        handshake.accept(subprotocol=subprotocol, headers=headers, deflate=compression)
    )


def accept(
    stream: bytes,
    *,
    subprotocol: str | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    compression: Deflate | None = None,
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return the status line of the response that accepts the handshake, and its fields in lower case."""
    wire = response_to(stream, subprotocol=subprotocol, headers=headers, compression=compression)
    line, *rest = wire.removesuffix(b"\r\n\r\n").split(b"\r\n")
    pairs = (field.split(b": ", 1) for field in rest)
    return line, [(name.lower(), value) for name, value in pairs]


# The server's side


def test_the_sample_key_of_rfc_6455_is_answered_with_its_sample_accept() -> None:
    assert accept(request()) == (
        b"HTTP/1.1 101 Switching Protocols",
        [(b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", ACCEPT)],
    )


@given(st.binary(min_size=16, max_size=16).map(base64.b64encode))
def test_any_key_is_answered_with_its_hash(key: bytes) -> None:
    expected = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    assert (b"sec-websocket-accept", expected) in accept(request(Sec_WebSocket_Key=key))[1]


@pytest.mark.parametrize(
    "handshake",
    [
        request(Upgrade=b"WebSocket", Connection=b"uPGRADE"),
        request(Connection=b"keep-alive, Upgrade"),
        request(Connection=b"keep-alive ,, upgrade ,"),
        request((b"Connection", b"Upgrade"), Connection=b"keep-alive"),
        request((b"Connection", b"keep-alive")),
        request(Upgrade=b"h2c, websocket"),
        request((b"Upgrade", b"websocket"), Upgrade=b"h2c"),
        request((b"Content-Length", b"0")),
        request((b"UPGRADE", b"websocket"), (b"connection", b"upgrade"), without=b"Upgrade"),
        request(line=b"GET http://server.example.com/chat HTTP/1.1"),
        request(line=b"GET / HTTP/1.2"),
        request((b"Sec-WebSocket-Protocol", b"")),
        request((b"Origin", b"null"), (b"Cookie", b"a=b")),
    ],
)
def test_a_handshake_is_accepted_in_any_of_the_forms_that_http_allows(handshake: bytes) -> None:
    assert is_upgrade(parsed(handshake))
    assert (b"sec-websocket-accept", ACCEPT) in accept(handshake)[1]


@pytest.mark.parametrize(
    "handshake", [request(without=b"Upgrade"), request(Upgrade=b"h2c"), request(Upgrade=b"websocket/13")]
)
def test_without_websocket_among_what_it_upgrades_to_a_request_is_an_ordinary_one(
    handshake: bytes,
) -> None:
    assert not is_upgrade(parsed(handshake))


@pytest.mark.parametrize(
    ("handshake", "what"),
    [
        (request(line=b"POST /chat HTTP/1.1"), "GET"),
        (request(line=b"HEAD /chat HTTP/1.1"), "GET"),
        (request(line=b"get /chat HTTP/1.1"), "GET"),
        (request(line=b"GET /chat HTTP/1.0"), "HTTP/1.1"),
        (request((b"Content-Length", b"5")), "body"),
        (request((b"Transfer-Encoding", b"chunked")), "body"),
        (request(without=b"Connection"), "Connection"),
        (request(Connection=b"keep-alive"), "Connection"),
        (request(Connection=b"not-upgrade"), "Connection"),
        (request(without=b"Sec-WebSocket-Version"), "Version"),
        (request(without=b"Sec-WebSocket-Key"), "Key"),
        (request(Sec_WebSocket_Key=b""), "Key"),
        (request(Sec_WebSocket_Key=b"not base64 at all!"), "Key"),
        (request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZQ"), "Key"),
        (request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZQ==\xff"), "Key"),
        (request(Sec_WebSocket_Key=base64.b64encode(bytes(15))), "Key"),
        (request(Sec_WebSocket_Key=base64.b64encode(bytes(17))), "Key"),
        (request((b"Sec-WebSocket-Key", KEY)), "Key"),
        (request((b"Sec-WebSocket-Protocol", b"chat room")), "Protocol"),
        (request((b"Sec-WebSocket-Protocol", b"chat, \xe4")), "Protocol"),
        (request((b"Sec-WebSocket-Protocol", b'"chat"')), "Protocol"),
    ],
)
def test_a_handshake_that_rfc_6455_forbids_to_accept_is_refused_with_400(handshake: bytes, what: str) -> None:
    with pytest.raises(BadRequest, match=what) as refusal:
        checked(handshake)
    assert refusal.value.status == HTTPStatus.BAD_REQUEST


def test_a_handshake_without_a_host_is_refused_with_400() -> None:
    with pytest.raises(BadRequest, match="Host") as refusal:
        checked(request(without=b"Host"))
    assert refusal.value.status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize("version", [b"8", b"7, 8", b"14", b"013", b"13, 8", b"", b"\xff"])
def test_another_version_is_refused_with_426_and_the_one_that_is_spoken(version: bytes) -> None:
    with pytest.raises(BadRequest, match="version 13") as refusal:
        checked(request(Sec_WebSocket_Version=version))
    assert refusal.value.status == HTTPStatus.UPGRADE_REQUIRED
    # RFC 9110 section 15.5.22 wants Upgrade, and section 7.8 Connection with it.
    assert set(refusal.value.headers) == {
        (b"sec-websocket-version", b"13"),
        (b"upgrade", b"websocket"),
        (b"connection", b"upgrade"),
    }


def refusal(handshake: bytes, *allowed_origins: str) -> tuple[HTTPStatus, str]:
    with pytest.raises(BadRequest) as refused:
        checked(handshake, *allowed_origins)
    return refused.value.status, str(refused.value)


def test_a_handshake_of_an_allowed_origin_is_accepted() -> None:
    checked(request(Origin=b"https://chat.example.com"), "https://*.example.com")
    checked(request(), "https://*.example.com", "")
    checked(request(Origin=b"https://evil.example"))


def test_a_handshake_of_an_origin_that_is_not_allowed_is_refused_with_403_which_names_it() -> None:
    status, detail = refusal(request(Origin=b"https://evil.example"), "https://*.example.com", "")
    assert status == HTTPStatus.FORBIDDEN
    assert detail == (
        "WebSocket connections of the origin 'https://evil.example' are not allowed here (--allowed-origin)"
    )


def test_a_handshake_without_an_origin_is_refused_where_one_is_demanded() -> None:
    status, detail = refusal(request(), "https://example.com")
    assert status == HTTPStatus.FORBIDDEN
    assert "clients that send no origin" in detail


def test_a_handshake_with_two_origins_is_refused_although_each_is_allowed() -> None:
    twice = request((b"Origin", b"https://example.com"), Origin=b"https://example.com")
    status, detail = refusal(twice, "https://example.com")
    assert status == HTTPStatus.FORBIDDEN
    assert "'https://example.com', 'https://example.com'" in detail


def test_a_malformed_handshake_is_answered_400_from_wherever_it_comes() -> None:
    status, _ = refusal(request(Origin=b"https://evil.example", without=b"Connection"), "https://example.com")
    assert status == HTTPStatus.BAD_REQUEST


def test_subprotocols_are_those_of_all_lines_in_order() -> None:
    offers = [(b"Sec-WebSocket-Protocol", b"v2.chat, v1.chat"), (b"sec-websocket-protocol", b",raw ")]
    assert checked(request(*offers)).subprotocols == ["v2.chat", "v1.chat", "raw"]
    assert checked(request()).subprotocols == []


@pytest.mark.parametrize("subprotocol", ["v1.chat", "v2.chat", None])
def test_the_subprotocol_chosen_is_answered_and_only_that(subprotocol: str | None) -> None:
    offer = (b"Sec-WebSocket-Protocol", b"v2.chat, v1.chat")
    _, fields = accept(request(offer), subprotocol=subprotocol)
    answered = [value.decode() for name, value in fields if name == b"sec-websocket-protocol"]
    assert answered == ([] if subprotocol is None else [subprotocol])


@pytest.mark.parametrize("subprotocol", ["other", "V1.chat", "", "v2.chat, v1.chat"])
def test_a_subprotocol_that_was_not_offered_cannot_be_chosen(subprotocol: str) -> None:
    handshake = checked(request((b"Sec-WebSocket-Protocol", b"v2.chat, v1.chat")))
    with pytest.raises(ValueError, match=r"was not offered .* 'v2.chat', 'v1.chat'$"):
        handshake.accept(subprotocol=subprotocol, headers=[], deflate=None)
    with pytest.raises(ValueError, match="offered none"):
        checked(request()).accept(subprotocol=subprotocol, headers=[], deflate=None)


def test_header_fields_are_added_to_the_response_in_order() -> None:
    added = [(b"set-cookie", b"a=1"), (b"x", b""), (b"set-cookie", b"b=2")]
    assert accept(request(), headers=added)[1][3:] == added


@pytest.mark.parametrize(
    "field",
    [
        (b"Sec-WebSocket-Protocol", b"chat"),
        (b"sec-websocket-accept", b"x"),
        (b"CONNECTION", b"close"),
        (b"content-length", b"0"),
        (b"a b", b"c"),
        (b"", b"a"),
        (b"a", b"b\r\nc: d"),
        (b"a", b"b\nc: d"),
        (b"a", b"\0"),
    ],
)
def test_a_header_field_that_cannot_be_sent_is_an_error_and_the_handshake_can_still_be_accepted(
    field: tuple[bytes, bytes],
) -> None:
    exchange = exchange_of(request())
    handshake = checked(request())

    def accept_with(*headers: tuple[bytes, bytes]) -> bytes:
        return exchange.switch_protocols(handshake.accept(subprotocol=None, headers=headers, deflate=None))

    with pytest.raises(ValueError, match=r"(?i)header"):
        accept_with(field)
    assert accept_with().startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    "offers",
    [
        [b"permessage-deflate"],
        [b"x-unknown; a=b", b"permessage-deflate; client_max_window_bits"],
        [b"permessage-deflate; unknown_parameter, permessage-deflate; server_max_window_bits=10"],
        [b",, permessage-deflate ,"],
    ],
)
def test_an_offer_of_compression_is_taken_wherever_it_stands(offers: list[bytes]) -> None:
    compression = deflate()
    handshake = request(*((b"Sec-WebSocket-Extensions", offer) for offer in offers))
    _, fields = accept(handshake, compression=compression)
    [answer] = [value for name, value in fields if name == b"sec-websocket-extensions"]
    assert answer.startswith(b"permessage-deflate")
    assert compression.enabled()


@pytest.mark.parametrize(
    "offer",
    [
        b"",
        b"x-unknown",
        b"permessage-deflate; server_max_window_bits=x",
        b"permessage-deflate; server_max_window_bits=" + b"9" * 5000,
        b"permessage-deflate; server_max_window_bits=7",
        b"permessage-deflate; ; ;",
        b"permessage-deflate=1",
        b'permessage-deflate; server_max_window_bits="10,11"',
        b"permessage-deflate; server_max_window_bits=\xc3\xa9",
        b"; = ;; ,= @",
        b"\xff",
    ],
)
def test_an_unknown_or_malformed_offer_of_an_extension_is_declined_without_ado(offer: bytes) -> None:
    compression = deflate()
    status, fields = accept(request((b"Sec-WebSocket-Extensions", offer)), compression=compression)
    assert b"101" in status
    assert b"sec-websocket-extensions" not in dict(fields)
    assert not compression.enabled()


def test_an_offer_of_compression_is_declined_where_none_is_wanted() -> None:
    offered = request((b"Sec-WebSocket-Extensions", b"permessage-deflate"))
    assert b"sec-websocket-extensions" not in dict(accept(offered)[1])


token = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=10)
added_fields = st.tuples(
    token.map(str.encode).filter(lambda name: name.lower() not in RESERVED_FIELDS),
    st.text("!09azAZ\xe4,;= \t", max_size=12).map(lambda value: value.strip().encode("latin-1")),
)
offered_extensions = st.sampled_from(
    [
        b"permessage-deflate",
        b"permessage-deflate; client_max_window_bits, permessage-deflate; server_max_window_bits=10",
        b"permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        b"permessage-deflate; server_max_window_bits=7",
        b"x-unknown; a=b",
    ]
)


@given(
    st.binary(min_size=16, max_size=16).map(base64.b64encode),
    st.lists(st.lists(token, min_size=1, max_size=3), max_size=2),
    st.lists(offered_extensions, max_size=2),
    st.lists(added_fields, max_size=3),
    st.booleans(),
    st.data(),
)
def test_any_handshake_is_answered_with_the_very_bytes_that_wsproto_answers_it_with(
    key: bytes,
    subprotocols: list[list[str]],
    extensions: list[bytes],
    added: list[tuple[bytes, bytes]],
    compressed: bool,
    data: st.DataObject,
) -> None:
    stream = request(
        *((b"Sec-WebSocket-Protocol", ", ".join(line).encode()) for line in subprotocols),
        *((b"Sec-WebSocket-Extensions", line) for line in extensions),
        Sec_WebSocket_Key=key,
    )
    chosen = data.draw(st.sampled_from([None, *itertools.chain(*subprotocols)]))
    peer = WSConnection(ConnectionType.SERVER)
    peer.receive_data(stream)
    accepting = AcceptConnection(
        subprotocol=chosen, extensions=[deflate()] if compressed else [], extra_headers=added
    )
    assert response_to(
        stream, subprotocol=chosen, headers=added, compression=deflate() if compressed else None
    ) == peer.send(accepting)


names = st.sampled_from(
    [*FIELDS, b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions", b"Content-Length", b"A"]
)
values = st.sampled_from(
    [*FIELDS.values(), b"keep-alive", b"permessage-deflate", b"client_max_window_bits=99", b"chat", b"0"]
)
texts = st.lists(values | st.binary(max_size=12), max_size=4).flatmap(
    lambda parts: st.sampled_from([b", ", b"; ", b"="]).map(lambda separator: separator.join(parts))
)


@given(st.lists(st.tuples(names, texts), max_size=5), st.sets(st.sampled_from([*FIELDS]), max_size=2))
def test_any_header_fields_are_accepted_or_refused_and_nothing_else_comes_of_them(
    more: list[tuple[bytes, bytes]], without: set[bytes]
) -> None:
    fields = [field for field in FIELDS.items() if field[0] not in without] + more
    stream = b"\r\n".join([b"GET / HTTP/1.1", *(b"%s: %s" % field for field in fields), b"", b""])
    try:
        handshake = checked(stream)
    except BadRequest:
        return
    if not is_upgrade(parsed(stream)):
        return
    for subprotocol in [None, *handshake.subprotocols]:
        response = response_to(stream, subprotocol=subprotocol, compression=deflate())
        assert response.startswith(b"HTTP/1.1 101 ")


# The client's side


def client(
    *,
    host: str = "example.org",
    target: str = "/chat?a=b",
    subprotocols: Sequence[str] = (),
    headers: Sequence[tuple[bytes, bytes]] = (),
    compression: Deflate | None = None,
    max_head_size: int = LIMIT,
) -> ClientHandshake:
    return ClientHandshake(
        host=host,
        target=target,
        subprotocols=subprotocols,
        headers=headers,
        deflate=compression,
        max_head_size=max_head_size,
    )


def accepting(handshake: ClientHandshake) -> bytes:
    """Return a plain response that accepts the handshake."""
    return response_to(handshake.request())


def outcome_of(
    handshake: ClientHandshake, pieces: Iterable[bytes], *, then_eof: bool = False
) -> Accepted | Rejected | None:
    """Give the pieces to the handshake; put what is behind its outcome to the leftover, as a network would."""
    outcome: Accepted | Rejected | None = None
    for piece in pieces:
        if isinstance(outcome, Accepted):
            outcome = outcome._replace(leftover=outcome.leftover + piece)
        elif outcome is None:
            outcome = handshake.receive_data(piece)
    if outcome is None and then_eof:
        outcome = handshake.receive_data(b"")
    return outcome


def test_the_request_is_the_one_of_rfc_6455() -> None:
    handshake = client(host="[::1]:8000", subprotocols=["v2.chat", "v1.chat"], headers=[(b"Origin", b"null")])
    sent = parsed(handshake.request())
    fields = dict(sent.headers)
    key = fields.pop(b"sec-websocket-key")
    assert len(base64.b64decode(key, validate=True)) == 16
    assert (sent.method, sent.target, sent.http_version) == (b"GET", b"/chat?a=b", b"1.1")
    assert fields == {
        b"host": b"[::1]:8000",
        b"upgrade": b"websocket",
        b"connection": b"Upgrade",
        b"sec-websocket-version": b"13",
        b"sec-websocket-protocol": b"v2.chat, v1.chat",
        b"origin": b"null",
    }


def test_every_request_has_a_key_of_its_own() -> None:
    keys = {dict(parsed(client().request()).headers)[b"sec-websocket-key"] for _ in range(10)}
    assert len(keys) == 10


@pytest.mark.parametrize("name", [b"Host", b"sec-websocket-key", b"Upgrade", b"Sec-WebSocket-Protocol"])
def test_a_header_field_that_the_handshake_makes_cannot_be_given(name: bytes) -> None:
    with pytest.raises(ValueError, match=name.decode()):
        client(headers=[(name, b"x")])


@pytest.mark.parametrize("field", [(b"a b", b"c"), (b"a", b"b\r\nc: d"), (b"a", b"b\n")])
def test_a_header_field_that_cannot_be_sent_is_an_error(field: tuple[bytes, bytes]) -> None:
    handshake = client(headers=[field])
    with pytest.raises(ValueError, match="header"):
        handshake.request()


@pytest.mark.parametrize("subprotocol", ["", "a b", "a, b", "ä", "a\r\nb: c"])
def test_a_subprotocol_that_is_no_token_cannot_be_offered(subprotocol: str) -> None:
    with pytest.raises(ValueError, match="is no token"):
        client(subprotocols=["chat", subprotocol])


@given(cuts, st.binary(max_size=40))
def test_the_response_is_read_the_same_wherever_it_is_cut_and_no_frame_behind_it_is_lost(
    places: Sequence[int], frames: bytes
) -> None:
    handshake = client()
    stream = accepting(handshake) + frames
    assert outcome_of(handshake, cut(stream, places)) == Accepted(None, [], frames)


@pytest.mark.parametrize("options", [(b"Upgrade", b"keep-alive"), (b"keep-alive", b"Upgrade")])
def test_the_connection_options_of_a_response_are_those_of_all_lines(options: tuple[bytes, bytes]) -> None:
    handshake = client()
    lines = b"Connection: %s\r\nConnection: %s\r\n" % options
    response = changed(accepting(handshake), b"Connection: Upgrade\r\n", lines)
    assert outcome_of(handshake, whole(response)) == Accepted(None, [], b"")


def test_interim_responses_before_the_final_one_are_skipped() -> None:
    """RFC 9110 section 15.2; a server may send early hints before it knows of the upgrade."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100\r\n\r\n"
    handshake = client()
    stream = interim + accepting(handshake) + b"frames"
    assert outcome_of(handshake, bytewise(stream)) == Accepted(None, [], b"frames")
    assert outcome_of(client(), [interim + b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"]) == Rejected(
        403, [(b"content-length", b"0")], b""
    )


@pytest.mark.parametrize(
    ("response", "rejected"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", (403, b"no")),
        (b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", (404, b"no")),
        (b"HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n", (302, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok")),
        (b"HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n", (599, b"")),
        (b"HTTP/1.0 500 Oh\r\n\r\nto the end", (500, b"to the end")),
    ],
)
def test_another_status_is_a_rejection_with_its_body(response: bytes, rejected: tuple[int, bytes]) -> None:
    for pieces in (whole(response), bytewise(response)):
        outcome = outcome_of(client(), pieces, then_eof=True)
        assert isinstance(outcome, Rejected)
        assert (outcome.status, outcome.body) == rejected


def test_a_rejection_shows_its_header_fields() -> None:
    outcome = outcome_of(
        client(), [b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"]
    )
    assert outcome == Rejected(401, [(b"www-authenticate", b"Basic"), (b"content-length", b"0")], b"")


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 20\r\n\r\nno",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\nbroken\r\n",
    ],
)
def test_a_rejection_whose_body_is_broken_is_still_one_with_what_came_of_it(response: bytes) -> None:
    for pieces in (whole(response), bytewise(response)):
        outcome = outcome_of(client(), pieces, then_eof=True)
        assert isinstance(outcome, Rejected)
        assert (outcome.status, outcome.body) == (403, b"no")


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1, 10**6])
def test_of_a_rejections_body_64_kib_are_read_and_no_more(size: int) -> None:
    head = b"HTTP/1.1 500 Oh\r\nContent-Length: 1000000\r\n\r\n"
    outcome = outcome_of(client(), [head, b"x" * size])
    assert isinstance(outcome, Rejected)
    assert outcome.body == b"x" * (64 * 1024)


def changed(response: bytes, old: bytes, new: bytes) -> bytes:
    assert old in response
    return response.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"),
        (b"Sec-WebSocket-Accept: ", b"X: "),
        (b"Upgrade: websocket\r\n", b""),
        (b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n"),
        (b"Connection: Upgrade\r\n", b""),
        (b"Connection: Upgrade\r\n", b"Connection: close\r\n"),
        (b"Connection: Upgrade\r\n", b"Connection: \xff\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: chat\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: \xff\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: x-unknown\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nno field\r\n\r\n"),
        (b"HTTP/1.1 101", b"HTTP/1.1 one"),
        (b"HTTP/1.1 101", b"HTTP/1.1 099"),
        (b"HTTP/1.1 101", b"ICY 101"),
        (b"Upgrade: websocket\r\n", b"Upgrade: websocket\n"),
        (b"Upgrade: websocket\r\n", b"Upgrade: websocket\n\n"),
    ],
)
def test_a_response_that_rfc_6455_forbids_to_go_on_with_fails_the_handshake(old: bytes, new: bytes) -> None:
    for in_pieces in (whole, bytewise):
        handshake = client()
        response = changed(accepting(handshake), old, new)
        with pytest.raises(HandshakeError, match="response"):
            outcome_of(handshake, in_pieces(response))


@pytest.mark.parametrize(
    "name", [b"Upgrade", b"Sec-WebSocket-Accept", b"Sec-WebSocket-Extensions", b"sec-websocket-protocol"]
)
def test_a_response_in_which_a_field_is_repeated_that_may_be_there_once_fails_the_handshake(
    name: bytes,
) -> None:
    handshake = client(subprotocols=["chat"], compression=deflate())
    response = response_to(handshake.request(), subprotocol="chat", compression=deflate())
    [line] = [line for line in response.split(b"\r\n") if line.lower().startswith(name.lower())]
    with pytest.raises(HandshakeError, match="more than one"):
        handshake.receive_data(changed(response, b"\r\n\r\n", b"\r\n%s\r\n\r\n" % line))


@pytest.mark.parametrize(
    "answer",
    [b"client_max_window_bits=16", b"server_max_window_bits=x", b"unknown", b"server_max_window_bits=7"],
)
def test_an_answer_to_the_offer_of_compression_that_rfc_7692_forbids_fails_the_handshake(
    answer: bytes,
) -> None:
    handshake = client(compression=deflate())
    field = b"\r\nSec-WebSocket-Extensions: permessage-deflate; %s\r\n\r\n" % answer
    response = changed(accepting(handshake), b"\r\n\r\n", field)
    with pytest.raises(HandshakeError, match="permessage-deflate"):
        handshake.receive_data(response)


def test_a_server_that_closes_before_its_response_is_complete_fails_the_handshake() -> None:
    handshake = client()
    response = accepting(handshake)
    for part in (b"", response[:-1]):
        with pytest.raises(HandshakeError, match="without answering"):
            outcome_of(client(), whole(part), then_eof=True)


@pytest.mark.parametrize("in_pieces", [whole, bytewise])
def test_a_response_may_be_as_large_as_the_limit_and_no_byte_larger(in_pieces: InPieces) -> None:
    size = len(accepting(client()))
    handshake = client(max_head_size=size)
    assert isinstance(outcome_of(handshake, in_pieces(accepting(handshake) + b"frames")), Accepted)
    handshake = client(max_head_size=size - 1)
    with pytest.raises(HandshakeError, match=f"more than {size - 1} bytes"):
        outcome_of(handshake, in_pieces(accepting(handshake)))


responses = st.lists(
    st.sampled_from(
        [b"HTTP/1.1 101 Switching Protocols\r\n", b"HTTP/1.1 403\r\n", b"HTTP/1.1 103\r\n", b"\r\n"]
    )
    | st.sampled_from([b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n", b"Content-Length: 3\r\n"])
    | st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"HTTP/1.0 500\r\n"])
    | st.binary(max_size=5),
    max_size=12,
).map(b"".join)


@given(responses, cuts)
def test_any_response_has_the_same_outcome_or_error_wherever_it_is_cut(
    stream: bytes, places: Sequence[int]
) -> None:
    def result(pieces: Iterable[bytes]) -> object:
        try:
            return outcome_of(client_that_asked(), pieces, then_eof=True)
        except HandshakeError:
            return "error"

    assert result(whole(stream)) == result(cut(stream, places)) == result(bytewise(stream))


def client_that_asked() -> ClientHandshake:
    handshake = client(compression=deflate())
    handshake.request()
    return handshake


# Both sides, with others' and with each other


@pytest.mark.parametrize("compressed", [False, True])
def test_the_websockets_client_is_served(compressed: bool) -> None:
    peer = ClientProtocol(
        parse_uri("ws://example.org/chat"),
        subprotocols=[Subprotocol("v2.chat"), Subprotocol("v1.chat")],
        extensions=[ClientPerMessageDeflateFactory()] if compressed else None,
    )
    peer.send_request(peer.connect())
    compression = deflate()
    asked = b"".join(peer.data_to_send())
    peer.receive_data(
        response_to(asked, subprotocol="v1.chat", headers=[(b"a", b"b")], compression=compression)
    )
    [response] = peer.events_received()
    assert isinstance(response, WebsocketsResponse)
    assert (peer.state.name, peer.subprotocol, response.headers["a"]) == ("OPEN", "v1.chat", "b")
    assert bool(peer.extensions) is compression.enabled() is compressed


@pytest.mark.parametrize("compressed", [False, True])
def test_the_websockets_server_accepts_the_client(compressed: bool) -> None:
    peer = ServerProtocol(
        subprotocols=[Subprotocol("v1.chat")],
        extensions=[ServerPerMessageDeflateFactory()] if compressed else None,
    )
    compression = deflate()
    handshake = client(subprotocols=["v2.chat", "v1.chat"], compression=compression)
    peer.receive_data(handshake.request())
    [asked] = peer.events_received()
    assert isinstance(asked, WebsocketsRequest)
    response = peer.accept(asked)
    response.headers["A"] = "b"
    peer.send_response(response)
    outcome = outcome_of(handshake, bytewise(b"".join(peer.data_to_send())))
    assert isinstance(outcome, Accepted)
    assert outcome.subprotocol == "v1.chat"
    assert (b"a", b"b") in outcome.headers
    assert compression.enabled() is compressed


def test_the_websockets_server_rejects_the_client() -> None:
    peer = ServerProtocol()
    handshake = client()
    peer.receive_data(handshake.request())
    peer.send_response(peer.reject(HTTPStatus.FORBIDDEN, "not you\n"))
    outcome = outcome_of(handshake, peer.data_to_send())
    assert isinstance(outcome, Rejected)
    assert (outcome.status, outcome.body) == (403, b"not you\n")


def test_the_wsproto_server_accepts_the_client() -> None:
    peer = WSConnection(ConnectionType.SERVER)
    handshake = client(subprotocols=["chat"])
    peer.receive_data(handshake.request())
    [asked] = peer.events()
    assert isinstance(asked, Request)
    assert (asked.target, asked.host, asked.subprotocols) == ("/chat?a=b", "example.org", ["chat"])
    response = peer.send(AcceptConnection(subprotocol="chat", extra_headers=[(b"a", b"b")]))
    assert outcome_of(handshake, [response]) == Accepted("chat", [(b"a", b"b")], b"")


def test_the_wsproto_server_rejects_the_client() -> None:
    peer = WSConnection(ConnectionType.SERVER)
    handshake = client()
    peer.receive_data(handshake.request())
    response = peer.send(
        RejectConnection(status_code=503, headers=[(b"content-length", b"4")], has_body=True)
    )
    response += peer.send(RejectData(data=b"busy", body_finished=True))
    assert outcome_of(handshake, [response]) == Rejected(503, [(b"content-length", b"4")], b"busy")


@given(st.lists(token, unique=True, max_size=4), st.booleans(), st.booleans(), st.data())
def test_both_sides_agree_on_subprotocol_and_compression(
    offered: list[str], ours: bool, theirs: bool, data: st.DataObject
) -> None:
    client_compression, server_compression = deflate(), deflate()
    handshake = client(subprotocols=offered, compression=client_compression if ours else None)
    asked = handshake.request()
    assert checked(asked).subprotocols == offered
    chosen = data.draw(st.sampled_from([None, *offered]))
    response = response_to(asked, subprotocol=chosen, compression=server_compression if theirs else None)
    outcome = handshake.receive_data(response)
    assert isinstance(outcome, Accepted)
    assert outcome.subprotocol == chosen
    assert client_compression.enabled() is server_compression.enabled() is (ours and theirs)
