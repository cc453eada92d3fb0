"""Any opening handshake, and any answer to ours, is refused, or accepted as RFC 6455 asks and websockets does."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHeaderFormat, InvalidMessage, InvalidStatus
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.headers import parse_extension
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri
from websockets.utils import accept_key

from fuzz.pieces import ways_to_cut
from trio_ws_server.config import Config
from trio_ws_server.errors import HandshakeError
from trio_ws_server.headers import RESERVED_FIELDS
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.handshake import Accepted, ClientHandshake, Rejected, ServerHandshake, is_upgrade
from trio_ws_server.protocol.http1 import HEAD_END, BadRequest, Exchange, field_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_ws_server.headers import RequestHead

    Parameters = Mapping[str, str | None]

CONFIG = Config(max_head_size=1024)
URI = parse_uri("ws://example.org/")
WINDOW = CONFIG.deflate_window_bits
SUBPROTOCOLS = ["chat", "superchat"]
KEY = re.compile(rb"Sec-WebSocket-Key: ([^\r]*)")
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""In an input, what is right for the key, of which every handshake has another; it is as long."""
INTERIM_RESPONSES = re.compile(rb"(?:HTTP/1\.[0-9] 1(?!01)[0-9][0-9][ \r].*?\r\n\r\n)*", re.DOTALL)
LINES = [
    b"",
    b"GET / HTTP/1.1",
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 200 OK",
    b"Host: a.b",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Connection: Upgrade",
    b"Connection: keep-alive",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Accept: " + ACCEPT,
    b"Sec-WebSocket-Protocol: chat",
    b"Sec-WebSocket-Protocol: superchat, chat",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, permessage-deflate",
    b"Origin: null",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"abc",
]
"""What libFuzzer puts into inputs."""
READ_OTHERWISE = re.compile(
    # Quoted pairs and, in responses, empty elements of lists: taken only by websockets.
    rb"\\|[:,][ \t]*,|,[ \t]*\r"
    # Names of parameters in upper case: taken only here.
    rb"|(?=(?i:server|client)_)[a-z_]*[A-Z]"
    # Lengths, which a response to an upgrade has none of: h11 refuses those that are ambiguous or no numbers.
    rb"|(?i:\ncontent-length:(?:.*\n)+content-length:|\ncontent-length:(?![ \t]*[0-9]{1,20}[ \t]*\r)"
    rb"|\ntransfer-encoding:)"
    # Line breaks of interim responses, which websockets is not shown: refused if they are not CR LF.
    rb"|(?<!\r)\n|\r(?!\n)"
    # More than one Origin: looked at here only where origins are restricted, and refused then.
    rb"|(?i:\norigin:(?:.*\n)+origin:)"
)


def check(data: bytes) -> None:
    """Take what a server answers to our opening handshake if it begins like that, else what a client sends."""
    if data.startswith(b"HTTP/"):
        check_answer(data)
    else:
        check_request(data)


def judged(end: ClientProtocol | ServerProtocol, head: bytes) -> bool | None:
    """Whether websockets accepts; None where it need not be agreed with."""
    too_large = max(map(len, head.split(HEAD_END))) + len(HEAD_END) > CONFIG.max_head_size
    unparsed = isinstance(end.handshake_exc, InvalidHeaderFormat | InvalidMessage)
    if too_large or unparsed or READ_OTHERWISE.search(head):
        return None
    return end.handshake_exc is None


# What a client sends


def check_request(stream: bytes) -> None:
    exchange = Exchange(CONFIG, leftover=stream)
    try:
        request = exchange.next_request()
    except BadRequest:
        return
    if request is None:
        return
    try:
        handshake = ServerHandshake(request) if is_upgrade(request) else None
    except BadRequest:
        handshake = None
    head = stream[: len(stream) - exchange.unread].lstrip(b"\r\n")
    theirs = ServerProtocol(extensions=[ServerPerMessageDeflateFactory(False, False, WINDOW, WINDOW)])
    theirs.receive_data(head)
    requests = theirs.events_received()
    response = theirs.accept(requests[0]) if requests and isinstance(requests[0], Request) else None
    accepted = judged(theirs, head)
    if handshake is None:
        assert not accepted, "websockets accepts"
        return
    # websockets takes no other protocol beside it, which RFC 6455 section 4.2.1 allows.
    if b"," not in b",".join(field_values(request, b"upgrade")):
        assert accepted is not False, f"websockets refuses: {theirs.handshake_exc!r}"
    enabled = check_accepting(exchange, request, handshake)
    if accepted and response:
        assert enabled is ("Sec-WebSocket-Extensions" in response.headers)


