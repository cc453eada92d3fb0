"""Any bytes are requests as RFC 9112 has them, which h11 alone reads alike, or refused; wherever they are cut."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import h11

from fuzz.pieces import ways_to_cut
from trio_ws_server.config import Config
from trio_ws_server.protocol.http1 import BadRequest, Exchange

if TYPE_CHECKING:
    from collections.abc import Iterable
    from http import HTTPStatus

    from trio_ws_server.headers import RequestHead

CONFIG = Config(max_head_size=512, max_header_fields=6)

LINES = [
    b"",
    b"GET / HTTP/1.1",
    b"POST / HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"GET http://a.b?c HTTP/1.1",
    b"Host: a.b",
    b"Host : [::1]:8000",
    b"Content-Length: 3",
    b"Content-Length: 03",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding:",
    b" chunked",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"A: b\nC: d",
    b"abc",
    b"3",
    b"3;a=b",
    b"0",
]
"""What libFuzzer puts into inputs."""

# RFC 9112 sections 3, 5 and 7.1, and no more than they allow: no other line breaks, folded lines or spaces.
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
FIELD = rb"(?:" + TOKEN + rb":[\t -~\x80-\xff]*\r\n)"
HEAD = re.compile(rb"(?:\r\n)*" + TOKEN + rb" [!-~]+ HTTP/1\.[0-9]\r\n" + FIELD + rb"*\r\n")
# h11 takes white space behind a chunk's size, too, which changes no boundary.
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]+)[\t ]*(?:;[\t -~\x80-\xff]*)?\r\n")
TRAILER = re.compile(FIELD + rb"*\r\n")
AUTHORITY = re.compile(rb"[^/?]*")
NOT_IN_A_HOST = re.compile(rb"[^!-~]|[/?#@\\]")


class Request(NamedTuple):
    """A request as it was read."""

    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    end: int | None = None
    """Where in the stream the next request begins; None where this one is not complete."""
    refused: HTTPStatus | None = None
    """With what status its body is refused."""

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of all fields of this name, which is in lower case."""
        return [value for field, value in self.fields if field == name]


def check(data: bytes) -> None:
    """Take all that a client sends on one connection."""
    seen, *others = [read(pieces) for pieces in ways_to_cut(data)]
    for other in others:
        assert other == seen, f"cut otherwise: {other}, not {seen}"
    start: int | None = 0
    for request in seen:
        if isinstance(request, Request):
            assert start is not None, "a request follows one that is not complete"
            check_grammar(request, data, start)
            check_with_h11(request, data, start)
            start = request.end


def read(pieces: Iterable[bytes]) -> list[Request | HTTPStatus]:
    """Return the requests, and at the end, where what follows them is refused, with what status."""
    seen: list[Request | HTTPStatus] = []
    exchange, request, body, received = Exchange(CONFIG), None, b"", 0
    for piece in pieces:
        exchange.receive_data(piece)
        received += len(piece)
        try:
            while request := request or exchange.next_request():
                while data := exchange.next_body():
                    body += data
                if data is None:
                    break
                end = received - len(exchange.leftover)
                seen.append(_seen(request, body)._replace(end=end))
                exchange.respond(204, [])
                exchange.end_body()
                if not exchange.reusable:
                    return seen
                exchange, request, body = Exchange(CONFIG, leftover=exchange.leftover), None, b""
        except BadRequest as refusal:
            refused = refusal.status
            return [*seen, _seen(request, body)._replace(refused=refused) if request else refused]
    return [*seen, _seen(request, body)] if request else seen


def _seen(request: h11.Request | RequestHead, body: bytes) -> Request:
    return Request(request.method, request.target, request.http_version, list(request.headers), body)


def check_grammar(request: Request, data: bytes, start: int) -> None:
    """Check the request against the bytes that it was read from, which begin at ``start``."""
    head = HEAD.match(data, start)
    assert head, f"not the grammar of RFC 9112: {data[start:]!r}"
    assert head.end() - start <= CONFIG.max_head_size, "the head is larger than allowed"
    lines = [line.partition(b":") for line in head[0].strip().split(b"\r\n")[1:]]
    sent = [(name.lower(), value.strip(b"\t ")) for name, _, value in lines]
    assert len(sent) <= CONFIG.max_header_fields, "the head has more fields than allowed"
    assert request.target.startswith(b"/") or (request.method, request.target) == (b"OPTIONS", b"*")
    hosts = request.values(b"host")
    assert len(hosts) == 1 or (not hosts and request.version == b"1.0"), f"hosts {hosts}"
    assert not any(map(NOT_IN_A_HOST.search, hosts)), f"hosts {hosts}"
    match [field for field in sent if field[0] in (b"content-length", b"transfer-encoding")]:
        case []:
            check_body(request, data, head.end(), 0)
        case [(b"content-length", length)]:
            assert length.isdigit(), f"Content-Length {length!r}"
            check_body(request, data, head.end(), int(length))
        case [(b"transfer-encoding", coding)]:
            assert coding.lower() == b"chunked", f"Transfer-Encoding {coding!r}"
            assert request.version != b"1.0", "chunked in HTTP/1.0"
            if request.end is not None:
                assert (request.body, request.end) == chunked(data, head.end())
        case framing:
            raise AssertionError(f"ambiguous framing: {framing}")


def check_body(request: Request, data: bytes, start: int, length: int) -> None:
    end = start + length
    assert request.body == data[start:end]
    assert request.end == (end if end <= len(data) else None)


def chunked(data: bytes, start: int) -> tuple[bytes, int]:
    """Return a chunked body (RFC 9112 section 7.1) that begins at ``start``, and where it ends."""
    body = b""
    while (size := CHUNK_SIZE.match(data, start)) and (length := int(size[1], 16)):
        body += data[size.end() : size.end() + length]
        start = size.end() + length + 2
        assert data[start - 2 : start] == b"\r\n", f"no end of a chunk: {data[:start]!r}"
    trailer = size and TRAILER.match(data, size.end())
    assert trailer, f"no end of a chunked body: {data[start:]!r}"
    return body, trailer.end()


def check_with_h11(request: Request, data: bytes, start: int) -> None:
    """Check that h11 reads the same request, given what begins at ``start`` and nothing that came before."""
    while data.startswith(b"\r\n", start):
        start += 2
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(data) + 1)
    connection.receive_data(data[start:])
    theirs = connection.next_event()
    assert isinstance(theirs, h11.Request)
    body, end = b"", None
    try:
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
        if isinstance(event, h11.EndOfMessage):
            end = len(data) - len(connection.trailing_data[0])
    except h11.RemoteProtocolError:
        assert request.refused, "h11 alone refuses the body"
    seen = _seen(theirs, body)._replace(end=end)
    if request.refused:
        # h11 may take what is refused here; what was read until then is the same.
        seen = seen._replace(body=body[: len(request.body)], end=None, refused=request.refused)
    if seen.target != request.target:
        seen = origin_form(seen)
    assert seen == request, f"h11 alone: {seen}, not {request}"


def origin_form(request: Request) -> Request:
    """Return the request with its target in absolute form taken apart (RFC 9112 section 3.2.2)."""
    scheme, _, rest = request.target.partition(b"://")
    assert scheme.lower() in (b"http", b"https"), f"target {request.target!r}"
    match = AUTHORITY.match(rest)
    assert match
    host, target = match[0], rest[match.end() :]
    fields = [(name, host if name == b"host" else value) for name, value in request.fields]
    return request._replace(
        target=target if target.startswith(b"/") else b"/" + target,
        fields=fields if request.values(b"host") else [(b"host", host), *fields],
    )