def check_accepting(exchange: Exchange, request: RequestHead, handshake: ServerHandshake) -> bool:
    """Accept the handshake, with header fields that came in it; return whether compression was agreed on."""
    fields = [field for field in request.headers if field[0] not in RESERVED_FIELDS | {b"host"}]
    offered = handshake.subprotocols
    for subprotocol, headers in (("not-" + "".join(offered), fields), (None, list(request.headers))):
        try:
            answer = handshake.accept(subprotocol=subprotocol, headers=headers, deflate=Deflate(CONFIG))
            exchange.switch_protocols(answer)
        except ValueError:
            pass
        else:
            raise AssertionError(f"accepted with {subprotocol=}, {headers=}")
    deflate = Deflate(CONFIG)
    wire = exchange.switch_protocols(
        handshake.accept(subprotocol=offered[-1] if offered else None, headers=fields, deflate=deflate)
    )
    if b"client_max_window_bits=8" in wire:
        # Clients on zlib cannot do it, websockets among them; others may offer it.
        return deflate.enabled()
    client = ClientProtocol(
        URI,
        extensions=[ClientPerMessageDeflateFactory()],
        subprotocols=[Subprotocol(subprotocol) for subprotocol in offered],
    )
    [key] = field_values(request, b"sec-websocket-key")
    client.key = key.decode()
    client.receive_data(wire)
    assert client.state is State.OPEN, f"websockets refuses {wire!r}: {client.handshake_exc!r}"
    assert client.subprotocol == (offered[-1] if offered else None)
    assert bool(client.extensions) is deflate.enabled()
    [response] = client.events_received()
    assert isinstance(response, Response)
    received = [
        (name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.raw_items()
    ]
    assert received[len(received) - len(fields) :] == fields, f"{received} does not end in {fields}"
    if deflate.enabled():
        check_agreement(request, response.headers["Sec-WebSocket-Extensions"])
    return deflate.enabled()


def check_agreement(request: RequestHead, answer: str) -> None:
    """Check that the client has offered what the answer says (RFC 7692 section 7.1)."""
    [(_, agreed)] = parse_extension(answer)
    lines = [value.decode("latin-1").lower() for value in field_values(request, b"sec-websocket-extensions")]
    try:
        offers = [offer for line in lines for name, offer in parse_extension(line) if name == Deflate.name]
    except InvalidHeaderFormat:
        return
    assert any(allows(dict(offer), dict(agreed)) for offer in offers), f"{answer} for {offers}"


def allows(offer: Parameters, agreed: Parameters) -> bool:
    def window(parameters: Parameters, name: str) -> int:
        return int(parameters.get(name) or 15)

    return (
        ("server_no_context_takeover" in agreed or "server_no_context_takeover" not in offer)
        and ("server_max_window_bits" in agreed or "server_max_window_bits" not in offer)
        and ("client_max_window_bits" not in agreed or "client_max_window_bits" in offer)
        and window(agreed, "server_max_window_bits") <= window(offer, "server_max_window_bits")
        and window(agreed, "client_max_window_bits") <= window(offer, "client_max_window_bits")
    )


# What a server answers


class Outcome(NamedTuple):
    """What came of a handshake of ours; ``answer`` is None for one that failed."""

    key: bytes
    stream: bytes
    answer: Accepted | Rejected | None
    compressed: bool

    def __str__(self) -> str:
        """Return the same for the same outcome whatever the key."""
        accept = accept_key(self.key.decode())
        return f"{self.answer}, {self.compressed}".replace(accept, ACCEPT.decode())


def check_answer(data: bytes) -> None:
    outcome, *others = [receive(pieces) for pieces in ways_to_cut(data)]
    for other in others:
        assert str(other) == str(outcome), f"cut otherwise: {other}, not {outcome}"
    theirs = ClientProtocol(
        URI,
        # websockets takes no larger window than it offered; RFC 7692 section 7.1.2.2 has the offer as a hint.
        extensions=[ClientPerMessageDeflateFactory(client_max_window_bits=15)],
        subprotocols=[Subprotocol(subprotocol) for subprotocol in SUBPROTOCOLS],
    )
    theirs.key = outcome.key.decode()
    interim = INTERIM_RESPONSES.match(outcome.stream)
    assert interim
    theirs.receive_data(outcome.stream[interim.end() :])
    theirs.receive_eof()
    accepted = judged(theirs, outcome.stream)
    match outcome.answer:
        case Accepted(subprotocol=subprotocol, leftover=leftover):
            head = outcome.stream[: len(outcome.stream) - len(leftover)]
            assert b"\n" not in head.replace(b"\r\n", b""), f"not all lines end in CR LF: {head!r}"
            assert accepted is not False, f"websockets refuses: {theirs.handshake_exc!r}"
            if accepted:
                assert subprotocol == theirs.subprotocol
                assert outcome.compressed is bool(theirs.extensions)
        case Rejected(status=status):
            assert not accepted, "websockets accepts"
            if isinstance(theirs.handshake_exc, InvalidStatus):
                assert status == theirs.handshake_exc.response.status_code
        case None:
            assert not accepted, "websockets accepts"


def receive(pieces: Sequence[bytes]) -> Outcome:
    """Answer a handshake of ours, and close the connection."""
    deflate = Deflate(CONFIG)
    handshake = ClientHandshake(
        host="example.org",
        target="/",
        subprotocols=SUBPROTOCOLS,
        headers=[],
        deflate=deflate,
        max_head_size=CONFIG.max_head_size,
    )
    key = KEY.search(handshake.request())
    assert key
    stream = b"".join(pieces).replace(ACCEPT, accept_key(key[1].decode()).encode())
    source = BytesIO(stream)
    answer: Accepted | Rejected | None = None
    try:
        for piece in [*pieces, b""]:
            data = source.read(len(piece))
            if isinstance(answer, Accepted):
                answer = answer._replace(leftover=answer.leftover + data)
            elif answer is None:
                answer = handshake.receive_data(data)
    except HandshakeError:
        return Outcome(key[1], stream, None, deflate.enabled())
    assert answer is not None, "no outcome though the connection is closed"
    return Outcome(key[1], stream, answer, deflate.enabled())
